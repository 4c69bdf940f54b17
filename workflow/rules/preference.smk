"""Preference training.

INPUTS   the policy to start from, the run's or the round's comparisons or rankings, and the reference cache if the loss reads one
OUTPUTS  results/<suite>/preference/<run>/manifest.json, model/, curves.csv, held_out.csv if pairs are held out, checkpoints/<step>/ if the run
         saves some
"""


rule preference:
    """Align the SFT policy with the preference loss of one run."""
    input:
        unpack(inputs("preference", "run")),
    output:
        manifest=update(f"{RESULTS}/preference/{{run}}/manifest.json"),
    params:
        config=config_of("preference", "run"),
        inputs=options("preference", "run"),
    threads: threads_of("preference")
    resources:
        **resources_of("preference"),
    log:
        f"{RESULTS}/preference/{{run}}/log.txt",
    benchmark:
        f"{RESULTS}/preference/{{run}}/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag preference --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
