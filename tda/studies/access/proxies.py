"""Proxies: models that stand in for a target, each trained on what its level of access allows.

Distillation (Hinton et al. 2015) minimises, with p the target's and r the proxy's distribution at a target position,

    tau^2 KL( p^(1/tau) || r^(1/tau) )        mean over the target positions of an example

p raised to 1/tau and normalised. Only log-probabilities of the target are read, and only at the training examples. A
proxy is a :class:`tda.task.Task` like any other: its loss, whatever it was trained by, is that of the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from tda.access import need
from tda.many import stack, train_many
from tda.recipe import Recipe
from tda.task import Checkpoint, Examples, Params, Task, TrainingRun, n_examples, tensors
from tda.testbeds import Testbed
from tda.training import train, train_recorded

Fresh = Callable[[int], nn.Module]  # a module with the fresh weights of a seed


def architecture(bed: Testbed, **changed: object) -> Fresh:
    """Fresh models of the testbed's architecture, or of one with other keys of its ``model`` section."""
    other = replace(bed, settings=bed.settings | {"model": bed.settings["model"] | changed})
    return lambda seed: other.modality.new_model(other, seed)


def gpt2(bed: Testbed, layers: int, width: int, heads: int) -> Fresh:
    """Fresh GPT-2 models on the testbed's tokens: learned positions, and one matrix for tokens in and out."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": bed.settings["model"]["context"]}
    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ends = {"bos_token_id": 1, "eos_token_id": 1, "use_cache": False, "attn_implementation": "eager"}
    config = GPT2Config(vocab_size=bed.tokenizer.get_vocab_size(), **size, **none, **ends)

    def fresh(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()

    return fresh


def values(module: nn.Module) -> Params:
    return {name: p.detach() for name, p in module.named_parameters()}


def as_task(bed: Testbed, module: nn.Module, params: Params, run: TrainingRun | None, name: str) -> Task:
    """A model of the testbed's kind as a task."""
    modality = bed.modality
    module.load_state_dict(params, strict=False)
    encode, outputs_fn = modality.encoders(module, params), modality.outputs_function(module)
    return Task(name, modality.loss_function(module), params, module, run, encode, outputs_fn, modality.OUTPUT_LOSS)


def trained(bed: Testbed, fresh: Fresh, data: Examples, recipe: Recipe, seed: int, name: str) -> Task:
    """A proxy trained on labels, with the checkpoints of its run."""
    module = fresh(seed)
    params, run = train_recorded(bed.modality.loss_function(module), values(module), data, recipe, seed)
    return as_task(bed, module, params, run, name)


def distilled(
    target: Task, bed: Testbed, fresh: Fresh, data: Examples, recipe: Recipe, seed: int, name: str,
    temperature: float = 2.0, asked: np.ndarray | None = None,
) -> Task:  # fmt: skip
    """A proxy trained on what ``target``, a restricted task, says of ``data``; where ``asked`` [n] bool is false, on
    the label. ``ValueError`` for a target that cannot be asked and for a temperature that is not positive.
    """
    module = fresh(seed)
    answers = taught(target, data, asked)
    params, run = train_recorded(soft_loss(bed, module, temperature), values(module), answers, recipe, seed)
    return as_task(bed, module, params, run, name)


def taught(target: Task, data: Examples, asked: np.ndarray | None = None) -> Examples:
    """``data`` with the target's log-probabilities ``teacher`` [n, T, C], and whether it was ``asked`` [n, 1]."""
    ask = need(target, "queries", "distillation")
    whom = np.ones(n_examples(data), bool) if asked is None else np.asarray(asked)
    columns = {"teacher": torch.from_numpy(ask(data)), "asked": torch.from_numpy(whom).unsqueeze(1)}
    return tensors(data) | columns


