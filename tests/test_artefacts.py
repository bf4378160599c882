"""Artefacts are whole or absent, equal content gives equal bytes, and what is damaged or foreign is refused
by name.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from tda import artefacts, evidence
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


# --- what an artefact says of itself: every form, every damage

ABOUT = {"testbed": "people", "seed": 3, "key": "abc"}
FRAME = pd.DataFrame({"row": ["a", "b"], "value": [0.5, 0.25]})


def forms(folder):
    """``form -> (write(about), read(expect), path)``"""
    npz, sealed, csv, record = (folder / name for name in ("x.npz", "y.npz", "t.csv", "r.json"))
    return {
        "arrays": (
            lambda about: artefacts.save_arrays(npz, ARRAYS, {"kind": "bank", **about}),
            lambda expect: artefacts.load_arrays(npz, "bank", ARRAYS, expect)[0],
            npz,
        ),
        "sealed": (
            lambda about: artefacts.save_sealed(sealed, ARRAYS, {"kind": "bank", **about}),
            lambda expect: artefacts.load_sealed(sealed, "bank", expect)[0],
            sealed,
        ),
        "table": (
            lambda about: artefacts.write_table(csv, FRAME, {"kind": "metrics", **about}),
            lambda expect: artefacts.read_table(csv, "metrics", FRAME.columns, expect),
            csv,
        ),
        "record": (
            lambda about: artefacts.write_record(record, {"kind": "tuned", "options": {"damping": 0.1}, **about}),
            lambda expect: artefacts.read_record(record, "tuned", expect),
            record,
        ),
    }


@pytest.fixture(params=["arrays", "sealed", "table", "record"])
def form(request, tmp_path):
    return forms(tmp_path)[request.param]


@pytest.mark.parametrize("field, value", [("testbed", "authors"), ("seed", 4), ("key", "xyz")])
def test_an_artefact_of_something_else_is_refused(form, field, value):
    write, read, path = form
    write(ABOUT)
    read(ABOUT)
    write(ABOUT | {field: value})
    with pytest.raises(
        ArtefactError, match=rf"{path.name}: holds {field} {value!r} where {field} .* was expected.*; del"
    ):
        read(ABOUT)
    write({name: held for name, held in ABOUT.items() if name != field})
    with pytest.raises(ArtefactError, match=rf"{path.name}: holds {field} None where"):
        read(ABOUT)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "flipped", "folder", "link", "unreadable", "null"])
def test_a_damaged_artefact_is_refused_by_name_with_a_cure(form, damage, monkeypatch):
    write, read, path = form
    write(ABOUT)
    content = path.read_bytes()
    at = content.index(b"outputs.npy") + 160 if path.suffix == ".npz" else len(content) // 2
    changed = {
        "truncated": content[: len(content) // 2], "empty": b"", "garbage": b"?", "null": b"null",
        "flipped": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
    }  # fmt: skip
    cure = "delete"
    if damage in changed:
        path.write_bytes(changed[damage])
    elif damage == "unreadable":
        monkeypatch.setattr(os, "access", lambda asked, mode: asked != path)
        cure = f"chmod -R u\\+rX '{path}'"
    else:
        path.unlink()
        path.mkdir() if damage == "folder" else path.symlink_to(path.with_name("nowhere"))
    with pytest.raises(ArtefactError, match=rf"{path.name}: .*{cure}"):
        read(ABOUT)


def test_a_record_edited_without_its_checksum_is_refused(tmp_path):
    for name, (write, read, path) in forms(tmp_path).items():
        write(ABOUT)
        record = path if name == "record" else path.with_name(path.name + ".json")
        if name == "sealed":
            assert not record.exists(), "it is inside"
            continue
        artefacts.write_json(record, artefacts.read_json(record) | {"seed": 4})
        with pytest.raises(ArtefactError, match=r"its record was edited \(its checksum differs\)"):
            read({})


def test_a_table_without_lines_or_with_other_columns_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    for frame, problem in ((FRAME.iloc[:0], "has no lines"), (FRAME.rename(columns={"value": "x"}), "has columns")):
        artefacts.write_table(path, frame, {"kind": "metrics"})
        with pytest.raises(ArtefactError, match=rf"t\.csv: {problem}.*delete t\.csv and t\.csv\.json"):
            artefacts.read_table(path, "metrics", FRAME.columns)
    path.unlink()  # Snakemake deletes the table before a rerun and leaves the record
    with pytest.raises(ArtefactError, match=r"t\.csv: not found; run the step"):
        artefacts.read_table(path, "metrics", FRAME.columns)
    artefacts.write_table(path, FRAME, {"kind": "metrics"})
    pd.testing.assert_frame_equal(artefacts.read_table(path, "metrics", FRAME.columns), FRAME)


def test_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.array([{}]))
    artefacts.write_record(f"{path}.json", {"kind": "bank", "sha256": artefacts.file_sha256(path)})
    with pytest.raises(ArtefactError, match=r"x\.npz: damaged .*allow_pickle=False"):
        artefacts.load_arrays(path, "bank")


def test_rows_are_those_that_were_written(tmp_path):
    rows, other = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], [{"a": 1, "b": "x"}, {"a": 2, "b": "z"}]
    sha256 = artefacts.save_rows(tmp_path / "rows", rows)
    assert artefacts.load_rows(tmp_path / "rows", sha256, "").to_list() == rows
    artefacts.save_rows(tmp_path / "rows", other)
    with pytest.raises(ArtefactError, match="rows: another data set than its record was written for.*; delete it"):
        artefacts.load_rows(tmp_path / "rows", sha256, "delete it")
    shutil.rmtree(tmp_path / "rows")
    (tmp_path / "rows").write_text("")
    with pytest.raises(ArtefactError, match="rows: a file where a folder belongs; delete it"):
        artefacts.load_rows(tmp_path / "rows", sha256, "delete it")


@pytest.mark.parametrize("change", [{"x": np.zeros(3, np.int64)}, {"x": np.zeros((3, 1))}, {"y": np.zeros(3)}])
def test_a_digest_depends_on_names_types_shapes_and_values(change):
    assert artefacts.digest({"x": np.zeros(3)}) == artefacts.digest({"x": np.zeros(3)})
    assert artefacts.digest({"x": np.zeros(3)}) != artefacts.digest(change)


def test_committed_findings_are_those_of_their_records():
    folder = ROOT / "figures" / "tables"
    for table in folder.glob("*_findings*.csv"):
        columns = artefacts.read_record(f"{table}.json", "findings")["columns"]
        assert columns == list(evidence.COLUMNS[: len(columns)])
        artefacts.read_table(table, "findings", columns)


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
