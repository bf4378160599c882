"""TRAK, LoGra and TrackStar: projections against their distribution, scores against written-out matrices."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from classifiers import digits, mlp, run_of, task_of, train
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from tda import lm
from tda.attribution import attribute, logra, trak
from tda.task import n_examples, take, tensors
from tda.tools import memory_limit, projection
from tda.tools.gradients import flatten, matrix

KINDS = ("sparse", "rademacher")
N, Q = 60, 8


@pytest.fixture(scope="module")
def few(queries):
    return take(queries, slice(0, 5))


@pytest.fixture(scope="module")
def small():
    """A digits network of 1,210 parameters in float64, 60 training images, 8 queries: (task, train, queries)."""
    data, asked = digits(N, Q)
    model = mlp(hidden=16)
    params, seen = train(model, data, steps=60, checkpoints=(20, 40, 60))
    seen = [(step, {k: v.double() for k, v in p.items()}) for step, p in seen]
    moments = [{"exp_avg_sq": {k: 1e-4 + v.square() for k, v in p.items()}} for _, p in seen]
    run = run_of(seen, [2.0] * 3, moments)
    data, asked = ({"inputs": d["inputs"].double(), "labels": d["labels"]} for d in (data, asked))
    return task_of(model.double(), {k: v.double() for k, v in params.items()}, run), data, asked


def explicit(task, examples, output):
    """One backward pass an example, no vmap, log-odds as log(p / (1 - p)): gradients [n, P] of the target mean."""
    rows = []
    for i in range(n_examples(examples)):
        at = {k: v.clone().requires_grad_() for k, v in task.params.items()}
        one = {k: v[i : i + 1] for k, v in tensors(examples).items()}
        logits, targets = task.outputs_fn(at, one)
        places = (targets[0] != lm.IGNORE).nonzero().flatten()
        p = logits[0, places].double().softmax(-1)[range(len(places)), targets[0, places]]
        ((p / (1 - p)).log() if output == "margin" else -p.log()).mean().backward()
        rows.append(torch.cat([at[k].grad.flatten() for k in task.params]))
    return torch.stack(rows)


def probabilities(task, examples):
    """Mean over targets of p, [n]."""
    logits, targets = task.outputs_fn(task.params, tensors(examples))
    p = logits.double().softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    target = targets != lm.IGNORE
    return ((p * target).sum(1) / target.sum(1)).detach()


def by_hand(phi, asked, damping):
    """phi_q (Phi^T Phi + delta)^-1 Phi^T from its definition, in float64, by a pseudo-free inverse."""
    phi, asked = phi.double(), asked.double()
    gram = phi.T @ phi
    delta = damping * gram.trace() / min(phi.shape)
    return asked @ torch.linalg.inv(gram + delta * torch.eye(len(gram), dtype=gram.dtype)) @ phi.T


# --- projections


@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_kept_with_the_stated_variance(kind):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 200, generator=generator, dtype=torch.float64)
    b, d = 0.5 * a + b, 16
    a[0] = 8.0  # one heavy coordinate, where sparse maps would differ from dense ones if they did
    found = []
    for seed in range(600):
        x, y = projection.projector(kind, 200, d, seed)(torch.stack([a, b]))
        found.append(float(x @ y))
    inner, squares = a @ b, (a.square() * b.square()).sum()
    variance = (a @ a * (b @ b) + inner**2 - 2 * squares) / d
    assert abs(np.mean(found) - inner) < 4 * (variance / 600) ** 0.5
    assert abs(np.var(found) / variance - 1) < 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_projection_is_a_fixed_matrix(kind, monkeypatch):
    """The same map for any chunk and any block of rows held at once; another seed, another map."""
    monkeypatch.setattr(projection, "BLOCK", 8 * 64)  # 64 rows at a time: three blocks
    whole = projection.projector(kind, 150, 8, 3)(torch.eye(150))
    rows = torch.randn(7, 150)
    project = projection.projector(kind, 150, 8, 3)
    torch.testing.assert_close(project(rows), rows @ whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([project(rows[:2]), project(rows[2:])]), project(rows), rtol=1e-5, atol=1e-5)
    assert not torch.equal(projection.projector(kind, 150, 8, 4)(rows), project(rows))
    if kind == "sparse":
        assert ((whole != 0).sum(1) == 1).all() and set(whole.flatten().tolist()) == {-1.0, 0.0, 1.0}
    else:
        assert not torch.allclose(whole[:64], whole[64:128]), "every block draws its own entries"
    if kind == "rademacher":
        torch.testing.assert_close(whole.abs(), torch.full_like(whole, 8**-0.5))


def test_random_sides_keep_inner_products(small):
    task, data, _ = small
    name, exact, found = "0", [], []
    caught = logra._captured(task, take(data, slice(0, 2)))[name]
    grads = torch.einsum("bto,bti->boi", caught[1], caught[0])
    exact = float((grads[0] * grads[1]).sum())
    for seed in range(400):
        left, right = logra._random_sides(task, 6, seed)[name]
        x = left.T @ grads @ right
        found.append(float((x[0] * x[1]).sum()))
    assert abs(np.mean(found) - exact) < 4 * np.std(found) / 20
    assert np.std(found) > 0


# --- model outputs


@pytest.mark.parametrize("output", ["margin", "loss"])
def test_features_are_projected_explicit_gradients(small, task, tiny, few, output):
    for one, examples in ((small[0], small[2]), (task, few)):
        wanted = explicit(one, examples, output)
        found = projection.features(one, examples, output, "none", 1, 0, 3)
        torch.testing.assert_close(found.double(), wanted.double(), rtol=2e-3, atol=1e-4 * float(wanted.abs().max()))
        project = projection.projector("sparse", wanted.shape[1], 32, 5)
        torch.testing.assert_close(
            projection.features(one, examples, output, "sparse", 32, 5, 2), project(found), rtol=1e-3, atol=1e-4
        )


def test_log_odds_are_finite_where_the_model_is_certain():
    """log(p / (1 - p)) by its definition is infinite in float32 here; the package's is the difference of the logits."""
    model = torch.nn.Linear(1, 3, bias=False)
    params = {"weight": torch.tensor([[60.0], [0.0], [0.0]])}
    batch = {"inputs": torch.ones(1, 1), "labels": torch.tensor([0])}
    found = projection.margins(task_of(model, params), params, batch)
    np.testing.assert_allclose(found, 60 - np.log(2), rtol=1e-6)


