"""Sample from every policy, as the suite says and in its variants.

INPUTS   a policy or a checkpoint of one, the held-out prompts; for `chosen` the held-out comparisons alone
OUTPUTS  results/<suite>/generate/<answers>/manifest.json, generations.jsonl
"""


rule generate:
    """One set of answers to the held-out prompts."""
    input:
        code=sources("generate"),
        policy=policy_manifest,
        weights=policy_weights,
        tokenizer=reader_of,
        comparisons=lambda wildcards: manifest(jobs.prompts_folder(SUITE, answer_set(wildcards))),
    output:
        manifest=f"{RESULTS}/generate/{{answers}}/manifest.json",
    params:
        config=config_of("generate", "answers"),
        policy=policy_option,
        tokenizer=tokenizer_option,
    threads: threads_of("generate")
    log:
        f"{RESULTS}/generate/{{answers}}/log.txt",
    benchmark:
        f"{RESULTS}/generate/{{answers}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag generate --config {params.config:q} {params.policy} {params.tokenizer}"
        " --comparisons {input.comparisons} --output {output.manifest} 2>&1 | tee {log:q}"
