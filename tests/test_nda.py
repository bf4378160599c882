"""NDA: its convolutions against plain loops over patches, the optimal score, signs, limits, and refusals."""

import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tda import attribute, denoisers
from tda.attribution import nda
from tda.task import Task, take

SHAPE, PIXELS = (2, 6, 6), 72
FORMS = [{"patch": 3}, {"patch": 5}, {"patch": 1}, {"patch": "image"}, {"scales": "down", "down_patch": 3},
         {"scales": "down", "down_patch": 1}, {"scales": "down", "down_patch": "image"}]  # fmt: skip


def images(n, seed=0, shape=SHAPE):
    """Smooth images: noise alone would leave every weight at 0 or 1."""
    rng = np.random.default_rng(seed)
    waves = np.sin(rng.uniform(0, 6, (n, *shape[:1], 1, 1)) + rng.uniform(0, 1, (n, 1, 1, 1)) * np.arange(shape[2]))
    return {"pixels": torch.from_numpy((0.4 * waves + rng.normal(0, 0.05, (n, *shape))).astype(np.float32)).flatten(1)}


class Shape(nn.Module):
    """All that a model has to say here."""

    shape = SHAPE


TASK = Task("toy", None, {}, Shape(), encode={"pixels": lambda x: x["pixels"].numpy()})
TRAIN, ASKED = images(9), images(4, 1)


def noisy(asked, t, seed=0):
    """(x_t, sqrt(a), 1 - a) in float64."""
    _, noise = denoisers.draws([t], 1, asked.shape[1], seed)
    left = denoisers.kept()[t]
    return left.sqrt() * asked.double() + (1 - left).sqrt() * noise.double(), left.sqrt(), 1 - left


def patches(image, scales="single", patch=7, down_patch=5):
    """{place: entries}, with 1000 beyond the edge, as released; cells of 2 x 2 pixels are half their sum."""
    side, step = (down_patch, 2) if scales == "down" else (patch, 1)
    image = image.reshape(SHAPE).numpy()
    if side == "image":
        wide, places, filled = SHAPE[1], [(0, 0)], image
    else:
        wide, over = side * step, (side * step - 1) // 2
        filled = np.full((SHAPE[0], SHAPE[1] + 2 * over, SHAPE[2] + 2 * over), 1000.0)
        filled[:, over : over + SHAPE[1], over : over + SHAPE[2]] = image
        places = [(y, x) for y in range(filled.shape[1] - wide + 1) for x in range(filled.shape[2] - wide + 1)]
    found = {}
    for y, x in places:
        cut = filled[:, y : y + wide, x : x + wide]
        if step == 2:
            cut = (cut[:, ::2, ::2] + cut[:, 1::2, ::2] + cut[:, ::2, 1::2] + cut[:, 1::2, 1::2]) / 2
        found[y, x] = cut.flatten()
    return found


def squared_by_loop(query, documents, form):
    """Squared distance of every patch of the query and every patch of every document, [p, N, r], and entries."""
    here, there = patches(query, **form), [patches(document, **form) for document in documents]
    squared = [[[((p - r) ** 2).sum() for r in document.values()] for document in there] for p in here.values()]
    return np.array(squared), len(next(iter(here.values())))


def weights_by_loop(query, documents, variance, form):
    squared, _ = squared_by_loop(query, documents, form)
    logits = -squared / (2 * float(variance))
    raised = np.exp(logits - logits.max((1, 2), keepdims=True))
    return raised / raised.sum((1, 2), keepdims=True)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("t", [60, 300])
def test_convolutions_are_loops_over_patches(form, t):
    x, signal, variance = noisy(ASKED["pixels"], t)
    documents = signal * TRAIN["pixels"].double()
    wanted = [weights_by_loop(query, documents, variance, form).sum(2).mean(0) for query in x]
    found = attribute("nda", TASK, TRAIN, ASKED, timesteps=t, **form)
    np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=2e-4)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert np.sort(found, 1)[:, -2].max() > 1e-3, "more than one image has a share"


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_plain_distances_are_loops_over_patches(form):
    found = attribute("nda", TASK, TRAIN, ASKED, weighting="distance", timesteps=900, **form)
    for query, scores in zip(ASKED["pixels"].double(), found, strict=True):
        squared, entries = squared_by_loop(query, TRAIN["pixels"].double(), form)
        np.testing.assert_allclose(scores, -squared.min(2).mean(0) / entries, atol=1e-6, rtol=1e-4)


def test_distance_of_whole_images_is_the_euclidean_one():
    found = attribute("nda", TASK, TRAIN, ASKED, weighting="distance", patch="image")
    wanted = -torch.cdist(ASKED["pixels"], TRAIN["pixels"]).square() / PIXELS
    np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS[:5], ids=str)
