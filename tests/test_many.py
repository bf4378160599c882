"""Many models side by side end where each would have ended alone, and both where torch.optim.SGD goes."""

import numpy as np
import pytest
import torch
from conftest import same

from tda import classifiers
from tda.many import stack, train_many, unstack
from tda.task import take
from tda.training import Recipe, schedule, steps_of, train, train_recorded

RECIPE = Recipe(optimizer="sgd", epochs=4, batch=8, lr=0.1, momentum=0.9, weight_decay=1e-2, schedule="step")
NETS = {
    "logistic regression": lambda seed: classifiers.mlp(0, 0, seed),
    "mlp": lambda seed: classifiers.mlp(2, 12, seed),
    "relu": lambda seed: classifiers.mlp(1, 12, seed, "relu"),
    "cnn": lambda seed: classifiers.cnn(2, 4, seed),
}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    inputs = torch.tensor(rng.random((30, 64)), dtype=torch.float32)
    return {"inputs": inputs, "labels": torch.tensor(rng.integers(0, 10, 30)), "entity": ["x"] * 30}


def start(make, count):
    nets = [make(seed) for seed in range(count)]
    return classifiers.loss_function(nets[0]), [classifiers.parameters(net) for net in nets]


def gap(one, other):
    return max(float((one[k] - other[k]).abs().max()) for k in one)


