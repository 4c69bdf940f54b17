"""Score every set of answers.

INPUTS   generations, the policy, the SFT policy as reference, the reward model if there is one, runs with an implicit
         reward and for those themselves the comparisons, the classifier if there is one
OUTPUTS  results/<suite>/score/<answers>/manifest.json, scores.csv, summary.json;
         of a run with an implicit reward evaluation.json and held_out.csv
"""


def held_out_of(wildcards):
    return [manifest("prepare/comparisons")] if wildcards.answers in SUITE.score.implicit else []


rule score:
    """Rewards, KL to the reference, lengths and diversity of one set of answers."""
    input:
        code=sources("score"),
        generations=f"{RESULTS}/generate/{{answers}}/manifest.json",
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
        manifest=f"{RESULTS}/score/{{answers}}/manifest.json",
    params:
        config=config_of("score", "answers"),
        policy=policy_option,
        reward=lambda wildcards, input: f"--reward {input.reward}" if input.reward else "",
        implicit=lambda wildcards, input: f"--implicit {input.implicit}" if input.implicit else "",
        comparisons=lambda wildcards, input: f"--comparisons {input.comparisons}" if input.comparisons else "",
        classifier=classifier_option,
    threads: threads_of("score")
    log:
        f"{RESULTS}/score/{{answers}}/log.txt",
    benchmark:
        f"{RESULTS}/score/{{answers}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag score --config {params.config:q} --generations {input.generations}"
        " {params.policy} --reference {input.reference} {params.reward} {params.implicit} {params.comparisons}"
        " {params.classifier} --output {output.manifest} 2>&1 | tee {log:q}"
