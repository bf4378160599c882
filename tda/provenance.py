"""Where a number came from: versions, machine, code hashes, seconds and memory, written beside every artefact."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import psutil

ROOT = Path(__file__).resolve().parents[1]
TREES = ("tda", "notebooks", "workflow")
PACKAGES = "torch transformers datasets tokenizers numpy scipy pandas pyarrow scikit-learn bm25s snakemake papermill"
# modules that cannot change a number
PLUMBING = ("__init__", "config", "config_checks", "config_files", "config_schema", "provenance")


def tree_hash(folder: str | os.PathLike) -> str:
    """SHA-256 over relative paths and contents of a folder, in hexadecimal; 64 zeros for a folder that does not exist.

    Caches are left out. A notebook counts through the type and source of its cells: running it changes nothing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return "0" * 64
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda item: item.relative_to(folder).as_posix()):
        relative = path.relative_to(folder)
        cached = {"__pycache__", ".ipynb_checkpoints"} & set(relative.parts) or path.suffix == ".pyc"
        if path.is_file() and not cached:
            cells = _cells(path) if path.suffix == ".ipynb" else None
            content = path.read_bytes() if cells is None else json.dumps(cells, ensure_ascii=False).encode()
            digest.update(f"{relative.as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES.split():
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def environment_record() -> dict[str, Any]:
    """Versions, machine, threads, git commit (when there is one) and the hashes of the code trees."""
    return {
        "versions": versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": _threads(),
        "git": _git(),
        "trees": {name: tree_hash(ROOT / name) for name in TREES},
    }


_running: list[Stopwatch] = []


def charge(token: object, seconds: float) -> None:
    """Add to every running :class:`Stopwatch` the seconds of a result taken from memory, once per ``token``."""
    for watch in _running:
        if token not in watch.charged:
            watch.charged.add(token)
            watch.seconds += seconds


class Stopwatch:
    """Context manager: ``.seconds`` (wall clock, and what was charged for remembered results), ``.cpu_seconds`` and
    ``.peak_mb`` of a block.

    ``peak_mb`` is the largest resident set of *this process* (not of its children), in 10^6 bytes, sampled every 0.1 s
    by a thread and once at either end: a shorter spike can be missed, and memory that was already in use counts.
    """

    def __enter__(self) -> Self:
        self.seconds = self.cpu_seconds = self.peak_mb = 0.0
        self.charged: set[object] = set()
        self._process, self._stop = psutil.Process(), threading.Event()
        self._sample()
        self._start, self._cpu = time.perf_counter(), time.process_time()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        _running.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _running.remove(self)
        self.seconds += time.perf_counter() - self._start
        self.cpu_seconds = time.process_time() - self._cpu
        self._stop.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            self._sample()

    def _sample(self) -> None:
        self.peak_mb = max(self.peak_mb, self._process.memory_info().rss / 1e6)


def record(parameters: dict, seeds: Iterable[int] | int, **extra: Any) -> dict[str, Any]:
    """The JSON record of an artefact: ``parameters``, ``seeds``, the environment and ``extra``.

    ``watch=stopwatch`` stores ``seconds``, ``cpu_seconds`` and ``peak_mb`` of a finished :class:`Stopwatch`.
    """
    if watch := extra.pop("watch", None):
        extra |= {"seconds": round(watch.seconds, 3), "cpu_seconds": round(watch.cpu_seconds, 3)}
        extra["peak_mb"] = round(watch.peak_mb, 1)
    seeds = [int(seed) for seed in ([seeds] if isinstance(seeds, int) else seeds)]
    return {"parameters": parameters, "seeds": seeds, "inputs": {}, "environment": environment_record(), **extra}


def modules_used(*paths: str | os.PathLike) -> list[Path]:
    """Files of the ``tda`` package that the given notebooks or modules import, directly or through each other, sorted.

    Found in the syntax tree: ``import tda.x``, ``from tda.x import y``, ``from tda import x`` and the dotted name
    ``tda.x.y``. The given files and those that cannot change a number (``PLUMBING``) are no part of the answer.
    """
    given = {Path(path).absolute() for path in paths}
    todo, found = list(given), set()
    while todo:
        path = todo.pop()
        source = _code(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        package = ".".join(path.relative_to(ROOT).parent.parts) if path.is_relative_to(ROOT) else ""
        for name in _dotted_names(ast.parse(source, filename=str(path)), package):
            new = set(_module_files(name)) - found
            found |= new
            todo += new
    return sorted(found - given - {ROOT / "tda" / f"{name}.py" for name in PLUMBING})


def _dotted_names(tree: ast.AST, package: str) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    return {name for name in names if name.startswith("tda.")}


def _module_files(name: str) -> list[Path]:
    """The module behind a dotted name, and ``__init__.py`` of each package below ``tda`` on the way."""
    parts = name.split(".")
    places = [ROOT.joinpath(*parts[:depth]) for depth in range(2, len(parts) + 1)]
    files = (file for place in places for file in (place / "__init__.py", place.with_suffix(".py")))
    return [file for file in files if file.exists()]


def _cells(path: Path) -> list[tuple[str, str]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


def _code(path: Path) -> str:
    lines = "\n".join(source for kind, source in _cells(path) if kind == "code").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def _cpu_name() -> str:
    cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8") if sys.platform == "linux" else ""
    named = re.search(r"^model name[^:]*:(.*)", cpus, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or "unknown"


def _threads() -> int | None:
    if "torch" in sys.modules:
        return sys.modules["torch"].get_num_threads()
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return int(stated) if stated.isdigit() else None


@functools.cache
def _git() -> dict[str, Any] | None:
    """``{commit, dirty}``, or ``None`` without git, repository or commit. Asked once, for it takes seconds; where it
    does not come in time (a copy of a repository is compared file by file), ``dirty`` is ``None``.
    """

    def ask(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    commit = ask("rev-parse", "HEAD") if (ROOT / ".git").exists() else None
    changes = ask("status", "--porcelain", "--", *TREES)
    return commit and {"commit": commit, "dirty": None if changes is None else bool(changes)}
