"""The whole workflow at toy size, in a copy of the repository: it ends, does nothing twice, and repeats its bytes."""

import json
import re
import shutil

import pandas as pd
import pytest
from conftest import data, snakemake

from tda import config

pytestmark = pytest.mark.slow
SMOKE = config.load("smoke")


def results(root):
    """Every file that is promised to the byte: all but the cost tables and the tables rendered with them."""
    kept = [p for p in data(root).rglob("*") if p.suffix in (".csv", ".npz") and "retrained" not in p.parts]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in kept if "cost" not in p.name}


def test_everything_is_there(copy):
    for name, testbed in SMOKE["testbeds"].items():
        folder = data(copy) / name
        for design in testbed["designs"]:
            assert (folder / f"bank_{design}.npz").stat().st_size > 0 and (folder / f"bank_{design}.npz.json").exists()
        for row in config.rows(SMOKE, name):
            assert (folder / "scores" / f"{row['id']}.npz").exists() and (
                folder / "metrics" / f"{row['id']}.csv"
            ).exists()
        assert (folder / "removals.npz").exists() == bool(testbed["removals"])
    tables = data(copy) / "figures" / "tables"
    assert {p.name for p in tables.iterdir()} >= {"leaderboard.csv", "leaderboard.md", "leaderboard.tex", "cost.csv"}
    pictures = [p for p in (data(copy) / "figures").iterdir() if p.suffix in (".png", ".svg")]
    assert len(pictures) >= 8 and all(p.stat().st_size > 1000 for p in pictures)
    assert not list(data(copy).rglob(".*.tmp*")), "no temporary file is left"
    assert not (copy / "figures").exists(), "a smoke run leaves the paper's figures alone"


def test_leaderboard_has_every_row(copy):
    board = pd.read_csv(data(copy) / "figures" / "tables" / "leaderboard.csv")
    from tda.evaluation.tables import LEADERBOARD_COLUMNS

    assert list(board.columns) == list(LEADERBOARD_COLUMNS)
    assert not board.duplicated(["testbed", "query_set", "row_id", "metric"]).any()
    for name, testbed in SMOKE["testbeds"].items():
        mine = board[board.testbed == name]
        ids = {row["id"] for row in config.rows(SMOKE, name)}
        for design in testbed["designs"]:
            for _, part in mine[mine.metric == f"lds_{design}"].groupby("query_set"):
                assert set(part.row_id) == ids, f"{name}: every method is measured on {design}"
                assert part.ceiling.notna().all() and part.n_subsets.notna().all()
        assert ids <= set(mine.row_id)
    inside = board.dropna(subset=["ci_low", "ci_high"])
    assert (inside.ci_low <= inside.value + 1e-6).all() and (inside.value <= inside.ci_high + 1e-6).all()
    own = board[(board.row_id == "gradient_dot") & board.delta_vs_gradient_dot.notna()]
    assert (own.delta_vs_gradient_dot == 0).all()


def test_claims_have_a_verdict_each(copy):
    claims = pd.read_csv(data(copy) / "figures" / "claims.csv")
    assert set(claims.id) == {claim["id"] for claim in SMOKE["claims"]}
    assert set(claims.verdict) <= {"supported", "not supported", "inconclusive"}


def test_executed_notebooks_have_no_error(copy):
    import nbformat

    books = sorted((data(copy) / "logs").glob("*.ipynb"))
    assert len(books) >= 12
    for path in books:
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                assert output.output_type != "error", f"{path.name}: {output.get('evalue')}"


def test_second_call_does_nothing(copy):
    stamps = {p: p.stat().st_mtime_ns for p in data(copy).rglob("*") if p.is_file()}
    done = snakemake(copy, "--cores", "2")
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr
    assert stamps == {p: p.stat().st_mtime_ns for p in data(copy).rglob("*") if p.is_file()}


def test_dry_run_and_lint(copy):
    assert snakemake(copy, "-n").returncode == 0
    lint = snakemake(copy, "--lint")
    assert lint.returncode == 0, lint.stdout + lint.stderr


def test_report_has_a_row_for_every_picture_and_table(copy):
    done = snakemake(copy, "--report", "report.html")
    assert done.returncode == 0, done.stderr[-3000:]
    text = (copy / "report.html").read_text(encoding="utf-8")
    shown = [json.loads(labels)["file"] for labels in re.findall(r'"labels": (\{[^}]*\})', text)]
    made = {path.relative_to(data(copy) / "figures").as_posix() for path in (data(copy) / "figures").rglob("*.*")}
    assert len(shown) == len(set(shown)) and set(shown) == {file for file in made if not file.endswith(".csv.json")}


def test_seconds_stand_in_tables_of_cost_alone(copy):
    """Seconds differ from run to run; a table with one among its columns is not promised to the byte, by its name."""
    tables = sorted((data(copy) / "figures" / "tables").glob("*.csv"))
    timed = [path.name for path in tables if any("second" in name for name in pd.read_csv(path, nrows=1).columns)]
    assert len(timed) >= 4 and not [name for name in timed if "cost" not in name]


def test_deleted_results_come_back_to_the_byte(copy):
    """One bank, one chapter's scores and the leaderboard are deleted; rerun, they are the same bytes."""
    before = results(copy)
    assert len(before) > 30
    people = data(copy) / "people"
    (people / "bank_half.npz").unlink()
    shutil.rmtree(people / "scores")
    shutil.rmtree(people / "metrics")
    for path in (data(copy) / "figures" / "tables").glob("leaderboard.*"):
        path.unlink()
    (data(copy) / "figures" / "claims.csv").unlink()
    one = sorted((people / "retrained").rglob("*.npz"))[0]
    one.unlink()  # one retrained model, too: only it is trained again
    done = snakemake(copy, "--cores", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    after = results(copy)
    assert set(before) == set(after)
    assert not [name for name in before if before[name] != after[name]]
    assert one.exists()


def test_wrong_key_stops_in_one_line(copy):
    done = snakemake(copy, "-n", config="profile=smoke seeed=1")
    assert done.returncode != 0
    assert "seeed" in done.stderr and "unknown key" in done.stderr