# --- TRAK


@pytest.mark.parametrize("kind", ["sparse", "rademacher", "none"])
@pytest.mark.parametrize("damping", [0.1, 2.0])
def test_trak_is_the_written_out_formula(small, kind, damping):
    """Below, at and (Woodbury) above the number of documents."""
    task, data, asked = small
    width = sum(p.numel() for p in task.params.values())
    for dimension in (20, N, 200):
        project = projection.projector(kind, width, dimension, 7)
        phi, queries = (project(explicit(task, part, "margin")) for part in (data, asked))
        wanted = by_hand(phi, queries, damping) * (1 - probabilities(task, data))
        found = attribute("trak", task, data, asked, projection=kind, dimension=dimension, damping=damping, seed=7)
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_published_kernel_has_no_damping(small):
    task, data, asked = small
    project = projection.projector("rademacher", sum(p.numel() for p in task.params.values()), 15, 0)
    phi, queries = (project(explicit(task, part, "margin")) for part in (data, asked))
    wanted = by_hand(phi, queries, 0.0) * (1 - probabilities(task, data))
    found = attribute("trak", task, data, asked, projection="rademacher", dimension=15, damping=0.0)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_unprojected_losses_are_influence_with_the_full_fisher(task, tiny, few):
    wanted = attribute("fisher_influence", task, tiny.train, few, damping=0.3) / n_examples(tiny.train)
    found = attribute("trak", task, tiny.train, few, output="loss", projection="none", damping=0.3)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_a_rotation_is_no_projection(small, monkeypatch):
    task, data, asked = small
    width = sum(p.numel() for p in task.params.values())
    rotation = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)).double())[0]
    plain = {name: attribute(name, task, data, asked, projection="none") for name in ("trak", "trackstar")}
    monkeypatch.setattr(projection, "projector", lambda *_: lambda g: g @ rotation)
    for name, wanted in plain.items():
        found = attribute(name, task, data, asked, seed=987)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_more_dimensions_come_closer_to_no_projection(small):
    task, data, asked = small
    exact = attribute("trak", task, data, asked, projection="none").ravel()
    agreement = []
    for d in (8, 64, 512):
        found = [attribute("trak", task, data, asked, dimension=d, seed=s).ravel() for s in range(5)]
        agreement.append(np.mean([np.corrcoef(f, exact)[0, 1] for f in found]))
    assert agreement[0] < agreement[1] < agreement[2] and agreement[2] > 0.9, agreement


