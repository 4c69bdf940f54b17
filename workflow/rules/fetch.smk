"""Fetch rows, model and tokenizer.

INPUTS   none of ours: the Hub, local files, or the embedded world
OUTPUTS  results/<suite>/fetch/{data,model,tokenizer}/manifest.json, and the files beside it
"""


rule fetch:
    """Fetch one thing that the suite names."""
    input:
        code=sources("fetch"),
    output:
        manifest=f"{RESULTS}/fetch/{{what}}/manifest.json",
    params:
        config=config_of("fetch", "what"),
    wildcard_constraints:
        what="data|model|tokenizer",
    log:
        f"{RESULTS}/fetch/{{what}}/log.txt",
    benchmark:
        f"{RESULTS}/fetch/{{what}}/benchmark.tsv"
    shell:
        "python -m prefdag fetch --config {params.config:q} --output {output.manifest} 2>&1 | tee {log:q}"
