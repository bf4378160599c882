"""Limited access: the ladder is enforced, proxies learn what they are told, and the two methods of the chapter are
their formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from small_tasks import slow_gradients, small

from tda import access, classifiers, models
from tda.attribution import attribute, loss_covariance, representer
from tda.evaluation.intervals import lds_intervals
from tda.recipe import Recipe
from tda.studies.access import copies, measuring, proxies
from tda.task import n_examples, take, tensors
from tda.testbeds import statements

# --- the ladder


@pytest.fixture(scope="module")
def few(queries):
    return take(queries, slice(0, 4))


@pytest.mark.parametrize("level", ["S1", "S2", "S3", "S4", "S5"])
def test_a_level_offers_what_it_knows_and_nothing_else(level, task):
    seen, known = access.restrict(task, level), access.LEVELS[level]
    assert seen.name == f"people at {level}" and not seen.params and seen.outputs_fn is None
    assert set(seen.encode) == {"text", "group"} | ({"outputs"} if "queries" in known else set())
    assert (seen.model is not None) == ("architecture" in known)
    assert (seen.run is not None) == ("recipe" in known)
    if seen.model is not None:
        assert all(p.is_meta for p in seen.model.parameters()), "the architecture comes without its numbers"
        assert not any(p.is_meta for p in task.model.parameters()), "the target itself is left alone"
    if seen.run is not None:
        assert seen.run.recipe == task.run.recipe
        assert not seen.run.checkpoints and seen.run.initial is None and seen.run.retrain is None
    with pytest.raises(ValueError, match=f"loss of 'people' needs its weights, which are not known at {level}"):
        seen.loss_fn({}, {})


def test_full_access_is_the_task_with_its_queries(task):
    full = access.restrict(task, "S0")
    assert full.params is task.params and full.loss_fn is task.loss_fn and full.run is task.run
    assert set(full.encode) == {*task.encode, "outputs"}


@pytest.mark.parametrize(
    ("name", "lacks"),
    [("influence", "params"), ("tracincp", "params"), ("hidden_cosine", "features"), ("representer", "params")],
)
def test_a_method_that_needs_what_a_level_forbids_says_so(name, lacks, task, tiny, few):
    for level in ("S1", "S2", "S3", "S4", "S5"):
        with pytest.raises(ValueError, match=f"'{name}' needs '{lacks}', which the task 'people at {level}' does not"):
            attribute(name, access.restrict(task, level), tiny.train, few)
    blind = access.restrict(task, "S4")
    np.testing.assert_array_equal(attribute("bm25", blind, tiny.train, few), attribute("bm25", task, tiny.train, few))


def test_queries_give_log_probabilities_without_gradients(task, few):
    said = access.restrict(task, "S3").encode["outputs"](few)
    logits = task.outputs_fn(task.params, tensors(few))[0]
    np.testing.assert_allclose(said, logits.log_softmax(-1).detach(), atol=1e-5)
    assert isinstance(said, np.ndarray) and said.dtype == np.float32
    losses = task.loss_fn(task.params, tensors(few), "example").detach()
    target = few["labels"][:, 1:] != -100
    picked = np.take_along_axis(said[:, :-1], few["labels"][:, 1:].clamp(min=0).numpy()[..., None], -1)[..., 0]
    np.testing.assert_allclose(-(picked * target.numpy()).sum(1) / target.sum(1).numpy(), losses, rtol=1e-4)


def test_a_level_that_does_not_exist_is_refused(task):
    with pytest.raises(ValueError, match=r"level 'S6' of access does not exist; the levels are \['S0', .*'S5'\]"):
        access.restrict(task, "S6")


def test_a_restricted_task_is_not_restricted_again(task):
    with pytest.raises(ValueError, match="'people at S1' is restricted already"):
        access.restrict(access.restrict(task, "S1"), "S0")


@pytest.mark.parametrize(("part", "levels"), [("queries", ["S0", "S1", "S3"]), ("recipe", ["S0", "S5"])])
def test_what_a_level_lacks_is_named_with_the_levels_that_have_it(part, levels, task):
    for level in access.LEVELS:
        if level in levels:
            assert access.need(access.restrict(task, level), part, "distillation") is not None
        else:
            with pytest.raises(ValueError) as caught:
                access.need(access.restrict(task, level), part, "distillation")
            said = f"distillation needs the {part}, which the task 'people at {level}' does not offer; levels {levels}"
            assert str(caught.value) == f"{said} do."


def test_a_proxy_has_the_tokens_of_the_target(tiny):
    own = tiny.tokenizer.get_vocab()
    other = own | {"zebra": len(own)}
    for level in access.LEVELS:
        access.check_tokens(own, dict(own), level)
        if level != "S4":
            with pytest.raises(
                ValueError, match=f"tokenizer differs .*'zebra'.*Use the target's at {level}; only at S4"
            ):
                access.check_tokens(own, other, level, own_tokens=True)
    with pytest.raises(ValueError, match="declare it by own_tokens=True"):
        access.check_tokens(own, other, "S4")
    access.check_tokens(own, other, "S4", own_tokens=True)


# --- proxies

SHORT = Recipe(optimizer="sgd", epochs=3, batch=20, lr=0.1, weight_decay=1e-4, momentum=0.9, checkpoints=2)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A tiny testbed of digits, its task and its queries."""
    from tda import config
    from tda.testbeds import Testbed

    settings = {
        "corpus": {"kind": "digits", "train": 80, "held_out": 12, "flips": 0.1},
        "model": {"kind": "mlp", "depth": 1, "width": 8},
        "training": {"optimizer": "sgd", "seeds": 1, "epochs": 6, "batch": 20, "lr": 0.1, "momentum": 0.9},
        "queries": {"held_out": 12, "generated": 0},
        "evaluation": {"tailpatch_queries": 0},
    }  # fmt: skip
    loaded = config.load("smoke", {"testbeds": {"digits_mlp": settings}})
    bed = Testbed("digits_mlp", loaded, loaded["testbeds"]["digits_mlp"], tmp_path_factory.mktemp("digits"))
    return bed, models.load_task(bed), models.query_examples(bed)


