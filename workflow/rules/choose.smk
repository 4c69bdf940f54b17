"""Choose the setting of a row on validation prompts (suites with a section `select`).

INPUTS   scores of the candidates' and of SFT's answers to validation prompts; judgements or trainings by the criterion
OUTPUTS  results/<suite>/choose/<row>/manifest.json, choice.json, candidates.csv
"""


rule choose:
    """Measure every candidate of one row and write the best."""
    input:
        unpack(inputs("choose", "row")),
    output:
        manifest=update(f"{RESULTS}/choose/{{row}}/manifest.json"),
    params:
        config=config_of("choose", "row"),
        inputs=options("choose", "row"),
    log:
        f"{RESULTS}/choose/{{row}}/log.txt",
    benchmark:
        f"{RESULTS}/choose/{{row}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag choose --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
