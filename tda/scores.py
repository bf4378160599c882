"""What does a row score? A row of the config is a method with options; its scores and their cost are kept on disk."""

from __future__ import annotations

import numpy as np
import psutil

from tda import attribution, models
from tda.artefacts import key_of, load_arrays, require, save_arrays
from tda.provenance import Stopwatch, record
from tda.task import take
from tda.testbeds import Testbed
from tda.tools.summed import unit_scale
from tda.tuning import attribute, options_of, row_of, what_runs, with_defaults


def run(testbed: Testbed, row_id: str) -> np.ndarray:
    """Attribute the queries with a row's method (:func:`over_seeds`); the scores go to ``scores/<row_id>.npz``, the
    options used, ``seconds``, the memory that the run added (``added_mb``) and ``peak_mb`` to their record.
    """
    row = row_of(testbed, row_id)
    options = options_of(testbed, row)
    before = psutil.Process().memory_info().rss / 1e6
    with Stopwatch() as watch:
        scores = over_seeds(testbed, row, options)
    made = record(options, testbed.config["seed"], method=row["method"], watch=watch)
    made["added_mb"] = max(0.0, watch.peak_mb - before)
    save_arrays(testbed.folder / "scores" / f"{row_id}.npz", {"scores": scores}, made | _about(testbed, row))
    return scores


def load(testbed: Testbed, row_id: str) -> tuple[np.ndarray, dict]:
    """``(scores [Q, N], record)`` of a row, run first if missing; NaN where :func:`over_seeds` does not ask. Refuses
    scores of another model, method or setting.
    """
    path = testbed.folder / "scores" / f"{row_id}.npz"
    if not path.exists():
        run(testbed, row_id)
    row = row_of(testbed, row_id)
    cure = f"delete {path.name} and {path.name}.json and run {row['notebook']} again"
    arrays, made = load_arrays(path, "scores", ("scores",), _about(testbed, row), cure)
    scores, test = arrays["scores"], models.which(testbed, "test")
    shape = (len(test), len(testbed.documents))
    fits = scores.shape == shape and scores.dtype == np.float32 and np.isfinite(scores[test]).all()
    require(fits, path, f"does not hold finite float32 scores {list(shape)} of the test queries", cure)
    return scores, made


def over_seeds(testbed: Testbed, row: dict, options: dict) -> np.ndarray:
    """Scores [Q, N] of a row for all queries: of one model, or summed over the models of ``row["seeds"]`` seeds.

    Each seed's scores are scaled to unit mean magnitude per query first, so that no seed outweighs the others. Methods
    that sweep the corpus for each query are asked about the test queries only, which is where anything is read off; the
    other rows of their scores are NaN.
    """
    seeds = models.seeds_of(testbed)
    if row["seeds"] > len(seeds):
        trains = f"{testbed.name} trains {len(seeds)}. Raise training.seeds."
        raise ValueError(f"row {row['id']!r} asks for {row['seeds']} seeds; {trains}")
    test, queries = models.which(testbed, "test"), models.query_examples(testbed)
    per_query = attribution.named(row["method"]).cost == "per query"
    asked, parts = take(queries, test) if per_query else queries, []
    for seed in seeds[: row["seeds"]]:
        task, given = models.load_task(testbed, seed), {"seed": testbed.config["seed"]} | options
        scores = attribute(row, task, testbed.train, asked, given)
        parts.append(scores if row["seeds"] == 1 else unit_scale(scores))
    total = np.sum(parts, axis=0, dtype=np.float32)
    if not per_query:
        return total
    everywhere = np.full((len(test), total.shape[1]), np.nan, dtype=np.float32)
    everywhere[test] = total
    return everywhere


def scores_key(testbed: Testbed, row: dict) -> str:
    """Changes with the model, the method and its options. The code is no part of it: Snakemake knows the modules behind
    every chapter and reruns it, and an edit of a comment must not cost an interactive reader an hour of scoring.
    """
    options, seeds = options_of(testbed, row), row["seeds"]
    return key_of([models.model_key(testbed), *what_runs(row), options, seeds, testbed.config["seed"]])


def describe(testbed: Testbed, row_id: str) -> dict:
    """A row's method, family and options as the leaderboard prints them."""
    row, options = row_of(testbed, row_id), load(testbed, row_id)[1]["parameters"]
    options = options | ({"checkpoints": row["checkpoints"]} if row["checkpoints"] else {})
    options = options | {"models_used": models_used(testbed, row, options)}
    method = row["method"] + ("" if row["checkpoints"] is None else "_trajectory")
    return {"method": method, "family": attribution.named(row["method"]).family, "options": options}


def models_used(testbed: Testbed, row: dict, options: dict) -> int:
    """How many parameter vectors a row looks at: 0 (text only), 1, checkpoints x seeds, or those that it trains itself
    (:func:`trainings`). Compare like with like.
    """
    needs = attribution.named(row["method"]).needs
    if "retrain" in needs:
        return trainings(row, options) * row["seeds"]
    if "checkpoints" in needs or row["checkpoints"] is not None:
        return (options.get("checkpoints") or testbed.settings["training"]["checkpoints"]) * row["seeds"]
    return int("params" in needs or "features" in needs) * row["seeds"]


def trainings(row: dict, options: dict) -> int:
    """How many models of its own a row trains: 0 for all methods but those that retrain."""
    if "retrain" not in attribution.named(row["method"]).needs:
        return 0
    options = with_defaults(row, options)
    return options["models"] + options["residual"]


def _about(testbed: Testbed, row: dict) -> dict:
    return {"kind": "scores", "testbed": testbed.name, "row": row["id"], "key": scores_key(testbed, row)}
