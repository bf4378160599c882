"""TRAK, D-TRAK, DAS and Journey-TRAK of denoisers: against explicit gradients and the primal solve."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_denoisers import DRAWS, PIXELS, SHAPE, TOKENS, images, params_of
from torch.func import functional_call

from tda import attribute, denoisers
from tda.attribution import diffusion_trak
from tda.attribution.registry import METHODS
from tda.denoisers import FilmConv, FilmMLP
from tda.recipe import Recipe
from tda.task import Task, take
from tda.tools import denoised
from tda.tools.cache import forget
from tda.training import train

NAMES = ("diffusion_trak", "d_trak", "das", "journey_trak")
NETS = {  # some thousand parameters, whose P x P matrices are solved in an instant
    "mlp": lambda prediction: FilmMLP(SHAPE, TOKENS, 6, 2, prediction, code=8),
    "conv": lambda prediction: FilmConv(SHAPE, TOKENS, 3, 1, prediction, code=8),
}


def denoiser(name="mlp", prediction="noise", epochs=0):
    """A denoiser of 12 images with draws of its own, trained on them or not: (task, images)."""
    torch.manual_seed(3)
    model, data = NETS[name](prediction).eval(), images(12)
    model.main = DRAWS
    parts = {"outputs_fn": denoisers.outputs_function(model, *DRAWS), "output_loss": "squared_error"}
    task = Task("toy", denoisers.denoising_loss(model, *DRAWS), params_of(model), model, **parts)
    if epochs:
        recipe = Recipe(epochs, 4, 0.01, 0.0, optimizer="adamw_averaged", clip=1.0, warmup=0.1, averaged=0.9)
        task = replace(task, params=train(task.loss_fn, params_of(task.model), data, recipe, 0).params)
    return task, data


@pytest.fixture(scope="module")
def trained():
    return denoiser(epochs=60)


def explicit(task, data, value, names=None):
    """One backward pass an image: gradients [n, P] of ``value(output [K, D], target [K, D])`` over the draws."""
    rows, model = [], task.model
    for image, condition in zip(data["pixels"], data["condition"], strict=True):
        own = {k: v.clone().requires_grad_() for k, v in task.params.items()}
        noisy = denoisers.noised(image.expand(len(DRAWS[0]), -1), *DRAWS)
        output = functional_call(model, own, (noisy, DRAWS[0], condition.expand(len(noisy), 2)))
        value(output, DRAWS[1] if model.prediction == "noise" else image.expand_as(output)).backward()
        rows.append(torch.cat([own[k].grad.flatten() for k in own if names is None or k.startswith(names)]))
    return torch.stack(rows).double()


def primal(x_q, x_t, damping):
    """``X_q (X_t^T X_t + delta)^-1 X_t^T``, the P x P matrix written out."""
    gram = x_t.T @ x_t
    delta = damping * gram.trace() / len(x_t)
    return x_q @ torch.linalg.solve(gram + delta * torch.eye(len(gram)).double(), x_t.T)


def close(found, wanted, tolerance=2e-4):
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(np.asarray(found), wanted, atol=tolerance * np.abs(wanted).max(), rtol=1e-3)


VALUES = {
    "diffusion_trak": lambda output, target: (output - target).square().mean(),
    "d_trak": lambda output, target: output.square().mean(),
    "das": lambda output, target: output.mean(),
}


@pytest.mark.parametrize("prediction", denoisers.PREDICTIONS)
@pytest.mark.parametrize("net", ["mlp", "conv"])
@pytest.mark.parametrize("name", VALUES)
def test_the_dual_form_is_the_primal_solve_of_explicit_gradients(name, net, prediction):
    task, data = denoiser(net, prediction)
    asked = images(3, seed=5)
    own = {"error": "none"} if name == "das" else {}
    for parameters, names in (("film", "film."), ("all", None)):
        x_t, x_q = (explicit(task, x, VALUES[name], names) for x in (data, asked))
        found = attribute(name, task, data, asked, damping=0.05, parameters=parameters, **own)
        close(found, primal(x_q, x_t, 0.05))


def test_unit_norm_is_of_the_gradient_of_each_timestep(trained):
    task, data = trained
    parts = []
    for rows in (slice(0, 2), slice(2, 4), slice(4, 6)):  # the two draws of each timestep
        part = explicit(task, data, lambda out, target, rows=rows: (out - target)[rows].square().mean())
        parts.append(torch.nn.functional.normalize(part, dim=1))
    wanted = sum(parts) / 3
    close(attribute("diffusion_trak", task, data, data, unit_norm=True), primal(wanted, wanted, 0.1))


def test_fewer_noises_are_the_first_of_each_timestep(trained):
    task, data = trained
    x = explicit(task, data, lambda out, target: (out - target)[::2].square().mean())
    close(attribute("diffusion_trak", task, data, data, noises=1), primal(x, x, 0.1))


def test_das_weighs_by_the_error_and_the_leverage(trained):
    task, data = trained
    x = explicit(task, data, VALUES["das"])
    plain, hat = primal(x[:4], x, 0.1), primal(x, x, 0.1).diagonal()
    each = denoisers.denoising_loss(task.model, *DRAWS)(task.params, take_tensors(data), "token")
    error = each.unflatten(1, (3, 2)).mean(2).double().sqrt()
    asked = take(data, slice(0, 4))
    close(attribute("das", task, data, asked), plain * (error / error.norm(dim=1, keepdim=True)).mean(1))
    size = plain * error.square().mean(1).sqrt()
    close(attribute("das", task, data, asked, error="size"), size)
    close(attribute("das", task, data, asked, error="none", leverage=True), plain / (1 - hat))
    squared = attribute("das", task, data, asked, error="size", square=True)
    close(squared, size.square())


def take_tensors(data):
    return {k: v for k, v in data.items() if isinstance(v, torch.Tensor)}


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_of_the_query_comes_first(name, trained):
    task, data = trained
    scores = attribute(name, task, data, take(data, [2, 7, 9]), damping=0.01)
    if name == "journey_trak":  # it asks about what the sampler saw on its way, which is not yet the image
        assert (scores[range(3), [2, 7, 9]] > 0).all()
    else:
        assert scores.argmax(1).tolist() == [2, 7, 9]


def test_what_teaches_the_opposite_scores_below_zero(trained):
    """To first order a step on image i lowers the query's loss by a positive multiple of the score: with one query as
    the corpus's only neighbour the sign is that of the inner product of gradients, whatever the damping."""
    task, data = trained
    asked = take(data, slice(0, 3))
    for q in range(3):
        only = take(data, [q + 3])
        inner = (
            explicit(task, take(asked, [q]), VALUES["diffusion_trak"])
            @ explicit(task, only, VALUES["diffusion_trak"]).T
        )
        scores = attribute("diffusion_trak", task, only, take(asked, [q]))
        assert np.sign(scores[0, 0]) == np.sign(float(inner))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unit_norm", [False, True])
