"""Plot the figures and write the HTML report.

INPUTS   scores and judgements of every set of answers, generations of every policy, curves of every run,
         comparisons, the SFT policy (for its tokenizer), the reward model, Best-of-N
OUTPUTS  results/<suite>/report/manifest.json, index.html, runs.csv, calibration.csv, figures/
"""


def manifests(stage, policies):
    return [manifest(f"{stage}/{policy}") for policy in policies]


rule report:
    """Make every figure and table of the suite, and one HTML page with all of them."""
    input:
        code=sources("report"),
        scores=manifests("score", jobs.answers(SUITE)),
        judges=manifests("judge", [answers for answers in jobs.answers(SUITE) if jobs.against(SUITE, answers)]),
        generations=manifests("generate", jobs.policies(SUITE)),
        preferences=manifests("preference", [run.name for run in SUITE.runs]),
        comparisons=manifest("prepare/comparisons"),
        reward=[manifest("reward")] if SUITE.reward else [],
        best_of_n=[manifest("best_of_n")] if SUITE.generate.best_of else [],
        policy=manifest("sft"),
    output:
        manifest=manifest("report"),
        page=report(f"{RESULTS}/report/index.html", category="Report"),
        runs=report(f"{RESULTS}/report/runs.csv", category="Tables"),
        figures=report(directory(f"{RESULTS}/report/figures"), patterns=["{figure}.png"], category="Figures"),
    params:
        config=config_of("report"),
        options=options("reward", "best_of_n"),
    log:
        f"{RESULTS}/report/log.txt",
    benchmark:
        f"{RESULTS}/report/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag report --config {params.config:q} --scores {input.scores} --judges {input.judges}"
        " --generations {input.generations} --preferences {input.preferences} --comparisons {input.comparisons}"
        " {params.options} --policy {input.policy} --output {output.manifest} 2>&1 | record {log:q}"
