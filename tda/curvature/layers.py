"""What goes into a linear layer and what comes back: the two halves of its gradient, captured by hooks.

For a layer ``y_s = W x_s + b`` used at positions s (words of a sequence, pixels of an image, repeated calls), with
``g_s`` the gradient of an example's loss in y_s and ``a_s = (x_s, 1)``, the gradient of (W, b) is ``sum_s g_s a_s^T``
[out, in + 1]. Tracked are ``nn.Linear``, its transpose ``Conv1D`` of `transformers` (GPT-2) and ``nn.Conv2d`` (patches
unfolded; neither grouped nor padded by name); not embeddings, norms, bare parameters and tied weights.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tda import output_loss
from tda.curvature.second_derivatives import places, require_outputs, shape_of
from tda.task import Examples, Task, chunks, n_examples, say_once, take
from tda.tools import gradients
from tda.tools.gradients import CHUNK, batch_of

Captured = dict[str, tuple[Tensor, Tensor]]
AT_ONCE = 512  # examples whose layers are captured together for dot products; they hold inputs and slopes only
LEAVE_OUT = "Leave it out with the option layers (a regex)."


@dataclass(frozen=True)
class Layer:
    """A tracked module; ``index`` are the positions in the flat vector of its matrix [out, in (+ 1)], row by row."""

    name: str
    module: nn.Module
    index: Tensor
    shape: tuple[int, int]
    bias: bool

    def inputs(self, x: Tensor) -> Tensor:
        """Module input as a [B, S, in (+ 1)], the bias' coordinate last."""
        if isinstance(m := self.module, nn.Conv2d):
            a = F.unfold(x, m.kernel_size, m.dilation, m.padding, m.stride).transpose(1, 2)
        else:
            a = x.reshape(len(x), -1, x.shape[-1])
        return torch.cat([a, torch.ones_like(a[..., :1])], -1) if self.bias else a

    def outputs(self, g: Tensor) -> Tensor:
        """Gradient of the module output as g [B, S, out]."""
        if isinstance(self.module, nn.Conv2d):
            return g.flatten(2).transpose(1, 2)
        return g.reshape(len(g), -1, g.shape[-1])


def tracked(task: Task, pattern: str = "") -> dict[str, Layer]:
    """Tracked layers by name whose name ``pattern`` (a regex) finds; ``ValueError`` where there is none."""
    require_outputs(task)
    found = trackable(task)
    kept = {name: layer for name, layer in found.items() if re.search(pattern, name)}
    if not kept:
        raise ValueError(
            f"layers={pattern!r} finds no linear or convolution layer of the task {task.name!r}; it has {list(found)}."
        )
    return kept


def trackable(task: Task) -> dict[str, Layer]:
    """All layers of the task's model that can be tracked: those whose weight is a parameter of the task."""
    if task.outputs_fn is None or task.model is None:
        return {}
    at, found = places(task), {}
    owners = Counter(id(p) for _, p in task.model.named_parameters(remove_duplicate=False))
    for name, module in task.model.named_modules():
        weight, bias = (f"{name}.{kind}" if name else kind for kind in ("weight", "bias"))
        if weight in at and _usual(module) and owners[id(module.weight)] == 1:  # a shared weight has other uses
            index = at[weight].reshape(task.params[weight].flatten(1).shape)
            index = index.T if _transposed(module) else index
            has_bias = module.bias is not None and bias in at
            if has_bias:
                index = torch.cat([index, at[bias].unsqueeze(1)], 1)
            found[name] = Layer(name, module, index.flatten(), tuple(index.shape), has_bias)
    return found


def _usual(module: nn.Module) -> bool:
    """Whether the module does what its class does: a subclass or an instance may compute something else."""
    if "forward" in vars(module):
        return False
    if isinstance(module, nn.Conv2d):
        plain = type(module).forward is nn.Conv2d.forward and type(module)._conv_forward is nn.Conv2d._conv_forward
        return plain and module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return (isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward) or _transposed(module)


