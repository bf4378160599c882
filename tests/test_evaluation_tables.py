"""The leaderboard frame and its renderings; verdicts, Holm's rule and the claims table."""

import io
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tda.evaluation.ceiling import ceiling
from tda.evaluation.intervals import Interval, RowResult
from tda.evaluation.rates import least, rate
from tda.evaluation.tables import LEADERBOARD_COLUMNS, leaderboard_row, pivot
from tda.studies.claims import (
    CLAIM_COLUMNS,
    Criterion,
    claims_table,
    holm_levels,
    p_value,
    verdict,
)
from tda.studies.leaderboard import leaderboard, to_latex, to_markdown


def line(row_id="gradient_dot", metric="lds_half", value=0.3, half=0.05, **changes):
    result = RowResult(np.zeros(3), Interval(value, value - half, value + half), {"bm25": Interval(0.1, 0.02, 0.18)})
    given = {
        "testbed": "people",
        "query_set": "held_out",
        "row_id": row_id,
        "metric": metric,
        "method": row_id,
    }
    given |= {"family": "gradient", "options": {"b": 1, "a": 2}, "result": result, "ceiling": 0.78}
    return leaderboard_row(**given | {"n_queries": 90, "n_subsets": 64, "n_seeds": 2} | changes)


# --- leaderboard ----------------------------------------------------------------------------------


def test_row_has_the_columns_of_the_contract():
    row = line()
    assert tuple(row) == LEADERBOARD_COLUMNS == (
        "testbed", "query_set", "row_id", "metric", "method", "family", "options_json",
        "value", "ci_low", "ci_high", "ceiling", "delta_vs_gradient_dot", "delta_gd_low", "delta_gd_high",
        "delta_vs_bm25", "delta_bm25_low", "delta_bm25_high", "n_queries", "n_subsets", "n_seeds",
    )  # fmt: skip
    assert row["options_json"] == '{"a": 2, "b": 1}' and row["delta_bm25_low"] == 0.02
    assert math.isnan(row["delta_vs_gradient_dot"])
    bare = line(result=RowResult(np.zeros(3), Interval(0.5, 0.4, 0.6)), ceiling=float("nan"))
    assert bare["value"] == 0.5 and math.isnan(bare["delta_vs_bm25"])


def test_leaderboard_sorts_and_survives_csv():
    lines = [line("tfidf"), line("bm25", "mrr", ceiling=float("nan")), line("gradient_dot"), line("bm25")]
    parts = [pd.DataFrame([one]) for one in lines]
    frame = leaderboard(parts, row_order=["bm25", "tfidf", "gradient_dot"])
    assert list(zip(frame.metric, frame.row_id, strict=True)) == [
        ("lds_half", "bm25"), ("lds_half", "tfidf"), ("lds_half", "gradient_dot"), ("mrr", "bm25"),
    ]  # fmt: skip
    again = leaderboard([pd.read_csv(io.StringIO(frame.to_csv(index=False)))], ["bm25", "tfidf", "gradient_dot"])
    pd.testing.assert_frame_equal(frame, again)
    assert leaderboard(parts[::-1], ["bm25", "tfidf", "gradient_dot"]).equals(frame)


