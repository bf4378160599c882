"""Records name what made a number: code hashes, inputs, seconds, memory, and modules behind a notebook."""

import json
import subprocess
import time

import numpy as np
import pytest

from tda import provenance
from tda.artefacts import write_json


def notebook(*sources, outputs=()):
    cells = [
        {"cell_type": "code", "source": source, "outputs": list(outputs), "execution_count": None} for source in sources
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def test_tree_hash_follows_sources_only(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "n.ipynb").write_text(notebook("x = 1"))
    before = provenance.tree_hash(tmp_path)
    (tmp_path / "n.ipynb").write_text(notebook("x = 1", outputs=[{"output_type": "stream"}]))
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_bytes(b"cache")
    assert provenance.tree_hash(tmp_path) == before
    (tmp_path / "n.ipynb").write_text(notebook("x = 2"))
    changed = provenance.tree_hash(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({before, changed, provenance.tree_hash(tmp_path), provenance.tree_hash(tmp_path / "absent")}) == 4


def test_stopwatch_sees_seconds_and_memory():
    with provenance.Stopwatch() as watch:
        start = watch.peak_mb
        block = np.ones(12_000_000)  # 96 MB
        time.sleep(0.25)
        del block
    assert 0.2 < watch.seconds < 20
    assert watch.peak_mb > start + 80


def test_record_is_json_without_absolute_paths(tmp_path):
    with provenance.Stopwatch() as watch:
        pass
    record = provenance.record({"k": 3}, range(2), watch=watch, rows=5)
    write_json(tmp_path / "record.json", record)
    assert record["seeds"] == [0, 1] and record["rows"] == 5 and record["peak_mb"] > 0
    assert set(record["environment"]["trees"]) == {"tda", "notebooks", "workflow"}
    assert str(provenance.ROOT) not in (tmp_path / "record.json").read_text()


@pytest.mark.parametrize(
    "source",
    [
        "import tda.artefacts",
        "from tda.artefacts import atomic",
        "from tda import artefacts",
        "import tda\ntda.artefacts.atomic(1)",
    ],
)
def test_modules_behind_a_notebook(tmp_path, source):
    path = tmp_path / "n.ipynb"
    path.write_text(notebook("%matplotlib inline\nimport numpy", source))
    assert [found.name for found in provenance.modules_used(path)] == ["artefacts.py", "files.py"]


def test_modules_follow_imports_of_modules(tmp_path):
    path = tmp_path / "n.ipynb"
    path.write_text(notebook("from tda import config"))
    assert [found.name for found in provenance.modules_used(path)] == ["artefacts.py", "files.py"], (
        "config imports them, and is plumbing itself"
    )


def test_a_record_tells_the_clock_from_the_work():
    with provenance.Stopwatch() as watch:
        time.sleep(0.3)
    found = provenance.record({}, 0, watch=watch)
    assert (found["seconds"], found["cpu_seconds"]) == (round(watch.seconds, 3), round(watch.cpu_seconds, 3))
    assert found["cpu_seconds"] < 0.2 < found["seconds"], "it slept"


def test_a_status_that_does_not_come_is_not_called_clean(tmp_path, monkeypatch):
    def git(call, **_):
        if "status" in call:
            raise subprocess.TimeoutExpired(call, 20)
        return subprocess.CompletedProcess(call, 0, "0123abc\n", "")

    monkeypatch.setattr(provenance.subprocess, "run", git)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance._git.__wrapped__() is None, "a folder that is no repository"
    (tmp_path / ".git").mkdir()
    assert provenance._git.__wrapped__() == {"commit": "0123abc", "dirty": None}