def test_undamped_kernel_collapses_where_the_dimension_reaches_the_documents(small):
    """The figure behind the refusal: at d = N every document is its own explanation and no other's."""
    task, data, asked = small
    phi = projection.features(task, data, "margin", "rademacher", N, 0)
    among = by_hand(phi, phi, 0.0)
    torch.testing.assert_close(among, torch.eye(N, dtype=among.dtype), atol=1e-5, rtol=0)
    exact = attribute("trak", task, data, asked, projection="none", damping=0.1)

    def agreement(d, damping):
        found = [attribute("trak", task, data, asked, dimension=d, damping=damping, seed=s) for s in range(6)]
        return np.mean([np.corrcoef(f.ravel(), exact.ravel())[0, 1] for f in found])

    quarter, edge, damped = agreement(N // 4, 0.0), agreement(N - 1, 0.0), agreement(N - 1, 0.1)
    assert quarter > 0.25 and edge < 0.5 * quarter and damped > quarter, (quarter, edge, damped)
    for dimension in (N, 4 * N):
        message = rf"trak: without damping the {dimension} x {dimension} kernel is singular: .* documents, {N}\. Lower"
        with pytest.raises(ValueError, match=message):
            attribute("trak", task, data, asked, dimension=dimension, damping=0.0)


def test_copies_make_the_undamped_kernel_singular_earlier(small):
    task, data, asked = small
    copies = take(data, np.arange(N) % 10)
    with pytest.raises(ValueError, match="30 x 30 kernel is singular: its rank is 10"):
        attribute("trak", task, copies, asked, dimension=30, damping=0.0)


def test_ensemble_averages_its_two_factors_apart(small):
    task, data, asked = small
    parts = [replace(task, params=c.params) for c in task.run.checkpoints]
    width = sum(p.numel() for p in task.params.values())
    kernels, weights = [], []
    for member, part in enumerate(parts):
        project = projection.projector("sparse", width, 40, 3 + trak.MEMBER * member)
        phi, queries = (project(explicit(part, e, "margin")) for e in (data, asked))
        kernels.append(by_hand(phi, queries, 0.1))
        weights.append(1 - probabilities(part, data))
    wanted = (sum(kernels) / 3 * (sum(weights) / 3)).numpy()
    found = trak.ensemble(parts, data, asked, seed=3, dimension=40)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6 * np.abs(wanted).max())
    products = sum(k * w for k, w in zip(kernels, weights, strict=True)).numpy() / 3
    assert np.abs(products - wanted).max() > 0.01 * np.abs(wanted).max(), "the average of the products is another score"
    along = attribute("trak_trajectory", task, data, asked, seed=3, dimension=40)
    np.testing.assert_allclose(along, wanted, rtol=1e-4, atol=1e-6 * np.abs(wanted).max())
    one = attribute("trak_trajectory", task, data, asked, dimension=40, checkpoints=1)
    np.testing.assert_array_equal(one, attribute("trak", task, data, asked, dimension=40))
    with pytest.raises(ValueError, match="ensemble of no models"):
        trak.ensemble([], data, asked)


