"""Digits: the images, the flips, the classifiers as tasks, their record, banks and scores."""

import copy
import shutil

import numpy as np
import pytest
import torch
from conftest import bytes_of, make_testbed, same

import tda.testbeds
from tda import attribution, bank, classifiers, config, evidence, measures, models, retrain, scores
from tda.artefacts import ArtefactError
from tda.evaluation import anchors
from tda.evaluation.lds import lds
from tda.task import n_examples, take, tensors
from tda.testbeds import KINDS, build_corpus, digits
from tda.tools.gradients import flatten, matrix
from tda.training import Recipe, steps_of, train

TINY = {
    "corpus": {"kind": "digits", "train": 90, "held_out": 20, "flips": 0.1},
    "model": {"kind": "mlp", "depth": 1, "width": 8},
    "training": {"optimizer": "sgd", "seeds": 2, "epochs": 10, "batch": 16, "lr": 0.1, "checkpoints": 3},
    "queries": {"held_out": 16, "generated": 0},
    "designs": {"half": {"subsets": 6, "seeds": 2}, "leave_5": {"subsets": 3, "seeds": 2, "fraction": 0.95}},
    "evaluation": {"tailpatch_queries": 0},
}
ROWS = {"random", "same_entity", "hidden_cosine", "gradient_dot", "gradient_cosine", "tracincp"}


def make(folder, changes=None, **top):
    settings = copy.deepcopy(TINY)
    for section, keys in (changes or {}).items():
        settings[section] = {**settings[section], **keys}
    loaded = config.load("smoke", {"testbeds": {"digits_mlp": settings}, **top})
    return tda.testbeds.Testbed("digits_mlp", loaded, loaded["testbeds"]["digits_mlp"], folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    testbed = make(tmp_path_factory.mktemp("digits") / "bed")
    models.train_base(testbed)
    for design in TINY["designs"]:
        bank.merge(testbed, design)
    return testbed


@pytest.fixture(scope="module")
def task(tiny):
    return models.load_task(tiny)


@pytest.fixture
def own(tiny, tmp_path):
    shutil.copytree(tiny.folder, tmp_path / "bed")
    return make(tmp_path / "bed")


# --- data


def test_parts_are_disjoint_and_complete(tiny):
    images, labels = digits.pixels()
    assert images.shape == (1797, 64) and images.min() == 0 and images.max() == 1
    ids = [*tiny.documents["doc_id"], *tiny.probes["query_id"]]
    assert len(ids) == len(set(ids)) == 1797
    kinds = list(tiny.probes["kind"])
    assert kinds.count("held_out") == 20 and kinds.count("validation") == 1797 - 90 - 20
    for row in [*tiny.documents.select(range(20)), *tiny.probes.select(range(30))]:
        i = int((row.get("doc_id") or row["query_id"]).removeprefix("image_"))
        np.testing.assert_allclose(row["pixels"], images[i])
        assert row.get("original", row["label"]) == labels[i]
    assert n_examples(digits.part(tiny, "validation")) == 1687


def test_flips_are_recorded_and_are_what_is_trained_on(tiny):
    rows = tiny.documents.to_pandas()
    assert rows.flipped.sum() == 9 and ((rows.label != rows.original) == rows.flipped).all()
    assert tiny.train["labels"].tolist() == rows.label.tolist() and tiny.train["entity"] == list(map(str, rows.label))
    assert tiny.train["inputs"].shape == (90, 64) and tiny.train["labels"].dtype == torch.long


@pytest.mark.parametrize("kind", ["uniform", "asymmetric"])
def test_kinds_of_flips(kind):
    labels = np.random.default_rng(0).integers(0, 10, 3000)
    given, flipped = digits.flip(labels, 0.3, kind, np.random.default_rng(1))
    assert flipped.sum() == 900 and ((given != labels) == flipped).all() and given.min() >= 0 and given.max() <= 9
    shift = (given - labels)[flipped] % 10
    assert set(shift) == (set(range(1, 10)) if kind == "uniform" else {1})
    if kind == "uniform":
        assert np.bincount(shift)[1:].min() > 60, "every other class alike"
    again = digits.flip(labels, 0.3, kind, np.random.default_rng(1))
    assert (again[0] == given).all() and not digits.flip(labels, 0.0, kind, np.random.default_rng(1))[1].any()


def test_impossible_flips_and_sizes_are_refused():
    for share, kind in ((1.0, "uniform"), (-0.1, "uniform"), (0.1, "pairs")):
        with pytest.raises(ValueError, match="'uniform' or 'asymmetric', 0 <= share < 1"):
            digits.flip(np.arange(10), share, kind, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"held_out: 97.*train \(1700\) and held_out must leave images of 1797"):
        tda.testbeds.load(
            "digits_mlp", "smoke", {"testbeds": {"digits_mlp": {"corpus": {"train": 1700, "held_out": 97}}}}
        )


def test_the_same_seed_gives_the_same_corpus(tiny, tmp_path):
    twin, other = make(tmp_path / "a"), make(tmp_path / "b", seed=1)
    assert twin.documents[:] == tiny.documents[:] and twin.probes[:] == tiny.probes[:]
    assert set(other.documents["doc_id"]) != set(tiny.documents["doc_id"])
    assert not (tmp_path / "a" / "corpus" / "tokenizer.json").exists()
    with pytest.raises(ArtefactError, match="other settings"):
        make(tiny.folder, {"corpus": {"flips": 0.2}}).require_corpus()
    assert build_corpus(twin)["flipped"] == 9


# --- classifiers as tasks


NETS = {"logreg": classifiers.mlp(0, 0, 0), "mlp": classifiers.mlp(2, 6, 0), "cnn": classifiers.cnn(2, 3, 0)}


@pytest.mark.parametrize("name", NETS)
def test_loss_and_outputs_are_cross_entropy(name, tiny):
    net, batch = NETS[name], take(tensors(tiny.train), slice(0, 7))
    params, loss_fn = classifiers.parameters(net), classifiers.loss_function(net)
    logits = net(batch["inputs"])
    by_hand = -logits.log_softmax(-1)[torch.arange(7), batch["labels"]]
    torch.testing.assert_close(loss_fn(params, batch, "example"), by_hand)
    torch.testing.assert_close(loss_fn(params, batch, "token"), by_hand[:, None])
    torch.testing.assert_close(loss_fn(params, batch, "sum"), by_hand.sum())
    torch.testing.assert_close(loss_fn(params, batch), by_hand.mean())
    found, targets = classifiers.outputs_function(net)(params, batch)
    assert found.shape == (7, 1, 10) and targets.shape == (7, 1)
    torch.testing.assert_close(found[:, 0], logits)
    assert targets[:, 0].tolist() == batch["labels"].tolist()
    with pytest.raises(ValueError, match="reduction='none'"):
        loss_fn(params, batch, "none")


def test_outputs_run_the_modules(task, tiny):
    seen = []
    hook = task.model[0].register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0].shape, output.shape))
    )
    task.outputs_fn(task.params, take(tiny.train, slice(0, 5)))
    hook.remove()
    assert seen == [((5, 64), (5, 8))]


