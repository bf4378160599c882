# The retraining bank: shards train models (one file each, so a killed job resumes), then one job per testbed merges all
# designs and draws the ceilings. With `bank: shipped` the merge starts from data/banks and no shard is needed.


rule bank_shard:
    input:
        notebook=notebook("03_retraining_bank"),
        modules=modules("03_retraining_bank"),
        model=model("{testbed}"),
    output:
        f"{DATA}/{{testbed}}/bank_{{design}}.parts/shard{{shard}}.json",
    params:
        parameters=bank_parameters,
        config=bank_config,
    priority: 10
    log:
        **logs("03_bank_{testbed}_{design}_{shard}"),
    benchmark:
        f"{BENCHMARKS}/03_bank_{{testbed}}_{{design}}_{{shard}}.tsv"
    threads: 1
    resources:
        mem_mb=MEMORY,
        runtime=MINUTES,
    conda:
        "../../environment.yml"
    shell:
        RUN


for NAME in WITH_DESIGNS:

    rule:
        name:
            f"bank_on_{NAME}"
        input:
            notebook=notebook("03_retraining_bank"),
            modules=modules("03_retraining_bank"),
            model=model(NAME),
            parts=bank_parts(NAME),
        output:
            banks(NAME),
            records(banks(NAME)),
            figures("03_retraining_bank", NAME),
        params:
            parameters=parameters(testbed=NAME, design="all", shard="all"),
            config=section("designs", testbed=NAME),
            statistics=section("statistics", "bank"),
        priority: 20
        log:
            **logs(f"03_retraining_bank_{NAME}"),
        benchmark:
            f"{BENCHMARKS}/03_retraining_bank_{NAME}.tsv"
        threads: 1
        resources:
            mem_mb=MEMORY,
            runtime=MINUTES,
        conda:
            "../../environment.yml"
        shell:
            RUN
