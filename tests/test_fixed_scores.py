"""Chapter 42: one set of scores against several banks, how far a denoiser looks, copies under another condition."""

import numpy as np
import pytest
import torch
from test_images import make

from tda import denoisers, lm
from tda.evaluation.intervals import lds_intervals
from tda.evaluation.lds import lds
from tda.recipe import Recipe
from tda.studies.diffusion import fixed_scores
from tda.training import train


@pytest.fixture(scope="module")
def banks():
    rng = np.random.default_rng(0)
    subsets = np.argsort(rng.random((12, 30)), 1) < 15
    truth = {name: rng.normal(size=(6, 30)) for name in ("mlp", "conv")}
    outputs = {k: -(subsets @ s.T)[:, None] + rng.normal(size=(12, 2, 6)) for k, s in truth.items()}
    scores = {"near": truth["mlp"] + rng.normal(size=(6, 30)), "far": rng.normal(size=(6, 30))}
    return scores, subsets, outputs


def test_one_bank_gives_the_paired_difference_of_the_leaderboard(banks):
    scores, subsets, outputs = banks
    found = fixed_scores.parts(scores, subsets, outputs)
    for name, losses in outputs.items():
        wanted = lds_intervals(scores, subsets, losses, references=["far"])["near"]
        assert fixed_scores.contrast(found, {("near", name): 1.0}) == wanted.value
        difference = fixed_scores.contrast(found, {("near", name): 1.0, ("far", name): -1.0})
        assert difference == wanted.difference["far"]


def test_contrasts_of_banks_are_contrasts_of_their_lds(banks):
    scores, subsets, outputs = banks
    found = fixed_scores.parts(scores, subsets, outputs)
    pairs = [(row, name) for row in scores for name in outputs]
    value = {(row, name): lds(scores[row], subsets, outputs[name]).mean() for row, name in pairs}
    weights = {("near", "conv"): 1.0, ("far", "conv"): -1.0, ("near", "mlp"): -1.0, ("far", "mlp"): 1.0}
    apart = fixed_scores.contrast(found, weights)
    assert apart.value == pytest.approx(sum(w * value[key] for key, w in weights.items()))
    turned = fixed_scores.contrast(found, {key: -w for key, w in weights.items()})
    np.testing.assert_allclose(list(turned), [-apart.value, -apart.high, -apart.low], atol=1e-12)
    same = fixed_scores.contrast(found, {("near", "mlp"): 1.0, ("far", "mlp"): 0.0})
    np.testing.assert_allclose(list(same), list(fixed_scores.contrast(found, {("near", "mlp"): 1.0})))


class Blurring(denoisers.Denoiser):
    """Sees in x_t the mean over each pixel's neighbours up to one pixel away, whatever the timestep."""

    def __init__(self):
        super().__init__((1, 5, 5), (2, 0), 4, "image")

    def forward(self, noisy, timesteps, condition):
        image = noisy.unflatten(-1, self.shape)
        return torch.nn.functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False).flatten(-3)


def test_reach_is_the_share_of_squared_derivatives_by_distance():
    model, condition = Blurring(), torch.tensor([[1, 0]])
    params = {k: v.detach() for k, v in model.named_parameters()}
    assert fixed_scores.reach(model, params, torch.randn(1, 25), 100, condition).tolist() == [1, 1, 1, 1]
    net = denoisers.FilmMLP((2, 4, 3), (2, 2), 8, 1)
    params = {k: v.detach() for k, v in net.named_parameters()}
    noisy, condition, t = torch.randn(2, 24), torch.tensor([[1, 2], [0, 1]]), torch.tensor([300])
    wanted = np.zeros(3)
    for x, tokens in zip(noisy, condition, strict=True):
        by_distance = np.zeros(4)
        for j in range(24):
            step = torch.eye(24)[j] * 1e-2
            ends = [denoisers.predicted(net, params, (x + s)[None], t, tokens[None])[1][0] for s in (step, -step)]
            slope = ((ends[0] - ends[1]) / 2e-2).detach().numpy()
            for i in range(24):
                (a, b), (c, d) = divmod(i % 12, 3), divmod(j % 12, 3)
                by_distance[max(abs(a - c), abs(b - d))] += slope[i] ** 2
        wanted += np.cumsum(by_distance[1:]) / by_distance[1:].sum() / 2
    np.testing.assert_allclose(fixed_scores.reach(net, params, noisy, 300, condition), wanted, rtol=1e-3)


