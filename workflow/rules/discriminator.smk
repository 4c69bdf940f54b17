"""Train the reward model of each round (suites with a discriminator in rounds).

INPUTS   SFT policy, comparisons, gold labels of each round so far; the reward model to start from, if any
OUTPUTS  results/<suite>/discriminator/<run>@round<k>/manifest.json and the files of the stage `reward`
"""


rule discriminator:
    """Train a reward model on the comparisons and the gold labels so far."""
    input:
        unpack(inputs("discriminator", "round")),
    output:
        manifest=update(f"{RESULTS}/discriminator/{{round}}/manifest.json"),
    params:
        config=config_of("discriminator", "round"),
        inputs=options("discriminator", "round"),
    threads: threads_of("discriminator")
    resources:
        **resources_of("discriminator"),
    log:
        f"{RESULTS}/discriminator/{{round}}/log.txt",
    benchmark:
        f"{RESULTS}/discriminator/{{round}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag discriminator --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
