"""Rows of the leaderboard: run a method, keep its scores, measure them on the bank and against provenance."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tda import attribution, bank, config, models, queries
from tda.artefacts import ArtefactError, key_of, load_arrays, save_arrays, write_table
from tda.evaluation import retrieval
from tda.evaluation.ceiling import ceiling
from tda.evaluation.intervals import lds_intervals, mean_intervals
from tda.evaluation.tables import LEADERBOARD_COLUMNS, leaderboard_row
from tda.evaluation.tailpatch import tail_patch
from tda.provenance import Stopwatch, record
from tda.task import take
from tda.testbeds import Testbed

REFERENCES = ("gradient_dot", "bm25")


def row_of(testbed: Testbed, row_id: str) -> dict:
    """The config's row of this id on this testbed."""
    found = {row["id"]: row for row in config.rows(testbed.config, testbed.name)}
    if row_id not in found:
        raise ValueError(f"no row {row_id!r} on testbed {testbed.name!r}; the config has {sorted(found)}.")
    return found[row_id]


def scores_key(testbed: Testbed, row: dict) -> str:
    return key_of([models.model_key(testbed), row["method"], row["options"], testbed.config["seed"]])


def run(testbed: Testbed, row_id: str, options: dict | None = None) -> np.ndarray:
    """Attribute all queries with a row's method; scores and cost go to ``scores/<row_id>.npz``.

    ``options`` are added to the row's own: hyper-parameters that the notebook chose on tune queries. The record holds the
    options used, ``seconds`` and ``peak_mb``.
    """
    row = row_of(testbed, row_id)
    task, asked = models.load_task(testbed), models.query_examples(testbed)
    used = {**row["options"], **(options or {})}
    with Stopwatch() as watch:
        scores = attribution.attribute(row["method"], task, testbed.train, asked, seed=testbed.config["seed"], **used)
    made = record(used, testbed.config["seed"], key=scores_key(testbed, row), method=row["method"], watch=watch)
    save_arrays(testbed.folder / "scores" / f"{row_id}.npz", {"scores": scores}, made | {"kind": "scores"})
    return scores


def load(testbed: Testbed, row_id: str) -> tuple[np.ndarray, dict]:
    """``(scores [Q, N], record)`` of a row, run first if missing. Refuses scores of another model, method or setting."""
    path = testbed.folder / "scores" / f"{row_id}.npz"
    if not path.exists():
        run(testbed, row_id)
    arrays, made = load_arrays(path, "scores", ("scores",))
    if made.get("key") != scores_key(testbed, row_of(testbed, row_id)):
        raise ArtefactError(f"{path} was made with another model or other options. Run its notebook again, or delete the file.")
    return arrays["scores"], made


def evaluate(testbed: Testbed, row_ids: list[str]) -> pd.DataFrame:
    """All metrics of some rows on the test queries, one line per query set and metric; writes ``metrics/<row_id>.csv``.

    Differences to gradient dot and BM25 are paired. Metrics: ``lds_<design>`` on the main loss and
    ``lds_<design>_<second>`` on the second; provenance (recall, reciprocal rank, average precision on stated facts;
    precision at 10 for authors); the three tail-patch forms.
    """
    wanted = list(dict.fromkeys([*row_ids, *REFERENCES]))
    loaded = {row_id: load(testbed, row_id) for row_id in wanted}
    scores = {row_id: found[0] for row_id, found in loaded.items()}
    asked = models.query_rows(testbed)
    lines: list[dict] = []
    for query_set in dict.fromkeys(row["query_set"] for row in asked):
        chosen = np.array([r["query_set"] == query_set and r["split"] == "test" for r in asked])
        clusters = models.query_clusters(testbed, chosen)
        if len(set(clusters)) < 2:
            continue
        part = {row_id: s[chosen] for row_id, s in scores.items()}
        results = _causal(testbed, part, chosen, clusters) | _provenance(testbed, part, chosen, clusters)
        if query_set == "held_out":
            results |= _tail(testbed, part, np.flatnonzero(chosen), clusters)
        for metric, (rows, extra) in results.items():
            for row_id in row_ids:
                row, made = row_of(testbed, row_id), loaded[row_id][1]
                names = {"testbed": testbed.name, "query_set": query_set, "row_id": row_id, "metric": metric}
                chosen_method = attribution.METHODS[row["method"]]
                described = {"method": row["method"], "family": chosen_method.family, "options": made["parameters"]}
                counts = {"n_queries": len(rows[row_id].per_query)} | extra
                lines.append(leaderboard_row(**names, **described, result=rows[row_id], **counts))
    frame = pd.DataFrame(lines, columns=list(LEADERBOARD_COLUMNS))
    for row_id in row_ids:
        write_table(testbed.folder / "metrics" / f"{row_id}.csv", frame[frame.row_id == row_id])
    return frame


def _level(testbed: Testbed) -> float:
    return testbed.config["statistics"]["level"]


def _causal(testbed: Testbed, scores: dict, chosen: np.ndarray, clusters: list[str]) -> dict:
    results, name = {}, queries.second_output(testbed.settings["corpus"]["kind"])
    for design in testbed.settings["designs"]:
        truth = bank.load(testbed, design)
        for suffix, losses in (("", truth.outputs), (f"_{name}", truth.outputs_second)):
            outputs = losses[:, :, chosen]
            rows = lds_intervals(scores, truth.subsets, outputs, clusters, _level(testbed), REFERENCES)
            bound = ceiling(outputs, clusters, _level(testbed)).value
            extra = {"ceiling": bound, "n_subsets": outputs.shape[0], "n_seeds": outputs.shape[1]}
            results[f"lds_{design}{suffix}"] = (rows, extra)
    return results


def _provenance(testbed: Testbed, scores: dict, chosen: np.ndarray, clusters: list[str]) -> dict:
    relevant = models.relevance(testbed)[chosen]
    if testbed.settings["corpus"]["kind"] == "people":
        measures = {f"recall_at_{k}": _recall(k) for k in testbed.settings["evaluation"]["recall_k"]}
        measures |= {"mrr": retrieval.mrr, "average_precision": retrieval.average_precision}
    else:
        measures = {"precision_at_10": lambda s, r: retrieval.precision_at_k(s, r, 10)}
    results = {}
    for metric, measure in measures.items():
        values = {row_id: measure(s, relevant) for row_id, s in scores.items()}
        results[metric] = (mean_intervals(values, clusters, _level(testbed), REFERENCES), {})
    return results


def _recall(k: int):
    return lambda scores, relevant: retrieval.recall_at_k(scores, relevant, k)


def _tail(testbed: Testbed, scores: dict, positions: np.ndarray, clusters: list[str]) -> dict:
    settings = testbed.settings["evaluation"]
    wanted = min(settings["tailpatch_queries"], len(positions))
    few = np.linspace(0, len(positions) - 1, wanted).round().astype(int)  # spread over people or works
    clusters = [clusters[i] for i in few]
    if len(set(clusters)) < 2:
        return {}
    task, asked = models.load_task(testbed), take(models.query_examples(testbed), positions[few])
    part = {row_id: s[few] for row_id, s in scores.items()}
    values = tail_patch(task, testbed.train, asked, part, settings["tailpatch_k"])
    metrics = next(iter(values.values()))
    by_metric = {m: {row_id: values[row_id][m] for row_id in values} for m in metrics}
    return {m: (mean_intervals(v, clusters, _level(testbed), REFERENCES), {}) for m, v in by_metric.items()}
