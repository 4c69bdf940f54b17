"""Preference training.

INPUTS   SFT policy, the run's comparisons or rankings, and the reference cache where the loss reads one
OUTPUTS  results/<suite>/preference/<run>/manifest.json, model/, curves.csv, checkpoints/<step>/ where the run keeps some
"""


def comparisons_of(wildcards):
    return manifest(f"prepare/{jobs.dataset_of(SUITE, wildcards.run)}")


def reference_of(wildcards):
    dataset = jobs.dataset_of(SUITE, wildcards.run)
    return [manifest(f"reference/{dataset}")] if jobs.reads_reference(SUITE, wildcards.run) else []


def code_of_run(wildcards):
    """The stage's code, and where the loss is the user's own, its file and what that imports."""
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
        reference=lambda wildcards, input: f"--reference {input.reference}" if input.reference else "",
    threads: threads_of("preference")
    resources:
        **resources_of("preference"),
    log:
        f"{RESULTS}/preference/{{run}}/log.txt",
    benchmark:
        f"{RESULTS}/preference/{{run}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag preference --config {params.config:q} --policy {input.policy}"
        " --comparisons {input.comparisons} {params.reference} --output {output.manifest} 2>&1 | tee {log:q}"
