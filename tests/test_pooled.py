"""Pooled LDS against the intervals of single banks, and findings that claims may rest on."""

import numpy as np
import pytest

import tda.testbeds
from tda import config, evidence
from tda.artefacts import ArtefactError
from tda.evaluation.intervals import Interval, lds_intervals, mean_interval
from tda.evaluation.rates import rate
from tda.studies.claims import claims_table
from tda.studies.hessians.pooled import jackknife_over_settings, pooled_lds, weighted_sum


@pytest.fixture(scope="module")
def bank():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(7, 30))
    subsets = np.stack([np.isin(np.arange(30), rng.permutation(30)[:15]) for _ in range(20)])
    outputs = -(subsets @ truth.T)[:, None, :] + rng.normal(size=(20, 3, 7))
    return [truth + rng.normal(size=truth.shape) * noise for noise in (0.5, 1.0, 2.0)], subsets, outputs


def of_row(scores, subsets, outputs):
    return lds_intervals({"row": scores}, subsets, outputs)["row"].value


def test_one_part_is_the_interval_of_a_row(bank):
    models, subsets, outputs = bank
    one = pooled_lds(models[:1], subsets, outputs)
    np.testing.assert_allclose(tuple(weighted_sum([(1.0, one)])), tuple(of_row(models[0], subsets, outputs)))


def test_a_difference_is_paired(bank):
    models, subsets, outputs = bank
    a, b = (pooled_lds([m], subsets, outputs) for m in models[:2])
    rows = lds_intervals({"a": models[0], "b": models[1]}, subsets, outputs, references=("b",))
    np.testing.assert_allclose(tuple(weighted_sum([(1.0, a), (-1.0, b)])), tuple(rows["a"].difference["b"]))
    with pytest.raises(ValueError, match="same queries and subsets"):
        weighted_sum([(1.0, a), (1.0, pooled_lds([models[0][:5]], subsets, outputs[:, :, :5]))])


def test_models_are_averaged(bank):
    models, subsets, outputs = bank
    together = weighted_sum([(1.0, pooled_lds(models, subsets, outputs))])
    apart = weighted_sum([(1 / 3, pooled_lds([m], subsets, outputs)) for m in models])
    np.testing.assert_allclose(tuple(together), tuple(apart))
    assert together.value == pytest.approx(np.mean([of_row(m, subsets, outputs).value for m in models]))


def test_settings_left_out_give_the_t_interval_of_a_mean():
    values = [1.0, 2.0, 4.0, 3.0, 7.0]
    expected = mean_interval(np.array(values))
    np.testing.assert_allclose(tuple(jackknife_over_settings(values, np.mean)), tuple(expected))
    skewed = jackknife_over_settings(values, lambda some: np.mean(some) ** 2)
    assert skewed.value == pytest.approx(3.4**2), "biased: the value stays, the interval is about it"
    assert skewed.low < skewed.value < skewed.high
    with pytest.raises(ValueError, match="at least 3"):
        jackknife_over_settings([1.0, 2.0], np.mean)


@pytest.fixture
def bed(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "figures_dir", lambda config: tmp_path)
    settings = config.load("smoke")
    return tda.testbeds.Testbed("digits_mlp", settings, settings["testbeds"]["digits_mlp"], tmp_path)


CLAIM = {"id": "a_claim", "notebook": "21_better_hessians", "metric": "finding_one", "row": "", "against": ""}


def test_a_claim_reads_the_finding_of_its_chapter(bed):
    evidence.save_findings("21_better_hessians", bed.config, bed, {"finding_one": Interval(0.5, 0.2, 0.9, 0.1, 7.0)})
    found = evidence.interval_of(CLAIM, bed.config, bed)
    assert (*found, found.df) == (0.5, 0.2, 0.9, 7.0)


def test_a_rate_comes_back_with_its_counts_and_seconds_stand_apart(bed, tmp_path):
    given = {"finding_one": rate(17, 18, 0.95, shift=-0.02), "finding_two": rate(4, 18, 0.95, lost=1.5)}
    given |= {"finding_cost_three": Interval(0.5, 0.2, 0.9, 0.1, 7.0)}
    evidence.save_findings("21_better_hessians", bed.config, bed, given)
    for name, saved in given.items():
        found = evidence.interval_of(CLAIM | {"metric": name}, bed.config, bed)
        np.testing.assert_allclose(found.limits(0.95, 0.001), saved.limits(0.95, 0.001), atol=1e-5)
    assert {path.name for path in (tmp_path / "tables").glob("*.csv")} == {
        "21_findings_digits_mlp.csv", "21_cost_digits_mlp.csv"
    }  # fmt: skip


