"""Measure speed and memory against TRL and against plainer forms of the same step: `snakemake bench`.

INPUTS   nothing: random weights and ids of known shapes and lengths
OUTPUTS  results/<suite>/benchmark/manifest.json, runs.csv, ratios.csv, benchmarks.md, figures/speedups.png
"""


rule bench:
    input:
        manifest("benchmark"),


rule benchmark:
    """Cells times arms, interleaved; it wants the machine to itself."""
    input:
        code=[*sources("benchmark"), "workflow/bench/trl_arm.py"],
    output:
        manifest=manifest("benchmark"),
    params:
        config=config_of("benchmark"),
    threads: workflow.cores
    log:
        f"{RESULTS}/benchmark/log.txt",
    benchmark:
        f"{RESULTS}/benchmark/benchmark.tsv"
    shell:
        "HF_HUB_OFFLINE=1 python -m prefdag benchmark --config {params.config:q} --output {output.manifest} 2>&1 | tee {log:q}"
