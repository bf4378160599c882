"""With which options does a row run? Its own, and those that are chosen on the tune queries."""

from __future__ import annotations

import inspect
import math
import numbers
from functools import lru_cache

import numpy as np

from tda import attribution, bank, config, models
from tda.artefacts import file_sha256, key_of, read_json, read_record, require, write_record
from tda.config_checks import Faults, listed, refuse
from tda.evaluation import lds as lds_module
from tda.evaluation.lds import lds
from tda.provenance import Stopwatch, modules_used
from tda.task import Examples, Task, take
from tda.testbeds import Testbed
from tda.tools.options import check
from tda.tools.summed import over_checkpoints

FLAT = 0.005  # LDS on tune queries by which an end of a grid may lead its neighbour and still count as levelled off


def check_rows(config: dict) -> None:
    """Raises :class:`tda.config.ConfigError`, one line, for the first row of a loaded configuration with a method that
    is not registered, or with an option or a value in its tune grid that the method does not accept.
    """

    def faults() -> Faults:
        for index, row in enumerate(config["rows"]):
            key, methods = f"rows[{index}]", attribution.METHODS
            if row["method"] not in methods:
                yield f"{key}.method", row["method"], f"; registered methods: {listed(sorted(methods), row['method'])}"
            given = [("options", name, value) for name, value in row["options"].items()]
            given += [("tune", name, value) for name, values in row["tune"].items() for value in values]
            for part, name, value in given:
                try:
                    check(row["method"], methods[row["method"]].rules, {name: value})
                except ValueError as error:
                    yield f"{key}.{part}.{name}", value, f"; {error}"

    refuse(faults(), config["places"])


def row_of(testbed: Testbed, row_id: str) -> dict:
    """The config's row of this id on this testbed."""
    here = {row["id"]: row for row in config.rows(testbed.config, testbed.name)}
    if row_id not in here:
        raise ValueError(f"no row {row_id!r} on testbed {testbed.name!r}; the config has {sorted(here)}.")
    return here[row_id]


def options_of(testbed: Testbed, row: dict) -> dict:
    """The options that a row runs with: its own, and those that the tune queries choose."""
    return {**tuned(testbed, row)["options"], **row["options"]}


def tuned(testbed: Testbed, row: dict) -> dict:
    """What :func:`tune` chose for a row: first what its ``tune_like`` row chose, then its own grid on top of that.

    ``{"options", "trials", "seconds", "retrainings"}``; a row that takes another's choice is charged for choosing too.
    Nothing for a row without either.
    """
    taken = {"options": {}, "trials": [], "seconds": 0.0, "retrainings": 0}
    if row["tune_like"]:
        taken = tuned(testbed, row_of(testbed, row["tune_like"]))
    if not row["tune"]:
        return taken
    own = tune(testbed, row, taken["options"])
    return own | {"options": taken["options"] | own["options"], "seconds": taken["seconds"] + own["seconds"]}


def tune(testbed: Testbed, row: dict, taken: dict | None = None) -> dict:
    """Choose a row's tuned options by LDS (design ``half``, main loss) on the held-out **tune** queries (one in
    ``row["tune_every"]`` of them); kept on disk.

    ``row["tune"]`` maps options to candidate values. One option at a time, in the order given, each at the best value
    of those before it; ``taken`` are options that another row has chosen. Returns ``{"options", "trials", "seconds",
    "retrainings", ...}``; what choosing costs counts as the row's set-up.
    """
    path = testbed.folder / "tuned" / f"{row['id']}.json"
    given = (taken or {}) | row["options"]
    every = row["tune_every"]
    parts = [models.model_key(testbed), bank.bank_key(testbed, "half"), *what_runs(row), given, row["tune"], every]
    about = {"kind": "tuned", "testbed": testbed.name, "row": row["id"], "key": key_of([*parts, _code(row["method"])])}
    if path.exists():  # a choice of other settings, or made by other code, is made again
        kept, cure = read_json(path), f"delete {path.name} and run again; it is chosen anew"
        require(isinstance(kept, dict), path, "not a record of this project", cure)
        if kept.get("key") == about["key"]:
            return read_record(path, "tuned", about, cure)
    chosen = tune_queries(testbed, every)
    if not len(chosen):
        raise ValueError(
            f"row {row['id']!r} is to be tuned, but no held-out query is in the tune split; raise queries.tune."
        )
    truth, task = bank.load(testbed, "half"), models.load_task(testbed)
    queries = take(models.query_examples(testbed), chosen)
    best, trials, lds_of = {}, [], {}
    with Stopwatch() as watch:
        for option, values in row["tune"].items():
            for value in values:
                options = {**given, **best, option: value}
                same = key_of(with_defaults(row, options))  # a later option's default was tried along with the first
                if same not in lds_of:
                    seeded = {"seed": testbed.config["seed"]} | options
                    lds_of[same] = _trial(row, task, testbed.train, queries, seeded, truth, chosen)
                trials.append({**best, option: value, "lds_tune": lds_of[same]})
            usable = [trial for trial in trials[-len(values) :] if trial["lds_tune"] is not None]
            if not usable:
                raise ValueError(f"row {row['id']!r}: every value of {option} breaks the model; tune smaller ones.")
            best[option] = max(usable, key=lambda trial: trial["lds_tune"])[option]
    cost = {"seconds": watch.seconds, "retrainings": truth.record["retrainings"]}
    write_record(path, about | {"options": best, "trials": trials, **cost})
    return read_json(path)


