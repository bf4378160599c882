# Table of contents of the workflow. Run it from the repository's root:
#
#   snakemake --cores 2                            the paper profile: figures/ and everything below it
#   snakemake --cores 2 --config profile=smoke     every step at toy size
#   snakemake --cores 2 data/smoke/people/scores/gradient_dot.npz --config profile=smoke     one file
#   snakemake -n | --lint | --report report.html   dry run, style check, self-contained report
#
# Profiles are in workflow/config, machines in workflow/profiles, the notebooks' rules in workflow/rules/stages.smk.
from snakemake.utils import min_version

min_version("9.0")


# CONFIG (validated before any rule is defined) and paths
include: "workflow/rules/common.smk"
# functions that the rules call
include: "workflow/rules/helpers.smk"
# a rule for every notebook: corpora, models, banks, chapters, removals, the leaderboard
include: "workflow/rules/stages.smk"
# 00 quickstart, the picture of the workflow, re-extraction of the committed text
include: "workflow/rules/leaves.smk"


report: "workflow/report/about.rst"


rule all:
    default_target: True
    input:
        all_figures(),
        f"{FIGURES}/workflow.svg",
        f"{DATA}/quickstart.done",