def test_soft_loss_is_the_divergence_by_hand_and_hard_where_nobody_asked(images):
    bed, task, asked = images
    module, tau = proxies.architecture(bed)(5), 3.0
    params = proxies.values(module)
    p = torch.softmax(task.outputs_fn(task.params, tensors(asked))[0][:, 0] / tau, -1)
    r = torch.softmax(module(asked["inputs"]) / tau, -1)
    soft = (tau**2 * (p * (p / r).log()).sum(1)).detach()
    hard = bed.modality.loss_function(module)(params, tensors(asked), "example").detach()
    seen, whom = access.restrict(task, "S1"), np.arange(12) < 7
    found = proxies.soft_loss(bed, module, tau)(params, proxies.taught(seen, asked, whom), "example").detach()
    np.testing.assert_allclose(found[:7], soft[:7], rtol=1e-4)
    np.testing.assert_allclose(found[7:], hard[7:], rtol=1e-5)


def test_a_student_of_the_same_start_and_answers_comes_near_its_teacher(images):
    """Distilled, a proxy agrees with the target more than one trained on the labels does, a tenth of them wrong."""
    bed, task, asked = images
    long = replace(SHORT, epochs=40)
    same, seen = proxies.architecture(bed), access.restrict(task, "S1")
    student = proxies.distilled(seen, bed, same, bed.train, long, 5, "student")
    other = proxies.trained(bed, same, bed.train, long, 5, "other")
    said = seen.encode["outputs"](asked)
    apart = [np.abs(np.exp(access.outputs_of(p)(asked)) - np.exp(said)).mean() for p in (student, other)]
    assert apart[0] < 0.5 * apart[1]
    assert len(student.run.checkpoints) == 2 and np.isfinite(attribute("tracincp", student, bed.train, asked)).all()


