"""Who taught the model this output? A score a training document, from a handful of outputs that show a behaviour.

Registered methods give [targets, N], of which the mean over targets is taken; the rest is here. A :class:`Audit` holds
what an auditor has: the model, its documents, the outputs, and documents drawn at random. It holds no planted label.

v1 and v2 are the two versions of arXiv 2502.11411. DABUF (v1) is the cosine of gradients. DRA (v2) whitens
representations and keeps dimensions in which targets stand out. How it chooses them is not known to us; *our reading*:

    d_j = mean over targets t of  share of documents i with  s_jt z_ij < s_jt z_tj   (ties count half)

with z the (whitened) representations, centred on the documents, and s_jt the sign of the mean of z_j over the *other*
targets. The dimensions with the largest d_j are kept, and the score is a document's mean cosine to the targets in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import vstack
from sklearn.covariance import LedoitWolf
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tda import lm
from tda.attribution import attribute
from tda.attribution.representation import cosine
from tda.task import Examples, Task, n_examples
from tda.tools import gradients
from tda.tools.cache import remembered
from tda.tools.projection import features, projector
from tda.words import words

DIMENSION = 512  # of projected gradients
BACKGROUND = 200  # documents drawn at random, which a classifier takes for harmless
DENOISING = ("whitening", "selection", "both", "random dimensions")


@dataclass(frozen=True)
class Audit:
    """``targets``: outputs as queries, by behaviour; ``background``: positions of documents drawn at random."""

    task: Task
    train: Examples
    targets: Mapping[str, Examples]
    background: np.ndarray
    seed: int = 0

    @classmethod
    def of(cls, task: Task, train: Examples, targets: Mapping[str, Examples], seed: int = 0) -> Audit:
        n = n_examples(train)
        drawn = np.random.default_rng([seed, 52]).permutation(n)[: min(BACKGROUND, n // 2)]
        return cls(task, train, targets, np.sort(drawn), seed)

    def each(self, score: Callable[[Examples], np.ndarray]) -> dict[str, np.ndarray]:
        return {behaviour: score(rows) for behaviour, rows in self.targets.items()}


def registered(
    audit: Audit, name: str, own: Mapping[str, np.ndarray] | None = None, **options
) -> dict[str, np.ndarray]:
    """Mean over the targets of a registered method's scores, [N] a behaviour; all targets in one call.

    ``own``: the positions of the targets among the documents, if they are documents, for :func:`mean_of_others`.
    """
    texts = [text for rows in audit.targets.values() for text in rows["text"]]
    width = max(rows["input_ids"].shape[1] for rows in audit.targets.values())
    merged: Examples = {"text": texts}
    for column, fill in (("input_ids", 0), ("labels", -100)):
        padded = [torch.nn.functional.pad(r[column], (0, width - r[column].shape[1]), value=fill)
                  for r in audit.targets.values()]  # fmt: skip
        merged[column] = torch.cat(padded)
    scores = attribute(name, audit.task, audit.train, merged, **options)
    ends = np.cumsum([n_examples(rows) for rows in audit.targets.values()])
    parts = dict(zip(audit.targets, np.split(scores, ends[:-1]), strict=True))
    return {b: part.mean(0) if own is None else mean_of_others(part, own[b]) for b, part in parts.items()}


def mean_of_others(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean over targets [N] of scores [T, N] where target t is document ``rows[t]``: for a document that is a target,
    over the other targets, as it says nothing that it is like itself. Raises ``ValueError`` for a single target.
    """
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} target(s) that are documents: without itself a document has none. Give two.")
    others = np.ones(scores.shape, bool)
    others[np.arange(len(rows)), rows] = False
    return scores.mean(0, where=others)


def hidden(task: Task, rows: Examples, layer: int = -1) -> np.ndarray:
    """States behind a layer (0: embeddings, -1: the last, after its norm), mean over the real tokens, [n, width].

    Raises ``ValueError`` for a layer that the model does not have.
    """
    count = task.model.config.num_hidden_layers
    if not -1 <= layer <= count:
        raise ValueError(f"layer={layer}; the model has the layers 0 (embeddings) to {count}, and -1 for the last.")
    return lm.hidden_states(task.model, task.params, rows, layer=layer)


def projected(task: Task, rows: Examples, layer: int | None = None, seed: int = 0, **options) -> np.ndarray:
    """Randomly projected gradients [n, DIMENSION], of the whole model or one block (1 is the first)."""
    if layer is None:
        return features(task, rows, "loss", "sparse", DIMENSION, seed, **options).numpy()
    count = task.model.config.num_hidden_layers
    if not 1 <= layer <= count:
        raise ValueError(f"layer={layer}; the model has the blocks 1 to {count}, and None for all parameters.")
    chosen = torch.cat([torch.full((p.numel(),), f"layers.{layer - 1}." in k) for k, p in task.params.items()])
    project = projector("sparse", int(chosen.sum()), DIMENSION, seed)
    return gradients.swept(task, rows, lambda block: project(block[:, chosen])).numpy()


def discriminator(positive, negative, every, strength: float = 1.0) -> np.ndarray:
    """Log-odds by logistic regression that a row of ``every`` is of the positives, [N]. Dense columns are standardised.

    Raises ``ValueError`` where one of the two labels has no example.
    """
    counts = positive.shape[0], negative.shape[0]
    if not all(counts):
        raise ValueError(f"a classifier needs both labels; given {counts[0]} targets and {counts[1]} background rows.")
    given = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
    model = make_pipeline(StandardScaler(), given) if isinstance(every, np.ndarray) else given
    stacked = np.vstack if isinstance(every, np.ndarray) else vstack
    return model.fit(stacked([positive, negative]), np.repeat([1, 0], counts)).decision_function(every)


