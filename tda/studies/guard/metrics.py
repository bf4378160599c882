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
from tda.task import Examples, Params, n_examples, take, tensors

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
    every set that is kept, half of the set at most; ``probes``: questions whose answers follow from two others;
    ``unseen``: nobody saw them. ``spare``: as many other pairs of every kept set, by which nobody is judged.
    """

    def __init__(
        self, fiction: Fiction, loss_fn: Callable, logits_of: Callable, forget: np.ndarray, each: int, seed: int
    ):
        rng = np.random.default_rng([seed, 53])
        self.fiction, self.loss_fn, self.logits_of = fiction, loss_fn, logits_of
        kept = {kind: rng.permutation(np.setdiff1d(fiction.rows(kind), forget)) for kind in KEPT}
        size = {kind: min(each, len(found) // 2) for kind, found in kept.items()}
        rows = {kind: found[: size[kind]] for kind, found in kept.items()}
        self.spare = {kind: found[size[kind] : 2 * size[kind]] for kind, found in kept.items()}
        authors = {fiction.pairs[i].who for i in forget}
        rows |= {"forget": forget, "probes": fiction.rows("inference", who=authors), "unseen": fiction.rows("unseen")}
        ends = np.cumsum([0, *map(len, rows.values())]).tolist()
        self.part = {kind: slice(*limits) for kind, *limits in zip(rows, ends, ends[1:], strict=False)}
        self.rows = np.concatenate(list(rows.values()))
        self.answers, asked = fiction.encode(self.rows), self.rows[: self.part["unseen"].start]  # all but the unseen
        self.asked = take(self.answers, slice(0, len(asked)))
        self.reworded = fiction.encode(asked, "paraphrase")
        wrong = range(min(len(fiction.pairs[i].perturbed) for i in asked))  # a small corpus has few wrong countries
        self.perturbed = [fiction.encode(asked, "perturbed", k) for k in wrong]
        self.forget = self.examples("forget")
        self.kept = take(self.answers, slice(0, self.part[KEPT[-1]].stop))

    def examples(self, kind: str) -> Examples:
        return take(self.answers, self.part[kind])

    def tokens(self, models: Params, examples: Examples) -> np.ndarray:
        """Negative log-likelihoods [M, N, T]."""
        inputs = tensors(examples)
        with torch.no_grad():
            return vmap(lambda params: self.loss_fn(params, inputs, "token"), chunk_size=8)(models).numpy()

    def losses(self, models: Params, examples: Examples) -> np.ndarray:
        """Mean loss of every answer's tokens, [M, N]."""
        return self.tokens(models, examples).sum(-1) / counts_of(examples)

    def ratios(self, models: Params) -> np.ndarray:
        """Truth R of all pairs but the unseen, [M, n]."""
        perturbed = np.stack([self.losses(models, wrong) for wrong in self.perturbed])
        return truth(self.losses(models, self.reworded), perturbed)

    def spoken(self, models: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the greedy answers to all pairs but the unseen, [M, n] each: ROUGE-L recall, whether word for word, and
        whether the right value occurs.
        """
        right = [row[row != IGNORE].tolist() for row in self.asked["labels"]]
        values = [self.fiction.tokenizer.token_to_id(self.fiction.pairs[i].value) for i in self.rows[: len(right)]]
        said = greedy(self.logits_of, models, self.asked, self.fiction.tokenizer.token_to_id("."))
        rouge = [[rouge_l(a, b) for a, b in zip(one, right, strict=True)] for one in said]
        same = [[a == b for a, b in zip(one, right, strict=True)] for one in said]
        holds = [[v in a for a, v in zip(one, values, strict=True)] for one in said]
        return np.array(rouge), np.array(same, float), np.array(holds, float)

    def membership(self, nll: np.ndarray) -> np.ndarray:
        """Area under the ROC curve of Min-K% for every model, [M], from ``nll`` [M, N, T]."""
        counts = counts_of(self.answers)
        scores = [min_k(one, counts) for one in nll]
        return np.array([membership(one[self.part["forget"]], one[self.part["unseen"]]) for one in scores])

    def measure(self, models: Params, oracle: Params | None = None) -> dict[str, np.ndarray]:
        """All measures of models [M, ...], each [M]; those against the oracle only if it is given ([1, ...])."""
        nll, ratios, found = self.tokens(models, self.answers), self.ratios(models), {}
        p, (rouge, same, holds) = np.exp(-nll.sum(-1) / counts_of(self.answers)), self.spoken(models)
        for kind in KEPT:
            part = np.s_[:, self.part[kind]]
            found[f"{kind} probability"], found[f"{kind} ROUGE-L"] = p[part].mean(1), rouge[part].mean(1)
            found[f"{kind} truth ratio"] = np.maximum(0, 1 - 1 / ratios[part]).mean(1)
        found["utility"] = utility(np.stack(list(found.values()), -1))
        part, auc = np.s_[:, self.part["forget"]], self.membership(nll)
        found |= {"forget probability": p[part].mean(1), "forget ROUGE-L": rouge[part].mean(1)}
        found |= {"verbatim": same[part].mean(1), "Min-K AUC": auc}
        found["forget truth ratio"] = np.minimum(ratios[part], 1 / ratios[part]).mean(1)
        found["forget paraphrase"] = np.exp(-self.losses(models, self.reworded))[part].mean(1)
        found["inference"] = holds[:, self.part["probes"]].mean(1)
        if oracle is not None:
            against = self.ratios(oracle)[0, self.part["forget"]]
            quality = np.array([forget_quality(row, against) for row in ratios[part]])
            found |= {"KS statistic": quality[:, 0], "forget quality p": quality[:, 1]}
            found["privacy leak"] = leak(auc, self.membership(self.tokens(oracle, self.answers))[0])
        return found


def counts_of(examples: Examples) -> np.ndarray:
    """How many tokens every answer has, [N]."""
    return (examples["labels"] != IGNORE).sum(1).numpy()