@pytest.mark.parametrize("level", ["S2", "S4", "S5"])
def test_distillation_without_queries_is_refused(level, images):
    bed, task, _ = images
    with pytest.raises(ValueError, match=f"distillation needs the queries, .* 'digits_mlp at {level}' does not offer"):
        proxies.distilled(access.restrict(task, level), bed, proxies.architecture(bed), bed.train, SHORT, 0, "x")


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature, images):
    bed, task, _ = images
    with pytest.raises(ValueError, match="temperature=.*; it must be positive"):
        proxies.distilled(
            access.restrict(task, "S3"), bed, proxies.architecture(bed), bed.train, SHORT, 0, "x", temperature
        )


@pytest.mark.parametrize("share", [0, -0.5, 1.01])
def test_a_share_of_the_data_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=r"share=.* of the data known; it must be above 0 and at most 1"):
        proxies.known_part(10, share, np.random.default_rng(0))


def test_the_known_part_has_its_size():
    known = proxies.known_part(40, 0.25, np.random.default_rng(0))
    assert known.dtype == bool and known.sum() == 10
    assert proxies.known_part(40, 1, np.random.default_rng(0)).all()


def test_models_trained_side_by_side_are_those_trained_alone(images):
    bed, task, asked = images
    subsets = np.random.default_rng(0).random((3, 80)) < 0.5
    same, data = proxies.architecture(bed), proxies.taught(access.restrict(task, "S1"), bed.train)
    for examples, temperature in ((bed.train, None), (data, 2.0)):
        together = proxies.own_bank(bed, same, examples, SHORT, subsets, [3, 4], asked, temperature)
        alone = proxies.own_bank(bed, same, examples, replace(SHORT, clip=1e9), subsets, [3, 4], asked, temperature)
        assert together.shape == (3, 2, 12)
        np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


def test_a_bank_has_its_subsets_first(images):
    bed, _, asked = images
    subsets = np.stack([np.arange(80) < 70, np.arange(80) > 40, np.arange(80) < 40])
    same = proxies.architecture(bed)
    bank = proxies.own_bank(bed, same, bed.train, SHORT, subsets, [3, 4], asked)
    for m, r in ((0, 1), (2, 0)):
        alone = proxies.own_bank(bed, same, bed.train, SHORT, subsets[[m]], [[3, 4][r]], asked)
        np.testing.assert_allclose(bank[m, r], alone[0, 0], rtol=1e-4)


def test_a_proxy_cut_short_stands_at_its_checkpoint(images):
    bed, *_ = images
    whole = proxies.trained(bed, proxies.architecture(bed), bed.train, SHORT, 5, "whole")
    part = proxies.cut_short(bed, proxies.architecture(bed), whole, 1, "part")
    assert len(part.run.checkpoints) == 1 and part.params is part.run.checkpoints[0].params
    start = proxies.untrained(bed, proxies.architecture(bed), 5, "untrained")
    far = [max(float((p.params[k] - start.params[k]).abs().max()) for k in start.params) for p in (part, whole)]
    assert 0 < far[0] and part.params["0.weight"] is not whole.params["0.weight"]
    np.testing.assert_allclose(
        attribute("tracincp", start, bed.train, take(bed.train, [0])),
        attribute("gradient_dot", start, bed.train, take(bed.train, [0])), rtol=1e-5,
    )  # fmt: skip


def test_the_tangent_kernel_is_an_explicit_loop(images):
    bed, _, asked = images
    proxy = proxies.untrained(bed, proxies.architecture(bed), 5, "untrained")
    few, documents = take(asked, slice(0, 2)), take(bed.train, slice(0, 3))
    wanted = np.zeros((2, 3))
    for c in range(10):
        slopes = []
        for part in (few, documents):
            leaves = {k: v.clone().requires_grad_() for k, v in proxy.params.items()}
            phi = proxy.outputs_fn(leaves, tensors(part))[0][:, 0, c]
            rows = [torch.autograd.grad(x, list(leaves.values()), retain_graph=True) for x in phi]
            slopes.append(np.stack([torch.cat([g.flatten() for g in row]).numpy() for row in rows]))
        wanted += slopes[0] @ slopes[1].T
    np.testing.assert_allclose(proxies.kernels(proxy, few, documents), wanted, rtol=1e-4)


