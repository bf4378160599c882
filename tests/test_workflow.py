"""The workflow plans every stage, passes only declared parameters, is lint-clean and refuses wrong calls in
one line.
"""

import fcntl
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import draw_dag
import nbformat
import pytest
import yaml
from run_notebook import check_parameters, declared_parameters

from tda import config
from tda.config_files import chapters

ROOT = config.ROOT
PROFILES = ["smoke", "paper", "extended", "large"]
DOT = """digraph snakemake_dag {
	0[label = "all", color = "0.00 0.6 0.85", style="rounded"];
	1[label = "leaderboard", color = "0.1", style="rounded"];
	2[label = "bank_on_people", color = "0.2", style="rounded"];
	3[label = "bank_on_authors", color = "0.3", style="rounded"];
	4[label = "training", color = "0.4", style="rounded"];
	1 -> 0
	2 -> 1
	3 -> 1
	4 -> 1
	4 -> 2
	4 -> 3
}
"""


NO_REMOVALS = "testbeds={people: {removals: null}}"


def snakemake(*options, folder=ROOT):
    command = [sys.executable, "-m", "snakemake", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)


@functools.cache
def plan(profile):
    """Rules and notebook calls of a full run from nothing, as Snakemake would make them."""
    done = snakemake("-n", "-p", "--forceall", "--nolock", "--cores", "2", "--config", f"profile={profile}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "profile profiles/default" in done.stderr, "the default profile must be found without a flag"
    text = done.stdout + done.stderr
    calls = re.findall(r"run_notebook\.py (\S+) --out (\S+) --parameters ('[^']*'|\S+) --timeout", text)
    rules = set(re.findall(r"^(?:local)?rule (\w+):", text, flags=re.MULTILINE))
    return rules, [(notebook, out, shlex.split(parameters)[0]) for notebook, out, parameters in calls]


def test_a_chapter_waits_for_the_rows_that_its_file_says_it_reads():
    done = snakemake("-n", "--forceall", "--nolock", "--cores", "2", "--config", "profile=smoke")
    planned = (done.stdout + done.stderr).split("rule chapter_16_bgo_repairs_on_people:")[1].split("\nrule ")[0]
    inputs = re.search(r"input: (.*)", planned)[1].split(", ")
    reads = chapters()["16_bgo_repairs"]["reads"]
    assert reads and {f"data/smoke/people/scores/{row}.npz" for row in reads} <= set(inputs)
    assert "data/smoke/people/bank_half.npz" in inputs


@pytest.mark.parametrize("profile", PROFILES)
def test_every_stage_is_planned(profile):
    loaded = config.load(profile)
    rules, calls = plan(profile)
    expected = {"all", "corpora", "training", "bank_shard", "leaderboard", "quickstart", "workflow_figure"}
    first_text = next(name for name, bed in loaded["testbeds"].items() if bed["corpus"]["kind"] != "digits")
    expected |= {
        "chapter_31_verifiable_attribution",
        "chapter_63_conformance",
        f"chapter_62_cost_of_curvature_on_{first_text}",
        *(f"chapter_16_bgo_repairs_on_{name}" for name in loaded["testbeds"] if name == "people"),
    }
    for name, testbed in loaded["testbeds"].items():
        expected |= {f"bank_on_{name}"} if testbed["designs"] else set()
        expected |= {"removal_shard", f"removal_on_{name}"} if testbed["removals"] else set()
        expected |= {f"chapter_{row['notebook']}_on_{name}" for row in config.rows(loaded, name)}
    findings = [claim for claim in loaded["claims"] if claim["metric"].startswith("finding_")]
    places = {(claim["notebook"], claim["testbed"]) for claim in findings}
    expected |= {f"chapter_{chapter}_on_{bed}" if bed else f"chapter_{chapter}" for chapter, bed in places}
    assert rules == expected
    shards = [
        part["shards"]
        for testbed in loaded["testbeds"].values()
        for part in [*testbed["designs"].values(), testbed["removals"]]
        if part
    ]
    single = [
        name for name in rules if name not in ("all", "training", "bank_shard", "removal_shard", "workflow_figure")
    ]
    assert len(calls) == sum(shards) + len(single) + len(loaded["testbeds"])
    assert len({out for _, out, _ in calls}) == len(calls), "every job has a log of its own"


@pytest.mark.parametrize("profile", PROFILES)
def test_jobs_pass_declared_parameters(profile):
    passed = {}
    for notebook, _, text in plan(profile)[1]:
        parameters = yaml.safe_load(text)
        check_parameters(ROOT / notebook, parameters)
        passed.setdefault(notebook, set()).update(parameters)
    for notebook, names in passed.items():
        assert names <= set(declared_parameters(ROOT / notebook)), notebook


def test_every_notebook_takes_part():
    planned = {notebook for profile in PROFILES for notebook, _, _ in plan(profile)[1]}
    present = {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    optional = {"notebooks/70_your_own.ipynb"}
    assert present - optional <= planned


def test_figures_belong_to_notebooks():
    for name, chapter in chapters().items():
        for file in chapter["figures"]:  # a picture named after its chapter, or a table
            picture = rf"{name[:2]}_[a-z0-9_{{}}]+\.(png|svg|pdf|html)"
            table = r"tables/[a-z0-9_{}]+\.(csv|md|tex)|claims\.csv|manifest\.json"
            assert re.fullmatch(f"{picture}|{table}", file), file


@pytest.mark.parametrize("profile", PROFILES)
def test_tables_of_findings_are_made_by_their_chapters(profile):
    """Chapter 60 waits for the figure files of the chapters, so every table that a claim rests on is among them."""
    for claim in config.load(profile)["claims"]:
        if claim["metric"].startswith("finding_"):
            suffix = f"_{claim['testbed']}" if claim["testbed"] else ""
            table = f"tables/{claim['notebook'][:2]}_findings{suffix}.csv"
            assert table in config.declared_figures(claim["notebook"], claim["testbed"]), claim["id"]


def test_lint_is_clean():
    done = snakemake("--lint", "--config", "profile=smoke")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["profile=smok"], "profile: 'smok' is unknown; allowed: extended, large, paper, smoke"),
        (["profle=smoke"], "profle: unknown key; allowed:"),
        (["profile=smoke", "overrides=3"], "overrides: must be a map"),
        (
            ["profile=smoke", "claims=[]", "rows=[{id: a, method: bgoo, notebook: 10_bgo}]", NO_REMOVALS],
            "smoke.yaml with overrides: rows[0].method: 'bgoo' is not allowed; registered methods: ",
        ),
        (
            ["profile=smoke", "testbeds={mine: {corpus: {kind: file, path: '/tmp/{x}/mine.jsonl'}}}"],
            "testbeds.mine.corpus.path: '/tmp/{x}/mine.jsonl' is not allowed; Snakemake reads braces as wildcards",
        ),
        (
            ["profile=smoke", "testbeds={mine: {corpus: {kind: file, path: no file.jsonl}}}"],
            "testbeds.mine.corpus.path: 'no file.jsonl' does not exist; give the path of a .jsonl or .parquet file",
        ),
    ],
)
def test_wrong_calls_stop_in_one_line(options, message):
    done = snakemake("-n", "--nolock", "--config", *options)
    errors = [line for line in done.stderr.splitlines() if "rror" in line]
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert len(errors) == 1 and errors[0].startswith("Error in the configuration: ") and message in errors[0]


