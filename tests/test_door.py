"""What the user gives is what is scored, or it is refused by name, before any method runs."""

import inspect
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from small_tasks import task_of
from torch import nn
from torch.func import functional_call

from tda import classifiers, config, lm
from tda.attribution import METHODS, attribute, bgo, influence, logra, stride
from tda.attribution.registry import method
from tda.curvature import tracked
from tda.curvature.layers import passes
from tda.output_loss import IGNORE
from tda.task import Task, say_once
from tda.tools import cache, options
from tda.tools.cache import digest, remembered
from tda.tuning import check_rows

LLAMA = {"vocab_size": 61, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": 16}  # fmt: skip
# One of every way in which a method looks at the model.
LOOKING = ("gradient_dot", "bgo", "influence", "logra", "trak", "stride")


def language_task(model, keep=lambda name: True):
    params = {k: v.detach() for k, v in model.named_parameters() if keep(k)}
    return Task("own", lm.loss_function(model), params, model, outputs_fn=lm.outputs_function(model))


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return language_task(hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, attn_implementation="eager")).eval())


def texts(n, seed, width=10):
    ids = torch.randint(2, 61, (n, width), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids.clone()}


def net_task(model, inputs="x"):
    """A classifier whose loss has no check of its own."""

    def loss(p, b, reduction="mean"):
        each = F.cross_entropy(functional_call(model, p, (b[inputs],)), b["labels"], reduction="none")
        return {"mean": each.mean, "sum": each.sum, "example": lambda: each}[reduction]()

    def outputs(p, b):
        return functional_call(model, p, (b[inputs],))[:, None], b["labels"][:, None]

    return Task("net", loss, {k: v.detach().clone() for k, v in model.named_parameters()}, model, outputs_fn=outputs)


def points(n, seed):
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(n, 6, generator=g), "labels": torch.randint(0, 3, (n,), generator=g)}


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def explicit(task, train, queries):
    """Gradient dot products by a backward pass an example, through the task's own loss."""
    return (explicit_rows(task, queries) @ explicit_rows(task, train).T).numpy()


def explicit_rows(task, examples):
    rows = []
    for i in range(len(examples["labels"])):
        p = {k: v.clone().requires_grad_() for k, v in task.params.items()}
        loss = task.loss_fn(p, {k: v[i : i + 1] for k, v in examples.items()}, "sum")
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(p.values()))]))
    return torch.stack(rows)


# --- examples


def with_mask(examples, mask):
    return examples | {"attention_mask": torch.as_tensor(mask).expand(examples["labels"].shape).clone()}


def changed(examples, column, row, place, value):
    new = {k: v.clone() for k, v in examples.items()}
    new[column][row, place] = value
    return new


