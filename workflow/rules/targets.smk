"""What `rule all` asks for beside the report.

INPUTS   none
OUTPUTS  none: lists of manifests
"""


def below_the_report():
    """What the report is made of. `all` asks for these too: where a rerun failed, the file that it took away would not
    be missed as long as an old report is there."""
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
