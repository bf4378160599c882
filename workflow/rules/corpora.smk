# Documents, probes and tokenizer of every testbed of the profile. The record is written last.


rule corpora:
    input:
        notebook=notebook("01_corpora"),
        modules=modules("01_corpora"),
        sources=source_files(),
    output:
        [corpus(name) for name in TESTBEDS],
        figures("01_corpora"),
    params:
        parameters=parameters(),
        config=[section("corpus", "queries", testbed=name) for name in TESTBEDS],
    log:
        **logs("01_corpora"),
    benchmark:
        f"{BENCHMARKS}/01_corpora.tsv"
    threads: 1
    resources:
        mem_mb=MEMORY,
        runtime=MINUTES,
    conda:
        "../../environment.yml"
    shell:
        RUN
