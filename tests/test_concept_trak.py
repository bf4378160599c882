"""Concept-TRAK: its two gradients against finite differences, the sign on a constructed case, the cells of the 2^4."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_denoisers import PIXELS, SHAPE, images
from test_diffusion_trak import close, denoiser, primal, refused
from torch import nn

from tda import attribute, denoisers
from tda.attribution import concept_trak
from tda.attribution.concept_trak import Options
from tda.denoisers import Denoiser, predicted
from tda.task import Task, take
from tda.tools import denoised
from tda.tools.cache import forget


@pytest.fixture(scope="module")
def trained():
    return denoiser(epochs=60)


def doubled(task):
    """The same net in float64, where finite differences are exact enough."""
    task.model.double()
    return {k: v.double() for k, v in task.params.items()}


@pytest.mark.parametrize("prediction", denoisers.PREDICTIONS)
@pytest.mark.parametrize("side", ["posterior", "guidance"])
def test_gradients_are_finite_differences_of_the_written_out_loss(side, prediction):
    """The shift, too: by central differences in x_t, pixel after pixel; then the loss, in directions of theta."""
    task, data = denoiser("mlp", prediction)
    one = take(data, [4])
    options = Options(inversion=False, unit_norm=False, parameters="all", train_loss="posterior")
    make = concept_trak.train_gradients.__wrapped__ if side == "posterior" else concept_trak.query_gradients
    found = make(task, one, options)[0].double()
    states = denoised.forward(one, denoised.shared(task.model, 0, "x"))
    params, x, (at, told) = doubled(task), states.noisy.double(), states.places()
    image = states.images.double()

    def noise_at(theta, x, told):
        return predicted(task.model, theta, x, at, told)[0]

    with torch.no_grad():
        if side == "posterior":
            shift, step = torch.zeros_like(x), 1e-5
            for d in range(PIXELS):
                move = torch.zeros(PIXELS, dtype=torch.float64)
                move[d] = step
                up, down = (
                    (predicted(task.model, params, x + s * move, at, told)[1] - image).square().mean(-1)
                    for s in (1, -1)
                )
                shift[..., d] = (up - down) / (2 * step)
        else:
            told = torch.stack([told[..., 0], torch.zeros_like(told[..., 1])], -1)
            shift = noise_at(params, x, told) - noise_at(params, x, torch.zeros_like(told))
        target = noise_at(params, x, told) + shift

        def loss(theta):
            return (target - noise_at(theta, x, told)).square().mean()

        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            move = {k: torch.randn(v.shape, generator=generator, dtype=torch.float64) for k, v in params.items()}
            up, down = (loss({k: v + s * 1e-6 * move[k] for k, v in params.items()}) for s in (1, -1))
            wanted = float(up - down) / 2e-6
            assert float(found @ torch.cat([m.flatten() for m in move.values()])) == pytest.approx(wanted, rel=2e-3)


class Table(Denoiser):
    """A constructed net: it sees in x_t the image that stands in a table for the first token, whatever x_t is like,
    but for a share of x_t; token 0 has no image."""

    def __init__(self):
        super().__init__(SHAPE, (2, 0), 4, "image")
        self.film = nn.ModuleList([nn.Linear(2, PIXELS, bias=False)])

    def forward(self, noisy, timesteps, condition):
        return self.film[0](self.token_0[condition[..., 0]]) + 0.1 * noisy


def table(pictures):
    """(task, examples) of a :class:`Table` that shows ``pictures`` [2, D] for tokens 1 and 2."""
    torch.manual_seed(0)
    model = Table().eval()
    model.film[0].weight.data = pictures.T.clone()
    model.main = denoisers.draws([100, 300], 2, PIXELS, 0)
    outputs_fn = denoisers.outputs_function(model, *model.main)
    params = {k: v.detach() for k, v in model.named_parameters()}
    return Task("table", denoisers.denoising_loss(model, *model.main), params, model, outputs_fn=outputs_fn,
                output_loss="squared_error")  # fmt: skip


@pytest.mark.parametrize("unit_norm", [False, True])
def test_signs_of_a_constructed_case(unit_norm):
    """The net's picture of the first token is half of what it should be. Guidance wants more of it. Then an image that
    shows the whole picture teaches the token, one that shows its negative unteaches it, and images of the other token
    have nothing to say."""
    torch.manual_seed(1)
    whole = torch.rand(2, PIXELS) - 0.5
    task = table(0.5 * whole)
    data = {"pixels": torch.stack([whole[0], -whole[0], whole[1]]), "condition": torch.tensor([[1, 0], [1, 0], [2, 0]])}
    asked = {"pixels": whole[:1], "condition": torch.tensor([[1, 0]])}
    scores = attribute("concept_trak", task, data, asked, inversion=False, unit_norm=unit_norm)[0]
    assert scores[0] > 0 > scores[1] and abs(scores[2]) < 1e-3 * scores[0]
    # and the score means what it says: a step down the image's loss makes the net show more of the token
    options = Options(inversion=False, unit_norm=unit_norm)
    rows = concept_trak.train_gradients.__wrapped__(task, data, options)
    before = task.params["film.0.weight"]
    for row, grows in ((0, True), (1, False)):
        after = before - 1e-2 * rows[row].reshape(before.shape)
        assert (float(after[:, 0] @ whole[0]) > float(before[:, 0] @ whole[0])) == grows


def test_a_step_along_the_posterior_direction_draws_the_prediction_to_the_image(trained):
    task, data = trained
    states = denoised.forward(data, denoised.shared(task.model, 0, "x"))
    at, told = states.places()
    rows = concept_trak.train_gradients.__wrapped__(
        task, data, Options(inversion=False, unit_norm=False, parameters="all")
    )
    errors = []
    for i in range(12):
        for sign in (0, 1):
            vector, theta = sign * 1e-2 * rows[i] / rows[i].norm(), {}
            for name, value in task.params.items():
                part, vector = vector[: value.numel()], vector[value.numel() :]
                theta[name] = value - part.reshape(value.shape)
            with torch.no_grad():
                image = predicted(task.model, theta, states.noisy[i], at[i], told[i])[1]
            errors.append(float((image - states.images[i]).square().mean()))
    assert (np.array(errors[1::2]) < np.array(errors[::2])).mean() > 0.9


def by_hand(task, batch, told, kind, without=None):
    """Per-timestep gradients [T, P] of one image in its inverted states, by backward passes."""
    model, rows = task.model, []
    states = denoised.inverted(model, task.params, batch | {"condition": told}, torch.tensor([10, 200, 400]), 50)
    for place, t in enumerate(states.timesteps.tolist()):
        theta = {k: v.clone().requires_grad_() for k, v in task.params.items()}
        x, image, t = states.noisy[0, place, 0].clone().requires_grad_(), batch["pixels"][0], torch.tensor(t)
        noise, seen = predicted(model, theta, x, t, told[0])
        signal, spread = denoisers.strengths(t)
        if kind == "posterior":
            shift = torch.autograd.grad((seen - image).square().mean(), x, retain_graph=True)[0]
        elif kind == "guidance":
            shift = (noise - predicted(model, theta, x, t, without[0])[0]).detach()
        target = {"loss": (x - signal * image) / spread, "norm": 0.0 * image}.get(kind)
        target = (noise + shift).detach() if target is None else target.detach()
        (target - noise).square().mean().backward()
        rows.append(torch.cat([theta[k].grad.flatten() for k in theta if k.startswith("film.")]).double())
    return torch.stack(rows)


@pytest.fixture(scope="module")
def rows_by_hand(trained):
    """kind -> per-timestep gradients [12, T, P] of all images."""
    task, data = trained
    each = {kind: [by_hand(task, take(data, [i]), data["condition"][[i]], kind) for i in range(12)]
            for kind in ("posterior", "loss", "norm")}  # fmt: skip
    return {kind: torch.stack(rows) for kind, rows in each.items()}


@pytest.mark.parametrize("form, token", list(itertools.product(concept_trak.FORMS, concept_trak.TOKENS)))
def test_scores_are_the_written_out_ones(trained, rows_by_hand, form, token):
    task, data = trained
    asked, place = images(3, seed=7), concept_trak.TOKENS.index(token)
    unit = torch.nn.functional.normalize
    x_t, x_q = torch.nn.functional.normalize(rows_by_hand["posterior"], dim=2).mean(1), []
    for q in range(3):
        whole = asked["condition"][[q]]
        told, without = whole.clone(), torch.zeros_like(whole)
        if form == "token_alone":
            told[0, 1 - place] = 0
        else:
            without[0, 1 - place] = whole[0, 1 - place]
        x_q.append(unit(by_hand(task, take(asked, [q]), told, "guidance", without)).mean(0))
    found = attribute("concept_trak", task, data, asked, form=form, token=token, damping=0.05)
    close(found, primal(torch.stack(x_q), x_t, 0.05), 1e-3)


@pytest.mark.parametrize("unit_norm", [False, True])
@pytest.mark.parametrize("train_loss", ["loss", "norm"])
@pytest.mark.parametrize("query_loss", ["loss", "norm"])
def test_inverted_cells_without_concepts_are_the_written_out_ones(
    trained, rows_by_hand, query_loss, train_loss, unit_norm
):
    task, data = trained
    parts = [rows_by_hand[kind] for kind in (query_loss, train_loss)]
    x_q, x_t = ((torch.nn.functional.normalize(p, dim=2) if unit_norm else p).mean(1) for p in parts)
    given = {"query_loss": query_loss, "train_loss": train_loss, "unit_norm": unit_norm}
    close(attribute("concept_trak", task, data, data, **given), primal(x_q, x_t, 0.1), 1e-3)


@pytest.mark.parametrize("name, kind", [("diffusion_trak", "loss"), ("d_trak", "norm")])
@pytest.mark.parametrize("unit_norm", [False, True])
def test_without_its_parts_it_is_trak_or_d_trak(trained, name, kind, unit_norm):
    task, data = trained
    given = {"query_loss": kind, "train_loss": kind, "inversion": False, "unit_norm": unit_norm, "parameters": "all"}
    wanted = attribute(name, task, data, data, unit_norm=unit_norm)
    np.testing.assert_allclose(attribute("concept_trak", task, data, data, **given), wanted, rtol=1e-5, atol=1e-6)


def test_all_cells_of_the_design_differ(trained):
    task, data = trained
    cells = [
        attribute(
            "concept_trak", task, data, take(data, slice(0, 2)), query_loss=q, train_loss=t, inversion=i, unit_norm=u
        )
        for q, t, i, u in itertools.product(("guidance", "loss"), ("posterior", "loss"), (True, False), (True, False))
    ]
    ranked = {tuple(np.round(cell / np.abs(cell).max(), 3).ravel()) for cell in cells}
    assert len(ranked) == 16


def test_unit_norm_takes_every_scale_away(trained):
    """Twice the shift, and a loss ten times as large at one timestep, change nothing."""
    task, data = trained
    shared = denoised.shared(task.model, 0, "x")

    def make(scale):
        def of(batch):
            states = denoised.forward(batch, shared)
            shift = scale[None, :, None, None] * concept_trak.posterior_shift(task, states)
            return states, denoised.shift_term(task.model, states, shift)

        return of

    for unit in (True, False):
        plain, scaled = (denoised.gradients(task, data, make(torch.tensor(s)), "film", unit, 8)
                         for s in ([1.0, 1.0, 1.0], [2.0, 2.0, 10.0]))  # fmt: skip
        assert torch.allclose(plain, scaled, atol=1e-5) == unit
    norms = denoised.gradients(task, data, make(torch.tensor([1.0, 0.0, 0.0])), "film", True, 8).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((12,), 1 / 3), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("given", [{}, {"inversion": False}, {"samples": 2}, {"parameters": "all", "unit_norm": False}])
def test_chunk_does_not_matter(trained, given):
    task, data = trained
    data, asked = take(data, slice(0, 7)), images(3, 3)
    whole = attribute("concept_trak", task, data, asked, **given)
    for chunk in (1, 5):
        forget()
        close(attribute("concept_trak", task, data, asked, chunk=chunk, **given), whole, 1e-3)


def test_states_of_the_sampler_know_the_token_alone(trained):
    """With ``samples`` and the token alone two queries with this token are one; their images do not matter."""
    task, data = trained
    asked = {"pixels": images(2, 3)["pixels"], "condition": torch.tensor([[2, 1], [2, 3]])}
    one, other = attribute("concept_trak", task, data, asked, samples=3)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(one).max())
    again = attribute("concept_trak", task, data, asked, samples=3, seed=10)
    assert np.abs(again - one).max() > 1e-3 * np.abs(one).max()
    # a denoising loss on these paths aims at the samples that they end in
    options = Options(samples=2, query_loss="loss", parameters="all")
    states = concept_trak.paths(task, take(asked, [0]), options)
    end = denoisers.sample(task.model, task.params, denoisers.start([0, 1], PIXELS), asked["condition"][[0, 0]],
                           guidance=1.0)  # fmt: skip
    torch.testing.assert_close(states.images[0, 0], end, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("given", [{"inversion": False}, {"samples": 2}])
def test_uniform_timesteps_are_those_of_the_second_loss(trained, given):
    task, data = trained
    asked = take(data, slice(0, 2))
    refused("timesteps='uniform', and the model of task 'toy' has none",
            lambda: attribute("concept_trak", task, data, asked, timesteps="uniform"))  # fmt: skip
    wide = denoisers.draws([100, 500, 900], 2, PIXELS, 4)
    model, other = copy.copy(task.model), copy.copy(task.model)
    model.uniform, other.main = wide, wide
    found, wanted = (
        attribute("concept_trak", replace(task, model=net), data, asked, timesteps=timesteps, **given)
        for net, timesteps in ((model, "uniform"), (other, "main"))
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert np.abs(found - attribute("concept_trak", task, data, asked, **given)).max() > 1e-2 * np.abs(found).max()


def test_a_copy_of_the_query_says_little_about_a_token_it_shares_with_others():
    """A case where it must fail, as any method: the table's net has one picture for a token, so that two images of the
    token with the same pixels in its span are one."""
    torch.manual_seed(1)
    whole = torch.rand(2, PIXELS) - 0.5
    task = table(0.5 * whole)
    data = {"pixels": whole[[0, 0, 1]], "condition": torch.tensor([[1, 0], [1, 0], [2, 0]])}
    scores = attribute("concept_trak", task, data, {"pixels": whole[1:], "condition": torch.tensor([[1, 0]])},
                       inversion=False)[0]  # fmt: skip
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_what_it_cannot_attribute_is_refused():
    task, data = denoiser()
    bare = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in data.items()}
    bare["condition"][[1, 4], 1] = 0
    run = lambda **given: attribute("concept_trak", task, data, bare, **given)  # noqa: E731
    refused(r"queries \[1, 4\] have no second token \(it is 0\)", lambda: run(token="second"))
    assert np.isfinite(run()).all() and np.isfinite(run(token="second", query_loss="loss")).all()
    for line, given in (
        ("token='colour'; one of", {"token": "colour"}),
        ("query_loss='posterior'; one of", {"query_loss": "posterior"}),
        ("train_loss='guidance'; one of", {"train_loss": "guidance"}),
        ("noises=5; the model has 2", {"inversion": False, "noises": 5}),
        ("1 sampling steps are too few to tell 3 timesteps apart", {"steps": 1}),
        ("damping=-1; it must be positive", {"damping": -1}),
    ):
        refused(line, lambda g=given: run(**g))
