# Base models of one testbed with checkpoints, curves and queries. The record is written last.


rule training:
    input:
        notebook=notebook("02_training"),
        modules=modules("02_training"),
        corpus=corpus("{testbed}"),
    output:
        model("{testbed}"),
        figures("02_training"),
    params:
        parameters=training_parameters,
        config=training_config,
    log:
        **logs("02_training_{testbed}"),
    benchmark:
        f"{BENCHMARKS}/02_training_{{testbed}}.tsv"
    threads: 1
    resources:
        mem_mb=MEMORY,
        runtime=MINUTES,
    conda:
        "../../environment.yml"
    shell:
        RUN
