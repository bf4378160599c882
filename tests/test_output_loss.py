"""A denoiser's squared error through the same curvature as a classifier: against matrices written out by autograd."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from tda import attribute
from tda import curvature as cv
from tda.attribution import METHODS
from tda.curvature.second_derivatives import pseudo_gradients
from tda.output_loss import FISHERS, LOSSES, of
from tda.task import Task, n_examples, take, tensors
from tda.tools.gradients import matrix, unflatten

DRAWS, PIXELS = 3, 4  # noise draws an example, and what is predicted in each


class Film(nn.Module):
    """Noisy pixels and their time, [B, T, C] and [B, T]; the time scales the hidden units. One pass for all draws."""

    def __init__(self):
        super().__init__()
        self.enter, self.time, self.leave = nn.Linear(PIXELS, 5), nn.Linear(1, 5), nn.Linear(5, PIXELS, bias=False)

    def forward(self, noisy, time):
        return self.leave(torch.tanh(self.enter(noisy) * (1 + self.time(time.unsqueeze(-1)))))


class Convolutional(nn.Module):
    """Images of 2 x 2, one draw after the other: a layer is called once a draw."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 1, 3, padding=1)

    def one(self, noisy, time):
        image = torch.stack([noisy.unflatten(-1, (2, 2)), time[:, None, None].expand(-1, 2, 2)], 1)
        return self.leave(torch.tanh(self.enter(image))).flatten(1)

    def forward(self, noisy, time):
        return torch.stack([self.one(noisy[:, t], time[:, t]) for t in range(noisy.shape[1])], 1)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.only = nn.Linear(PIXELS + 1, PIXELS)

    def forward(self, noisy, time):
        return self.only(torch.cat([noisy, time.unsqueeze(-1)], -1))


def denoiser(make, n=12, steps=0):
    """A task in float64 with its training examples: noise of three strengths is predicted from what it spoils."""
    torch.manual_seed(0)
    model = make().double()

    def outputs_fn(params, batch):
        return functional_call(model, params, (batch["noisy"], batch["time"])), batch["target"]

    def loss_fn(params, batch, reduction="mean"):
        found, target = outputs_fn(params, batch)
        example = F.mse_loss(found, target, reduction="none").flatten(1).mean(1)
        return {"mean": example.mean, "sum": example.sum, "example": lambda: example}[reduction]()

    generator = torch.Generator().manual_seed(1)
    images, noise = (torch.randn(n, k, PIXELS, generator=generator, dtype=torch.float64) for k in (1, DRAWS))
    time = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64).expand(n, -1)
    noisy = (1 - time.unsqueeze(-1)).sqrt() * images + time.unsqueeze(-1).sqrt() * noise
    train = {"noisy": noisy, "time": time.contiguous(), "target": noise}
    params = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
    optimizer = torch.optim.Adam(params.values(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(params, train).backward()
        optimizer.step()
    params = {k: v.detach() for k, v in params.items()}
    model.load_state_dict(params)
    return Task("denoiser", loss_fn, params, model, outputs_fn=outputs_fn, output_loss="squared_error"), train


NETS = {"film": Film, "conv": Convolutional, "linear": Linear}


@pytest.fixture(scope="module", params=NETS)
def small(request):
    return denoiser(NETS[request.param])


@pytest.fixture(scope="module")
def film():
    return denoiser(Film)


def close(found, wanted, rtol=1e-8):
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()))


def flat(task):
    return torch.cat([p.flatten() for p in task.params.values()])


def jacobians(task, train):
    """Per example the Jacobian of all T C outputs in all parameters, [T C, P]."""
    for i in range(n_examples(train)):
        one = take(train, slice(i, i + 1))

        def found(vector, one=one):
            return task.outputs_fn(unflatten(vector, task.params), one)[0].flatten()

        yield torch.autograd.functional.jacobian(found, flat(task))


def slow_ggn(task, train):
    """The loss is the mean of n squares, each with second derivative 2: ``J^T (2 / n) J``, averaged over examples."""
    return sum(2 * j.T @ j / len(j) for j in jacobians(task, train)) / n_examples(train)


def slow_hessian(task, train):
    def loss(vector):
        return task.loss_fn(unflatten(vector, task.params), tensors(train), "mean")

    return torch.autograd.functional.hessian(loss, flat(task))


# --- the loss itself, against autograd in the outputs


