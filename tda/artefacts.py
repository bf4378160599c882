"""Files that are either whole or absent: atomic writes, arrays with a JSON record, checked reads, one lock
per folder.

An array artefact is two files: ``x.npz`` and ``x.npz.json``. The record holds what made the arrays
(parameters, seeds, versions) plus ``kind`` and the ``sha256`` of the ``.npz``. The arrays are written first
and the record last, so a process that is killed in between leaves a pair that :func:`load_arrays` refuses.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError:
    raise ImportError("tda needs Linux, macOS, or Linux under Windows (WSL): this Python has no file locks.") from None

__all__ = [
    "ArtefactError",
    "atomic",
    "exclusive",
    "file_sha256",
    "key_of",
    "load_arrays",
    "read_json",
    "save_arrays",
    "write_json",
    "write_table",
]


class ArtefactError(ValueError):
    """A damaged, truncated, foreign or stale file, or a write that could not finish. Names the file and the
    cure.
    """


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it onto ``path`` on success, remove it on any failure.

    The temporary name keeps the suffix of ``path``. A full disk or a missing right becomes an
    :class:`ArtefactError` that names the file and the free space; what was at ``path`` before stays
    untouched.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}.", suffix=f".tmp{path.suffix}", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise ArtefactError(
            f"{path}: could not be written ({error}; {_free(path)} free on that disk); the old file, "
            "if any, is unchanged: make room or check the folder's permissions, then run again"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def save_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray], record: dict) -> Path:
    """Write ``arrays`` as a compressed ``.npz`` and ``record`` as ``<path>.json``; equal arrays give equal
    bytes.

    ``record`` must hold ``kind`` (what the file is, checked again on reading); ``sha256``, ``shapes`` and
    ``dtypes`` are added. Raises ``ValueError`` for a path that is not ``.npz``, a record without ``kind``
    or an array of Python objects.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: array artefacts end in .npz")
    if not record.get("kind"):
        raise ValueError(f"{path}: the record has no 'kind'; pass record={{'kind': 'bank', ...}} or similar")
    arrays = {name: np.asarray(arrays[name]) for name in sorted(arrays)}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"{path}: array {name!r} has dtype object; convert it to numbers or fixed-width strings")
    with atomic(path) as temporary:
        np.savez_compressed(temporary, **arrays)
    described = {
        "sha256": file_sha256(path),
        "shapes": {name: list(array.shape) for name, array in arrays.items()},
        "dtypes": {name: str(array.dtype) for name, array in arrays.items()},
    }
    write_json(_record_path(path), {**record, **described})
    return path


def load_arrays(path: str | os.PathLike, kind: str, keys: Iterable[str] = ()) -> tuple[dict[str, np.ndarray], dict]:
    """Read what :func:`save_arrays` wrote, as ``(arrays, record)``, after checking hash, ``kind`` and that
    ``keys`` are present.
    """
    path = Path(path)
    cure = f"delete {path.name} and {path.name}.json and run the step that writes them again"
    if not path.exists():
        raise ArtefactError(
            f"{path}: not found; run the step that writes it (snakemake --cores 2 builds whatever is missing)"
        )
    if not _record_path(path).exists():
        raise ArtefactError(f"{path}: its record {path.name}.json is missing, so the file cannot be trusted; {cure}")
    record = read_json(_record_path(path))
    if not isinstance(record, dict) or "sha256" not in record or "kind" not in record:
        raise ArtefactError(f"{_record_path(path)}: not a record of this project (no 'kind' and 'sha256'); {cure}")
    if record["kind"] != kind:
        raise ArtefactError(f"{path}: holds {record['kind']!r} where {kind!r} was expected; {cure}")
    if file_sha256(path) != record["sha256"]:
        raise ArtefactError(f"{path}: truncated, changed or newer than its record (sha256 differs); {cure}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, KeyError) as error:
        raise ArtefactError(f"{path}: not a readable .npz ({error}); {cure}") from error
    missing = sorted(set(keys) - set(arrays))
    if missing:
        raise ArtefactError(f"{path}: has no array {', '.join(missing)} (it has {', '.join(sorted(arrays))}); {cure}")
    return arrays, record


def write_table(path: str | os.PathLike, frame: Any) -> Path:
    """Write a ``pandas.DataFrame`` as CSV: floats with six significant digits, ``\\n`` line ends, no index,
    empty for missing.
    """
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n", encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike, obj: Any) -> Path:
    """Write ``obj`` as JSON with sorted keys and an indent of 1; numpy numbers, arrays, paths and sets are
    converted.
    """
    text = json.dumps(_plain(obj), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file; a missing or damaged one is an :class:`ArtefactError`."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtefactError(f"{path}: not found; run the step that writes it") from error
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"{path}: damaged or not JSON ({error}); delete it and run the step that writes it again"
        ) from error


def key_of(obj: Any) -> str:
    """12 hexadecimal digits of the SHA-256 of the canonical JSON of ``obj``: the same for equal content in
    any key order.
    """
    text = json.dumps(_plain(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def exclusive(folder: str | os.PathLike) -> Iterator[Path]:
    """Hold ``folder/.lock`` while the block runs; a second process (or thread) gets an
    :class:`ArtefactError` at once.

    The lock belongs to the process (``flock``): a killed run leaves the file but not the lock, so nothing
    has to be cleaned up.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with open(path, "a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            raise ArtefactError(
                f"{folder}: another run (process {owner}) is working in this folder; wait until it "
                "ends, or give this run parameters or a profile of its own"
            ) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        try:
            yield folder
        finally:
            handle.truncate(0)
            fcntl.flock(handle, fcntl.LOCK_UN)


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _free(path: Path) -> str:
    folder = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    return f"{shutil.disk_usage(folder).free / 1e6:.0f} MB"


def _plain(obj: Any) -> Any:
    """``obj`` with numpy scalars and arrays, tuples, sets and paths turned into what JSON knows."""
    if isinstance(obj, dict):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(value) for value in obj]
    if isinstance(obj, (set, frozenset)):
        return sorted(_plain(value) for value in obj)
    if isinstance(obj, np.ndarray):
        return _plain(obj.tolist())
    if isinstance(obj, np.generic):
        return obj.item()
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    return obj
