# Top-k removal with retraining: shards train models, then one job per testbed merges and measures.


rule removal_shard:
    input:
        notebook=notebook("05_removal"),
        modules=modules("05_removal"),
        model=model("{testbed}"),
        scores=removal_scores,
    output:
        f"{DATA}/{{testbed}}/removals.parts/shard{{shard}}.json",
    params:
        parameters=removal_parameters,
        config=removal_config,
    log:
        **logs("05_removal_{testbed}_{shard}"),
    benchmark:
        f"{BENCHMARKS}/05_removal_{{testbed}}_{{shard}}.tsv"
    threads: 1
    resources:
        mem_mb=MEMORY,
        runtime=MINUTES,
    conda:
        "../../environment.yml"
    shell:
        RUN


for NAME in REMOVAL_TESTBEDS:

    rule:
        name:
            f"removal_on_{NAME}"
        input:
            notebook=notebook("05_removal"),
            modules=modules("05_removal"),
            model=model(NAME),
            scores=scores(NAME, configuration.removal_rows(CONFIG, NAME)),
            parts=[
                f"{DATA}/{NAME}/removals.parts/shard{shard}.json"
                for shard in range(CONFIG["testbeds"][NAME]["removals"]["shards"])
            ],
        output:
            f"{DATA}/{NAME}/removals.npz",
            f"{DATA}/{NAME}/removals.npz.json",
            f"{DATA}/{NAME}/metrics/removal.csv",
            figures("05_removal", NAME),
        params:
            parameters=parameters(testbed=NAME, shard="all"),
            config=section("removals", testbed=NAME),
            statistics=section("statistics"),
        log:
            **logs(f"05_removal_{NAME}"),
        benchmark:
            f"{BENCHMARKS}/05_removal_{NAME}.tsv"
        threads: 1
        resources:
            mem_mb=MEMORY,
            runtime=MINUTES,
        conda:
            "../../environment.yml"
        shell:
            RUN
