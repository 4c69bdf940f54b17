"""Score every set of answers.

INPUTS   generations, the policy, the SFT policy as reference; if the suite has them, the reward model, the classifier
         and the runs with an implicit reward (to score one of these runs: the comparisons as well)
OUTPUTS  results/<suite>/score/<answers>/manifest.json, scores.csv, summary.json;
         evaluation.json and held_out.csv of a run with an implicit reward
"""


rule score:
    """Compute rewards, KL to the reference, lengths and diversity of one set of answers."""
    input:
        unpack(inputs("score", "answers")),
    output:
        manifest=update(f"{RESULTS}/score/{{answers}}/manifest.json"),
    params:
        config=config_of("score", "answers"),
        inputs=options("score", "answers"),
    threads: threads_of("score")
    log:
        f"{RESULTS}/score/{{answers}}/log.txt",
    benchmark:
        f"{RESULTS}/score/{{answers}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag score --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
