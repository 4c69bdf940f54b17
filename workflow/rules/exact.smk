"""Minimise losses in an enumerable world and report the minima.

INPUTS   the suite alone
OUTPUTS  results/<suite>/exact/<run>/manifest.json, points.csv, policies.csv, frontier.csv;
         results/<suite>/report/manifest.json, index.html, points.csv, frontier.csv, figures/
"""


rule exact:
    """Minimise the population version of one run's loss at each of its settings."""
    input:
        code=lambda wildcards: sources("exact", jobs.user_files_of_run(SUITE, wildcards.run)),
    output:
        manifest=f"{RESULTS}/exact/{{run}}/manifest.json",
    params:
        config=config_of("exact", "run"),
    threads: threads_of("exact")
    log:
        f"{RESULTS}/exact/{{run}}/log.txt",
    benchmark:
        f"{RESULTS}/exact/{{run}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag exact --config {params.config:q} --output {output.manifest} 2>&1 | record {log:q}"


rule report:
    """Compare every method with the exact frontier, on one HTML page."""
    input:
        code=sources("report"),
        exact=[manifest(f"exact/{run.name}") for run in SUITE.runs],
    output:
        manifest=manifest("report"),
        page=report(f"{RESULTS}/report/index.html", category="Report"),
        points=report(f"{RESULTS}/report/points.csv", category="Tables"),
        figures=report(directory(f"{RESULTS}/report/figures"), patterns=["{figure}.png"], category="Figures"),
    params:
        config=config_of("report"),
    log:
        f"{RESULTS}/report/log.txt",
    benchmark:
        f"{RESULTS}/report/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag report --config {params.config:q} --exact {input.exact} --output {output.manifest}"
        " 2>&1 | record {log:q}"
