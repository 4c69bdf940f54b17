"""Fetch rows, model, tokenizer, classifier and reward model.

INPUTS   none from other stages: the Hub, local files, or the embedded world
OUTPUTS  results/<suite>/fetch/{data,sft_data,evaluated-<set>,model,tokenizer,classifier,reward}/manifest.json, and the fetched files;
         the suite's lock file, if it does not exist
"""


def lock_of(wildcards):
    """Return the lock that names the commits. Its content makes a job outdated, its modification time does not."""
    lock = jobs.lock_of(SUITE, wildcards.what)
    return [ancient(lock)] if lock else []


if not os.path.exists(SUITE.lock):  # an existing lock belongs to the user: no rule may write or delete it

    rule lock:
        """Record today's commits of the Hub's branches, for the user to commit."""
        output:
            SUITE.lock,
        shell:
            "python -m prefdag lock " + " ".join(quoted(os.path.relpath(path)) for path in workflow.configfiles)


rule fetch:
    """Fetch the data, the model, the tokenizer, the classifier or the reward model."""
    input:
        unpack(inputs("fetch", "what")),
        lock=lock_of,
    output:
        manifest=update(f"{RESULTS}/fetch/{{what}}/manifest.json"),
    params:
        config=config_of("fetch", "what"),
        inputs=options("fetch", "what"),
    wildcard_constraints:
        what="data|sft_data|evaluated-.+|model|tokenizer|classifier|reward",
    log:
        f"{RESULTS}/fetch/{{what}}/log.txt",
    benchmark:
        f"{RESULTS}/fetch/{{what}}/benchmark.tsv"
    shell:
        "python -m prefdag fetch --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