@pytest.mark.parametrize("name", LOSSES)
def test_slopes_and_hessians_are_the_derivatives_of_the_loss(name):
    generator = torch.Generator().manual_seed(3)
    loss, found = LOSSES[name], torch.randn(1, 2, 3, generator=generator, dtype=torch.float64)
    targets = torch.tensor([[2, -100]]) if name == "cross_entropy" else found.flip(2) + 0.5

    def of_outputs(x):
        return loss.losses(x, targets).sum()

    close(loss.slope(found, targets), torch.autograd.functional.jacobian(of_outputs, found))
    hessian = torch.autograd.functional.hessian(of_outputs, found).reshape(6, 6)
    v = torch.randn(1, 2, 3, generator=generator, dtype=torch.float64)
    close(loss.hessian(found, targets)(v).flatten(), hessian @ v.flatten())
    exact = sum(torch.outer(u.flatten(), u.flatten()) for u in loss.vectors(found, targets, "exact"))
    close(exact, hessian)


def test_the_squared_error_is_the_mean_over_elements_without_a_half(film):
    task, train = film
    found, targets = task.outputs_fn(task.params, train)
    one = (found - targets)[5].numpy()
    assert float(of(task).losses(found, targets)[5]) == pytest.approx((one**2).sum() / (DRAWS * PIXELS))


# --- matrices


def test_ggn_and_hessian_are_written_out(small):
    task, train = small
    wanted = slow_ggn(task, train)
    close(cv.ggn(task, train, chunk=5).materialise(), wanted)
    close(cv.dense_ggn(task, train).materialise(), wanted)
    close(cv.dense_hessian(task, train).materialise(), slow_hessian(task, train))
    if isinstance(task.model, Linear):
        close(wanted, slow_hessian(task, train))
    else:
        assert (wanted - slow_hessian(task, train)).norm() > 0.05 * wanted.norm(), "a network bends"


def test_pseudo_gradients(small):
    task, train = small
    exact, observed = (torch.cat(list(pseudo_gradients(task, train, k, chunk=5))) for k in FISHERS[::2])
    close(exact.T @ exact / n_examples(train), slow_ggn(task, train))
    close(observed, matrix(task, train))


def test_the_sampled_fisher_is_the_ggn_on_average(film):
    task, train = film
    draws = [torch.cat(list(pseudo_gradients(task, train, "sampled", seed))) for seed in range(400)]
    wanted = slow_ggn(task, train)
    assert (sum(rows.T @ rows for rows in draws) / len(draws) / 12 - wanted).norm() < 0.1 * wanted.norm()
    order = torch.tensor([5, 2, 9, 0])
    again = torch.cat(list(pseudo_gradients(task, take(train, order), "sampled", chunk=3)))
    close(again, draws[0][order])
    assert not torch.equal(draws[0], draws[1])
    assert cv.ggn(task, train).scale == pytest.approx(float(draws[0].square().sum()) / 12 / len(flat(task)))


def test_factors_by_hand(film):
    """Of the layer that all draws pass: inputs over all positions, and what the outputs send back, from autograd."""
    task, train = film
    a, s = cv.factors(task, train, "exact", chunk=5)["leave"]
    hidden, slopes = [], []
    for noisy, time in zip(train["noisy"], train["time"], strict=True):
        x = torch.tanh(task.model.enter(noisy) * (1 + task.model.time(time.unsqueeze(-1))))
        hidden.append(x.detach())
        slopes.append(2 / (DRAWS * PIXELS) * DRAWS * torch.eye(PIXELS, dtype=torch.float64))  # the layer is the output
    hidden = torch.cat(hidden)
    close(a, hidden.T @ hidden / len(hidden))
    close(s, sum(slopes) / len(slopes))


@pytest.mark.parametrize("kind", FISHERS)
def test_kfac_and_ekfac_against_the_materialised_block(small, kind):
    task, train = small
    rows = torch.cat(list(pseudo_gradients(task, train, kind)))
    block_of, pairs = rows.T @ rows / n_examples(train), cv.factors(task, train, kind)
    kfac, ekfac = (make(task, train, kind, chunk=5) for make in (cv.kfac, cv.ekfac))
    for name, (a, s) in pairs.items():
        index, found = kfac.blocks[name]
        close(found.materialise(), torch.kron(s, a))
        basis = torch.kron(torch.linalg.eigh(s)[1], torch.linalg.eigh(a)[1])
        along = (basis.T @ block_of[index][:, index] @ basis).diagonal()
        close(ekfac.blocks[name][1].materialise(), basis @ torch.diag(along) @ basis.T)