def test_a_convolution_reaches_as_far_as_its_docstring_says():
    net = denoisers.FilmConv((1, 16, 16), (2, 0), 3, 0)
    params = {k: v.detach() for k, v in net.named_parameters()}
    found = fixed_scores.reach(net, params, torch.randn(1, 256), 100, torch.tensor([[1, 0]]))
    assert found[4] == pytest.approx(1) and found[3] < 1, "2 (depth + 2) + 1 = 5 pixels"


def test_another_condition_differs_in_every_token_there_is():
    known = torch.tensor([[1, 1], [1, 2], [2, 1], [2, 2], [3, 3]])
    asked = known[[0, 1, 2, 3, 4]]
    found = fixed_scores.other_conditions(asked, known, 0)
    assert (found != asked).all() and all(row in known.tolist() for row in found.tolist())
    assert torch.equal(found, fixed_scores.other_conditions(asked, known, 0))
    digits = torch.tensor([[1, 0], [2, 0]])
    assert fixed_scores.other_conditions(digits, digits, 0).tolist() == [[2, 0], [1, 0]]
    with pytest.raises(ValueError, match=r"no condition differs from \[1, 1\] in every token"):
        fixed_scores.other_conditions(known[:1], known[:3], 0)


def test_a_copy_helps_its_query_and_runs_are_paired(tmp_path):
    bed = make(tmp_path / "bed", {"training": {"epochs": 40}})
    asked = {k: v[:3] for k, v in bed.modality.held_out(bed).items()}
    other = fixed_scores.other_conditions(asked["condition"], bed.train["condition"], 0)
    losses = fixed_scores.trained_with_copies(bed, asked, other, [3, 4])
    assert {k: v.shape for k, v in losses.items()} == {"none": (2, 3), "same": (2, 3), "other": (2, 3)}
    assert (losses["same"].mean(1) < losses["none"].mean(1)).all()
    again = fixed_scores.trained_with_copies(bed, asked, asked["condition"], [3])
    np.testing.assert_array_equal(again["none"][0], losses["none"][0])
    np.testing.assert_array_equal(again["same"][0], losses["same"][0])
    assert not np.array_equal(losses["other"], losses["same"])
    mine = {k: asked[k] for k in ("pixels", "condition")}
    model = bed.modality.new_model(bed, 3)
    fresh = {k: v.detach() for k, v in model.named_parameters()}
    assert (losses["none"][0] < lm.losses(bed.modality.loss_function(model), fresh, mine)).all()


def test_worlds_are_the_masked_runs_of_one_corpus(tmp_path):
    bed = make(tmp_path / "bed")
    asked = {k: v[:2] for k, v in bed.modality.held_out(bed).items() if k != "entity"}
    other = fixed_scores.other_conditions(asked["condition"], bed.train["condition"], 1)
    n, recipe = len(bed.documents), Recipe.of(bed.settings["training"])
    every = {
        "pixels": torch.cat([bed.train["pixels"], asked["pixels"], asked["pixels"]]),
        "condition": torch.cat([bed.train["condition"], asked["condition"], other]),
    }
    found = fixed_scores.trained_with_copies(bed, asked, other, [7])
    for world, present in (("none", [0, 0, 0, 0]), ("same", [1, 1, 0, 0]), ("other", [0, 0, 1, 1])):
        net = bed.modality.new_model(bed, 7)
        loss_fn, init = bed.modality.loss_function(net), {k: v.detach() for k, v in net.named_parameters()}
        mask = np.array([True] * n + [bool(x) for x in present])
        wanted = lm.losses(loss_fn, train(loss_fn, init, every, recipe, 7, mask, "mask").params, asked)
        np.testing.assert_array_equal(found[world][0], wanted)
