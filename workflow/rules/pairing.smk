"""Form the pairs of each round (suites with runs that draw their own pairs).

INPUTS   a round's samples and their scores
OUTPUTS  results/<suite>/pairing/<run>@round<k>/manifest.json, train/, validation/, pairs.jsonl, samples.csv, summary.json
"""


rule pairing:
    """Choose and label pairs among one round's samples."""
    input:
        unpack(inputs("pairing", "round")),
    output:
        manifest=update(f"{RESULTS}/pairing/{{round}}/manifest.json"),
    params:
        config=config_of("pairing", "round"),
        inputs=options("pairing", "round"),
    log:
        f"{RESULTS}/pairing/{{round}}/log.txt",
    benchmark:
        f"{RESULTS}/pairing/{{round}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag pairing --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