def plain(loss_fn, init, data, recipe, steps):
    """torch.optim.SGD on the mean loss of each batch, nothing else."""
    params = {k: v.clone().requires_grad_() for k, v in init.items()}
    optimizer = torch.optim.SGD(params.values(), lr=1.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    for (members, divisor), rate in zip(steps, schedule(recipe, len(steps)), strict=True):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        if len(members):
            (loss_fn(params, take(data, members), "sum") / divisor).backward()
        else:
            for p in params.values():
                p.grad = torch.zeros_like(p)
        optimizer.step()
    return {k: v.detach() for k, v in params.items()}


@pytest.mark.parametrize("how", ["filter", "mask"])
@pytest.mark.parametrize("name", NETS)
def test_equal_to_one_at_a_time_and_to_torch(name, how, data):
    loss_fn, init = start(NETS[name], 4)
    rng = np.random.default_rng(1)
    masks = np.stack([rng.permutation(30) < size for size in (30, 15, 15, 9)])  # of different sizes, too
    seeds = [5, 5, 6, 7]
    done = unstack(train_many(loss_fn, stack(init), data, RECIPE, masks, seeds, how))
    for one, first, mask, seed in zip(done, init, masks, seeds, strict=True):
        alone = train(loss_fn, first, data, RECIPE, seed, mask, how)
        by_torch = plain(loss_fn, first, data, RECIPE, steps_of(alone.order, RECIPE.batch, mask, how))
        assert gap(alone.params, by_torch) < 1e-6 and gap(one, by_torch) < 2e-6
        assert gap(one, first) > 0.02, "it has moved"


def test_double_precision_is_kept(data):
    loss_fn, init = start(NETS["mlp"], 2)
    init = [{k: v.double() for k, v in one.items()} for one in init]
    exact = data | {"inputs": data["inputs"].double()}
    masks = np.random.default_rng(1).random((2, 30)) < 0.5
    done = unstack(train_many(loss_fn, stack(init), exact, RECIPE, masks, [0, 1]))
    for i in range(2):
        assert gap(done[i], train(loss_fn, init[i], exact, RECIPE, i, masks[i]).params) < 1e-13


def test_chunks_and_company_do_not_matter(data):
    loss_fn, init = start(NETS["mlp"], 5)
    masks = np.random.default_rng(1).random((5, 30)) < 0.7
    whole = train_many(loss_fn, stack(init), data, RECIPE, masks, list(range(5)))
    for chunk in (1, 2, 5):
        assert gap(whole, train_many(loss_fn, stack(init), data, RECIPE, masks, list(range(5)), chunk=chunk)) < 1e-6
    turned = train_many(loss_fn, stack(init[::-1]), data, RECIPE, masks[::-1], list(range(5))[::-1])
    assert gap({k: v.flip(0) for k, v in turned.items()}, whole) < 1e-6


def test_repeats_to_the_bit_and_leaves_its_input_alone(data):
    loss_fn, init = start(NETS["cnn"], 3)
    stacked = stack(init)
    before = {k: v.clone() for k, v in stacked.items()}
    masks = np.ones((3, 30), bool)
    one = train_many(loss_fn, stacked, data, RECIPE, masks, [0, 1, 2], chunk=2)
    torch.rand(5)
    assert same(one, train_many(loss_fn, stacked, data, RECIPE, masks, [0, 1, 2], chunk=2)) and same(stacked, before)


@pytest.mark.parametrize("how", ["filter", "mask"])
def test_left_out_examples_leave_no_trace(how, data):
    loss_fn, init = start(NETS["mlp"], 2)
    masks = np.stack([np.arange(30) % 2 == 0, np.arange(30) % 3 == 0])
    never = torch.tensor(~masks.any(0))
    garbage = {k: v.clone() for k, v in data.items() if k != "entity"}
    garbage["inputs"][never] = torch.rand(int(never.sum()), 64)
    garbage["labels"][never] = 3
    one, two = (train_many(loss_fn, stack(init), d, RECIPE, masks, [0, 0], how) for d in (data, garbage))
    assert same(one, two)


def test_stack_and_unstack(data):
    _, init = start(NETS["mlp"], 3)
    assert all(same(one, other) for one, other in zip(unstack(stack(init)), init, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adamw"}, r"SGD without clipping; got optimizer='adamw'"),
        ({"clip": 1.0}, r"clip=1\.0"),
        ({"lr": 1e30, "momentum": 0.99}, r"model 0 of this stack diverged at lr=1e\+30. Lower training\.lr"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(change, message, data):
    loss_fn, init = start(NETS["mlp"], 2)
    with pytest.raises(ValueError, match=message):
        train_many(loss_fn, stack(init), data, Recipe(**{**vars(RECIPE), **change}), np.ones((2, 30), bool), [0, 1])


@pytest.mark.parametrize(
    ("masks", "seeds"),
    [(np.ones((3, 30), bool), [0, 1]), (np.ones((2, 29), bool), [0, 1]), (np.ones((2, 30)), [0, 1]),
     (np.zeros((2, 30), bool), [0, 1]), (np.ones((2, 30), bool), [0])],
)  # fmt: skip
def test_masks_and_seeds_that_do_not_fit_are_refused(masks, seeds, data):
    loss_fn, init = start(NETS["mlp"], 2)
    with pytest.raises(ValueError, match=r"2 initial models, 30 examples, .* seeds"):
        train_many(loss_fn, stack(init), data, RECIPE, masks, seeds)


def test_the_record_of_a_run_is_enough_to_repeat_it(data):
    """What unrolling and SOURCE stand on: initial parameters, batches, rates, momentum, decay give the checkpoints."""
    loss_fn, init = start(NETS["mlp"], 1)
    mask = np.arange(30) != 4
    recipe = Recipe(**{**vars(RECIPE), "checkpoints": 3})
    params, run = train_recorded(loss_fn, init[0], data, recipe, 3)
    assert same(params, train(loss_fn, init[0], data, recipe, 3).params)
    assert run.initial.step == 0 and same(run.initial.params, init[0]) and run.initial.lr_sum == 0
    assert len(run.steps) == len(run.learning_rates) == run.checkpoints[-1].step and len(run.checkpoints) == 3
    at = {k: v.clone() for k, v in run.initial.params.items()}
    velocity = {k: torch.zeros_like(v) for k, v in at.items()}
    due = {c.step: c for c in run.checkpoints}
    for t, ((members, divisor), rate) in enumerate(zip(run.steps, run.learning_rates, strict=True), start=1):
        gradient = torch.func.grad(lambda p, m=members: loss_fn(p, take(data, m), "sum"))(at)
        for k in at:
            velocity[k] = run.recipe.momentum * velocity[k] + gradient[k] / divisor + run.recipe.weight_decay * at[k]
            at[k] = at[k] - float(rate) * velocity[k]
        if t in due:
            assert gap(at, due[t].params) < 1e-6 and gap(velocity, due[t].optimizer["momentum_buffer"]) < 1e-6
    assert same(run.checkpoints[-1].params, params)
    assert same(run.retrain(mask, 3), train(loss_fn, init[0], data, recipe, 3, mask, "mask").params)