def test_at_an_undecided_model_gradient_dot_is_the_kernel_weighed_by_labels(images):
    """With all outputs zero, the slopes of the loss are 1/C less the one-hot label."""
    bed, _, asked = images
    module = proxies.architecture(bed)(5)
    params = proxies.values(module)
    for name in list(params)[-2:]:
        params[name] = torch.zeros_like(params[name])
    proxy = proxies.as_task(bed, module, params, None, "undecided")
    f = [torch.tanh(p["inputs"] @ params["0.weight"].T + params["0.bias"]) for p in (asked, bed.train)]
    wanted = (1 + f[0] @ f[1].T).numpy() * proxies.agreement(asked, bed.train)
    np.testing.assert_allclose(attribute("gradient_dot", proxy, bed.train, asked), wanted, rtol=1e-3, atol=1e-4)


def test_gpt2_is_a_proxy_on_the_targets_tokens(tiny, few):
    made = proxies.untrained(tiny, proxies.gpt2(tiny, 1, 16, 2), 0, "gpt2")
    assert made.params["transformer.wte.weight"].shape[0] == tiny.tokenizer.get_vocab_size()
    assert np.isfinite(attribute("gradient_dot", made, tiny.train, few)).all()


# --- data that are not the target's


def test_a_rewritten_text_says_the_same_in_other_words(tiny, queries):
    copied = copies.paraphrased(tiny, queries, np.random.default_rng(0))
    changed = 0
    for text, copy in zip(tiny.train["text"], copied["text"], strict=True):
        if copy == text:
            continue
        changed += 1
        assert statements.parse(copy) == statements.parse(text)
        assert not {s.strip() for s in copy.split(" .") if s.strip()} & {s.strip() for s in text.split(" .")}
        assert not any(query in copy for query in queries["text"]), "no query among the copies"
    assert changed > 0.8 * len(copied["text"])


def test_elsewhere_is_other_data(tiny, images):
    bed, *_ = images
    turned = copies.elsewhere(bed, 30, 0)
    assert set(turned["labels"].tolist()) == {0, 1, 2, 3} and turned["inputs"].shape == (30, 64)
    others = copies.elsewhere(tiny, 30, 0)
    assert not set(others["text"]) & set(tiny.train["text"])


# --- measuring


@pytest.fixture(scope="module")
def bank():
    rng = np.random.default_rng(0)
    scores = {name: rng.standard_normal((6, 20)) for name in "abc"}
    subsets = rng.random((14, 20)) < 0.5
    outputs = -(scores["a"] @ subsets.T).T[:, None] + 4 * rng.standard_normal((14, 2, 6))
    return scores, subsets, outputs, list("uuvvww")


def test_lds_add_up_and_their_differences_are_the_paired_ones(bank):
    scores, subsets, outputs, clusters = bank
    found = measuring.lds_of(scores, subsets, outputs)
    wanted = lds_intervals(scores, subsets, outputs, clusters, 0.9, ["b"])
    for name in "ac":
        assert tuple(found[name].interval(clusters, 0.9)) == pytest.approx(tuple(wanted[name].value))
        difference = (found[name] - found["b"]).interval(clusters, 0.9)
        assert tuple(difference) == pytest.approx(tuple(wanted[name].difference["b"]))
    both = measuring.lds_of({"pair": [scores["a"], scores["c"]]}, subsets, outputs)["pair"]
    middle = measuring.mean([found["a"], found["c"]])
    np.testing.assert_allclose(both.per_query, middle.per_query)
    np.testing.assert_allclose(both.pseudo, middle.pseudo)


