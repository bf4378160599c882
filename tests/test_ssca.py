"""Chapter 52: scenes, regions, the set function and its searches, copies, joint training."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tda.recipe import Recipe
from tda.studies.ssca import augment, experiment, lima, nets, scenes
from tda.studies.ssca.experiment import GRID, Sizes, Study
from tda.studies.ssca.regions import Grid, first, hide, some_part_whole

QUICK = Recipe(epochs=3, batch=32, lr=0.004, weight_decay=0.01)
SMALL = Sizes(train=96, test=48, searched=12, base=replace(QUICK, epochs=30), joint=QUICK, width=8)


@pytest.fixture(scope="module")
def study():
    return Study(3, SMALL)


def rng(seed=0):
    return np.random.default_rng(seed)


# --- scenes


def test_a_scene_is_its_background_with_the_parts_of_its_class():
    drawn, glyphs = scenes.draw(60, rng()), scenes.glyphs()
    assert drawn.pixels.shape == (60, 3, 16, 16) and 0 <= drawn.pixels.min() and drawn.pixels.max() <= 1
    assert drawn.labels.bincount().tolist() == [10] * 6
    for label, parts in zip(drawn.labels, drawn.parts.numpy(), strict=True):
        for p, part in enumerate(parts):
            assert part.sum() == 8  # half of a glyph's pixels
            rows, columns = np.nonzero(part)
            windows = [(r, c) for r in range(13) for c in range(13) if r <= rows.min() and c <= columns.min()]
            assert any(np.array_equal(part[r : r + 4, c : c + 4], glyphs[label, p]) for r, c in windows)
    together = glyphs.reshape(24, 16)
    assert len(np.unique(together, axis=0)) == 24, "each part alone tells the class"


@pytest.mark.parametrize("agreement", [0.0, 0.75, 1.0])
def test_so_many_backgrounds_are_those_of_the_class(agreement):
    drawn = scenes.draw(3000, rng(), agreement)
    assert float((drawn.background == drawn.labels).float().mean()) == pytest.approx(agreement, abs=0.03)


def test_sets_change_one_thing_each():
    made = scenes.sets(120, rng(), 0.75)
    assert tuple(made) == scenes.SETS
    assert (made["background"].background != made["background"].labels).all()
    assert (made["occlusion"].parts.any(-1).any(-1).sum(1) == 2).all()
    light, dark = (
        made[name].pixels[made[name].parts.any(1)[:, None].expand(-1, 3, -1, -1)] for name in ("same", "style")
    )
    assert light.mean() > dark.mean() + 0.1
    for name in ("noise", "blur"):
        assert torch.equal(made[name].parts, made["same"].parts) and not torch.equal(
            made[name].pixels, made["same"].pixels
        )
    flat = made["same"].pixels.mean((-2, -1))
    torch.testing.assert_close(made["blur"].pixels.mean((-2, -1)), flat, atol=0.02, rtol=0)
    spread = (made["noise"].pixels - made["same"].pixels).std()
    assert float(spread) == pytest.approx(0.1, abs=0.01)


# --- regions


def test_regions_are_the_squares_of_the_grid():
    grid = Grid(6, 2)
    chosen = torch.zeros(9, dtype=torch.bool)
    chosen[[0, 5]] = True
    wanted = torch.zeros(6, 6, dtype=torch.bool)
    wanted[0:2, 0:2] = wanted[2:4, 4:6] = True
    assert grid.count == 9 and torch.equal(grid.pixels(chosen), wanted)
    image = torch.rand(3, 6, 6)
    hidden = hide(image, wanted, torch.ones(3, 6, 6))
    assert (hidden[:, wanted] == 1).all() and torch.equal(hidden[:, ~wanted], image[:, ~wanted])


def test_the_first_of_an_order():
    order = torch.tensor([[2, 0, 1], [1, 2, 0]])
    assert first(order, torch.tensor([1, 2])).tolist() == [[False, False, True], [False, True, True]]
    assert first(order, 0).sum() == 0


def test_a_part_is_whole_if_none_of_its_pixels_is_hidden():
    """Two parts in a row of four pixels: at 0 and 1, and at 3; the last image has the first part only."""
    parts = torch.zeros(5, 2, 1, 4, dtype=torch.bool)
    parts[:, 0, 0, :2] = parts[:4, 1, 0, 3] = True
    hidden = torch.zeros(5, 1, 4, dtype=torch.bool)
    for image, pixels in enumerate([(2,), (0,), (0, 3), (0, 1, 2), (1,)]):
        hidden[image, 0, list(pixels)] = True
    assert some_part_whole(parts, hidden).tolist() == [True, True, False, True, False]


@pytest.mark.parametrize("cell", [3, 5, 0, -4, 32])
def test_a_grid_that_does_not_divide_the_image_is_refused(cell):
    with pytest.raises(
        ValueError, match=rf"cells of {cell} pixels do not divide an image of 16; take one of \[1, 2, 4"
    ):
        Grid(16, cell)


@pytest.mark.parametrize("cap", [0, -0.1, 1.01, math.nan])
def test_an_area_cap_outside_its_range_is_refused(cap):
    with pytest.raises(ValueError, match=r"area cap .*; give a share of the image in \(0, 1\]"):
        GRID.most(cap)


def test_an_area_cap_is_a_number_of_regions():
    assert [GRID.most(cap) for cap in (1 / 16, 0.3, 0.5, 1)] == [1, 4, 8, 16]
    assert Grid(30, 3).most(0.29) == 29  # 28.999... in floating point
    with pytest.raises(ValueError, match="less than one of 16 regions"):
        GRID.most(0.05)


# --- LIMA


def table_model(regions=4, classes=3, images=2, seed=0):
    """Probabilities that are looked up: each visible set has its own."""
    values = torch.rand(images, 2**regions, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = values / values.sum(-1, keepdim=True)
    bits = 2 ** torch.arange(regions)

    def probabilities(visible):
        number = (visible * bits).sum(-1)
        return torch.stack([values[i][number[i]] for i in range(images)])

    return probabilities, values


def test_the_set_function_by_hand():
    probabilities, values = table_model()
    labels, weights = torch.tensor([2, 0]), (20.0, 5.0, 0.01)
    sets = torch.tensor([[[True, False, False, True]], [[False, True, False, False]]])  # numbers 9 and 2
    found = lima.set_function(probabilities, labels, weights)(sets)
    for i, (inside, outside) in enumerate([(9, 6), (2, 13)]):
        alone, rest = values[i, inside].numpy(), values[i, outside].numpy()
        entropy = -(alone * np.log(alone)).sum() / np.log(3)
        by_hand = 20 * alone[labels[i]] + 5 * (1 - rest[labels[i]]) + 0.01 * (1 - entropy)
        assert float(found[i, 0]) == pytest.approx(by_hand, rel=1e-9)
    only = lima.set_function(probabilities, labels, lima.FLIP)(sets)
    assert only[:, 0].tolist() == pytest.approx([1 - float(values[0, 6, 2]), 1 - float(values[1, 13, 0])])


def slow_ranking(value, n, q):
    """The same search for one image, over lists."""
    front, back, left = [], [], list(range(n))
    while left:
        scores = {r: value({*front, r}) for r in left}
        front.append(max(left, key=scores.get))
        left.remove(front[-1])
        if q and len(left) > q:
            lowest = sorted(left, key=scores.get)[:q]
            back.insert(0, min(lowest, key=lambda r: value({*back, r})))
            left.remove(back[0])
    return front + back


@pytest.mark.parametrize("q", [0, 1, 2, 3, 6])
def test_ranking_is_the_slow_search(q):
    probabilities, _ = table_model(regions=6, images=5, seed=q)
    labels = torch.tensor([0, 1, 2, 0, 1])
    value, asked = lima.set_function(probabilities, labels, lima.PUBLISHED), []

    def counted(sets):
        asked.append(sets.shape[1])
        return value(sets)

    order = lima.ranking(counted, 5, 6, q)
    for i in range(5):

        def one(chosen, i=i):
            sets = torch.zeros(5, 1, 6, dtype=torch.bool)
            sets[:, 0, list(chosen)] = True
            return float(value(sets)[i, 0])

        assert order[i].tolist() == slow_ranking(one, 6, q)
    assert q or asked == [6, 5, 4, 3, 2, 1]


def test_both_ends_save_rounds():
    rounds = []

    def value(sets):
        rounds.append(int(sets.shape[1]))
        return sets.double() @ torch.arange(16.0, dtype=torch.float64)

    order = lima.ranking(value, 1, 16, 4)
    assert order[0].tolist() == list(range(15, -1, -1)), "a sum is ranked by its terms"
    fronts = [m for m in rounds if m != 4] + [4]
    assert len(fronts) == (16 - 4) // 2 + 4  # rounds, as published: (n - q) / 2 + q
    with pytest.raises(ValueError, match="q=17 with 16 regions"):
        lima.ranking(value, 1, 16, 17)


def test_flip_sizes_count_what_must_go():
    labels, order = torch.zeros(4, dtype=torch.int64), torch.arange(4).repeat(4, 1)

    def probabilities(visible):  # class 0 as long as so many regions stay
        stays = visible.sum(-1) >= torch.tensor([[5], [4], [3], [0]])
        return torch.stack([stays.double(), 0.5 * torch.ones(stays.shape)], -1)

    assert lima.flip_sizes(probabilities, labels, order, 3).tolist() == [0, 1, 2, 4]
    assert lima.flip_sizes(probabilities, labels, order, 1).tolist() == [0, 1, 2, 2]
    assert lima.smallest_flips(probabilities, labels, 4, 3).tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("seed", range(4))
def test_greedy_against_every_set(seed):
    """Greedy never finds a smaller set than there is; and for a sum of evidence it finds the smallest."""
    probabilities, values = table_model(regions=5, classes=2, images=6, seed=seed)
    labels = torch.zeros(6, dtype=torch.int64)
    best = lima.smallest_flips(probabilities, labels, 5, 5)
    for i in range(6):
        flipping = [k for k in range(6) for s in itertools.combinations(range(5), k)
                    if values[i, 31 - sum(2**r for r in s)].argmax() != 0]  # fmt: skip
        assert best[i] == min(flipping, default=6)
    order = lima.ranking(lima.set_function(probabilities, labels, lima.FLIP), 6, 5)
    assert (lima.flip_sizes(probabilities, labels, order, 5) >= best).all()

    evidence = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.7

    def additive(visible):
        logit = (visible * evidence[:, None]).sum(-1)
        return torch.stack([logit, torch.zeros_like(logit)], -1).softmax(-1)

    order = lima.ranking(lima.set_function(additive, labels, lima.FLIP), 6, 5)
    found = lima.flip_sizes(additive, labels, order, 5)
    assert torch.equal(found, lima.smallest_flips(additive, labels, 5, 5))


# --- copies


def test_fillings():
    images = scenes.draw(12, rng()).pixels
    assert (augment.filling("black", images, rng()) == 0).all()
    torch.testing.assert_close(augment.filling("mean", images, rng())[:, :, 3, 5], images.mean((2, 3)))
    noise = augment.filling("noise", images, rng())
    assert noise.shape == images.shape and 0.45 < noise.mean() < 0.55 and noise.max() <= 1
    natural = augment.filling("natural", images, rng())
    assert natural.shape == images.shape and not torch.equal(natural, augment.filling("natural", images, rng(1)))
    with pytest.raises(ValueError, match="fill 'grey'; one of black, mean, noise, natural"):
        augment.filling("grey", images, rng())


def test_erasing_makes_a_blot():
    order = augment.erasing(200, GRID, rng())
    assert (order.sort(dim=1).values == torch.arange(16)).all()
    row, column = order[:, :2] // 4, order[:, :2] % 4
    assert ((row[:, 0] - row[:, 1]).abs() + (column[:, 0] - column[:, 1]).abs() == 1).all(), "neighbours"
    assert len(order[:, 0].unique()) == 16


def test_borrowed_regions_are_as_many_and_of_another_image():
    order, sizes = (
        torch.arange(10)[:, None] * torch.ones(1, 4, dtype=torch.int64),
        torch.tensor([1] * 6 + [2] * 3 + [5]),
    )
    found = augment.borrowed(order, sizes, rng())[:, 0]
    assert (sizes[found] == sizes).all() and sorted(found.tolist()) == list(range(10))
    assert (found[:9] != torch.arange(9)).all() and found[9] == 9


def test_images_that_do_not_flip_are_reported_and_get_no_copy():
    used, line = augment.augmentable(torch.tensor([0, 1, 8, 9, 9]), 8)
    assert used.tolist() == [False, True, True, False, False]
    assert line == "2 of 5 images get a copy; 2 keep their prediction within 8 regions, 1 are wrong as they are"
    with pytest.raises(ValueError, match="0 of 2 images get a copy; .*Raise the area cap"):
        augment.augmentable(torch.tensor([9, 0]), 8)


# --- nets


def test_grad_cam_is_the_gradient_of_the_logit():
    net, drawn = nets.Net(6, 4, seed=0), scenes.draw(5, rng())
    order = nets.grad_cam(net, drawn.pixels, drawn.labels, GRID)
    for i in range(5):
        maps = net.maps(drawn.pixels[i : i + 1]).detach().requires_grad_()
        net.last(maps.mean((-2, -1)))[0, drawn.labels[i]].backward()
        heat = (maps.grad.mean((-2, -1), keepdim=True) * maps).sum(1).flatten()
        hot = heat[order[i]]
        assert (hot[:-1] >= hot[1:] - 1e-7).all()


def test_occlusion_and_what_is_seen_through_regions_by_loops():
    net, drawn = nets.Net(6, 4, seed=1), scenes.draw(4, rng())
    order = nets.occlusion(net, drawn.pixels, drawn.labels, GRID)
    natural = augment.filling("natural", drawn.pixels, rng(2))
    visible = torch.from_numpy(rng(3).random((4, 3, 16)) < 0.5)
    black, covered = (nets.seen_through(net, drawn.pixels, GRID, f)(visible) for f in (None, natural))
    for i in range(4):
        falls = []
        for r in range(16):
            image, down, right = drawn.pixels[i].clone(), 4 * (r // 4), 4 * (r % 4)
            image[:, down : down + 4, right : right + 4] = 0
            falls.append(float(net(image[None]).softmax(-1)[0, drawn.labels[i]].detach()))
        left = np.array(falls)[order[i].numpy()]
        assert (np.diff(left) >= -1e-6).all()
        for m in range(3):
            for found, cover in ((black, torch.zeros(3, 16, 16)), (covered, natural[i])):
                image = drawn.pixels[i].clone()
                for r in (~visible[i, m]).nonzero().flatten().tolist():
                    square = (slice(None), slice(4 * (r // 4), 4 * (r // 4) + 4), slice(4 * (r % 4), 4 * (r % 4) + 4))
                    image[square] = cover[square]
                torch.testing.assert_close(found[i, m], net(image[None]).softmax(-1)[0].detach(), atol=1e-5, rtol=1e-4)


def test_a_step_on_images_and_copies_is_the_gradient_of_both():
    drawn, net = scenes.draw(8, rng()), nets.Net(6, 4, seed=0)
    altered, used = drawn.pixels.flip(-1), torch.arange(8) < 3
    data = {"inputs": drawn.pixels, "labels": drawn.labels, "altered": altered, "used": used}
    step = Recipe(epochs=1, batch=8, lr=0.1, weight_decay=0.0, optimizer="sgd", schedule="constant")
    found = nets.fitted(net, data, step, seed=0, weight=0.5)
    loss = F.cross_entropy(net(drawn.pixels), drawn.labels)
    loss = loss + 0.5 * F.cross_entropy(net(altered[:3]), drawn.labels[:3], reduction="sum") / 8
    loss.backward()
    for before, after in zip(net.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(after.detach(), before.detach() - 0.1 * before.grad, atol=1e-6, rtol=1e-4)


# --- one seed


def test_every_arm_hides_as_much_of_the_same_images(study):
    changed = {}
    for name, order in study.orders.items():
        hidden = GRID.pixels(first(order, study.flip_sizes)).sum((-2, -1))
        assert torch.equal(hidden, 16 * study.flip_sizes), name
        different = (study.copies(order, study.flip_sizes) != study.train.pixels).any(1)
        assert (different <= GRID.pixels(first(order, study.flip_sizes))).all()
        changed[name] = different
    assert not torch.equal(changed["counterfactual"], changed["random erasing"])
    own = study.copies(study.orders["counterfactual"], 16)
    assert torch.equal(own, study.natural), "one filling for all arms"
    assert torch.equal(study.copies(study.orders["factual"], 0), study.train.pixels)


def test_flip_sets_flip(study):
    order, sizes, used = study.orders["counterfactual"], study.flip_sizes, study.used
    black = study.copies(order, sizes, "black")
    assert (nets.predicted(study.base, black)[used] != study.train.labels[used]).all()
    one_less = study.copies(order, (sizes - 1).clamp(min=0), "black")
    assert (nets.predicted(study.base, one_less)[used] == study.train.labels[used]).all()


def test_redrawn_blots_change_by_epoch_and_keep_the_area(study):
    examples = {"inputs": study.train.pixels, "labels": study.train.labels}
    one, two = (study.blots(examples, 0, epoch)["altered"] for epoch in (0, 1))
    assert not torch.equal(one, two) and torch.equal(one, study.blots(examples, 0, 0)["altered"])
    changed = (one != study.train.pixels).any(1).sum((-2, -1))
    assert (changed <= 16 * study.flip_sizes).all() and (changed >= 15 * study.flip_sizes).all()


def test_accuracies_are_shares_of_right_predictions(study):
    found = study.accuracies(study.base)
    swapped = study.tests["background"]
    named = study.base(swapped.pixels).argmax(-1)
    assert found["background"] == pytest.approx(float((named == swapped.labels).float().mean()))
    missing = study.tests["occlusion"]
    odd, named_missing = missing.background != missing.labels, study.base(missing.pixels).argmax(-1)
    right = [int(p == y) for p, y in zip(named_missing[odd], missing.labels[odd], strict=True)]
    assert found["elsewhere"] == pytest.approx(np.mean(right))
    assert found["follows"] == pytest.approx(float((named == swapped.background).float().mean()))


def test_seeds_repeat_to_the_bit_and_copies_of_nothing_are_plain_training(study):
    again = Study(3, SMALL)
    assert torch.equal(again.orders["counterfactual"], study.orders["counterfactual"])
    nothing = study.joint(study.train.pixels.flip(-1), torch.zeros(96, dtype=torch.bool))
    plain = nets.fitted(study.base, {"inputs": study.train.pixels, "labels": study.train.labels}, QUICK, 1003)
    for a, b in zip(nothing.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_judge_sees_no_confounded_scene(monkeypatch):
    agreements = []
    drawn = scenes.draw

    def watched(n, rng, agreement=scenes.AGREEMENT, **more):
        agreements.append(agreement)
        return drawn(n, rng, agreement, **more)

    monkeypatch.setattr(scenes, "draw", watched)
    experiment.judge(48, QUICK, 4, seed=0)
    assert agreements == [1 / 6]