BAD_TEXTS = {
    "left padding": (lambda e: with_mask(changed(e, "labels", slice(None), slice(0, 3), IGNORE), [0] * 3 + [1] * 7),
                     r"rows \[0, 1, 2, 3, 4\] are padded on the left or in their midst; set padding_side='right'"),
    "a hole in the mask": (lambda e: with_mask(changed(e, "labels", 4, 5, IGNORE), 1)
                           | {"attention_mask": changed(with_mask(e, 1), "attention_mask", 4, 5, 0)["attention_mask"]},
                           r"rows \[4\] are padded on the left or in their midst"),
    "targets outside the mask": (lambda e: with_mask(e, [1] * 8 + [0] * 2), r"have targets where attention_mask is 0"),
    "ignored by -1": (lambda e: changed(e, "labels", 2, 4, -1), r"rows \[2\] hold labels that are neither tokens"),
    "a label beyond the vocabulary": (lambda e: changed(e, "labels", 3, 4, 61), r"rows \[3\] hold labels .*0 to 60"),
    "an id beyond the vocabulary": (lambda e: changed(e, "input_ids", 3, 4, 61), r"rows \[3\] hold ids that are no to"),
    "a negative id": (lambda e: changed(e, "input_ids", 3, 4, -1), r"rows \[3\] hold ids that are no tokens"),
    "no target": (lambda e: changed(e, "labels", 5, slice(None), IGNORE), r"rows \[5\] have no target tokens"),
    "a target only at the start": (lambda e: changed(e, "labels", 5, slice(1, None), IGNORE),
                                   r"rows \[5\] have no target tokens after their first"),
    "too long": (lambda e: texts(8, 0, 17), r"rows \[0, 1, 2, 3, 4\] are longer than the model's context of 16"),
    "positions": (lambda e: e | {"position_ids": torch.arange(10).expand(8, 10)}, r"not \['position_ids'\]"),
    "one label a text": (lambda e: e | {"labels": torch.zeros(8, dtype=torch.long)}, r"torch.int64 \(8,\); both"),
    "32-bit ids": (lambda e: {k: v.int() for k, v in e.items()}, r"input_ids are torch.int32"),
    "shifted labels": (lambda e: e | {"labels": F.pad(e["input_ids"][:, 1:], (0, 1), value=IGNORE)},
                       r"labels are input_ids moved by one"),
    "a mask as a list": (lambda e: e | {"attention_mask": [[1] * 10] * 8}, r"\['attention_mask'\] are lists"),
    "a mask too wide": (lambda e: e | {"attention_mask": torch.ones(8, 11)}, r"attention_mask has shape \(8, 11\)"),
    "lists": (lambda e: {k: v.tolist() for k, v in e.items()}, r"\['input_ids', 'labels'\] must be tensors \[N, T\]"),
    "a Dataset": (lambda e: __import__("datasets").Dataset.from_dict({k: v.tolist() for k, v in e.items()}),
                  r"is a Dataset; examples are a dict of tensors and lists.*with_format\('torch'\)"),
    "a list of dicts": (lambda e: [{k: v[i] for k, v in e.items()} for i in range(8)], r"is a list; examples are"),
    "no example axis": (lambda e: e | {"weight": torch.tensor(1.0)}, r"column 'weight' is a Tensor of shape \(\)"),
    "a number": (lambda e: e | {"weight": 3}, r"column 'weight' is a int"),
    "objects": (lambda e: e | {"text": np.array([["a"]] * 8, dtype=object)}, r"column 'text' is a ndarray of shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TEXTS)
@pytest.mark.parametrize("where", ["train", "queries"])
def test_texts_that_would_be_read_as_something_else_are_refused(name, where, llama):
    damage, message = BAD_TEXTS[name]
    good, bad = texts(8, 1), damage(texts(8, 0))
    given = {"train": bad, "queries": good} if where == "train" else {"train": good, "queries": bad}
    with pytest.raises(ValueError, match=f"^{where}.*{message}"):
        attribute("gradient_dot", llama, **given)


@pytest.mark.parametrize("name", LOOKING)
def test_right_padding_with_a_mask_scores_as_without(name, llama):
    """The mask is honoured: causal attention never looks at what follows."""
    padded, width = texts(20, 0), 7
    padded["input_ids"][:, width:], padded["labels"][:, width:] = 5, IGNORE
    cut = {k: v[:, :width] for k, v in padded.items()}
    masked = with_mask(padded, [1] * width + [0] * 3)
    given = {"fisher": "empirical"} if name == "influence" else {}  # sampled labels are drawn from the columns' bytes
    wanted = attribute(name, llama, cut, texts(3, 1, width), **given)
    found = attribute(name, llama, masked, with_mask(texts(3, 1, width), 1), **given)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-4 * np.abs(wanted).max())


def test_token_zero_is_a_target_like_any_other(llama):
    train, asked = texts(8, 0), changed(texts(3, 1), "labels", slice(None), slice(0, 9), IGNORE)
    asked["input_ids"][:, -1] = asked["labels"][:, -1] = 0
    train["input_ids"][4, 1:] = train["labels"][4, 1:] = 0
    scores = attribute("gradient_dot", llama, train, asked)
    np.testing.assert_allclose(scores, explicit(llama, train, asked), rtol=1e-3, atol=1e-4 * np.abs(scores).max())


@pytest.mark.parametrize("kind", ["arrays", "batch encoding", "dataset as torch"])
def test_containers_of_the_same_numbers_give_the_same_scores(kind, llama):
    import datasets

    train, asked = texts(8, 0), texts(3, 1)
    rows = datasets.Dataset.from_dict({k: v.tolist() for k, v in train.items()}).with_format("torch")
    made = {"arrays": {k: v.numpy() for k, v in train.items()}, "batch encoding": hf.BatchEncoding(train),
            "dataset as torch": rows[:]}[kind]  # fmt: skip
    wanted = attribute("gradient_dot", llama, train, asked)
    np.testing.assert_array_equal(attribute("gradient_dot", llama, made, asked), wanted)


@pytest.mark.parametrize("column", [False, True], ids=["labels [N]", "labels [N, 1]"])
@pytest.mark.parametrize("mask", [False, True], ids=["no mask", "mask"])
def test_a_classifier_of_texts_has_one_label_an_example(column, mask):
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 3}
    config = hf.BertConfig(**sizes, intermediate_size=16, max_position_embeddings=20, attn_implementation="eager")
    model = hf.BertForSequenceClassification(config).eval()

    def logits(p, b):
        more = {"attention_mask": b["attention_mask"]} if mask else {}
        return functional_call(model, p, (), {"input_ids": b["input_ids"], **more}).logits

    def loss(p, b, reduction="mean"):
        each = F.cross_entropy(logits(p, b), b["labels"].reshape(-1), reduction="none")
        return {"mean": each.mean, "sum": each.sum, "example": lambda: each}[reduction]()

    def data(n, seed):
        g = torch.Generator().manual_seed(seed)
        labels, real = torch.randint(0, 3, (n,), generator=g), torch.ones(n, 10, dtype=torch.long)
        real[::2, 7:] = 0 if mask else 1  # a mask that is not read must not say anything
        ids = torch.randint(3, 60, (n, 10), generator=g)
        return {"input_ids": ids, "attention_mask": real, "labels": labels[:, None] if column else labels}

    params = {k: v.detach() for k, v in model.named_parameters()}
    task = Task("topics", loss, params, model,
                outputs_fn=lambda p, b: (logits(p, b)[:, None], b["labels"].reshape(-1)[:, None]))  # fmt: skip
    train, asked = data(12, 0), data(3, 1)
    scores, wanted = attribute("gradient_dot", task, train, asked), explicit(task, train, asked)
    np.testing.assert_allclose(scores, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    assert np.isfinite(attribute("logra", task, train, asked)).all()


def test_a_masked_language_model_is_not_cut_at_its_last_target():
    """Words after the last target are context: without a mask that says so the loss is refused, with one it holds."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.BertConfig(
        **sizes, intermediate_size=16, max_position_embeddings=20, initializer_range=0.5, attn_implementation="eager"
    )
    model = hf.BertForMaskedLM(config).eval()

    def loss(p, b, reduction="mean"):
        read = {k: b[k] for k in ("input_ids", "attention_mask") if k in b}
        nll = F.cross_entropy(functional_call(model, p, (), read).logits.transpose(1, 2), b["labels"], reduction="none")
        each = nll.sum(1) / (b["labels"] != IGNORE).sum(1)
        return {"mean": each.mean, "sum": each.sum, "example": lambda: each}[reduction]()

    task = Task("masked", loss, {k: v.detach() for k, v in model.named_parameters()}, model)
    train, asked = texts(6, 0), texts(2, 1)
    for examples in (train, asked):
        examples["input_ids"] %= 60
        examples["labels"] = torch.where(torch.arange(10) == 3, examples["input_ids"], IGNORE)
    with pytest.raises(ValueError, match="reads what follows the last target of an example.*attention_mask"):
        attribute("gradient_dot", task, train, asked)
    train, asked = with_mask(train, 1), with_mask(asked, 1)
    wanted = explicit(task, train, asked)
    scores = attribute("gradient_dot", task, train, asked)
    np.testing.assert_allclose(scores, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_images_with_other_columns_or_labels_are_refused():
    net = classifiers.mlp(1, 4, 0)
    task = Task("images", classifiers.loss_function(net), classifiers.parameters(net), net)
    good = {"inputs": torch.randn(6, 64), "labels": torch.arange(6)}
    for bad, message in (
        (good | {"weights": torch.ones(6)}, r"'weights'.*a classifier reads 'inputs' .* and 'labels'"),
        (good | {"labels": torch.arange(6)[:, None]}, r"'labels': 'int64 \(6, 1\)'"),
        (good | {"labels": torch.arange(6) - 1}, r"rows \[0\] hold negative labels"),
        (good | {"inputs": torch.full((6, 64), torch.inf)}, r"column 'inputs' is not finite in rows \[0, 1, 2, 3, 4\]"),
        (good | {"inputs": good["inputs"].double()}, r"fails on the first examples \(RuntimeError: .*dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            attribute("gradient_dot", task, bad, good)


# --- the model and its loss


@pytest.mark.parametrize("name", LOOKING)
def test_a_model_left_in_training_mode_is_read_in_evaluation_mode(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))
    model[1].running_mean += torch.randn(8)
    train, asked = points(20, 0), points(3, 1)
    wanted = attribute(name, net_task(model.eval()), train, asked)
    model.train()
    model[1].eval()  # as left by who froze it
    model[1].train()
    before = {k: v.clone() for k, v in model.named_buffers()}
    np.testing.assert_array_equal(attribute(name, net_task(model), train, asked), wanted)
    assert model.training and model[3].training, "given back as it was"
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers())


def test_a_loss_that_uses_a_model_of_its_own_is_noticed():
    """The task does not hold the model in training mode, so it cannot be put into evaluation mode."""
    dropping = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    with pytest.raises(ValueError, match=r"draws at random \(two calls differ\).*put the model that it uses into task"):
        attribute("gradient_dot", replace(net_task(dropping), model=None, outputs_fn=None), points(9, 0), points(2, 1))
    task = net_task(mlp())
    mixing = replace(task, loss_fn=lambda p, b, r="mean": task.loss_fn(p, b, r) + b["x"].square().mean())
    with pytest.raises(ValueError, match="mixes the examples of a batch"):
        attribute("gradient_dot", replace(mixing, outputs_fn=None), points(9, 0), points(2, 1))


def test_reductions_and_outputs_that_disagree_are_refused():
    task, train, asked = net_task(mlp()), points(9, 0), points(2, 1)
    halved = replace(task, loss_fn=lambda p, b, r: task.loss_fn(p, b, r) * (0.5 if r == "sum" else 1))
    with pytest.raises(ValueError, match="has a 'sum' that is not the sum of its examples"):
        attribute("gradient_dot", halved, train, asked)
    tempered = replace(task, outputs_fn=lambda p, b: (task.outputs_fn(p, b)[0] * 2, b["labels"][:, None]))
    for name in ("trak", "gradient_dot"):  # the latter takes a short cut through the outputs where it can
        with pytest.raises(ValueError, match="outputs_fn and loss_fn disagree about the losses of train"):
            attribute(name, tempered, train, asked)
    flat = replace(task, outputs_fn=lambda p, b: (task.outputs_fn(p, b)[0][:, 0], b["labels"]))
    with pytest.raises(ValueError, match=r"logits \(8, 3\) and targets \(8,\); \[B, T, C\] and \[B, T\] are expected"):
        attribute("trak", flat, train, asked)
    with pytest.raises(ValueError, match=r"has shape \(\) for 2 examples"):
        attribute("gradient_dot", replace(task, loss_fn=lambda p, b, r: task.loss_fn(p, b, "mean")), train, asked)


def test_labels_that_no_output_can_be_read_at_are_refused():
    """Among them the mark of what is ignored in a loss of one's own, which the outputs do not know."""
    task, train, asked = net_task(mlp()), points(9, 0), points(2, 1)

    def loss(p, b, r="mean"):
        known = b["labels"].clamp(0, 2)
        each = F.cross_entropy(task.outputs_fn(p, b)[0][:, 0], known, reduction="none") * (known == b["labels"])
        return {"mean": each.mean, "sum": each.sum, "example": lambda: each}[r]()

    for wrong in (-1, 3):
        bad = train | {"labels": train["labels"].clone()}
        bad["labels"][5] = wrong
        with pytest.raises(ValueError, match=rf"train: row 5 holds the label {wrong}; labels are 0 to 2"):
            attribute("trak", replace(task, loss_fn=loss), bad, asked)


def test_a_loss_with_weights_of_classes_is_not_the_cross_entropy_of_its_outputs():
    """The first rows may be of the class of weight one."""
    task, train, asked = net_task(mlp()), points(40, 0), points(3, 1)
    train["labels"][:10], weight = 0, torch.tensor([1.0, 1.0, 5.0])
    train["labels"][37] = 2

    def loss(p, b, r="mean"):
        each = task.loss_fn(p, b, "example") * weight[b["labels"]]
        return {"mean": each.mean, "sum": each.sum, "example": lambda: each}[r]()

    with pytest.raises(ValueError, match="outputs_fn and loss_fn disagree about the losses of train"):
        attribute("gradient_dot", replace(task, loss_fn=loss), train, asked)


def test_a_loss_whose_gradient_takes_another_way_is_not_that_of_its_outputs():
    task, train, asked = net_task(mlp()), points(9, 0), points(2, 1)

    def loss(p, b, r="mean"):
        return task.loss_fn({k: v.detach() if k.startswith("0.") else v for k, v in p.items()}, b, r)

    with pytest.raises(ValueError, match="outputs_fn and loss_fn have different gradients on the first of train"):
        attribute("gradient_dot", replace(task, loss_fn=loss), train, asked)


@pytest.mark.parametrize("how", ["subclass", "shared", "hook", "patched"])
def test_a_linear_layer_that_does_something_else_is_not_taken_for_one(how):
    """Gradient dot equals autograd all the same; the layer is left to methods that form the gradients."""

    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x).square()

    net = mlp()
    if how == "subclass":
        net[0] = Doubled(6, 8)
    elif how == "shared":
        net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))
        net[2].weight = net[0].weight
    elif how == "hook":
        net[0].register_forward_hook(lambda module, given, made: made * 3)
    else:
        net[0].forward = lambda x: F.linear(x, net[0].weight, net[0].bias).exp()
    task, train, asked = net_task(net), points(9, 0), points(2, 1)
    scores, wanted = attribute("gradient_dot", task, train, asked), explicit(task, train, asked)
    np.testing.assert_allclose(scores, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    assert ("0" in tracked(task)) == (how == "hook")


def test_rows_of_a_layer_that_are_no_examples_are_refused():
    class Flattened(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(2, 4), nn.Linear(12, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.inner(x.reshape(-1, 2))).reshape(len(x), -1))

    task, train, asked = net_task(Flattened()), points(9, 0), points(2, 1)
    wanted = explicit(task, train, asked)
    scores = attribute("gradient_dot", task, train, asked)
    np.testing.assert_allclose(scores, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    with pytest.raises(ValueError, match="layer 'inner' sees 27 rows for 9 examples"):
        attribute("influence", task, train, asked)


def test_a_recurrent_net_is_read_one_example_at_a_time(capsys):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.cells(x.reshape(len(x), 3, 2))[0][:, -1])

    torch.manual_seed(0)
    say_once.cache_clear()
    task, train, asked = net_task(Recurrent()), points(9, 0), points(2, 1)
    scores, wanted = attribute("gradient_dot", task, train, asked), explicit(task, train, asked)
    np.testing.assert_allclose(scores, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    assert "one example at a time" in capsys.readouterr().out


def test_masks_that_the_loss_does_not_read_are_refused(llama):
    """A wrapper around the loss hides its own check; the mask is then unread, and says something."""
    wrapped = replace(llama, loss_fn=lambda p, b, r="mean": llama.loss_fn(p, b, r), outputs_fn=None)
    masked = with_mask(texts(8, 0), [0] * 3 + [1] * 7)
    with pytest.raises(ValueError, match=r"train: the loss of task 'own' does not read \['attention_mask'\]"):
        attribute("gradient_dot", wrapped, masked, texts(2, 1))
    assert attribute("gradient_dot", wrapped, with_mask(texts(8, 0), 1), texts(2, 1)).shape == (2, 8)


def test_neox_with_another_activation_or_frozen_parts_is_read_as_it_is():
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = hf.GPTNeoXConfig(**sizes, intermediate_size=16, max_position_embeddings=16, attn_implementation="eager")
    model = hf.GPTNeoXForCausalLM(config).eval()
    model.gpt_neox.layers[0].mlp.act = nn.ReLU()
    examples = texts(4, 0)
    for keep in (lambda name: True, lambda name: "mlp" in name):
        task = language_task(model, keep)
        with torch.no_grad():
            wanted = model(**examples).loss  # the mean over all targets, of which every text has nine
            np.testing.assert_allclose(task.loss_fn(task.params, examples, "mean"), wanted, rtol=1e-5)
        assert attribute("gradient_dot", task, examples, texts(2, 1)).shape == (2, 4)


def test_methods_called_by_their_own_name_pass_the_door_too():
    task, train, asked = net_task(mlp()), points(9, 0), points(2, 1)
    bad = train | {"x": train["x"] * torch.nan}
    for call in (logra.attribute, logra.self_influence, METHODS["bgo"].function):
        with pytest.raises(ValueError, match="column 'x' is not finite"):
            call(task, bad, *([asked] if call is not logra.self_influence else []))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype, llama):
    half = replace(llama, params={k: v.to(dtype) for k, v in llama.params.items()})
    for name in LOOKING:
        with pytest.raises(ValueError, match=rf"is {str(dtype)[6:]}; .* need float32 parameters. Call model.float"):
            attribute(name, half, texts(8, 0), texts(2, 1))


def test_parameters_that_the_model_does_not_have_are_refused(llama):
    renamed = replace(llama, params={f"module.{k}": v for k, v in llama.params.items()})
    with pytest.raises(ValueError, match=r"has no parameters \['module.model.embed_tokens.weight'"):
        attribute("logra", renamed, texts(8, 0), texts(2, 1))


def test_checkpointing_and_fused_attention_are_named():
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)).eval()
    fused = {"curvature": "ggn", "solver": "cg", "iterations": 2}
    with pytest.raises(ValueError, match="attn_implementation='eager'"):
        attribute("influence", language_task(model), texts(6, 0), texts(2, 1), **fused)
    model.gradient_checkpointing_enable()
    for name in LOOKING:
        with pytest.raises(ValueError, match="gradient checkpointing is on.*gradient_checkpointing_disable"):
            attribute(name, language_task(model), texts(6, 0), texts(2, 1))


