"""Cache the reference policy's log-probs (suites with a loss that reads them).

INPUTS   SFT policy, comparisons
OUTPUTS  results/<suite>/reference/<dataset>/manifest.json, <split>.npy
"""


rule reference:
    """Compute per-token log-probs of every comparison, once for all losses, betas and seeds."""
    input:
        code=sources("reference"),
        policy=manifest("sft"),
        weights=ancient_weights("sft"),
        comparisons=f"{RESULTS}/prepare/{{dataset}}/manifest.json",
    output:
        manifest=f"{RESULTS}/reference/{{dataset}}/manifest.json",
    params:
        config=config_of("reference"),
    wildcard_constraints:
        dataset="comparisons|rankings",
    threads: threads_of("reference")
    log:
        f"{RESULTS}/reference/{{dataset}}/log.txt",
    benchmark:
        f"{RESULTS}/reference/{{dataset}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag reference --config {params.config:q} --policy {input.policy}"
        " --comparisons {input.comparisons} --output {output.manifest} 2>&1 | record {log:q}"