def test_shapes_seeds_and_refusals():
    assert sum(p.numel() for p in classifiers.mlp(2, 32, 0).parameters()) == 64 * 32 + 32 + 32 * 32 + 32 + 32 * 10 + 10
    assert [m.weight.shape for m in classifiers.mlp(2, [5, 7], 0) if hasattr(m, "weight")] == [(5, 64), (7, 5), (10, 7)]
    assert sum(p.numel() for p in classifiers.cnn(2, 12, 0).parameters()) == 120 + 1308 + 490
    one, two, other = (classifiers.parameters(classifiers.mlp(1, 4, seed)) for seed in (0, 0, 1))
    assert same(one, two) and not same(one, other)
    for make_net, message in (
        (lambda: classifiers.mlp(1, 4, 0, "sine"), "activation='sine'"),
        (lambda: classifiers.mlp(3, [4, 4], 0), "depth=3 with 2 widths"),
        (lambda: classifiers.cnn(4, 4, 0), "depth=4"),
    ):
        with pytest.raises(ValueError, match=message):
            make_net()


def test_features_are_what_the_last_layer_sees(task, tiny):
    few = take(tiny.train, slice(0, 6))
    hidden = torch.tensor(classifiers.features(task.model, task.params, few, chunk=4))
    assert hidden.shape == (6, 8)
    torch.testing.assert_close(task.model[-1](hidden), task.model(few["inputs"]))
    flat = classifiers.features(NETS["logreg"], classifiers.parameters(NETS["logreg"]), few)
    np.testing.assert_array_equal(flat, few["inputs"].numpy())


