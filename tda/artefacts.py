"""Files that are either whole or absent, and that say themselves what they are.

Every artefact that a later step reads carries a *record*: its ``kind``, what it belongs to (testbed, key, and where
they apply row, seed, step, mask, design), and a SHA-256 of its content. The record lies beside the file (``x.npz`` and
``x.npz.json``, ``x.csv`` and ``x.csv.json``) or inside it (:func:`save_sealed`, JSON records, checkpoints). A reader
says what it expects; whatever differs is one :class:`ArtefactError` that names the file, what was found, what was
expected and the cure. A checksum says that a file is damaged, edited or another one; it is no signature.

The two files of a pair are renamed one right after the other, the record first. A process that is killed in between
leaves a pair that its reader refuses.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tda.files import (
    ArtefactError,
    atomic,
    digest,
    exclusive,
    file_sha256,
    key_of,
    plain,
    reading,
    remove,
    require,
    rerun,
)

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

__all__ = [
    "ArtefactError",
    "atomic",
    "check_pinned",
    "check_record",
    "digest",
    "exclusive",
    "file_sha256",
    "key_of",
    "load_arrays",
    "load_rows",
    "load_sealed",
    "read_json",
    "read_record",
    "read_table",
    "reading",
    "remove",
    "require",
    "save_arrays",
    "save_rows",
    "save_sealed",
    "seal",
    "write_json",
    "write_record",
    "write_table",
]
SEAL = "record_sha256"  # of everything else in a record


# --- writing


def save_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray], record: dict) -> Path:
    """Write ``arrays`` as a compressed ``.npz`` and ``record`` as ``<path>.json``; equal arrays give equal
    bytes.

    ``record`` must hold ``kind`` (what the file is, checked again on reading); ``sha256``, ``shapes`` and
    ``dtypes`` are added. Raises ``ValueError`` for a path that is not ``.npz``, a record without ``kind``
    or an array of Python objects.
    """
    path = Path(path)
    arrays = _numeric(path, arrays, record)
    with atomic(path) as temporary:
        np.savez_compressed(temporary, **arrays)
        described = {
            "sha256": file_sha256(temporary),
            "shapes": {name: list(array.shape) for name, array in arrays.items()},
            "dtypes": {name: str(array.dtype) for name, array in arrays.items()},
        }
        write_record(_record_path(path), record | described)
    return path


def save_sealed(path: str | os.PathLike, arrays: dict[str, np.ndarray], record: dict) -> Path:
    """Write ``arrays`` as one uncompressed ``.npz`` that holds its own record; for files that come by the thousand.

    ``record`` and errors as in :func:`save_arrays`; ``sha256`` is that of the arrays (:func:`digest`).
    """
    path = Path(path)
    arrays = _numeric(path, arrays, record)
    sealed = seal(record | {"sha256": digest(arrays)})
    with atomic(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **arrays, record=np.array(json.dumps(sealed, sort_keys=True)))
    return path


def write_table(path: str | os.PathLike, frame: pd.DataFrame, record: dict | None = None) -> Path:
    """Write a ``pandas.DataFrame`` as CSV: floats with six significant digits, ``\\n`` line ends, no index,
    empty for missing. A table that is read again (:func:`read_table`) is given a ``record``, with its ``kind``, which
    goes to ``<path>.json``.
    """
    path = Path(path)
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n", encoding="utf-8")
        if record is not None:
            about = {"sha256": file_sha256(temporary), "lines": len(frame), "columns": list(frame.columns)}
            write_record(_record_path(path), record | about)
    return path


def save_rows(folder: str | os.PathLike, rows: list[dict]) -> str:
    """Write ``rows`` as a ``datasets.Dataset`` on disk, in place of what was there; returns the :func:`digest` of its
    content, which :func:`load_rows` asks for.
    """
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    remove(folder)
    made = Dataset.from_list(rows)
    made.save_to_disk(folder)
    return digest(made.to_list())


def write_json(path: str | os.PathLike, obj: Any) -> Path:
    """Write ``obj`` as JSON with sorted keys and an indent of 1; numpy numbers, arrays, paths and sets are
    converted.
    """
    text = json.dumps(plain(obj), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def write_record(path: str | os.PathLike, record: dict) -> Path:
    """:func:`write_json` of a record with its own checksum; ``record`` must hold ``kind``."""
    if not record.get("kind"):
        raise ValueError(f"{path}: the record has no 'kind'; pass record={{'kind': 'bank', ...}} or similar")
    return write_json(path, seal(record))


# --- reading


def load_arrays(
    path: str | os.PathLike,
    kind: str,
    keys: Iterable[str] = (),
    expect: Mapping[str, Any] | None = None,
    cure: str = "",
    pinned: bool = False,
) -> tuple[dict[str, np.ndarray], dict]:
    """Read what :func:`save_arrays` wrote, as ``(arrays, record)``, after checking ``kind``, hash, what the record must
    say (``expect``, see :func:`check_record`) and that ``keys`` are present. ``pinned``: the pair is committed and its
    checksums stand in the index of its folder (:func:`check_pinned`).
    """
    path = Path(path)
    cure = cure or f"delete {path.name} and {path.name}.json and run the step that writes them again"
    content, record = _pair(path, kind, expect, cure, pinned)
    arrays = _arrays(path, content, cure)
    missing = sorted(set(keys) - set(arrays))
    if missing:
        raise ArtefactError(f"{path}: has no array {', '.join(missing)} (it has {', '.join(sorted(arrays))}); {cure}")
    return arrays, record


def load_sealed(
    path: str | os.PathLike, kind: str, expect: Mapping[str, Any] | None = None, cure: str = ""
) -> tuple[dict[str, np.ndarray], dict]:
    """Read what :func:`save_sealed` wrote, as ``(arrays, record)``, after the same checks."""
    path, cure = Path(path), cure or rerun(path)
    with reading(path, cure):
        content = path.read_bytes()
    arrays = _arrays(path, content, cure)
    with reading(path, cure):
        record = json.loads(str(arrays.pop("record")))
    check_record(path, record, kind, expect, cure)
    require(digest(arrays) == record.get("sha256"), path, "its arrays are not those it was written with", cure)
    return arrays, record


def read_table(
    path: str | os.PathLike,
    kind: str,
    columns: Iterable[str],
    expect: Mapping[str, Any] | None = None,
    cure: str = "",
) -> pd.DataFrame:
    """Read a table that :func:`write_table` wrote with a record, checked as in :func:`load_arrays`; it must have
    exactly these ``columns`` and at least one line.
    """
    import pandas as pd

    path = Path(path)
    cure = cure or f"delete {path.name} and {path.name}.json and run the chapter that writes them again"
    content, _ = _pair(path, kind, expect, cure)
    with reading(path, cure):
        frame = pd.read_csv(io.BytesIO(content))
    wanted = list(columns)
    require(list(frame.columns) == wanted, path, f"has columns {list(frame.columns)}, expected {wanted}", cure)
    require(len(frame) > 0, path, "has no lines", cure)
    return frame


def load_rows(folder: str | os.PathLike, sha256: str | None, cure: str) -> Dataset:
    """Read what :func:`save_rows` wrote; ``sha256`` is what it returned."""
    from datasets import load_from_disk

    with reading(folder, cure, folder=True):
        found = load_from_disk(str(folder))
        same = digest(found.to_list()) == sha256
    require(same, folder, "another data set than its record was written for, or an edited one", cure)
    return found


def read_json(path: str | os.PathLike, cure: str = "") -> Any:
    """Read a JSON file; a missing or damaged one is an :class:`ArtefactError`."""
    with reading(path, cure):
        return json.loads(Path(path).read_bytes())


def read_record(
    path: str | os.PathLike, kind: str, expect: Mapping[str, Any] | None = None, cure: str = "", sealed: bool = True
) -> dict:
    """Read what :func:`write_record` wrote, after :func:`check_record`."""
    record = read_json(path, cure)
    check_record(path, record, kind, expect, cure, sealed)
    return record


def check_record(
    path: str | os.PathLike,
    record: Any,
    kind: str,
    expect: Mapping[str, Any] | None = None,
    cure: str = "",
    sealed: bool = True,
) -> None:
    """Refuse a record of another ``kind``, one without its own checksum (unless not ``sealed``) or edited since, and
    one that says something else than ``expect`` (field -> value).
    """
    cure = cure or rerun(Path(path))
    known = isinstance(record, dict) and "kind" in record and (SEAL in record or not sealed)
    require(known, path, "not a record of this project (no 'kind' or no checksum)", cure)
    require(record["kind"] == kind, path, f"holds {record['kind']!r} where {kind!r} was expected", cure)
    if sealed:
        rest = {name: value for name, value in record.items() if name != SEAL}
        require(digest(rest) == record[SEAL], path, "its record was edited (its checksum differs)", cure)
    other = [name for name, value in (expect or {}).items() if record.get(name) != plain(value)]
    if other:
        found, wanted = (", ".join(f"{n} {_short(v.get(n))}" for n in other) for v in (record, plain(expect)))
        why = " (built from other settings, documents or queries than the present ones)" if other == ["key"] else ""
        raise ArtefactError(f"{path}: holds {found} where {wanted} was expected{why}; {cure}")


def check_pinned(path: str | os.PathLike, cure: str) -> None:
    """Refuse a committed file whose SHA-256 is not the one that ``index.json`` of its folder gives for its name."""
    path = Path(path)
    for file in (path, path.parent / "index.json"):
        require(file.exists(), file, "not found", cure)
    index = read_json(path.parent / "index.json", cure)
    wanted = index.get(path.name) if isinstance(index, dict) else None
    require(wanted is not None, path, "the index.json of its folder does not list it", cure)
    with reading(path, cure):
        found = file_sha256(path)
    require(found == wanted, path, f"sha256 is {found[:12]}..., index.json says {wanted[:12]}...", cure)


# --- helpers


def _numeric(path: Path, arrays: Mapping[str, Any], record: Mapping) -> dict[str, np.ndarray]:
    """``arrays`` sorted by name and ready to be written; ``ValueError`` as in :func:`save_arrays`."""
    if path.suffix != ".npz":
        raise ValueError(f"{path}: array artefacts end in .npz")
    if not record.get("kind"):
        raise ValueError(f"{path}: the record has no 'kind'; pass record={{'kind': 'bank', ...}} or similar")
    found = {name: np.asarray(arrays[name]) for name in sorted(arrays)}
    for name, array in found.items():
        if array.dtype.hasobject:
            raise ValueError(f"{path}: array {name!r} has dtype object; convert it to numbers or fixed-width strings")
    return found


def seal(record: Mapping) -> dict:
    """``record`` with its own checksum, in plain JSON types."""
    rest = {name: value for name, value in plain(record).items() if name != SEAL}
    return rest | {SEAL: digest(rest)}


def _short(value: Any) -> str:
    return f"{value[:12]!r}..." if isinstance(value, str) and len(value) == 64 else repr(value)


def _pair(
    path: Path, kind: str, expect: Mapping[str, Any] | None, cure: str, pinned: bool = False
) -> tuple[bytes, dict]:
    """Content of a file and its record, after all checks that need no look inside."""
    beside = _record_path(path)
    for file in (path, beside) if pinned else ():
        check_pinned(file, cure)
    with reading(path, cure):
        content = path.read_bytes()
    if not beside.exists():
        raise ArtefactError(f"{path}: its record {beside.name} is missing, so the file cannot be trusted; {cure}")
    record = read_json(beside, cure)
    check_record(beside, record, kind, {}, cure, sealed=not pinned)
    same = hashlib.sha256(content).hexdigest() == record.get("sha256")
    require(same, path, "truncated, changed or newer than its record (sha256 differs)", cure)
    check_record(path, record, kind, expect, cure, sealed=not pinned)
    return content, record


def _arrays(path: Path, content: bytes, cure: str) -> dict[str, np.ndarray]:
    with reading(path, cure):
        if not zipfile.is_zipfile(io.BytesIO(content)):  # numpy would advise to unpickle it
            raise ValueError("not a readable .npz")
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")