def soft_loss(bed: Testbed, module: nn.Module, temperature: float) -> Callable[..., Tensor]:
    """The loss of distillation, of examples as :func:`taught` gives them."""
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}; it must be positive (1: the target's own probabilities).")
    outputs_fn = bed.modality.outputs_function(module)

    def loss_fn(params: Params, batch: Examples, reduction: str = "mean") -> Tensor:
        outputs, targets = outputs_fn(params, {k: v for k, v in batch.items() if k not in ("teacher", "asked")})
        p = (batch["teacher"] / temperature).log_softmax(-1)
        soft = temperature**2 * (p.exp() * (p - (outputs / temperature).log_softmax(-1))).sum(-1)
        wanted, target = targets.clamp(min=0), targets >= 0
        hard = -outputs.log_softmax(-1).gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
        each = (torch.where(batch["asked"], soft, hard) * target).sum(-1) / target.sum(-1)
        return {"mean": each.mean, "sum": each.sum, "example": lambda: each}[reduction]()

    return loss_fn


def untrained(bed: Testbed, fresh: Fresh, seed: int, name: str) -> Task:
    """A proxy with fresh weights; its one checkpoint is where it stands."""
    module = fresh(seed)
    params = values(module)
    here = Checkpoint(0, 1.0, 1.0, lambda: (params, {}))
    return as_task(bed, module, params, TrainingRun(seed, (here,), np.ones(1), np.zeros((1, 0), int), {}), name)


def cut_short(bed: Testbed, fresh: Fresh, whole: Task, checkpoints: int, name: str) -> Task:
    """A trained proxy as it was after so many of its checkpoints."""
    kept = whole.run.checkpoints[:checkpoints]
    return as_task(bed, fresh(whole.run.seed), kept[-1].params, replace(whole.run, checkpoints=kept), name)


def known_part(count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """[count] bool: a random share of the documents, those that the attributor has."""
    if not 0 < share <= 1:
        raise ValueError(f"share={share} of the data known; it must be above 0 and at most 1.")
    known = np.zeros(count, bool)
    known[rng.permutation(count)[: max(1, round(share * count))]] = True
    return known


def own_bank(
    bed: Testbed, fresh: Fresh, data: Examples, recipe: Recipe, subsets: np.ndarray, seeds: Sequence[int],
    queries: Examples, temperature: float | None = None,
) -> np.ndarray:  # fmt: skip
    """Losses [M, R, Q] of the proxy's own training on ``subsets``; with a ``temperature`` by distillation, of data that
    was :func:`taught`. Models trained by SGD without clipping are trained side by side.
    """
    template = fresh(0)
    read = bed.modality.loss_function(template)
    loss_fn = read if temperature is None else soft_loss(bed, template, temperature)
    wanted = [(mask, seed) for mask in subsets for seed in seeds]
    start = {seed: values(fresh(seed)) for seed in seeds}
    if recipe.optimizer == "sgd" and recipe.clip is None:
        init, masks = stack([start[seed] for _, seed in wanted]), np.stack([mask for mask, _ in wanted])
        params = train_many(loss_fn, init, data, recipe, masks, [seed for _, seed in wanted])
        asked = tensors(queries)
        with torch.no_grad():
            losses = vmap(lambda one: read(one, asked, "example"))(params).numpy()
    else:
        ends = (train(loss_fn, start[seed], data, recipe, seed, mask).params for mask, seed in wanted)
        losses = np.stack([bed.modality.outputs(read, params, queries)[0] for params in ends])
    return losses.reshape(len(subsets), len(seeds), -1)


def kernels(task: Task, first: Examples, second: Examples) -> np.ndarray:
    """The tangent kernel of the outputs of a classifier, ``sum_c <grad phi_c(q), grad phi_c(i)>``, [Q, N]: what a
    network says of two inputs before anybody looks at labels.
    """
    classes = task.outputs_fn(task.params, tensors(first))[0].shape[-1]
    total = 0
    for c in range(classes):
        slope = torch.func.grad(lambda params, x, c=c: task.outputs_fn(params, x)[0][0, 0, c])
        sides = []
        for part in (first, second):
            rows = {k: v.unsqueeze(1) for k, v in tensors(part).items()}
            found = vmap(slope, (None, 0))(task.params, rows)
            sides.append(torch.cat([v.flatten(1) for v in found.values()], 1))
        total = total + sides[0] @ sides[1].T
    return total.numpy()


def agreement(first: Examples, second: Examples) -> np.ndarray:
    """<e_y - 1/C, e_z - 1/C> of the labels of every pair, [Q, N]: how alike the slopes of an undecided model are."""
    sides = [F.one_hot(part["labels"]).double() for part in (first, second)]
    width = max(side.shape[1] for side in sides)
    sides = [F.pad(side, (0, width - side.shape[1])) - 1 / width for side in sides]
    return (sides[0] @ sides[1].T).numpy()