class Breaks(nn.Module):
    """A net that overflows on one kind of input."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        return self.inner(x) + torch.where(x[:, :1] == 7.0, torch.nan, 0.0)


def test_one_broken_document_is_named():
    """By its input, and where only the model breaks on it, by its loss."""
    train, asked = points(20, 0), points(3, 1)
    train["x"][11, 0] = 7.0
    for name in ("gradient_cosine", "fisher_influence", *LOOKING):
        with pytest.raises(ValueError, match=r"losses of train \[11\] are not finite, or fail"):
            attribute(name, net_task(Breaks()), train, asked)
    train["x"][11, 0] = torch.nan
    for name in LOOKING:
        with pytest.raises(ValueError, match=r"train: column 'x' is not finite in rows \[11\]"):
            attribute(name, net_task(mlp()), train, asked)


def test_one_document_that_the_loss_fails_on_is_named():
    """A label beyond the classes, deep in the corpus, of a loss that nothing is known about."""
    train, task = points(40, 0), replace(net_task(mlp()), outputs_fn=None)
    train["labels"][37] = 3
    for name in ("gradient_dot", "bgo"):
        with pytest.raises(ValueError, match=r"out of bounds.* The losses of train \[37\] are not finite, or fail"):
            attribute(name, task, train, points(2, 1))


def test_encoders_that_miss_a_column_are_named(task, tiny, queries):
    without = {k: v for k, v in queries.items() if k not in ("text", "entity")}
    with pytest.raises(ValueError, match=r"queries: encode\['text'\] of task 'people' reads the tensor 'text'"):
        attribute("bm25", task, tiny.train, without)


# --- which parameters have a part


class Adapted(nn.Module):
    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(8, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("frozen", [True, False])
def test_logra_looks_at_the_parameters_of_the_task_only(frozen):
    """Low-rank adapters in a model whose other layers are no parameters: their projected gradients, materialised."""
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, attn_implementation="eager")).eval()
    attention = model.model.layers[0].self_attn
    attention.q_proj, attention.v_proj = Adapted(attention.q_proj), Adapted(attention.v_proj)
    for name, p in model.named_parameters():
        p.requires_grad_(not frozen or ".up." in name or ".down." in name)
    adapters = language_task(model, lambda name: ".up." in name or ".down." in name)
    train, asked, wanted = texts(12, 0), texts(3, 1), 0.0
    sides = logra._random_sides(adapters, 2, 0)
    assert {f"{name}.weight" for name in sides} == set(adapters.params) and len(sides) == 4
    for name, (left, right) in sides.items():
        one = replace(adapters, params={f"{name}.weight": adapters.params[f"{name}.weight"]})
        shape = (-1, *one.params[f"{name}.weight"].shape)
        known, rows = (left.T @ explicit_rows(one, e).reshape(shape) @ right for e in (train, asked))
        known, rows = known.flatten(1).double(), rows.flatten(1).double()
        fisher = known.T @ known / len(known)
        damped = fisher + 0.1 * fisher.trace() / len(fisher) * torch.eye(len(fisher)).double()
        wanted = wanted + rows @ torch.linalg.solve(damped, known.T)
    scores = attribute("logra", adapters, train, asked, rank=2)
    np.testing.assert_allclose(scores, wanted.numpy(), rtol=2e-3, atol=1e-3 * float(wanted.abs().max()))


def test_the_transposed_linear_layers_of_gpt2_are_tracked():
    """Conv1D holds W^T: the sum of outer products is the gradient, at the positions that ``index`` names."""
    torch.manual_seed(0)
    config = hf.GPT2Config(vocab_size=61, n_positions=16, n_embd=8, n_layer=1, n_head=2, attn_implementation="eager")
    task, train = language_task(hf.GPT2LMHeadModel(config).eval()), texts(4, 0)
    layers = tracked(task)
    found, _ = next(passes(task, train, layers))
    assert {name.split(".", 2)[-1] for name in layers} >= {"0.attn.c_attn", "0.attn.c_proj", "0.mlp.c_fc"}
    wanted = explicit_rows(task, train)
    for name, (a, g) in found.items():
        made = torch.einsum("bso,bsi->boi", g, a).flatten(1)
        gradient = wanted[:, layers[name].index]
        np.testing.assert_allclose(made.detach(), gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_a_method_that_leaves_parameters_out_says_which_share(capsys):
    say_once.cache_clear()
    task, train, asked = net_task(mlp()), points(9, 0), points(2, 1)
    attribute("logra", task, train, asked)
    said = capsys.readouterr().out
    assert "logra covers 87% of the parameters of 'net'; 0.bias, 2.bias take no part" in said  # 72 of 83
    attribute("logra", task, train, asked)
    assert not capsys.readouterr().out, "once"


def test_a_frozen_linear_layer_does_not_stop_gradient_dot():
    """A task whose only parameter is a bare one, beside linear layers that are none."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = mlp(), nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.inner(x) * self.scale

    whole = net_task(Scaled())
    task = replace(whole, params={"scale": whole.params["scale"]})
    train, asked = points(9, 0), points(2, 1)
    np.testing.assert_allclose(attribute("gradient_dot", task, train, asked), explicit(task, train, asked), rtol=1e-4)
    with pytest.raises(ValueError, match="logra works on linear layers, and the task 'net' has none whose weight is"):
        attribute("logra", task, train, asked)


