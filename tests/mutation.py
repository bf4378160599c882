"""Would the tests notice? Plants one fault after the other in a copy of the repository and runs the tests that should.

    python tests/mutation.py                    all faults of tests/mutants.py, about twenty minutes on one core
    python tests/mutation.py --only 3 17        these numbers (--list prints them)
    python tests/mutation.py --match ceiling    those whose file, texts or tests hold this

Each fault is one small edit of a file of tda/, of the kind that a tired programmer makes. It is *killed* if one of the
tests named with it fails, and *survives* if all pass. Exit code 0: at most one in fifty survives; 1: more do; 2: the
list does not fit the code (an old text that is not found exactly once, a test that fails without any fault).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutants import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("tda", "tests", "workflow", "notebooks", "data/sources", "data/banks", "pyproject.toml")
ALLOWED = 1 / 50  # share of the faults that may survive
LIMIT = 300  # seconds; a fault that makes a test run for ever is noticed, too


class Unfit(Exception):
    """The list of faults does not fit the code."""


def planted(text: str, fault: Fault) -> str:
    """The file's text with the fault in it. Raises :class:`Unfit` unless the old text occurs exactly once."""
    found = text.count(fault.old)
    if found != 1:
        raise Unfit(f"{fault.file}: the old text occurs {found} times, not once; mend tests/mutants.py:\n{fault.old}")
    return text.replace(fault.old, fault.new)


def copied(folder: Path) -> None:
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)


def run_tests(folder: Path, tests: tuple[str, ...], limit: float | None = LIMIT) -> tuple[int, str]:
    """``(exit code of pytest, its output)``; -1 where the time ran out."""
    known = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    call = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            call, cwd=folder, env=os.environ | known, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, f"stopped after {limit:g} s"
    return done.returncode, done.stdout + done.stderr


def killed(folder: Path, fault: Fault) -> bool:
    """Whether the tests named with the fault notice it."""
    path = folder / fault.file
    whole = path.read_text(encoding="utf-8")
    try:
        path.write_text(planted(whole, fault), encoding="utf-8")
        code, output = run_tests(folder, fault.tests)
    finally:
        path.write_text(whole, encoding="utf-8")
    if code not in (-1, 0, 1, 2):  # 1: a test failed, 2: the module under test could not even be imported
        raise Unfit(f"{fault.file}: pytest ended with {code} on {' '.join(fault.tests)}:\n{output[-2000:]}")
    return code != 0


def chosen(options: argparse.Namespace) -> list[tuple[int, Fault]]:
    numbered = list(enumerate(FAULTS, start=1))
    if options.only:
        numbered = [(number, fault) for number, fault in numbered if number in options.only]
    if options.match:
        numbered = [(n, f) for n, f in numbered if options.match in "\n".join((f.file, f.old, f.new, *f.tests))]
    if not numbered:
        raise Unfit("no fault has these numbers or holds this text; --list shows them all")
    return numbered


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests/mutation.py", description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="numbers of the faults to plant")
    parser.add_argument("--match", default="", help="plant the faults whose file, texts or tests hold this")
    parser.add_argument("--list", action="store_true", help="print the faults and stop")
    options = parser.parse_args(arguments)
    faults, began = chosen(options), time.perf_counter()
    for _, fault in faults:  # all of them, before anything slow
        planted((ROOT / fault.file).read_text(encoding="utf-8"), fault)
    if options.list:
        for number, fault in faults:
            print(f"{number:3d} {fault.file}: {fault.what}")
        return 0
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutation") as name:
        folder = Path(name)
        copied(folder)
        print(
            f"{len(faults)} faults in {len({f.file for _, f in faults})} files; their tests without a fault", flush=True
        )
        code, output = run_tests(folder, tuple(dict.fromkeys(t for _, f in faults for t in f.tests)), None)
        if code:
            raise Unfit(f"the tests fail without any fault:\n{output[-4000:]}")
        for number, fault in faults:
            started, noticed = time.perf_counter(), killed(folder, fault)
            seconds = time.perf_counter() - started
            print(
                f"{number:3d} {'killed  ' if noticed else 'SURVIVED'} {seconds:5.1f} s  {fault.file}: {fault.what}",
                flush=True,
            )
            survivors += [] if noticed else [(number, fault)]
    minutes = (time.perf_counter() - began) / 60
    print(f"{len(faults) - len(survivors)} of {len(faults)} faults killed in {minutes:.0f} minutes")
    for number, fault in survivors:
        print(f"survived: {number} {fault.file}: {fault.what} ({' '.join(fault.tests)})")
    return int(len(survivors) > ALLOWED * len(faults))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Unfit as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