def test_kfac_is_the_block_where_inputs_and_slopes_are_independent():
    """One draw through one linear layer: the Fisher of a squared error is ``(2 / C) I (x) A`` and nothing is lost."""
    task, train = denoiser(Linear)
    one = {k: v[:, :1].contiguous() for k, v in train.items()}
    close(cv.kfac(task, one, "exact").materialise(), slow_ggn(task, one))


@pytest.mark.parametrize("chunk", [1, 5, 12])
def test_nothing_depends_on_the_batch(small, chunk):
    task, train = small
    v = torch.ones(2, len(flat(task)), dtype=torch.float64)
    close(cv.ggn(task, train, chunk=chunk).matvec(v), v @ slow_ggn(task, train))
    for kind in FISHERS:
        whole, parts = (cv.ekfac(task, train, kind, chunk=size) for size in (7, chunk))
        close(parts.matvec(v), whole.matvec(v))


# --- methods


@pytest.fixture(scope="module")
def trained():
    """A trained denoiser; query q is document q + 3 again, and documents 0 to 2 say the opposite of queries 0 to 2."""
    task, train = denoiser(Film, 24, steps=300)
    asked = take(train, slice(3, 7))
    against = {k: v[:3].clone() for k, v in asked.items()}
    with torch.no_grad():
        against["target"] = 2 * task.outputs_fn(task.params, against)[0] - against["target"]
    train = {k: torch.cat([against[k], v[3:]]) for k, v in train.items()}
    single = replace(task, params={k: v.float() for k, v in task.params.items()}, model=task.model.float())
    return single, *({k: v.float() for k, v in x.items()} for x in (train, asked))


@pytest.mark.parametrize("curvature", ["ggn", "ekfac", "kfac", "empirical_fisher"])
def test_a_duplicate_helps_and_its_opposite_harms(trained, curvature):
    scores = attribute("influence", *trained, curvature=curvature, damping=0.1)
    assert (scores.argmax(1) == [3, 4, 5, 6]).all()
    assert (scores[range(3), range(3)] < 0).all() and (scores.argmin(1)[:3] == [0, 1, 2]).all()


MARGIN = "trak: output='margin' reads class probabilities off the outputs, .*'squared_error'. Use output='loss'"
STEERED = "stride reads class probabilities off the outputs, .*'squared_error'. Choose a method that reads gradients"
DRAWN = "draws no noise: this method is for denoisers"  # the loss of this file is one of fixed noise
CHOSEN = "asks a denoiser in states of its own choice, and the model of task .* is a Film"  # a net of this file
CLASSES = "representer reads class probabilities off the outputs, .*'squared_error'. Choose another method"
REFUSED = {"trak": MARGIN, "stride": STEERED, "rank_combined": STEERED, "abu": DRAWN}  # with their default options
REFUSED["representer"] = CLASSES
REFUSED |= dict.fromkeys(("diffusion_trak", "d_trak", "das", "journey_trak", "concept_trak"), CHOSEN)


BY_THE_MODEL = [name for name, method in METHODS.items() if {"params"} <= set(method.needs) <= {"params", "outputs"}]


@pytest.mark.parametrize("name", BY_THE_MODEL)
def test_every_method_scores_a_denoiser_or_says_why_not(name, trained):
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            attribute(name, *trained)
        return
    assert (attribute(name, *trained).argmax(1) == [3, 4, 5, 6]).mean() >= 0.75


def test_trak_of_the_loss_itself(trained):
    assert (attribute("trak", *trained, output="loss", damping=0.1).argmax(1) == [3, 4, 5, 6]).all()


def test_what_does_not_fit_is_refused(trained):
    task, train, asked = trained
    with pytest.raises(ValueError, match=r"output_loss='l1'; one of \['cross_entropy', 'squared_error'\]"):
        attribute("gradient_dot", replace(task, output_loss="l1"), train, asked)
    with pytest.raises(ValueError, match="gives targets of torch.float32; int64 are expected"):
        attribute("gradient_dot", replace(task, output_loss="cross_entropy"), train, asked)
    halved = replace(task, loss_fn=lambda p, b, r="mean": task.loss_fn(p, b, r) / 2)
    with pytest.raises(ValueError, match="the loss must be the mean squared error of these outputs and targets"):
        attribute("gradient_dot", halved, train, asked)
    flattened = replace(task, outputs_fn=lambda p, b: [x.flatten(1) for x in task.outputs_fn(p, b)])
    with pytest.raises(ValueError, match=r"for a squared error both are \[B, T, C\] of one type"):
        attribute("gradient_dot", flattened, train, asked)
