"""Artefacts: files that a later step reads, and that say themselves what they are.

Each carries a *record*: its ``kind``, what it belongs to (testbed, key, and where they apply row, seed, step, mask,
design), and a SHA-256 of its content. The record lies beside the file (``x.npz`` and ``x.npz.json``) or inside it
(:func:`save_sealed`, JSON records, checkpoints). A reader says what it expects; whatever differs is one
:class:`ArtefactError` that names the file, what was found, what was expected and the cure. A checksum says that a file
is damaged, edited or another one; it is no signature. Of a pair the record is renamed first: a process that is killed
in between leaves a pair that its reader refuses.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tda.files import ArtefactError, atomic, digest, exclusive, file_sha256, key_of, plain, reading, remove, require  # noqa: F401

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

REWRITE = "delete {0} and {0}.json and run the step that writes them again"
SEAL = "record_sha256"  # of everything else in a record
Expected = Mapping[str, Any] | None


def save_arrays(path: str | Path, arrays: dict[str, np.ndarray], record: dict) -> Path:
    """Write ``arrays`` as a compressed ``.npz`` and ``record`` as ``<path>.json``; equal arrays give equal bytes.

    ``record`` must hold ``kind``; ``sha256``, ``shapes`` and ``dtypes`` are added. ``ValueError`` for a path that is no
    ``.npz``, a record without ``kind`` or an array of Python objects.
    """
    path, arrays = Path(path), _numeric(path, arrays)
    with atomic(path) as temporary:
        np.savez_compressed(temporary, **arrays)
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        dtypes = {name: str(array.dtype) for name, array in arrays.items()}
        about = {"sha256": file_sha256(temporary), "shapes": shapes, "dtypes": dtypes}
        write_record(f"{path}.json", record | about)
    return path


def save_sealed(path: str | Path, arrays: dict[str, np.ndarray], record: dict) -> Path:
    """Write ``arrays`` as one uncompressed ``.npz`` that holds its own record; for files that come by the thousand.

    ``record`` and errors as in :func:`save_arrays`; ``sha256`` is that of the arrays (:func:`digest`).
    """
    path, arrays = Path(path), _numeric(path, arrays)
    sealed = seal(record | {"sha256": digest(arrays)})
    with atomic(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **arrays, record=np.array(json.dumps(sealed, sort_keys=True)))
    return path


def write_table(path: str | Path, frame: pd.DataFrame, record: dict | None = None) -> Path:
    """Write a table as CSV: floats with six significant digits, ``\\n`` line ends, no index, empty for missing.

    One that is read again (:func:`read_table`) is given a ``record`` with its ``kind``, which goes to ``<path>.json``.
    """
    path = Path(path)
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n", encoding="utf-8")
        if record is not None:
            about = {"sha256": file_sha256(temporary), "lines": len(frame), "columns": list(frame.columns)}
            write_record(f"{path}.json", record | about)
    return path


def save_rows(folder: str | Path, rows: list[dict]) -> str:
    """Write ``rows`` as a ``datasets.Dataset`` in place of what was there; returns their :func:`digest`."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    remove(folder)
    made = Dataset.from_list(rows)
    made.save_to_disk(folder)
    return digest(made.to_list())


