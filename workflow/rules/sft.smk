"""Supervised fine-tuning.

INPUTS   base model, demonstrations
OUTPUTS  results/<suite>/sft/manifest.json, model/, curves.csv
"""


rule sft:
    """Fine-tune the base model on demonstrations."""
    input:
        code=sources("sft"),
        base=manifest(jobs.folder_of(SUITE, "base")),
        weights=ancient_weights(jobs.folder_of(SUITE, "base")),
        demonstrations=manifest("prepare/demonstrations"),
    output:
        manifest=manifest("sft"),
        weights=f"{RESULTS}/sft/{WEIGHTS}",
    params:
        config=config_of("sft"),
    threads: threads_of("sft")
    resources:
        **resources_of("sft"),
    log:
        f"{RESULTS}/sft/log.txt",
    benchmark:
        f"{RESULTS}/sft/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag sft --config {params.config:q} --base {input.base}"
        " --demonstrations {input.demonstrations} --output {output.manifest} 2>&1 | record {log:q}"
