"""Minimise losses in an enumerable world and report the minima.

INPUTS   the suite alone
OUTPUTS  results/<suite>/exact/<run>/manifest.json, points.csv, policies.csv, frontier.csv;
         results/<suite>/report/manifest.json, index.html, points.csv, frontier.csv, figures/
"""


rule exact:
    """Minimise the population version of one run's loss at each of its settings."""
    input:
        unpack(inputs("exact", "run")),
    output:
        manifest=update(f"{RESULTS}/exact/{{run}}/manifest.json"),
    params:
        config=config_of("exact", "run"),
        inputs=options("exact", "run"),
    threads: threads_of("exact")
    log:
        f"{RESULTS}/exact/{{run}}/log.txt",
    benchmark:
        f"{RESULTS}/exact/{{run}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag exact --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
