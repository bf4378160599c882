"""Bad input of every kind, and what becomes of it: `python tests/bad_input.py` (about two minutes).

Every case must end in one error of the project's own (a ``ValueError``) whose message is one line. An exception of any
other type is a raw traceback; no exception at all means that something else than what was given would have been scored.
Prints a line for every case that ends otherwise, and a summary by kind; exit status 1 if there is any.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import conftest  # noqa: F401 (with it the scripts of the workflow are found)
import numpy as np
import run_notebook
import torch
import transformers as hf
import yaml
from test_custom import TABLE, written
from test_door import BAD_TEXTS, LLAMA, language_task, mlp, net_task, points, texts

import tda.testbeds
from tda import config, tuning
from tda.attribution import METHODS, attribute
from tda.task import use_threads

Case = tuple[str, Callable[[], object]]


def options() -> Iterator[Case]:
    """Every option of every method at values that no option may have."""
    nonsense = ("x", "", None, float("nan"), float("inf"), [1], {"a": 1}, object(), -7, b"1", 1j)
    train, asked = points(8, 0), points(2, 1)
    task = net_task(mlp())
    full = replace(task, encode={"text": lambda e: ["a"] * len(e["x"]), "group": lambda e: ["a"] * len(e["x"]),
                                 "features": lambda e: e["x"].numpy()})  # fmt: skip
    for name, method in METHODS.items():
        for option, rule in method.rules.items():
            for value in nonsense:
                if not _holds(rule, value):
                    yield (
                        f"{name}, {option}={value!r}",
                        lambda n=name, o=option, v=value: attribute(n, full, train, asked, **{o: v}),
                    )
        yield f"{name}, unknown option", lambda n=name: attribute(n, full, train, asked, dampping=1)
    yield "unknown method", lambda: attribute("gradient-dot", full, train, asked)
    yield "no method", lambda: attribute(None, full, train, asked)


def _holds(rule, value) -> bool:
    try:
        return rule.holds(value)
    except ValueError:
        return False


def examples() -> Iterator[Case]:
    """Texts and images that would be read as something else."""
    torch.manual_seed(0)
    task = language_task(hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, attn_implementation="eager")).eval())
    good = texts(8, 1)
    for kind, (damage, _) in BAD_TEXTS.items():
        for name in ("gradient_dot", "bgo", "stride"):
            bad = damage(texts(8, 0))
            yield f"{name}, train: {kind}", lambda n=name, b=bad: attribute(n, task, b, good)
            yield f"{name}, queries: {kind}", lambda n=name, b=bad: attribute(n, task, good, b)
    net, train, asked = net_task(mlp()), points(8, 0), points(2, 1)
    images = {
        "no columns": {}, "nothing": None, "a string": "x", "a tensor": torch.ones(3), "no labels": {"x": train["x"]},
        "no inputs": {"labels": train["labels"]}, "short labels": train | {"labels": train["labels"][:3]},
        "labels as text": train | {"labels": ["a"] * 8}, "labels as reals": train | {"labels": torch.rand(8)},
        "labels beyond": train | {"labels": train["labels"] + 9},
        "labels below": train | {"labels": train["labels"] - 9},
        "nan": train | {"x": train["x"] * torch.nan}, "inf": train | {"x": train["x"] / 0},
        "too wide": train | {"x": torch.ones(8, 7)}, "whole numbers": train | {"x": torch.ones(8, 6, dtype=torch.long)},
        "double": train | {"x": train["x"].double()}, "half": train | {"x": train["x"].half()},
        "complex": train | {"x": train["x"].to(torch.complex64)}, "sparse": train | {"x": train["x"].to_sparse()},
        "scalar": train | {"x": torch.tensor(1.0)}, "no rows": {k: v[:0] for k, v in train.items()},
        "objects": train | {"x": np.array([None] * 8)}, "a list of tensors": train | {"x": list(train["x"])},
    }  # fmt: skip
    for kind, bad in images.items():
        for name in ("gradient_dot", "trak"):
            yield f"{name}, train: {kind}", lambda n=name, b=bad: attribute(n, net, b, asked)
            yield f"{name}, queries: {kind}", lambda n=name, b=bad: attribute(n, net, train, b)


def models() -> Iterator[Case]:
    """Tasks that no method should take."""
    task, train, asked = net_task(mlp()), points(8, 0), points(2, 1)
    first = next(iter(task.params))
    logits = lambda p, b: task.outputs_fn(p, b)[0]  # noqa: E731
    wrong = {
        "no parameters": replace(task, params={}),
        "half": replace(task, params={k: v.half() for k, v in task.params.items()}),
        "bfloat16": replace(task, params={k: v.bfloat16() for k, v in task.params.items()}),
        "whole numbers": replace(task, params={k: v.long() for k, v in task.params.items()}),
        "nan": replace(task, params=task.params | {first: task.params[first] * torch.nan}),
        "inf": replace(task, params=task.params | {first: task.params[first] / 0}),
        "meta": replace(task, params={k: v.to("meta") for k, v in task.params.items()}),
        "other names": replace(task, params={f"module.{k}": v for k, v in task.params.items()}),
        "other shapes": replace(task, params=task.params | {first: torch.ones(8, 7)}),
        "a missing parameter's loss": replace(task, loss_fn=lambda p, b, r: p["absent"]),
        "no loss": replace(task, loss_fn=None),
        "a loss of one number": replace(task, loss_fn=lambda p, b, r: task.loss_fn(p, b, "mean")),
        "a loss that draws": replace(task, loss_fn=lambda p, b, r: task.loss_fn(p, b, r) + torch.rand(())),
        "a loss that mixes": replace(task, loss_fn=lambda p, b, r: task.loss_fn(p, b, r) + b["x"].mean()),
        "a loss of nan": replace(task, loss_fn=lambda p, b, r: task.loss_fn(p, b, r) * torch.nan),
        "outputs of another loss": replace(task, outputs_fn=lambda p, b: (logits(p, b) * 3, b["labels"][:, None])),
        "outputs without positions": replace(task, outputs_fn=lambda p, b: (logits(p, b)[:, 0], b["labels"])),
        "outputs that fail": replace(task, outputs_fn=lambda p, b: b["absent"]),
    }  # fmt: skip
    for kind, bad in wrong.items():
        for name in ("gradient_dot", "bgo", "influence", "logra", "trak", "stride"):
            yield f"{name}: {kind}", lambda n=name, b=bad: attribute(n, b, train, asked)
    for name in METHODS:
        yield f"{name}: a bare task", lambda n=name: attribute(n, replace(task, params={}, encode={}), train, asked)


NOTHING = {"random"}  # needs nothing of a task


def configurations() -> Iterator[Case]:
    """Every key of the schema at values of the wrong type or out of range, unknown keys, and rows that cannot run."""
    whole = {key: value for key, value in config.load("smoke").items() if key not in ("base", "overrides", "places")}
    schema = yaml.safe_load((config.PROFILES / "schema.yaml").read_text(encoding="utf-8"))
    entry = next(iter(whole["testbeds"]))
    places = {"top": (schema, ()), "statistics": (schema["$defs"]["statistics"], ("statistics",))}
    for part in ("people", "gpt_neox", "adamw", "queries", "evaluation"):
        home = {"people": "corpus", "gpt_neox": "model", "adamw": "training"}.get(part, part)
        places[part] = (schema["$defs"][part], ("testbeds", entry, home))
    places["half"] = (schema["$defs"]["subsets"], ("testbeds", entry, "designs", "half"))
    for where, (section, path) in places.items():
        for key, rule in section["properties"].items():
            for value in _wrong(rule, schema):
                yield f"{where}.{key} = {value!r}", lambda p=path, k=key, v=value: _configured(whole, (*p, k), v)
        yield f"{where}: unknown key", lambda p=path: _configured(whole, (*p, "unheard_of"), 1)
    row = {"id": "mine", "method": "bgo", "notebook": "10_bgo", "testbeds": [entry]}
    for change in (
        {"method": "bgoo"}, {"method": ""}, {"method": 3}, {"id": "A b"}, {"id": None}, {"notebook": "bgo"},
        {"options": 3}, {"options": {"dampng": 1}}, {"options": {"damping": "1e-1"}}, {"options": {"chunk": "8"}},
        {"options": {"steps": 2.0}}, {"options": {"direction": "up"}}, {"options": {"damping": 0}},
        {"tune": {"step": []}},
        {"tune": {"step": 0.1}}, {"tune": {"step": [0.1, "0.2"]}}, {"tune": {"steps": [0]}}, {"tune": {"stepp": [0.1]}},
        {"tune_like": "mine"}, {"tune_like": "nobody"}, {"tune_every": 2}, {"tune_every": 0}, {"seeds": 0},
        {"testbeds": ["nowhere"]}, {"testbeds": entry}, {"ablation": "yes"}, {"extra": 1},
        {"method": "trackstar", "options": {"moments": "no"}}, {"method": "bm25", "options": {"k1": -3}},
        {"method": "influence", "options": {"iterations": 0}},
        {"method": "rank_combined", "options": {"methods": ["bgo"]}},
        {"method": "rank_combined", "options": {"options": {"stride": {"degre": 1}}}},
    ):  # fmt: skip
        yield f"row {change}", lambda c=change: _configured(whole, ("rows",), [*whole["rows"], row | c])


def _wrong(rule: dict, schema: dict) -> list:
    if "$ref" in rule:
        rule = {**schema["$defs"][rule["$ref"].rsplit("/", 1)[1]], **rule}
    if "enum" in rule or "const" in rule:
        return ["zzz", 3, None, []]
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    values = {
        "integer": ["8", "1e-1", 1.5, True, [], -(10**9)], "number": ["1e-1", "x", True, {}, float("nan"), -1e9],
        "string": [3, [], True], "boolean": ["no", 1, []], "array": ["x", 3, {"a": 1}], "object": [3, "x", [1]],
    }  # fmt: skip
    wrong = [value for kind in kinds[:1] for value in values.get(kind, [])]
    return wrong + ([] if "null" in kinds or not kinds else [None])


def _configured(whole: dict, path: tuple, value: object) -> dict:
    changed = copy.deepcopy(whole)
    place = changed
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mine.yaml"
        file.write_text(yaml.safe_dump({k: v for k, v in changed.items() if k != "profile" or path == ("profile",)}))
        loaded = config.load(str(file))
        tda.testbeds.check_kinds(loaded)
        return tuning.check_rows(loaded)


def files() -> Iterator[Case]:
    """The user's own texts, and names that no testbed has."""
    for content, line in TABLE:
        yield f"file: {line:.60}", lambda c=content: _opened(c)
    for name in ("nothing.jsonl", "people.csv", "", ".", "/", "peopel", "people/", 3, None, ["people"]):
        yield f"load({name!r})", lambda n=name: tda.testbeds.load(n)
    for overrides in (3, "x", [], {"profile": "paper"}, {"testbeds": 3}, {"testbeds": {"people": 3}}, {"seed": "0"}):
        yield f"overrides={overrides!r}", lambda o=overrides: tda.testbeds.load("people", overrides=o or {"x": []})
    for profile in ("smok", "", 3, None, "nowhere.yaml", "/"):
        yield f"profile={profile!r}", lambda p=profile: tda.testbeds.load("people", profile=p)