def test_a_map_adds_up_to_the_scores(form):
    one = take(ASKED, slice(1, 2))
    found = nda.weights(TASK, TRAIN, one, timesteps=150, **form)
    np.testing.assert_allclose(found.sum((2, 3, 4)), 1, rtol=1e-5)
    scores = attribute("nda", TASK, TRAIN, one, timesteps=150, **form)[0]
    np.testing.assert_allclose(found.sum((3, 4)).mean((0, 1)), scores, rtol=1e-4, atol=1e-6)
    x, signal, variance = noisy(one["pixels"], 150)
    wanted = weights_by_loop(x[0], signal * TRAIN["pixels"].double(), variance, form)
    np.testing.assert_allclose(found.flatten(3).flatten(0, 1), wanted, atol=2e-5, rtol=2e-3)


@pytest.mark.parametrize("t", [60, 300])
def test_weights_of_whole_images_make_up_the_score_of_the_noised_data(t):
    """The closed form of the module's docstring, against autograd on the log density."""
    x, signal, variance = noisy(ASKED["pixels"], t)
    x, means = x.requires_grad_(), signal * TRAIN["pixels"].double()
    density = (-torch.cdist(x, means).square() / (2 * variance)).logsumexp(1)
    score = torch.autograd.grad(density.sum(), x)[0]
    w = torch.from_numpy(attribute("nda", TASK, TRAIN, ASKED, timesteps=t, patch="image")).double()
    wanted = -(w.unsqueeze(2) * (x.unsqueeze(1) - means)).sum(1) / variance
    torch.testing.assert_close(score, wanted.detach(), atol=2e-3, rtol=1e-3)


def test_cells_keep_the_noise_standard_normal():
    flat = torch.randn(1, 1, 400, 400, generator=torch.Generator().manual_seed(0))
    options = nda.Options(scales="down", down_patch=3)
    *_, here, _, patch, step = max(nda._groups(flat, flat, options, True), key=lambda group: group[2].numel())
    cells = here[0, 0, ::step, ::step]
    assert patch == (1, 3, 3) and float(cells.var()) == pytest.approx(1, rel=0.02)
    assert abs(float((cells[1:] * cells[:-1]).mean())) < 0.02


# --- signs and limits


@pytest.mark.parametrize("weighting", nda.WEIGHTINGS)
@pytest.mark.parametrize("form", [{"patch": 3}, {"patch": "image"}, {"scales": "two", "patch": 3, "down_patch": 3}])
def test_a_copy_of_the_query_comes_first(form, weighting):
    train = {"pixels": torch.cat([TRAIN["pixels"], ASKED["pixels"]])}
    scores = attribute("nda", TASK, train, ASKED, timesteps=100, weighting=weighting, **form)
    assert scores.argmax(1).tolist() == [9, 10, 11, 12]
    assert np.isfinite(scores).all() and (weighting == "distance" or (scores >= 0).all())


def test_a_moved_copy_is_found_by_patches_and_not_by_whole_images():
    rng = np.random.default_rng(3)
    canvas, others = rng.uniform(-1, 1, (2, 8, 8)), rng.uniform(-1, 1, (8, *SHAPE))
    query, moved = canvas[:, 1:7, 1:7], canvas[:, 2:8, 2:8]
    train = {"pixels": torch.tensor(np.stack([*others, moved]), dtype=torch.float32).flatten(1)}
    asked = {"pixels": torch.tensor(query[None], dtype=torch.float32).flatten(1)}
    by_patch, whole = (attribute("nda", TASK, train, asked, weighting="distance", patch=k)[0] for k in (3, "image"))
    assert by_patch.argmax() == 8 and whole.argmax() != 8
    found = nda.weights(TASK, train, asked, patch=3, timesteps=20)
    for y in (2, 3, 4):  # what lies inside of both
        for x in (2, 3, 4):
            assert found[y, x, 8, y - 1, x - 1] > 0.99


