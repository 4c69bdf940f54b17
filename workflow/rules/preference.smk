"""Preference training.

INPUTS   SFT policy, the run's comparisons or rankings, and the reference cache if the loss reads one
OUTPUTS  results/<suite>/preference/<run>/manifest.json, model/, curves.csv, checkpoints/<step>/ if the run saves some
"""


def comparisons_of(wildcards):
    return manifest(f"prepare/{jobs.dataset_of(SUITE, wildcards.run)}")


def reference_of(wildcards):
    dataset = jobs.dataset_of(SUITE, wildcards.run)
    return [manifest(f"reference/{dataset}")] if jobs.reads_reference(SUITE, wildcards.run) else []


def code_of_run(wildcards):
    """Return the stage's code and, for a user's loss, its file and what that imports."""
    return sources("preference", jobs.user_files_of_run(SUITE, wildcards.run))


rule preference:
    """Align the SFT policy with the preference loss of one run."""
    input:
        code=code_of_run,
        policy=manifest("sft"),
        weights=ancient_weights("sft"),
        comparisons=comparisons_of,
        reference=reference_of,
    output:
        manifest=f"{RESULTS}/preference/{{run}}/manifest.json",
        weights=f"{RESULTS}/preference/{{run}}/{WEIGHTS}",
        checkpoints=directory(f"{RESULTS}/preference/{{run}}/checkpoints"),
    params:
        config=config_of("preference", "run"),
        options=options("reference"),
    threads: threads_of("preference")
    resources:
        **resources_of("preference"),
    log:
        f"{RESULTS}/preference/{{run}}/log.txt",
    benchmark:
        f"{RESULTS}/preference/{{run}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag preference --config {params.config:q} --policy {input.policy}"
        " --comparisons {input.comparisons} {params.options} --output {output.manifest} 2>&1 | record {log:q}"