@pytest.mark.parametrize("module, name", [(trak, "trak"), (logra, "logra")])
def test_self_influence_is_the_diagonal_and_finds_flipped_labels(small, module, name):
    task, data, _ = small
    own = module.self_influence(task, data, chunk=7)
    np.testing.assert_allclose(own, np.diag(attribute(name, task, data, data)), rtol=1e-4, atol=1e-8)
    assert (own >= 0).all() and (name != "trak" or (own <= 1).all())
    flipped = np.arange(N) % 10 == 0
    labels = torch.where(torch.tensor(flipped), (data["labels"] + 1) % 10, data["labels"])
    noisy = data | {"labels": labels}
    at = replace(task, params=train(task.model, noisy, steps=60)[0])
    assert roc_auc_score(flipped, module.self_influence(at, noisy)) > 0.8


# --- LoGra


def weight_gradients(task, examples):
    """``{layer: [n, out, in]}`` of the linear layers' weights, by a backward pass an example."""
    rows = {name: [] for name, m in task.model.named_modules() if isinstance(m, torch.nn.Linear)}
    for i in range(n_examples(examples)):
        at = {k: v.clone().requires_grad_() for k, v in task.params.items()}
        task.loss_fn(at, {k: v[i : i + 1] for k, v in tensors(examples).items()}, "mean").backward()
        for name in rows:
            rows[name].append(at[f"{name}.weight"].grad)
    return {name: torch.stack(found) for name, found in rows.items()}


def hooks(task):
    return sum(len(layer._forward_hooks) for layer in task.model.modules())


def test_captured_layers_are_the_weight_gradients(small, task, few):
    for one, examples in ((small[0], small[2]), (task, few)):
        wanted, before = weight_gradients(one, examples), hooks(one)
        caught = logra._captured(one, tensors(examples))
        assert set(caught) == set(wanted) and len(wanted) >= 2
        for name, (inputs, slopes) in caught.items():
            found, largest = torch.einsum("bto,bti->boi", slopes, inputs), float(wanted[name].abs().max())
            torch.testing.assert_close(found, wanted[name], rtol=2e-3, atol=1e-5 * largest + 1e-9)
        assert hooks(one) == before, "ours are gone (the library may keep its own)"


@pytest.mark.parametrize("sides", ["random", "pca"])
def test_logra_is_the_written_out_formula(small, sides):
    task, data, asked = small
    documents, queries = weight_gradients(task, data), weight_gradients(task, asked)
    basis = logra._random_sides(task, 4, 2) if sides == "random" else logra._principal_sides(task, data, 4, 9)
    wanted = 0.0
    for name, (left, right) in basis.items():
        x, y = ((left.T @ g[name] @ right).flatten(1) for g in (documents, queries))
        fisher = x.T @ x / N
        wanted = wanted + y @ torch.linalg.inv(fisher + 0.5 * fisher.trace() / 16 * torch.eye(16)) @ x.T
    found = attribute("logra", task, data, asked, rank=4, sides=sides, seed=2, damping=0.5)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_logra_sums_over_the_positions_of_a_text(task, tiny, few):
    """The language model, where a weight's gradient is a sum over tokens and not a product of sums."""
    train = take(tiny.train, slice(0, 30))
    documents, queries = weight_gradients(task, train), weight_gradients(task, few)
    wanted = 0.0
    for name, (left, right) in logra._random_sides(task, 4, 1).items():
        x, y = ((left.T @ g[name] @ right).flatten(1) for g in (documents, queries))
        wanted = wanted + 30 * by_hand(x, y, 0.5)
    found = attribute("logra", task, train, few, rank=4, seed=1, damping=0.5)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=2e-3, atol=1e-3 * float(wanted.abs().max()))


