"""Give the training of a row's chosen setting the row's name (suites with a section `select`).

INPUTS   the choice of the row, the trainings of its candidates with this seed
OUTPUTS  results/<suite>/selected/<run>/manifest.json, training.json, and the files of the chosen training
"""


rule selected:
    """Link the training of the chosen setting."""
    input:
        unpack(inputs("selected", "run")),
    output:
        manifest=update(f"{RESULTS}/selected/{{run}}/manifest.json"),
    params:
        config=config_of("selected", "run"),
        inputs=options("selected", "run"),
    log:
        f"{RESULTS}/selected/{{run}}/log.txt",
    benchmark:
        f"{RESULTS}/selected/{{run}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag selected --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