def test_a_checkout_below_braces_stops_in_one_line(tmp_path):
    folder = tmp_path / "a {x}"
    folder.mkdir()
    for name in ("Snakefile", "workflow", "profiles"):
        (folder / name).symlink_to(ROOT / name)
    done = snakemake("-n", "--nolock", folder=folder)
    errors = [line for line in done.stderr.splitlines() if "rror" in line]
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert errors == [f"Error: Snakemake reads braces as wildcards: move this repository out of '{folder}'"]


def test_overrides_reach_the_notebooks_and_move_the_data():
    """Numbers as numbers, also inside a map, which Snakemake hands on as text; words in braces as they are."""
    overrides = {"seed": 5, "testbeds": {"people": {"corpus": {"people": 20}, "model": {"from": "a {word}"}}}}
    given = [f"testbeds={json.dumps(overrides['testbeds'])}", "seed=5"]
    done = snakemake("-n", "-p", "--nolock", "--config", "profile=smoke", *given)
    folder = config.data_dir(config.load("smoke", overrides)).relative_to(ROOT)
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    assert f"{folder}/people/model/record.json" in text
    assert f'"overrides": {json.dumps(overrides, sort_keys=True)}' in text, "to the notebooks"
    figure = re.search(r"draw_dag\.py .* (?:'overrides=|overrides=')(.*?)' >", text)
    assert json.loads(figure[1]) == overrides, "to the picture of the rules"


