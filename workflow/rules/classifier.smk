"""Train the ground truth on labelled rows, where a suite asks for it.

INPUTS   fetched rows, of them the labelled ones
OUTPUTS  results/<suite>/classifier/manifest.json, model/, evaluation.json
"""


rule classifier:
    """TF-IDF and logistic regression, with accuracy and calibration on held-out texts."""
    input:
        code=sources("classifier"),
        data=manifest("fetch/data"),
    output:
        manifest=manifest("classifier"),
        weights=f"{RESULTS}/classifier/{WEIGHTS}",
    params:
        config=config_of("classifier") if SUITE.classifier else "",
    log:
        f"{RESULTS}/classifier/log.txt",
    benchmark:
        f"{RESULTS}/classifier/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag classifier --config {params.config:q} --data {input.data}"
        " --output {output.manifest} 2>&1 | tee {log:q}"
