"""Train the reward model, or take a fetched one (suites with `reward`).

INPUTS   SFT policy, comparisons; the fetched reward model if `reward.source` names one
OUTPUTS  results/<suite>/reward/manifest.json, model/, seeds/<further seed>/, scoring.json, head.safetensors,
         evaluation.json, held_out.csv (rewards of every held-out comparison), curves.csv
"""


rule reward:
    """Train scalar heads on the SFT policy with comparisons, or measure a fetched reward model."""
    input:
        unpack(inputs("reward")),
    output:
        manifest=update(manifest("reward")),
    params:
        config=config_of("reward"),
        inputs=options("reward"),
    threads: threads_of("reward")
    resources:
        **resources_of("reward"),
    log:
        f"{RESULTS}/reward/log.txt",
    benchmark:
        f"{RESULTS}/reward/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag reward --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
