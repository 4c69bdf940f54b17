"""Train the reward model.

INPUTS   SFT policy, comparisons
OUTPUTS  results/<suite>/reward/manifest.json, model/, seeds/<further seed>/, scoring.json, head.safetensors,
         evaluation.json, held_out.csv (rewards of every held-out comparison), curves.csv
"""


rule reward:
    """Scalar heads on the SFT policy, trained on comparisons."""
    input:
        code=sources("reward"),
        policy=manifest("sft"),
        weights=ancient_weights("sft"),
        comparisons=manifest("prepare/comparisons"),
    output:
        manifest=manifest("reward"),
        weights=f"{RESULTS}/reward/{WEIGHTS}",
    params:
        config=config_of("reward") if SUITE.reward else "",
    threads: threads_of("reward") if SUITE.reward else 1
    resources:
        **resources_of("reward"),
    log:
        f"{RESULTS}/reward/log.txt",
    benchmark:
        f"{RESULTS}/reward/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag reward --config {params.config:q} --policy {input.policy}"
        " --comparisons {input.comparisons} --output {output.manifest} 2>&1 | tee {log:q}"