def test_where_it_must_fail():
    """Single pixels know no arrangement; exact copies tie; pure noise points nowhere."""
    order = np.random.default_rng(0).permutation(36)
    shuffled = TRAIN["pixels"].reshape(-1, 2, 36)[:, :, order].flatten(1)
    both = {"pixels": torch.cat([TRAIN["pixels"], shuffled])}
    scores = attribute("nda", TASK, both, ASKED, patch=1)
    np.testing.assert_allclose(scores[:, :9], scores[:, 9:], rtol=1e-4, atol=1e-6)
    twice = {"pixels": torch.cat([TRAIN["pixels"], TRAIN["pixels"]])}
    for options in ({"patch": 3}, {"patch": "image", "weighting": "distance"}):
        scores = attribute("nda", TASK, twice, ASKED, **options)
        np.testing.assert_allclose(scores[:, :9], scores[:, 9:], rtol=1e-4, atol=1e-6)
    scores = attribute("nda", TASK, TRAIN, ASKED, patch="image", timesteps=999)
    np.testing.assert_allclose(scores, 1 / 9, atol=0.02)
    scores = attribute("nda", TASK, TRAIN, ASKED, patch="image", timesteps=0)
    assert (scores.max(1) > 0.999).all(), "whole images at low noise: all goes to the nearest"


def test_scores_are_means_over_timesteps_draws_and_scales():
    alone = {t: attribute("nda", TASK, TRAIN, ASKED, timesteps=t, patch=3) for t in (80, 200)}
    first = attribute("nda", TASK, TRAIN, ASKED, timesteps=[80], patch=3)
    np.testing.assert_array_equal(first, alone[80])
    both = attribute("nda", TASK, TRAIN, ASKED, timesteps=[80, 200], patch=3)
    _, noise = denoisers.draws([80, 200], 1, PIXELS, 0)  # the second timestep meets the second draw
    left = denoisers.kept()[200]
    x = left.sqrt() * ASKED["pixels"].double() + (1 - left).sqrt() * noise[1].double()
    documents = left.sqrt() * TRAIN["pixels"].double()
    second = [weights_by_loop(query, documents, 1 - left, {"patch": 3}).sum(2).mean(0) for query in x]
    np.testing.assert_allclose(both, (alone[80] + second) / 2, atol=2e-5)
    forms = [attribute("nda", TASK, TRAIN, ASKED, scales=s, patch=3, down_patch=3, share=0.3) for s in nda.SCALES]
    np.testing.assert_allclose(forms[2], 0.3 * forms[0] + 0.7 * forms[1], atol=1e-6)
    draws = [attribute("nda", TASK, TRAIN, ASKED, patch=3, noises=n, seed=s) for n, s in ((1, 0), (1, 1), (6, 0))]
    assert not np.allclose(draws[0], draws[1]) and not np.allclose(draws[0], draws[2])


@pytest.mark.parametrize("options", [{"scales": "two"}, {"weighting": "distance"}, {"patch": "image"}], ids=str)
def test_neither_chunks_nor_company_matter(options, monkeypatch):
    options = {"patch": 3, "down_patch": 3, **options}
    whole = attribute("nda", TASK, TRAIN, ASKED, **options)
    for chunk in (1, 4):
        np.testing.assert_allclose(attribute("nda", TASK, TRAIN, ASKED, chunk=chunk, **options), whole, atol=1e-6)
    monkeypatch.setattr(nda, "PAIRS", 1)
    np.testing.assert_allclose(attribute("nda", TASK, TRAIN, ASKED, **options), whole, atol=1e-6)
    order = [3, 0, 8, 1, 2, 4, 5, 6, 7]
    parts = attribute("nda", TASK, take(TRAIN, order), take(ASKED, [2, 0]), **options)
    np.testing.assert_allclose(parts, whole[np.ix_([2, 0], order)], atol=1e-6)


def test_it_needs_images_and_nothing_of_a_model():
    bare = replace(TASK, model=None, encode={"pixels": lambda x: x["pixels"].reshape(-1, *SHAPE)})
    rows = attribute("nda", TASK, TRAIN, ASKED, patch=3)
    np.testing.assert_array_equal(attribute("nda", bare, TRAIN, ASKED, patch=3), rows)
    model = denoisers.FilmMLP(SHAPE, (2, 2), 4, 1)
    model.forward = types.MethodType(lambda *_: pytest.fail("the model was asked"), model)
    real = replace(TASK, model=model, params={k: v.detach() for k, v in model.named_parameters()})
    np.testing.assert_array_equal(attribute("nda", real, TRAIN, ASKED, patch=3), rows)


def test_denoisers_of_other_weights_kind_and_loss_have_the_same_scores():
    torch.manual_seed(0)
    nets = [denoisers.FilmMLP(SHAPE, (2, 2), 4, 1), denoisers.FilmMLP(SHAPE, (2, 2), 4, 1, "image"),
            denoisers.FilmConv(SHAPE, (2, 2), 3, 1)]  # fmt: skip
    every = [replace(TASK, model=net, params={k: v.detach() for k, v in net.named_parameters()}) for net in nets]
    for options in (
        {"scales": "two", "patch": 3, "down_patch": 3},
        {"patch": "image"},
        {"weighting": "distance", "patch": 5},
    ):
        first, *others = (attribute("nda", task, TRAIN, ASKED, **options) for task in every)
        assert all(np.array_equal(first, scores) for scores in others)