def test_a_share_of_itself_is_one_and_of_nothing_is_refused(bank):
    scores, subsets, outputs, clusters = bank
    found = measuring.lds_of(scores, subsets, outputs)
    assert tuple(found["a"].share(found["a"], clusters, 0.9)) == pytest.approx((1, 1, 1))
    half = (found["a"] * 0.5).share(found["a"], clusters, 0.9)
    assert tuple(half) == pytest.approx((0.5, 0.5, 0.5))
    ratio = found["c"].share(found["a"], clusters, 0.9)
    assert ratio.value == pytest.approx(found["c"].per_query.mean() / found["a"].per_query.mean())
    with pytest.raises(ValueError, match="a share of an LDS of -"):
        found["c"].share(found["a"] * -1.0, clusters, 0.9)


def test_unknown_documents_get_the_mean_of_the_known():
    whole = measuring.filled(np.array([[1.0, 3.0]]), np.array([False, True, True, False]))
    np.testing.assert_array_equal(whole, [[2, 1, 3, 2]])


def test_auc_is_that_of_scikit_learn_and_its_interval_covers():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        wrong = np.arange(60) < 15
        suspicion = rng.standard_normal(60) + wrong
        found = measuring.auc(suspicion.round(1), wrong, 0.9)
        assert found.value == pytest.approx(roc_auc_score(wrong, suspicion.round(1)))
        hits += found.low < 0.7602 < found.high  # Phi(1 / sqrt 2)
    assert 0.83 < hits / 200 < 0.97


def test_flips_are_those_of_the_targets_own_training(images):
    """Nothing taken away changes nothing; all images that carry the query's class taken away change every answer."""
    bed, task, asked = images
    with torch.no_grad():
        answers = task.outputs_fn(task.params, tensors(asked))[0][:, 0].argmax(-1)
    right = np.flatnonzero((answers == asked["labels"]).numpy())[:4]
    few = take(asked, right)
    nothing = np.zeros((len(right), 80), bool)
    own = few["labels"][:, None].numpy() == bed.train["labels"].numpy()
    found = measuring.flips(bed, task, few, np.stack([nothing, own], 1), bed.config["seed"])
    assert not found[:, 0].any() and found[:, 1].all()


def test_rate_is_wilsons(bank):
    found = measuring.rate(np.arange(10) < 3, 0.95)
    assert tuple(found) == pytest.approx((0.3, 0.1078, 0.6032), abs=1e-4)


def test_the_most_and_the_neighbours():
    scores = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 5.0]])
    np.testing.assert_array_equal(measuring.most(scores, 2), [[1, 0, 1], [0, 1, 1]])
    train = {"labels": torch.tensor([0, 0, 1])}
    alike = np.array([[9, 2, 1], [2, 9, 1], [1, 2, 9]], float)
    np.testing.assert_array_equal(measuring.odd_among_neighbours(alike, train, 1), [0, 0, 1])


# --- representer points


@pytest.mark.parametrize("name", ["mlp", "sequence"])
def test_representers_rebuild_the_fitted_layer_and_the_logits(name):
    task, train = small(name)
    head, theta = representer.fitted(task, train, 0.01, 300, 5)
    alpha = representer.coefficients(head, theta, 0.01, n_examples(train))
    np.testing.assert_allclose(alpha.T @ head.states, theta, atol=1e-5)
    asked = representer.head_of(task, train)
    parts = alpha.T @ (head.states @ asked.states.T)  # [C, positions]: what all documents give to each logit
    np.testing.assert_allclose(parts.T, asked.states @ theta.T, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "sequence"])
def test_by_the_slope_of_the_loss_it_is_the_gradient_dot_of_the_last_layer(name):
    task, train = small(name)
    given = {"penalty": 0.5, "iterations": 0, "output": "loss"}
    found = attribute("representer", task, train, take(train, slice(0, 4)), **given)
    sizes = [p.numel() for p in task.params.values()]
    last = slow_gradients(task, train)[:, -sizes[-1] :]
    np.testing.assert_allclose(found, (last[:4] @ last.T) / (2 * 0.5 * 12), rtol=1e-4, atol=1e-6)


