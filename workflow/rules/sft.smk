"""Supervised fine-tuning.

INPUTS   base model, demonstrations
OUTPUTS  results/<suite>/sft/manifest.json, model/, curves.csv
"""


rule sft:
    """Fine-tune the base model on demonstrations."""
    input:
        unpack(inputs("sft")),
    output:
        manifest=update(manifest("sft")),
    params:
        config=config_of("sft"),
        inputs=options("sft"),
    threads: threads_of("sft")
    resources:
        **resources_of("sft"),
    log:
        f"{RESULTS}/sft/log.txt",
    benchmark:
        f"{RESULTS}/sft/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag sft --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
