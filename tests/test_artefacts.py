"""Artefacts are whole or absent, equal content gives equal bytes, and what is damaged or foreign is refused
by name.
"""

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from tda import artefacts
from tda.artefacts import ArtefactError
from tda.config import ROOT

ARRAYS = {
    "subsets": np.eye(3, dtype=bool),
    "names": np.array(["a", "bb"]),
    "outputs": np.arange(6.0).reshape(2, 3),
}


@pytest.fixture
def saved(tmp_path):
    return artefacts.save_arrays(tmp_path / "bank.npz", ARRAYS, {"kind": "bank", "seed": np.int64(3)})


def test_arrays_come_back_with_their_record(saved):
    arrays, record = artefacts.load_arrays(saved, "bank", keys=["subsets", "outputs"])
    assert all(np.array_equal(arrays[name], ARRAYS[name]) for name in ARRAYS)
    assert record["seed"] == 3 and record["sha256"] == artefacts.file_sha256(saved)
    assert record["shapes"]["outputs"] == [2, 3] and record["dtypes"]["subsets"] == "bool"


def test_equal_arrays_give_equal_bytes(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 2e9)  # a zip entry would carry the time of writing
    other = artefacts.save_arrays(tmp_path / "x.npz", dict(reversed(ARRAYS.items())), {"kind": "bank"})
    assert other.read_bytes() == saved.read_bytes()


def test_truncated_file_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-20])
    with pytest.raises(ArtefactError, match=r"bank\.npz: truncated, changed .*; delete bank\.npz"):
        artefacts.load_arrays(saved, "bank")


def test_arrays_newer_than_their_record_are_refused(saved, tmp_path):
    """A process killed between the two files leaves this."""
    other = artefacts.save_arrays(tmp_path / "other.npz", {"subsets": np.zeros(4)}, {"kind": "bank"})
    os.replace(other, saved)
    with pytest.raises(ArtefactError, match="newer than its record"):
        artefacts.load_arrays(saved, "bank")


def test_foreign_files_are_refused(saved, tmp_path):
    with pytest.raises(ArtefactError, match="holds 'bank' where 'scores' was expected"):
        artefacts.load_arrays(saved, "scores")
    with pytest.raises(ArtefactError, match="has no array tokens"):
        artefacts.load_arrays(saved, "bank", keys=["tokens"])
    with pytest.raises(ArtefactError, match="not found; run the step"):
        artefacts.load_arrays(tmp_path / "absent.npz", "bank")
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, subsets=np.zeros(2))
    with pytest.raises(ArtefactError, match="record foreign.npz.json is missing"):
        artefacts.load_arrays(foreign, "bank")
    artefacts.write_json(tmp_path / "foreign.npz.json", ["something else"])
    with pytest.raises(ArtefactError, match="not a record of this project"):
        artefacts.load_arrays(foreign, "bank")
    foreign.write_bytes(b"not a zip")
    artefacts.write_record(f"{foreign}.json", {"kind": "bank", "sha256": artefacts.file_sha256(foreign)})
    with pytest.raises(ArtefactError, match="not a readable .npz"):
        artefacts.load_arrays(foreign, "bank")


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(ValueError, match="end in .npz"):
        artefacts.save_arrays(tmp_path / "bank.npy", ARRAYS, {"kind": "bank"})
    with pytest.raises(ValueError, match="no 'kind'"):
        artefacts.save_arrays(tmp_path / "bank.npz", ARRAYS, {})
    with pytest.raises(ValueError, match="'x' has dtype object"):
        artefacts.save_arrays(tmp_path / "bank.npz", {"x": np.array([{}])}, {"kind": "bank"})
    assert list(tmp_path.iterdir()) == []


def test_full_disk_keeps_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full(path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(ArtefactError, match=r"bank\.npz: could not be written .*No space left.*MB free.*make room"):
        artefacts.save_arrays(saved, {"x": np.zeros(3)}, {"kind": "bank"})
    assert saved.read_bytes() == before
    assert sorted(path.name for path in saved.parent.iterdir()) == ["bank.npz", "bank.npz.json"]


def test_atomic_removes_what_a_failure_leaves(tmp_path):
    with pytest.raises(KeyError), artefacts.atomic(tmp_path / "a" / "table.csv") as temporary:
        assert temporary.parent == tmp_path / "a" and temporary.suffix == ".csv"
        temporary.write_text("half")
        raise KeyError("stop")
    assert list((tmp_path / "a").iterdir()) == []


def test_table_bytes(tmp_path):
    frame = pd.DataFrame({"row": ["a", "b"], "value": [1 / 3, np.nan], "n": [2, 10_000_000]})
    path = artefacts.write_table(tmp_path / "t.csv", frame)
    assert path.read_bytes() == b"row,value,n\na,0.333333,2\nb,,10000000\n"


def test_json_round_trip_and_damage(tmp_path):
    path = artefacts.write_json(tmp_path / "r.json", {"b": np.float32(0.5), "a": (np.arange(2), tmp_path), "c": {3, 1}})
    assert artefacts.read_json(path) == {"a": [[0, 1], str(tmp_path)], "b": 0.5, "c": [1, 3]}
    with pytest.raises(ValueError):
        artefacts.write_json(path, {"a": float("nan")})
    path.write_text(path.read_text()[:10])
    with pytest.raises(ArtefactError, match=r"r\.json: damaged or not of this format .*; delete r\.json"):
        artefacts.read_json(path)


def test_key_depends_on_content_only():
    key = artefacts.key_of({"a": 1, "b": [np.int64(2), 0.5]})
    assert key == artefacts.key_of({"b": (2, np.float64(0.5)), "a": 1}) and len(key) == 12
    assert key != artefacts.key_of({"a": 1, "b": [2, 0.25]})


def test_two_runs_in_one_folder(tmp_path):
    with artefacts.exclusive(tmp_path):
        with pytest.raises(ArtefactError, match=rf"another run \(process {os.getpid()}\) is working in this folder"):
            with artefacts.exclusive(tmp_path):
                pass
    with artefacts.exclusive(tmp_path):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path):
    code = "import sys, time\nfrom tda.artefacts import exclusive\n"
    code += "with exclusive(sys.argv[1]):\n    print(flush=True)\n    time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        with pytest.raises(ArtefactError, match=f"process {child.pid}"), artefacts.exclusive(tmp_path):
            pass
        child.send_signal(signal.SIGKILL)
    with artefacts.exclusive(tmp_path):
        pass