def _transposed(module: nn.Module) -> bool:
    """A linear layer that holds W^T [in, out], known by its name: importing `transformers` takes seconds."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def untracked(task: Task, layers: dict[str, Layer]) -> dict[str, Tensor]:
    """Parameters that no layer of ``layers`` holds, with their positions in the flat vector."""
    held = {f"{n}.{kind}" if n else kind for n, x in layers.items() for kind in ("weight", *["bias"] * x.bias)}
    return {name: index for name, index in places(task).items() if name not in held}


def say_share(task: Task, left: dict[str, Tensor], who: str) -> None:
    """Say, once, which share of the parameters ``who`` covers, where ``left`` (of :func:`untracked`) take no part."""
    total = sum(p.numel() for p in task.params.values())
    covered = total - sum(len(index) for index in left.values())
    if covered < total:
        shown = ", ".join(list(left)[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        say_once(f"{who} covers {covered / total:.0%} of the parameters of {task.name!r}; {shown} take no part.")


@contextmanager
def watching(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Record (input, output) of every call of every module; copies, so that in-place operations change nothing."""
    seen: dict[str, list] = {name: [] for name in modules}

    def hook(name: str):
        def record(module, inputs, named, output):
            first = output[0] if isinstance(output, tuple) else output  # blocks of some models return more than states
            given = next(iter((*inputs, *named.values())))
            seen[name].append((given.detach().clone(), first))
            return output if isinstance(output, tuple) else output.clone()

        return record

    handles = [  # before the user's own hooks, which change what the layer itself has made
        module.register_forward_hook(hook(name), prepend=True, with_kwargs=True) for name, module in modules.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def passes(
    task: Task, batch: Examples, layers: dict[str, Layer], fisher: str = "empirical", noise: Tensor | None = None
) -> Iterator[tuple[Captured, Tensor | None]]:
    """One ``({layer: (a [B, S, in], g [B, S, out])}, real)`` for every vector u of :mod:`tda.output_loss`.

    ``sum_s g_s a_s^T`` is the layer's part of the pseudo-gradient, with the positions of all its calls. ``real`` [B, S]
    bool: positions up to an example's last target, or ``None`` where nothing is padding.
    """
    params = {k: v.detach().requires_grad_() for k, v in task.params.items()}
    with watching({name: layer.module for name, layer in layers.items()}) as seen, torch.enable_grad():
        outputs, targets = task.outputs_fn(params, batch)
    loss = output_loss.of(task)
    real = loss.real(targets)
    inputs = {name: _inputs(layer, seen[name], real, len(targets)) for name, layer in layers.items()}
    made = [output for name in layers for _, output in seen[name]]
    for u in loss.vectors(outputs.detach(), targets, fisher, noise):
        found = torch.autograd.grad(outputs, made, u, retain_graph=True, allow_unused=True)
        slopes = iter(torch.zeros_like(p) if g is None else g for g, p in zip(found, made, strict=True))
        g = {name: torch.cat([x.outputs(next(slopes)) for _ in seen[name]], 1) for name, x in layers.items()}
        yield {name: (inputs[name], g[name]) for name in layers}, real


def _inputs(layer: Layer, calls: list[tuple[Tensor, Tensor]], real: Tensor | None, count: int) -> Tensor:
    if not calls:
        raise ValueError(f"layer {layer.name!r} is never called. {LEAVE_OUT}")
    if rows := [len(x) for x, _ in calls if len(x) != count]:
        raise ValueError(
            f"layer {layer.name!r} sees {rows[0]} rows for {count} examples; which of them belong to an example is "
            f"unknown. {LEAVE_OUT}"
        )
    parts = [layer.inputs(x) for x, _ in calls]
    if wrong := [a.shape[1] for a in parts if real is not None and a.shape[1] != real.shape[1]]:
        raise ValueError(
            f"layer {layer.name!r} is applied at {wrong[0]} positions and the task has {real.shape[1]} targets; which "
            f"of them are padding is unknown. {LEAVE_OUT}"
        )
    return torch.cat(parts, 1)


def dot_products(task: Task, train: Examples, queries: Examples, chunk: int = CHUNK) -> Tensor:
    """``<grad l_q, grad l_i>`` for all pairs, [Q, N]. Where every example passes every layer once it is the sum over
    layers of ``(g_q . g_i) (a_q . a_i)``, and no gradient is formed.
    """
    layers = _single_pass(task, train)
    if not layers:
        return gradients.dot_products(task, train, queries, chunk)
    query_sides, train_sides = (_sides(task, examples, layers) for examples in (queries, train))
    return sum((g @ train_sides[name][1].T) * (a @ train_sides[name][0].T) for name, (a, g) in query_sides.items())


def _single_pass(task: Task, train: Examples) -> dict[str, Layer]:
    """The layers of a network that consists of linear layers, each passed once by an example; else nothing."""
    layers = trackable(task)
    if not layers or untracked(task, layers) or shape_of(task, train)[0] > 1:
        return {}
    with watching({name: layer.module for name, layer in layers.items()}) as seen, torch.no_grad():
        task.outputs_fn(task.params, batch_of(take(train, slice(0, 2))))
    count = min(2, n_examples(train))
    each = ((seen[name], layer.shape[0] * count) for name, layer in layers.items())
    once = (len(calls) == 1 and len(calls[0][0]) == count and calls[0][1].numel() == size for calls, size in each)
    return layers if all(once) else {}


def _sides(task: Task, examples: Examples, layers: dict[str, Layer]) -> dict[str, tuple[Tensor, Tensor]]:
    parts = [
        captured
        for part in chunks(n_examples(examples), AT_ONCE)
        for captured, _ in passes(task, batch_of(take(examples, part)), layers, "empirical")
    ]
    return {
        name: tuple(torch.cat([part[name][side] for part in parts]).squeeze(1) for side in (0, 1)) for name in layers
    }
