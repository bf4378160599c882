"""Unlearning a query of a denoiser (MUCS, AbU): the steps and the stop by hand, the reading of losses, and refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_denoisers import DRAWS, PIXELS, RECIPE, images, make_task, net, params_of
from torch.func import functional_call

from tda import attribute
from tda.attribution import StepTooLarge, mucs
from tda.denoisers import denoising_loss, noised
from tda.task import take, tensors
from tda.tools import noisy_losses
from tda.tools.gradients import matrix, unflatten
from tda.training import train_recorded

LIVELY = {"parameters": "all", "rate": 1.0, "draws": 12, "batch": 16, "tolerance": 0.3}  # of a net of 10 units
RESTING = {"draws": 4, "batch": 4, "max_steps": 3, "bounded": False}


@pytest.fixture(scope="module")
def trained():
    """(task, 24 training images) of a denoiser that has learnt them."""
    model, data = net(), images(24)
    data["pixels"] = (data["pixels"][:4] * 0.9).repeat(6, 1) + 0.1 * data["pixels"]  # four sorts of images
    recipe = replace(RECIPE, epochs=150, batch=8, warmup=0.05, weight_decay=0.01)
    final, run = train_recorded(denoising_loss(model, *DRAWS, 0.1), params_of(model), data, recipe, 0)
    task = make_task()
    return replace(task, loss_fn=denoising_loss(model, *DRAWS, 0.1), params=final, run=run), data


@pytest.fixture(scope="module")
def asked(trained):
    return take(trained[1], [3, 6])


def by_hand(task, params, data, timesteps, noise):
    """Losses [N, J] one image and draw at a time, from the forward process."""
    found = torch.zeros(len(data["pixels"]), len(timesteps))
    for i in range(len(found)):
        for j, t in enumerate(timesteps):
            e = noise[i, j] if noise.dim() == 3 else noise[j]
            noisy = noised(data["pixels"][i], t, e)[None]
            found[i, j] = (
                (functional_call(task.model, params, (noisy, t[None], data["condition"][i : i + 1])) - e)
                .square()
                .mean()
            )
    return found.detach()


# --- unlearning


@pytest.mark.parametrize("parameters", ["mlp", "all"])
@pytest.mark.parametrize("bounded", [True, False])
def test_the_steps_are_a_plain_loop(trained, asked, parameters, bounded):
    task, data = trained
    options = {
        "parameters": parameters,
        "bounded": bounded,
        "max_steps": 4,
        "batch": 5,
        "rate": 0.5,
        "forget": 0.7,
        "seed": 3,
    }
    run = mucs.unlearnt(task, data, asked, **options)[1]
    names = [f"layers.{i}.weight" for i in (0, 1)] if parameters == "mlp" else list(task.params)
    params = {k: v.clone().requires_grad_(k in names) for k, v in task.params.items()}
    first, second = ({k: torch.zeros_like(params[k]) for k in names} for _ in range(2))
    for step in range(4):
        shown = mucs.shown(task, data, take(asked, [1]), 5, 3, step)
        each = []
        for row in range(10):
            t, e = shown["timesteps"][row], shown["noise"][row]
            noisy = noised(shown["pixels"][row], t, e)
            output = functional_call(task.model, params, (noisy, t, shown["condition"][row : row + 1]))
            each.append((output - e).square().mean())
        capped = [min(loss, torch.tensor(run.null)) if bounded else loss for loss in each[5:]]
        retain, forget = sum(each[:5]) / 5, sum(capped) / 5
        assert run.retained[step] == pytest.approx(retain.item(), rel=1e-4)
        assert run.forgotten[step] == pytest.approx(forget.item(), rel=1e-4)
        slopes = torch.autograd.grad(retain - 0.7 * forget, [params[k] for k in names])
        for k, g in zip(names, slopes, strict=True):  # AdamW of the recipe, at half its peak rate
            first[k], second[k] = 0.9 * first[k] + 0.1 * g, 0.99 * second[k] + 0.01 * g**2
            up = (first[k] / (1 - 0.9 ** (step + 1))) / ((second[k] / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8)
            params[k] = (params[k] * (1 - 0.5 * RECIPE.lr * 0.01) - 0.5 * RECIPE.lr * up).detach().requires_grad_()
    assert run.steps == 4 and len(run.forgotten) == 5
    for k, v in run.params.items():
        # where a slope is nearly zero, the first steps of AdamW magnify its rounding: the whole is compared
        assert (v - params[k].detach()).norm() < 1e-4 * max(1.0, float(v.norm())), k
        assert torch.equal(v, task.params[k]) == (k not in names)


def test_a_batch_is_training_images_and_the_query_as_training_shows_them(trained, asked):
    task, data = trained
    one, same_step, later, other = (
        mucs.shown(task, data, take(asked, [q]), 400, 0, s) for q, s in ((0, 2), (1, 2), (0, 3), (0, 3))
    )
    rows = {tuple(row) for row in data["pixels"].tolist()}
    assert {tuple(row) for row in one["pixels"][:400].tolist()} == rows, "with 400 draws of 24 all appear"
    torch.testing.assert_close(one["pixels"][400:], asked["pixels"][:1].expand(400, -1))
    assert torch.equal(one["noise"], same_step["noise"]) and not torch.equal(one["noise"], later["noise"])
    assert (
        torch.equal(later["timesteps"], other["timesteps"])
        and torch.cdist(one["noise"][400:, 0], one["noise"][:400, 0]).min() > 1
    )
    assert one["timesteps"].max() > 950 and 0.03 < float((one["condition"] == 0).float().mean()) < 0.2


def test_the_null_loss_is_that_of_the_untrained_network(trained):
    task, data = trained
    found, generator = mucs.null_loss(task, data), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(300):
        t = torch.randint(1000, (24, 1), generator=generator)
        own = {"timesteps": t, "noise": torch.randn(24, 1, PIXELS, generator=generator)}
        losses.append(task.loss_fn(task.run.initial.params, tensors(data) | own).item())
    assert found == pytest.approx(np.mean(losses), rel=0.02)
    assert found > 1.5 * float(task.loss_fn(task.params, tensors(data) | own))


def test_a_bounded_run_stops_as_soon_as_it_is_at_its_bound(trained, asked):
    (task, data), seen = trained, []
    for run in mucs.unlearnt(task, data, asked, max_steps=300, **{k: v for k, v in LIVELY.items() if k != "draws"}):
        goal = 0.7 * run.null
        assert 0 < run.steps < 300 and len(run.forgotten) == run.steps + 1 == len(run.retained)
        assert run.forgotten[-1] >= goal > max(run.forgotten[:-1]) and max(run.forgotten) <= run.null
        last = mucs.shown(task, data, take(asked, [len(seen)]), 16, 0, run.steps)
        each = task.loss_fn(run.params, last, "example")[16:]
        assert each.min() < run.null < each.max()
        assert run.forgotten[-1] == pytest.approx(float(each.clamp(max=run.null).mean()), rel=1e-4), "capped one by one"
        seen.append(run)
    longer = mucs.unlearnt(task, data, asked, max_steps=290, **{k: v for k, v in LIVELY.items() if k != "draws"})
    assert all(torch.equal(longer[1].params[k], run.params[k]) for k in run.params), "the limit does not matter"


def test_without_a_bound_the_model_is_ruined(trained, asked):
    """A case where it must fail: what is not capped goes on rising, and takes the training images with it."""
    task, data = trained
    options = {"parameters": "all", "rate": 1.0, "batch": 16, "max_steps": 120, "forget": 2.0}
    free = mucs.unlearnt(task, data, asked, bounded=False, **options)
    bound = mucs.unlearnt(task, data, asked, bounded=True, tolerance=0.3, **options)
    for one, other in zip(free, bound, strict=True):
        assert one.steps == 120 and one.forgotten[-1] > 2 * one.null >= 2 * max(other.forgotten)
        assert one.retained[-1] > 2 * other.retained[-1]


# --- reading


def test_skew_and_difference_of_a_case_by_hand():
    before, after = torch.tensor([[1.0, 0.5], [0.2, 0.2]]), torch.tensor([[[3.0, 0.5], [0.1, 0.6]]])
    skew = [[(2 / 4.001 + 0) / 2, (-0.1 / 0.301 + 0.4 / 0.801) / 2]]
    difference = [[1.0, 0.15]]
    for score, wanted in (("skew", skew), ("difference", difference)):
        found = noisy_losses.compared(before, after, noisy_losses.Reading(score=score))
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        fresh = noisy_losses.compared(before, after, noisy_losses.Reading(score=score, noise="fresh"))
        means = [[1.0 / 2.501, 0.15 / 0.551]] if score == "skew" else difference
        np.testing.assert_allclose(fresh, means, rtol=1e-5)


@pytest.mark.parametrize("noise", noisy_losses.NOISES)
def test_losses_of_draws_are_a_loop(trained, noise):
    task, data = trained
    reading = noisy_losses.Reading(noise=noise, draws=4, t_min=100, t_max=400, chunk=5, seed=2)
    few, t, initial = take(data, slice(0, 6)), torch.tensor([100, 200, 300, 400]), task.run.initial.params
    both = [noisy_losses.draw_losses(task, [task.params, initial], few, reading, s) for s in (0, 1)]
    found = [losses[0] for losses in both]
    for side in (0, 1):
        if noise == "consistent":
            e = torch.from_numpy(np.random.default_rng([2, 55]).standard_normal((4, PIXELS), np.float32))
        else:
            stream = side if noise == "fresh" else 0
            e = np.stack(
                [np.random.default_rng([2, 56, stream, i]).standard_normal((4, PIXELS), np.float32) for i in range(6)]
            )
            e = torch.from_numpy(e)
        torch.testing.assert_close(found[side], by_hand(task, task.params, few, t, e), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(both[side][1], by_hand(task, initial, few, t, e), atol=1e-5, rtol=1e-4)
    assert torch.equal(*found) == (noise != "fresh")


def test_scores_compare_the_unlearnt_model_with_the_model(trained, asked):
    task, data = trained
    options = LIVELY | {"t_min": 50, "t_max": 600}
    runs = mucs.unlearnt(task, data, asked, **{k: v for k, v in LIVELY.items() if k != "draws"})
    t = torch.from_numpy(np.linspace(50, 600, 12).round().astype(int))
    e = torch.from_numpy(np.random.default_rng([0, 55]).standard_normal((12, PIXELS), np.float32))
    before = by_hand(task, task.params, data, t, e)
    for score in noisy_losses.SCORES:
        found = attribute("mucs", task, data, asked, score=score, **options)
        for q, run in enumerate(runs):
            after = by_hand(task, run.params, data, t, e)
            change = after - before
            wanted = (change / (after + before + 1e-3) if score == "skew" else change).mean(1)
            np.testing.assert_allclose(found[q], wanted, rtol=1e-3, atol=1e-5)
            assert found[q].mean() > 0, "the model that forgot is worse"


@pytest.mark.parametrize(
    "name, score, options",
    [("mucs", "skew", LIVELY), ("mucs", "difference", LIVELY), ("abu", "difference", {})],
)
def test_a_planted_copy_of_the_query_comes_first(trained, name, score, options):
    task, data = trained
    for q in (3, 6, 13):
        found = attribute(name, task, data, take(data, [q]), score=score, **options)[0]
        assert found.argmax() == q and found[q] > 0, f"{name} ranks {found.argmax()} above {q}"


@pytest.mark.parametrize(
    "name, options", [("mucs", LIVELY), ("mucs", LIVELY | {"noise": "fresh"}), ("abu", {"noise": "per_image"})]
)
def test_chunks_and_other_queries_do_not_matter(trained, asked, name, options):
    task, data = trained
    whole = attribute(name, task, data, asked, **options)
    assert whole.dtype == np.float32 and whole.shape == (2, 24)
    np.testing.assert_allclose(attribute(name, task, data, asked, chunk=7, **options), whole, atol=1e-5, rtol=1e-3)
    alone = attribute(name, task, data, take(asked, [1]), **options)
    np.testing.assert_allclose(alone[0], whole[1], atol=1e-5, rtol=1e-3)
    other = attribute(name, task, data, asked, seed=1, **options)
    assert not np.allclose(other, whole, rtol=1e-3), "another seed, other draws"


def test_scores_are_finite_and_small_in_skew(trained, asked):
    task, data = trained
    found = attribute("mucs", task, data, asked, **LIVELY)
    assert (np.abs(found) < 1).all()
    images_own = attribute("mucs", task, data, asked, noise="per_image", **LIVELY)
    fresh = attribute("mucs", task, data, asked, noise="fresh", **LIVELY)
    assert np.corrcoef(found[0], images_own[0])[0, 1] > np.corrcoef(found[0], fresh[0])[0, 1]


# --- AbU


@pytest.mark.parametrize("parameters", noisy_losses.PARAMETERS)
def test_abu_is_one_natural_step(trained, asked, parameters):
    task, data = trained
    options = {"parameters": parameters, "step": 1e-4, "unit": "absolute", "damping": 0.3, "draws": 3}
    found = attribute("abu", task, data, asked, **options)
    names = [k for k in task.params if parameters == "all" or k in ("layers.0.weight", "layers.1.weight")]
    keep = torch.cat([torch.full((v.numel(),), k in names) for k, v in task.params.items()])
    documents, queries = matrix(task, data), matrix(task, asked)
    fisher = documents[:, keep].square().mean(0)
    t = torch.tensor([25, 500, 975])
    e = torch.from_numpy(np.random.default_rng([0, 55]).standard_normal((3, PIXELS), np.float32))
    before = by_hand(task, task.params, data, t, e)
    for q in range(2):
        step = torch.zeros_like(queries[q])
        step[keep] = 1e-4 * queries[q][keep] / (fisher + 0.3 * fisher.mean())
        moved = {k: task.params[k] + v for k, v in unflatten(step, task.params).items()}
        wanted = (by_hand(task, moved, data, t, e) - before).mean(1)
        np.testing.assert_allclose(found[q], wanted, rtol=2e-2, atol=2e-6)


def test_abu_knows_ekfac_and_moves_by_the_step(trained, asked):
    task, data = trained
    one, other = (attribute("abu", task, data, asked, fisher=kind, queries_at_once=1) for kind in ("diagonal", "ekfac"))
    assert 0.1 < np.corrcoef(one[0], other[0])[0, 1] < 0.9999
    np.testing.assert_allclose(attribute("abu", task, data, asked, fisher="ekfac"), other, rtol=1e-2, atol=1e-5)


# --- refusals


def test_a_query_that_is_not_forgotten_is_named_and_not_ranked(trained, asked):
    task, data = trained
    with pytest.raises(
        mucs.BoundNotReached,
        match=r"queries \[0, 1\] do not reach the bound .* within max_steps=2 .*they are not ranked. Raise max_steps",
    ):
        attribute("mucs", task, data, asked, **LIVELY | {"max_steps": 2, "tolerance": 0.01})
    runs = mucs.unlearnt(task, data, asked, max_steps=2, rate=0.1)
    assert [run.steps for run in runs] == [2, 2] and all(run.forgotten[-1] < run.null for run in runs), "reported"


def test_only_the_queries_that_failed_are_named(trained, asked):
    task, data = trained
    steps = [run.steps for run in mucs.unlearnt(task, data, asked, **{k: v for k, v in LIVELY.items() if k != "draws"})]
    assert steps[0] != steps[1]
    slow = int(np.argmax(steps))
    with pytest.raises(mucs.BoundNotReached, match=rf"queries \[{slow}\] do not"):
        attribute("mucs", task, data, asked, **LIVELY | {"max_steps": min(steps)})


def test_a_query_that_was_never_learnt_is_refused(trained, asked):
    task, data = trained
    blank = replace(task, params=task.run.initial.params)
    with pytest.raises(
        ValueError, match=r"queries \[0, 1\] are at the bound .* before the first step: nothing to unlearn"
    ):
        attribute("mucs", blank, data, asked, **LIVELY)


def test_models_that_break_are_refused(trained, asked):
    task, data = trained
    with pytest.raises(
        StepTooLarge, match=r"mucs: unlearning queries \[0, 1\] leaves a model whose losses are not finite"
    ):
        attribute("mucs", task, data, asked, **RESTING | {"rate": 1e22, "parameters": "all"})
    with pytest.raises(StepTooLarge, match=r"abu: a step of step=1e\+30 .absolute. on queries \[0, 1\]"):
        attribute("abu", task, data, asked, step=1e30, unit="absolute")


def test_what_it_cannot_work_with_is_refused_in_one_line(trained, asked):
    task, data = trained
    plain = replace(task, loss_fn=lambda *given: task.loss_fn(*given))
    other = {f"net.{k}": v for k, v in task.params.items()}
    for name, given, options, line in (
        ("mucs", task, {"t_min": 500, "t_max": 400}, "t_min=500 and t_max=400; t_min must be at most t_max"),
        ("abu", task, {"t_max": 1000}, "timestep 1000; the schedule has the whole numbers 0 to 999"),
        ("mucs", task, {"t_max": 1000}, "timestep 1000; the schedule has the whole numbers 0 to 999"),
        ("mucs", task, {"score": "ratio"}, "mucs: score='ratio'; one of"),
        ("mucs", task, {"noise": "item"}, "mucs: noise='item'; one of"),
        ("mucs", task, {"tolerance": 2}, "tolerance=2; it must be a number from 0 to 1"),
        ("mucs", plain, {}, "the loss of task 'toy' draws no noise: this method is for denoisers"),
        ("abu", plain, {}, "the loss of task 'toy' draws no noise: this method is for denoisers"),
        ("mucs", replace(task, run=replace(task.run, initial=None)), {}, "no untrained network or no recipe"),
        ("mucs", replace(task, run=None), {}, "'mucs' needs 'checkpoints'"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            attribute(name, given, data, asked, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no parameter named like 'layers.0.weight'; .*Use parameters='all'"):
        noisy_losses.moving_names(replace(task, params=other), "mlp")
