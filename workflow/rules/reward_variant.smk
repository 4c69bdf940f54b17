"""Train further reward models (suites with `reward.variants`).

INPUTS   SFT policy, comparisons
OUTPUTS  results/<suite>/reward_variant/<name>/manifest.json and the files of the stage `reward`
"""


rule reward_variant:
    """Train a reward model with other settings, another seed or the other half of the comparisons."""
    input:
        unpack(inputs("reward_variant", "variant")),
    output:
        manifest=update(f"{RESULTS}/reward_variant/{{variant}}/manifest.json"),
    params:
        config=config_of("reward_variant", "variant"),
        inputs=options("reward_variant", "variant"),
    threads: threads_of("reward_variant")
    resources:
        **resources_of("reward_variant"),
    log:
        f"{RESULTS}/reward_variant/{{variant}}/log.txt",
    benchmark:
        f"{RESULTS}/reward_variant/{{variant}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag reward_variant --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
