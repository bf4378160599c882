"""EK-FAC, Gauss-Newton and Hessian scores against other libraries. Skipped, with the reason, where they are absent."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from tda import attribute, conformance
from tda.curvature import ekfac
from tda.task import take


def need(*modules):
    reason = conformance.missing(*modules)
    if reason:
        print(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def settings():
    mlp = conformance.digits()
    return {"logistic": conformance.digits(()), "mlp": mlp, "cnn": conformance.images(*mlp[1:])}


def check(row):
    assert set(row) == {"quantity", "oracle", "oracle_version", "max_rel_diff", "rank_correlation", "tolerance", "pass"}
    assert row["pass"] and row["max_rel_diff"] <= 1e-3 and row["rank_correlation"] > 0.9999, row


@pytest.mark.parametrize("name", ["logistic", "mlp", "cnn"])
@pytest.mark.parametrize("damping", [1e-2, 1e-4])
def test_ekfac_is_curvlinops(settings, name, damping):
    need("curvlinops")
    check(conformance.ekfac_curvlinops(*settings[name], damping))


def test_ekfac_of_a_language_model_is_kronfluence(task, tiny, queries):
    need("kronfluence")
    check(conformance.ekfac_kronfluence(task, tiny.train, take(queries, slice(0, 8))))


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
@pytest.mark.parametrize("name", ["logistic", "mlp", "cnn"])
def test_exact_solves_are_curvlinops(settings, name, curvature):
    need("curvlinops")
    check(conformance.solve_curvlinops(*settings[name], curvature))


def test_conjugate_gradients_are_curvlinops(settings):
    need("curvlinops")
    check(conformance.solve_curvlinops(*settings["mlp"], "ggn", "cg"))
    check(conformance.solve_curvlinops(*settings["mlp"], "ggn", "pcg"))


@pytest.mark.slow
def test_rows_are_the_table():
    need("kronfluence", "curvlinops", "dattri")
    rows = conformance.rows()
    assert len(rows) == 10 and len({(row["quantity"], row["oracle"]) for row in rows}) == 10
    for row in rows:
        check(row)


# --- the fault of a released library


def test_the_faults_are_what_is_wrong_in_dattri(settings):
    need("dattri")
    check(conformance.fault_dattri(*settings["logistic"]))


def test_without_the_faults_it_is_ours_and_with_either_it_is_not(settings):
    task, train, queries = settings["mlp"]
    ours = attribute("influence", task, train, queries, fisher="empirical", damping=1e-3, unit="absolute")
    dot = attribute("gradient_dot", task, train, queries)

    def rank(a, b):
        return np.mean([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])

    right = conformance.faulty_ekfac(task, train, queries, transposed=False, misaligned=False)
    np.testing.assert_allclose(right, ours, atol=1e-6 * np.abs(ours).max())
    for transposed, misaligned in ((True, False), (False, True), (True, True)):
        wrong = conformance.faulty_ekfac(task, train, queries, 1e-3, transposed, misaligned)
        assert rank(wrong, ours) < 0.6 and rank(wrong, dot) > 0.8, "little more than the gradient dot product"


# --- the comparison itself


def test_compare_sees_a_difference(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1")
    theirs = np.array([[1.0, -2.0], [0.5, 0.1]])
    row = conformance.compare("x", "y", theirs + [[0, 0], [0, 0.01]], theirs, 1e-3)
    assert not row["pass"] and row["max_rel_diff"] == pytest.approx(0.005) and row["rank_correlation"] == 1
    assert conformance.compare("x", "y", theirs, theirs, 1e-3)["pass"]
    assert "not installed: ['no_such_oracle']" in conformance.missing("no_such_oracle", "torch")


def test_other_curvature_would_fail(settings):
    """The tolerance is not met by K-FAC's eigenvalues, by a sampled Fisher, or by a damping that differs by a fifth."""
    task, train, queries = settings["mlp"]
    known = {"unit": "absolute", "damping": 1e-3, "fisher": "empirical"}
    ours = attribute("influence", task, train, queries, **known)
    for change in ({"curvature": "kfac"}, {"fisher": "sampled"}, {"damping": 1.2e-3}):
        other = attribute("influence", task, train, queries, **known | change)
        assert np.abs(other - ours).max() > 1e-2 * np.abs(ours).max()
    scaled = replace(task, params={k: 1.01 * v for k, v in task.params.items()})
    assert not torch.allclose(
        ekfac(scaled, train, "empirical").eigenvalues, ekfac(task, train, "empirical").eigenvalues
    )