def test_gradients_add_up_to_the_training_gradient(task, tiny):
    params = {k: v.clone().requires_grad_() for k, v in task.params.items()}
    task.loss_fn(params, tensors(tiny.train)).backward()
    whole = flatten({k: v.grad.unsqueeze(0) for k, v in params.items()})[0]
    torch.testing.assert_close(matrix(task, tiny.train, chunk=7).mean(0), whole, atol=1e-6, rtol=1e-4)


# --- training


def test_base_record(tiny, task):
    made = models.base_record(tiny)
    assert [run["seed"] for run in made["runs"]] == [0, 1]
    first = made["runs"][0]
    validation = digits.part(tiny, "validation")
    with torch.no_grad():
        right = task.model(validation["inputs"]).argmax(1) == validation["labels"]
    assert first["knowledge"]["validation"] == pytest.approx(right.float().mean().item())
    assert first["knowledge"]["validation"] > 0.5 and set(first["knowledge"]) == {"validation", "held_out", "trained"}
    assert first["flops"] > 4 * sum(p.numel() for p in task.params.values()) * 90 * 10
    assert len(first["curves"]["watch"]) == 10 and first["recipe"]["clip"] is None


def test_stored_run_can_be_repeated_step_by_step(tiny, task):
    run = task.run
    assert run.recipe == Recipe.of(tiny.settings["training"]) and len(run.checkpoints) == 3
    assert same(run.initial.params, models.initial(tiny, 0)[1]) and run.initial.optimizer == {}
    at = {k: v.clone() for k, v in run.initial.params.items()}
    velocity = {k: torch.zeros_like(v) for k, v in at.items()}
    inputs = tensors(tiny.train)
    for (members, divisor), rate in zip(run.steps, run.learning_rates, strict=True):
        gradient = torch.func.grad(lambda p, m=members: task.loss_fn(p, take(inputs, m), "sum"))(at)
        for k in at:
            velocity[k] = run.recipe.momentum * velocity[k] + gradient[k] / divisor + run.recipe.weight_decay * at[k]
            at[k] = at[k] - float(rate) * velocity[k]
    assert max(float((at[k] - task.params[k]).abs().max()) for k in at) < 1e-5
    state = run.checkpoints[-1].optimizer
    assert set(state) == {"momentum_buffer"}
    assert max(float((state["momentum_buffer"][k] - velocity[k]).abs().max()) for k in at) < 1e-4


def test_training_repeats_to_the_bit(tiny, tmp_path):
    twin = make(tmp_path / "twin")
    models.train_base(twin)
    one, two = (models.load_task(bed) for bed in (tiny, twin))
    assert same(one.params, two.params) and models.query_rows(tiny) == models.query_rows(twin)
    assert not same(one.params, models.load_task(tiny, 1).params)


def test_a_lost_initial_model_is_refused(own):
    (own.folder / "model" / "seed_0" / "step_000000.safetensors").unlink()
    with pytest.raises(ArtefactError, match="3 checkpoints and 0 initial models, its record says 3 and 1"):
        models.load_task(own)


# --- queries


def test_queries_are_held_out_images(tiny):
    rows, asked = models.query_rows(tiny), models.query_examples(tiny)
    assert len(rows) == 16 and {row["query_set"] for row in rows} == {"held_out"}
    assert sum(row["split"] == "tune" for row in rows) == 4 and len({row["query_id"] for row in rows}) == 16
    images, labels = digits.pixels()
    for row, inputs, label in zip(rows, asked["inputs"], asked["labels"], strict=True):
        i = int(row["query_id"].removeprefix("image_"))
        np.testing.assert_array_equal(inputs.numpy(), images[i])
        assert int(label) == labels[i] == int(row["entity"])
    test = models.query_examples(tiny, split="test")
    assert n_examples(test) == 12 and set(test["split"]) == {"test"}
    assert len(set(models.query_clusters(tiny, np.ones(16, bool)))) == 16, "images are independent draws"


def test_relevance_leaves_the_flipped_out(tiny):
    relevant, rows = models.relevance(tiny), tiny.documents.to_pandas()
    for q, row in enumerate(models.query_rows(tiny)):
        wanted = (rows.original == int(row["entity"])) & (rows.label == int(row["entity"]))
        np.testing.assert_array_equal(relevant[q], wanted)
    assert not relevant[:, rows.flipped].any()


# --- bank


