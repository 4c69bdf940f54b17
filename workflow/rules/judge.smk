"""Compare every policy with SFT, or with the chosen responses.

INPUTS   scores of the policy and of what it is held against; the answers of both where a model judges
OUTPUTS  results/<suite>/judge/<policy>/manifest.json, verdicts.csv, summary.json, answers.jsonl of models
"""

AGAINST = plan.held_against(SUITE)


def answers_of(policy):
    """Generations, which only a model reads: a rewarding column is in the scores."""
    return [f"{RESULTS}/generate/{policy}/manifest.json"] if SUITE.judge.models else []


rule judge:
    """Win, tie or loss at each prompt, by every judge of the suite."""
    input:
        code=sources("judge", SUITE.judge.own_code()),
        scores=f"{RESULTS}/score/{{policy}}/manifest.json",
        against=manifest(f"score/{AGAINST}"),
        generations=answers_of("{policy}"),
        against_generations=answers_of(AGAINST),
    output:
        manifest=f"{RESULTS}/judge/{{policy}}/manifest.json",
    params:
        config=config_of("judge"),
        generations=lambda wildcards, input: (
            f"--generations {input.generations} --against_generations {input.against_generations}"
            if input.generations
            else ""
        ),
    log:
        f"{RESULTS}/judge/{{policy}}/log.txt",
    benchmark:
        f"{RESULTS}/judge/{{policy}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag judge --config {params.config:q} --scores {input.scores}"
        " --against {input.against} {params.generations} --output {output.manifest} 2>&1 | tee {log:q}"
