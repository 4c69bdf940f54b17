"""Cache the reference policy's log-probs.

INPUTS   SFT policy, comparisons
OUTPUTS  results/<suite>/reference/manifest.json, <split>.npy
"""


rule reference:
    """Per-token log-probs of every comparison under the SFT policy, once for all losses, betas and seeds."""
    input:
        code=sources("reference"),
        policy=manifest("sft"),
        weights=ancient_weights("sft"),
        comparisons=manifest("prepare/comparisons"),
    output:
        manifest=manifest("reference"),
    params:
        config=config_of("reference"),
    threads: threads_of("reference")
    log:
        f"{RESULTS}/reference/log.txt",
    benchmark:
        f"{RESULTS}/reference/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag reference --config {params.config:q} --policy {input.policy}"
        " --comparisons {input.comparisons} --output {output.manifest} 2>&1 | tee {log:q}"
