"""How good is a row? Its scores on the bank, against provenance and by tail patches, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer

from tda import attribution, bank, config, models, scores
from tda.artefacts import key_of, read_table, write_table
from tda.evaluation import removal, retrieval
from tda.evaluation.ceiling import ceiling, share_of_ceiling
from tda.evaluation.intervals import lds_intervals, mean_intervals
from tda.evaluation.tables import LEADERBOARD_COLUMNS, leaderboard_row
from tda.evaluation.tailpatch import tail_patch
from tda.task import take
from tda.testbeds import Testbed
from tda.tools.cache import remembered
from tda.tuning import row_of

POOLED = " (pooled)"
bound_of = remembered(size=32)(ceiling)  # one bank is the ground of many claims

RETRIEVAL = {
    "recall": retrieval.recall_at_k,
    "precision": retrieval.precision_at_k,
    "mrr": retrieval.mrr,
    "average_precision": retrieval.average_precision,
    "low_overlap_lift": retrieval.lift_among,
}


def of_chapter(testbed: Testbed, notebook: str) -> pd.DataFrame:
    """Metrics of a chapter's rows and of those that it is compared with (:func:`tda.config.compared_rows`).

    Those of other chapters are read from ``metrics/``, where their own notebook put them, and made where they are not.
    """
    return pd.concat(_kept(testbed, config.compared_rows(testbed.config, testbed.name, notebook)), ignore_index=True)


def of_testbed(testbed: Testbed) -> list[pd.DataFrame]:
    """Metrics of every row of a testbed, made where they are missing, and those of its removals, if there are any."""
    frames = _kept(testbed, [row["id"] for row in config.rows(testbed.config, testbed.name)])
    if not testbed.settings["removals"]:
        return frames
    if not (testbed.folder / "metrics" / "removal.csv").exists():
        print(f"{testbed.name}: removals are not measured yet (05_removal does it); the table is without them")
        return frames
    return [*frames, removal.load_table(testbed, removals(testbed))]


def write(testbed: Testbed, row_ids: Sequence[str]) -> pd.DataFrame:
    """All metrics of some rows on the test queries, one line per query set and metric; writes ``metrics/<row_id>.csv``.

    Differences to gradient dot and BM25 (where the testbed has that row) are paired. Metrics: ``lds_<design>`` on the
    main loss and ``lds_<design>_<second>`` on the second, if there is one (the scores stay those of the main loss);
    ``lds_<design>_pooled`` of methods that score a subset as a whole; the modality's provenance metrics; the three
    tail-patch forms on held-out queries of language models.
    """
    lines: list[dict] = []
    described = {row_id: scores.describe(testbed, row_id) for row_id in row_ids}
    for query_set in dict.fromkeys(row["query_set"] for row in models.query_rows(testbed)):
        for metric, (results, counts) in on_queries(testbed, row_ids, query_set, _references(testbed)).items():
            for row_id in (name for name in row_ids if name in results):
                names = {"testbed": testbed.name, "query_set": query_set, "row_id": row_id, "metric": metric}
                counted = {"n_queries": len(results[row_id].per_query)} | counts
                lines.append(leaderboard_row(**names, **described[row_id], result=results[row_id], **counted))
    frame = pd.DataFrame(lines, columns=list(LEADERBOARD_COLUMNS))
    for row_id in row_ids:
        path = testbed.folder / "metrics" / f"{row_id}.csv"
        write_table(path, frame[frame.row_id == row_id], _about(testbed, row_id))
    return frame


def on_queries(
    testbed: Testbed, row_ids: Sequence[str], query_set: str, references: Sequence[str], only: str = ""
) -> dict:
    """``metric -> (row id -> RowResult, counts)`` on the test queries of one set, with paired differences to
    ``references``.

    ``only``: this metric of a bank alone, or the family that holds any other. Empty, with a printed reason, where the
    set has test queries of fewer than two clusters (no interval exists).
    """
    chosen = models.which(testbed, "test", query_set)
    clusters = models.query_clusters(testbed, chosen)
    if len(set(clusters)) < 2:
        few = f"{len(clusters)} test queries of {len(set(clusters))} cluster"
        print(f"{testbed.name}, {query_set}: {few}; not measured")
        return {}
    of_rows = {row_id: scores.load(testbed, row_id)[0][chosen] for row_id in dict.fromkeys([*row_ids, *references])}
    results = {}
    if not only or only.startswith("lds_"):
        results |= _causal(testbed, of_rows, chosen, clusters, references, only)
    if not only.startswith(("lds_", "tailpatch_")):
        results |= _provenance(testbed, of_rows, chosen, clusters, references)
    if query_set == "held_out" and (not only or only.startswith("tailpatch_")):
        results |= _tail(testbed, of_rows, np.flatnonzero(chosen), clusters, references)
    return results


def removals(testbed: Testbed) -> removal.Removals:
    """The plan of a testbed's removals, by the scores of the rows that are removed by."""
    by = [row["id"] for row in config.removal_rows(testbed.config, testbed.name)]
    return removal.plan(testbed, {row_id: scores.load(testbed, row_id)[0] for row_id in by})


def level_of(testbed: Testbed) -> float:
    """The level of every interval of the config, for instance 0.95."""
    return testbed.config["statistics"]["level"]


def _references(testbed: Testbed) -> list[str]:
    here = [row["id"] for row in config.rows(testbed.config, testbed.name)]
    return [row_id for row_id in config.REFERENCE_ROWS if row_id in here]


