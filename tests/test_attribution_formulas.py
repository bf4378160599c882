"""Formulas that agree with a wrong one on most data: written out where they part."""

from collections import Counter

import numpy as np
import torch
from small_tasks import small
from torch import nn

from tda.attribution import attribute, logra
from tda.output_loss import IGNORE
from tda.steering.fitting import READOUT_RATE, Descent, Weights
from tda.studies.granularity import aggregate
from tda.task import Task
from tda.tools import projection

DOCUMENTS = [
    "a newt and a newt and a newt",
    "a ferret",
    "the newt sleeps",
    "the the ferret",
    "a lute",
    "newt lute lute",
]
QUERIES = ["newt newt ferret", "the lute a unicorn", "ferret", "a newt and the lute"]


def test_tfidf_is_the_formula():
    """Smoothed idf over the documents, 1 + log of the counts, unit vectors; unknown words do not count."""
    task = Task("texts", None, {}, encode={"text": lambda examples: examples["text"]})
    found = attribute("tfidf", task, {"text": DOCUMENTS}, {"text": QUERIES})
    n, holding = len(DOCUMENTS), Counter(word for text in DOCUMENTS for word in set(text.split()))

    def vector(text):
        counts = Counter(word for word in text.split() if word in holding)
        weights = {w: (1 + np.log(c)) * (1 + np.log((1 + n) / (1 + holding[w]))) for w, c in counts.items()}
        length = np.sqrt(sum(value**2 for value in weights.values()))
        return {word: value / length for word, value in weights.items()}

    sides = [[vector(text) for text in texts] for texts in (QUERIES, DOCUMENTS)]
    wanted = [[sum(value * d.get(word, 0.0) for word, value in q.items()) for d in sides[1]] for q in sides[0]]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_the_margin_of_a_sequence_is_a_mean_over_its_own_targets():
    task, data = small("sequence")
    found = projection.margins(task, task.params, data)
    logits, targets = task.outputs_fn(task.params, data)
    counts = (targets != IGNORE).sum(1)
    assert counts.min() < counts.max() == targets.shape[1], "examples of several lengths, one without padding"
    for i, (row, labels) in enumerate(zip(logits.softmax(-1), targets, strict=True)):
        p = torch.stack([row[t, label] for t, label in enumerate(labels.tolist()) if label != IGNORE])
        torch.testing.assert_close(found[i], (p / (1 - p)).log().mean(), rtol=1e-9, atol=1e-12)


def test_every_layer_of_logra_is_projected_on_its_own():
    """Two layers of one shape: a draw that they shared would add their errors up instead of averaging them."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    params = {k: v.detach() for k, v in model.named_parameters()}
    task = Task("two alike", None, params, model, outputs_fn=lambda params, batch: None)
    first, second = logra._random_sides(task, 4, 3).values()
    for one, other in zip(first, second, strict=True):
        assert one.shape == other.shape == (6, 4) and not (one == other).any()


def test_the_steps_of_the_codes_fall_to_nothing():
    """On an objective that is linear in the codes, T steps go (T + 1) / 2 full ones along the preconditioned slope."""
    rng, steps, rate = np.random.default_rng(0), 7, 0.3
    slope, metric = torch.from_numpy(rng.normal(size=(4, 2, 3))), torch.from_numpy(rng.normal(size=(3, 2, 2)))
    descend = Descent(torch.zeros(1, 5).double(), None, np.eye(4, dtype=bool), None, Weights(1, 100, 1), None, None)
    descend.objective = lambda psi, codes: (slope * codes).sum() + psi.sum()
    psi, codes = torch.ones(5, 2, dtype=torch.float64), torch.zeros(4, 2, 3, dtype=torch.float64)
    moved, found = descend(psi, codes, metric, steps, rate)
    wanted = torch.stack([-rate * (steps + 1) / 2 * slope[:, :, c] @ metric[c].T for c in range(3)], 2)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        moved, psi - READOUT_RATE * (steps + 1) / 2, rtol=1e-6, atol=1e-9
    )  # Adam: its rate a step


def test_a_label_at_the_opening_token_has_no_score():
    """Labels that are copies of the ids name it, and nothing predicts it."""
    tokens = np.random.default_rng(0).normal(size=(2, 3, 5))
    labels = torch.tensor([[1, 4, 5, 6, 7], [1, 4, 5, IGNORE, IGNORE], [1, 4, IGNORE, IGNORE, IGNORE]])
    found = aggregate(tokens, {"labels": labels}, "document")
    for i, end in enumerate((5, 3, 2)):
        np.testing.assert_allclose(found[:, i], tokens[:, i, 1:end].mean(1))
