"""Train the ground-truth classifier (suites with a trained `classifier`).

INPUTS   fetched rows with labels
OUTPUTS  results/<suite>/classifier/manifest.json, model/, evaluation.json
"""


rule classifier:
    """Fit TF-IDF and logistic regression; measure accuracy and calibration on held-out texts."""
    input:
        unpack(inputs("classifier")),
    output:
        manifest=update(manifest("classifier")),
    params:
        config=config_of("classifier"),
        inputs=options("classifier"),
    log:
        f"{RESULTS}/classifier/log.txt",
    benchmark:
        f"{RESULTS}/classifier/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag classifier --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
