# Configuration and paths. A configuration error stops here, in one line, before any rule is defined.
import importlib.metadata
import json
import os
import re
import sys
from pathlib import Path

from tda import config as configuration
from tda import testbeds, tuning
from tda.artefacts import atomic, key_of
from tda.config_files import chapters
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
    testbeds.check_kinds(CONFIG)
    tuning.check_rows(CONFIG)
    NOTEBOOKS = sorted(chapters().keys() | {row["notebook"] for row in CONFIG["rows"]})
except configuration.ConfigError as error:
    sys.exit(f"Error in the configuration: {error}")
OVERRIDES = CONFIG["overrides"]  # with numbers as numbers

ROOT = str(configuration.ROOT)
DATA = os.path.relpath(configuration.data_dir(CONFIG), ROOT)
FIGURES = os.path.relpath(configuration.figures_dir(CONFIG), ROOT)
LOGS, BENCHMARKS = f"{DATA}/logs", f"{DATA}/benchmarks"
TESTBEDS = list(CONFIG["testbeds"])
WITH_DESIGNS = [name for name in TESTBEDS if CONFIG["testbeds"][name]["designs"]]
REMOVAL_TESTBEDS = [name for name in TESTBEDS if CONFIG["testbeds"][name]["removals"]]
# Notebooks with a rule of their own, each with the testbeds of its figures; None stands for figures of no testbed.
STAGES = {
    "01_corpora": [None],
    "02_training": TESTBEDS,
    "03_retraining_bank": WITH_DESIGNS,
    "05_removal": REMOVAL_TESTBEDS,
    "60_leaderboard": [None],
}
# Every other chapter: a notebook and a file in workflow/config/chapters, which says on what testbeds it runs.
CHAPTERS = {name: configuration.chapter_testbeds(CONFIG, name) for name in NOTEBOOKS if name not in STAGES}
MEMORY = 4000  # MB per job: the largest of the paper profile (chapter 22 on authors); most stay below 2000
MINUTES = {"smoke": 10, "paper": 60}.get(CONFIG["profile"], 1440)  # per job; also the time limit of one cell

# Every notebook runs through this one line, and has to make every output of its rule.
RUN = (
    "python workflow/scripts/run_notebook.py {input.notebook:q} --out {log.notebook:q} --parameters {params.parameters:q}"
    " --timeout $(( {resources.runtime} * 60 )) --makes {output:q} > {log.text:q} 2>&1"
)

for reason in configuration.skipped_rows(CONFIG).values():
    print(reason, file=sys.stderr)


wildcard_constraints:
    testbed="|".join(TESTBEDS),
    design="half|leave_5|leave_group",
    shard="[0-9]+",