# --- options and results


def test_every_option_of_every_method_states_its_rule():
    for name, chosen in METHODS.items():
        assert {"seed", "chunk"} <= set(chosen.rules), name
        for option, rule in chosen.rules.items():
            assert rule is not options.ANYTHING, f"{name}: {option}"
            for nonsense in (object(), float("nan"), b"x"):
                with pytest.raises(ValueError, match=f"{name}: {option}="):
                    options.check(name, chosen.rules, {option: nonsense})


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("bgo", {"chunk": "8"}, r"bgo: chunk='8'; .* at least 1. '8' is text; write 8, without quotes"),
        ("bgo", {"damping": "1e-1"}, r"'1e-1' is text; write 0.1, without quotes"),
        ("bgo", {"damping": float("inf")}, "it must be positive, a finite number"),
        ("bgo", {"steps": True}, "steps=True; it must be a whole number of at least 1"),
        ("influence", {"iterations": 0}, "iterations=0; it must be a whole number of at least 1"),
        ("influence", {"layers": "["}, "it must be a regular expression"),
        ("trackstar", {"moments": "no"}, "moments='no'; it must be true or false"),
        ("trackstar", {"mixing": 1.5}, "mixing=1.5; it must be a number from 0 to 1"),
        ("bm25", {"k1": -3}, "k1=-3; it must be a finite number of at least 0"),
        ("stride", {"layer": -2}, "layer=-2; it must be a whole number of at least -1"),
        ("trak", {"dimension": 8.0}, "dimension=8.0; it must be a whole number of at least 1"),
        ("logra", {"sides": "left"}, r"sides='left'; one of \('random', 'pca'\)"),
        ("logra", {"seed": -1}, "seed=-1; it must be a whole number of at least 0"),
    ],
)
def test_options_of_the_wrong_type_or_range_are_refused(name, given, message, llama):
    with pytest.raises(ValueError, match=message):
        attribute(name, llama, texts(8, 0), texts(2, 1), **given)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"method": "bgoo"}, r"rows\[0\].method: 'bgoo' is not allowed; registered methods: .*did you mean 'bgo'"),
        ({"options": {"chunk": "8"}}, r"rows\[0\].options.chunk: '8' is not allowed \(that is text: write 8\)"),
        (
            {"options": {"damping": "1e-1"}},
            r"rows\[0\].options.damping: '1e-1' is not allowed \(that is text: write 0.1\)",
        ),
        ({"options": {"dampng": 1}}, r"rows\[0\].options.dampng: 1 is not allowed; .*Did you mean 'damping'"),
        ({"tune": {"step": [0.1, -1]}}, r"rows\[0\].tune.step: -1 is not allowed; bgo: step=-1; it must be positive"),
        ({"tune": {"stepp": [0.1]}}, r"rows\[0\].tune.stepp: 0.1 is not allowed; .*Did you mean 'step'"),
        ({"method": "trackstar", "options": {"moments": "no"}}, "it must be true or false"),
        ({"method": "bm25", "options": {"k1": -3}}, "k1=-3; it must be a finite number of at least 0"),
        ({"method": "rank_combined", "options": {"options": {"stride": {"degre": 1}}}}, "Did you mean 'degree'"),
    ],
)
def test_rows_of_the_configuration_are_held_to_the_same_rules(row, message):
    rows = [{"id": "mine", "method": "bgo", "notebook": "10_bgo"} | row]
    with pytest.raises(config.ConfigError, match=message):
        check_rows(config.load("smoke", {"rows": rows, "claims": [], "testbeds": {"people": {"removals": None}}}))