def _opened(content: object) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), content)
        given = {path.stem: {"corpus": {"vocabulary": 280}, "model": {"context": 96}}}
        return tda.testbeds.load(path, overrides={"testbeds": given}).documents


def notebooks() -> Iterator[Case]:
    """Parameters that a chapter does not declare, or declares as something else."""
    book = config.ROOT / "notebooks" / "04_first_methods.ipynb"
    for given in ({"profil": "smoke"}, {"profile": 3}, {"overrides": "x"}, {"overrides": []}, {"testbed": 1}, {"": 1}):
        yield f"parameters {given}", lambda g=given: run_notebook.check_parameters(book, g)
    for name in ("absent.ipynb", "README.md", "tda"):
        yield f"notebook {name}", lambda n=name: run_notebook.declared_parameters(config.ROOT / n)
    broken = {
        "no cells": {},
        "cells of text": {"cells": "x"},
        "no parameters": {"cells": []},
        "a list": [],
        "null": None,
    }
    for kind, content in broken.items():
        yield f"notebook with {kind}", lambda c=content: _declared(json.dumps(c))
    yield "notebook of half a line", lambda: _declared('{"cells": [')


def _declared(text: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.ipynb"
        path.write_text(text)
        return run_notebook.declared_parameters(path)


KINDS = {"options": options, "examples": examples, "models": models, "configurations": configurations, "files": files,
         "notebooks": notebooks}  # fmt: skip


def outcome(action: Callable[[], object]) -> str:
    try:
        action()
    except ValueError as error:
        return "" if str(error).strip() and "\n" not in str(error).strip() else f"not one line: {error!s:.300}"
    except BaseException as error:  # whatever else it is, a user would see its traceback
        return f"RAW {type(error).__name__}: {str(error)[:200]}"
    return "ACCEPTED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], help="only these kinds")
    use_threads()
    warnings.filterwarnings("ignore")
    count, bad = collections.Counter(), collections.Counter()
    for kind in parser.parse_args().kinds or KINDS:
        for name, action in KINDS[kind]():
            if kind == "models" and name.split(":")[0] in NOTHING:
                continue
            count[kind] += 1
            if ended := outcome(action):
                bad[kind] += 1
                print(f"{kind}: {name}: {ended}", flush=True)
    for kind in count:
        print(f"{kind:16s} {count[kind]:5d} cases, {bad[kind]} ended otherwise")
    print(f"{count.total()} cases, {bad.total()} ended otherwise")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
