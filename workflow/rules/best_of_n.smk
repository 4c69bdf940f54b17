"""Compute Best-of-N from a pool of SFT samples (suites with `generate.best_of`).

INPUTS   scores of the pool
OUTPUTS  results/<suite>/best_of_n/manifest.json, best_of_n.csv
"""


rule best_of_n:
    """Compute reward, win rate and KL of the best of N samples, for each N up to the pool's size."""
    input:
        unpack(inputs("best_of_n")),
    output:
        manifest=update(manifest("best_of_n")),
    params:
        config=config_of("best_of_n"),
        inputs=options("best_of_n"),
    log:
        f"{RESULTS}/best_of_n/log.txt",
    benchmark:
        f"{RESULTS}/best_of_n/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag best_of_n --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