def test_scores_that_rank_nothing_are_refused():
    task, train, asked = net_task(mlp()), points(9, 0), points(2, 1)
    still = replace(task, loss_fn=lambda p, b, r="mean": 0.0 * task.loss_fn(p, b, r), outputs_fn=None)
    with pytest.raises(ValueError, match="'gradient_dot' gave every document the score 0 for every query"):
        attribute("gradient_dot", still, train, asked)
    texts_only = Task("own", None, {}, encode={"text": lambda e: e["text"]})
    with pytest.raises(ValueError, match="The texts have no word in common"):
        attribute("bm25", texts_only, {"text": ["a b"] * 3}, {"text": ["c d"]})


def test_options_of_a_dataclass_are_keywords_that_the_method_shows():
    @dataclass(frozen=True, kw_only=True)
    class Options:
        size: options.Positive = options.option(1.0, "of every score")
        seed: options.Whole = options.option(0, "unused")

    try:

        @method("constant", family="x", paper="", signed=True)
        def constant(task, train, queries, options: Options):
            """One number."""
            return np.full((len(queries["x"]), len(train["x"])), options.size)

        given = net_task(mlp()), points(4, 0), points(2, 1)
        assert (attribute("constant", *given, size=2.0) == 2).all() and (constant(*given) == 1).all()
        for call in (constant, lambda *data, **known: attribute("constant", *data, **known)):
            with pytest.raises(ValueError, match="constant: size=-1; it must be positive"):
                call(*given, size=-1)
            with pytest.raises(ValueError, match=r"no option 'sise'; it accepts \['size', 'seed'\]. Did you"):
                call(*given, sise=1.0)
        shown = inspect.signature(constant).parameters
        assert list(shown) == ["task", "train", "queries", "size", "seed"] and shown["size"].default == 1.0
        assert "One number." in constant.__doc__ and "``size`` (1.0): of every score." in constant.__doc__
        assert options.read("constant", Options, {"size": 3}) == Options(size=3)
    finally:
        METHODS.pop("constant", None)


