"""What every artefact stands on: atomic writes, refusals by name, checksums, one lock per folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError as error:
    raise ImportError("tda runs on Linux and macOS (on Windows: inside WSL): it locks folders with fcntl.") from error


class ArtefactError(ValueError):
    """A damaged, truncated, foreign or stale file, or a write that could not finish. Names the file and the cure."""


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path of the same suffix beside ``path``; rename it onto ``path`` on success, remove it on any
    failure. A full disk or a missing right is an :class:`ArtefactError`; what was at ``path`` before stays untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        require(not path.is_dir(), path, "a folder where a file belongs", "delete it and run again")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        room = f"{shutil.disk_usage(folder).free / 1e6:.0f} MB free on that disk"
        cure = "the old file, if any, is unchanged: make room or check the folder's permissions, then run again"
        raise ArtefactError(f"{path}: could not be written ({error}; {room}); {cure}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove(path: str | Path) -> None:
    """Delete a file, a link or a whole folder, if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def reading(path: str | Path, cure: str = "", folder: bool = False) -> Iterator[None]:
    """Whatever fails while ``path`` is read (a file; a folder if ``folder``) becomes one :class:`ArtefactError`."""
    path, cure = Path(path), cure or rerun(path)
    try:
        if path.exists() and path.is_dir() != folder:
            problem = "a file where a folder belongs" if folder else "a folder where a file belongs"
            raise ArtefactError(f"{path}: {problem}; {cure}")
        if path.exists() and not os.access(path, os.R_OK):  # libraries call it "not found", or damage
            raise PermissionError("permission denied")
        yield
    except ArtefactError:
        raise
    except PermissionError as error:
        raise ArtefactError(f"{path}: may not be read ({error}); allow it: chmod -R u+rX '{path}'") from error
    except Exception as error:
        if path.exists():
            raise ArtefactError(f"{path}: damaged or not of this format ({error!r}); {cure}") from error
        if path.is_symlink():
            raise ArtefactError(f"{path}: a link to a file that is not there; {cure}") from error
        if cure.startswith(f"delete {path.name} "):  # deleting what is not there is no cure
            cure = "run the step that writes it (snakemake --cores 2 builds whatever is missing)"
        raise ArtefactError(f"{path}: not found; {cure}") from error


def require(fact: bool, path: str | Path, problem: str, cure: str = "") -> None:
    """:class:`ArtefactError` ``<path>: <problem>; <cure>`` unless ``fact``; no ``cure``: :func:`rerun`."""
    if not fact:
        raise ArtefactError(f"{path}: {problem}; {cure or rerun(path)}")


def rerun(path: str | Path) -> str:
    """The cure of a file that can be made again."""
    return f"delete {Path(path).name} and run the step that writes it again"


def key_of(obj: Any) -> str:
    """12 hexadecimal digits of the SHA-256 of the canonical JSON of ``obj``, the same in any order of its keys."""
    text = json.dumps(plain(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def digest(content: Any) -> str:
    """SHA-256 of a dict of arrays (names, types, shapes, values), or of the canonical JSON of anything else."""
    found = hashlib.sha256()
    if isinstance(content, dict) and content and all(isinstance(v, np.ndarray) for v in content.values()):
        for name in sorted(content):
            array = content[name]
            found.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
            found.update(array.tobytes())
    else:
        found.update(json.dumps(plain(content), sort_keys=True, separators=(",", ":"), default=str).encode())
    return found.hexdigest()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def exclusive(folder: str | Path) -> Iterator[None]:
    """Hold ``folder/.lock`` while the block runs; a second process or thread gets an :class:`ArtefactError` at once.

    The lock belongs to the process (``flock``): a killed run leaves the file but not the lock.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        opened = open(Path(folder) / ".lock", "a+", encoding="utf-8")
    except OSError as error:
        cure = "check that it is a folder, and its permissions (chmod -R u+rwX)"
        raise ArtefactError(f"{folder}: nothing can be written there ({error}); {cure}") from error
    with opened as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            cure = "wait until it ends, or give this run parameters or a profile of its own"
            raise ArtefactError(f"{folder}: another run (process {owner}) is working in this folder; {cure}") from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        try:
            yield
        finally:
            handle.truncate(0)
            fcntl.flock(handle, fcntl.LOCK_UN)


def plain(obj: Any) -> Any:
    """``obj`` with numpy scalars and arrays, tuples, sets and paths turned into what JSON knows."""
    if isinstance(obj, dict):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [plain(value) for value in obj]
    if isinstance(obj, (set, frozenset)):
        return sorted(plain(value) for value in obj)
    if isinstance(obj, (np.ndarray, np.generic)):
        return plain(obj.tolist()) if obj.ndim else obj.item()
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    return obj
