"""Learners that train by gradient descent: small classifiers of digits, and any testbed of the compendium."""

from __future__ import annotations

import numpy as np
import torch
from torch.func import functional_call, vmap

from tda import classifiers
from tda.many import AT_ONCE, stack, train_many, unstack
from tda.task import Params, Task, n_examples
from tda.training import Recipe
from tda.verification.learners import Learner, digest_of, register
from tda.verification.ridge import asked, images

RECIPE = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-3, "schedule": "constant"}


def log_odds(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log p - log(1 - p) of the label: its logit minus the log-sum-exp of the others; logits [..., C], labels [...]."""
    own = torch.nn.functional.one_hot(labels, logits.shape[-1]).bool()
    return logits[own].view(labels.shape) - logits.masked_fill(own, -torch.inf).logsumexp(-1)


@register("network")
class Network(Learner):
    """A perceptron on digits (``depth=0``: logistic regression) by SGD; the seed fixes initialisation and data order.

    Output: log-odds of the right class (``margin``) or its cross-entropy (``loss``). ``at_once`` models are trained
    side by side; a stacked model has the bits of the model trained alone only if ``at_once=1``.
    """

    def __init__(
        self, n=100, depth=0, width=8, epochs=10, batch=25, lr=0.2, queries=(0,), output="margin", flips=0.1,
        data_seed=0, bound=10.0, at_once=AT_ONCE,
    ):  # fmt: skip
        x, y, tests, truth = images(n, flips, data_seed)
        queries = asked(queries, len(tests), output)
        self.options = {
            "n": n,
            "depth": depth,
            "width": width,
            "epochs": epochs,
            "batch": batch,
            "lr": lr,
            "queries": queries,
        }
        self.options |= {"output": output, "flips": flips, "data_seed": data_seed, "bound": bound, "at_once": at_once}
        self.n, self.points, self.bound, self.exact = n, len(queries), float(bound), at_once == 1
        self.train = {"inputs": torch.from_numpy(x).float(), "labels": torch.from_numpy(y)}
        self.queries = {"inputs": torch.from_numpy(tests[queries]).float(), "labels": torch.from_numpy(truth[queries])}
        self.net = classifiers.mlp(depth, width, 0)
        self.loss_fn = classifiers.loss_function(self.net)
        self.recipe = Recipe.of(RECIPE | {"epochs": epochs, "batch": batch, "lr": lr})

    def spec(self) -> dict:
        data = [part[k].numpy() for part in (self.train, self.queries) for k in ("inputs", "labels")]
        return {"learner": "network", "data": digest_of(*data)} | self.options

    def fitted(self, subsets: np.ndarray, seeds: np.ndarray) -> Params:
        """Stacked parameters. An empty subset leaves the initial ones."""
        start = {s: self._fresh(s) for s in dict.fromkeys(seeds.tolist())}
        init, some = stack([start[s] for s in seeds.tolist()]), subsets.any(1)
        rows = torch.from_numpy(np.flatnonzero(some))
        if not len(rows):
            return init
        chosen = {k: v[rows] for k, v in init.items()}
        masks, own, chunk = subsets[some], seeds[some].tolist(), self.options["at_once"]
        done = train_many(self.loss_fn, chosen, self.train, self.recipe, masks, own, chunk=chunk)
        for name, value in init.items():
            value[rows] = done[name]
        return init

    def _fresh(self, seed: int) -> Params:
        depth, width = self.options["depth"], self.options["width"]
        return classifiers.parameters(classifiers.mlp(depth, width, seed % 2**32))

    def run(self, subsets, seeds):
        params = self.fitted(subsets, seeds)
        with torch.no_grad():
            logits = vmap(lambda one: functional_call(self.net, one, (self.queries["inputs"],)))(params)
        labels = self.queries["labels"].expand(len(subsets), -1)
        if self.options["output"] == "margin":
            values = log_odds(logits, labels)
        else:
            values = -logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        models = [b"".join(v.numpy().tobytes() for v in one.values()) for one in unstack(params)]
        return values.numpy().astype(np.float64), models

    def task(self, seed: int):
        params = unstack(self.fitted(np.ones((1, self.n), bool), np.array([seed])))[0]
        outputs = classifiers.outputs_function(self.net)
        return Task("digits", self.loss_fn, params, self.net, outputs_fn=outputs), self.train, self.queries


class Retrained(Learner):
    """The losses of any testbed's queries after retraining on a subset; ``bound`` in nats. Both parties need the
    testbed.

    Subsets of texts are trained one at a time, of images side by side; neither promises the same bits in other company.
    """

    exact = False

    def __init__(self, testbed, queries=None, bound: float = 10.0):
        from tda import models, retrain

        examples = models.query_examples(testbed)
        self.places = list(range(n_examples(examples))) if queries is None else list(queries)
        self.testbed, self.examples, self.bound = testbed, examples, float(bound)
        self.n, self.points, self.key = n_examples(testbed.train), len(self.places), retrain.truth_key(testbed)

    def spec(self) -> dict:
        own = {"testbed": self.testbed.name, "queries": self.places, "bound": self.bound}
        return {"learner": "testbed", "data": self.key} | own

    def run(self, subsets, seeds):
        if not subsets.any(1).all():
            raise ValueError("a subset is empty; a testbed cannot be trained on nothing. Raise p.")
        bed, values, models = self.testbed, [], []
        wanted = list(zip(subsets, seeds.tolist(), strict=True))
        for start in range(0, len(wanted), bed.modality.AT_ONCE):
            for model, params, _, _ in bed.modality.train_models(
                bed, wanted[start : start + bed.modality.AT_ONCE], "filter"
            ):
                loss_fn = bed.modality.loss_function(model)
                values.append(bed.modality.outputs(loss_fn, params, self.examples)[0][self.places])
                models.append(b"".join(v.numpy().tobytes() for v in params.values()))
        return np.stack(values).astype(np.float64), models

    def task(self, seed: int):
        from tda import models
        from tda.task import take

        return models.load_task(self.testbed, seed), self.testbed.train, take(self.examples, self.places)
