# One rule per chapter and testbed: scores and metrics of every row that names the chapter (it may have none, and claims on
# findings of its own). A new chapter needs a notebook, its rows or claims in the config, its figures in
# workflow/figures.yaml and their captions in workflow/report; nothing here.
for CHAPTER, NAMES in CHAPTERS.items():
    for NAME in NAMES:

        rule:
            name:
                f"chapter_{CHAPTER}_on_{NAME}"
            input:
                notebook=notebook(CHAPTER),
                modules=modules(CHAPTER, rows_of(NAME, CHAPTER)),
                model=model(NAME),
                banks=banks(NAME),
                references=references(NAME, CHAPTER),
            output:
                scores(NAME, rows_of(NAME, CHAPTER)),
                records(scores(NAME, rows_of(NAME, CHAPTER))),
                metrics(NAME, rows_of(NAME, CHAPTER)),
                figures(CHAPTER, NAME),
            params:
                parameters=parameters(testbed=NAME),
                rows=key_of(rows_of(NAME, CHAPTER)),
                config=section("evaluation", testbed=NAME),
                statistics=section("statistics"),
            priority: 20
            log:
                **logs(f"{CHAPTER}_{NAME}"),
            benchmark:
                f"{BENCHMARKS}/{CHAPTER}_{NAME}.tsv"
            threads: 1
            resources:
                mem_mb=MEMORY,
                runtime=MINUTES,
            conda:
                "../../environment.yml"
            shell:
                RUN


# Chapters that run on no testbed: experiments of their own, judged by claims on their findings.
for CHAPTER in WITHOUT_TESTBED:

    rule:
        name:
            f"chapter_{CHAPTER}"
        input:
            notebook=notebook(CHAPTER),
            modules=modules(CHAPTER),
        output:
            figures(CHAPTER),
        params:
            parameters=parameters(),
            statistics=section("statistics"),
        priority: 20
        log:
            **logs(CHAPTER),
        benchmark:
            f"{BENCHMARKS}/{CHAPTER}.tsv"
        threads: 1
        resources:
            mem_mb=MEMORY,
            runtime=MINUTES,
        conda:
            "../../environment.yml"
        shell:
            RUN
