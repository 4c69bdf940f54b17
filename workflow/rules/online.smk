"""Online preference training: a pair loss on pairs that the policy samples as it is trained.

INPUTS   SFT policy, prompts of the comparisons, and what rewards: a reward model, a classifier, another run
OUTPUTS  results/<suite>/online/<run>/manifest.json, model/, curves.csv, samples.csv, checkpoints/<step>/ if it saves some
"""


rule online:
    """Train the SFT policy on labelled pairs of its own answers."""
    input:
        unpack(inputs("online", "run")),
    output:
        manifest=update(f"{RESULTS}/online/{{run}}/manifest.json"),
    params:
        config=config_of("online", "run"),
        inputs=options("online", "run"),
    threads: threads_of("online")
    resources:
        **resources_of("online"),
    log:
        f"{RESULTS}/online/{{run}}/log.txt",
    benchmark:
        f"{RESULTS}/online/{{run}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag online --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
