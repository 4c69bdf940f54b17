"""Tokenize rows into comparisons, with an audit.

INPUTS   fetched rows or sampled pairs, the base model's tokenizer
OUTPUTS  results/<suite>/prepare/<dataset>/manifest.json, token stores, audit.json, audit.html, samples.html
"""


def rows_of(wildcards):
    sampled = SUITE.pairs is not None and wildcards.dataset not in ("demonstrations", "ood")
    return manifest("pairs" if sampled else "fetch/data")


def demonstrations_of(wildcards):
    """Return the SFT data, which no held-out prompt may occur in."""
    return [] if wildcards.dataset == "demonstrations" else [manifest("prepare/demonstrations")]


rule prepare:
    """Write one dataset as token stores."""
    input:
        code=sources("prepare", jobs.user_files_of_rows(SUITE, "prepare")),
        rows=rows_of,
        tokenizer=manifest(jobs.folder_of(SUITE, "base")),
        demonstrations=demonstrations_of,
    output:
        manifest=f"{RESULTS}/prepare/{{dataset}}/manifest.json",
    params:
        config=config_of("prepare", "dataset"),
        options=options("demonstrations"),
    wildcard_constraints:
        dataset="demonstrations|comparisons|rankings|ood",
    log:
        f"{RESULTS}/prepare/{{dataset}}/log.txt",
    benchmark:
        f"{RESULTS}/prepare/{{dataset}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag prepare --config {params.config:q} --rows {input.rows}"
        " --tokenizer {input.tokenizer} {params.options} --output {output.manifest} 2>&1 | record {log:q}"
