"""What every artefact stands on: atomic writes, refusals by name, checksums, one lock per folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError as error:
    raise ImportError("tda runs on Linux and macOS (on Windows: inside WSL): it locks folders with fcntl.") from error


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
        if path.is_dir():
            raise ArtefactError(f"{path}: a folder where a file belongs; delete it and run again") from error
        raise ArtefactError(
            f"{path}: could not be written ({error}; {_free(path)} free on that disk); the old file, "
            "if any, is unchanged: make room or check the folder's permissions, then run again"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove(path: str | os.PathLike) -> None:
    """Delete a file, a link or a whole folder, if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def reading(path: str | os.PathLike, cure: str = "", folder: bool = False) -> Iterator[None]:
    """Whatever fails while ``path`` is read (a file; a folder if ``folder``) becomes one :class:`ArtefactError`."""
    path, cure = Path(path), cure or rerun(Path(path))
    missing = cure  # deleting what is not there is no cure
    if cure == rerun(path) or cure.startswith(f"delete {path.name} "):
        missing = "run the step that writes it (snakemake --cores 2 builds whatever is missing)"
    try:
        if path.exists() and path.is_dir() != folder:
            found, wanted = ("a file", "a folder") if folder else ("a folder", "a file")
            raise ArtefactError(f"{path}: {found} where {wanted} belongs; {cure}")
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
        raise ArtefactError(f"{path}: not found; {missing}") from error


def require(fact: bool, path: str | os.PathLike, problem: str, cure: str) -> None:
    """:class:`ArtefactError` ``<path>: <problem>; <cure>`` unless ``fact``."""
    if not fact:
        raise ArtefactError(f"{path}: {problem}; {cure}")


def key_of(obj: Any) -> str:
    """12 hexadecimal digits of the SHA-256 of the canonical JSON of ``obj``: the same for equal content in
    any key order.
    """
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
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise ArtefactError(
            f"{folder}: nothing can be written there ({error}); check that it is a folder, and its permissions "
            f"(chmod -R u+rwX)"
        ) from error
    with opened as handle:
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


def rerun(path: Path) -> str:
    """The cure of a file that can be made again."""
    return f"delete {path.name} and run the step that writes it again"


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _free(path: Path) -> str:
    folder = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    return f"{shutil.disk_usage(folder).free / 1e6:.0f} MB"


def plain(obj: Any) -> Any:
    """``obj`` with numpy scalars and arrays, tuples, sets and paths turned into what JSON knows."""
    if isinstance(obj, dict):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [plain(value) for value in obj]
    if isinstance(obj, (set, frozenset)):
        return sorted(plain(value) for value in obj)
    if isinstance(obj, np.ndarray):
        return plain(obj.tolist())
    if isinstance(obj, np.generic):
        return obj.item()
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    return obj
