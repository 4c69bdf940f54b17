"""Fetch rows, model, tokenizer and classifier.

INPUTS   none of ours: the Hub, local files, or the embedded world
OUTPUTS  results/<suite>/fetch/{data,model,tokenizer,classifier}/manifest.json, and the files beside it;
         the lock beside the suite, where none is there
"""


def lock_of(wildcards):
    return [jobs.lock_of(SUITE, wildcards.what)] if jobs.lock_of(SUITE, wildcards.what) else []


if not os.path.exists(SUITE.lock):  # once it is there, it is the user's: nothing of ours writes or deletes it

    rule lock:
        """What the Hub's branches are today, for the user to commit."""
        output:
            SUITE.lock,
        shell:
            "python -m prefdag lock " + " ".join(quoted(os.path.relpath(path)) for path in workflow.configfiles)


rule fetch:
    """Fetch one thing that the suite names."""
    input:
        code=sources("fetch"),
        lock=lock_of,
    output:
        manifest=f"{RESULTS}/fetch/{{what}}/manifest.json",
    params:
        config=config_of("fetch", "what"),
    wildcard_constraints:
        what="data|model|tokenizer|classifier",
    log:
        f"{RESULTS}/fetch/{{what}}/log.txt",
    benchmark:
        f"{RESULTS}/fetch/{{what}}/benchmark.tsv"
    shell:
        "python -m prefdag fetch --config {params.config:q} --output {output.manifest} 2>&1 | tee {log:q}"
