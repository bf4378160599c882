"""Top-k removal: take a query's best documents away, retrain, and watch its loss. With both controls.

Every run is masked and paired (:mod:`tda.training`): the zero-removal control has the same seeds and batches, so the
difference is the documents' doing; the random-k control says how much any k documents do. Both controls are shared: a
model trained without k random documents is asked about every query, and a query's control is the mean over all draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tda import models
from tda.artefacts import key_of, load_arrays, read_table, require, save_arrays, write_json, write_table
from tda.designs import bank_seeds
from tda.evaluation.tables import LEADERBOARD_COLUMNS
from tda.provenance import Stopwatch, record
from tda.retrain import retrain_all, truth_key
from tda.testbeds import Testbed

ZERO, RANDOM = "zero_removal", "random_k"
CURE = "delete {0} and {0}.json and run 05_removal again"


@dataclass(frozen=True)
class Removals:
    """K removals: what was removed [K, N], for which row and query (-1: a control of all), and how many documents."""

    removed: np.ndarray
    row_id: list[str]
    query: np.ndarray
    k: np.ndarray
    seeds: list[int]

    def models(self) -> list[tuple[np.ndarray, int]]:
        """(mask of the documents kept, seed) of every model to train."""
        return [(~removed, seed) for removed in self.removed for seed in self.seeds]


def plan(testbed: Testbed, scores: Mapping[str, np.ndarray]) -> Removals:
    """Which documents to remove: nothing at all, k random ones, and per chosen test query the top k of every row.

    ``scores``: row id -> [Q, N]; ties go to the earlier document. The queries are held-out test queries, drawn with the
    config's seed, no two of one person or author, so that they are independent. Random documents are drawn
    ``removals.controls`` times for all queries. Rows of ``removals.more_k`` are removed with further k, random
    documents with all of them (the same draws, longer).
    """
    wanted = testbed.settings["removals"]
    rng = np.random.default_rng([testbed.config["seed"], 51])
    rows = models.query_rows(testbed)
    eligible = np.flatnonzero(models.which(testbed, "test", "held_out")).tolist()
    one_each = {rows[eligible[i]]["entity"] or str(i): eligible[i] for i in rng.permutation(len(eligible))}
    chosen = sorted(list(one_each.values())[: wanted["queries"]])
    n, ks = len(testbed.documents), {row: [wanted["k"], *wanted["more_k"].get(row, ())] for row in scores}
    ks[RANDOM] = sorted({k for of_row in ks.values() for k in of_row})
    if len(chosen) < 2 or not 0 < max(ks[RANDOM]) < n:
        raise ValueError(
            f"removals: {len(chosen)} queries and k={ks[RANDOM]} of {n} documents; at least 2 queries and 0 < k < N "
            f"are needed."
        )
    unscored = [row for row, s in scores.items() if not np.isfinite(s[chosen]).all()]
    if unscored:
        raise ValueError(f"removals: rows {unscored} lack scores of some of the queries {chosen}; score them first.")
    orders = [(RANDOM, -1, rng.permutation(n)) for _ in range(wanted["controls"])]
    orders += [(row, q, np.argsort(-s[q], kind="stable")) for q in chosen for row, s in scores.items()]
    runs = [(ZERO, -1, 0, np.zeros(n, bool))]
    runs += [(row, q, k, np.isin(np.arange(n), order[:k])) for row, q, order in orders for k in ks[row]]
    row_id, query, size, removed = zip(*runs, strict=True)
    seeds = bank_seeds(testbed, wanted["seeds"])
    return Removals(np.stack(removed), list(row_id), np.array(query), np.array(size), seeds)


def run_shard(testbed: Testbed, planned: Removals, shard: int, progress: Callable[[str], None] | None = None) -> dict:
    """Retrain every ``shards``-th model of a plan; cached ones are kept. Writes ``removals.parts/shard<i>.json``."""
    shards = testbed.settings["removals"]["shards"]
    if not 0 <= shard < shards:
        raise ValueError(f"shard={shard}; removals have {shards} shards, numbered from 0.")
    mine = planned.models()[shard::shards]
    with Stopwatch() as watch:
        retrain_all(testbed, mine, "mask", "removals", progress)
    made = record({"shard": shard}, planned.seeds, models=len(mine), watch=watch)
    write_json(testbed.folder / "removals.parts" / f"shard{shard}.json", made)
    return {"models": len(mine), "seconds": watch.seconds}


def merge(testbed: Testbed, planned: Removals, progress: Callable[[str], None] | None = None) -> np.ndarray:
    """Losses [K, R, Q] of all removals (training any that is missing), written to ``removals.npz``."""
    done = retrain_all(testbed, planned.models(), "mask", "removals", progress)
    outputs = np.stack([d.outputs[0] for d in done]).reshape(len(planned.removed), len(planned.seeds), -1)
    arrays = {"removed": planned.removed, "outputs": outputs, "row_id": np.array(planned.row_id)}
    arrays |= {"query": planned.query, "k": planned.k, "seeds": np.array(planned.seeds)}
    made = record(testbed.settings["removals"], planned.seeds)
    save_arrays(testbed.folder / "removals.npz", arrays, made | _about(testbed, planned, "removals"))
    return outputs


def load(testbed: Testbed, planned: Removals) -> np.ndarray:
    """Losses [K, R, Q] of a plan: read if it was merged, merged otherwise (also where another plan was)."""
    path = testbed.folder / "removals.npz"
    if not path.exists():
        return merge(testbed, planned)
    arrays, made = load_arrays(path, "removals", ("outputs", "removed"), {"testbed": testbed.name})
    if made["key"] != _about(testbed, planned, "removals")["key"]:
        return merge(testbed, planned)
    outputs, shape = arrays["outputs"], (len(planned.removed), len(planned.seeds), len(models.query_rows(testbed)))
    fits = outputs.shape == shape and outputs.dtype == np.float32 and np.isfinite(outputs).all()
    cure = CURE.format(path.name)
    require(fits, path, f"does not hold finite float32 losses {list(shape)}", cure)
    require(np.array_equal(arrays["removed"], planned.removed), path, "other documents were removed", cure)
    return outputs


def save_table(testbed: Testbed, planned: Removals, frame: pd.DataFrame) -> None:
    """Write the lines of the leaderboard that removals give to ``metrics/removal.csv``."""
    write_table(testbed.folder / "metrics" / "removal.csv", frame, _about(testbed, planned, "removal metrics"))


def load_table(testbed: Testbed, planned: Removals) -> pd.DataFrame:
    """What :func:`save_table` wrote, of these removals and no others."""
    path, about = testbed.folder / "metrics" / "removal.csv", _about(testbed, planned, "removal metrics")
    return read_table(path, about["kind"], LEADERBOARD_COLUMNS, about, CURE.format(path.name))


def _about(testbed: Testbed, planned: Removals, kind: str) -> dict:
    key = key_of([truth_key(testbed), planned.removed, planned.seeds])
    return {"kind": kind, "testbed": testbed.name, "key": key}


def loss_changes(planned: Removals, outputs: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """``row id -> removal_k`` per chosen query [q]: loss without the top k minus loss with nothing removed.

    Both are means over the same seeds. Positive: the removed documents had been lowering the query's loss. Only rows
    that were removed with this k; random documents: the mean over their draws (:func:`control_changes`).
    """
    control = outputs[planned.row_id.index(ZERO)].mean(0)
    changes: dict[str, list[float]] = {}
    for row, q, size, losses in zip(planned.row_id, planned.query, planned.k, outputs, strict=True):
        if q >= 0 and size == k:
            changes.setdefault(row, []).append(float(losses[:, q].mean() - control[q]))
    found = {row: np.array(values) for row, values in changes.items()}
    drawn = control_changes(planned, outputs, k)
    return found | ({RANDOM: drawn.mean(0)} if len(drawn) else {})


def control_changes(planned: Removals, outputs: np.ndarray, k: int) -> np.ndarray:
    """What k random documents do, per draw and chosen query, [draws, q]."""
    chosen = list(dict.fromkeys(planned.query[planned.query >= 0].tolist()))  # in the order of the rows' changes
    draws = [row == RANDOM and size == k for row, size in zip(planned.row_id, planned.k, strict=True)]
    return (outputs[draws].mean(1) - outputs[planned.row_id.index(ZERO)].mean(0))[:, chosen].astype(float)


def shared_error(drawn: np.ndarray) -> float:
    """Standard error of a mean over draws in the part that all queries share, from ``drawn`` [D, Q] (two-way anova):
    ``sqrt(max(0, var(means of draws) - s^2 / Q) / D)`` with s^2 the variance of the interaction.

    An interval over queries holds the interaction, which differs from query to query, and not this part. With few draws
    it is a rough figure (D - 1 degrees of freedom).
    """
    draws, queries = drawn.shape
    means = drawn.mean(1)
    rest = drawn - means[:, None] - drawn.mean(0) + drawn.mean()
    interaction = (rest**2).sum() / ((draws - 1) * (queries - 1))
    return float(np.sqrt(max(0.0, means.var(ddof=1) - interaction / queries) / draws))


def claimed(planned: Removals, outputs: np.ndarray, row_id: str, metric: str) -> np.ndarray:
    """What a claim on a removal is judged on, per chosen query [q], always *above random documents*, whose error is in
    part the same for all queries (:func:`shared_error`).

    ``removal_<k>``: the change without the row's top k minus the change without k random documents.
    ``removal_growth``: that at the row's largest k minus that at its smallest.
    """
    known = sorted(set(planned.k[[row == row_id for row in planned.row_id]].tolist()))
    wanted = [known[-1], known[0]] if metric == "removal_growth" else [int(metric.removeprefix("removal_"))]
    if not set(wanted) <= set(known) or len(set(wanted)) < len(wanted):
        raise ValueError(f"row {row_id!r} was removed with k in {known}; {metric!r} needs other k (removals.more_k).")
    changes = [loss_changes(planned, outputs, k) for k in wanted]
    above = [change[row_id] - change[RANDOM] for change in changes]
    return above[0] if len(above) == 1 else above[0] - above[1]
