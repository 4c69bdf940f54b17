"""Compare every policy with SFT.

INPUTS   scores of the policy and of SFT
OUTPUTS  results/<suite>/judge/<policy>/manifest.json, verdicts.csv, summary.json
"""


rule judge:
    """Win, tie or loss against SFT at each prompt, by the suite's reward."""
    input:
        code=sources("judge"),
        scores=f"{RESULTS}/score/{{policy}}/manifest.json",
        against=manifest("score/sft"),
    output:
        manifest=f"{RESULTS}/judge/{{policy}}/manifest.json",
    params:
        config=config_of("judge"),
    log:
        f"{RESULTS}/judge/{{policy}}/log.txt",
    benchmark:
        f"{RESULTS}/judge/{{policy}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag judge --config {params.config:q} --scores {input.scores}"
        " --against {input.against} --output {output.manifest} 2>&1 | tee {log:q}"
