"""Compare every set of answers with the SFT answers or with the chosen responses.

INPUTS   scores of the answers and of their opponents; the answers of both if models or people judge
OUTPUTS  results/<suite>/judge/<answers>/manifest.json, verdicts.csv, summary.json, and answers.jsonl of model judges
"""


rule judge:
    """Decide win, tie or loss at each prompt, with every judge of the suite."""
    input:
        unpack(inputs("judge", "answers")),
    output:
        manifest=update(f"{RESULTS}/judge/{{answers}}/manifest.json"),
    params:
        config=config_of("judge", "answers"),
        inputs=options("judge", "answers"),
    log:
        f"{RESULTS}/judge/{{answers}}/log.txt",
    benchmark:
        f"{RESULTS}/judge/{{answers}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag judge --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
