"""Check the self-checks of a chapter: `python tests/exercises/run.py notebooks/04_first_methods.ipynb`.

The exercises of a chapter are the numbered items of its last `## Exercises`. Each ends with its self-check, a fenced
```python block that a reader pastes into a cell of the chapter after his own answer. Beside this file lies one file a
chapter with two answers to every exercise, one right and one that a reader may well try first and that is wrong:

    # %% 1 solution
    ...
    # %% 1 wrong
    ...

The chapter is executed once at its default (smoke) parameters. Then each answer runs in a copy of its variables,
followed by the self-check: it must hold after the solution and raise ``AssertionError`` after the wrong answer. Answers
may call ``rerun("text in a cell", ("old", "new"), ...)``, which executes that cell again with replacements, as a reader
would edit it. Prints one JSON object: exercise -> list of complaints (empty: as it should be).
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import json
import os
import re
import sys
import traceback
from pathlib import Path

ITEM = re.compile(r"^(\d+)\. ", flags=re.MULTILINE)
CHECK = re.compile(r"^ *```python\n(.*?)^ *```", flags=re.MULTILINE | re.DOTALL)
PART = re.compile(r"^# %% (\d+) (solution|wrong)\n", flags=re.MULTILINE)


def cells(path: Path) -> list[dict]:
    book = json.loads(path.read_text(encoding="utf-8"))
    return [cell | {"source": "".join(cell["source"])} for cell in book["cells"]]


def checks(path: Path) -> dict[int, str]:
    """Self-check of every exercise of a chapter; empty where there is none."""
    texts = [cell["source"] for cell in cells(path) if cell["cell_type"] == "markdown"]
    section = "\n".join(texts).rsplit("\n## Exercises", 1)[1]
    parts = ITEM.split(section.split("\n## ")[0])[1:]
    found = {}
    for number, text in zip(parts[::2], parts[1::2], strict=True):
        code = CHECK.search(text)
        found[int(number)] = _dedent(code[1]) if code else ""
    return found


def answers(path: Path) -> dict[tuple[int, str], str]:
    """``(exercise, "solution" or "wrong") -> code`` of a chapter's file of answers."""
    parts = PART.split((Path(__file__).parent / f"{path.stem}.py").read_text(encoding="utf-8"))[1:]
    return {(int(n), kind): code for n, kind, code in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def _dedent(code: str) -> str:
    indent = min(len(line) - len(line.lstrip()) for line in code.splitlines() if line.strip())
    return "\n".join(line[indent:] for line in code.splitlines())


def execute(source: str, space: dict, name: str) -> None:
    kept = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
    exec(compile(ast.parse(kept, name), name, "exec"), space)


def chapter(path: Path, parameters: dict) -> dict:
    """The variables of the executed chapter."""
    space = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path)):
        if cell["cell_type"] == "code":
            execute(cell["source"], space, f"{path.stem}[{number}]")
        if "parameters" in cell["metadata"].get("tags", []):
            space |= parameters
    return space


def main(path: Path, only: list[int]) -> dict[int, list[str]]:
    os.environ |= {"MPLBACKEND": "Agg", "TDA_BATCH": "1"}
    builtins.display = print
    told, parts = checks(path), answers(path)
    first = (Path(__file__).parent / f"{path.stem}.py").read_text(encoding="utf-8").splitlines()[0]
    given = json.loads(first.removeprefix("# parameters: ")) if first.startswith("# parameters: ") else {}
    with contextlib.redirect_stdout(sys.stderr):
        space = chapter(path, given)
        return {number: _judge(path, number, check, parts, space) for number, check in told.items()
                if not only or number in only}  # fmt: skip


def _judge(path: Path, number: int, check: str, parts: dict, space: dict) -> list[str]:
    if not check:
        return ["has no self-check"]
    complaints = []
    for kind in ("solution", "wrong"):
        if (number, kind) not in parts:
            complaints.append(f"has no {kind}")
            continue
        own = dict(space)

        def rerun(marker: str, *changes: tuple[str, str], own=own) -> None:
            (source,) = [c["source"] for c in cells(path) if c["cell_type"] == "code" and marker in c["source"]]
            for old, new in changes:
                assert old in source, f"the cell with {marker!r} has no {old!r}"
                source = source.replace(old, new)
            execute(source, own, f"{path.stem} again")

        own["rerun"] = rerun
        try:
            execute(parts[number, kind], own, f"{kind} of {number}")
        except Exception:
            complaints.append(f"the {kind} itself fails: {traceback.format_exc(limit=-3)}")
            continue
        try:
            execute(check, own, f"self-check of {number}")
            passed = True
        except AssertionError:
            passed, why = False, traceback.format_exc(limit=-2)
        except Exception:
            complaints.append(f"the self-check breaks on the {kind}: {traceback.format_exc(limit=-3)}")
            continue
        if passed != (kind == "solution"):
            complaints.append("the self-check accepts the wrong answer" if passed else f"rejects the solution: {why}")
    return complaints


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    found = main(Path(sys.argv[1]), [int(n) for n in sys.argv[2:]])
    print(json.dumps(found, indent=1))
    sys.exit(any(found.values()))