def test_images_may_be_maps_of_features_and_oblong():
    maps = replace(TASK, model=None, encode={"pixels": lambda x: 9 * x["pixels"].reshape(-1, 4, 6, 3)})
    scores = attribute("nda", maps, TRAIN, ASKED, weighting="distance", patch=3)
    pixels = replace(TASK, model=None, encode={"pixels": lambda x: x["pixels"].reshape(-1, 4, 6, 3)})
    np.testing.assert_allclose(
        scores, 81 * attribute("nda", pixels, TRAIN, ASKED, weighting="distance", patch=3), rtol=1e-3
    )
    assert nda.weights(pixels, TRAIN, take(ASKED, [0]), patch=3).shape == (6, 3, 9, 6, 3)


# --- refusals


def reshaped(shape):
    return replace(TASK, model=None, encode={"pixels": lambda x: x["pixels"].reshape(-1, *shape)})


@pytest.mark.parametrize(
    "task, options, line",
    [
        (TASK, {"patch": 4}, "nda: patch=4; an odd whole number, as a patch has a centre, or 'image'"),
        (TASK, {"patch": 0}, "nda: patch=0; an odd"),
        (TASK, {"down_patch": "all", "scales": "down"}, "nda: down_patch='all'; an odd"),
        (TASK, {"patch": 7}, "nda: patch=7 covers 7 pixels on images of 6 x 6 pixels; it must fit, or be 'image'"),
        (TASK, {"scales": "two", "patch": 3, "down_patch": 5}, "nda: down_patch=5 covers 10 pixels on images of 6 x 6"),
        (reshaped((2, 12, 3)), {"patch": 5}, "nda: patch=5 covers 5 pixels on images of 12 x 3"),
        (reshaped((8, 3, 3)), {"scales": "down", "down_patch": "image"}, "on images of 3 x 3 pixels; odd sides"),
        (TASK, {"timesteps": 1000}, "nda: timesteps=1000; a whole number from 0 to 999, or a list"),
        (TASK, {"timesteps": [5, -1]}, "timesteps=.5, -1.; a whole number from 0 to 999"),
        (TASK, {"timesteps": [5, 5]}, "or a list of different ones"),
        (TASK, {"timesteps": []}, "timesteps=..; a whole"),
        (TASK, {"timesteps": 10.0}, "timesteps=10.0; a whole"),
        (TASK, {"scales": "three"}, "scales='three'; one of"),
        (replace(TASK, model=None), {}, "nda, train: pixels .9, 72.; the model has no shape. Give rows"),
        (replace(TASK, encode={}), {}, "method 'nda' needs 'pixels', which the task 'toy' does not offer"),
        (replace(TASK, encode={"pixels": lambda x: x["image"]}), {}, "nda, train: encode.'pixels'. of task 'toy'"),
        (replace(TASK, encode={"pixels": lambda x: 127 * x["pixels"]}), {"patch": 3}, r"nda, train: pixels reach \d+"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(task, options, line):
    with pytest.raises(ValueError, match=line) as error:
        attribute("nda", task, TRAIN, ASKED, **options)
    assert "\n" not in str(error.value)


def test_images_of_the_wrong_size_are_refused_in_one_line():
    small = {"pixels": torch.zeros(3, 50)}
    for given, line in (((small, ASKED), "nda, train: pixels .3, 50.; the model's images are 2 x 6 x 6. Give"),
                        ((TRAIN, small), "nda, queries: pixels .3, 50.")):  # fmt: skip
        with pytest.raises(ValueError, match=line) as error:
            attribute("nda", TASK, *given)
        assert "\n" not in str(error.value)
    own = replace(
        TASK,
        encode={"pixels": lambda x: x["pixels"].reshape(len(x["pixels"]), 2, -1, 5 if len(x["pixels"]) == 3 else 6)},
    )
    with pytest.raises(ValueError, match="train and queries are images of 2 x 5 x 5 and 2 x 6 x 6; give both one size"):
        attribute("nda", own, small, ASKED)
    for options in (
        {"timesteps": [5, 6]},
        {"noises": 2},
        {"scales": "two", "down_patch": 3},
        {"weighting": "distance"},
    ):
        with pytest.raises(ValueError, match="nda: a map is of softmax weights, of one query"):
            nda.weights(TASK, TRAIN, take(ASKED, [0]), patch=3, **options)
    with pytest.raises(ValueError, match="nda: patch=2"):
        nda.weights(TASK, TRAIN, ASKED, patch=2)
