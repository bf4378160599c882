# Tables, verdicts on claims and the manifest, from every row on every testbed.


rule leaderboard:
    input:
        notebook=notebook("60_leaderboard"),
        modules=modules("60_leaderboard"),
        scores=[path for name in TESTBEDS for path in scores(name, rows_of(name))],
        metrics=[path for name in TESTBEDS for path in metrics(name, rows_of(name))],
        removals=[f"{DATA}/{name}/metrics/removal.csv" for name in REMOVAL_TESTBEDS],
        banks=[path for name in TESTBEDS for path in banks(name)],
        figures=other_figures(),
    output:
        figures("60_leaderboard"),
    params:
        parameters=parameters(),
        config=section("claims", "statistics", "rows"),
    log:
        **logs("60_leaderboard"),
    benchmark:
        f"{BENCHMARKS}/60_leaderboard.tsv"
    threads: 1
    resources:
        mem_mb=MEMORY,
        runtime=MINUTES,
    conda:
        "../../environment.yml"
    shell:
        RUN
