"""Every comparison with an independent implementation passes, and turns red when our side is broken on purpose.

A comparison whose oracle is not installed is skipped, with the reason.
"""

import functools
import importlib.metadata
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from tda import attribute
from tda.attribution import trak, unroll
from tda.config import ROOT
from tda.curvature import Kronecker, layers, second_derivatives
from tda.evaluation import lds
from tda.studies import conformance
from tda.studies.conformance import comparison, curvature, faults
from tda.studies.conformance.settings import setting
from tda.task import take
from tda.tools import cache, segments

COMPARISONS = {f"{one.quantity} | {one.oracle}": one for one in conformance.comparisons()}


@functools.cache
def theirs(name):
    return COMPARISONS[name].theirs()


def row(name):
    """The row of a comparison; the oracle is asked once, however often our side is computed."""
    need(COMPARISONS[name].oracle)
    return conformance.compare(replace(COMPARISONS[name], theirs=partial(theirs, name)))


def need(oracle):
    reason = conformance.absent(oracle)
    if reason:
        print(reason)
        pytest.skip(reason)


@pytest.mark.parametrize("name", COMPARISONS)
def test_within_tolerance(name):
    found = row(name)
    assert tuple(found) == conformance.COLUMNS
    assert found["pass"] and found["max_rel_diff"] <= found["tolerance"], found
    assert found["rank_correlation"] > (0.5 if COMPARISONS[name].distance is comparison.far_end else 0.999), found


# --- broken on purpose: what each comparison must notice


def missing_transpose(patch):
    patch.setattr(Kronecker, "project", lambda self, v: self._both(v, self.bases[0], self.bases[1]))


def factor_two(patch):
    moments, matvec = second_derivatives.moments, second_derivatives.OverData.matvec
    patch.setattr(second_derivatives, "moments", lambda *known: {k: 2 * v for k, v in moments(*known).items()})
    patch.setattr(second_derivatives.OverData, "matvec", lambda self, v: 2 * matvec(self, v))


def lost_biases(patch):
    sides = layers._sides
    patch.setattr(layers, "_sides", lambda *known: {k: (a[:, :-1], g) for k, (a, g) in sides(*known).items()})


def no_residuals(patch):
    patch.setattr(trak, "residuals", lambda task, train, *_: torch.ones(len(train["labels"]), dtype=torch.float64))


def one_member(patch):
    together = trak.ensemble
    patch.setattr(trak, "ensemble", lambda tasks, *known, **options: together(tasks[:1], *known, **options))


def wrong_sign(patch):
    ranks = lds.output_ranks
    patch.setattr(lds, "output_ranks", lambda outputs: ranks(-outputs))


def no_curvature(patch):
    both = unroll._second_order
    patch.setattr(unroll, "_second_order", lambda *known: (0 * both(*known)[0], both(*known)[1]))


def no_momentum(patch):
    for name in ("_recursion", "_exponential"):
        through = getattr(segments, name)
        patch.setattr(segments, name, lambda h, rates, p, u, mu, wd, through=through: through(h, rates, p, u, 0.0, wd))


def one_fault_only(patch):
    patch.setattr(faults, "faulty_ekfac", partial(faults.faulty_ekfac, transposed=False))


