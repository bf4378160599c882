"""Retrieval metrics against every order that the ties allow, on small corpora."""

from itertools import permutations

import numpy as np
import pytest

from tda.evaluation.retrieval import average_precision, lift_among, mrr, precision_at_k, recall_at_k


def brute_force(scores, relevant, k):
    """Mean of each metric over all orders of the documents that a stable descending sort could meet."""
    found = []
    for order in permutations(range(len(scores))):
        order = np.array(order)
        ranked = order[np.argsort(-scores[order], kind="stable")]
        hit = relevant[ranked]
        places = np.flatnonzero(hit) + 1
        top = hit[:k].sum()
        precisions = [hit[:p].mean() for p in places]
        found.append([top / min(k, hit.sum()), top / k, 1 / places[0], np.mean(precisions)])
    return np.mean(found, axis=0)


def measured(scores, relevant, k):
    """The four metrics of one query [N] or of many [Q, N]."""
    if scores.ndim == 1:
        return [float(values[0]) for values in measured(scores[None], relevant[None], k)]
    top = [recall_at_k(scores, relevant, k), precision_at_k(scores, relevant, k)]
    return [*top, mrr(scores, relevant), average_precision(scores, relevant)]


@pytest.mark.parametrize("seed", range(12))
def test_expected_values_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, [2, 3, 6, 1][seed % 4] + 1, 6).astype(float)
    relevant = rng.random(6) < 0.5
    relevant[rng.integers(6)] = True
    for k in (1, 3, 6):
        np.testing.assert_allclose(measured(scores, relevant, k), brute_force(scores, relevant, k), atol=1e-12)


def test_no_ties_by_hand():
    scores, relevant = np.array([5.0, 4, 3, 2, 1]), np.array([0, 1, 0, 1, 0], bool)
    assert measured(scores, relevant, 2) == pytest.approx([1 / 2, 1 / 2, 1 / 2, (1 / 2 + 2 / 4) / 2])
    assert measured(scores, relevant, 1)[0] == 0 and measured(scores, relevant, 5)[0] == 1


def test_a_constant_matrix_gets_chance_and_order_of_storage_never_counts():
    rng = np.random.default_rng(0)
    relevant = np.arange(600) < 12
    assert precision_at_k(np.zeros((1, 600)), relevant[None], 10) == pytest.approx(12 / 600)
    scores, order = np.round(rng.standard_normal(600), 1), rng.permutation(600)
    np.testing.assert_allclose(measured(scores, relevant, 10), measured(scores[order], relevant[order], 10), rtol=1e-12)
    random = np.mean([measured(rng.random(600), relevant, 10) for _ in range(3000)], axis=0)
    np.testing.assert_allclose(measured(np.zeros(600), relevant, 10), random, rtol=0.06)


def test_batches_equal_single_queries():
    rng = np.random.default_rng(1)
    scores, relevant = np.round(rng.standard_normal((8, 40)), 1), rng.random((8, 40)) < 0.2
    relevant[:, 0] = True
    for index, batch in enumerate(measured(scores, relevant, 5)):
        assert batch.shape == (8,)
        np.testing.assert_allclose(batch, [measured(s, r, 5)[index] for s, r in zip(scores, relevant, strict=True)])


def test_bad_input():
    scores, relevant = np.ones((2, 4)), np.array([[1, 0, 0, 0], [0, 0, 0, 0]], bool)
    nan = scores.copy()
    nan[1, 2] = np.nan
    for call, text in [
        (lambda: average_precision(scores, relevant), "query 1 has no relevant"),
        (lambda: recall_at_k(nan, relevant[:1].repeat(2, 0), 2), "query 1 has NaN"),
        (lambda: recall_at_k(scores, relevant, 0), "from 1 to 4"),
        (lambda: precision_at_k(scores, relevant, 5), "from 1 to 4"),
        (lambda: precision_at_k(scores, relevant, 2.0), "whole number"),
        (lambda: mrr(scores, relevant[:, :3]), "relevant"),
        (lambda: mrr(scores, relevant.astype(int)), "boolean"),
        (lambda: mrr(scores[0], relevant[0]), r"give \[Q, N\]"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()


def test_lift_among_is_chance_corrected_precision_in_the_part():
    scores = np.array([[9.0, 8, 7, 6, 5, 4], [1, 2, 3, 4, 5, 6]])
    relevant = np.array([[True, False, True, False, False, True], [False] * 5 + [True]])
    among = np.array([[False, True, True, True, True, True], [True] * 5 + [False]])
    # query 0: of documents 1-5 the two best are 1 and 2, one of them relevant, and two in five are; query 1: none there
    np.testing.assert_allclose(lift_among(scores, relevant, among, 2), [1 / 2 - 2 / 5, 0.0])
    rng = np.random.default_rng(0)
    wide, right, part = rng.random((400, 60)), rng.random((400, 60)) < 0.2, rng.random((400, 60)) < 0.5
    assert abs(lift_among(wide, right, part, 5).mean()) < 0.03, "chance is zero"
