"""What a claim is judged on: paired differences, test queries only, and the part of the corpus that it names."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

import tda.testbeds
from tda import bank, config, evidence, measures, models, retrain, scores
from tda.evaluation import removal
from tda.evaluation.ceiling import Ceiling, ceiling, seeds_needed
from tda.evaluation.intervals import (
    Interval,
    RowResult,
    lds_intervals,
    mean_interval,
    mean_intervals,
    small_sample_shortfall,
    two_way_interval,
)
from tda.studies.claims import claims_table
from tda.studies.coverage import ceiling_curve
from tda.testbeds import KINDS

LEVEL = 0.95


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    """The people testbed of the smoke profile, with nothing built."""
    settings = config.load("smoke")
    return tda.testbeds.Testbed("people", settings, settings["testbeds"]["people"], tmp_path_factory.mktemp("none"))


# --- differences are paired


def test_a_row_differs_from_its_copy_by_exactly_nothing():
    """Unpaired, the two would keep their own scatter over subsets or queries."""
    rng = np.random.default_rng(0)
    given, subsets = rng.normal(size=(8, 30)), rng.random((20, 30)) < 0.5
    outputs = -(subsets @ given.T)[:, None] + 3 * rng.normal(size=(20, 2, 8))
    rows = lds_intervals({"a": given, "copy": given.copy()}, subsets, outputs, None, LEVEL, ("copy",))
    assert rows["a"].value.high - rows["a"].value.low > 0.05
    np.testing.assert_allclose(tuple(rows["a"].difference["copy"]), 0.0, atol=1e-12)
    values = rng.normal(size=12)
    rows = mean_intervals({"a": values + 0.25, "b": values}, None, LEVEL, ("b",))
    assert rows["a"].value.high - rows["a"].value.low > 0.5
    np.testing.assert_allclose(tuple(rows["a"].difference["b"]), 0.25, atol=1e-12)


def test_the_two_way_interval_by_hand():
    """Its formula by loops, with 5 clusters of 8 queries and 12 subsets, so that no two numbers can be exchanged."""
    rng = np.random.default_rng(6)
    people, (queries, size) = np.array([0, 0, 1, 2, 2, 3, 4, 4]), (8, 12)
    pseudo = rng.normal(size=(queries, 1)) + 2 * rng.normal(size=size) + 0.5 * rng.normal(size=(queries, size))
    per_query = pseudo.mean(1)
    by_subsets = sum((pseudo[:, m].mean() - pseudo.mean()) ** 2 for m in range(size)) / (size - 1) / size
    sums = [sum(per_query[people == g] - per_query.mean()) for g in range(5)]
    by_queries = 5 / 4 * sum(total**2 for total in sums) / queries**2
    rest = pseudo - per_query[:, None] - pseudo.mean(0) + pseudo.mean()
    cells = [rest[people == g, m].sum() ** 2 for g in range(5) for m in range(size)]
    both = 5 * size / (4 * (size - 1)) * sum(cells) / (queries * size) ** 2
    variance = max(by_subsets + by_queries - both, by_subsets, by_queries)
    df = (by_subsets + by_queries) ** 2 / (by_subsets**2 / (size - 1) + by_queries**2 / 4)
    found = two_way_interval(per_query, pseudo, people.astype(str), LEVEL)
    assert (found.se, found.df) == (pytest.approx(np.sqrt(variance)), pytest.approx(df))
    half = stats.t.ppf(0.975, df) * np.sqrt(variance)
    np.testing.assert_allclose(tuple(found), (per_query.mean(), per_query.mean() - half, per_query.mean() + half))


def test_the_shortfall_widens_the_interval_on_its_own_side():
    rng = np.random.default_rng(1)
    per_query, pseudo = rng.normal(size=6), rng.normal(size=(6, 9))
    plain = two_way_interval(per_query, pseudo, None, LEVEL)
    above, below = (two_way_interval(per_query, pseudo, None, LEVEL, short) for short in (0.1, -0.1))
    np.testing.assert_allclose((above.low, above.high), (plain.low, plain.high + 0.1))
    np.testing.assert_allclose((below.low, below.high), (plain.low - 0.1, plain.high))


QUERIES = (2, 0, 3)  # places of the chosen queries among four


@pytest.fixture
def removals(bed, monkeypatch):
    """Losses of removals, drawn: two rows and two random draws, three queries, two seeds."""
    rng, rows = np.random.default_rng(2), ("a", "b")
    row_id = ["zero_removal", "random_k", "random_k", *(row for _ in QUERIES for row in rows)]
    query = np.array([-1, -1, -1, *(q for q in QUERIES for _ in rows)])
    planned = removal.Removals(np.zeros((9, 5), bool), row_id, query, np.array([0] + [4] * 8), [7, 8])
    outputs = rng.normal(size=(9, 2, 4))
    monkeypatch.setattr(scores, "load", lambda testbed, row: (None, {}))
    monkeypatch.setattr(config, "removal_rows", lambda settings, name: [{"id": row} for row in rows])
    monkeypatch.setattr(removal, "plan", lambda testbed, given: planned)
    monkeypatch.setattr(removal, "load", lambda testbed, given: outputs)
    return outputs.mean(1), row_id, query


def test_a_difference_of_removals_is_paired_query_by_query(removals, bed):
    losses, row_id, query = removals
    claim = {"id": "c", "metric": "removal_4", "row": "a", "against": "b"}
    places = {(row, q): i for i, (row, q) in enumerate(zip(row_id, query, strict=True))}
    values = np.array([losses[places["a", q], q] - losses[places["b", q], q] for q in QUERIES])
    found, wanted = evidence.interval_of(claim, bed.config, bed), mean_interval(values, level=LEVEL)
    np.testing.assert_allclose((found.value, found.low, found.high, found.df), (*wanted, 2), rtol=1e-9)
    random = losses[1:3].mean(0)
    alone = np.array([losses[places["a", q], q] - random[q] for q in QUERIES])
    found, wanted = evidence.interval_of(claim | {"against": ""}, bed.config, bed), mean_interval(alone, level=LEVEL)
    np.testing.assert_allclose((found.value, found.low, found.high), tuple(wanted), rtol=1e-9)


def test_a_claim_against_every_other_is_judged_by_the_least_difference(bed, monkeypatch):
    """To every row of another paper, but ablations and baselines that know nothing of the model."""
    paper = config.load("paper")
    claim = next(claim for claim in paper["claims"] if claim["id"] == "stride_beats_every_other")
    found = evidence.contenders(claim, SimpleNamespace(config=paper, name="people"))
    assert {"bgo_full", "ekfac_trajectory", "tfidf", "gradient_dot", "trak_seeds"} <= set(found)
    assert not {"stride", "stride_ridge", "stride_and_logra", "random", "same_entity", "trak_published"} & set(found)
    differences = {name: Interval(0.1 + i, i - 0.1, i + 0.3, df=9.0) for i, name in enumerate(found)}

    def measured(testbed, rows, query_set, references, metric):
        assert rows == ["stride"] and list(references) == found
        return {metric: ({"stride": RowResult(np.zeros(2), Interval(0, 0, 0), differences)}, {})}

    monkeypatch.setattr(measures, "on_queries", measured)
    judged = evidence.interval_of(claim, paper, SimpleNamespace(config=paper, name="people"))
    assert (judged.value, judged.low) == (0.1, pytest.approx(-0.1)) and judged.parts == differences
    assert judged.high > 0.3, "corrected for the number of rows"


# --- test queries only


def test_metrics_are_over_the_test_queries_of_one_set(tiny, monkeypatch):
    rows, relevant = models.query_rows(tiny), models.relevance(tiny)
    given = np.random.default_rng(3).normal(size=relevant.shape)
    monkeypatch.setattr(scores, "load", lambda testbed, row: (given, {}))
    for query_set in ("held_out", "generated"):
        places = [q for q, r in enumerate(rows) if (r["split"], r["query_set"]) == ("test", query_set)]
        assert len(places) < sum(row["query_set"] == query_set for row in rows), "some are tune queries"
        found, _ = measures.on_queries(tiny, ["x"], query_set, (), "mrr")["mrr"]
        best = [1 / (1 + min(np.flatnonzero(relevant[q][np.argsort(-given[q])]))) for q in places]
        np.testing.assert_allclose(found["x"].per_query, best)


def test_the_queries_of_one_person_are_not_independent(tiny):
    rows = models.query_rows(tiny)
    chosen = np.arange(len(rows)) % 3 > 0
    persons = [row["entity"] for row, keep in zip(rows, chosen, strict=True) if keep]
    assert models.query_clusters(tiny, chosen) == persons and len(set(persons)) < len(persons)
    assert KINDS["authors"].cluster({"entity": "", "query_id": "q7"}) == "q7", "a text without a label stands alone"


@pytest.mark.parametrize(("metric", "which"), [("lds_half", "outputs"), ("lds_half_answer", "outputs_second")])
def test_the_ceiling_of_a_claim_is_that_of_its_own_queries(bed, monkeypatch, metric, which):
    rng = np.random.default_rng(4)
    quality = np.linspace(0.2, 3.0, 12)  # later queries are measured better, so that the choice matters
    outputs = rng.normal(size=(16, 1, 12)) * quality + rng.normal(size=(16, 3, 12))
    truth = SimpleNamespace(
        outputs=outputs, outputs_second=outputs[:, :, ::-1], query_set=np.array(["held_out", "generated"] * 6),
        split=np.array(["tune"] * 4 + ["test"] * 8),
    )  # fmt: skip
    monkeypatch.setattr(bank, "load", lambda testbed, design: truth)
    monkeypatch.setattr(models, "query_clusters", lambda testbed, chosen: [str(q) for q in np.flatnonzero(chosen)])
    found = evidence.ceiling_of({"metric": metric, "query_set": "held_out"}, bed)
    wanted = ceiling(getattr(truth, which)[:, :, [4, 6, 8, 10]], None, LEVEL)
    assert found.n_queries == 4
    np.testing.assert_allclose((found.value, found.low, found.r1), (wanted.value, wanted.low, wanted.r1), rtol=1e-9)
    assert evidence.ceiling_of({"metric": "mrr", "query_set": "held_out"}, bed) is None


# --- the lift among documents that share few words with the query


def jaccard(one, other):
    a, b = (set(re.findall(r"\w+", text.lower())) for text in (one, other))
    return len(a & b) / len(a | b)


def test_the_low_overlap_lift_is_that_of_the_documents_of_low_overlap(monkeypatch):
    rng, words = np.random.default_rng(5), [f"w{i}" for i in range(60)]
    texts = [" ".join(rng.choice(words, rng.integers(5, 40))) for _ in range(64)]
    documents, asked = texts[:60], texts[60:]
    relevant = rng.random((4, 60)) < 0.4
    overlap = np.array([[jaccard(q, d) for d in documents] for q in asked])
    settings = {"corpus": {"kind": "authors"}}
    bed = SimpleNamespace(settings=settings, train={"text": documents}, config={"statistics": {"level": LEVEL}})
    bed.modality = KINDS["authors"]
    monkeypatch.setattr(models, "relevance", lambda testbed: relevant)
    monkeypatch.setattr(models, "query_examples", lambda testbed: {"text": asked})
    np.testing.assert_allclose(measures._common_words(bed), overlap)
    given, chosen = rng.normal(size=(4, 60)), np.array([True, True, False, True])
    found, _ = measures._provenance(bed, {"x": given[chosen]}, chosen, list("abc"), ())["low_overlap_lift_at_10"]
    wanted = []
    for q in np.flatnonzero(chosen):
        low = [i for i in range(60) if overlap[q, i] <= np.median(overlap[q])]
        best = sorted(low, key=lambda i, q=q: -given[q, i])[:10]
        wanted.append(np.mean([relevant[q, i] for i in best]) - np.mean([relevant[q, i] for i in low]))
    np.testing.assert_allclose(found["x"].per_query, wanted)


# --- a bank that is too noisy


@pytest.mark.parametrize(("low", "verdict"), [(0.19, "inconclusive"), (0.2, "supported")])
def test_the_lower_bound_of_the_ceiling_decides_whether_a_bank_will_do(low, verdict):
    claim = {"id": "c", "paper": "BGO", "claim": "x", "notebook": "10_bgo", "metric": "lds_half", "row": "a"}
    claim |= {"against": "", "direction": "greater", "margin": 0.0, "abstract": "x", "check": False}
    bound = Ceiling(0.7, low, 0.9, 0.3, 0.02, 0.6, 0.1, np.full(9, 0.3), 16, 2, 9)
    table = claims_table([claim], {"c": Interval(0.3, 0.2, 0.4, df=30.0)}, {"c": bound}, LEVEL, min_ceiling=0.2)
    assert table.verdict.tolist() == [verdict]
    assert ("bank too noisy (ceiling 0.70, lower bound 0.19)" in table.criterion[0]) == (verdict == "inconclusive")


def test_the_interval_of_a_reliability_is_widened_by_the_shortfall_of_few_subsets():
    rng = np.random.default_rng(7)
    outputs = 1.5 * rng.normal(size=(16, 1, 20)) + rng.normal(size=(16, 3, 20))
    found = ceiling(outputs, None, LEVEL)
    above, below = found.r1_high - found.r1, found.r1 - found.r1_low
    assert 0 < found.r1_low < found.r1_high < 1
    assert above - below == pytest.approx(small_sample_shortfall(found.per_query, 16).mean()) and above - below > 0.01


def test_fewer_seeds_in_a_curve_are_seeds_of_the_bank():
    """Two seeds that agree and one that is noise: of two seeds the reliability is 1 or about 0, of all three 1/3."""
    rng = np.random.default_rng(8)
    signal, noise = rng.normal(size=(2, 40, 1, 30))
    outputs = np.concatenate([signal, signal, noise], axis=1)
    curves = [ceiling_curve(outputs, [40], [2, 3], seed=seed, draws=1).set_index("n_seeds") for seed in range(12)]
    pairs = [curve.r1[2] for curve in curves]
    assert all(abs(r1 - 1) < 1e-9 or abs(r1) < 0.1 for r1 in pairs) and min(pairs) < 0.5 < max(pairs), pairs
    assert all(abs(curve.r1[3] - 1 / 3) < 0.05 and curve.measured.all() for curve in curves)


def test_the_cure_of_a_noisy_bank_starts_from_the_lower_bound():
    bank = Ceiling(0.7, 0.4, 0.9, 0.4, 0.1, 0.7, 0.1, np.full(9, 0.4), 16, 2, 9)
    assert (seeds_needed(bank.r1, 0.7), seeds_needed(0.1, 0.7)) == (2, 9)
    assert bank.cure(0.7) == "9 seeds would put the lower bound at 0.7"


# --- tail patches and banks: every number in its place


def test_tail_patches_are_of_queries_spread_over_the_set(monkeypatch):
    positions, clusters = np.array([2, 3, 5, 7, 11, 13, 17]), list("aabbccd")
    given = {"x": np.arange(14.0).reshape(7, 2), "y": -np.arange(14.0).reshape(7, 2)}
    settings = {"evaluation": {"tailpatch_queries": 4, "tailpatch_k": [1]}}
    bed = SimpleNamespace(settings=settings, train=None, config={"statistics": {"level": LEVEL}})
    monkeypatch.setattr(models, "load_task", lambda testbed: None)
    monkeypatch.setattr(models, "query_examples", lambda testbed: {"query_id": [f"q{i}" for i in range(20)]})

    def patched(task, train, asked, part, ks):
        assert asked["query_id"] == ["q2", "q5", "q11", "q17"] and ks == [1], "the 1st, 3rd, 5th and 7th"
        return {row: {"tailpatch_each_1": values[:, 0] ** 2 / 9} for row, values in part.items()}

    monkeypatch.setattr(measures, "tail_patch", patched)
    found, _ = measures._tail(bed, given, positions, clusters, ("y",))["tailpatch_each_1"]
    values = np.array([0, 4, 8, 12]) ** 2 / 9
    np.testing.assert_allclose(found["x"].per_query, values)
    np.testing.assert_allclose(tuple(found["x"].value), tuple(mean_interval(values, list("abcd"), LEVEL)))
    together = measures._tail(bed, given, positions, list("aaaaabb"), ())["tailpatch_each_1"][0]["x"].value
    np.testing.assert_allclose(tuple(together), tuple(mean_interval(values, list("aaab"), LEVEL)))
    assert measures._tail(bed, given, positions, list("aaaaaaa"), ()) == {}


def test_a_bank_keeps_losses_and_knowledge_of_subsets_and_full_runs_apart(own, monkeypatch):
    """Losses that say which model, seed and output they are of; the full runs come last and know everything."""
    plan, queries = bank.design(own, "leave_group"), len(models.query_rows(own))

    def known(testbed, wanted, how, name, progress):
        assert how == "mask" and [seed for _, seed in wanted] == plan.seeds * (len(plan.subsets) + 1)
        full = [mask.all() for mask, _ in wanted]
        losses = [np.stack([np.full(queries, i), np.full(queries, 100 + i)]) for i in range(len(wanted))]
        return [
            retrain.Retrained(loss.astype(np.float32), 1.0, 2.0, {"held_out": float(whole)})
            for loss, whole in zip(losses, full, strict=True)
        ]

    monkeypatch.setattr(bank, "retrain_all", known)
    found = bank.merge(own, "leave_group")
    m = len(plan.subsets)
    np.testing.assert_array_equal(found.outputs[:, :, 0], np.arange(2 * m).reshape(m, 2))
    np.testing.assert_array_equal(found.outputs_second[:, :, -1], 100 + np.arange(2 * m).reshape(m, 2))
    np.testing.assert_array_equal(found.base[:, 3], [2 * m, 2 * m + 1])
    assert found.record["knowledge"] == {"held_out": 0.0} and found.record["retrainings"] == 2 * m + 2
    assert (found.record["training_seconds"], found.record["flops"]) == (2 * m + 2, 2 * (2 * m + 2))
