# Configuration and paths. A configuration error stops here, in one line, before any rule is defined.
import importlib.metadata
import json
import os
import re
import sys
from pathlib import Path

import yaml

from tda import config as configuration
from tda.artefacts import key_of
from tda.provenance import modules_used

# Jobs call `python`; it must be the one that runs Snakemake, also when no environment is activated.
os.environ.update(PATH=os.pathsep.join([os.path.dirname(sys.executable), *os.get_exec_path()]))

if set(os.getcwd()) & set("{}"):
    sys.exit(f"Error: Snakemake reads braces as wildcards: move this repository out of {os.getcwd()!r}")

PROFILE = str(config.get("profile", "paper"))
OVERRIDES = config.get("overrides") or {}
if not isinstance(OVERRIDES, dict):
    sys.exit(f"Error in the configuration: overrides: must be a map of config keys, got {OVERRIDES!r}")
OVERRIDES |= {key: value for key, value in config.items() if key not in ("profile", "overrides")}
try:
    CONFIG = configuration.load(PROFILE, OVERRIDES, as_text=True)
except configuration.ConfigError as error:
    sys.exit(f"Error in the configuration: {error}")
OVERRIDES = CONFIG["overrides"]  # with numbers as numbers

ROOT = str(configuration.ROOT)
DATA = os.path.relpath(configuration.data_dir(CONFIG), ROOT)
FIGURES = os.path.relpath(configuration.figures_dir(CONFIG), ROOT)
LOGS, BENCHMARKS = f"{DATA}/logs", f"{DATA}/benchmarks"
TESTBEDS = list(CONFIG["testbeds"])
# Chapters in order, each with the testbeds it runs on: those of its rows, and of the claims on its own findings. A chapter whose
# claims name no testbed runs once; chapter 31 makes no claims, those of its subject are chapter 32's.
FINDINGS = {(c["notebook"], c["testbed"]) for c in CONFIG["claims"] if c["testbed"] and c["metric"].startswith("finding_")}
WITHOUT_TESTBED = sorted({c["notebook"] for c in CONFIG["claims"] if not c["testbed"]} | {"31_verifiable_attribution"})
CHAPTERS = {
    chapter: [t for t in TESTBEDS if configuration.rows(CONFIG, t, chapter) or (chapter, t) in FINDINGS]
    for chapter in sorted({row["notebook"] for row in configuration.rows(CONFIG)} | {chapter for chapter, _ in FINDINGS})
}
REMOVAL_TESTBEDS = [name for name in TESTBEDS if CONFIG["testbeds"][name]["removals"]]
# Chapter 62 takes one language model, the first.
COST_TESTBEDS = [name for name in TESTBEDS if CONFIG["testbeds"][name]["corpus"]["kind"] != "digits"][:1]
FIGURE_NAMES = yaml.safe_load(Path("workflow/figures.yaml").read_text(encoding="utf-8"))
MEMORY = 4000  # MB per job: the largest of the paper profile (chapter 22 on authors); most stay below 2000
MINUTES = {"smoke": 10, "paper": 60}.get(CONFIG["profile"], 1440)  # per job; also the time limit of one cell

RESULTS = [f"{FIGURES}/{file}" for file in ("claims.csv", "manifest.json")] + [
    f"{FIGURES}/tables/{file}" for file in ("leaderboard.csv", "leaderboard.md", "leaderboard.tex", "cost.csv")
]

# Every notebook runs through this one line.
RUN = (
    "python -m tda.run_notebook {input.notebook:q} --out {log.notebook:q} --parameters {params.parameters:q}"
    " --timeout $(( {resources.runtime} * 60 )) > {log.text:q} 2>&1"
)

for reason in configuration.skipped_rows(CONFIG).values():
    print(reason, file=sys.stderr)


wildcard_constraints:
    testbed="|".join(TESTBEDS),
    design="half|leave_5|leave_group",
    shard="[0-9]+",
