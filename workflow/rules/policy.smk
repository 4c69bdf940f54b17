"""On-policy training.

INPUTS   SFT policy, prompts of the comparisons, and what rewards: a reward model, a classifier, another run
OUTPUTS  results/<suite>/policy/<run>/manifest.json, model/, curves.csv, samples.csv, checkpoints/<step>/ if it saves some
"""


rule policy:
    """Train the SFT policy on rewards of its own answers."""
    input:
        unpack(inputs("policy", "run")),
    output:
        manifest=update(f"{RESULTS}/policy/{{run}}/manifest.json"),
    params:
        config=config_of("policy", "run"),
        inputs=options("policy", "run"),
    threads: threads_of("policy")
    resources:
        **resources_of("policy"),
    log:
        f"{RESULTS}/policy/{{run}}/log.txt",
    benchmark:
        f"{RESULTS}/policy/{{run}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag policy --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