def test_every_option_of_a_dataclass_has_a_line_of_help():
    for module in (bgo, influence, stride):
        assert all(field.metadata["help"] for field in fields(module.Options))


def test_an_own_method_needs_no_rules():
    try:

        @method("constant", family="x", paper="", signed=True)
        def constant(task, train, queries, *, seed=0, size=1.0):
            return np.full((len(queries["x"]), len(train["x"])), size)

        assert (attribute("constant", net_task(mlp()), points(4, 0), points(2, 1), size=2.0) == 2).all()
    finally:
        METHODS.pop("constant", None)


# --- what is kept in memory


@pytest.mark.parametrize("name", [*LOOKING, "fisher_influence"])
def test_results_are_those_of_the_contents_as_they_are_now(name):
    """Corpus, queries, parameters or a frozen layer changed in place between two calls: as if never called before."""
    model = mlp()
    task, train, asked = net_task(model), points(20, 0), points(3, 1)
    attribute(name, task, train, asked)
    for what in (train["x"], asked["x"], task.params["0.weight"]):
        what[0] += 1.0
        found = attribute(name, task, train, asked)
        fresh = net_task(mlp()), {k: v.clone() for k, v in train.items()}, {k: v.clone() for k, v in asked.items()}
        fresh[0].params.update({k: v.clone() for k, v in task.params.items()})
        cache.forget()
        np.testing.assert_array_equal(found, attribute(name, *fresh))


