"""The training loop: it minimises exactly the attribution loss, repeats to the bit, and records what it did."""

import resource
import shutil

import numpy as np
import pytest
import torch
from conftest import make_testbed, same

from tda import lm, models, training
from tda.artefacts import ArtefactError
from tda.task import n_examples, take
from tda.testbeds import KINDS
from tda.tools.gradients import flatten, matrix, unflatten
from tda.training import Recipe, data_order, load_run, read_checkpoint, schedule, steps_of, train

RECIPE = Recipe(
    epochs=2, batch=8, lr=0.01, warmup=0.1, weight_decay=0.01, beta1=0.9, beta2=0.99, clip=1.0, checkpoints=3
)


@pytest.fixture(scope="module")
def start(tiny):
    model, init = models.initial(tiny, 0)
    return lm.loss_function(model), init, tiny.train


def norm_of(one, other):
    return float(sum((one[k] - other[k]).square().sum() for k in one) ** 0.5)


# --- objective


def test_training_gradient_is_the_sum_of_attribution_gradients(task, tiny):
    """d(training objective) = mean of the gradients that every gradient method uses."""
    some = take(tiny.train, slice(0, 24))
    per_example = matrix(task, some, chunk=5)
    params = {k: v.clone().requires_grad_() for k, v in task.params.items()}
    batch = lm.trim({k: some[k] for k in ("input_ids", "labels")})
    (task.loss_fn(params, batch, "sum") / 24).backward()
    training_gradient = flatten({k: v.grad.unsqueeze(0) for k, v in params.items()})[0]
    torch.testing.assert_close(per_example.mean(0), training_gradient, atol=1e-6, rtol=1e-4)


