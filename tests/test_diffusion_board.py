"""Chance levels of an LDS, the group that was left out, and the effect of one image by the size of the corpus."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr

from tda.evaluation.lds import lds
from tda.studies.diffusion import board, sizes

RNG = np.random.default_rng(5)
SUBSETS = np.stack([RNG.permutation(np.arange(12) < 6) for _ in range(5)])
OUTPUTS = RNG.normal(size=(5, 2, 3))


def test_chance_deals_the_losses_out_to_the_subsets():
    scores, orders = RNG.normal(size=(3, 12)), np.array([*itertools.permutations(range(5))])
    found = board.chance_lds({"row": scores}, SUBSETS, OUTPUTS, orders)["row"]
    wanted = [
        np.mean([spearmanr(SUBSETS @ scores[q], -OUTPUTS[list(order), :, q].mean(1)).statistic for q in range(3)])
        for order in orders
    ]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert abs(found.mean()) < 1e-12 and np.isclose(found[0], lds(scores, SUBSETS, OUTPUTS).mean())


def test_queries_that_are_alike_have_a_wider_chance():
    scores, orders = RNG.normal(size=(1, 12)), board.shuffles(5, 300, 0)
    outputs = OUTPUTS[:, :, :1]
    alike = board.chance_lds({"row": scores.repeat(3, 0)}, SUBSETS, outputs.repeat(3, 2), orders)["row"]
    one = board.chance_lds({"row": scores}, SUBSETS, outputs, orders)["row"]
    np.testing.assert_allclose(alike, one)


def test_the_probability_counts_the_largest_of_all_rows():
    chance = {"wide": np.array([-2.0, 2.0, 0.0, 0.0]), "narrow": np.array([0.1, -0.1, 0.0, 0.0]), "none": np.zeros(4)}
    found = board.chance_probability({"wide": 2.0, "narrow": 0.1, "none": 0.0}, chance)
    assert found == {"wide": 3 / 5, "narrow": 3 / 5, "none": 1.0}  # each is met by its own draw and by the other's
    assert board.chance_probability({"wide": 9.0, "narrow": 0.0, "none": 0.0}, chance)["wide"] == 1 / 5


def test_one_shuffle_serves_all_and_is_seeded():
    orders = board.shuffles(6, 50, 3)
    assert (np.sort(orders, 1) == np.arange(6)).all() and (orders == board.shuffles(6, 50, 3)).all()
    assert (orders != board.shuffles(6, 50, 4)).any()


def groups_of(rise):
    """A bank whose groups are single images and whose two seeds differ in level alone."""
    q, g = rise.shape
    base = np.array([[1.0] * q, [3.0] * q])
    return SimpleNamespace(outputs=base + rise.T[:, None], base=base, subsets=~np.eye(g, dtype=bool))


def test_the_left_out_group_is_named():
    rise = np.array([[3.0, 1.0, -1.0], [0.0, 2.0, 4.0]])
    groups = groups_of(rise)
    np.testing.assert_allclose(board.rises(groups), rise)
    scores = np.array([[5.0, 4.0, 6.0], [0.0, 0.0, 1.0]])
    sums = board.group_sums(scores, groups)
    np.testing.assert_allclose(sums, scores)
    np.testing.assert_allclose(board.top_one(sums, rise), [0, 1])
    log = np.log2([2, 3, 4])
    best = 3 / log[0] + 1 / log[1]
    wanted = (3 / log[1] + 1 / log[2]) / best  # the group that helps stands first, and counts nothing
    tied = (2 * (1 / log[1] + 1 / log[2]) / 2 + 4) / (4 + 2 / log[1])
    np.testing.assert_allclose(board.gain(sums, rise), [wanted, tied])


def test_groups_that_tie_share_the_first_place():
    rise = np.array([[3.0, 1.0, 0.0]])
    assert board.top_one(np.array([[0.2, 0.2, 0.1]]), rise) == [0.5]
    assert board.top_one(np.zeros((1, 3)), rise) == [pytest.approx(1 / 3)]
    assert board.gain(np.zeros((1, 3)), -rise) == [0]


def test_parts_are_nested_and_keep_every_stratum():
    strata = ["a"] * 8 + ["b"] * 12
    small, large, whole = sizes.part_masks(strata, [0.25, 0.5, 1.0], 0)
    assert small.sum() == 5 and large.sum() == 10 and whole.all() and not (small & ~large).any()
    assert small[:8].sum() == 2 and large[8:].sum() == 6
    drawn = sizes.halves(strata, large, 30, 0)
    assert not (drawn & ~large).any() and (drawn[:, :8].sum(1) == 2).all() and (drawn[:, 8:].sum(1) == 3).all()
    assert len({half.tobytes() for half in drawn}) > 20


def part(size, effect, subsets=400, queries=30, noise=0.5):
    """A part whose images have normal effects of a known size, and two seeds with noise of their own."""
    rng = np.random.default_rng([size, 1])
    mask = np.ones(size, bool)
    drawn = sizes.halves(["a"] * size, mask, subsets, 0)
    effects = effect * rng.normal(size=(size, queries))
    losses = (drawn @ effects)[:, None] + noise * effect * size**0.5 * rng.normal(size=(subsets, 2, queries))
    return sizes.Part(mask, drawn, losses + rng.normal(size=(1, 2, queries)))


def test_the_effect_of_one_image_is_found_and_its_slope():
    parts = [part(size, 8 / size) for size in (40, 80, 160)]
    assert [sizes.effect(p) * p.size / 8 for p in parts] == pytest.approx([1, 1, 1], rel=0.05)
    found = sizes.slope(parts, 0.95)
    assert found.low < -1 < found.high and found.high - found.low < 0.2


def test_the_interval_of_a_slope_covers():
    found = [sizes.slope([part(n, 8 / n, 16, 12), part(2 * n, 4 / n, 16, 12)], 0.95) for n in range(40, 80, 2)]
    assert sum(interval.low < -1 < interval.high for interval in found) >= 17


def test_seeds_that_disagree_leave_a_hundredth_of_the_variance():
    losses = np.array([[1.0, -1.0], [-1.0, 1.0]])[:, :, None]
    found = sizes.effect(sizes.Part(np.ones(4, bool), np.ones((2, 4), bool), losses))
    assert found == pytest.approx(2 * (0.01 * 2 / 4) ** 0.5)
