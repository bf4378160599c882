"""LDS against scipy and by hand, the ceiling on data with known reliability, coverage of the intervals."""

import math

import numpy as np
import pytest
from scipy import stats

from tda.evaluation.ceiling import ceiling, seeds_needed, with_seeds
from tda.evaluation.intervals import (
    jackknife,
    lds_intervals,
    mean_interval,
    mean_intervals,
    small_sample_shortfall,
    two_way_interval,
)
from tda.evaluation.lds import lds, output_ranks, prediction_ranks, spearman_rows
from tda.studies.coverage import ceiling_curve, naive_bootstrap, simulate_coverage


@pytest.fixture
def bank():
    rng = np.random.default_rng(5)
    subsets = rng.random((24, 30)) < 0.5
    return rng.standard_normal((7, 30)), subsets, rng.standard_normal((24, 2, 7))


def lds_interval(scores, *given, **named):
    return lds_intervals({"row": scores}, *given, **named)["row"].value


def lds_difference(a, b, *given):
    return lds_intervals({"a": a, "b": b}, *given, references=("b",))["a"].difference["b"]


def perfect(signal, outputs):
    """Mean LDS of a predictor that knows the noise-free losses [M, Q]."""
    return spearman_rows(-signal.T, -outputs.mean(1).T).mean()