@pytest.mark.parametrize("design", TINY["designs"])
def test_bank_holds_the_losses_of_models_trained_alone(design, tiny):
    held, plan, asked = bank.load(tiny, design), bank.design(tiny, design), models.query_examples(tiny)
    assert held.outputs.shape == (len(plan.subsets), 2, 16) and held.outputs_second is None
    assert (held.base is not None) == (design == "leave_5")
    recipe = Recipe.of(tiny.settings["training"])
    for m, r in ((0, 0), (2, 1)):
        net, init = models.initial(tiny, plan.seeds[r])
        loss_fn = classifiers.loss_function(net)
        alone = train(loss_fn, init, tiny.train, recipe, plan.seeds[r], plan.subsets[m], plan.how)
        with torch.no_grad():
            wanted = loss_fn(alone.params, asked, "example")
        np.testing.assert_allclose(held.outputs[m, r], wanted, atol=1e-4, rtol=1e-4)
    assert 0.3 < held.record["knowledge"]["validation"] <= 1
    assert set(plan.seeds).isdisjoint(models.seeds_of(tiny))


def test_leaving_5_percent_out_is_paired_with_the_full_run(tiny):
    held = bank.load(tiny, "leave_5")
    assert (held.subsets.sum(1) == round(0.95 * 90)).all()
    paired = np.abs(held.outputs - held.base[None]).mean()
    assert 0 < paired < 0.5 * np.abs(held.base[0] - held.base[1]).mean(), "masked runs stay close to their full run"


def test_an_interrupted_bank_ends_the_same(own, tiny):
    before = bytes_of(own.folder)["bank_half.npz"]
    cached = sorted((own.folder / "retrained").rglob("*.npz"))
    for path in [*cached[::3], own.folder / "bank_half.npz"]:
        path.unlink()
    again = bank.merge(own, "half")
    np.testing.assert_allclose(again.outputs, bank.load(tiny, "half").outputs, atol=1e-5)
    assert bytes_of(own.folder)["bank_half.npz"] == before, "also to the bit, on one machine"


def test_caches_of_the_two_modalities_are_apart(tiny):
    mine, texts = set(tiny.modality.CODE), set(KINDS["people"].CODE)
    assert {"many.py", "classifiers.py", "testbeds/digits.py"} <= mine - texts
    assert {"lm.py", "testbeds/language.py"} <= texts - mine
    assert all((config.ROOT / "tda" / name).exists() for name in mine | texts)


def test_retrained_models_are_read_back(tiny):
    plan = bank.design(tiny, "half")
    one = retrain.retrained(tiny, *plan.models()[0], plan.how)
    assert one.outputs.shape == (1, 16) and set(one.knowledge) == {"validation", "held_out", "trained"}
    assert one.seconds > 0 and one.flops > 0
    np.testing.assert_array_equal(one.outputs[0], bank.load(tiny, "half").outputs[0, 0])


# --- rows and tables


def test_rows_run_and_are_measured(own):
    row_ids = [row["id"] for row in config.rows(own.config, own.name)]
    assert ROWS | {"fisher_influence_full"} <= set(row_ids) and not {"bm25", "tfidf"} & set(row_ids)
    for row_id in row_ids:
        scores.run(own, row_id)
    frame = measures.write(own, row_ids)
    assert set(frame.metric) == {"lds_half", "lds_leave_5", "precision_at_10"} and set(frame.query_set) == {"held_out"}
    assert frame.delta_vs_bm25.isna().all() and frame.delta_vs_gradient_dot.notna().any()
    again = measures.of_chapter(own, "04_first_methods")
    assert list(dict.fromkeys(again.row_id)) == config.compared_rows(own.config, own.name, "04_first_methods")
    same = frame[frame.row_id.isin(again.row_id)]
    np.testing.assert_allclose(again.value.sort_values(), same.value.sort_values(), rtol=1e-5)  # a CSV has six digits
    half = frame[frame.metric == "lds_half"].set_index("row_id")
    assert half.n_queries.eq(12).all() and half.ceiling.gt(0).all()
    np.testing.assert_allclose(half.share, half.value / half.ceiling)
    assert half.share_low.lt(half.share_high).any()
    truth, chosen = bank.load(own, "half"), np.array([row["split"] == "test" for row in models.query_rows(own)])
    found = scores.load(own, "gradient_dot")[0][chosen]
    assert half.value["gradient_dot"] == pytest.approx(
        lds(found, truth.subsets, truth.outputs[:, :, chosen]).mean(), abs=1e-6
    )
    claim = {"metric": "lds_leave_5", "query_set": "held_out"}
    assert evidence.ceiling_of(claim, own).n_subsets == 3


