"""What is left of the forgotten pairs, and what of the others: the measures of TOFU and MUSE.

Losses l are means over an answer's tokens. Of one pair, with the losses of its paraphrased and perturbed answers:

    probability   exp(-l)
    ROUGE-L       recall: longest common subsequence of the greedy answer and the right one, over the right one's length
    truth R       exp(mean perturbed l - paraphrased l): how many times likelier than wrong ones the truth is, reworded

On what is kept (retained authors, others, places) the truth ratio is max(0, 1 - 1/R). *Model utility* is the harmonic
mean of the three measures on the three sets. *Forget quality* is the p-value of a two-sample Kolmogorov-Smirnov test
between the R of the unlearned model and of one that never saw the forgotten pairs; its statistic, the largest distance
of the two distributions, stands beside it, since p saturates. *Privacy leak*: (A - A') / A' with A the area under the
ROC curve of Min-K% membership (forgotten pairs against pairs that nobody was trained on) and A' the same for the model
that never saw them. *Verbatim*: the share of greedy answers that are the right one word for word.

Sources: Maini et al. 2024 and its code (probability, ROUGE-L recall, truth ratio, utility, forget quality); Shi et al.
2024 (Min-K%, MUSE). The form of the privacy leak and verbatim are our reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import hmean, ks_2samp
from sklearn.metrics import roc_auc_score
from torch.func import vmap

from tda.output_loss import IGNORE
from tda.studies.guard.corpus import Fiction
from tda.task import Examples, Params, n_examples, tensors

KEPT = ("retain", "others", "places")
MIN_K = 0.4  # share of an answer's tokens, the least likely ones, that membership looks at


def rouge_l(answer: Sequence, right: Sequence) -> float:
    """ROUGE-L recall of a list of words. ``ValueError`` for a right answer without words."""
    if not len(right):
        raise ValueError("the right answer has no words; ROUGE-L recall is not defined.")
    before = [0] * (len(right) + 1)
    for word in answer:
        row = [0]
        for j, other in enumerate(right):
            row.append(before[j] + 1 if word == other else max(before[j + 1], row[j]))
        before = row
    return before[-1] / len(right)


def truth(paraphrased: np.ndarray, perturbed: np.ndarray) -> np.ndarray:
    """R [...] from losses of the paraphrased answers [...] and of the perturbed ones [K, ...]."""
    return np.exp(perturbed.mean(0) - paraphrased)


def utility(numbers: np.ndarray) -> np.ndarray:
    """Harmonic mean over the last axis; 0 where one of the numbers is."""
    return hmean(np.maximum(numbers, 0.0), axis=-1)


def forget_quality(ratios: np.ndarray, oracle: np.ndarray) -> tuple[float, float]:
    """(Kolmogorov-Smirnov statistic, p) of the R of the forgotten pairs, of the unlearned model and of the oracle."""
    statistic, p = ks_2samp(ratios, oracle)
    return float(statistic), float(p)


def min_k(nll: np.ndarray, counts: np.ndarray, share: float = MIN_K) -> np.ndarray:
    """Mean log-probability of the least likely ``share`` of an answer's tokens (at least one), [n]; higher for members.
    ``nll`` [n, T]: negative log-likelihood of every token, 0 where there is none; ``counts`` [n].
    """
    worst = -np.sort(-nll, axis=1)
    kept = np.maximum(1, np.ceil(share * counts - 1e-9)).astype(int)
    return -np.array([row[:k].mean() for row, k in zip(worst, kept, strict=True)])


def membership(members: np.ndarray, others: np.ndarray) -> float:
    """Area under the ROC curve of a score that is higher for members."""
    return float(roc_auc_score(np.r_[np.ones(len(members)), np.zeros(len(others))], np.r_[members, others]))


def leak(auc: float, oracle: float) -> float:
    return (auc - oracle) / oracle


def greedy(logits_of: Callable, models: Params, examples: Examples, end: int) -> list[list[list[int]]]:
    """Tokens of the greedy answer of every model to every question, up to the token ``end``, which is part of it; at
    most as many as the longest right answer has. Lists [M][n] of ids.
    """
    target = examples["labels"] != IGNORE
    starts, longest = target.int().argmax(1), int(target.sum(1).max())
    ids = torch.where(torch.arange(target.shape[1]) < starts.unsqueeze(1), examples["input_ids"], 0)
    ids = torch.nn.functional.pad(ids, (0, max(0, int(starts.max()) + longest - ids.shape[1])))
    ids = ids.repeat(n_examples(models), 1, 1)
    rows = torch.arange(len(starts))
    for step in range(longest):
        width = int(starts.max()) + step
        with torch.no_grad():
            logits = vmap(logits_of, chunk_size=8)(models, ids[:, :, :width])
        ids[:, rows, starts + step] = logits[:, rows, starts + step - 1].argmax(-1)
    new = [[row[s : s + longest].tolist() for row, s in zip(one, starts.tolist(), strict=True)] for one in ids]
    return [[row[: row.index(end) + 1] if end in row else row for row in one] for one in new]


class Panel:
    """The pairs by which the models of one corpus are judged, encoded once: all that are forgotten, and ``each`` of
    every set that is kept. ``probes``: questions whose answers follow from two others.
    """

    def __init__(
        self, fiction: Fiction, loss_fn: Callable, logits_of: Callable, forget: np.ndarray, each: int, seed: int
    ):
        rng = np.random.default_rng([seed, 53])
        self.fiction, self.loss_fn, self.logits_of = fiction, loss_fn, logits_of
        self.rows = {kind: rng.permutation(np.setdiff1d(fiction.rows(kind), forget))[:each] for kind in KEPT}
        authors = sorted({fiction.pairs[i].who for i in forget})
        self.rows |= {
            "forget": forget,
            "probes": fiction.rows("inference", who=authors),
            "unseen": fiction.rows("unseen"),
        }
        self.end = fiction.tokenizer.token_to_id(".")
        self.examples = {kind: fiction.encode(rows) for kind, rows in self.rows.items()}
        self.kept = fiction.encode(np.concatenate([self.rows[kind] for kind in KEPT]))
        self.paraphrased = fiction.encode(forget, "paraphrase")

    def tokens(self, models: Params, examples: Examples) -> np.ndarray:
        """Negative log-likelihoods [M, n, T]."""
        inputs = tensors(examples)
        with torch.no_grad():
            return vmap(lambda params: self.loss_fn(params, inputs, "token"), chunk_size=8)(models).numpy()

    def losses(self, models: Params, examples: Examples) -> np.ndarray:
        """Mean loss of every answer's tokens, [M, n]."""
        return self.tokens(models, examples).sum(-1) / self.counts(examples)

    @staticmethod
    def counts(examples: Examples) -> np.ndarray:
        return (examples["labels"] != IGNORE).sum(1).numpy()

    def ratios(self, models: Params, kind: str) -> np.ndarray:
        """Truth R [M, n] of a set of pairs."""
        rows, wrong = self.rows[kind], len(self.fiction.pairs[0].perturbed)
        perturbed = [self.losses(models, self.fiction.encode(rows, "perturbed", k)) for k in range(wrong)]
        return truth(self.losses(models, self.fiction.encode(rows, "paraphrase")), np.stack(perturbed))

    def spoken(self, models: Params, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the greedy answers: ROUGE-L recall, whether word for word, whether the right value occurs, each [M, n]."""
        examples, pairs = self.examples[kind], [self.fiction.pairs[i] for i in self.rows[kind]]
        right = [row[row != IGNORE].tolist() for row in examples["labels"]]
        values = [self.fiction.tokenizer.token_to_id(pair.value) for pair in pairs]
        said = greedy(self.logits_of, models, examples, self.end)
        rouge = [[rouge_l(a, b) for a, b in zip(one, right, strict=True)] for one in said]
        same = [[a == b for a, b in zip(one, right, strict=True)] for one in said]
        holds = [[v in a for a, v in zip(one, values, strict=True)] for one in said]
        return np.array(rouge), np.array(same, float), np.array(holds, float)

    def membership(self, models: Params) -> np.ndarray:
        """Area under the ROC curve of Min-K% for every model, [M]."""
        member, other = (self.examples[kind] for kind in ("forget", "unseen"))
        counts = [self.counts(examples) for examples in (member, other)]
        pairs = zip(self.tokens(models, member), self.tokens(models, other), strict=True)
        return np.array([membership(min_k(a, counts[0]), min_k(b, counts[1])) for a, b in pairs])

    def measure(self, models: Params, oracle: Params | None = None) -> dict[str, np.ndarray]:
        """All measures of models [M, ...], each [M]; those against the oracle only if it is given ([1, ...])."""
        found = {}
        for kind in KEPT:
            found[f"{kind} probability"] = np.exp(-self.losses(models, self.examples[kind])).mean(1)
            found[f"{kind} ROUGE-L"] = self.spoken(models, kind)[0].mean(1)
            found[f"{kind} truth ratio"] = np.maximum(0, 1 - 1 / self.ratios(models, kind)).mean(1)
        found["utility"] = utility(np.stack(list(found.values()), -1))
        rouge, same, _ = self.spoken(models, "forget")
        ratios, auc = self.ratios(models, "forget"), self.membership(models)
        found |= {"forget probability": np.exp(-self.losses(models, self.examples["forget"])).mean(1)}
        found |= {"forget ROUGE-L": rouge.mean(1), "verbatim": same.mean(1), "Min-K AUC": auc}
        found["forget truth ratio"] = np.minimum(ratios, 1 / ratios).mean(1)
        found["forget paraphrase"] = np.exp(-self.losses(models, self.paraphrased)).mean(1)
        found["inference"] = self.spoken(models, "probes")[2].mean(1)
        if oracle is not None:
            against = self.ratios(oracle, "forget")[0]
            quality = np.array([forget_quality(row, against) for row in ratios])
            found |= {"KS statistic": quality[:, 0], "forget quality p": quality[:, 1]}
            found["privacy leak"] = leak(auc, self.membership(oracle)[0])
        return found