def test_full_rank_principal_sides_are_a_rotation():
    """Nothing is lost at full rank: exact influence with the Fisher of the layer's weights."""
    data, asked = ({"inputs": d["inputs"][:, 20:36], "labels": d["labels"]} for d in digits(N, Q))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16))
    task = task_of(model, {k: v.detach() for k, v in model.named_parameters()})
    x, y = (weight_gradients(task, part)["0"].flatten(1) for part in (data, asked))
    wanted = N * by_hand(x, y, 0.3)
    found = attribute("logra", task, data, asked, rank=16, sides="pca", damping=0.3)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    less = attribute("logra", task, data, asked, rank=4, sides="pca", damping=0.3)
    assert np.corrcoef(less.ravel(), wanted.ravel())[0, 1] < 0.99


def test_principal_sides_span_what_the_layer_sees(small):
    task, data, _ = small
    caught = logra._captured(task, data)
    for name, (left, right) in logra._principal_sides(task, data, 10, 11).items():
        torch.testing.assert_close(left.T @ left, torch.eye(10).double(), atol=1e-6, rtol=0)
        inputs = caught[name][0].flatten(0, 1)
        kept = (inputs @ right).square().sum() / inputs.square().sum()
        random = torch.linalg.qr(torch.randn(inputs.shape[1], 10).double())[0]
        assert kept > (inputs @ random).square().sum() / inputs.square().sum() and kept > 0.8


def test_a_layer_used_twice_adds_up():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out = torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)

        def forward(self, x):
            return self.out(torch.tanh(self.inner(torch.tanh(self.inner(x)))))

    torch.manual_seed(0)
    model = Twice()
    task = task_of(model, {k: v.detach() for k, v in model.named_parameters()})
    data = digits(6, 1)[0]
    inputs, slopes = logra._captured(task, data)["inner"]
    assert inputs.shape == (6, 2, 64)
    wanted = weight_gradients(task, data)["inner"]
    torch.testing.assert_close(torch.einsum("bto,bti->boi", slopes, inputs), wanted, rtol=1e-4, atol=1e-6)


# --- TrackStar


@pytest.mark.parametrize("dimension", [20, 500])
@pytest.mark.parametrize("mixing, damping", [(0.0, 0.1), (0.6, 0.1), (1.0, 0.5)])
def test_trackstar_is_the_written_out_formula(small, dimension, mixing, damping):
    """R^(-1/2) of the whole d x d matrix by another routine, below and above the number of rows."""
    task, data, asked = small
    project = projection.projector("sparse", sum(p.numel() for p in task.params.values()), dimension, 4)
    moments = flatten({k: v[None] for k, v in task.run.checkpoints[-1].optimizer["exp_avg_sq"].items()})
    x, y = (project(explicit(task, part, "loss") / moments.sqrt()).numpy() for part in (data, asked))
    mixed = mixing * y.T @ y / Q + (1 - mixing) * x.T @ x / N
    members = N * (mixing < 1) + Q * (mixing > 0)
    mixed += damping * np.trace(mixed) / min(dimension, members) * np.eye(dimension)
    root = np.linalg.inv(scipy.linalg.sqrtm(mixed).real)
    x, y = x @ root, y @ root
    wanted = (y / np.linalg.norm(y, axis=1, keepdims=True)) @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    options = {"dimension": dimension, "mixing": mixing, "damping": damping, "seed": 4}
    np.testing.assert_allclose(attribute("trackstar", task, data, asked, **options), wanted, atol=1e-5)
    plain = attribute("trackstar", task, data, asked, unit_norm=False, **options)
    np.testing.assert_allclose(plain, y @ x.T, rtol=1e-4, atol=1e-5 * np.abs(y @ x.T).max())


