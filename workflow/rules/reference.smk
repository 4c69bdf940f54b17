"""Cache the reference policy's log-probs (suites with a loss that reads them).

INPUTS   SFT policy, comparisons
OUTPUTS  results/<suite>/reference/<dataset>[-<precision>]/manifest.json, <split>.npy
"""


rule reference:
    """Compute per-token log-probs of every comparison, once for all losses, betas and seeds."""
    input:
        unpack(inputs("reference", "dataset")),
    output:
        manifest=update(f"{RESULTS}/reference/{{dataset}}/manifest.json"),
    params:
        config=config_of("reference", "dataset"),
        inputs=options("reference", "dataset"),
    wildcard_constraints:
        dataset=r"(comparisons|rankings)(-\w+)?|[^/]+@round\d+",
    threads: threads_of("reference")
    log:
        f"{RESULTS}/reference/{{dataset}}/log.txt",
    benchmark:
        f"{RESULTS}/reference/{{dataset}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag reference --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
