# One rule per chapter and testbed: scores and metrics of every row of the chapter (it may have none, and claims on findings of
# its own), and its figures. A chapter that runs on no testbed is one rule, with experiments of its own. A new chapter is a notebook
# and its file in workflow/config/chapters; nothing here.
for CHAPTER, NAMES in CHAPTERS.items():
    for NAME in NAMES:

        rule:
            name:
                f"chapter_{CHAPTER}_on_{NAME}" if NAME else f"chapter_{CHAPTER}"
            input:
                notebook=notebook(CHAPTER),
                modules=modules(CHAPTER, methods_of(CHAPTER, NAME)),
                model=[model(NAME)] if NAME else [],
                measured=measured_on(NAME, CHAPTER),
            output:
                scores(NAME, rows_of(NAME, CHAPTER)),
                records(scores(NAME, rows_of(NAME, CHAPTER))),
                metrics(NAME, rows_of(NAME, CHAPTER)),
                figures(CHAPTER, NAME),
            params:
                parameters=parameters(testbed=NAME) if NAME else parameters(),
                rows=key_of(rows_of(NAME, CHAPTER)),
                config=section("evaluation", testbed=NAME) if NAME else None,
                statistics=section("statistics"),
                packages=packages(CHAPTER),
            priority: 20
            log:
                **logs(f"{CHAPTER}_{NAME}" if NAME else CHAPTER),
            benchmark:
                f"{BENCHMARKS}/{CHAPTER}_{NAME}.tsv" if NAME else f"{BENCHMARKS}/{CHAPTER}.tsv"
            threads: 1
            resources:
                mem_mb=MEMORY,
                runtime=MINUTES,
            conda:
                "../../environment.yml"
            shell:
                RUN