def test_each_step_of_trackstar_changes_the_ranking(small):
    task, data, asked = small
    whole = attribute("trackstar", task, data, asked)
    assert np.abs(whole).max() <= 1 + 1e-6
    for other in ({"moments": False}, {"mixing": 0.0}, {"unit_norm": False}, {"damping": 10.0}, {"seed": 1}):
        found = attribute("trackstar", task, data, asked, **other)
        assert np.mean([spearmanr(a, b).statistic for a, b in zip(found, whole, strict=True)]) < 0.999, other
    alone = attribute("trackstar", task, data, take(asked, [2]))
    assert not np.allclose(alone[0], whole[2], atol=1e-3), "mixed with the queries, a score depends on all of them"


def test_mixing_weakens_what_all_queries_share(task):
    """Queries with one large common direction (a template) and one of their own: documents of the template lose."""
    template, own = torch.eye(4)[0], torch.eye(4)[1:]
    rows = torch.cat([torch.eye(4), torch.eye(4), 5 * template + own])  # documents: the axes, twice
    plain, mixed = (trak.whitened(rows, 8, mixing, 0.1) for mixing in (0.0, 0.99))
    for q in range(3):
        assert (plain[1][q] @ plain[0].T)[0] > (plain[1][q] @ plain[0].T)[1 + q]
        assert (mixed[1][q] @ mixed[0].T)[0] < (mixed[1][q] @ mixed[0].T)[1 + q]


def test_moments_leave_out_what_training_never_taught(task, tiny, few):
    """The embedding of a word that no document holds; the bias of the keys, where a softmax does not see it (outside
    the quarter of a head that turns with the position).
    """
    scale = projection.inverse_root_moments(task)
    parts = dict(zip(task.params, scale.split([v.numel() for v in task.params.values()]), strict=True))
    seen = torch.zeros(task.params["gpt_neox.embed_in.weight"].shape[0], dtype=torch.bool)
    seen[tiny.train["input_ids"].flatten()] = True
    rows = parts["gpt_neox.embed_in.weight"].view(len(seen), -1)
    assert (~seen).any() and (rows[~seen] == 0).all() and (rows[seen][5:] > 0).any()
    heads = tiny.settings["model"]["heads"]
    bias = parts["gpt_neox.layers.0.attention.query_key_value.bias"].view(heads, 3, -1)
    turned = bias.shape[2] // 4
    assert (bias[:, 1, turned:] == 0).all() and (bias[:, 1, :turned] > 0).all() and (bias[:, [0, 2]] > 0).all()
    exact = task.run.checkpoints[-1].optimizer["exp_avg_sq"]["lm_head.weight"].flatten().double().rsqrt()
    torch.testing.assert_close(parts["lm_head.weight"].double(), exact, rtol=1e-5, atol=0)


# --- refusals


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("trak", {"output": "logit"}, r"trak: output='logit'; one of \('margin', 'loss'\)"),
        ("trak", {"projection": "dense"}, "trak: projection='dense'; one of"),
        ("trak", {"dimension": 0}, "trak: dimension=0; it must be a whole number"),
        ("trackstar", {"dimension": 2.5}, "trackstar: dimension=2.5"),
        ("trak_trajectory", {"damping": -1.0}, "trak_trajectory: damping=-1.0; it must be a finite number of"),
        ("trak_trajectory", {"checkpoints": 9}, "checkpoints=9; the run recorded 3"),
        ("trackstar", {"mixing": 1.5}, "trackstar: mixing=1.5; it must be a number from 0 to 1"),
        ("trackstar", {"damping": 0.0}, r"singular \(rank \d+\). Lower dimension"),
        ("logra", {"rank": 0}, "logra: rank=0"),
        ("logra", {"sides": "both"}, r"logra: sides='both'; one of \('random', 'pca'\)"),
        ("logra", {"damping": -0.1}, "logra: damping=-0.1"),
        ("logra", {"damping": 0.0, "rank": 10}, "logra, layer '0': without damping the 100 x 100 kernel is singular"),
    ],
)
def test_bad_options_are_refused(small, name, options, message):
    task, data, asked = small
    with pytest.raises(ValueError, match=message):
        attribute(name, task, data, asked, **options)


