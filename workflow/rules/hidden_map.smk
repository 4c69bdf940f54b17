"""Map held-out responses by their hidden states (suites with `report.hidden_map`).

INPUTS   SFT policy, comparisons, the trained reward model if there is one
OUTPUTS  results/<suite>/hidden_map/manifest.json, map.csv
"""


rule hidden_map:
    """Compute t-SNE of the last layer's states of chosen and rejected responses."""
    input:
        unpack(inputs("hidden_map")),
    output:
        manifest=update(manifest("hidden_map")),
    params:
        config=config_of("hidden_map"),
        inputs=options("hidden_map"),
    threads: threads_of("hidden_map")
    log:
        f"{RESULTS}/hidden_map/log.txt",
    benchmark:
        f"{RESULTS}/hidden_map/benchmark.tsv"
    shell:
        OFFLINE + "python -m prefdag hidden_map --config {params.config:q} {params.inputs}"
        " --output {output.manifest} 2>&1 | record {log:q}"
