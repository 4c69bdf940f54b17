"""Score every policy's generations.

INPUTS   generations, the policy, the SFT policy as reference, the reward model if there is one, runs with an implicit
         reward and for those themselves the comparisons, the classifier if there is one
OUTPUTS  results/<suite>/score/<policy>/manifest.json, scores.csv, summary.json, evaluation.json of an implicit reward
"""


def held_out_of(wildcards):
    return [manifest("prepare/comparisons")] if wildcards.policy in SUITE.score.implicit else []


rule score:
    """Rewards, KL to the reference, lengths and diversity of one policy's generations."""
    input:
        code=sources("score"),
        generations=f"{RESULTS}/generate/{{policy}}/manifest.json",
        policy=policy_manifest,
        weights=policy_weights,
        reference=manifest("sft"),
        reference_weights=ancient_weights("sft"),
        reward=[manifest("reward")] if SUITE.reward else [],
        reward_weights=ancient_weights("reward") if SUITE.reward else [],
        implicit=[manifest(f"preference/{run}") for run in SUITE.score.implicit],
        implicit_weights=[ancient_weights(f"preference/{run}")[0] for run in SUITE.score.implicit],
        comparisons=held_out_of,
        classifier=classifier_manifest(),
    output:
        manifest=f"{RESULTS}/score/{{policy}}/manifest.json",
    params:
        config=config_of("score"),
        reward=lambda wildcards, input: f"--reward {input.reward}" if input.reward else "",
        implicit=lambda wildcards, input: f"--implicit {input.implicit}" if input.implicit else "",
        comparisons=lambda wildcards, input: f"--comparisons {input.comparisons}" if input.comparisons else "",
        classifier=classifier_option,
    threads: threads_of("score")
    log:
        f"{RESULTS}/score/{{policy}}/log.txt",
    benchmark:
        f"{RESULTS}/score/{{policy}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag score --config {params.config:q} --generations {input.generations}"
        " --policy {input.policy} --reference {input.reference} {params.reward} {params.implicit} {params.comparisons}"
        " {params.classifier} --output {output.manifest} 2>&1 | tee {log:q}"
