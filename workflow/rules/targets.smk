"""What `rule all` asks for beside the report.

INPUTS   none
OUTPUTS  none: lists of manifests
"""


def below_the_report():
    """What the report is made of. `all` asks for these too: where a rerun failed, the file that it took away would not
    be missed as long as an old report is there."""
    read = [path for path in rules.report.input if path.endswith("manifest.json")]
    if plan.is_exact(SUITE):
        return read
    trained = {plan.dataset_of(SUITE, run.name) for run in SUITE.runs}
    cached = {plan.dataset_of(SUITE, run.name) for run in SUITE.runs if plan.reads_reference(SUITE, run.name)}
    folders = ["fetch/data", plan.folder_of(SUITE, "base"), "prepare/demonstrations", "sft"]
    folders += ["pairs"] if SUITE.pairs else []
    folders += sorted(f"prepare/{dataset}" for dataset in trained) + sorted(f"reference/{dataset}" for dataset in cached)
    folders += [folder for folder in (plan.classifier_folder(SUITE), plan.tokenizer_folder(SUITE)) if folder]
    return [*read, *map(manifest, folders)]