def test_chunk_does_not_matter(name, unit_norm, trained):
    task, data = trained
    data, asked = take(data, slice(0, 7)), take(data, slice(0, 3))
    whole = attribute(name, task, data, asked, unit_norm=unit_norm)
    for chunk in (1, 5):
        forget()
        close(attribute(name, task, data, asked, unit_norm=unit_norm, chunk=chunk), whole)


def test_images_with_equal_gradients_cannot_be_told_apart(trained):
    """A case where it must fail: a copy among the documents scores as its original."""
    task, data = trained
    both = take(data, [*range(12), 4])
    scores = attribute("diffusion_trak", task, both, take(data, [4, 6]))
    np.testing.assert_allclose(scores[:, 4], scores[:, 12], rtol=1e-4)


# --- states


def test_inversion_is_the_written_out_loop_and_sampling_leads_back():
    task, data = denoiser(epochs=60)
    model, params, times = task.model, task.params, torch.tensor([200, 400])
    found = denoised.inverted(model, params, data, times, 20)
    assert found.timesteps.tolist() == [200, 400] and found.noisy.shape == (12, 2, 1, PIXELS)
    x, seen = data["pixels"][3], {}
    with torch.no_grad():
        for t in range(0, 401, 50):
            seen[t] = x
            noise, image = denoisers.predicted(model, params, x, torch.tensor(t), data["condition"][3])
            x = denoisers.noised(image, torch.tensor(t + 50), noise)
    for place, t in enumerate((200, 400)):
        torch.testing.assert_close(found.noisy[3, place, 0], seen[t], atol=1e-5, rtol=1e-4)
    gaps = []
    for steps in (10, 250):  # finer steps, closer back
        x, grid = denoised.inverted(model, params, data, times[1:], steps).noisy[:, 0, 0], denoisers.grid(steps)
        with torch.no_grad():
            for t, following in zip(grid, [*grid[1:], None], strict=True):
                if t > 400 or following is None:
                    continue
                noise, image = denoisers.predicted(model, params, x, torch.full((12,), t), data["condition"])
                x = denoisers.noised(image, torch.full((12,), following), noise)
        gaps.append(float((x - data["pixels"]).square().mean()))
    assert gaps[1] < gaps[0] / 4


def test_the_target_of_a_state_is_what_leads_to_it():
    task, data = denoiser()
    states = denoised.forward(data, denoised.shared(task.model, 0, "x"))
    torch.testing.assert_close(states.target("noise")[4].flatten(0, 1), DRAWS[1], atol=2e-3, rtol=1e-3)
    assert torch.equal(states.target("image")[4, 1, 1], data["pixels"][4])


