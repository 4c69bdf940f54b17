"""Tokenize rows into comparisons, with an audit.

INPUTS   fetched rows or sampled pairs, the base model's tokenizer
OUTPUTS  results/<suite>/prepare/<dataset>/manifest.json, token stores, audit.json, audit.html, samples.html
"""


rule prepare:
    """Write one dataset as token stores."""
    input:
        unpack(inputs("prepare", "dataset")),
    output:
        manifest=update(f"{RESULTS}/prepare/{{dataset}}/manifest.json"),
    params:
        config=config_of("prepare", "dataset"),
        inputs=options("prepare", "dataset"),
    wildcard_constraints:
        dataset="demonstrations|comparisons|rankings|ood|evaluated-.+",
    log:
        f"{RESULTS}/prepare/{{dataset}}/log.txt",
    benchmark:
        f"{RESULTS}/prepare/{{dataset}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag prepare --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