def at_the_edge(row: dict, trials: list[dict]) -> list[str]:
    """Options of a row whose chosen number is an end of its tune grid, and might have been better beyond it.

    Not so where the LDS has levelled off (the next value inwards is within :data:`FLAT`) and where the option goes no
    further by its own rule (0 steps, a penalty of 0). A step that breaks the model is in the grid, so that the value
    before it is no end. ``trials`` are those of :func:`tune`.
    """
    found, start, rules = [], 0, attribution.named(row["method"]).rules
    for option, values in row["tune"].items():
        part, start = trials[start : start + len(values)], start + len(values)
        if len(values) < 2 or not all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in values):
            continue
        reached = {trial[option]: trial["lds_tune"] for trial in part if trial["lds_tune"] is not None}
        best, grid = max(reached, key=reached.get), sorted(values)
        for end, inner, beyond in ((grid[0], grid[1], -1), (grid[-1], grid[-2], 1)):
            open_ended = any(rules[option].holds(end + beyond * step) for step in (1, abs(end) / 10 or 1))
            if best == end and open_ended and reached[end] - reached.get(inner, -math.inf) > FLAT:
                found.append(option)
    return found


def what_runs(row: dict) -> list:
    """The part of a row's key that is not in its options: the method, and over how many checkpoints it is summed."""
    return [row["method"], *([] if row["checkpoints"] is None else [row["checkpoints"]])]


def attribute(row: dict, task: Task, train: Examples, queries: Examples, options: dict) -> np.ndarray:
    """Scores [Q, N] float32 of a row's method for one model, or summed over the checkpoints of its run.

    A row with ``checkpoints`` c (0: all that were recorded) is asked at c of them, and the scores are added with the
    learning rates as weights (:func:`tda.tools.summed.over_checkpoints`).
    """
    if row["checkpoints"] is None:
        return attribution.attribute(row["method"], task, train, queries, **options)
    method = attribution.named(row["method"]).function  # in the method's own precision: the sum comes first
    summed = over_checkpoints(task, row["checkpoints"], lambda part: method(part, train, queries, **options))
    return np.asarray(summed, np.float32)


def tune_queries(testbed: Testbed, every: int = 1) -> np.ndarray:
    """Positions of the held-out queries that hyper-parameters are chosen on; one in ``every``, at random (in order they
    go round the attributes of a person).
    """
    held_out = np.flatnonzero(models.which(testbed, "tune", "held_out"))
    if every == 1:
        return held_out
    rng = np.random.default_rng([testbed.config["seed"], 71, every])
    return np.sort(rng.permutation(held_out)[: -(-len(held_out) // every)])


def with_defaults(row: dict, options: dict) -> dict:
    """``options`` and, for all others that the row's method has, their defaults."""
    parameters = inspect.signature(attribution.named(row["method"]).function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | options


@lru_cache(maxsize=128)
def _code(method: str) -> str:
    """Hash of the code that a tuned choice depends on: the method's module, what it imports, and the measure."""
    own = [inspect.getsourcefile(inspect.unwrap(attribution.named(method).function)), lds_module.__file__]
    return key_of([file_sha256(path) for path in (*own, *modules_used(*own))])


def _trial(row: dict, task, train, queries, options: dict, truth, chosen: np.ndarray) -> float | None:
    """LDS of one trial, or None where the method refuses the step."""
    try:
        scores = attribute(row, task, train, queries, options)
    except attribution.StepTooLarge as error:
        print(f"{row['id']}: {error}")
        return None
    return float(lds(scores, truth.subsets, truth.outputs[:, :, chosen]).mean())
