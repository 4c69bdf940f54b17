"""Train a small base model from scratch (suites with `model.scratch`).

INPUTS   fetched rows, and the fetched tokenizer if the suite names one
OUTPUTS  results/<suite>/pretrain/manifest.json, model/, curves.csv
"""


rule pretrain:
    """Train a tokenizer and a language model."""
    input:
        code=sources("pretrain", jobs.user_files_of_rows(SUITE, "pretrain")),
        data=manifest("fetch/data"),
        tokenizer=[manifest(folder) for folder in [jobs.tokenizer_folder(SUITE)] if folder],
    output:
        manifest=manifest("pretrain"),
        weights=f"{RESULTS}/pretrain/{WEIGHTS}",
    params:
        config=config_of("pretrain"),
        options=options("tokenizer"),
    threads: threads_of("pretrain")
    resources:
        **resources_of("pretrain"),
    log:
        f"{RESULTS}/pretrain/log.txt",
    benchmark:
        f"{RESULTS}/pretrain/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag pretrain --config {params.config:q} --data {input.data} {params.options}"
        " --output {output.manifest} 2>&1 | record {log:q}"
