"""Compare every set of answers with SFT's.

INPUTS   scores of the answers, and of SFT's: those drawn alike where there are such, else its own
OUTPUTS  results/<suite>/judge/<answers>/manifest.json, verdicts.csv, summary.json
"""


rule judge:
    """Win, tie or loss against SFT at each prompt, by the suite's reward."""
    input:
        code=sources("judge"),
        scores=f"{RESULTS}/score/{{answers}}/manifest.json",
        against=lambda wildcards: manifest(f"score/{plan.against(SUITE, wildcards.answers)}"),
    output:
        manifest=f"{RESULTS}/judge/{{answers}}/manifest.json",
    params:
        config=config_of("judge"),
    log:
        f"{RESULTS}/judge/{{answers}}/log.txt",
    benchmark:
        f"{RESULTS}/judge/{{answers}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag judge --config {params.config:q} --scores {input.scores}"
        " --against {input.against} --output {output.manifest} 2>&1 | tee {log:q}"
