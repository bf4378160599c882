"""Rows of the leaderboard: run a method, keep its scores, measure them on the bank and against provenance."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
import psutil
from sklearn.feature_extraction.text import CountVectorizer

from tda import attribution, bank, config, findings, models
from tda.artefacts import (
    file_sha256,
    key_of,
    load_arrays,
    read_json,
    read_record,
    read_table,
    require,
    save_arrays,
    write_record,
    write_table,
)
from tda.evaluation import lds as lds_module
from tda.evaluation import removal, retrieval
from tda.evaluation.ceiling import Ceiling, ceiling
from tda.evaluation.claims import Criterion, Measurement
from tda.evaluation.intervals import lds_intervals, mean_interval, mean_intervals
from tda.evaluation.lds import lds
from tda.evaluation.tables import LEADERBOARD_COLUMNS, leaderboard_row
from tda.evaluation.tailpatch import tail_patch
from tda.provenance import Stopwatch, modules_used, record
from tda.task import take
from tda.testbeds import Testbed
from tda.tools.summed import unit_scale


def row_of(testbed: Testbed, row_id: str) -> dict:
    """The config's row of this id on this testbed."""
    found = {row["id"]: row for row in config.rows(testbed.config, testbed.name)}
    if row_id not in found:
        raise ValueError(f"no row {row_id!r} on testbed {testbed.name!r}; the config has {sorted(found)}.")
    return found[row_id]


def options_of(testbed: Testbed, row: dict) -> dict:
    """The options that a row runs with: its own, and those that its ``tune`` grid leaves to the tune queries."""
    return {**tuned(testbed, row)["options"], **row["options"]}


def tuned(testbed: Testbed, row: dict) -> dict:
    """What :func:`tune` chose for a row: first what its ``tune_like`` row chose, then its own grid on top of that.

    ``{"options", "trials", "seconds", "retrainings"}``; a row that takes another's choice is charged for choosing too.
    Nothing for a row without either.
    """
    chosen = {"options": {}, "trials": [], "seconds": 0.0, "retrainings": 0}
    if row["tune_like"]:
        chosen = tuned(testbed, row_of(testbed, row["tune_like"]))
    if not row["tune"]:
        return chosen
    own = tune(testbed, row, chosen["options"])
    return own | {"options": chosen["options"] | own["options"], "seconds": chosen["seconds"] + own["seconds"]}


