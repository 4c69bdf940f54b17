"""Compare every set of answers with the SFT answers or with the chosen responses.

INPUTS   scores of the answers and of their opponents; the answers of both if models or people judge
OUTPUTS  results/<suite>/judge/<answers>/manifest.json, verdicts.csv, summary.json, and answers.jsonl of model judges
"""


def against(stage):
    return lambda wildcards: manifest(f"{stage}/{jobs.against(SUITE, answer_set(wildcards))}")


rule judge:
    """Decide win, tie or loss at each prompt, with every judge of the suite."""
    input:
        code=sources("judge", SUITE.judge.user_files()),
        scores=f"{RESULTS}/score/{{answers}}/manifest.json",
        against=against("score"),
        # Only models and people read answers; a reward judges by the scores.
        generations=[f"{RESULTS}/generate/{{answers}}/manifest.json"] if SUITE.judge.reads_answers else [],
        against_generations=against("generate") if SUITE.judge.reads_answers else [],
    output:
        manifest=f"{RESULTS}/judge/{{answers}}/manifest.json",
    params:
        config=config_of("judge"),
        options=options("generations", "against_generations"),
    log:
        f"{RESULTS}/judge/{{answers}}/log.txt",
    benchmark:
        f"{RESULTS}/judge/{{answers}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag judge --config {params.config:q} --scores {input.scores}"
        " --against {input.against} {params.options} --output {output.manifest} 2>&1 | record {log:q}"