def write_json(path: str | Path, obj: Any) -> Path:
    """Write ``obj``, made :func:`plain`, as JSON with sorted keys and an indent of 1."""
    text = json.dumps(plain(obj), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def write_record(path: str | Path, record: dict) -> Path:
    """:func:`write_json` of a record with its own checksum; ``record`` must hold ``kind``."""
    return write_json(path, seal(record))


def seal(record: Mapping) -> dict:
    """``record`` with its own checksum, in plain JSON types. Raises ``ValueError`` if it has no ``kind``."""
    if not record.get("kind"):
        raise ValueError(f"the record of {sorted(record)} has no 'kind'; pass {{'kind': 'bank', ...}} or similar")
    rest = {name: value for name, value in plain(record).items() if name != SEAL}
    return rest | {SEAL: digest(rest)}


def load_arrays(
    path: str | Path, kind: str, keys: Iterable[str] = (), expect: Expected = None, cure: str = "", pinned: bool = False
) -> tuple[dict[str, np.ndarray], dict]:
    """Read what :func:`save_arrays` wrote, as ``(arrays, record)``, after :func:`check_record`; it must have ``keys``.
    ``pinned``: the pair is committed, with its checksums in the index of its folder (:func:`check_pinned`).
    """
    path = Path(path)
    cure = cure or REWRITE.format(path.name)
    content, record = _pair(path, kind, expect, cure, pinned)
    with reading(path, cure):
        arrays = _arrays(content)
    missing = ", ".join(sorted(set(keys) - set(arrays)))
    require(not missing, path, f"has no array {missing} (it has {', '.join(sorted(arrays))})", cure)
    return arrays, record


def load_sealed(path: str | Path, kind: str, expect: Expected = None, cure: str = "") -> tuple[dict, dict]:
    """Read what :func:`save_sealed` wrote, as ``(arrays, record)``, after the same checks."""
    with reading(path, cure):
        arrays = _arrays(Path(path).read_bytes())
        record = json.loads(str(arrays.pop("record")))
    check_record(path, record, kind, expect, cure)
    same = digest(arrays) == record.get("sha256")
    require(same, path, "its arrays are not those it was written with", cure)
    return arrays, record


def read_table(
    path: str | Path, kind: str, columns: Iterable[str], expect: Expected = None, cure: str = ""
) -> pd.DataFrame:
    """Read what :func:`write_table` wrote, after :func:`check_record`; it must have these ``columns``, and lines."""
    import pandas as pd

    path, wanted = Path(path), list(columns)
    cure = cure or REWRITE.format(path.name)
    content, _ = _pair(path, kind, expect, cure)
    with reading(path, cure):
        frame = pd.read_csv(io.BytesIO(content))
    require(list(frame.columns) == wanted, path, f"has columns {list(frame.columns)}, expected {wanted}", cure)
    require(len(frame) > 0, path, "has no lines", cure)
    return frame


def load_rows(folder: str | Path, sha256: str | None, cure: str) -> Dataset:
    """Read what :func:`save_rows` wrote; ``sha256`` is what it returned."""
    from datasets import load_from_disk

    with reading(folder, cure, folder=True):
        found = load_from_disk(str(folder))
        same = digest(found.to_list()) == sha256
    require(same, folder, "another data set than its record was written for, or an edited one", cure)
    return found


def read_json(path: str | Path, cure: str = "") -> Any:
    """Read a JSON file; a missing or damaged one is an :class:`ArtefactError`."""
    with reading(path, cure):
        return json.loads(Path(path).read_bytes())


def read_record(path: str | Path, kind: str, expect: Expected = None, cure: str = "") -> dict:
    """Read what :func:`write_record` wrote, after :func:`check_record`."""
    record = read_json(path, cure)
    check_record(path, record, kind, expect, cure)
    return record


def check_record(
    path: str | Path, record: Any, kind: str, expect: Expected = None, cure: str = "", sealed: bool = True
) -> None:
    """Refuse a record of another ``kind``, one without its own checksum (unless not ``sealed``) or edited since, and
    one that says something else than ``expect`` (field -> value).
    """
    known = isinstance(record, dict) and "kind" in record and (SEAL in record or not sealed)
    require(known, path, "not a record of this project (no 'kind' or no checksum)", cure)
    require(record["kind"] == kind, path, f"holds {record['kind']!r} where {kind!r} was expected", cure)
    if sealed:
        require(seal(record)[SEAL] == record[SEAL], path, "its record was edited (its checksum differs)", cure)
    other = [name for name, value in (expect or {}).items() if record.get(name) != plain(value)]
    found, wanted = (", ".join(f"{n} {said.get(n)!r}" for n in other) for said in (record, plain(expect or {})))
    why = " (built from other settings, documents or queries than the present ones)" if other == ["key"] else ""
    require(not other, path, f"holds {found} where {wanted} was expected{why}", cure)


def check_pinned(path: str | Path, cure: str) -> None:
    """Refuse a committed file whose SHA-256 is not the one that ``index.json`` of its folder gives for its name."""
    path, listing = Path(path), Path(path).parent / "index.json"
    for file in (path, listing):
        require(file.exists(), file, "not found", cure)
    index = read_json(listing, cure)
    wanted = index.get(path.name) if isinstance(index, dict) else None
    require(wanted is not None, path, "the index.json of its folder does not list it", cure)
    with reading(path, cure):
        found = file_sha256(path)
    require(found == wanted, path, f"sha256 is {found[:12]}..., index.json says {str(wanted)[:12]}...", cure)


def _numeric(path: str | Path, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """``arrays`` sorted by name and ready to be written; ``ValueError`` as in :func:`save_arrays`."""
    if Path(path).suffix != ".npz":
        raise ValueError(f"{path}: array artefacts end in .npz")
    found = {name: np.asarray(arrays[name]) for name in sorted(arrays)}
    for name, array in found.items():
        if array.dtype.hasobject:
            raise ValueError(f"{path}: array {name!r} has dtype object; convert it to numbers or fixed-width strings")
    return found


def _pair(path: Path, kind: str, expect: Expected, cure: str, pinned: bool = False) -> tuple[bytes, dict]:
    """Content of a file and its record, after all checks that need no look inside."""
    beside = Path(f"{path}.json")
    for file in (path, beside) if pinned else ():
        check_pinned(file, cure)
    with reading(path, cure):
        content = path.read_bytes()
    require(beside.exists(), path, f"its record {beside.name} is missing, so the file cannot be trusted", cure)
    record = read_json(beside, cure)
    check_record(beside, record, kind, {}, cure, sealed=not pinned)
    same = hashlib.sha256(content).hexdigest() == record.get("sha256")
    require(same, path, "truncated, changed or newer than its record (sha256 differs)", cure)
    check_record(path, record, kind, expect, cure, sealed=not pinned)
    return content, record


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(io.BytesIO(content)):  # numpy would advise to unpickle it
        raise ValueError("not a readable .npz")
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}
