"""List what `rule all` makes, in addition to the report.

INPUTS   none
OUTPUTS  none: lists of manifests
"""


def below_the_report():
    """Return the manifests that the report is made of.

    `all` requires these too: otherwise an old report would hide that a failed rerun deleted one of them.
    """
    read = [path for path in rules.report.input if path.endswith("manifest.json")]
    if jobs.is_exact(SUITE):
        return read
    trained = {jobs.dataset_of(SUITE, run.name) for run in SUITE.runs}
    cached = {jobs.dataset_of(SUITE, run.name) for run in SUITE.runs if jobs.reads_reference(SUITE, run.name)}
    folders = ["fetch/data", jobs.folder_of(SUITE, "base"), "prepare/demonstrations", "sft"]
    folders += ["pairs"] if SUITE.pairs else []
    folders += sorted(f"prepare/{dataset}" for dataset in trained) + sorted(f"reference/{dataset}" for dataset in cached)
    folders += [folder for folder in (jobs.classifier_folder(SUITE), jobs.tokenizer_folder(SUITE)) if folder]
    return [*read, *map(manifest, folders)]
