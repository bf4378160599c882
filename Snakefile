# Table of contents of the workflow. Run it from the repository's root:
#
#   snakemake --cores 2                            the paper profile: figures/ and everything below it
#   snakemake --cores 2 --config profile=smoke     every step at toy size
#   snakemake --cores 2 data/smoke/people/scores/gradient_dot.npz --config profile=smoke     one file
#   snakemake -n | --lint | --report report.html   dry run, style check, self-contained report
#
# Profiles are in workflow/config, machines in workflow/profiles, one stage per file in workflow/rules.
from snakemake.utils import min_version

min_version("9.0")


# CONFIG (validated before any rule is defined) and paths
include: "workflow/rules/common.smk"
# functions that the rules call
include: "workflow/rules/helpers.smk"
# 01: documents and probes of every testbed
include: "workflow/rules/corpora.smk"
# 02: base models, checkpoints, queries
include: "workflow/rules/training.smk"
# 03: the retrained ground truth, in shards
include: "workflow/rules/bank.smk"
# every other chapter, from its file in workflow/config/chapters
include: "workflow/rules/chapters.smk"
# 05: retraining without the top k
include: "workflow/rules/removal.smk"
# 60: tables, claims, manifest
include: "workflow/rules/leaderboard.smk"
# 00 quickstart, the picture of the workflow, re-extraction of the committed text
include: "workflow/rules/leaves.smk"


report: "workflow/report/about.rst"


rule all:
    default_target: True
    input:
        all_figures(),
        f"{FIGURES}/workflow.svg",
        f"{DATA}/quickstart.done",
