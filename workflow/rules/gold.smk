"""Label some of a round's samples (suites with a discriminator in rounds).

INPUTS   a round's samples; the classifier if it is the ground truth
OUTPUTS  results/<suite>/gold/<run>@round<k>/manifest.json, train/, pairs.jsonl, summary.json
"""


rule gold:
    """Give a limited number of pairs of one round's samples their gold labels."""
    input:
        unpack(inputs("gold", "round")),
    output:
        manifest=update(f"{RESULTS}/gold/{{round}}/manifest.json"),
    params:
        config=config_of("gold", "round"),
        inputs=options("gold", "round"),
    threads: threads_of("gold")
    log:
        f"{RESULTS}/gold/{{round}}/log.txt",
    benchmark:
        f"{RESULTS}/gold/{{round}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag gold --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
