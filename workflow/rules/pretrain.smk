"""Train a small base model from scratch (suites with `model.scratch`).

INPUTS   fetched rows, and the fetched tokenizer if the suite names one
OUTPUTS  results/<suite>/pretrain/manifest.json, model/, curves.csv
"""


rule pretrain:
    """Train a tokenizer and a language model."""
    input:
        unpack(inputs("pretrain")),
    output:
        manifest=update(manifest("pretrain")),
    params:
        config=config_of("pretrain"),
        inputs=options("pretrain"),
    threads: threads_of("pretrain")
    resources:
        **resources_of("pretrain"),
    log:
        f"{RESULTS}/pretrain/log.txt",
    benchmark:
        f"{RESULTS}/pretrain/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag pretrain --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
