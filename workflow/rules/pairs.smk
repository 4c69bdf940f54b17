"""Sample and label comparisons (suites with `pairs`).

INPUTS   SFT policy, fetched prompts, the classifier if it labels
OUTPUTS  results/<suite>/pairs/manifest.json, <split>.jsonl, rankings/<split>.jsonl, summary.json
"""


rule pairs:
    """Form all pairs and rankings of the SFT policy's samples, labelled by the ground truth."""
    input:
        unpack(inputs("pairs")),
    output:
        manifest=update(manifest("pairs")),
    params:
        config=config_of("pairs"),
        inputs=options("pairs"),
    threads: threads_of("pairs")
    log:
        f"{RESULTS}/pairs/log.txt",
    benchmark:
        f"{RESULTS}/pairs/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag pairs --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