# --- a new chapter: a notebook and its file

ALONE = """
import matplotlib.pyplot as plt
import tda.config
from tda import plotting
figure, ax = plt.subplots()
ax.plot([0, 1])
plotting.save_to(figure, tda.config.figures_dir(tda.config.load(profile, overrides)) / "99_alone.png")
"""
ALONE_FILE = """
testbeds: []
figures:
  99_alone.png: "A line, {drawn} by a chapter."
"""
TOY_FILE = """
paper: Baselines
testbeds: [people]
methods: [bm25]
figures:
  98_toy_{testbed}.png: "Nothing."
smoke:
  rows:
    - {id: toy, method: gradient_cosine}
  claims:
    - {id: toy, metric: lds_half, row: toy, against: random, direction: greater, claim: "A toy beats chance."}
"""


@pytest.fixture
def clone(tmp_path):
    """A copy of what the workflow reads, with two chapters added: a notebook and a file each."""
    for name in ("tda", "workflow", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "data").mkdir()
    (tmp_path / "tests").mkdir()
    for name in ("Snakefile", "environment.yml", "profiles", "data/sources", "tests/requirements-oracles.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, source, text in (("98_toy", "", TOY_FILE), ("99_alone", ALONE, ALONE_FILE)):
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        book = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
        declared = 'profile = "smoke"\noverrides = {}\ntestbed = "people"'
        book.cells = [nbformat.v4.new_code_cell(declared, metadata={"tags": ["parameters"]})]
        book.cells.append(nbformat.v4.new_code_cell(source))
        nbformat.write(book, tmp_path / "notebooks" / f"{name}.ipynb")
        (tmp_path / "workflow" / "config" / "chapters" / f"{name}.yaml").write_text(text)
    return tmp_path


def test_a_notebook_and_its_file_are_a_chapter(clone):
    """Nothing else is edited: the rules, their inputs and outputs, and the order of the tables follow."""
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    code = LABELS.replace("paper", "smoke").replace("print(", "rules = {r.name: r for r in rules}; print(")
    code += """
for name in ("chapter_98_toy_on_people", "chapter_99_alone", "leaderboard"):
    print(json.dumps([[str(path) for path in files] for files in (rules[name].input, rules[name].output)]))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    toy, alone, leaderboard = (json.loads(line) for line in done.stdout.splitlines()[-3:])
    people = "data/smoke/people"
    assert toy[1] == [
        f"{people}/scores/toy.npz", f"{people}/scores/toy.npz.json", f"{people}/metrics/toy.csv",
        "data/smoke/figures/98_toy_people.png",
    ]  # fmt: skip
    methods = {"tda/attribution/gradient_dot.py", "tda/attribution/lexical.py"}
    banks = {f"{people}/bank_half.npz", f"{people}/bank_leave_group.npz"}
    read = methods | banks | {"notebooks/98_toy.ipynb", f"{people}/model/record.json", f"{people}/scores/random.npz"}
    assert read <= set(toy[0]), "its row's method and the one it names, the truth, and the row that its claim names"
    assert alone[1] == ["data/smoke/figures/99_alone.png"]
    assert not [path for path in alone[0] if path.startswith("data/")], "it runs on no testbed"
    assert {toy[1][0], toy[1][-1], alone[1][0]} <= set(leaderboard[0])


def test_a_new_chapter_runs_and_has_to_make_its_figures(clone):
    figure = "data/smoke/figures/99_alone.png"
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--nolock", "--config", "profile=smoke", "--"]
    command.append("chapter_99_alone")

    def made():
        return subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=120, env=environment)

    done = made()
    assert done.returncode == 0 and (clone / figure).exists(), done.stderr[-2000:]
    caption = (clone / "data" / "smoke" / "captions" / "99_alone.png.rst").read_text()
    assert caption == "{% raw %}A line, {drawn} by a chapter.{% endraw %}\n"
    declared = clone / "workflow" / "config" / "chapters" / "99_alone.yaml"
    declared.write_text(ALONE_FILE + "  tables/99_more.csv: Nothing.\n")
    missed = made()
    line = (
        "99_alone.ipynb: did not make data/smoke/figures/tables/99_more.csv; save it in the notebook, or take it out "
    )
    assert missed.returncode != 0 and line + "of the figures in workflow/config/chapters/99_alone.yaml" in missed.stderr


# --- the report

LABELS = """
import json
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings

with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
    settings = {"config_settings": ConfigSettings(config={"profile": "paper"})}
    rules = api.workflow(ResourceSettings(cores=1), snakefile=Path("Snakefile"), **settings)._workflow.rules
    shown = [(str(path), path.flags.get("report")) for rule in rules for path in rule.output]
    found = [(path, r.category, r.labels, r.caption.get_path_or_uri(secret_free=True)) for path, r in shown if r]
print(json.dumps(found))
"""


def test_every_result_has_a_row_and_a_caption_of_its_own_in_the_report():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LABELS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    rows = [json.dumps([category, labels], sort_keys=True) for _, category, labels, _ in found]
    assert len(found) > 100 and len(set(rows)) == len(rows)
    captions = {text for chapter in chapters().values() for text in chapter["figures"].values()}
    for path, category, labels, caption in found:
        text = open(caption).read().removeprefix("{% raw %}").removesuffix("{% endraw %}\n")
        assert text in captions or category == "rule graph", path
        assert path.split("{")[0].endswith(labels["file"].split("{")[0]) and os.path.exists(caption), path
        assert ("testbed" in labels) == ("{testbed" in path or f"_{labels.get('testbed')}." in path)
    shown = {path for path, *_ in found}
    assert {f"figures/{name}.csv" for name in ("claims", "tables/leaderboard", "tables/cost")} <= shown
    assert "figures/workflow.svg" in shown


def test_every_figure_of_every_profile_has_a_caption():
    figures = [figure for chapter in chapters().values() for figure in chapter["figures"].items()]
    captions = {(re.sub(r"_\{testbed\}|^tables/|\.\w+$", "", file), text) for file, text in figures}
    names, texts = (set(part) for part in zip(*captions, strict=True))
    assert len(names) == len(texts) == len(captions), "a table and its picture may share one, nothing else"
    assert len(texts) > 80 and all(len(text.split()) > 5 for text in texts)


def test_rule_graph_picture(tmp_path):
    boxes, arrows = draw_dag.rule_graph(DOT)
    assert boxes == {"all", "leaderboard", "bank", "training"}
    assert draw_dag.shortest(arrows) == {
        ("training", "bank"),
        ("bank", "leaderboard"),
        ("leaderboard", "all"),
    }
    assert draw_dag.layers(boxes, arrows) == {"training": 0, "bank": 1, "leaderboard": 2, "all": 3}
    draw_dag.draw(DOT, tmp_path / "a.svg")
    draw_dag.draw(DOT, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "leaderboard" in (tmp_path / "a.svg").read_text()


def test_slurm_profile_names_existing_rules():
    profile = yaml.safe_load((ROOT / "workflow" / "profiles" / "slurm" / "config.yaml").read_text())
    assert profile["executor"] == "slurm" and set(profile["set-resources"]) <= plan("large")[0]


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    script = tmp_path / "workflow" / "scripts" / "run_workflow.py"
    script.parent.mkdir(parents=True)
    script.write_text((ROOT / "workflow" / "scripts" / "run_workflow.py").read_text())
    (tmp_path / ".snakemake").mkdir()
    with (tmp_path / ".snakemake" / "run.lock").open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        refused = subprocess.run([sys.executable, script, "--version"], capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "another run" in refused.stderr
    allowed = subprocess.run([sys.executable, script, "--version"], capture_output=True, text=True)
    assert allowed.returncode == 0, "the lock is gone with the process that held it"
