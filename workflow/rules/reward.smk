"""Train the reward model (suites with `reward`).

INPUTS   SFT policy, comparisons
OUTPUTS  results/<suite>/reward/manifest.json, model/, seeds/<further seed>/, scoring.json, head.safetensors,
         evaluation.json, held_out.csv (rewards of every held-out comparison), curves.csv
"""


rule reward:
    """Train scalar heads on the SFT policy with comparisons."""
    input:
        code=sources("reward"),
        policy=manifest("sft"),
        weights=ancient_weights("sft"),
        comparisons=manifest("prepare/comparisons"),
    output:
        manifest=manifest("reward"),
        weights=f"{RESULTS}/reward/{WEIGHTS}",
    params:
        config=config_of("reward"),
    threads: threads_of("reward")
    resources:
        **resources_of("reward"),
    log:
        f"{RESULTS}/reward/log.txt",
    benchmark:
        f"{RESULTS}/reward/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag reward --config {params.config:q} --policy {input.policy}"
        " --comparisons {input.comparisons} --output {output.manifest} 2>&1 | record {log:q}"