def tune(testbed: Testbed, row: dict, taken: dict | None = None) -> dict:
    """Choose a row's tuned options by LDS (design ``half``, main loss) on the held-out **tune** queries (one in
    ``row["tune_every"]`` of them); kept on disk.

    ``row["tune"]`` maps options to candidate values. One option at a time, in the order given, each at the best
    value of those before it; ``taken`` are options that another row has chosen. Returns ``{"options", "trials",
    "seconds", "retrainings", ...}``: what was chosen, every trial, and what choosing cost, which counts as the row's
    set-up.
    """
    path = testbed.folder / "tuned" / f"{row['id']}.json"
    given = (taken or {}) | row["options"]
    every = row["tune_every"]
    parts = [models.model_key(testbed), bank.bank_key(testbed, "half"), row["method"], given, row["tune"], every]
    about = {"kind": "tuned", "testbed": testbed.name, "row": row["id"], "key": key_of([*parts, _code(row["method"])])}
    if path.exists():  # a choice of other settings, or made by other code, is made again
        found, cure = read_json(path), f"delete {path.name} and run again; it is chosen anew"
        require(isinstance(found, dict), path, "not a record of this project", cure)
        if found.get("key") == about["key"]:
            return read_record(path, "tuned", about, cure)
    chosen = tune_queries(testbed, every)
    if not len(chosen):
        raise ValueError(
            f"row {row['id']!r} is to be tuned, but no held-out query is in the tune split; raise queries.tune."
        )
    truth, task = bank.load(testbed, "half"), models.load_task(testbed)
    queries_used, seed = queries_once(testbed, "tune", every), testbed.config["seed"]
    best, trials, known = {}, [], {}
    parameters = inspect.signature(attribution.METHODS[row["method"]].function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    with Stopwatch() as watch:
        for option, values in row["tune"].items():
            for value in values:
                tried = {**given, **best, option: value}
                same = key_of({**defaults, **tried})  # the default of a later option was tried along with the first
                if same not in known:
                    known[same] = _trial(row, task, testbed.train, queries_used, seed, tried, truth, chosen)
                trials.append({**best, option: value, "lds_tune": known[same]})
            usable = [trial for trial in trials[-len(values) :] if trial["lds_tune"] is not None]
            if not usable:
                raise ValueError(f"row {row['id']!r}: every value of {option} breaks the model; tune smaller ones.")
            best[option] = max(usable, key=lambda trial: trial["lds_tune"])[option]
    cost = {"seconds": watch.seconds, "retrainings": truth.record["retrainings"]}
    write_record(path, about | {"options": best, "trials": trials, **cost})
    return read_json(path)


@lru_cache(maxsize=128)
def _code(method: str) -> str:
    """Hash of the code that a tuned choice depends on: the method's module, what it imports, and the measure."""
    own = [inspect.getsourcefile(inspect.unwrap(attribution.METHODS[method].function)), lds_module.__file__]
    return key_of([file_sha256(path) for path in (*own, *modules_used(*own))])


def _trial(row: dict, task, train, asked, seed: int, options: dict, truth, chosen: np.ndarray) -> float | None:
    """LDS of one trial, or None where the method refuses the step."""
    try:
        found = attribution.attribute(row["method"], task, train, asked, seed=seed, **options)
    except attribution.StepTooLarge as error:
        print(f"{row['id']}: {error}")
        return None
    return float(lds(found, truth.subsets, truth.outputs[:, :, chosen]).mean())


def queries_once(testbed: Testbed, which: str = "all", every: int = 1):
    """All queries, the held-out ``tune`` queries (one in ``every``), or the ``test`` queries of all sets: one object
    each, so that methods can remember what they did for it.
    """
    return _queries_once(testbed, models.model_key(testbed), which, every)


@lru_cache(maxsize=8)
def _queries_once(testbed: Testbed, key: str, which: str, every: int):
    asked = models.query_examples(testbed)
    if which == "all":
        return asked
    return take(asked, tune_queries(testbed, every) if which == "tune" else _test_queries(testbed))


def tune_queries(testbed: Testbed, every: int = 1) -> np.ndarray:
    """Positions of the held-out queries that hyper-parameters are chosen on; one in ``every``, at random (in order they
    go round the attributes of a person).
    """
    rows = models.query_rows(testbed)
    known = np.array([q for q, r in enumerate(rows) if (r["split"], r["query_set"]) == ("tune", "held_out")], int)
    if every == 1:
        return known
    rng = np.random.default_rng([testbed.config["seed"], 71, every])
    return np.sort(rng.permutation(known)[: -(-len(known) // every)])


def _test_queries(testbed: Testbed) -> np.ndarray:
    """[Q] bool: the queries, of all sets, that results are reported on."""
    return np.array([r["split"] == "test" for r in models.query_rows(testbed)])


def ensemble(testbed: Testbed, row: dict, options: dict) -> np.ndarray:
    """Scores [Q, N] of a row for all queries: of one model, or summed over the models of ``row["seeds"]`` seeds.

    Each seed's scores are scaled to unit mean magnitude per query first, so that no seed outweighs the others. Methods
    that sweep the corpus for each query are asked about the test queries only, which is where anything is read off; the
    other rows of their scores are NaN.
    """
    seeds = models.seeds_of(testbed)
    if row["seeds"] > len(seeds):
        raise ValueError(
            f"row {row['id']!r} asks for {row['seeds']} seeds; {testbed.name} trains {len(seeds)}. Raise "
            f"training.seeds."
        )
    swept, found = attribution.METHODS[row["method"]].cost == "per query", []
    for seed in seeds[: row["seeds"]]:
        task, more = models.load_task(testbed, seed), {"seed": testbed.config["seed"]} | options
        asked = queries_once(testbed, "test" if swept else "all")
        one = attribution.attribute(row["method"], task, testbed.train, asked, **more)
        found.append(one if row["seeds"] == 1 else unit_scale(one))
    total = np.sum(found, axis=0, dtype=np.float32)
    if not swept:
        return total
    test = _test_queries(testbed)
    scores = np.full((len(test), total.shape[1]), np.nan, dtype=np.float32)
    scores[test] = total
    return scores


def scores_key(testbed: Testbed, row: dict) -> str:
    used = options_of(testbed, row)
    return key_of([models.model_key(testbed), row["method"], used, row["seeds"], testbed.config["seed"]])


def run(testbed: Testbed, row_id: str) -> np.ndarray:
    """Attribute the queries with a row's method (:func:`ensemble`); scores and cost go to ``scores/<row_id>.npz``.

    The record holds the options used, ``seconds``, the memory that the run added (``added_mb``) and ``peak_mb``.
    """
    row = row_of(testbed, row_id)
    used = options_of(testbed, row)
    before = psutil.Process().memory_info().rss / 1e6
    with Stopwatch() as watch:
        scores = ensemble(testbed, row, used)
    made = record(used, testbed.config["seed"], method=row["method"], watch=watch)
    made["added_mb"] = max(0.0, watch.peak_mb - before)
    save_arrays(testbed.folder / "scores" / f"{row_id}.npz", {"scores": scores}, made | _about_scores(testbed, row))
    return scores


def _about_scores(testbed: Testbed, row: dict) -> dict:
    """What a score file says of itself. The code is no part of its key: Snakemake knows the modules behind every
    chapter and reruns it, and an edit of a comment must not cost an interactive reader an hour of scoring.
    """
    return {"kind": "scores", "testbed": testbed.name, "row": row["id"], "key": scores_key(testbed, row)}


def load(testbed: Testbed, row_id: str) -> tuple[np.ndarray, dict]:
    """``(scores [Q, N], record)`` of a row, run first if missing; NaN where :func:`ensemble` does not ask. Refuses
    scores of another model, method or setting.
    """
    path = testbed.folder / "scores" / f"{row_id}.npz"
    if not path.exists():
        run(testbed, row_id)
    row = row_of(testbed, row_id)
    cure = f"delete {path.name} and {path.name}.json and run {row['notebook']} again"
    arrays, made = load_arrays(path, "scores", ("scores",), _about_scores(testbed, row), cure)
    scores, shape = arrays["scores"], (len(models.query_rows(testbed)), len(testbed.documents))
    fits = scores.shape == shape and scores.dtype == np.float32 and np.isfinite(scores[_test_queries(testbed)]).all()
    require(fits, path, f"does not hold finite float32 scores {list(shape)} of the test queries", cure)
    return scores, made


def models_used(testbed: Testbed, row: dict, options: dict) -> int:
    """How many parameter vectors a row looks at: 0 (text only), 1, or checkpoints x seeds. Compare like with like."""
    needs = attribution.METHODS[row["method"]].needs
    if "checkpoints" in needs:
        return (options.get("checkpoints") or testbed.settings["training"]["checkpoints"]) * row["seeds"]
    return int("params" in needs or "features" in needs) * row["seeds"]


def evaluate(testbed: Testbed, row_ids: list[str]) -> pd.DataFrame:
    """All metrics of some rows on the test queries, one line per query set and metric; writes ``metrics/<row_id>.csv``.

    Differences to gradient dot and BM25 (where the testbed has that row) are paired. Metrics: ``lds_<design>`` on the
    main loss and ``lds_<design>_<second>`` on the second, if there is one (the scores stay those of the main loss);
    provenance (recall, reciprocal rank, average precision on stated facts; precision at 10 for authors and classes);
    the three tail-patch forms on held-out queries of language models.
    """
    lines: list[dict] = []
    described = {row_id: describe(testbed, row_id) for row_id in row_ids}
    here = {row["id"] for row in config.rows(testbed.config, testbed.name)}
    references = [row_id for row_id in config.REFERENCE_ROWS if row_id in here]
    for query_set in dict.fromkeys(row["query_set"] for row in models.query_rows(testbed)):
        for metric, (rows, extra) in measure(testbed, row_ids, query_set, references).items():
            for row_id in row_ids:
                names = {"testbed": testbed.name, "query_set": query_set, "row_id": row_id, "metric": metric}
                counts = {"n_queries": len(rows[row_id].per_query)} | extra
                lines.append(leaderboard_row(**names, **described[row_id], result=rows[row_id], **counts))
    frame = pd.DataFrame(lines, columns=list(LEADERBOARD_COLUMNS))
    for row_id in row_ids:
        path = testbed.folder / "metrics" / f"{row_id}.csv"
        write_table(path, frame[frame.row_id == row_id], _about_metrics(testbed, row_id))
    return frame


def _about_metrics(testbed: Testbed, row_id: str) -> dict:
    """What a table of metrics says of itself: its scores, those it is compared with, the banks, how it is measured."""
    here = [row["id"] for row in config.rows(testbed.config, testbed.name)]
    used = dict.fromkeys([row_id, *(name for name in config.REFERENCE_ROWS if name in here)])
    parts = [scores_key(testbed, row_of(testbed, name)) for name in used]
    parts += [bank.bank_key(testbed, design) for design in testbed.settings["designs"]]
    parts += [testbed.settings["evaluation"], testbed.config["statistics"]]
    return {"kind": "metrics", "testbed": testbed.name, "row": row_id, "key": key_of(parts)}


def measured(testbed: Testbed, notebook: str) -> pd.DataFrame:
    """Metrics of a chapter's rows and of those that it is compared with (:func:`tda.config.compared_rows`).

    Those of other chapters are read from ``metrics/``, where their own notebook put them, and made where they are not.
    """
    return pd.concat(_metrics(testbed, config.compared_rows(testbed.config, testbed.name, notebook)), ignore_index=True)


def all_measured(testbed: Testbed) -> list[pd.DataFrame]:
    """Metrics of every row of a testbed, made where they are missing, and those of its removals, if there are any."""
    found = _metrics(testbed, [row["id"] for row in config.rows(testbed.config, testbed.name)])
    if not testbed.settings["removals"]:
        return found
    if not (testbed.folder / "metrics" / "removal.csv").exists():
        print(f"{testbed.name}: removals are not measured yet (05_removal does it); the table is without them")
        return found
    return [*found, removal.load_table(testbed, removals(testbed))]


def _metrics(testbed: Testbed, row_ids: Sequence[str]) -> list[pd.DataFrame]:
    paths = {row_id: testbed.folder / "metrics" / f"{row_id}.csv" for row_id in row_ids}
    missing = [row_id for row_id, path in paths.items() if not path.exists()]
    if missing:
        evaluate(testbed, missing)
    frames = []
    for row_id, path in paths.items():
        cure = f"delete {path.name} and {path.name}.json and run {row_of(testbed, row_id)['notebook']} again"
        frames.append(read_table(path, "metrics", LEADERBOARD_COLUMNS, _about_metrics(testbed, row_id), cure))
    return frames


def describe(testbed: Testbed, row_id: str) -> dict:
    """A row's method, family and options as the leaderboard prints them."""
    row, made = row_of(testbed, row_id), load(testbed, row_id)[1]
    chosen = attribution.METHODS[row["method"]]
    options = made["parameters"] | {"models_used": models_used(testbed, row, made["parameters"])}
    return {"method": row["method"], "family": chosen.family, "options": options}


def measure(
    testbed: Testbed, row_ids: Sequence[str], query_set: str, references: Sequence[str], only: str = ""
) -> dict:
    """``metric -> (row id -> RowResult, counts)`` on the test queries of one set, with paired differences to
    ``references``.

    ``only``: skip the families of metrics that do not hold this metric. Empty, with a printed reason, where the set has
    test queries of fewer than two clusters (no interval exists).
    """
    asked = models.query_rows(testbed)
    chosen = np.array([row["query_set"] == query_set and row["split"] == "test" for row in asked])
    clusters = models.query_clusters(testbed, chosen)
    if len(set(clusters)) < 2:
        print(
            f"{testbed.name}, {query_set}: {len(clusters)} test queries of {len(set(clusters))} cluster; not measured"
        )
        return {}
    wanted = list(dict.fromkeys([*row_ids, *references]))
    part = {row_id: load(testbed, row_id)[0][chosen] for row_id in wanted}
    results = {}
    if not only or only.startswith("lds_"):
        results |= _causal(testbed, part, chosen, clusters, references)
    if not only.startswith(("lds_", "tailpatch_")):
        results |= _provenance(testbed, part, chosen, clusters, references)
    if query_set == "held_out" and (not only or only.startswith("tailpatch_")):
        results |= _tail(testbed, part, np.flatnonzero(chosen), clusters, references)
    return results


def measure_claim(testbed: Testbed | dict, claim: dict) -> Measurement:
    """The interval that decides a claim of the config: a row's metric, its paired difference to another row, or a
    finding of a chapter (:mod:`tda.findings`, which also says when a configuration stands for ``testbed``).
    """
    if claim["metric"].startswith("removal_"):
        return _measure_removal(testbed, claim)
    if claim["metric"].startswith("finding_"):
        return findings.measure(testbed, claim)
    against = (claim["against"],) if claim["against"] else ()
    results = measure(testbed, [claim["row"]], claim["query_set"], against, claim["metric"])
    if claim["metric"] not in results:
        raise ValueError(
            f"claim {claim['id']!r}: no metric {claim['metric']!r} on {testbed.name}; there are {sorted(results)}."
        )
    found = results[claim["metric"]][0][claim["row"]]
    interval = found.difference[against[0]] if against else found.value
    return Measurement(interval.value, interval.low, interval.high, interval.df, _level(testbed))


def claims_so_far(testbed: Testbed | dict, notebook: str) -> pd.DataFrame:
    """The measurements behind a chapter's claims on this testbed, before the correction for their number (chapter 60).

    A chapter without a testbed gives its configuration. Claims on removals are left to chapter 60, since chapter 05
    trains their models.
    """
    settings, name = (testbed.config, testbed.name) if isinstance(testbed, Testbed) else (testbed, None)
    lines = []
    for claim in settings["claims"]:
        if (claim["notebook"], claim["testbed"]) == (notebook, name) and "removal" not in claim["metric"]:
            found, region = measure_claim(testbed, claim), Criterion(claim["direction"], claim["margin"])
            numbers = {"value": found.value, "low": found.low, "high": found.high}
            lines.append({"claim": claim["claim"]} | numbers | {"true if": str(region)})
    return pd.DataFrame(lines)


def removals(testbed: Testbed) -> removal.Removals:
    """The plan of a testbed's removals, by the scores of the rows that are removed by."""
    wanted = [row["id"] for row in config.removal_rows(testbed.config, testbed.name)]
    return removal.plan(testbed, {row_id: load(testbed, row_id)[0] for row_id in wanted})


def _measure_removal(testbed: Testbed, claim: dict) -> Measurement:
    """A claim on removals: above random documents, or above another row's."""
    planned = removals(testbed)
    outputs = removal.load(testbed, planned)
    values = removal.claimed(planned, outputs, claim["row"], claim["metric"])
    if claim["against"]:
        values = values - removal.claimed(planned, outputs, claim["against"], claim["metric"])
    found = mean_interval(values, level=_level(testbed))
    return Measurement(found.value, found.low, found.high, found.df, _level(testbed))


def claim_ceiling(testbed: Testbed | dict, claim: dict) -> Ceiling | None:
    """The noise ceiling of the bank behind a claim on an LDS; ``None`` for any other metric."""
    if not isinstance(testbed, Testbed):
        return None
    for design in testbed.settings["designs"]:
        name = testbed.modality.second_output(testbed)
        if claim["metric"] in (f"lds_{design}", f"lds_{design}_{name}"):
            truth = bank.load(testbed, design)
            losses = truth.outputs if claim["metric"] == f"lds_{design}" else truth.outputs_second
            chosen = (truth.query_set == claim["query_set"]) & (truth.split == "test")
            return ceiling(losses[:, :, chosen], models.query_clusters(testbed, chosen), _level(testbed))
    return None


def _level(testbed: Testbed) -> float:
    return testbed.config["statistics"]["level"]


def _causal(testbed: Testbed, scores: dict, chosen: np.ndarray, clusters: list[str], references: Sequence[str]) -> dict:
    results, name = {}, testbed.modality.second_output(testbed)
    for design in testbed.settings["designs"]:
        truth = bank.load(testbed, design)
        both = (("", truth.outputs), (f"_{name}", truth.outputs_second))
        for suffix, losses in both if name else both[:1]:
            outputs = losses[:, :, chosen]
            rows = lds_intervals(scores, truth.subsets, outputs, clusters, _level(testbed), references)
            bound = ceiling(outputs, clusters, _level(testbed))
            extra = {"ceiling": bound.value, "n_subsets": outputs.shape[0], "n_seeds": outputs.shape[1]}
            results[f"lds_{design}{suffix}"] = (rows, extra)
    return results


def _provenance(
    testbed: Testbed, scores: dict, chosen: np.ndarray, clusters: list[str], references: Sequence[str]
) -> dict:
    relevant = models.relevance(testbed)[chosen]
    if not relevant.any(1).all():
        return {}  # a corpus without labels, or queries whose source was never trained on: nothing to find
    if testbed.settings["corpus"]["kind"] == "people":
        measures = {f"recall_at_{k}": _recall(k) for k in testbed.settings["evaluation"]["recall_k"]}
        measures |= {"mrr": retrieval.mrr, "average_precision": retrieval.average_precision}
    else:
        measures = {"precision_at_10": lambda s, r: retrieval.precision_at_k(s, r, 10)}
    if "text" in testbed.train and testbed.settings["corpus"]["kind"] != "people":
        common = _common_words(testbed)[chosen]
        measures["low_overlap_lift_at_10"] = lambda s, r: retrieval.lift_among(
            s, r, common <= np.median(common, 1)[:, None], 10
        )
    results = {}
    for metric, measure in measures.items():
        values = {row_id: measure(s, relevant) for row_id, s in scores.items()}
        results[metric] = (mean_intervals(values, clusters, _level(testbed), references), {})
    return results


def _common_words(testbed: Testbed) -> np.ndarray:
    """Share of words in common (Jaccard index of the sets of words) of every query and document, [Q, N].

    Not BM25's own score: a method must not be judged on a set that it has selected itself.
    """
    asked, documents = queries_once(testbed)["text"], testbed.train["text"]
    counter = CountVectorizer(binary=True, token_pattern=r"\w+").fit([*asked, *documents])
    a, b = (counter.transform(texts).astype(float) for texts in (asked, documents))
    both = (a @ b.T).toarray()
    return both / (np.asarray(a.sum(1)) + np.asarray(b.sum(1)).T - both)


def _recall(k: int):
    return lambda scores, relevant: retrieval.recall_at_k(scores, relevant, k)


def _tail(
    testbed: Testbed, scores: dict, positions: np.ndarray, clusters: list[str], references: Sequence[str]
) -> dict:
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
    return {m: (mean_intervals(v, clusters, _level(testbed), references), {}) for m, v in by_metric.items()}
