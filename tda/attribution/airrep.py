"""AirRep (Sun et al. 2025): embeddings that are trained to predict what fine-tuning on a subset does.

    f(x, S) = Enc(x)^T sum_i alpha_i Enc(z_i),   alpha_i = softmax_i |Enc(x)^T Enc(z_i)| over the members of S

Labels come from fine-tuning a common checkpoint on random subsets (:mod:`tda.encoding.labels`): minus the loss of a
held-out target, standardised over the subsets. A weighted pairwise ranking loss makes f order the subsets alike
(:mod:`tda.encoding.pooling`, :mod:`tda.encoding.fitting`). Afterwards a document costs one forward pass, and a query
another. Scores of single documents are Enc(x)^T Enc(z_i); a subset as a whole is scored by f
(:func:`tda.attribution.predict`).

Published: the pooling, the loss with T_min = .1 and T_max = 5, standardised labels, 100 instances of 100 subsets of
1000 documents, AdamW, the random linear map on an encoder that exists already. The released code clips weights and
labels at 10 and has no T_min (``pairs="released"``); it standardises by the standard deviation, as here. Ours: the
encoders, the budget, an early checkpoint in place of a pretrained model, windows as targets, the stop by held-out
agreement.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tda.artefacts import key_of, load_sealed, save_sealed
from tda.attribution.registry import StepTooLarge, method
from tda.encoding import labels as labelling
from tda.encoding.encoders import ENCODERS, Encoder, make
from tda.encoding.fitting import Fit, fit
from tda.encoding.labels import Design, Labels
from tda.encoding.pooling import POOLINGS, pooled
from tda.task import Examples, Task, n_examples
from tda.tools.cache import digest, remembered
from tda.tools.options import Count, NotNegative, Positive, Whole, one_of, option, whole

COLLAPSED = 0.99  # mean cosine of two documents' embeddings
RELEASED = {"t_min": 0.0, "t_max": 10.0, "clip": 10.0}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The labels, the encoder, and how it is trained."""

    seed: Whole = option(0, "draws everything")
    chunk: Whole = option(0, "not used: encoders read 128 examples at a time")
    encoder: one_of(ENCODERS) = option("linear", "what is below the linear map")
    pooling: one_of(tuple(POOLINGS)) = option("attention", "of a subset, in training")
    width: Count = option(96, "numbers of an embedding")
    steps: Whole = option(90, "of the training; 0: the untrained encoder, which needs no labels")
    rate: Positive = option(0.003, "of AdamW")
    at_once: whole(2) = option(24, "subsets in a step")
    pairs: one_of(("paper", "released")) = option("paper", "released: no T_min, clipped at 10")
    t_min: NotNegative = option(0.1, "T_min, smallest difference of labels that counts")
    t_max: Positive = option(5.0, "T_max, largest weight of a pair")
    start: Whole = option(1, "recorded checkpoint that is fine-tuned; 0: the initial model")
    instances: Count = option(8, "draws of targets and pool")
    targets: Whole = option(0, "of an instance; 0: a fifth of the documents, at most 100")
    subsets: whole(4) = option(32, "of an instance")
    size: Whole = option(0, "documents of a subset; 0: a twelfth, at most 48")
    seeds: Count = option(1, "fine-tunings of a subset")
    window: Whole = option(0, "tokens of a target; 0: the whole document")
    epochs: Count = option(2, "of a fine-tuning")
    batch: Count = option(16, "of a fine-tuning")
    finetune_rate: Positive = option(0.002, "of a fine-tuning")

    def design(self, n: int) -> Design:
        """How labels of ``n`` documents are made."""
        own = {name: getattr(self, name) for name in Design.__dataclass_fields__}
        own["targets"] = self.targets or max(4, min(100, n // 5))
        own["size"] = self.size or max(2, min(48, n // 12))
        return Design(**own)


@method(
    "airrep", family="representation", paper="AirRep", needs=("params", "checkpoints", "features"), signed=False,
    group=pooled,
)  # fmt: skip
def attribute(task: Task, train: Examples, queries: Examples, options: Options) -> np.ndarray:
    """AirRep scores [Q, N]: inner products of embeddings. Positive: training on the document lowers the query's loss.

    Targets that equal a query are not learnt from. Raises ``ValueError`` for a corpus that is too small for the labels,
    thresholds that leave no pair, an encoder that the task cannot have; :class:`StepTooLarge` for a collapsed one.
    """
    return score(fitted(task, train, queries, options).encoder, train, queries)


def score(encoder: Encoder, train: Examples, queries: Examples) -> np.ndarray:
    """Inner products of embeddings, [Q, N]."""
    return (encoder.embed(queries) @ encoder.embed(train).T).numpy()


@remembered(6)
def fitted(task: Task, train: Examples, queries: Examples, options: Options) -> Fit:
    """The trained encoder of some options; ``queries`` are only kept out of the targets."""
    encoder = make(options.encoder, task, train, options.width, options.seed)
    if not options.steps:
        return Fit(encoder, options.pooling, (), ())
    labels = labels_of(task, train, options.design(n_examples(train)), options.start).without(queries)
    return train_on(encoder, train, labels, queries, options)


def train_on(encoder: Encoder, train: Examples, labels: Labels, queries: Examples, options: Options) -> Fit:
    """Train an encoder on labels of one's own, after a check that no query of the evaluation is among the targets."""
    labels.check(queries)
    limits = RELEASED if options.pairs == "released" else {"t_min": options.t_min, "t_max": options.t_max}
    of_training = {name: getattr(options, name) for name in ("pooling", "steps", "rate", "at_once", "seed")}
    found = fit(encoder, train, labels, **limits, **of_training)
    refuse_collapse(found.encoder.embed(train), options)
    return found


@remembered(2)
def labels_of(task: Task, train: Examples, design: Design, start: int = 1) -> Labels:
    """The labels of a task's training set, from its checkpoint ``start``: the set-up, to which no query is known."""
    points = [task.run.initial, *task.run.checkpoints]
    if start >= len(points) or points[start] is None:
        raise ValueError(
            f"airrep: start={start}; task {task.name!r} has recorded checkpoints 1 to {len(points) - 1}"
            f"{'' if points[0] is None else ', and its initial model, 0'}."
        )
    return labelling.label_bank(task.loss_fn, points[start].params, train, design)


def refuse_collapse(embedded: torch.Tensor, options: Options) -> None:
    """Raise :class:`StepTooLarge` where the documents' embeddings [N, width] hardly differ: nothing could be ranked."""
    unit = torch.nn.functional.normalize(embedded.double(), dim=1)
    n = len(unit)
    cosine = float((unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1)))
    if not np.isfinite(cosine) or cosine > COLLAPSED or float(embedded.std(0).max()) < 1e-9:
        raise StepTooLarge(
            f"airrep: the encoder has collapsed, the mean cosine of two documents is {cosine:.4f} (at most {COLLAPSED} "
            f"is allowed). Lower rate={options.rate:g} or steps={options.steps}."
        )


def about(task: Task, train: Examples, options: Options) -> dict:
    """What an encoder's file says of itself: the content of task and documents, and the options."""
    parts = [digest(task.params), digest([task.name, sorted(train)]), digest(labelling.contents(train)), vars(options)]
    return {"testbed": task.name, "key": key_of(parts)}


def save(path: Path, found: Fit, task: Task, train: Examples, options: Options) -> Path:
    """Write a trained encoder as a sealed file."""
    arrays = {k: v.numpy() for k, v in found.encoder.state_dict().items()}
    arrays |= {"looked": np.array(found.looked), "agreement": np.array(found.agreement)}
    return save_sealed(path, arrays, {"kind": "airrep encoder"} | about(task, train, options))


def load(path: Path, task: Task, train: Examples, options: Options) -> Fit:
    """The encoder that :func:`save` wrote for this task, these documents and options, without any training."""
    cure = "delete this file; the encoder is trained again"
    arrays, _ = load_sealed(path, "airrep encoder", about(task, train, options), cure)
    looked, agreement = (tuple(arrays.pop(name).tolist()) for name in ("looked", "agreement"))
    encoder = make(options.encoder, task, train, options.width, options.seed)
    encoder.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})
    return Fit(encoder, options.pooling, looked, agreement)