def test_sampled_states_are_the_samplers_path():
    task, data = denoiser(epochs=20)
    start = denoisers.start([3, 4], PIXELS)
    states, seen = denoised.sampled(
        task.model, task.params, start.expand(12, 2, -1), data["condition"], torch.tensor([190, 400]), 20
    )
    path = denoisers.ddim(task.model, task.params, start, data["condition"][[5, 5]], steps=20, guidance=1.0)
    by_time = {t: (x, image) for t, x, image in path}
    assert states.timesteps.tolist() == [200, 400]
    for place, t in enumerate((200, 400)):
        torch.testing.assert_close(states.noisy[5, place], by_time[t][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(seen[5, place], by_time[t][1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(states.images[5, 0], path[-1][2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("path", diffusion_trak.PATHS)
def test_the_journey_takes_at_each_timestep_what_the_sampler_saw(path, trained):
    task, data = trained
    asked = take(data, [1, 6]) | {"noise_seed": [8, 9]}
    found = attribute("journey_trak", task, data, asked, path=path, steps=20)
    x_t, rows = explicit(task, data, VALUES["diffusion_trak"]), []
    for q in range(2):
        condition, nearest = asked["condition"][q], {10: 50, 200: 200, 400: 400}
        if path == "sampled":
            steps = denoisers.ddim(task.model, task.params, denoisers.start([8 + q], PIXELS), condition[None], 20, 1.0)
            seen = {t: image[0] for t, _, image in steps}
        else:
            x, seen = asked["pixels"][q], {}
            with torch.no_grad():
                for t in range(0, 401, 50):
                    noise, image = denoisers.predicted(task.model, task.params, x, torch.tensor(t), condition)
                    seen[t], x = image.clamp(-1, 1), denoisers.noised(image, torch.tensor(t + 50), noise)
        total = 0
        for place, t in enumerate((10, 200, 400)):  # each timestep a query of its own
            one = {"pixels": seen[nearest[t]][None], "condition": condition[None]}
            rows_of = slice(2 * place, 2 * place + 2)
            value = lambda out, target, r=rows_of: (out - target)[r].square().mean()  # noqa: E731
            total = total + explicit(task, one, value)[0] / 3
        rows.append(total)
    close(found, primal(torch.stack(rows), x_t, 0.1), 5e-4)


# --- refusals


def refused(line, call):
    with pytest.raises(ValueError, match=line) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*NAMES, "concept_trak"])
def test_what_is_no_denoiser_is_refused(name):
    task, data = denoiser()
    linear = torch.nn.Linear(4, 2)
    params = {k: v.detach() for k, v in linear.named_parameters()}
    x = {"x": torch.randn(3, 4), "y": torch.randn(3, 2)}
    plain = Task(
        "line", line_loss(linear), params, linear, outputs_fn=line_outputs(linear), output_loss="squared_error"
    )
    refused(f"{name} asks a denoiser .* task 'line' is a Linear", lambda: attribute(name, plain, x, x))
    del task.model.main
    refused("FilmMLP without draws", lambda: attribute(name, task, data, data))
    task.model.main = DRAWS
    own = data | denoisers.own(DRAWS, 12)
    refused("chooses timesteps and noise itself; remove", lambda: attribute(name, task, own, data))


def line_outputs(linear):
    return lambda p, b: (functional_call(linear, p, (b["x"],)).unsqueeze(1), b["y"].unsqueeze(1))


def line_loss(linear):
    def loss(p, b, reduction="mean"):
        each = (functional_call(linear, p, (b["x"],)) - b["y"]).square().mean(1)
        return each if reduction == "example" else getattr(each, reduction)()

    return loss


def test_bad_options_and_columns_are_refused():
    task, data = denoiser()
    for line, name, given in (
        ("noises=3; the model has 2 for a timestep", "diffusion_trak", {"noises": 3}),
        ("parameters='body'; one of", "d_trak", {"parameters": "body"}),
        ("damping=0; it must be positive", "das", {"damping": 0}),
        ("a column 'noise_seed' of whole numbers; that of the queries is missing", "journey_trak", {"path": "sampled"}),
        ("2 sampling steps are too few to tell 3 timesteps apart", "journey_trak", {"steps": 2}),
    ):
        refused(line, lambda n=name, g=given: attribute(n, task, data, data, **g))
    task.model.main = (torch.tensor([5, 5, 9]), DRAWS[1][:3])
    refused("a block of equal size for each timestep", lambda: attribute("d_trak", task, data, data))
    assert set(NAMES) <= set(METHODS)