def classifier(audit: Audit, strength: float = 10.0) -> dict[str, np.ndarray]:
    """A classifier of texts (TF-IDF): the targets against the background."""
    vectors = TfidfVectorizer(analyzer=words, sublinear_tf=True)
    every = vectors.fit_transform(audit.train["text"])
    negative = every[audit.background]
    return audit.each(lambda rows: discriminator(vectors.transform(rows["text"]), negative, every, strength))


def probe(
    audit: Audit, represent: Callable[[Task, Examples], np.ndarray], strength: float = 1.0
) -> dict[str, np.ndarray]:
    """A linear probe of representations: the same targets against the same background."""
    every = represent(audit.task, audit.train)
    of = lambda rows: represent(audit.task, rows)  # noqa: E731
    return audit.each(lambda rows: discriminator(of(rows), every[audit.background], every, strength))


def picked_targets(audit: Audit, count: int = 10) -> dict[str, np.ndarray]:
    """DABUF for long outputs: positions of the training documents of which a classifier is most confident, which serve
    as targets.
    """
    return {behaviour: most_suspicious(scores, count) for behaviour, scores in classifier(audit).items()}


@remembered(4)
def whitening(rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """``apply(x [n, d]) -> (x - mean) V L^(-1/2)``; V L V' is the covariance of ``rows``, shrunk by Ledoit and Wolf."""
    found = LedoitWolf().fit(rows)
    values, vectors = np.linalg.eigh(found.covariance_)
    scaled = vectors / np.sqrt(np.maximum(values, 1e-12 * values.max()))
    return lambda x: (x - found.location_) @ scaled


def discriminability(documents: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """d_j of the module's formula, [d] in [0, 1]; 0.5 is chance. Raises ``ValueError`` for fewer than two targets."""
    count = len(targets)
    if count < 2:
        raise ValueError(f"{count} target(s): leaving one out leaves none to tell the direction. Give two or more.")
    order, total = np.sort(documents, axis=0), np.zeros(documents.shape[1])
    for t in range(count):
        sign = np.sign(np.delete(targets, t, axis=0).mean(0))
        for j, value in enumerate(targets[t]):
            below = np.searchsorted(order[:, j], value, "left") / len(documents)
            above = 1 - np.searchsorted(order[:, j], value, "right") / len(documents)
            total[j] += 0.5 + 0.5 * sign[j] * (below - above)
    return total / count


def denoised(documents: np.ndarray, targets: np.ndarray, step: str, share: float, seed: int = 0) -> np.ndarray:
    """DRA's score of every document, [N]: mean cosine to the targets after a ``step`` of :data:`DENOISING`.

    Rows are scaled to unit length first, as in v1. ``share`` of the dimensions are kept: the most discriminating, or
    random ones after whitening (``random dimensions``). Raises ``ValueError`` for another step, a share outside (0, 1]
    and fewer than two targets.
    """
    if step not in DENOISING or not 0 < share <= 1:
        raise ValueError(f"step={step!r}, share={share}; a step of {DENOISING} and a share in (0, 1] are needed.")
    documents, targets = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (documents, targets))
    centre = documents.mean(0)
    apply = (lambda x: x - centre) if step == "selection" else whitening(documents)
    documents, targets = apply(documents), apply(targets)
    kept = np.arange(documents.shape[1])
    if step == "random dimensions":
        kept = np.random.default_rng([seed, 53]).permutation(kept)
    elif step != "whitening":
        kept = (-discriminability(documents, targets)).argsort(kind="stable")
    if step != "whitening":
        kept = kept[: max(1, round(share * len(kept)))]
    return cosine(targets[:, kept], documents[:, kept]).mean(0)


def dra(
    audit: Audit, represent: Callable[[Task, Examples], np.ndarray], step: str, share: float
) -> dict[str, np.ndarray]:
    """:func:`denoised` for every behaviour."""
    documents = represent(audit.task, audit.train)
    return audit.each(lambda rows: denoised(documents, represent(audit.task, rows), step, share, audit.seed))


def less_like(audit: Audit) -> dict[str, np.ndarray]:
    """Mean cosine of target gradients and AdamW-normalised document gradients g / sqrt(V), both projected alike.

    After LESS (Xia et al. 2024), without its momentum and its sum over checkpoints.
    """
    documents = projected(audit.task, audit.train, moments=True)
    return audit.each(lambda rows: cosine(projected(audit.task, rows), documents).mean(0))


def most_suspicious(scores: np.ndarray, budget: int) -> np.ndarray:
    """Positions of the ``budget`` largest scores. Raises ``ValueError`` for a budget that is 0 or the whole corpus."""
    if not 0 < budget < len(scores):
        raise ValueError(f"budget={budget} of {len(scores)} documents; give at least 1, and leave at least 1 document.")
    return (-scores).argsort(kind="stable")[:budget]


def detection(scores: np.ndarray, planted: np.ndarray, budget: int) -> dict[str, float]:
    """AUPRC, AUPRC over prevalence (chance: 1), and the share of the planted documents among the ``budget`` first.

    Raises ``ValueError`` where all documents have one label.
    """
    if planted.all() or not planted.any():
        raise ValueError(
            f"{planted.sum()} of {len(planted)} documents are planted; detection needs some of either label."
        )
    auprc, found = float(average_precision_score(planted, scores)), planted[most_suspicious(scores, budget)].sum()
    return {"AUPRC": auprc, "lift": auprc / planted.mean(), "recall": float(found / planted.sum())}