def test_bad_leaderboards():
    good = pd.DataFrame([line(), line("bm25")])
    assert len(leaderboard([good])) == 2
    for call, text in [
        (lambda: leaderboard([]), "no metric files"),
        (lambda: leaderboard([good, good]), r"repeated key .4 lines., first for .'people', 'held_out', 'gradient_dot'"),
        (lambda: leaderboard([good.assign(value="high")]), "value is not a finite number"),
        (lambda: leaderboard([good.assign(value=np.nan)]), "value is not a finite number"),
        (lambda: leaderboard([good.assign(ceiling=np.inf)]), "ceiling is not a finite number"),
        (lambda: leaderboard([good.assign(ci_low=0.9)]), "ci_low <= value"),
        (lambda: leaderboard([good.assign(testbed=None)]), "empty cell"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()


def test_pivot_and_renderings():
    lines = [line("bm25", value=0.25), line("gradient_dot"), line("bm25", "mrr", 0.9, ceiling=float("nan"))]
    frame = leaderboard([pd.DataFrame(lines)])
    cost = pd.DataFrame([{"testbed": "people", "row_id": "bm25", "attribute_seconds": 0.456,
                          "setup_seconds": 1, "peak_mb": 300, "retrainings": 0}])  # fmt: skip
    table = pivot(frame, "people", "held_out", ["lds_half", "mrr"], cost)
    assert table.row.tolist() == ["ceiling", "bm25", "gradient_dot"]
    assert table.lds_half.tolist() == ["0.78", "0.25 [0.20, 0.30]", "0.30* [0.25, 0.35]"]
    assert table.mrr.tolist() == ["-", "0.90* [0.85, 0.95]", "-"]
    assert table.attribute_seconds.tolist() == ["-", "0.5", "-"]
    markdown, latex = to_markdown(table), to_latex(table)
    assert "| gradient_dot | **0.30** [0.25, 0.35] | - |" in markdown and markdown.count("\n") == 5
    assert r"gradient\_dot & \textbf{0.30} [0.25, 0.35] & - &" in latex and latex.count(r"\\") == 4
    assert r"\textbackslash{}\^{}" in to_latex(pd.DataFrame({"a": ["\\^"]}))
    for call, text in [
        (lambda: pivot(frame, "people", "held_out", ["lds_half", "map"]), "'map'"),
        (lambda: pivot(frame, "authors", "held_out", ["lds_half"]), "authors"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low,high,direction,margin,expected",
    [
        (0.01, 0.2, "greater", 0.0, "supported"),
        (0.0, 0.2, "greater", 0.0, "inconclusive"),  # the boundary is not inside
        (-0.1, 0.2, "greater", 0.0, "inconclusive"),
        (-0.2, 0.0, "greater", 0.0, "not supported"),  # ... it is outside
        (-0.2, 0.01, "greater", 0.0, "inconclusive"),
        (0.1, 0.3, "greater", 0.2, "inconclusive"),
        (-0.3, -0.1, "less", 0.0, "supported"),
        (0.0, 0.1, "less", 0.0, "not supported"),
        (-0.04, 0.03, "parity", 0.05, "supported"),
        (-0.05, 0.03, "parity", 0.05, "inconclusive"),
        (0.05, 0.2, "parity", 0.05, "not supported"),
        (-0.2, -0.06, "parity", 0.05, "not supported"),
        (-0.1, 0.2, "parity", 0.05, "inconclusive"),
        (0.0, 0.0, "greater", 0.0, "inconclusive"),  # no width, on the boundary: no proof of failure
        (-1e-16, 2e-16, "greater", 0.0, "inconclusive"),  # ... up to rounding
        (0.02, 0.02, "parity", 0.02, "inconclusive"),
        (-0.1, -0.1, "greater", 0.0, "not supported"),
        (0.0, 0.0, "parity", 0.02, "supported"),
    ],
)
def test_verdict(low, high, direction, margin, expected):
    assert verdict((low + high) / 2, low, high, Criterion(direction, margin)) == expected


def test_p_value_agrees_with_the_verdict():
    rng = np.random.default_rng(0)
    for _ in range(400):
        value, left, right, margin = (
            rng.normal(0, 0.2),
            rng.exponential(0.1),
            rng.exponential(0.1),
            rng.uniform(0.01, 0.3),
        )
        criterion = Criterion(str(rng.choice(["greater", "less", "parity"])), margin)
        measured = Interval(value, value - left, value + right, df=float(rng.integers(1, 30)))
        decided = verdict(value, measured.low, measured.high, criterion) != "inconclusive"
        assert decided == (p_value(measured, criterion) <= 0.05)


def test_p_value_by_hand():
    normal = Interval(0.3, 0.3 - 1.959964, 0.3 + 1.959964, df=math.inf)
    assert p_value(normal, Criterion("greater")) == pytest.approx(0.7642, abs=1e-4)
    assert p_value(Interval(0.2, 0.1, 0.3, df=8), Criterion("greater", 0.1)) == pytest.approx(0.05)
    assert p_value(Interval(0.0, 0.0, 0.0, df=math.inf), Criterion("greater")) == 1
    assert p_value(Interval(0.1, 0.1, 0.1, df=math.inf), Criterion("greater")) == 0
    # The smallest alpha at which the nearer side of the region is as many standard errors away as the t quantile.
    sides = Interval(0.1, 0.1 - 0.3, 0.1 + 0.2, df=5.0)
    steps = min((0.1 + 0.4) / 0.3, (0.4 - 0.1) / 0.2) * stats.t.ppf(0.975, 5.0)
    assert p_value(sides, Criterion("parity", 0.4)) == pytest.approx(2 * stats.t.sf(steps, 5.0))


def test_a_rate_is_judged_by_its_exact_limits_at_the_corrected_level():
    """30 of 30 at level .9929: .829 and 1, not the limits at .95 scaled by t quantiles (.841)."""
    family = [claim(f"c{i}", "", metric=f"finding_{i}", margin=0.85) for i in range(7)]
    measured = {c["id"]: rate(30, 30, 0.95) if c["id"] == "c0" else Interval(0.85, 0.5, 1.2, df=9) for c in family}
    table = claims_table(family, measured, dict.fromkeys(measured))
    assert "interval level 0.9929, Holm over 7" in table.criterion[0] and table.verdict[0] == "inconclusive"
    assert (table.ci_low[0], table.ci_high[0]) == (pytest.approx((0.05 / 14) ** (1 / 30)), 1.0)
    # Its p-value is that of the binomial test, doubled: P(X >= 199 | .9 of 200).
    tail = stats.binom.sf(198, 200, 0.9)
    assert p_value(rate(199, 200, 0.95), Criterion("greater", 0.9)) == pytest.approx(2 * tail)
    assert p_value(rate(3, 100, 0.95), Criterion("greater", 0.1)) == pytest.approx(2 * stats.binom.cdf(3, 100, 0.1))
    assert p_value(rate(5, 10, 0.95), Criterion("greater", 0.5)) == 1


def test_a_check_is_judged_alone_and_costs_the_family_nothing():
    measured = {"a": (0.055, 0.005, 0.105), "b": (0.3, 0.25, 0.35)}
    family = [claim("one", "a"), claim("two", "b")]
    with_checks = judge([*family, *(claim(f"k{i}", "a", check=True) for i in range(20))], measured)
    assert with_checks.criterion[:2].tolist() == judge(family, measured).criterion.tolist()
    assert "Holm over 2" in with_checks.criterion[0] and not with_checks.check[:2].any()
    assert with_checks.check[2:].all() and (with_checks.verdict[2:] == "supported").all()
    assert with_checks.criterion[2] == "a > 0; interval level 0.95, a check, judged alone"


def test_parity_says_that_a_difference_may_be_real():
    claims = [claim(name, name, against="x", direction="parity", margin=0.02) for name in ("apart", "equal")]
    table = judge(claims, {"apart": (0.015, 0.012, 0.018), "equal": (0.001, -0.005, 0.007)})
    assert table.verdict.tolist() == ["supported"] * 2
    assert ["surely not 0, and surely below the margin" in text for text in table.criterion] == [True, False]
    assert "within +-0.02 (equivalence: less than 0.02 counts as none)" in table.criterion[1]


def test_the_least_of_many_is_judged_without_a_choice():
    parts = {"weak": Interval(0.2, 0.1, 0.3, df=20), "strong": Interval(-0.1, -0.2, 0.0, df=20)}
    found = least(parts, 0.95)
    assert (found.value, found.low) == (-0.1, pytest.approx(-0.2))
    t = stats.t.isf([0.0125, 0.025], 20)
    assert found.high == pytest.approx(-0.1 + 0.1 * t[0] / t[1]), "Bonferroni over two"
    row = claims_table([claim("c", "mine", against="every_other")], {"c": found}, {"c": None})
    assert "least of 2 differences, here to strong; high by Bonferroni" in row.criterion[0]
    assert row.verdict[0] == "inconclusive" and row.ci_low[0] == pytest.approx(-0.2)


def test_holm_by_hand():
    # Sorted: .01 against .05/4, .02 against .05/3 = .0167: stop. The others keep that level.
    np.testing.assert_allclose(
        holm_levels([0.03, 0.01, 0.04, 0.02], 0.05), 1 - np.array([3, 4, 3, 3], float) ** -1 * 0.05
    )
    # .01 <= .05/3, .02 <= .05/2, .04 <= .05: all decided.
    np.testing.assert_allclose(holm_levels([0.01, 0.02, 0.04], 0.05), [1 - 0.05 / 3, 0.975, 0.95])


# --- claims table ---------------------------------------------------------------------------------


PLAIN = {"abstract": "our question", "check": False}


def claim(name, row="gradient_dot", **changes):
    given = {"id": name, "paper": "BGO", "claim": "it works", "notebook": "10_bgo", "testbed": "people"}
    return (
        given
        | {"metric": "lds_half", "row": row, "direction": "greater", "margin": 0.0, "against": ""}
        | PLAIN
        | changes
    )


def quiet_bank(noise=0.5):
    rng = np.random.default_rng(0)
    return ceiling(rng.standard_normal((40, 1, 50)) + noise * rng.standard_normal((40, 2, 50)))


def judge(claims, measured, noisy=()):
    """The claims table from (value, low, high) per row; banks are quiet but for the claims in `noisy`."""
    of_lds = {c["id"]: c["metric"].startswith("lds_") for c in claims}
    ceilings = {name: quiet_bank(6.0 if name in noisy else 0.5) if lds else None for name, lds in of_lds.items()}
    return claims_table(claims, {c["id"]: Interval(*measured[c["row"]], df=63) for c in claims}, ceilings)


def test_claims_table_applies_holm_within_a_chapter():
    measured = {"a": (0.055, 0.005, 0.105), "b": (0.3, 0.25, 0.35), "c": (-0.2, -0.25, -0.15)}
    alone = [claim("one", "a", notebook="20_other")]
    family = [claim("two", "a"), claim("three", "b"), claim("four", "c"), claim("five", "a", margin=0.05)]
    table = judge(alone + family, measured)
    assert tuple(table.columns) == CLAIM_COLUMNS and table.id.tolist() == [
        "one",
        "two",
        "three",
        "four",
        "five",
    ]
    assert table.verdict.tolist() == [
        "supported",
        "inconclusive",
        "supported",
        "not supported",
        "inconclusive",
    ]
    assert (table.ci_low[0], table.ci_high[0]) == pytest.approx((0.005, 0.105))
    assert table.ci_high[1] - table.ci_low[1] > 0.11  # a, judged among four, at a wider interval
    assert table.criterion[0] == "a > 0; interval level 0.95, Holm over 1"
    for row in table.itertuples():  # every verdict can be read off its own line
        margin = 0.05 if row.id == "five" else 0.0
        assert row.verdict == verdict(row.value, row.ci_low, row.ci_high, Criterion("greater", margin))


def test_differences_and_parity():
    claims = [
        claim("one", "a", against="bm25"),
        claim("two", "b", against="random", margin=0.05, direction="parity", notebook="x"),
    ]
    table = judge(claims, {"a": (0.2, 0.1, 0.3), "b": (0.01, -0.01, 0.03)})
    assert table.verdict.tolist() == ["supported", "supported"]
    assert table.criterion[1].startswith("b - random within +-0.05 (equivalence")


def test_a_noisy_bank_gives_no_verdict_but_counts():
    claims = [claim("one", "a"), claim("two", "a", metric="lds_leave_group"), claim("three", "a", metric="mrr")]
    table = judge(claims, {"a": (0.3, 0.25, 0.35)}, noisy=("two",))
    assert table.verdict.tolist() == ["supported", "inconclusive", "supported"]
    assert "bank too noisy (ceiling" in table.criterion[1] and "Holm over 3" in table.criterion[0]


def test_what_a_noisy_bank_needs():
    noisy, bad = quiet_bank(2.5), quiet_bank(50.0)
    assert 0 < noisy.r1_low and "seeds would put the lower bound" in noisy.cure(0.8)
    assert bad.r1_low <= 0 and "seeds alone do not help" in bad.cure(0.2)


def test_numbers_that_are_no_interval_have_no_verdict():
    for low in (0.2, float("nan")):
        with pytest.raises(ValueError, match="order"):
            verdict(0.1, low, 0.3, Criterion("greater"))