def test_representers_of_a_classifier_by_hand(images):
    bed, task, asked = images
    found = attribute("representer", task, bed.train, asked, penalty=0.02, iterations=0)
    f = [torch.cat([torch.from_numpy(task.encode["features"](part)), torch.ones(n_examples(part), 1)], 1)
         for part in (bed.train, asked)]  # fmt: skip
    p = task.outputs_fn(task.params, tensors(bed.train))[0][:, 0].softmax(-1).detach()
    alpha = (torch.eye(10)[bed.train["labels"]] - p) / (2 * 0.02 * 80)
    wanted = alpha.T[asked["labels"]] * (f[1] @ f[0].T)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_representers_cannot_tell_documents_that_the_layers_below_make_equal(images):
    """A case where it must fail: what differs below the last layer only."""
    bed, task, asked = images
    module = classifiers.mlp(1, 8, 0)
    params = proxies.values(module)
    params["0.weight"] = torch.zeros_like(params["0.weight"])
    blind = proxies.as_task(bed, module, params, None, "blind")
    scores = attribute("representer", blind, bed.train, asked)
    same = bed.train["labels"] == bed.train["labels"][0]
    assert same.sum() > 1 and np.allclose(scores[:, same], scores[:, same][:, :1], rtol=1e-4)


def test_representers_refuse_other_heads(images):
    bed, task, asked = images
    doubled = replace(task, outputs_fn=lambda p, b: (2 * task.outputs_fn(p, b)[0], b["labels"].unsqueeze(1)))
    doubled = replace(doubled, loss_fn=lambda p, b, r="mean": _loss_of(doubled, p, b, r))
    with pytest.raises(ValueError, match="outputs of task 'digits_mlp' are not those of its last linear layer '2'"):
        attribute("representer", doubled, bed.train, asked)


def _loss_of(task, params, batch, reduction):
    logits, targets = task.outputs_fn(params, batch)
    each = torch.nn.functional.cross_entropy(logits[:, 0], targets[:, 0], reduction="none")
    return {"mean": each.mean(), "sum": each.sum(), "example": each}[reduction]


# --- covariance of losses


def test_covariance_is_an_explicit_loop(images):
    bed, task, asked = images
    given = {"models": 6, "steps": 3, "batch": 10}
    found = attribute("loss_covariance", task, bed.train, asked, seed=2, **given)
    read = []
    for k in range(6):
        params = loss_covariance.perturbed(task, bed.train, np.random.default_rng([2, 43, k]), 0.5, 3, 10, 1e-3)
        with torch.no_grad():
            read.append(
                [task.loss_fn(params, tensors(part), "example").double().numpy() for part in (asked, bed.train)]
            )
    q, i = (np.stack(part) for part in zip(*read, strict=True))
    wanted = np.array([[np.cov(a, b)[0, 1] for b in i.T] for a in q.T])
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    scaled = attribute("loss_covariance", task, bed.train, asked, seed=2, normalise=True, **given)
    wanted = np.array([[np.corrcoef(a, b)[0, 1] for b in i.T] for a in q.T])
    np.testing.assert_allclose(scaled, wanted, atol=1e-3)


def test_of_correlations_a_copy_has_the_largest(images):
    bed, task, asked = images
    train = {k: torch.cat([v, asked[k]]) for k, v in tensors(bed.train).items()}
    scores = attribute("loss_covariance", task, train, tensors(asked), models=8, steps=3, normalise=True)
    np.testing.assert_allclose(scores[np.arange(12), 80 + np.arange(12)], 1, atol=1e-4)
    assert (scores <= 1 + 1e-4).all()


def test_with_two_models_all_queries_rank_alike(images):
    """A case where it must fail: one difference of losses is all that there is."""
    bed, task, asked = images
    scores = attribute("loss_covariance", task, bed.train, asked, models=2, steps=3)
    assert np.linalg.matrix_rank(scores, tol=1e-4 * np.abs(scores).max()) == 1
    with pytest.raises(ValueError, match="loss_covariance: models=1; it must be a whole number of at least 2"):
        attribute("loss_covariance", task, bed.train, asked, models=1)