def test_findings_that_are_missing_or_impossible(bed):
    with pytest.raises(ArtefactError, match="Run 21_better_hessians"):
        evidence.interval_of(CLAIM, bed.config, bed)
    with pytest.raises(ValueError, match="name"):
        evidence.save_findings("21_better_hessians", bed.config, bed, {"lds_half": Interval(0.5, 0.2, 0.9)})
    with pytest.raises(ValueError, match="finite"):
        evidence.save_findings("21_better_hessians", bed.config, bed, {"finding_one": Interval(0.5, float("nan"), 0.9)})
    with pytest.raises(ValueError, match="low <= value"):
        evidence.save_findings("21_better_hessians", bed.config, bed, {"finding_one": Interval(0.5, 0.6, 0.9)})
    with pytest.raises(ValueError, match="finding_one has nan degrees of freedom; give those of its interval"):
        evidence.save_findings("21_better_hessians", bed.config, bed, {"finding_one": Interval(0.5, 0.2, 0.9)})


FREE = {"id": "free", "paper": "Newton step", "claim": "One.", "notebook": "30_free", "metric": "finding_removal"}
FREE |= {"direction": "greater", "margin": 0.1, "kind": "value", "abstract": "one", "check": False}  # no testbed


def test_a_chapter_without_a_testbed(bed, tmp_path):
    settings = config.load("smoke", {"claims": [FREE, FREE | {"id": "b", "notebook": "31_free", "testbed": None}]})
    with pytest.raises(ArtefactError, match="Run 30_free again"):
        evidence.interval_of(settings["claims"][0], settings, None)
    evidence.save_findings("30_free", settings, None, {"finding_removal": Interval(0.5, 0.2, 0.9, 0.1, 7.0)})
    evidence.save_findings("30_free", bed.config, bed, {"finding_one": Interval(0.0, 0.0, 0.0, 0.0, 7.0)})
    assert (tmp_path / "tables" / "30_findings.csv").exists()
    found = evidence.interval_of(settings["claims"][0], settings, None)
    assert (*found, found.df) == (0.5, 0.2, 0.9, 7.0)
    assert evidence.before_correction("30_free", settings, None).to_dict("records") == [
        {"claim": "One.", "value": 0.5, "low": 0.2, "high": 0.9, "true if": "> 0.1"}
    ]
    assert evidence.before_correction("30_free", bed.config, bed).empty
    table = claims_table(settings["claims"][:1], {"free": found}, {"free": None})
    assert evidence.ceiling_of(settings["claims"][0], None) is None and table.verdict.tolist() == ["supported"]


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ([FREE | {"metric": "lds_half", "row": "random"}], ["claims[0].testbed: None", "finding_", "people, authors"]),
        ([FREE | {"testbed": "peple"}], ["claims[0].testbed: 'peple'", "did you mean 'people'"]),
        ([FREE | {"row": "random"}], ["claims[0].row: 'random'", "names no row"]),
        ([FREE | {"notebook": "04_first_methods"}], ["claims[0].testbed: None", "04_first_methods runs on testbeds"]),
        ([FREE, FREE | {"id": "b", "testbed": "people"}], ["claims[0].testbed: None", "30_free runs on testbeds"]),
        ([FREE, FREE | {"id": "b"}, FREE | {"id": "c", "testbed": 3}], ["claims[2].testbed: 3", "string or null"]),
    ],
)
def test_a_claim_without_a_testbed_is_refused_in_one_line(more, parts):
    with pytest.raises(config.ConfigError) as caught:
        config.load("smoke", {"claims": more})
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize("change", [{"row": "random"}, {"metric": "lds_half"}, {"kind": "parity", "margin": 0.1}])
def test_a_claim_on_a_finding_names_no_row(change):
    claim = CLAIM | {"paper": "Better Hessians", "claim": "One.", "testbed": "digits_mlp", "direction": "greater"}
    claim |= {"kind": "value"}
    assert config.load("smoke", {"claims": [claim]})["claims"][0]["row"] == ""
    with pytest.raises(config.ConfigError):
        config.load("smoke", {"claims": [claim | change]})
