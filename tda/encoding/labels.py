"""The labels that AirRep is trained on: what short fine-tunings on random subsets do to documents that are held out.

Several *instances*. Each draws target documents, leaves them out of its pool and fine-tunes a common checkpoint on M
random subsets of the pool; the losses of its targets are the labels. A part of the documents, ``held_out``, is in no
pool and lends further targets to every instance: they and the last quarter of the subsets only say how well an encoder
does on items and subsets that it was not trained on. Nothing here reads a query or a bank.

A target is a whole document or, as queries are often shorter, a window of its tokens (ours). One model after the
other: four to eight stacked by ``vmap`` are a twentieth faster on texts of 30 tokens and slower on longer ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tda import lm
from tda.artefacts import load_sealed, require, save_sealed
from tda.recipe import Recipe
from tda.sequences import is_sequence, real_tokens
from tda.task import Examples, Params, n_examples, take, tensors
from tda.training import train

HELD_OUT, LAST = 8, 4  # one document in 8 is in no pool; one subset in 4 is not trained on
SEED = 500_000  # of the first fine-tuning: base models and banks use small seeds
COLUMN = "target_"  # of the targets' tensors in a file
FIELDS = ("document", "subsets", "losses", "held_out", "kept", "window")


@dataclass(frozen=True, kw_only=True)
class Design:
    """How labels are drawn and fine-tuned; the help of each is in :class:`tda.attribution.airrep.Options`."""

    seed: int = 0
    start: int = 1
    instances: int = 8
    targets: int = 100
    subsets: int = 32
    size: int = 48
    seeds: int = 1
    window: int = 0
    epochs: int = 2
    batch: int = 16
    finetune_rate: float = 0.002


@dataclass(frozen=True)
class Labels:
    """I instances of M subsets, R seeds and V targets.

    ``targets``: the tensors of I x V examples, instance by instance; ``document`` [I, V]: where each is from;
    ``subsets`` bool [I, M, N]; ``losses`` [I, M, R, V] nats after fine-tuning; ``held_out`` bool [N]; ``kept`` bool
    [I, V]: the targets that may be learnt from; ``window``: tokens of a target, 0 for whole documents.
    """

    targets: Examples
    document: np.ndarray
    subsets: np.ndarray
    losses: np.ndarray
    held_out: np.ndarray
    kept: np.ndarray
    window: int = 0

    @property
    def responses(self) -> np.ndarray:
        """r [I, M, V]: minus the loss, standardised over the subsets of an instance for each target (0: it does not
        vary). Larger: the subset lowered the target's loss more.
        """
        loss = self.losses.astype(np.float64).mean(2)
        centred, spread = loss.mean(1, keepdims=True) - loss, loss.std(1, keepdims=True)
        return np.divide(centred, spread, out=np.zeros_like(loss), where=spread > 1e-12)

    def learnt(self, instance: int) -> np.ndarray:
        """[V] bool: the targets of an instance that are learnt from; those of held-out documents are not."""
        return self.kept[instance] & ~self.held_out[self.document[instance]]

    def trained(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the subsets that are trained on, and of those that are held out."""
        m = self.subsets.shape[1]
        return np.arange(m - m // LAST), np.arange(m - m // LAST, m)

    def of(self, instance: int) -> Examples:
        """The targets of an instance."""
        v = self.document.shape[1]
        return take(self.targets, slice(instance * v, (instance + 1) * v))

    def part(self, instances: int | None = None, subsets: int | None = None, seeds: slice = slice(None)) -> Labels:
        """The first ``instances``, the first ``subsets`` of each, and some seeds: labels of a smaller budget."""
        i = slice(instances)
        count = len(self.document[i]) * self.document.shape[1]
        losses = self.losses[i, :subsets, seeds]
        few = {"document": self.document[i], "subsets": self.subsets[i, :subsets], "kept": self.kept[i]}
        return replace(self, targets=take(self.targets, slice(count)), losses=losses, **few)

    def without(self, queries: Examples) -> Labels:
        """The same labels, of which targets that equal one of ``queries`` are not learnt from."""
        asked = set(contents(queries))
        clean = np.array([target not in asked for target in contents(self.targets)]).reshape(self.kept.shape)
        return replace(self, kept=self.kept & clean)

    def check(self, queries: Examples | None = None) -> None:
        """Raise ``ValueError`` for a leak: a target whose document is in a subset of its own instance, a held-out
        document in any subset, or (of ``queries``) a query that is among the targets that are learnt from.
        """
        if (self.subsets & self.held_out).any():
            found = np.flatnonzero((self.subsets & self.held_out).any((0, 1)))[:5].tolist()
            raise ValueError(f"held-out documents {found} are in subsets of the labels. Draw subsets of the pool only.")
        for i, (documents, members) in enumerate(zip(self.document, self.subsets, strict=True)):
            if (inside := np.intersect1d(documents, np.flatnonzero(members.any(0)))).size:
                raise ValueError(
                    f"instance {i} of the labels: targets of documents {inside[:5].tolist()} are in its own pool, so "
                    f"that their losses are those of training documents. Leave them out of its subsets."
                )
        if queries is not None:
            learnt = np.concatenate([self.learnt(i) for i in range(len(self.document))])
            seen = {target for target, used in zip(contents(self.targets), learnt, strict=True) if used}
            if leaked := [q for q, asked in enumerate(contents(queries)) if asked in seen]:
                raise ValueError(
                    f"queries {leaked[:5]} are among the targets that the labels are losses of: an evaluation on them "
                    f"is no evaluation. Take them out with Labels.without(queries)."
                )


def contents(examples: Examples) -> list[bytes]:
    """What each example says, to be compared: its real tokens, or all its tensors but the labels."""
    columns = tensors(examples)
    if is_sequence(columns):
        real = real_tokens(columns)
        return [ids[mask].numpy().tobytes() for ids, mask in zip(columns["input_ids"], real, strict=True)]
    rows = [v.flatten(1) if v.dim() > 1 else v[:, None] for k, v in sorted(columns.items()) if k != "labels"]
    return [b"".join(v[i].numpy().tobytes() for v in rows) for i in range(n_examples(columns))]


def draw(n: int, design: Design) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(held_out bool [N], documents of the targets [I, V], subsets bool [I, M, N])``. ``ValueError`` if the corpus is
    too small for the design.
    """
    rng = np.random.default_rng([design.seed, 91])
    held_out = np.isin(np.arange(n), rng.permutation(n)[: max(2, n // HELD_OUT)])
    rest = np.flatnonzero(~held_out)
    if len(rest) - design.targets < 2 * design.size:
        raise ValueError(
            f"airrep: {n} documents less {held_out.sum()} held out and targets={design.targets} leave a pool of "
            f"{max(0, len(rest) - design.targets)}; subsets of size={design.size} need twice as many. Lower either."
        )
    extra = rng.permutation(np.flatnonzero(held_out))[: max(2, design.targets // 2)]
    documents, subsets = [], np.zeros((design.instances, design.subsets, n), bool)
    for members in subsets:
        order = rng.permutation(rest)
        documents.append(np.concatenate([order[: design.targets], extra]))
        for one in members:
            one[rng.permutation(order[design.targets :])[: design.size]] = True
    return held_out, np.array(documents), subsets


def windows(examples: Examples, size: int, rng: np.random.Generator) -> Examples:
    """A window of ``size`` tokens from each sequence after its first token, which opens every window; the whole where
    it is shorter. All its tokens are targets that were targets.
    """
    columns = tensors(examples)
    if not is_sequence(columns):
        raise ValueError(f"airrep: window={size} cuts sequences of tokens, and these examples are none. Set window=0.")
    ids, labels = (torch.full((n_examples(columns), size + 1), fill) for fill in (int(lm.PAD_ID), lm.IGNORE))
    for row, real in enumerate(real_tokens(columns).sum(1).tolist()):
        start = 1 + int(rng.integers(max(1, real - size)))
        part = slice(start, min(start + size, real))
        ids[row, 0], ids[row, 1 : 1 + part.stop - start] = columns["input_ids"][row, 0], columns["input_ids"][row, part]
        labels[row, 1 : 1 + part.stop - start] = columns["labels"][row, part]
    return {"input_ids": ids, "labels": labels}


def label_bank(
    loss_fn: Callable, start: Params, documents: Examples, design: Design, progress: Callable[[str], None] | None = None
) -> Labels:
    """Fine-tune ``start`` on every subset and measure its instance's targets: I x M x R trainings."""
    held_out, document, subsets = draw(n_examples(documents), design)
    rng = np.random.default_rng([design.seed, 92])
    targets = tensors(take(documents, document.ravel()))
    targets = windows(targets, design.window, rng) if design.window else targets
    recipe = Recipe(design.epochs, design.batch, design.finetune_rate, weight_decay=0.01, warmup=0.1, clip=1.0)
    losses = np.empty((*subsets.shape[:2], design.seeds, document.shape[1]), np.float32)
    empty = Labels(targets, document, subsets, losses, held_out, np.ones(document.shape, bool), design.window)
    for i, members in enumerate(subsets):
        asked = empty.of(i)
        for m, one in enumerate(members):
            for r in range(design.seeds):
                done = train(loss_fn, start, take(documents, one), recipe, SEED + 1000 * design.seed + r)
                losses[i, m, r] = lm.losses(loss_fn, done.params, asked)
        if progress:
            progress(f"labels: instance {i + 1}/{len(subsets)}")
    if not np.isfinite(losses).all():
        raise ValueError(f"airrep: losses after fine-tuning at finetune_rate={design.finetune_rate} are not finite.")
    return empty


def save(path: Path, labels: Labels, about: dict) -> Path:
    """Write labels as a sealed file; ``about``: what they belong to (``key``)."""
    arrays = {k: np.asarray(getattr(labels, k)) for k in FIELDS}
    arrays |= {COLUMN + k: v.numpy() for k, v in labels.targets.items()}
    return save_sealed(path, arrays, {"kind": "airrep labels"} | about)


def load(path: Path, about: dict) -> Labels:
    """Read what :func:`save` wrote of the same ``about``; anything else is an :class:`tda.artefacts.ArtefactError`."""
    cure = "delete this file; the labels are made again"
    arrays, _ = load_sealed(path, "airrep labels", about, cure)
    targets = {k.removeprefix(COLUMN): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(COLUMN)}
    rest = {k: v for k, v in arrays.items() if not k.startswith(COLUMN)}
    require(set(rest) == set(FIELDS), path, "holds other arrays", cure)
    return Labels(targets, **rest | {"window": int(rest["window"])})
