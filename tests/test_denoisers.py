"""Denoisers: the schedule and sampling against closed forms and diffusers, the loss, what training draws, both nets."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import same
from torch.func import functional_call, grad, vmap

from tda import attribute, denoisers
from tda.curvature import layers
from tda.denoisers import FilmConv, FilmMLP, denoising_loss, draws, noised, outputs_function, own, predicted, sample
from tda.recipe import Recipe, data_order, schedule, steps_of
from tda.task import Task, n_examples, take, tensors
from tda.tools import perturb
from tda.training import train, train_recorded

SHAPE, TOKENS, PIXELS = (3, 4, 4), (4, 3), 48
MADE = {"mlp": lambda kind="noise": FilmMLP(SHAPE, TOKENS, 10, 2, kind),
        "conv": lambda kind="noise": FilmConv(SHAPE, TOKENS, 5, 2, kind)}  # fmt: skip
RECIPE = Recipe(3, 4, 0.01, 0.02, optimizer="adamw_averaged", clip=1.0, warmup=0.1, averaged=0.9)


def net(name="mlp", prediction="noise"):
    torch.manual_seed(3)
    return MADE[name](prediction).eval()


def params_of(model):
    return {k: v.detach() for k, v in model.named_parameters()}


def images(n, seed=0):
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.uniform(-1, 1, (n, PIXELS)).astype(np.float32))
    condition = np.stack([rng.integers(1, count + 1, n) for count in TOKENS], 1)
    return {"pixels": pixels, "condition": torch.from_numpy(condition), "entity": [str(i) for i in range(n)]}


DRAWS = draws([10, 200, 400], 2, PIXELS, 0)


def make_task(name="mlp", prediction="noise"):
    model = net(name, prediction)
    outputs_fn = outputs_function(model, *DRAWS)
    return Task("toy", denoising_loss(model, *DRAWS), params_of(model), model, outputs_fn=outputs_fn,
                output_loss="squared_error")  # fmt: skip


# --- schedule and sampling


def test_schedule_is_the_product_of_linear_betas():
    betas, left = np.linspace(1e-4, 0.02, 1000), 1.0
    for t, beta in enumerate(betas):
        left *= 1 - beta
        assert float(denoisers.kept()[t]) == pytest.approx(left, rel=1e-6)
    signal, spread = denoisers.strengths(torch.tensor([0, 999]))
    torch.testing.assert_close(signal**2 + spread**2, torch.ones(2, 1))
    assert signal[0] > 0.9999 and signal[1] < 0.01


def test_noised_images_have_the_moments_of_the_forward_process():
    image, t = torch.linspace(-1, 1, PIXELS), torch.tensor(300)
    noise = torch.randn(4000, PIXELS, generator=torch.Generator().manual_seed(0))
    drawn = noised(image.expand(4000, -1), t.expand(4000), noise)
    left = float(denoisers.kept()[300])
    torch.testing.assert_close(drawn.mean(0), left**0.5 * image, atol=0.06, rtol=0)
    torch.testing.assert_close(drawn.var(0), torch.full((PIXELS,), 1 - left), atol=0, rtol=0.15)


@pytest.mark.skipif(find_spec("diffusers") is None, reason="the oracle diffusers is not installed")
@pytest.mark.parametrize("guided", [1.0, 2.0])
def test_forward_process_and_sampling_are_those_of_diffusers(guided):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    theirs, data, t = DDPMScheduler(num_train_timesteps=1000), images(5)["pixels"], torch.tensor([0, 10, 400, 700, 999])
    noise = torch.randn(5, PIXELS)
    torch.testing.assert_close(theirs.alphas_cumprod.double(), denoisers.kept(), atol=1e-6, rtol=0)
    torch.testing.assert_close(theirs.add_noise(data, noise, t), noised(data, t, noise), atol=1e-5, rtol=0)
    model, condition, x = net(), images(5)["condition"], denoisers.start([4, 5, 6, 7, 8], PIXELS)
    ours, sampler = sample(model, params_of(model), x, condition, steps=20, guidance=guided), DDIMScheduler(1000)
    sampler.set_timesteps(20)
    with torch.no_grad():
        for step in sampler.timesteps:
            noise, _ = predicted(model, params_of(model), x, step.expand(5), condition, guided)
            x = sampler.step(noise, step, x, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", denoisers.PREDICTIONS)
def test_noise_and_image_that_are_predicted_make_up_the_noisy_image(prediction):
    model, data, t = net(prediction=prediction), images(4), torch.tensor([5, 100, 500, 900])
    noisy = noised(data["pixels"], t, torch.randn(4, PIXELS))
    noise, image = predicted(model, params_of(model), noisy, t, data["condition"])
    torch.testing.assert_close(noised(image, t, noise), noisy, atol=1e-4, rtol=1e-4)
    kind = {"noise": noise, "image": image}[prediction]
    torch.testing.assert_close(kind, model(noisy, t, data["condition"]))
    unguided, _ = predicted(model, params_of(model), noisy, t, data["condition"], guidance=0.0)
    plain, _ = predicted(model, params_of(model), noisy, t, 0 * data["condition"])
    torch.testing.assert_close(unguided, plain)
    strong, _ = predicted(model, params_of(model), noisy, t, data["condition"], guidance=3.0)
    torch.testing.assert_close(strong, plain + 3 * (noise - plain), atol=1e-4, rtol=1e-4)


def test_a_perfect_model_of_one_image_samples_it():
    class Knows(FilmMLP):
        def forward(self, noisy, timesteps, condition):
            return torch.linspace(-1, 1, PIXELS).expand(noisy.shape)

    model = Knows(SHAPE, TOKENS, 4, 1, "image")
    path = denoisers.ddim(model, params_of(model), denoisers.start([1, 2], PIXELS), images(2)["condition"])
    assert [t for t, _, _ in path] == list(range(980, -1, -20))
    torch.testing.assert_close(path[-1][2], torch.linspace(-1, 1, PIXELS).expand(2, -1))
    torch.testing.assert_close(path[0][1], denoisers.start([1, 2], PIXELS))
    assert not torch.equal(path[0][1][0], path[0][1][1])


# --- the loss


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("prediction", denoisers.PREDICTIONS)
def test_loss_is_the_squared_error_of_what_is_predicted(name, prediction):
    task, data = make_task(name, prediction), images(5)
    by_hand = torch.zeros(5, 6)
    for i in range(5):
        for k, (t, e) in enumerate(zip(*DRAWS, strict=True)):
            noisy = noised(data["pixels"][i], t, e)
            output = task.model(noisy[None], t[None], data["condition"][i : i + 1])[0]
            by_hand[i, k] = (output - (e if prediction == "noise" else data["pixels"][i])).square().mean()
    batch = tensors(data)
    torch.testing.assert_close(task.loss_fn(task.params, batch, "token"), by_hand.detach())
    torch.testing.assert_close(task.loss_fn(task.params, batch, "example"), by_hand.mean(1).detach())
    torch.testing.assert_close(task.loss_fn(task.params, batch, "sum"), by_hand.mean(1).sum().detach())
    torch.testing.assert_close(task.loss_fn(task.params, batch), by_hand.mean().detach())
    found, targets = task.outputs_fn(task.params, batch)
    assert found.shape == targets.shape == (5, 6, PIXELS)
    with pytest.raises(ValueError, match="reduction='none'"):
        task.loss_fn(task.params, batch, "none")


@pytest.mark.parametrize("name", MADE)
def test_all_examples_meet_the_same_noise(name):
    task, data = make_task(name), images(6)
    whole = task.loss_fn(task.params, tensors(data), "token")
    turned = task.loss_fn(task.params, tensors(take(data, [4, 1, 1])), "token")
    torch.testing.assert_close(turned, whole[[4, 1, 1]])
    brought = task.loss_fn(task.params, tensors(data) | own(DRAWS, 6), "token")
    torch.testing.assert_close(brought, whole)
    other = draws([10, 200, 400], 2, PIXELS, 1)
    assert not torch.allclose(task.loss_fn(task.params, tensors(data) | own(other, 6), "token"), whole)


def test_the_loss_is_the_mean_of_those_of_its_timesteps():
    model, data = net(), tensors(images(4))
    parts = [
        denoising_loss(model, DRAWS[0][k : k + 1], DRAWS[1][k : k + 1])(params_of(model), data, "example")
        for k in range(6)
    ]
    whole = denoising_loss(model, *DRAWS)(params_of(model), data, "example")
    torch.testing.assert_close(torch.stack(parts).mean(0), whole)


@pytest.mark.parametrize("name", MADE)
def test_gradients_of_examples_are_those_of_a_loop(name):
    task, batch = make_task(name), tensors(images(4))
    together = vmap(grad(lambda p, x: task.loss_fn(p, {k: v[None] for k, v in x.items()}, "sum")), (None, 0))(
        task.params, batch
    )
    for i in range(4):
        alone = grad(lambda p, i=i: task.loss_fn(p, take(batch, [i]), "sum"))(task.params)
        for k in alone:
            torch.testing.assert_close(together[k][i], alone[k], atol=1e-5, rtol=1e-4)


def test_draws_repeat_each_timestep_and_differ_from_one_another():
    timesteps, noise = draws([3, 7], 4, PIXELS, 5)
    assert timesteps.tolist() == [3] * 4 + [7] * 4 and noise.shape == (8, PIXELS)
    assert torch.cdist(noise, noise).fill_diagonal_(9).min() > 1
    assert torch.equal(noise, draws([3, 7], 4, PIXELS, 5)[1])


# --- the nets


def test_all_parameters_of_the_mlp_are_in_layers_that_curvature_knows():
    task = make_task()
    assert not layers.untracked(task, layers.trackable(task))
    scores = attribute("influence", task, images(12), images(3, 1), curvature="ekfac", damping=0.1)
    assert scores.shape == (3, 12)


def test_a_copy_of_the_query_comes_first():
    task, data = make_task(), images(10)
    for name in ("gradient_cosine", "influence"):
        more = {"curvature": "ekfac", "damping": 0.01} if name == "influence" else {}
        scores = attribute(name, task, data, take(data, [2, 7]), **more)
        assert scores.argmax(1).tolist() == [2, 7], name


def test_what_a_convolutional_net_says_of_a_pixel_is_local():
    torch.manual_seed(0)
    model, t, condition = (
        FilmConv((1, 20, 20), (1, 1), 4, 1).eval(),
        torch.tensor([100]),
        torch.ones(1, 2, dtype=torch.long),
    )
    x = torch.randn(1, 400, requires_grad=True)
    slope = torch.autograd.grad(model(x, t, condition)[0, 0], x)[0].reshape(20, 20) != 0
    reach = 2 * (1 + 2) + 1  # two pixels a convolution, and the neighbour in the block
    assert slope[: reach + 1, : reach + 1].any() and not slope[reach + 1 :].any() and not slope[:, reach + 1 :].any()
    with pytest.raises(ValueError, match="images of 5 x 6; a convolutional denoiser takes even sizes"):
        FilmConv((1, 5, 6), (1, 1), 4, 1)


def test_token_zero_is_no_token():
    model, x, t = net(), torch.randn(2, PIXELS), torch.tensor([50, 50])
    both = torch.tensor([[2, 1], [0, 0]])
    with torch.no_grad():
        before = model(x, t, both)
        model.code.weight[:, 32:] += 1
        after = model(x, t, both)
    assert torch.equal(before[1], after[1]) and not torch.equal(before[0], after[0])


@pytest.mark.parametrize("name", MADE)
def test_features_are_what_the_last_layer_sees(name):
    task, data = make_task(name), images(70)
    found = denoisers.features(task.model, task.params, DRAWS, data)
    assert found.shape == (70, {"mlp": 10, "conv": 5}[name]) and not task.model.leave._forward_pre_hooks
    for i in (0, 66):
        noisy = noised(data["pixels"][i].expand(6, -1), *DRAWS)
        code = task.model.coded(DRAWS[0], data["condition"][i].expand(6, 2))
        hidden = task.model.hidden(noisy, code)
        hidden = hidden.flatten(2).mean(2) if name == "conv" else hidden
        np.testing.assert_allclose(found[i], hidden.mean(0).detach().numpy(), atol=1e-5)


# --- training


def test_what_an_example_meets_depends_on_seed_epoch_and_place_alone():
    data = tensors(images(200))
    one, again, later, other = (denoisers.redrawn(data, *at, 0.2) for at in ((1, 0), (1, 0), (1, 1), (2, 0)))
    assert same(one, again)
    for drawn in (later, other):
        assert not torch.equal(one["noise"], drawn["noise"]) and not torch.equal(one["timesteps"], drawn["timesteps"])
    left_out = one["condition"] == 0
    assert 0.14 < float(left_out.float().mean()) < 0.26 and torch.equal(
        one["condition"][~left_out], data["condition"][~left_out]
    )
    assert 0.01 < float(left_out.all(1).float().mean()) < 0.09, "each token on its own"
    assert one["timesteps"].min() < 50 and one["timesteps"].max() > 950 and one["pixels"] is data["pixels"]


@pytest.mark.parametrize("how", ["filter", "mask"])
def test_runs_on_subsets_are_paired_example_by_example(how):
    model, data = net(), images(10)
    loss_fn, met = denoising_loss(model, *DRAWS, 0.3), {}

    def recorded(params, batch, reduction="mean"):
        for row in range(len(batch["pixels"])):
            met.setdefault(tuple(batch["pixels"][row, :3].tolist()), []).append(batch["noise"][row, 0, 0].item())
        return loss_fn(params, batch, reduction)

    recorded.redrawn = loss_fn.redrawn
    train(recorded, params_of(model), data, RECIPE, 4)
    full, met = met, {}
    mask = np.arange(10) % 3 > 0
    train(recorded, params_of(model), data, RECIPE, 4, mask, how)
    assert len(met) == mask.sum() and all(met[image] == full[image] for image in met)
    assert all(len(set(noise)) == RECIPE.epochs for noise in full.values())


def test_training_is_the_plain_loop_and_the_model_its_average():
    model, data = net(), images(10)
    loss_fn, init = denoising_loss(model, *DRAWS, 0.3), params_of(model)
    params = {k: v.clone().requires_grad_() for k, v in init.items()}
    average, optimizer = (
        {k: v.clone() for k, v in init.items()},
        torch.optim.AdamW(params.values(), betas=(0.9, 0.99), weight_decay=0.02),
    )
    order = data_order(10, 3, 6)
    steps = steps_of(order, 4, np.ones(10, bool), "filter")
    for step, ((rows, _), rate) in enumerate(zip(steps, schedule(RECIPE, len(steps)), strict=True)):
        shown = take(denoisers.redrawn(tensors(data), 6, step // 3, 0.3), rows)
        noisy = noised(shown["pixels"], shown["timesteps"][:, 0], shown["noise"][:, 0])
        output = functional_call(model, params, (noisy, shown["timesteps"][:, 0], shown["condition"]))
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        (output - shown["noise"][:, 0]).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        optimizer.step()
        kept = min(0.9, (2 + step) / (11 + step))
        average = {k: kept * average[k] + (1 - kept) * params[k].detach() for k in params}
    done = train(loss_fn, init, data, RECIPE, 6)
    assert max(float((done.params[k] - average[k]).abs().max()) for k in average) < 1e-5
    assert max(float((params[k].detach() - average[k]).abs().max()) for k in average) > 1e-4
    again = train(loss_fn, init, data, RECIPE, 6)
    assert same(done.params, again.params)


def test_checkpoints_are_averages_too():
    model, data = net(), images(10)
    final, run = train_recorded(
        denoising_loss(model, *DRAWS), params_of(model), data, replace(RECIPE, checkpoints=3), 0
    )
    assert same(final, run.checkpoints[-1].params) and same(run.initial.params, params_of(model))
    assert set(run.checkpoints[0].optimizer) == {"exp_avg", "exp_avg_sq"}


# --- refusals


def drawn(timestep, *shape):
    return {"timesteps": torch.full(shape, timestep), "noise": torch.zeros(3, 1, PIXELS)}


BAD = {
    "timestep 1000; the schedule has the whole numbers 0 to 999": drawn(1000, 3, 1),
    "timestep -1;": drawn(-1, 3, 1),
    "pixels reach 255; they lie in": {"pixels": torch.full((3, PIXELS), 255.0)},
    "row 1 has the value 5 for token 0; the model knows 1 to 4, and 0 for none": {
        "condition": torch.tensor([[1, 1], [5, 1], [1, 1]])},
    "row 0 has the value -1 for token 1": {"condition": torch.tensor([[1, -1], [1, 1], [1, 1]])},
    "this denoiser reads 'pixels' ": {"pixels": torch.zeros(3, 27)},
    "'condition' .N, 2. int64": {"condition": torch.ones(3, 2)},
    "may read 'timesteps'": {"timesteps": torch.zeros(3, 1, dtype=torch.long)},
    "'noise' .N, K, 48.": drawn(5, 3, 2),
    "Rename, resize or remove": {"mask": torch.ones(3)},
}  # fmt: skip


@pytest.mark.parametrize("line", BAD)
def test_bad_images_are_refused_in_one_line(line):
    task, bad = make_task(), images(3) | BAD[line]
    for given in ((bad, images(3)), (images(3), bad)):
        with pytest.raises(ValueError, match=line) as error:
            attribute("gradient_dot", task, *given)
        assert "\n" not in str(error.value)


def test_bad_settings_are_refused_in_one_line():
    model = net()
    for make, line in (
        (
            lambda: denoising_loss(model, torch.tensor([1000]), torch.zeros(1, PIXELS)),
            "timestep 1000; the schedule has",
        ),
        (lambda: denoising_loss(model, torch.tensor([1.5]), torch.zeros(1, PIXELS)), "timesteps of torch.float32"),
        (lambda: denoising_loss(model, torch.tensor([5]), torch.zeros(1, 12)), r"noise \(1, 12\) for 1 timesteps"),
        (lambda: FilmMLP(SHAPE, TOKENS, 4, 1, "score"), "prediction='score'; one of"),
        (lambda: denoisers.grid(0), "0 sampling steps; 1 to 1000"),
        (lambda: Recipe.of({**vars(RECIPE), "optimizer": "adam"}).make([]), "optimizer='adam'"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            make()
        assert "\n" not in str(error.value)
    assert n_examples(images(3)) == 3


def test_a_sweep_counts_the_draws_of_an_image(monkeypatch):
    task, data = make_task(), images(10)
    task.model.main = DRAWS
    assert perturb._positions(task, data).tolist() == [6] * 10  # three timesteps, two draws each
    models = {k: torch.stack([v, 1.1 * v]) for k, v in task.params.items()}
    with torch.no_grad():
        whole = torch.stack(
            [task.loss_fn({k: v[b] for k, v in models.items()}, tensors(data), "example") for b in (0, 1)]
        )
    sizes, loss_fn = [], task.loss_fn
    counted = replace(task, loss_fn=lambda p, batch, how: sizes.append(len(batch["pixels"])) or loss_fn(p, batch, how))
    swept = perturb.sweep(counted, models, data, 24)
    torch.testing.assert_close(swept, whole, rtol=1e-4, atol=1e-5)
    assert max(sizes) == 4 and sorted(sizes) == [2, 2, 4, 4, 4, 4]