def test_missing_and_foreign_moments_are_refused(small):
    task, data, asked = small
    bare = replace(task, run=run_of([(1, task.params)], [1.0]))
    with pytest.raises(ValueError, match=r"records no second moments .* use moments=False"):
        attribute("trackstar", bare, data, asked)
    assert np.isfinite(attribute("trackstar", bare, data, asked, moments=False)).all()
    moved = replace(task, params={k: v + 1e-3 for k, v in task.params.items()})
    with pytest.raises(ValueError, match="is not the model that is attributed: its parameters differ"):
        attribute("trackstar", moved, data, asked)
    with pytest.raises(ValueError, match="has no checkpoints to take second moments from"):
        projection.inverse_root_moments(replace(task, run=None))


def test_a_task_without_what_a_method_reads_is_refused(small):
    task, data, asked = small
    blind = replace(task, outputs_fn=None)
    for name in ("trak", "logra"):
        with pytest.raises(ValueError, match=f"'{name}' needs 'outputs', which the task 'digits' does not offer"):
            attribute(name, blind, data, asked)
    with pytest.raises(ValueError, match="output='margin' needs logits, and the task 'digits' has no outputs_fn"):
        trak.self_influence(blind, data)
    losses = trak.ensemble([blind], data, asked, output="loss")
    np.testing.assert_array_equal(losses, trak.ensemble([task], data, asked, output="loss"))
    with pytest.raises(ValueError, match="logra works on linear layers, and the task 'digits' has no outputs_fn"):
        logra.self_influence(blind, data)
    with pytest.raises(ValueError, match=r"has none whose weight is among its parameters. Use 'trak'"):
        logra.self_influence(replace(task, model=torch.nn.Sequential(torch.nn.ReLU())), data)


def test_memory_is_forecast(small, monkeypatch):
    task, data, asked = small
    monkeypatch.setattr(memory_limit, "SHARE", 0.0)
    for name in ("trak", "logra", "trackstar"):
        with pytest.raises(ValueError, match=r"features of 60 examples needs \d+ MB; .* Use another|.* Lower rank"):
            attribute(name, task, data, asked, seed=55)


def test_zero_gradients_are_refused(small):
    task, data, asked = small
    flat = replace(task, loss_fn=lambda p, b, r="mean": 0.0 * task.loss_fn(p, b, r), outputs_fn=None)
    with pytest.raises(ValueError, match="trak: every projected gradient is zero"):
        trak.ensemble([flat], data, asked, output="loss")
    with pytest.raises(ValueError, match="trackstar: every projected gradient is zero"):
        attribute("trackstar", flat, data, asked)


def test_the_seed_draws_the_projection_and_nothing_else(small):
    task, data, asked = small
    for name in ("trak", "logra", "trackstar"):
        one, two, other = (attribute(name, task, data, asked, seed=s, chunk=c) for s, c in ((0, 32), (0, 5), (1, 32)))
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6 * np.abs(one).max())
        assert not np.allclose(one, other, rtol=1e-2)
    exact = [attribute("trak", task, data, asked, seed=s, projection="none") for s in (0, 1)]
    np.testing.assert_array_equal(*exact)


def test_projected_scores_are_not_gradient_dot(small):
    task, data, asked = small
    dot = (matrix(task, asked) @ matrix(task, data).T).numpy()
    for name in ("trak", "logra", "trackstar"):
        found = attribute(name, task, data, asked)
        assert np.mean([spearmanr(a, b).statistic for a, b in zip(found, dot, strict=True)]) < 0.99
