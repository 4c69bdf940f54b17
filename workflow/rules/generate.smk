"""Sample answers from every policy, with the suite's settings and in each variant.

INPUTS   a policy or one of its checkpoints, the held-out prompts; for `chosen` only the held-out comparisons
OUTPUTS  results/<suite>/generate/<answers>/manifest.json, generations.jsonl
"""


rule generate:
    """Generate one set of answers to the held-out prompts."""
    input:
        unpack(inputs("generate", "answers")),
    output:
        manifest=update(f"{RESULTS}/generate/{{answers}}/manifest.json"),
    params:
        config=config_of("generate", "answers"),
        inputs=options("generate", "answers"),
    threads: threads_of("generate")
    log:
        f"{RESULTS}/generate/{{answers}}/log.txt",
    benchmark:
        f"{RESULTS}/generate/{{answers}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag generate --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
