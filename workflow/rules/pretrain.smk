"""Train a small base model from scratch.

INPUTS   fetched rows, and the fetched tokenizer if the suite names one
OUTPUTS  results/<suite>/pretrain/manifest.json, model/, curves.csv
"""


rule pretrain:
    """Tokenizer and language model from nothing."""
    input:
        code=sources("pretrain", jobs.user_files_of_rows(SUITE, "pretrain")),
        data=manifest("fetch/data"),
        tokenizer=[manifest(folder) for folder in [jobs.tokenizer_folder(SUITE)] if folder],
    output:
        manifest=manifest("pretrain"),
        weights=f"{RESULTS}/pretrain/{WEIGHTS}",
    params:
        config=config_of("pretrain") if SUITE.model.from_scratch else "",
        tokenizer=tokenizer_option,
    threads: threads_of("pretrain") if SUITE.pretrain else 1
    resources:
        **resources_of("pretrain"),
    log:
        f"{RESULTS}/pretrain/log.txt",
    benchmark:
        f"{RESULTS}/pretrain/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag pretrain --config {params.config:q} --data {input.data} {params.tokenizer}"
        " --output {output.manifest} 2>&1 | tee {log:q}"