def test_one_step_of_training_is_one_step_on_that_gradient(start):
    """A whole run of one step, against torch.optim.AdamW on the per-example gradients."""
    loss_fn, init, data = start
    n = n_examples(data)
    recipe = Recipe(**{**vars(RECIPE), "epochs": 1, "batch": n, "warmup": 0.0})
    done = train(loss_fn, init, data, recipe, seed=0)
    from tda.task import Task

    gradient = unflatten(matrix(Task("init", loss_fn, init), data).mean(0), init)
    params = {k: v.clone().requires_grad_() for k, v in init.items()}
    for k, v in params.items():
        v.grad = gradient[k].clone()
    torch.nn.utils.clip_grad_norm_(params.values(), recipe.clip)
    torch.optim.AdamW(params.values(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=0.01).step()
    # Adam's first step is a sign: compare where the gradient is not rounding noise
    sure = {k: gradient[k].abs() > 1e-6 for k in init}
    for k in init:
        torch.testing.assert_close(done.params[k][sure[k]], params[k].detach()[sure[k]], atol=1e-4, rtol=1e-3)
    assert sum(int(v.sum()) for v in sure.values()) > 0.3 * sum(v.numel() for v in init.values())


def test_long_documents_weigh_as_much_as_short_ones(start):
    """The loss is a mean over examples of a mean over tokens, not a mean over tokens."""
    loss_fn, init, data = start
    example = loss_fn(init, {k: data[k] for k in ("input_ids", "labels")}, "example")
    lengths = (data["labels"][:, 1:] != lm.IGNORE).sum(1)
    assert lengths.min() < lengths.max()
    mean = loss_fn(init, {k: data[k] for k in ("input_ids", "labels")})
    assert mean.item() == pytest.approx(example.mean().item(), rel=1e-6)
    assert mean.item() != pytest.approx(((example * lengths).sum() / lengths.sum()).item(), rel=1e-5)


# --- determinism


def test_two_runs_are_equal_to_the_bit(start):
    loss_fn, init, data = start
    before = {k: v.clone() for k, v in init.items()}
    one = train(loss_fn, init, data, RECIPE, seed=3)
    torch.rand(17)  # the global generator must not matter
    two = train(loss_fn, init, data, RECIPE, seed=3)
    assert same(one.params, two.params) and one.curves == two.curves
    assert same(init, before), "the initial parameters are left untouched"
    other = train(loss_fn, init, data, RECIPE, seed=4)
    assert not same(one.params, other.params), "the seed orders the data"


def test_checkpoints_and_watching_do_not_change_the_run(start, tmp_path):
    loss_fn, init, data = start
    plain = train(loss_fn, init, data, RECIPE, seed=0)
    watched = train(loss_fn, init, data, RECIPE, 0, folder=tmp_path, watch=take(data, slice(0, 5)), progress=str)
    assert same(plain.params, watched.params)
    assert len(watched.curves["watch"]) == RECIPE.epochs and not plain.curves["watch"]


# --- filter and mask


def test_order_is_a_permutation_an_epoch_shared_by_all_subsets():
    order = data_order(20, 3, seed=5)
    assert order.shape == (3, 20) and all(sorted(row) == list(range(20)) for row in order)
    assert len({tuple(row) for row in order}) == 3
    assert np.array_equal(order[:2], data_order(20, 2, seed=5)) and not np.array_equal(order, data_order(20, 3, 6))


def test_filter_cuts_full_batches_and_mask_keeps_the_batches_of_the_full_run():
    order = data_order(20, 2, seed=5)
    mask = np.arange(20) % 3 != 0  # 13 of 20
    filtered, masked, full = (
        steps_of(order, 8, m, how) for m, how in ((mask, "filter"), (mask, "mask"), (mask | True, "mask"))
    )
    assert [len(members) for members, _ in filtered] == [8, 5] * 2
    assert all(divisor == len(members) for members, divisor in filtered)
    assert len(masked) == len(full) == 6
    for (members, divisor), (everyone, whole) in zip(masked, full, strict=True):
        assert divisor == whole == len(everyone)
        assert members.tolist() == [i for i in everyone if mask[i]]
    for epoch in range(2):
        seen = np.concatenate([members for members, _ in filtered[2 * epoch : 2 * epoch + 2]])
        assert seen.tolist() == [i for i in order[epoch] if mask[i]]
    assert [m.tolist() for m, _ in steps_of(order, 8, mask | True, "filter")] == [m.tolist() for m, _ in full]
    with pytest.raises(ValueError, match="how='drop'.*'filter'.*'mask'"):
        steps_of(order, 8, mask, "drop")


def test_masking_nothing_is_the_full_run_and_masking_one_is_near_it(start):
    loss_fn, init, data = start
    n = n_examples(data)
    everyone = np.ones(n, bool)
    full = train(loss_fn, init, data, RECIPE, 0)
    assert same(full.params, train(loss_fn, init, data, RECIPE, 0, everyone, "mask").params)
    assert same(full.params, train(loss_fn, init, data, RECIPE, 0, everyone, "filter").params)
    without = everyone.copy()
    without[3] = False
    short = Recipe(**{**vars(RECIPE), "epochs": 1})
    base = train(loss_fn, init, data, short, 0).params
    paired = norm_of(train(loss_fn, init, data, short, 0, without, "mask").params, base)
    unpaired = norm_of(train(loss_fn, init, data, short, 1).params, base)
    assert 0 < paired < 0.6 * unpaired, "a masked run stays paired with the full one"


@pytest.mark.parametrize("how", ["mask", "filter"])
def test_left_out_documents_leave_no_trace(start, how):
    """Replacing left-out documents by garbage changes nothing."""
    loss_fn, init, data = start
    mask = np.arange(n_examples(data)) % 2 == 0
    garbage = {k: v.clone() for k, v in data.items() if k in ("input_ids", "labels")}
    out = torch.as_tensor(~mask)
    replaced = torch.randint(3, 90, garbage["input_ids"][out].shape, generator=torch.Generator().manual_seed(0))
    garbage["input_ids"][out] = replaced
    garbage["labels"][out] = replaced
    one, two = (train(loss_fn, init, d, RECIPE, 0, mask, how) for d in (data, garbage))
    assert same(one.params, two.params) and one.curves == two.curves and one.tokens == two.tokens


def test_masked_examples_still_divide(start, tmp_path):
    """One step on 4 of N documents: Adam's first moment is the gradient, divided by N (mask) or by 4 (filter)."""
    loss_fn, init, data = start
    n = n_examples(data)
    recipe = Recipe(**{**vars(RECIPE), "epochs": 1, "batch": n, "clip": 1e9, "checkpoints": 1})
    mean = {}
    for how in ("mask", "filter"):
        train(loss_fn, init, data, recipe, 0, np.arange(n) < 4, how, tmp_path / how)
        _, state = read_checkpoint(tmp_path / how / "step_000001.safetensors")
        mean[how] = state["exp_avg"]["lm_head.weight"]
    torch.testing.assert_close(mean["mask"] * n, mean["filter"] * 4, rtol=1e-4, atol=1e-6)
    assert float(mean["filter"].abs().max()) > 0


def test_a_batch_that_is_masked_whole_still_steps(start):
    loss_fn, init, data = start
    order = data_order(n_examples(data), 1, 0)[0]
    mask = np.ones(n_examples(data), bool)
    mask[order[:8]] = False  # the first step, before any gradient exists
    done = train(loss_fn, init, data, Recipe(**{**vars(RECIPE), "epochs": 1}), 0, mask, "mask")
    assert len(done.learning_rates) == -(-n_examples(data) // 8)
    assert all(torch.isfinite(v).all() for v in done.params.values())


@pytest.mark.parametrize(
    "mask", [lambda n: np.zeros(n, bool), lambda n: np.ones(n), lambda n: np.ones(n + 1, bool), lambda n: np.arange(n)]
)
def test_wrong_masks_are_refused(start, mask):
    loss_fn, init, data = start
    with pytest.raises(ValueError, match="mask must be bool"):
        train(loss_fn, init, data, RECIPE, 0, mask(n_examples(data)))


def test_diverging_training_is_refused(start):
    loss_fn, init, data = start
    with pytest.raises(ValueError, match=r"training loss is nan in epoch 1.*Lower training\.lr"):
        train(lambda p, b, r: loss_fn(p, b, r) * float("nan"), init, data, RECIPE, 0)
    broken = {k: v.clone() for k, v in init.items()}
    broken["lm_head.weight"][3] = float("inf")
    with pytest.raises(ValueError, match="training loss is"):
        train(loss_fn, broken, data, RECIPE, 0)


# --- schedule, checkpoints


def test_schedule_warms_up_and_decays_to_zero():
    rates = schedule(RECIPE, 100)
    assert rates.shape == (100,) and rates[0] == pytest.approx(0.001) and rates[9] == pytest.approx(0.01)
    assert np.argmax(rates) == 9 and rates[-1] == pytest.approx(0, abs=1e-12)
    assert np.all(np.diff(rates[:10]) > 0) and np.all(np.diff(rates[9:]) < 0)
    assert rates[54] == pytest.approx(0.005, rel=1e-2), "half-way down the cosine"
    assert schedule(RECIPE, 1).tolist() == [0.01] and np.isfinite(schedule(RECIPE, 2)).all()
    assert schedule(Recipe(**{**vars(RECIPE), "warmup": 1.0}), 10)[-1] == pytest.approx(0.01)


def test_rates_of_the_optimiser_are_the_schedule(tiny, task):
    run = task.run
    recipe = Recipe.of(tiny.settings["training"])
    steps = recipe.epochs * -(-len(tiny.documents) // recipe.batch)
    np.testing.assert_array_equal(run.learning_rates, schedule(recipe, steps))
    assert len(run.curves["train"]) == len(run.curves["watch"]) == recipe.epochs
    assert run.curves["train"][-1] < 0.3 * run.curves["train"][0]
    np.testing.assert_array_equal(run.order, data_order(len(tiny.documents), recipe.epochs, run.seed))


def test_checkpoints_cover_the_run(tiny, task):
    run = task.run
    steps = [c.step for c in run.checkpoints]
    total = len(run.learning_rates)
    assert len(steps) == tiny.settings["training"]["checkpoints"] and steps == sorted(steps) and steps[-1] == total
    assert np.diff([0, *steps]).max() - np.diff([0, *steps]).min() <= 1, "evenly spaced"
    edges = [0, *steps]
    for checkpoint, begin in zip(run.checkpoints, edges, strict=False):
        assert checkpoint.lr == run.learning_rates[checkpoint.step - 1]
        assert checkpoint.lr_sum == pytest.approx(run.learning_rates[begin : checkpoint.step].sum(), rel=1e-12)
    assert sum(c.lr_sum for c in run.checkpoints) == pytest.approx(run.learning_rates.sum(), rel=1e-12)
    assert same(run.checkpoints[-1].params, task.params), "the last checkpoint is the model"
    assert not same(run.checkpoints[0].params, task.params)
    assert set(run.checkpoints[0].optimizer) == {"exp_avg", "exp_avg_sq"}


def test_optimiser_state_is_adams(start, tmp_path):
    """exp_avg and exp_avg_sq of a stored checkpoint, against a plain loop that applies Adam's two recursions."""
    loss_fn, init, data = start
    recipe = Recipe(**{**vars(RECIPE), "epochs": 1, "checkpoints": 2})
    train(loss_fn, init, data, recipe, 0, folder=tmp_path)
    mean = {k: torch.zeros_like(v) for k, v in init.items()}
    square = {k: torch.zeros_like(v) for k, v in init.items()}
    at = dict(init)
    steps = steps_of(data_order(n_examples(data), 1, 0), recipe.batch, np.ones(n_examples(data), bool), "filter")
    rates = schedule(recipe, len(steps))
    for t, ((members, _), rate) in enumerate(zip(steps, rates, strict=True), start=1):
        batch = {k: data[k][torch.as_tensor(members)] for k in ("input_ids", "labels")}
        gradient = torch.func.grad(loss_fn)(at, batch)
        norm = sum(g.square().sum() for g in gradient.values()) ** 0.5
        for k in at:
            g = gradient[k] * min(1.0, recipe.clip / (norm + 1e-6))
            mean[k] = recipe.beta1 * mean[k] + (1 - recipe.beta1) * g
            square[k] = recipe.beta2 * square[k] + (1 - recipe.beta2) * g * g
            update = (mean[k] / (1 - recipe.beta1**t)) / ((square[k] / (1 - recipe.beta2**t)).sqrt() + 1e-8)
            at[k] = at[k] * (1 - rate * recipe.weight_decay) - rate * update
    params, state = read_checkpoint(sorted(tmp_path.glob("*.safetensors"))[-1])
    assert set(state) == {"exp_avg", "exp_avg_sq"} and set(state["exp_avg"]) == set(init)
    for name, wanted in (("exp_avg", mean), ("exp_avg_sq", square)):
        for k in init:
            gap = (state[name][k] - wanted[k]).norm() / (wanted[k].norm() + 1e-12)
            assert float(gap) < 0.02, (name, k)
    assert norm_of(params, at) < 0.05 * norm_of(params, init)


def test_truncated_checkpoint_is_refused(own):
    path = sorted((own.folder / "model" / "seed_0").glob("*.safetensors"))[0]
    content = path.read_bytes()
    for cut in (content[: len(content) // 2], content[:20], b""):
        path.write_bytes(cut)
        with pytest.raises(ArtefactError, match=rf"{path.name}.*train again"):
            read_checkpoint(path)
        with pytest.raises(ArtefactError, match=f"delete {own.folder / 'model'} and train again"):
            models.load_task(own)
    shutil.rmtree(own.folder / "model")  # what the message says
    models.load_task(own)


SWAPS = {
    "seed": ("seed_1/step_000040", "seed_0/step_000040", "seed 1, .*seed 0"),
    "step": ("seed_0/step_000080", "seed_0/step_000040", "step 80 .*step 40"),
    "initial": ("seed_0/step_000120", "seed_0/step_000000", "step 120 .*step 0"),
}


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    testbed = make_testbed(tmp_path_factory.mktemp("two") / "people", {"training": {"seeds": 2}})
    models.train_base(testbed)
    return testbed


@pytest.mark.parametrize("case", SWAPS)
def test_a_checkpoint_in_anothers_place_is_refused(two_seeds, tmp_path, case):
    shutil.copytree(two_seeds.folder, tmp_path / "people")
    bed = make_testbed(tmp_path / "people", {"training": {"seeds": 2}})
    source, target, message = SWAPS[case]
    folder = bed.folder / "model"
    shutil.copy(folder / f"{source}.safetensors", folder / f"{target}.safetensors")
    with pytest.raises(
        ArtefactError, match=f"{target}.safetensors: holds .*{message}.*delete {folder} and train again"
    ):
        models.load_task(bed)


def test_a_checkpoint_with_one_flipped_bit_is_refused_when_it_is_read(own):
    path = sorted((own.folder / "model" / "seed_0").glob("*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    task = models.load_task(own)  # which reads the last one only
    with pytest.raises(
        ArtefactError, match=f"{path.name}: its tensors differ from their checksum; delete .*train again"
    ):
        _ = task.run.checkpoints[0].params


def test_a_checkpoint_with_other_tensors_and_a_checksum_of_its_own_is_refused(own):
    """The record of the base models knows the checksums, too."""
    path = sorted((own.folder / "model" / "seed_0").glob("*.safetensors"))[-1]
    (params, state), about = read_checkpoint(path), {"testbed": own.name, "key": models.model_key(own), "seed": 0}
    doubled = {k: 2 * v for k, v in params.items()}
    training.save(path.parent, about, int(path.stem[5:]), 0.0, 0.0, doubled, state)
    with pytest.raises(ArtefactError, match=f"{path.name}: holds sha256 .* was expected"):
        models.load_task(own)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    testbed = make_testbed(tmp_path_factory.mktemp("other") / "people", {"corpus": {"values": 7}})
    models.train_base(testbed)
    return testbed


@pytest.mark.parametrize("part", ["corpus/documents", "corpus/probes", "queries"])
def test_what_belongs_to_another_testbed_is_refused(own, other, part):
    shutil.rmtree(own.folder / part)
    shutil.copytree(other.folder / part, own.folder / part)
    models.load_queries.cache_clear()
    read = {"corpus/documents": lambda: own.documents, "corpus/probes": lambda: own.probes}
    cured = "model" if part == "queries" else "corpus"
    with pytest.raises(ArtefactError, match=f"{part}: another data set .*delete {own.folder / cured} and run again"):
        read.get(part, lambda: models.query_rows(own))()


@pytest.mark.parametrize("change", [lambda text: text[: len(text) // 2], lambda text: text.replace("a", "b", 1), None])
def test_a_damaged_or_edited_tokenizer_is_refused(own, change):
    path = own.folder / "corpus" / "tokenizer.json"
    path.unlink() if change is None else path.write_text(change(path.read_text()))
    with pytest.raises(ArtefactError, match=r"tokenizer\.json: (not found|truncated, edited).*delete .*corpus"):
        _ = own.tokenizer


def test_foreign_safetensors_file_is_refused(own):
    from safetensors.torch import save_file

    path = sorted((own.folder / "model" / "seed_0").glob("*.safetensors"))[-1]
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(ArtefactError, match=path.name):
        models.load_task(own)


def test_missing_checkpoint_is_refused(own):
    folder = own.folder / "model" / "seed_0"
    sorted(folder.glob("*.safetensors"))[1].unlink()  # the first is the initial model
    with pytest.raises(ArtefactError, match="holds 2 checkpoints and 1 initial models, its record says 3 and 1"):
        load_run(folder, models.base_record(own)["runs"][0])


def test_more_checkpoints_than_steps_are_refused(start, tmp_path):
    loss_fn, init, data = start
    recipe = Recipe(**{**vars(RECIPE), "epochs": 1, "checkpoints": 50})
    with pytest.raises(ValueError, match="checkpoints"):
        train(loss_fn, init, data, recipe, 0, folder=tmp_path)


def test_full_disk_while_saving_a_checkpoint(start, tmp_path):
    """The process may not write files above 20 kB: one clear error, and no half-written checkpoint."""
    loss_fn, init, data = start
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(ArtefactError, match="step_0.*could not be written"):
            train(loss_fn, init, data, Recipe(**{**vars(RECIPE), "epochs": 1}), 0, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_retrain_repeats_the_base_run(task, tiny):
    everyone = np.ones(len(tiny.documents), bool)
    assert same(task.run.retrain(everyone, task.run.seed), task.params)


# --- the base models of a testbed


def test_task_is_one_model(task, tiny, queries):
    """``params``, ``model`` and the last checkpoint are the same trained model."""
    assert same({k: v.detach() for k, v in task.model.named_parameters()}, task.params)
    features = task.encode["features"](take(queries, slice(0, 3)))
    again = lm.hidden_states(task.model, task.params, take(queries, slice(0, 3)))
    np.testing.assert_allclose(features, again, atol=1e-6)
    assert task.encode["text"](queries) == queries["text"] and task.encode["group"](queries) == queries["entity"]


def test_queries_are_known_and_held_out(tiny, task, queries):
    rows = models.query_rows(tiny)
    from tda import queries as q

    answers = q.second(queries)
    held = np.array([row["query_set"] == "held_out" for row in rows])
    assert q.knows(task.model, task.params, answers)[held].all() and held.sum() >= 8
    text = " ".join(tiny.documents["text"])
    assert not any(row["text"] in text for row, keep in zip(rows, held, strict=True) if keep)
    people = {s: {row["entity"] for row in rows if row["split"] == s} for s in ("tune", "test")}
    assert not people["tune"] & people["test"] and all(people.values())
    stated = {fact for facts in tiny.documents["facts"] for fact in facts}
    assert all(f"{r['entity']}|{r['attribute']}|{r['value']}" in stated for r in rows)
    answer = (answers["labels"] != lm.IGNORE).sum(1)
    whole = (queries["labels"] != lm.IGNORE).sum(1)
    assert (answer == 1).all() and (whole > 3).all()


def test_relevance_is_what_documents_state(tiny):
    from tda.testbeds import statements

    relevant = models.relevance(tiny)
    rows, documents = models.query_rows(tiny), list(tiny.documents)
    assert relevant.shape == (len(rows), len(documents)) and relevant.any(1).all()
    for q, row in enumerate(rows):
        for i, document in enumerate(documents):
            read = {(who or document["entity"], a, v) for who, a, v in statements.parse(document["text"])}
            assert relevant[q, i] == ((row["entity"], row["attribute"], row["value"]) in read)


def test_saved_pretrained_model_is_the_first_seed(own, task):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = own.folder / "model" / "pretrained"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert same({k: v.detach() for k, v in loaded.named_parameters()}, task.params)
    text = own.documents["text"][0]
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == own.tokenizer.encode(text).ids


def test_unknown_seed_and_unknown_query_set_are_refused(tiny):
    with pytest.raises(ValueError, match=r"no base model of seed 7; trained seeds are \[0\]"):
        models.load_task(tiny, seed=7)
    with pytest.raises(ValueError, match="no queries with query_set='heldout'"):
        models.query_examples(tiny, "heldout")


def test_models_of_other_settings_are_refused(own):
    changed = make_testbed(own.folder, {"training": {"lr": 0.02}})
    with pytest.raises(ArtefactError, match="built from other settings"):
        models.load_task(changed)
    changed = make_testbed(own.folder, {"corpus": {"zipf": 1.0}})
    with pytest.raises(ArtefactError, match=r"corpus/record\.json: .*built from other settings.*delete .*corpus"):
        _ = changed.documents


def test_a_model_that_learnt_nothing_has_no_queries(own):
    untrained = make_testbed(own.folder, {"training": {"epochs": 1, "lr": 1e-6}, "queries": {"generated": 0}})
    with pytest.raises(ValueError, match=r"knows no query.*training\.epochs"):
        models.train_base(untrained)


def test_flops_are_positive(tiny):
    model, _ = models.initial(tiny, 0)
    size = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    assert KINDS["people"].flops(model, 10) == 60 * size


def test_retraining_without_some_documents_is_paired_with_the_run(tiny, task):
    """Masked, not filtered: the batches stay those of the full run."""
    mask = np.arange(len(tiny.documents)) % 5 > 0
    found, recipe = task.run.retrain(mask, 3), Recipe.of(tiny.settings["training"])
    masked, filtered = (
        train(task.loss_fn, models.initial(tiny, 3)[1], tiny.train, recipe, 3, mask, how).params
        for how in ("mask", "filter")
    )
    assert same(found, masked) and not same(found, filtered)
