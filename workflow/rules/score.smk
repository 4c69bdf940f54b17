"""Score every set of answers.

INPUTS   generations, the policy, the SFT policy as reference; if the suite has them, the reward model, the classifier
         and the runs with an implicit reward (to score one of these runs: the comparisons as well)
OUTPUTS  results/<suite>/score/<answers>/manifest.json, scores.csv, summary.json;
         evaluation.json and held_out.csv of a run with an implicit reward
"""


def held_out_of(wildcards):
    return [manifest("prepare/comparisons")] if wildcards.answers in SUITE.score.implicit else []


rule score:
    """Compute rewards, KL to the reference, lengths and diversity of one set of answers."""
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
        options=options("policy", "reward", "implicit", "comparisons", "classifier"),
    threads: threads_of("score")
    log:
        f"{RESULTS}/score/{{answers}}/log.txt",
    benchmark:
        f"{RESULTS}/score/{{answers}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag score --config {params.config:q} --generations {input.generations}"
        " --reference {input.reference} {params.options} --output {output.manifest} 2>&1 | record {log:q}"
