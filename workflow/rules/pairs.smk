"""Sample and label comparisons, where a suite asks for it.

INPUTS   SFT policy, fetched prompts, the classifier where it labels
OUTPUTS  results/<suite>/pairs/manifest.json, <split>.jsonl, rankings/<split>.jsonl, summary.json
"""


rule pairs:
    """All pairs of the SFT policy's samples, and their rankings, labelled by the ground truth."""
    input:
        code=sources("pairs", jobs.user_files_of_rows(SUITE, "pairs")),
        policy=manifest("sft"),
        weights=ancient_weights("sft"),
        rows=manifest("fetch/data"),
        classifier=classifier_manifest() if SUITE.pairs and SUITE.pairs.reward == "classifier" else [],
    output:
        manifest=manifest("pairs"),
    params:
        config=config_of("pairs") if SUITE.pairs else "",
        classifier=classifier_option,
    threads: threads_of("pairs") if SUITE.pairs else 1
    log:
        f"{RESULTS}/pairs/log.txt",
    benchmark:
        f"{RESULTS}/pairs/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag pairs --config {params.config:q} --policy {input.policy}"
        " --rows {input.rows} {params.classifier} --output {output.manifest} 2>&1 | tee {log:q}"
