"""Rate the samples of each round by a model judge (suites with `reward: judge:<name>` in rounds).

INPUTS   a round's samples
OUTPUTS  results/<suite>/rating/<run>@samples<k>/manifest.json, scores.csv, verdicts.csv, summary.json
"""


rule rating:
    """Compare the samples of each prompt with one another."""
    input:
        unpack(inputs("rating", "answers")),
    output:
        manifest=update(f"{RESULTS}/rating/{{answers}}/manifest.json"),
    params:
        config=config_of("rating", "answers"),
        inputs=options("rating", "answers"),
    log:
        f"{RESULTS}/rating/{{answers}}/log.txt",
    benchmark:
        f"{RESULTS}/rating/{{answers}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag rating --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
