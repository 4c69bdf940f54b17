"""Compare every set of answers with SFT's, or with the chosen responses.

INPUTS   scores of the answers and of what they are held against (SFT's drawn alike where there are such, else its own);
         the answers of both where models or people judge
OUTPUTS  results/<suite>/judge/<answers>/manifest.json, verdicts.csv, summary.json, answers.jsonl of models
"""


def against(stage):
    return lambda wildcards: manifest(f"{stage}/{jobs.against(SUITE, answer_set(wildcards))}")


rule judge:
    """Win, tie or loss at each prompt, by every judge of the suite."""
    input:
        code=sources("judge", SUITE.judge.user_files()),
        scores=f"{RESULTS}/score/{{answers}}/manifest.json",
        against=against("score"),
        # Only models and people read answers; a reward is in the scores.
        generations=[f"{RESULTS}/generate/{{answers}}/manifest.json"] if SUITE.judge.reads_answers else [],
        against_generations=against("generate") if SUITE.judge.reads_answers else [],
    output:
        manifest=f"{RESULTS}/judge/{{answers}}/manifest.json",
    params:
        config=config_of("judge"),
        generations=lambda wildcards, input: (
            f"--generations {input.generations} --against_generations {input.against_generations}"
            if input.generations
            else ""
        ),
    log:
        f"{RESULTS}/judge/{{answers}}/log.txt",
    benchmark:
        f"{RESULTS}/judge/{{answers}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag judge --config {params.config:q} --scores {input.scores}"
        " --against {input.against} {params.generations} --output {output.manifest} 2>&1 | tee {log:q}"