def test_equal_contents_have_equal_digests_and_others_do_not():
    @dataclass
    class Held:
        inside: list

    base = {"a": torch.arange(3), "b": ["x"], "c": Held([1, 2])}
    assert digest(base) == digest({"a": torch.arange(3), "b": ["x"], "c": Held([1, 2])})
    for other in (
        {**base, "a": torch.tensor([0, 1, 3])},
        {**base, "a": torch.arange(3).float()}, {**base, "a": torch.arange(3)[None]}, {**base, "b": ["y"]},
        {**base, "c": Held([1, 3])}, {**base, "b": [["x"]]}, {"b": ["x"], "a": torch.arange(3), "c": Held([1, 2])},
        {**base, "b": [1]}, {**base, "b": [True]}, {**base, "b": [1.0]},
    ):  # fmt: skip
        assert digest(other) != digest(base)
    assert len({digest([value]) for value in (1, True, 1.0, "1", None)}) == 5


def test_a_function_counts_through_what_it_refers_to():
    def made(scale, extra):
        return lambda x, power=1: (x * scale["by"]) ** power + extra

    scale = {"by": torch.ones(2)}
    function = made(scale, 1)
    before = digest(function)
    assert digest(made({"by": torch.ones(2)}, 1)) == before and digest(made(scale, 2)) != before
    scale["by"][0] = 2.0
    assert digest(function) != before