def halves(rng, m, n):
    return rng.permuted(np.tile(np.arange(n) < n // 2, (m, 1)), axis=1)


# --- LDS ------------------------------------------------------------------------------------------


def test_lds_equals_scipy_per_query(bank):
    scores, subsets, outputs = bank
    expected = [stats.spearmanr(subsets @ s, -outputs[:, :, q].mean(1)).statistic for q, s in enumerate(scores)]
    np.testing.assert_allclose(lds(scores, subsets, outputs), expected, atol=1e-12)


def test_lds_equals_scipy_under_heavy_ties(bank):
    _, subsets, outputs = bank
    scores = (np.random.default_rng(0).random((7, 30)) < 0.15).astype(np.float32)  # a 0/1 rule: sums tie often
    outputs = np.round(outputs)
    expected = [stats.spearmanr(subsets @ s, -outputs[:, :, q].mean(1)).statistic for q, s in enumerate(scores)]
    np.testing.assert_allclose(lds(scores, subsets, outputs), expected, atol=1e-12)


def test_lds_by_hand():
    # Sums 3, 1, 2, 3 -> ranks 3.5, 1, 2, 3.5. Minus the mean losses: -1, -4, -3, -2 -> ranks 4, 1, 2, 3.
    # Deviations (1, -1.5, -.5, 1) and (1.5, -1.5, -.5, .5): product 4.5, lengths sqrt(4.5) and sqrt(5).
    subsets = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=bool)
    outputs = np.array([[0.5, 1.5], [4, 4], [2, 4], [2, 2]])[:, :, None]
    assert lds(np.array([[1.0, 2.0, 0.0]]), subsets, outputs) == pytest.approx(4.5 / math.sqrt(22.5))


def test_sign_a_proponent_lowers_the_loss(bank):
    scores, subsets, _ = bank
    outputs = -(subsets @ scores.T)[:, None]
    np.testing.assert_allclose(lds(scores, subsets, outputs), 1)
    np.testing.assert_allclose(lds(-scores, subsets, outputs), -1)


def test_constant_prediction_gives_zero(bank):
    scores, subsets, outputs = bank
    assert (lds(np.zeros_like(scores), subsets, outputs) == 0).all()
    equal = halves(np.random.default_rng(0), 24, 30)
    assert (lds(np.full_like(scores, 0.1), equal, outputs) == 0).all()
    assert (lds(scores, subsets, np.ones_like(outputs)) == 0).all()


@pytest.mark.parametrize("constant", [1e3, -1e7, 0.1])
def test_a_constant_on_all_scores_is_harmless_for_equal_sizes(bank, constant):
    scores, _, outputs = bank
    subsets = halves(np.random.default_rng(1), 24, 30)
    np.testing.assert_array_equal(lds(scores, subsets, outputs), lds(scores + constant, subsets, outputs))
    rule = (scores > 1).astype(float)
    np.testing.assert_array_equal(lds(rule, subsets, outputs), lds(rule + constant, subsets, outputs))


def test_tiny_differences_on_a_huge_constant_survive_the_sum(bank):
    scores, _, outputs = bank
    subsets = halves(np.random.default_rng(1), 24, 30)
    grid = np.round(scores * 1024) / 1024  # exact beside 2^42 in float64, but a plain sum of fifteen would not be
    np.testing.assert_array_equal(lds(grid, subsets, outputs), lds(grid + 2.0**42, subsets, outputs))


def test_a_constant_counts_when_sizes_differ(bank):
    scores, subsets, outputs = bank
    expected = [stats.spearmanr(subsets @ (s + 50), -outputs[:, :, q].mean(1)).statistic for q, s in enumerate(scores)]
    np.testing.assert_allclose(lds(scores + 50, subsets, outputs), expected, atol=1e-12)


def test_spearman_rows(bank):
    scores, subsets, outputs = bank
    by_hand = spearman_rows((subsets @ scores.T).T, -outputs.mean(1).T)
    np.testing.assert_allclose(by_hand, lds(scores, subsets, outputs))
    a, b = np.round(np.random.default_rng(3).standard_normal((2, 9, 12)), 1)
    expected = [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(spearman_rows(a, b), expected, atol=1e-12)


def test_bad_input_to_lds(bank):
    scores, subsets, outputs = bank
    wrong = scores.copy()
    wrong[3, 4] = np.nan
    broken = outputs.copy()
    broken[2, 1, 5] = np.inf
    same = np.tile(subsets[:1], (24, 1))
    for call, text in [
        (lambda: lds(scores[:, 1:], subsets, outputs), "same Q, N and M"),
        (lambda: lds(scores[1:], subsets, outputs), "same Q, N and M"),
        (lambda: lds(scores, subsets[1:], outputs), "same Q, N and M"),
        (lambda: lds(scores[0], subsets, outputs), "same Q, N and M"),
        (lambda: lds(wrong, subsets, outputs), "query 3"),
        (lambda: lds(scores, subsets, broken), "subset 2, seed 1, query 5"),
        (lambda: lds(scores, subsets, outputs[:, 0]), r"\[M, R, Q\]"),
        (lambda: lds(scores, subsets[:2], outputs[:2]), "at least 3"),
        (lambda: lds(scores, same, outputs), "identical"),
        (lambda: lds(scores, subsets.astype(int), outputs), "boolean"),
        (lambda: spearman_rows(scores, scores[:2]), "shapes"),
        (lambda: spearman_rows(wrong, scores), "NaN"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()


# --- ceiling --------------------------------------------------------------------------------------


def noisy_bank(rng, m, r, q, noise, seed_effect=3.0):
    """Signal and noise of known size; seed r shifts a query's loss by the same amount in every subset."""
    signal = rng.standard_normal((m, q))
    return signal, signal[:, None] + noise * rng.standard_normal((m, r, q)) + seed_effect * rng.standard_normal((r, q))


@pytest.mark.parametrize("noise,seeds", [(0.5, 2), (1.0, 2), (1.0, 4), (2.0, 3)])
def test_a_perfect_predictor_reaches_the_ceiling(noise, seeds):
    signal, outputs = noisy_bank(np.random.default_rng(7), 300, seeds, 150, noise)
    assert perfect(signal, outputs) == pytest.approx(ceiling(outputs).value, abs=0.02)


def test_a_perfect_predictor_reaches_the_ceiling_at_the_paper_size():
    found = []
    for index in range(10):
        signal, outputs = noisy_bank(np.random.default_rng(index), 64, 2, 120, 1.0)
        found.append(perfect(signal, outputs) - ceiling(outputs).value)
    assert abs(np.mean(found)) < 0.02


def test_spearman_brown_holds_for_rank_correlations():
    _, outputs = noisy_bank(np.random.default_rng(2), 400, 8, 100, 1.2)
    r1 = ceiling(outputs[:, :2]).r1
    halves_agree = spearman_rows(outputs[:, :4].mean(1).T, outputs[:, 4:].mean(1).T).mean()
    assert halves_agree == pytest.approx(4 * r1 / (1 + 3 * r1), abs=0.02)


def test_the_ceiling_ignores_what_a_seed_does_to_all_subsets():
    _, outputs = noisy_bank(np.random.default_rng(1), 20, 3, 30, 1.0, seed_effect=0)
    shift = np.random.default_rng(2).standard_normal((1, 3, 30)) * 100
    assert ceiling(outputs).r1 == pytest.approx(ceiling(outputs + shift).r1)


def test_ceiling_of_pure_noise_is_zero_and_of_no_noise_one():
    rng = np.random.default_rng(0)
    noise = ceiling(rng.standard_normal((64, 2, 100)))
    assert noise.low == 0 and noise.high < 0.4 and noise.agreement.low < 0 < noise.agreement.high
    signal, outputs = noisy_bank(rng, 20, 3, 20, 0.0)
    perfect = ceiling(outputs)
    assert (perfect.value, perfect.low, perfect.high) == pytest.approx((1, 1, 1))
    inverted = ceiling(np.stack([signal, -signal], axis=1))
    assert inverted.value == 0 and inverted.r1 == pytest.approx(-1)


def test_ceiling_counts_pairs_and_queries():
    _, outputs = noisy_bank(np.random.default_rng(3), 16, 3, 12, 0.8)
    pairs = [spearman_rows(outputs[:, a].T, outputs[:, b].T) for a, b in [(0, 1), (0, 2), (1, 2)]]
    one_two = [((0,), (1, 2)), ((1,), (0, 2)), ((2,), (0, 1))]
    parts = [[outputs[:, list(part)].mean(1).T for part in pair] for pair in one_two]
    found = ceiling(outputs)
    assert found.r1 == pytest.approx(np.mean(pairs))
    np.testing.assert_allclose(found.per_query, np.mean([spearman_rows(*pair) for pair in parts], axis=0))
    assert found.low < found.value < found.high <= 1
    assert (found.n_subsets, found.n_seeds, found.n_queries) == (16, 3, 12)


def test_ceiling_interval_covers():
    true = 6 / math.pi * math.asin(0.5 / 2)  # Spearman of two normals that correlate 1 / (1 + 1)
    inside = 0
    for index in range(100):
        _, outputs = noisy_bank(np.random.default_rng(index), 24, 2, 40, 1.0)
        found = ceiling(outputs)
        inside += found.agreement.low <= true <= found.agreement.high
    assert inside >= 89  # 95 expected, standard deviation 2.2


def test_spread_of_reliability_between_queries():
    rng = np.random.default_rng(4)
    _, even = noisy_bank(rng, 64, 2, 300, 1.0)
    _, uneven = noisy_bank(rng, 64, 2, 300, np.where(np.arange(300) % 2, 0.4, 2.0))
    assert ceiling(even).spread < 0.05
    assert ceiling(uneven).spread == pytest.approx(0.32, abs=0.05)


def test_seeds_needed():
    assert with_seeds(math.sqrt(0.5), 2, 2) == pytest.approx(math.sqrt(0.5))
    assert with_seeds(math.sqrt(1 / 3), 1, 2) == pytest.approx(math.sqrt(0.5))  # reliability 2 r1 / (1 + r1)
    assert seeds_needed(math.sqrt(1 / 3), 1, math.sqrt(0.5)) == 2  # exactly at the target
    assert seeds_needed(0.95, 2, 0.5) == seeds_needed(1.0, 2, 0.5) == 1
    assert seeds_needed(0.0, 2, 0.5) == math.inf and (with_seeds(0.0, 2, 9), with_seeds(1.0, 2, 9)) == (0, 1)
    for value in (0.2, 0.5, 0.8):
        n = seeds_needed(value, 3, 0.7)
        assert with_seeds(value, 3, n) >= 0.7 and (n == 1 or with_seeds(value, 3, n - 1) < 0.7)
    for value, seeds, target in [(0.5, 2, 1.0), (0.5, 2, 0.0), (1.5, 2, 0.5), (float("nan"), 2, 0.5), (0.5, 0, 0.5)]:
        with pytest.raises(ValueError):
            seeds_needed(value, seeds, target)


def test_ceiling_curve():
    _, outputs = noisy_bank(np.random.default_rng(6), 32, 3, 40, 1.0)
    curve = ceiling_curve(outputs, [8, 32], [1, 2, 3, 5], seed=1, draws=8)
    assert curve.equals(ceiling_curve(outputs, [8, 32], [1, 2, 3, 5], seed=1, draws=8))
    assert curve.measured.tolist() == [False, True, True, False] * 2
    whole = curve[(curve.n_subsets == 32) & (curve.n_seeds == 3)].iloc[0]
    assert whole.ceiling == pytest.approx(ceiling(outputs).value) and whole.draws == 1
    few, many = (curve[(curve.n_subsets == m) & (curve.n_seeds == 3)].iloc[0] for m in (8, 32))
    assert few.width > 1.4 * many.width
    assert curve[curve.n_subsets == 32].ceiling.is_monotonic_increasing


def test_bad_input_to_ceiling():
    outputs = np.random.default_rng(0).standard_normal((8, 2, 5))
    two = ceiling(outputs[:2])
    assert (two.low, two.high) == (0, 1)
    for call, text in [
        (lambda: ceiling(outputs[:, :1]), "at least 2"),
        (lambda: ceiling(outputs[:1]), "at least 2"),
        (lambda: ceiling(outputs[:, 0]), r"\[M, R, Q\]"),
        (lambda: ceiling(np.where(outputs > 1, np.nan, outputs)), "NaN"),
        (lambda: ceiling(outputs[:, :, :1]), "at least 2 clusters"),
        (lambda: ceiling_curve(outputs, [9], [2]), "3 to 8"),
        (lambda: ceiling_curve(outputs, [4], [0]), "at least 1"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()


# --- intervals ------------------------------------------------------------------------------------


def test_pseudo_values_equal_leaving_out_by_hand(bank):
    scores, subsets, outputs = bank
    scores = np.round(scores)  # with ties
    full, pseudo = jackknife({"x": prediction_ranks(scores, subsets, outputs)}, output_ranks(outputs))["x"]
    for j in (0, 11, 23):
        keep = np.arange(24) != j
        without = lds(scores, subsets[keep], outputs[keep])
        np.testing.assert_allclose(pseudo[:, j], 24 * full - 23 * without, atol=1e-9)


def test_small_sample_shortfall():
    assert small_sample_shortfall(np.array([0.0, 1.0, -1.0]), 16) == pytest.approx([0, 0, 0], abs=1e-6)
    rng = np.random.default_rng(0)
    x, e = rng.standard_normal((2, 20_000, 16))
    true = 6 / math.pi * math.asin(0.85 / 2)
    found = true - spearman_rows(x, 0.85 * x + math.sqrt(1 - 0.85**2) * e).mean()
    assert found == pytest.approx(small_sample_shortfall(true, 16), abs=0.003) and found > 0.03


def test_chunks_change_nothing(bank, monkeypatch):
    scores, subsets, outputs = bank
    whole = lds_interval(scores, subsets, outputs)
    monkeypatch.setattr("tda.evaluation.intervals.CHUNK", 2 * 24**2)
    assert lds_interval(scores, subsets, outputs) == whole


def test_batched_rows_equal_single_calls(bank):
    scores, subsets, outputs = bank
    other = scores + np.random.default_rng(8).standard_normal(scores.shape)
    clusters = ["a", "a", "b", "b", "c", "c", "d"]
    rows = lds_intervals({"x": scores, "y": other}, subsets, outputs, clusters, 0.9, references=("y",))
    assert rows["x"].value == lds_interval(scores, subsets, outputs, clusters, 0.9)
    assert rows["x"].difference["y"] == lds_difference(scores, other, subsets, outputs, clusters, 0.9)
    assert tuple(rows["y"].difference["y"]) == (0, 0, 0)
    np.testing.assert_allclose(rows["x"].per_query, lds(scores, subsets, outputs))
    predicted = lds_intervals({}, subsets, outputs, clusters, 0.9, predictions={"x": scores @ subsets.T})["x"]
    assert tuple(predicted.value) == pytest.approx(tuple(rows["x"].value))
    for bad in (scores, np.full((7, 24), np.nan)):
        with pytest.raises(ValueError, match="given predictions"):
            lds_intervals({}, subsets, outputs, predictions={"x": bad})


def test_intervals_hold_their_value_and_answer_to_level(bank):
    scores, subsets, outputs = bank
    narrow, wide = (lds_interval(scores, subsets, outputs, level=level) for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.value == wide.value < narrow.high < wide.high
    zero = lds_interval(np.zeros_like(scores), subsets, outputs)
    assert tuple(zero) == (0, 0, 0)


def test_mean_interval_is_the_t_interval_and_respects_clusters():
    values = np.random.default_rng(0).standard_normal(20)
    expected = stats.t.interval(0.95, 19, values.mean(), stats.sem(values))
    assert tuple(mean_interval(values))[1:] == pytest.approx(expected)
    copies = mean_interval(np.repeat(values, 5), np.repeat(np.arange(20), 5))
    assert tuple(copies) == pytest.approx(tuple(mean_interval(values)))
    rows = mean_intervals({"a": values, "b": values**2}, references=("b",))
    assert rows["a"].difference["b"] == mean_interval(values - values**2)


def test_lds_interval_covers_and_the_naive_bootstrap_does_not():
    table = simulate_coverage((16,), (34,), (0.95,), replicates=60, resamples=100, noises=(0.35,), seed=3)
    found = table.set_index(["quantity", "method"])
    assert found.coverage["lds", "jackknife"] >= 0.88  # 0.95 minus 2.5 binomial standard deviations
    assert found.coverage["difference", "jackknife"] >= 0.88
    assert found.coverage["lds", "naive"] < 0.7
    assert found.width["lds", "jackknife"] < 1.15 * found.width["lds", "naive"]


def test_coverage_at_the_paper_size_and_not_needlessly_wide():
    table = simulate_coverage((64,), (34,), (0.1, 0.75), ("jackknife",), replicates=60, seed=4)
    assert (table.coverage >= 0.88).all() and table.coverage.mean() < 0.995
    assert (table.width < 0.13).all()


@pytest.mark.parametrize("query,subset,both", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (2, 1, 9)])
def test_two_way_variance_of_known_parts(query, subset, both):
    rng = np.random.default_rng(1)
    rows, columns = (
        stats.zscore(rng.standard_normal((300, 1))),
        stats.zscore(rng.standard_normal((1, 200)), axis=1),
    )
    pseudo = query * rows + subset * columns + both * rng.standard_normal((300, 200))
    expected = query**2 / 300 + subset**2 / 200 + both**2 / (300 * 200)
    assert two_way_interval(pseudo.mean(axis=1), pseudo).se ** 2 == pytest.approx(expected, rel=0.1)


def test_copies_in_one_cluster_add_nothing(bank):
    scores, subsets, outputs = bank
    copies, labels = np.repeat(outputs, 5, axis=2), np.repeat(np.arange(7), 5)
    clustered = lds_interval(np.repeat(scores, 5, axis=0), subsets, copies, labels)
    assert tuple(clustered) == pytest.approx(tuple(lds_interval(scores, subsets, outputs)))
    assert clustered.se > lds_interval(np.repeat(scores, 5, axis=0), subsets, copies).se


def test_naive_bootstrap_is_seeded(bank):
    assert naive_bootstrap(*bank, resamples=70) == naive_bootstrap(*bank, resamples=70)


def test_bad_input_to_intervals(bank):
    scores, subsets, outputs = bank
    for call, text in [
        (lambda: lds_interval(scores, subsets, outputs, clusters=[1, 2]), "2 cluster labels for 7"),
        (lambda: lds_interval(scores, subsets, outputs, clusters=[1] * 7), "at least 2 clusters"),
        (lambda: lds_interval(scores, subsets, outputs, level=95), "between 0 and 1"),
        (lambda: lds_intervals({"a": scores}, subsets, outputs, references=["b"]), "'b'"),
        (lambda: mean_interval([1.0, float("nan")]), "finite"),
        (lambda: mean_interval([1.0]), "at least 2 clusters"),
        (lambda: mean_interval([]), "finite"),
        (lambda: mean_intervals({"a": [1.0, 2.0]}, references=["b"]), "'b'"),
        (lambda: mean_intervals({"a": [1.0, 2.0], "b": [1.0]}), "at least 2 clusters"),
        (lambda: simulate_coverage(methods=("bca",)), "bca"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()
