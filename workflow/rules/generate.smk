"""Sample from every policy.

INPUTS   a policy, the held-out prompts
OUTPUTS  results/<suite>/generate/<policy>/manifest.json, generations.jsonl
"""


rule generate:
    """Responses of one policy to the held-out prompts."""
    input:
        code=sources("generate"),
        policy=policy_manifest,
        weights=policy_weights,
        comparisons=manifest("prepare/comparisons"),
    output:
        manifest=f"{RESULTS}/generate/{{policy}}/manifest.json",
    params:
        config=config_of("generate"),
    threads: threads_of("generate")
    log:
        f"{RESULTS}/generate/{{policy}}/log.txt",
    benchmark:
        f"{RESULTS}/generate/{{policy}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag generate --config {params.config:q} --policy {input.policy}"
        " --comparisons {input.comparisons} --output {output.manifest} 2>&1 | tee {log:q}"