BROKEN = {
    "EK-FAC scores": missing_transpose,
    "EK-FAC, mask of all tokens": missing_transpose,
    "Gauss-Newton scores": factor_two,
    "Hessian scores": factor_two,
    "gradient dot": lost_biases,
    "TracIn": lost_biases,
    "TRAK scores": no_residuals,
    "LDS of TRAK": one_member,
    "LDS of 20 queries": wrong_sign,
    "unrolling": no_curvature,
    "SOURCE": no_momentum,
    "EK-FAC with two faults": one_fault_only,
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_red_when_ours_is_broken(name, monkeypatch):
    (break_ours,) = (change for quantity, change in BROKEN.items() if name.startswith(quantity))
    break_ours(monkeypatch)
    cache.forget()  # of what was computed before the break
    try:
        assert not row(name)["pass"]
    finally:
        cache.forget()


def test_other_curvature_would_fail():
    """The tolerance is not met by K-FAC's eigenvalues, by a sampled Fisher, or by a damping that differs by a fifth."""
    task, train, queries = setting("MLP")
    known = {"unit": "absolute", "damping": curvature.DAMPING, "fisher": "empirical"}
    ours = curvature.ekfac(task, train, queries)
    for change in ({"curvature": "kfac"}, {"fisher": "sampled"}, {"damping": 1.2 * curvature.DAMPING}):
        other = attribute("influence", task, train, queries, **known | change)
        assert comparison.largest(other, ours) > 1e-2, change


# --- beyond the table: other dampings, a trained language model


@pytest.mark.parametrize("kind", ["logistic", "MLP", "CNN"])
@pytest.mark.parametrize("damping", [1e-2, 1e-4])
def test_ekfac_at_other_dampings(kind, damping):
    need("curvlinops")
    ours, theirs = (scores(*setting(kind), damping) for scores in (curvature.ekfac, curvature.ekfac_by_curvlinops))
    assert comparison.largest(ours, theirs) < 1e-3


def test_ekfac_of_a_trained_language_model(task, tiny, queries):
    need("kronfluence")
    asked = take(queries, slice(0, 8))
    ours, theirs = (scores(task, tiny.train, asked) for scores in (curvature.ekfac, curvature.ekfac_by_kronfluence))
    assert comparison.largest(ours, theirs) < 1e-3


# --- the faults


def test_without_the_faults_it_is_ours_and_with_either_it_is_not():
    task, train, queries = setting("MLP")
    ours = curvature.ekfac(task, train, queries)
    dot = attribute("gradient_dot", task, train, queries)

    def rank(a, b):
        return np.mean([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])

    right = faults.faulty_ekfac(task, train, queries, transposed=False, misaligned=False)
    np.testing.assert_allclose(right, ours, atol=1e-6 * np.abs(ours).max())
    for transposed, misaligned in ((True, False), (False, True), (True, True)):
        wrong = faults.faulty_ekfac(task, train, queries, curvature.DAMPING, transposed, misaligned)
        assert rank(wrong, ours) < 0.6 and rank(wrong, dot) > 0.8, "little more than the gradient dot product"


# --- the rows themselves


def test_compare_sees_a_difference():
    right = np.array([[1.0, -2.0], [0.5, 0.1]])
    asked = conformance.Comparison("x", "autograd", lambda: right + [[0, 0], [0, 0.01]], lambda: right)
    found = conformance.compare(asked)
    assert not found["pass"] and found["max_rel_diff"] == pytest.approx(0.005) and found["rank_correlation"] == 1
    assert conformance.compare(replace(asked, ours=lambda: right))["pass"]
    assert not conformance.compare(replace(asked, ours=lambda: right * np.nan))["pass"]
    assert conformance.compare(replace(asked, ours=lambda: 3 * right, distance=comparison.up_to_scale))["pass"]
    assert not conformance.compare(replace(asked, ours=lambda: 3 * right))["pass"]
    with pytest.raises(ValueError, match="same quantity"):
        conformance.compare(replace(asked, ours=lambda: right[0]))


def test_the_common_factor_is_the_best_one():
    """By least squares; a factor that one entry decides would make a difference there look like one everywhere."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 6, 7))
    factor = np.linalg.lstsq(theirs.reshape(-1, 1), ours.ravel(), rcond=None)[0][0]
    assert comparison.up_to_scale(ours, theirs) == pytest.approx(comparison.largest(ours, factor * theirs))
    assert comparison.up_to_scale(-3 * theirs, theirs) == pytest.approx(0, abs=1e-12), "the sign is part of it"


def test_far_end_is_the_interval_of_a_difference():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.5, 0.1, (2, 50, 8))
    assert 0.0 < comparison.far_end(ours, theirs) < 0.05
    assert comparison.far_end(ours + 0.2, theirs) == pytest.approx(0.2, abs=0.05)
    assert comparison.far_end(ours[:2], theirs[:2]) > comparison.far_end(ours, theirs), "few draws know little"


def test_what_cannot_be_compared_is_named(monkeypatch):
    found = comparison.importlib.util.find_spec
    monkeypatch.setattr(comparison.importlib.util, "find_spec", lambda name: None if name == "trak" else found(name))
    gaps = [gap for gap in conformance.missing() if gap["oracle"] == "traker"]
    assert [gap["quantity"] for gap in gaps] == [c.quantity for c in COMPARISONS.values() if c.oracle == "traker"]
    assert all("traker is not installed" in gap["reason"] and "--no-deps" in gap["reason"] for gap in gaps)


def test_every_pinned_oracle_is_asked():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "tests/requirements-oracles.txt").read_text(), re.MULTILINE))
    distributions = {conformance.ORACLES[one.oracle][0] for one in COMPARISONS.values()}
    assert distributions - {"torch"} <= set(pins) and set(conformance.ORACLES) == {
        one.oracle for one in COMPARISONS.values()
    }
    installed = {d for d in distributions - {"torch"} if not conformance.absent(named(d))}
    assert all(importlib.metadata.version(d) == pins[d] for d in installed), "make installs the pinned ones"


def named(distribution):
    return next(name for name, (known, _) in conformance.ORACLES.items() if known == distribution)
