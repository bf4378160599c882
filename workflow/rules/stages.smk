# Every notebook of the workflow is a stage: what it reads beside its own code, and what it makes. One rule serves all.
# A new chapter is a notebook and its file in workflow/config/chapters; nothing here.

# 01: documents, probes and tokenizer of every testbed. The record is written last, as that of a model is.
stage(
    "corpora",
    "01_corpora",
    [*map(corpus, TESTBEDS), *figures("01_corpora")],
    {"sources": source_files()},
    parameters(),
    config=[section("corpus", "queries", testbed=name) for name in TESTBEDS],
)

# 02: base models of one testbed with checkpoints, curves and queries.
stage(
    "training",
    "02_training",
    [model("{testbed}"), *figures("02_training")],
    {"corpus": corpus("{testbed}")},
    received_by("testbed"),
    log="02_training_{testbed}",
    config=lambda wildcards: section("model", "training", "queries", testbed=wildcards.testbed),
)

# 03: the retraining bank. Shards train models (one file each, so a killed job resumes), then one job per testbed merges
# all designs and draws the ceilings. With `bank: shipped` the merge starts from data/banks and no shard is needed.
stage(
    "bank_shard",
    "03_retraining_bank",
    [f"{DATA}/{{testbed}}/bank_{{design}}.parts/shard{{shard}}.json"],
    {"model": model("{testbed}")},
    received_by("testbed", "design", "shard"),
    priority=10,
    log="03_bank_{testbed}_{design}_{shard}",
    config=lambda wildcards: key_of(CONFIG["testbeds"][wildcards.testbed]["designs"][wildcards.design]),
)
for NAME in WITH_DESIGNS:
    stage(
        f"bank_on_{NAME}",
        "03_retraining_bank",
        [*banks(NAME), *records(banks(NAME)), *figures("03_retraining_bank", NAME)],
        {"model": model(NAME), "parts": bank_parts(NAME)},
        parameters(testbed=NAME, design="all", shard="all"),
        priority=20,
        log=f"03_retraining_bank_{NAME}",
        config=section("designs", testbed=NAME),
        statistics=section("statistics", "bank"),
    )

# One rule per chapter and testbed: scores and metrics of every row of the chapter (it may have none, and claims on
# findings of its own), and its figures. A chapter that runs on no testbed is one rule.
for CHAPTER, NAMES in CHAPTERS.items():
    for NAME in NAMES:
        ROWS = rows_of(NAME, CHAPTER)
        stage(
            f"chapter_{CHAPTER}_on_{NAME}" if NAME else f"chapter_{CHAPTER}",
            CHAPTER,
            [*scores(NAME, ROWS), *records(scores(NAME, ROWS)), *metrics(NAME, ROWS), *figures(CHAPTER, NAME)],
            {"model": [model(NAME)] if NAME else [], "measured": measured_on(NAME, CHAPTER)},
            parameters(testbed=NAME) if NAME else parameters(),
            priority=20,
            log=f"{CHAPTER}_{NAME}" if NAME else CHAPTER,
            methods=methods_of(CHAPTER, NAME),
            rows=key_of(ROWS),
            config=section("evaluation", testbed=NAME) if NAME else None,
            statistics=section("statistics"),
            packages=packages(CHAPTER),
        )

# 05: retraining without the top k, in shards as for the bank.
stage(
    "removal_shard",
    "05_removal",
    [f"{DATA}/{{testbed}}/removals.parts/shard{{shard}}.json"],
    {"model": model("{testbed}"), "scores": lambda wildcards: removal_scores(wildcards.testbed)},
    received_by("testbed", "shard"),
    log="05_removal_{testbed}_{shard}",
    config=lambda wildcards: section("removals", testbed=wildcards.testbed),
)
for NAME in REMOVAL_TESTBEDS:
    SHARDS = range(CONFIG["testbeds"][NAME]["removals"]["shards"])
    stage(
        f"removal_on_{NAME}",
        "05_removal",
        [
            *(f"{DATA}/{NAME}/{file}" for file in ("removals.npz", "removals.npz.json", "metrics/removal.csv")),
            *figures("05_removal", NAME),
        ],
        {
            "model": model(NAME),
            "scores": removal_scores(NAME),
            "parts": [f"{DATA}/{NAME}/removals.parts/shard{shard}.json" for shard in SHARDS],
        },
        parameters(testbed=NAME, shard="all"),
        log=f"05_removal_{NAME}",
        config=section("removals", testbed=NAME),
        statistics=section("statistics"),
    )

# 60: tables, verdicts on claims and the manifest, from every row on every testbed.
stage(
    "leaderboard",
    "60_leaderboard",
    figures("60_leaderboard"),
    {
        "scores": [path for name in TESTBEDS for path in scores(name, rows_of(name))],
        "metrics": [path for name in TESTBEDS for path in metrics(name, rows_of(name))],
        "removals": [f"{DATA}/{name}/metrics/removal.csv" for name in REMOVAL_TESTBEDS],
        "banks": [path for name in TESTBEDS for path in banks(name)],
        "figures": [path for path in all_figures() if path not in figure_paths("60_leaderboard")],
    },
    parameters(),
    config=section("claims", "statistics", "rows"),
)

for RULE, JOB in JOBS.items():

    rule:
        name:
            RULE
        input:
            **JOB["inputs"],
        output:
            JOB["made"],
        params:
            **JOB["params"],
        priority: JOB["priority"]
        log:
            **logs(JOB["log"]),
        benchmark:
            f"{BENCHMARKS}/{JOB['log']}.tsv"
        resources:
            mem_mb=MEMORY,
            runtime=MINUTES,
        conda:
            "../../environment.yml"
        shell:
            RUN
