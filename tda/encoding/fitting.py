"""Training an encoder so that pooled inner products rank subsets as the labels do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata

from tda.encoding.encoders import Encoder, parts
from tda.encoding.labels import Labels
from tda.encoding.pooling import POOLINGS, ranking_loss
from tda.task import Examples, take

LARGEST_NORM = 1.0  # of a step's gradient
LOOKS = 6  # times that held-out items and subsets are looked at


@dataclass(frozen=True)
class Fit:
    """A trained encoder, its pooling, and the mean rank correlation of predicted and measured effects on held-out
    items and subsets, ``agreement``, after each of ``looked`` steps; the encoder is that of the best.
    """

    encoder: Encoder
    pooling: str
    looked: tuple[int, ...]
    agreement: tuple[float, ...]


def fit(
    encoder: Encoder,
    documents: Examples,
    labels: Labels,
    *,
    pooling: str = "attention",
    steps: int = 60,
    rate: float = 1e-3,
    at_once: int = 24,
    t_min: float = 0.1,
    t_max: float = 5.0,
    clip: float = float("inf"),
    seed: int = 0,
) -> Fit:
    """Minimise the ranking loss by AdamW from ``encoder``, which is changed in place.

    A step takes one instance after the other, all its targets and ``at_once`` of its subsets; the released code does
    the same in two passes for want of memory. Raises ``ValueError`` for labels that :meth:`Labels.check` refuses, for
    ``t_min >= t_max``, and for a loss that is not finite.
    """
    labels.check()
    if t_min >= t_max:
        raise ValueError(
            f"airrep: t_min={t_min} and t_max={t_max}; pairs count between them, so t_min must be smaller."
        )
    given, targets = encoder.read(documents), targets_of(encoder, documents, labels)
    responses, pool = torch.from_numpy(labels.responses), POOLINGS[pooling]
    adam = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    looks, seen, best = set(np.linspace(0, steps, LOOKS + 1).astype(int).tolist()), {}, None
    learnt, positions = [labels.learnt(i) for i in range(len(responses))], labels.trained()[0]
    for step in range(steps + 1):
        if step in looks:
            seen[step] = float(agreements(encoder, given, targets, labels, pooling)[0].mean())
            if seen[step] == max(seen.values()):
                best = {k: v.clone() for k, v in encoder.state_dict().items()}
        if step == steps:
            break
        i = step % len(responses)
        rng = np.random.default_rng([seed, 94, step])
        rows = np.sort(rng.permutation(positions)[:at_once])
        members = labels.subsets[i, rows]
        used, asked = members.any(0), np.flatnonzero(learnt[i])
        scores = encoder(take(targets[i], asked)) @ encoder(take(given, used)).T
        predicted = pool(scores, torch.from_numpy(members[:, used]))
        wanted = responses[i, rows][:, asked].T.to(predicted.dtype)
        loss = ranking_loss(predicted, wanted, t_min, t_max, clip)
        if not loss.isfinite():
            raise ValueError(f"airrep: the ranking loss is {loss.item()} in step {step} at rate={rate}. Lower rate.")
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), LARGEST_NORM)
        adam.step()
    encoder.load_state_dict(best)
    return Fit(encoder, pooling, tuple(seen), tuple(seen.values()))


def agreements(
    encoder: Encoder, given: Examples, targets: list[Examples], labels: Labels, pooling: str, everywhere: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Spearman correlation, over subsets, of predicted and measured effects for every target of every instance, and
    the document of each: targets of held-out documents over held-out subsets, or all of them (``everywhere``: labels
    that the encoder was not trained on). ``given`` and ``targets``: documents and targets as the encoder reads them.
    """
    found, where, rows = [], [], slice(None) if everywhere else labels.trained()[1]
    with torch.no_grad():
        embedded = torch.cat([encoder(part) for part in parts(given)])
        for i, response in enumerate(labels.responses):
            chosen = np.arange(len(labels.document[i]))
            asked = chosen if everywhere else np.flatnonzero(labels.held_out[labels.document[i]])
            scores = encoder(take(targets[i], asked)) @ embedded.T
            predicted = POOLINGS[pooling](scores, torch.from_numpy(labels.subsets[i, rows]))
            found.append(rank_correlation(predicted.numpy(), response[rows][:, asked].T))
            where.append(labels.document[i][asked])
    return np.concatenate(found), np.concatenate(where)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman correlation of the rows of two arrays, 0 where one is constant."""
    a, b = (rankdata(x, axis=1) - (x.shape[1] + 1) / 2 for x in (a, b))
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), size, out=np.zeros(len(a)), where=size > 0)


def targets_of(encoder: Encoder, documents: Examples, labels: Labels) -> list[Examples]:
    """What the encoder reads of the targets of each instance; whole documents keep their texts."""
    given = encoder.read(labels.targets if labels.window else take(documents, labels.document.ravel()))
    count = labels.document.shape[1]
    return [take(given, slice(i * count, (i + 1) * count)) for i in range(len(labels.document))]
