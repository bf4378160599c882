"""Every exercise of every chapter has a self-check, which a right answer passes and a plausible wrong one does not."""

import ast
import json
import shutil

import pytest
from conftest import python
from exercises import run

from tda.config import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LEAST = 95  # exercises in all
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def own(copy, tmp_path_factory):
    """The finished smoke run once more: chapters write figures, and the first copy is compared to the byte."""
    return shutil.copytree(copy, tmp_path_factory.mktemp("exercises") / "clone", symlinks=True)


@each
def test_every_exercise_has_a_check_and_two_answers(path):
    told, parts = run.checks(path), run.answers(path)
    assert list(told) == list(range(1, len(told) + 1)), "exercises are numbered from 1"
    assert set(parts) == {(number, kind) for number in told for kind in ("solution", "wrong")}
    for number, check in told.items():
        statements = list(ast.walk(ast.parse(check)))
        assert any(isinstance(node, ast.Assert) for node in statements), f"exercise {number} asserts nothing"
        solution, wrong = (ast.dump(ast.parse(parts[number, kind])) for kind in ("solution", "wrong"))
        assert solution != wrong, f"the answers to exercise {number} are the same"


def test_no_exercise_is_lost():
    assert sum(len(run.checks(path)) for path in NOTEBOOKS) >= LEAST


@pytest.mark.slow
@each
def test_the_check_tells_right_from_wrong(path, own):
    done = python(own, "tests/exercises/run.py", f"notebooks/{path.name}")
    assert done.stdout, done.stderr[-3000:]  # without it the chapter itself has failed
    found = json.loads(done.stdout)
    assert found == {str(number): [] for number in run.checks(path)}
