"""Measure the reward model by subset (suites with `evaluate_reward`).

INPUTS   reward model, SFT policy, comparisons, fetched rows; the prepared rows of a set that has its own
OUTPUTS  results/<suite>/evaluate_reward/<set>/manifest.json, subsets.csv, held_out.csv
"""


rule evaluate_reward:
    """Measure the reward model's accuracy on one set, by subset and by length difference."""
    input:
        unpack(inputs("evaluate_reward", "set")),
    output:
        manifest=update(f"{RESULTS}/evaluate_reward/{{set}}/manifest.json"),
    params:
        config=config_of("evaluate_reward", "set"),
        inputs=options("evaluate_reward", "set"),
    threads: threads_of("evaluate_reward")
    log:
        f"{RESULTS}/evaluate_reward/{{set}}/log.txt",
    benchmark:
        f"{RESULTS}/evaluate_reward/{{set}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag evaluate_reward --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
