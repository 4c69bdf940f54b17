"""Sample and label comparisons (suites with `pairs`).

INPUTS   SFT policy, fetched prompts, the classifier if it labels
OUTPUTS  results/<suite>/pairs/manifest.json, <split>.jsonl, rankings/<split>.jsonl, summary.json
"""


rule pairs:
    """Form all pairs and rankings of the SFT policy's samples, labelled by the ground truth."""
    input:
        code=sources("pairs", jobs.user_files_of_rows(SUITE, "pairs")),
        policy=manifest("sft"),
        weights=ancient_weights("sft"),
        rows=manifest("fetch/data"),
        classifier=classifier_manifest() if SUITE.pairs.reward == "classifier" else [],
    output:
        manifest=manifest("pairs"),
    params:
        config=config_of("pairs"),
        options=options("classifier"),
    threads: threads_of("pairs")
    log:
        f"{RESULTS}/pairs/log.txt",
    benchmark:
        f"{RESULTS}/pairs/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag pairs --config {params.config:q} --policy {input.policy}"
        " --rows {input.rows} {params.options} --output {output.manifest} 2>&1 | record {log:q}"