def test_a_network_counts_through_all_that_it_computes_with():
    """Frozen weights, buffers, attributes, hooks, a forward pass that is patched or defined again."""
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.1))
    net[2].scale = 1.0
    seen = {digest(net)}

    def change(what):
        what()
        assert digest(net) not in seen
        seen.add(digest(net))

    change(lambda: net[0].weight.data.add_(1.0))
    change(lambda: net[1].running_mean.add_(1.0))
    change(lambda: setattr(net[2], "p", 0.5))
    change(lambda: setattr(net[2], "scale", 2.0))
    change(lambda: net[0].register_forward_hook(lambda module, given, made: made * 2))
    change(lambda: setattr(net[0], "forward", lambda x: x * 3))

    def defined(factor):
        class Layer(nn.Module):
            def forward(self, x):
                return x * factor

        return Layer()

    assert digest(defined(2)) == digest(defined(2)) != digest(defined(3))


class Held:
    factor = 2.0


held = Held()


def test_objects_that_a_function_reads_count():
    def loss(x):
        return [x * held.factor for x in range(3)]

    before, powered = digest(loss), partial(pow, 2.0)
    assert digest(powered) == digest(partial(pow, 2.0)) != digest(partial(pow, 3.0))
    held.factor = 3.0
    assert digest(loss) != before
    assert digest({"a": {"b": 1}, "c": 2}) != digest({"a": {"b": 1, "c": 2}})


def test_a_result_that_looks_at_changed_arguments_is_not_given_out():
    @remembered(2)
    def lazy(data):
        return lambda: float(data["x"].sum())

    one, copy = {"x": torch.ones(3)}, {"x": torch.ones(3)}
    assert lazy(one)() == 3
    one["x"] += 1
    assert lazy(copy)() == 3, "equal contents as before, but the first result sees its own data"


def test_small_tasks_of_other_tests_pass_the_door():
    task = task_of(nn.Linear(4, 3))
    data = {"inputs": torch.randn(5, 4, dtype=torch.float64), "labels": torch.tensor([0, 1, 2, 0, 1])}
    assert attribute("gradient_dot", task, data, data).shape == (5, 5)