def _about(testbed: Testbed, row_id: str) -> dict:
    """What a table of metrics says of itself: its scores, those it is compared with, the banks, how it is measured."""
    compared = dict.fromkeys([row_id, *_references(testbed)])
    parts = [scores.scores_key(testbed, row_of(testbed, name)) for name in compared]
    parts += [bank.bank_key(testbed, design) for design in testbed.settings["designs"]]
    parts += [testbed.settings["evaluation"], testbed.config["statistics"]]
    return {"kind": "metrics", "testbed": testbed.name, "row": row_id, "key": key_of(parts)}


def _kept(testbed: Testbed, row_ids: Sequence[str]) -> list[pd.DataFrame]:
    paths = {row_id: testbed.folder / "metrics" / f"{row_id}.csv" for row_id in row_ids}
    missing = [row_id for row_id, path in paths.items() if not path.exists()]
    if missing:
        write(testbed, missing)
    frames = []
    for row_id, path in paths.items():
        cure = f"delete {path.name} and {path.name}.json and run {row_of(testbed, row_id)['notebook']} again"
        frames.append(read_table(path, "metrics", LEADERBOARD_COLUMNS, _about(testbed, row_id), cure))
    return frames


def _causal(
    testbed: Testbed, scores: dict, chosen: np.ndarray, clusters: list[str], references: Sequence[str], only: str
) -> dict:
    results, second, level = {}, testbed.modality.SECOND, level_of(testbed)
    for design in testbed.settings["designs"]:
        truth = bank.load(testbed, design)
        losses_of = {f"lds_{design}": truth.outputs}
        losses_of |= {f"lds_{design}_{second}": truth.outputs_second} if second else {}
        losses_of |= {f"lds_{design}_pooled": truth.outputs}
        for name, losses in losses_of.items():
            groups = _of_groups(testbed, scores, truth.subsets) if name.endswith("_pooled") else {}
            if only not in ("", name) or (name.endswith("_pooled") and not groups):
                continue
            outputs = losses[:, :, chosen]
            bound = bound_of(outputs, clusters, level)
            counts = {"ceiling": bound.value, "n_subsets": outputs.shape[0], "n_seeds": outputs.shape[1]}
            summed = {row_id: scores[row_id] for row_id in references} if groups else scores
            intervals = lds_intervals(summed, truth.subsets, outputs, clusters, level, references, groups)
            intervals = {row_id.removesuffix(POOLED): intervals[row_id] for row_id in groups or scores}
            for row_id, found in intervals.items():
                intervals[row_id] = replace(found, share=share_of_ceiling(found, bound, clusters, level))
            results[name] = (intervals, counts)
    return results


def _of_groups(testbed: Testbed, scores: dict, subsets: np.ndarray) -> dict[str, np.ndarray]:
    """Predictions [Q, M] of the rows whose method scores a subset as a whole, under names of their own."""
    of_rows = {name: attribution.named(row_of(testbed, name)["method"]).group for name in scores}
    return {name + POOLED: group(scores[name], subsets) for name, group in of_rows.items() if group}


def _provenance(
    testbed: Testbed, scores: dict, chosen: np.ndarray, clusters: list[str], references: Sequence[str]
) -> dict:
    relevant = models.relevance(testbed)[chosen]
    if not relevant.any(1).all():
        return {}  # a corpus without labels, or queries whose source was never trained on: nothing to find
    results = {}
    for metric in testbed.modality.retrieval_measures(testbed):
        name, _, k = metric.partition("_at_")
        options = {"k": int(k)} if k else {}
        if name == "low_overlap_lift":
            common = _common_words(testbed)[chosen]
            options["among"] = common <= np.median(common, 1)[:, None]
        values = {row_id: RETRIEVAL[name](s, relevant, **options) for row_id, s in scores.items()}
        results[metric] = (mean_intervals(values, clusters, level_of(testbed), references), {})
    return results


def _common_words(testbed: Testbed) -> np.ndarray:
    """Share of words in common (Jaccard index of the sets of words) of every query and document, [Q, N].

    Not BM25's own score: a method must not be judged on a set that it has selected itself.
    """
    queries, documents = models.query_examples(testbed)["text"], testbed.train["text"]
    counter = CountVectorizer(binary=True, token_pattern=r"\w+").fit([*queries, *documents])
    a, b = (counter.transform(texts).astype(float) for texts in (queries, documents))
    both = (a @ b.T).toarray()
    return both / (np.asarray(a.sum(1)) + np.asarray(b.sum(1)).T - both)


def _tail(
    testbed: Testbed, scores: dict, positions: np.ndarray, clusters: list[str], references: Sequence[str]
) -> dict:
    settings = testbed.settings["evaluation"]
    count = min(settings["tailpatch_queries"], len(positions))
    few = np.linspace(0, len(positions) - 1, count).round().astype(int)  # spread over people or works
    clusters = [clusters[i] for i in few]
    if len(set(clusters)) < 2:
        return {}
    task, queries = models.load_task(testbed), take(models.query_examples(testbed), positions[few])
    part = {row_id: s[few] for row_id, s in scores.items()}
    values = tail_patch(task, testbed.train, queries, part, settings["tailpatch_k"])
    metrics = next(iter(values.values()))
    by_metric = {m: {row_id: values[row_id][m] for row_id in values} for m in metrics}
    return {m: (mean_intervals(v, clusters, level_of(testbed), references), {}) for m, v in by_metric.items()}
