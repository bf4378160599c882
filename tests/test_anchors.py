"""Ours beside the published numbers: the verdict follows the interval."""

from dataclasses import replace

import numpy as np
import pytest

from tda.evaluation import anchors
from tda.studies import published
from tda.testbeds.digits import pixels


@pytest.fixture(scope="module")
def toy():
    """Five queries, eight examples, forty subsets; the truth is additive in ``effects``."""
    rng = np.random.default_rng(0)
    effects, subsets = rng.normal(size=(5, 8)), rng.random((40, 8)) < 0.5
    losses = -(subsets @ effects.T) + 0.3 * rng.normal(size=(40, 5))
    return effects, anchors.Anchor(None, {}, {}, {"half": subsets}, {"half": losses[:, None, :]})


def test_verdicts(toy):
    effects, anchor = toy
    found = published.compare(
        anchor, {"a": effects, "b": effects, "c": effects}, {"a": (0.5,), "b": (1.0,), "c": (0.97,)}
    )
    assert found.verdict.tolist()[0] == "beaten" and found.verdict.tolist()[1] == "missed"
    low, high = found.low[2], found.high[2]
    middle = published.compare(anchor, {"c": effects}, {"c": ((low + high) / 2,)})
    assert middle.verdict.tolist() == ["met"] and middle.theirs[0] == (low + high) / 2
    assert found.ours[0] == found.ours[1] and found.design.tolist() == ["half"] * 3
    against = published.compare(anchor, {"a": -effects}, {"a": (0.5,)})
    assert against.ours[0] == pytest.approx(-found.ours[0])


def test_a_method_without_a_number_is_refused(toy):
    with pytest.raises(ValueError, match=r"no published number for \['magic'\]; there are \['a'\]"):
        published.compare(toy[1], {"magic": toy[0]}, {"a": (0.5,)})


def test_the_setting_is_deterministic_and_small_on_demand(monkeypatch):
    monkeypatch.setattr(anchors, "RECIPE", replace(anchors.RECIPE, epochs=6))
    first, second = (anchors.load("logreg", count=4) for _ in range(2))
    assert first.subsets["half"].shape == (4, 200) and (first.subsets["half"].sum(1) == 100).all()
    assert (first.subsets["leave_5"].sum(1) == 190).all()
    np.testing.assert_array_equal(first.outputs["half"], second.outputs["half"])
    assert set(published.PUBLISHED["logreg"]) == set(published.PUBLISHED["mlp"])


def test_queries_are_images_that_the_model_was_not_trained_on(monkeypatch):
    monkeypatch.setattr(anchors, "RECIPE", replace(anchors.RECIPE, epochs=6))
    known, (images, labels) = anchors.load("logreg", designs=()), pixels()
    order = np.random.RandomState(0).permutation(len(images))
    for examples, part in ((known.train, order[:200]), (known.queries, order[200:220])):
        np.testing.assert_array_equal(examples["inputs"].numpy(), images[part])
        assert examples["labels"].tolist() == labels[part].tolist() == [int(label) for label in examples["entity"]]
