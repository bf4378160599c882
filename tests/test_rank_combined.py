"""Mean ranks against counting, and the method against its parts."""

import numpy as np
import pytest

from tda.attribution import attribute
from tda.attribution.rank_combined import combine, shares_below
from tda.task import take

PARTS = ("hidden_cosine", "gradient_dot")


@pytest.fixture(scope="module")
def few(queries):
    return take(queries, slice(0, 4))


def counted(scores):
    """For every document the share of the others below it, ties half, by loops."""
    out = np.zeros(scores.shape)
    for q, line in enumerate(scores):
        for i, own in enumerate(line):
            others = np.delete(line, i)
            out[q, i] = ((others < own).sum() + 0.5 * (others == own).sum()) / len(others)
    return out


def test_ranks_are_shares_of_documents_below():
    scores = np.random.default_rng(0).integers(-3, 4, (5, 12)).astype(float)  # with ties, as the Lasso's zeros
    np.testing.assert_allclose(shares_below(scores), counted(scores))
    np.testing.assert_allclose(shares_below(scores[0]), counted(scores)[0])
    np.testing.assert_array_equal(shares_below(np.arange(5.0)), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(shares_below(np.zeros((2, 4))), 0.5)
    assert shares_below(np.array([3.0])) == 0


def test_combination_is_the_mean_of_ranks_and_knows_no_units():
    a, b = np.random.default_rng(1).normal(size=(2, 3, 20))
    np.testing.assert_allclose(combine([a, b]), (counted(a) + counted(b)) / 2)
    np.testing.assert_allclose(combine([1e6 * a - 5, np.exp(b)]), combine([a, b]))
    np.testing.assert_allclose(combine([b, a]), combine([a, b]))
    np.testing.assert_allclose(combine([a, a]), shares_below(a))
    np.testing.assert_allclose(combine([a, -a]), 0.5)
    np.testing.assert_allclose(combine([a, b, b]), (counted(a) + 2 * counted(b)) / 3)


def test_the_method_combines_the_registered_methods(task, tiny, few):
    parts = [attribute(name, task, tiny.train, few) for name in PARTS]
    wanted = (counted(parts[0]) + counted(parts[1])) / 2
    found = attribute("rank_combined", task, tiny.train, few, methods=PARTS)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert 0 <= found.min() < 0.2 and 0.8 < found.max() <= 1


def test_options_seed_and_chunk_reach_the_parts(task, tiny, few):
    methods, heavy = ("logra", "random"), {"logra": {"damping": 50.0}}
    for options in ({}, heavy):
        found = attribute("rank_combined", task, tiny.train, few, methods=methods, options=options, seed=3, chunk=5)
        parts = [attribute("logra", task, tiny.train, few, seed=3, chunk=5, **options.get("logra", {}))]
        parts.append(attribute("random", task, tiny.train, few, seed=3))
        np.testing.assert_allclose(found, combine(parts), atol=1e-6)
    plain = attribute("rank_combined", task, tiny.train, few, methods=methods, seed=3)
    assert not np.array_equal(plain, attribute("rank_combined", task, tiny.train, few, methods=methods, seed=4))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"methods": ["logra"]}, r"methods=\['logra'\]; name at least two different methods"),
        ({"methods": ["logra", "logra"]}, "at least two different methods"),
        ({"methods": ["logra", "rank_combined"]}, "other than 'rank_combined'"),
        ({"methods": ["logra", "log_ra"]}, "method 'log_ra' is unknown"),
        ({"methods": PARTS, "options": {"logra": {}}}, r"options for \['logra'\]; they belong to one of methods"),
        ({"methods": PARTS, "options": {"gradient_dot": {"rank": 3}}}, "method 'gradient_dot' has no option 'rank'"),
    ],
)
def test_bad_options_are_refused(task, tiny, few, options, message):
    with pytest.raises(ValueError, match=message):
        attribute("rank_combined", task, tiny.train, few, **options)


def test_bad_parts_are_refused():
    a = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"parts of shapes \[\(2, 3\)\]; give at least two"):
        combine([a])
    with pytest.raises(ValueError, match=r"shapes \[\(2, 3\), \(3, 2\)\]"):
        combine([a, a.T])
    with pytest.raises(ValueError, match="not finite have no rank"):
        combine([a, np.full((2, 3), np.nan)])