def test_text_methods_are_refused_by_name(task, tiny):
    asked = models.query_examples(tiny)
    for name in ("bm25", "tfidf"):
        with pytest.raises(ValueError, match=f"'{name}' needs 'text', which the task 'digits_mlp' does not offer"):
            attribution.attribute(name, task, tiny.train, asked)


# --- the anchors, and SGD on texts


@pytest.mark.slow
def test_anchor_setting():
    """Gradient dot and Gauss-Newton influence on logistic regression, as others have measured them."""
    anchor = anchors.load("logreg")
    assert n_examples(anchor.train) == 200 and n_examples(anchor.queries) == 20
    assert all(anchor.subsets[d].shape == (60, 200) and anchor.outputs[d].shape == (60, 1, 20) for d in anchor.outputs)
    assert (anchor.subsets["half"].sum(1) == 100).all() and (anchor.subsets["leave_5"].sum(1) == 190).all()
    asked, documents = (matrix(anchor.task, x).double() for x in (anchor.queries, anchor.train))

    def measured(found, design):
        return float(lds(found.numpy(), anchor.subsets[design], anchor.outputs[design]).mean())

    dot = asked @ documents.T
    assert measured(dot, "half") == pytest.approx(0.644, abs=0.05)
    assert measured(dot, "leave_5") == pytest.approx(0.586, abs=0.06)

    def logits(vector, x):  # the Gauss-Newton matrix of a linear model, written out
        return vector[:640].view(10, 64) @ x + vector[640:]

    at = torch.cat([v.flatten() for v in anchor.task.params.values()]).double()
    ggn = torch.zeros(650, 650, dtype=torch.float64)
    for x in anchor.train["inputs"].double():
        jacobian = torch.func.jacrev(logits)(at, x)
        p = logits(at, x).softmax(0)
        ggn += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / 200
    influence = asked @ torch.linalg.solve(ggn + 0.01 * torch.eye(650, dtype=torch.float64), documents.T)
    assert measured(influence, "half") == pytest.approx(0.970, abs=0.01)
    assert measured(influence, "leave_5") == pytest.approx(0.995, abs=0.005)
    with pytest.raises(ValueError, match="model='cnn'"):
        anchors.load("cnn")


def test_language_model_trained_by_sgd(tmp_path_factory):
    """`people_sgd` in small: torch.optim.SGD on the same batches, no clipping, and a record to repeat it by."""
    settings = {"training": {"optimizer": "sgd", "momentum": 0.9, "schedule": "cosine", "warmup": 0.1, "epochs": 2}}
    folder = tmp_path_factory.mktemp("sgd") / "people"
    bed = make_testbed(folder, settings | {"queries": {"generated": 0}})
    recipe = Recipe.of(bed.settings["training"])
    assert recipe.optimizer == "sgd" and recipe.clip is None and "beta1" not in bed.settings["training"]
    model, init = models.initial(bed, 0)
    loss_fn = bed.modality.loss_function(model)
    done = train(loss_fn, init, bed.train, recipe, 0)
    params = {k: v.clone().requires_grad_() for k, v in init.items()}
    optimizer = torch.optim.SGD(params.values(), lr=1.0, momentum=0.9, weight_decay=recipe.weight_decay)
    steps = steps_of(done.order, recipe.batch, np.ones(n_examples(bed.train), bool), "filter")
    for (members, _), rate in zip(steps, done.learning_rates, strict=True):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        loss_fn(params, take(tensors(bed.train), members)).backward()
        optimizer.step()
    assert max(float((params[k].detach() - done.params[k]).abs().max()) for k in params) < 1e-5
    assert done.curves["train"][-1] < done.curves["train"][0]


def test_the_work_of_a_subset_is_that_of_its_images(tiny):
    masks = [np.arange(90) < size for size in (90, 45, 9)]
    trained = list(tiny.modality.train_models(tiny, [(mask, 1) for mask in masks], "filter"))
    assert [flops / trained[0][3] for _, _, _, flops in trained] == pytest.approx([1.0, 0.5, 0.1])
    assert trained[0][3] == pytest.approx(10 * tiny.modality.flops(trained[0][0], 90)), "ten epochs"
