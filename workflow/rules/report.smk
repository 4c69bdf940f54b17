"""Plot the figures and write the HTML report.

INPUTS   scores and judgements of every set of answers, generations of every policy, curves of every run,
         comparisons, the SFT policy (for its tokenizer), the reward model, Best-of-N
OUTPUTS  results/<suite>/report/manifest.json, index.html, runs.csv, calibration.csv, figures/
"""


rule report:
    """Make every figure and table of the suite, and one HTML page with all of them."""
    input:
        unpack(inputs("report")),
    output:
        manifest=manifest("report"),
        page=report(f"{RESULTS}/report/index.html", category="Report"),
        table=report(f"{RESULTS}/report/{jobs.table_of_report(SUITE)}", category="Tables"),
        figures=report(directory(f"{RESULTS}/report/figures"), patterns=["{figure}.png"], category="Figures"),
    params:
        config=config_of("report"),
        inputs=options("report"),
    log:
        f"{RESULTS}/report/log.txt",
    benchmark:
        f"{RESULTS}/report/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag report --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
