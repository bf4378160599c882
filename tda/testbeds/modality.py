"""What a kind of corpus offers: one contract, so that nothing outside this folder asks which kind a testbed is.

A kind is a class with the decorator :func:`kind`, whose name stands in a testbed's ``corpus.kind``.
``testbed.modality`` is the one object of the testbed's kind; it keeps no state, so every method takes what it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from tda.recipe import Recipe
from tda.task import Examples, Params
from tda.training import train

if TYPE_CHECKING:
    from tda.testbeds import Testbed

KINDS: dict[str, Modality] = {}


def kind(*names: str) -> Callable[[type[Modality]], type[Modality]]:
    """Class decorator: testbeds whose ``corpus.kind`` is one of ``names`` are of this modality."""

    def register(modality: type[Modality]) -> type[Modality]:
        if taken := [name for name in names if name in KINDS]:
            raise ValueError(f"a kind of corpus named {taken[0]!r} is registered already; choose another name.")
        members = [name for base in modality.__mro__ for name in vars(base).get("__annotations__", ())]
        if lacking := [name for name in members if not hasattr(modality, name)]:
            raise TypeError(f"{modality.__name__} is abstract: a kind of corpus has {', '.join(lacking)}, too.")
        KINDS.update(dict.fromkeys(names, modality()))
        return modality

    return register


def counted_flops(loss_fn: Callable[..., Tensor], model: nn.Module, example: Examples) -> float:
    """Operations of the forward and backward pass of a batch, as the library counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    leaves = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
    with FlopCounterMode(display=False) as counter:
        loss_fn(leaves, example).backward()
    return float(counter.get_total_flops())


class Modality:
    """Everything that depends on what the documents are. Members without a value are what every kind must have.

    Queries are ``rows``: dicts of texts with the keys query_id, query_set, split, prompt, target, text, entity,
    attribute, value and work.
    """

    MODELS: tuple[str, ...]  # allowed values of model.kind
    OPTIMIZERS: tuple[str, ...] = ("adamw", "sgd")
    OUTPUT_LOSS = "cross_entropy"  # of tda.output_loss
    CODE: tuple[str, ...]  # files below tda/ that the losses of a retrained model depend on: an edit makes them stale
    AT_ONCE = 1  # models that are trained together
    SECOND: str | None = None  # name of the second loss of a query, if it has one
    OWN_FILE = False  # made from a file of the user (corpus.path), who may edit it between two calls
    # Capabilities: what a testbed's settings may ask for.
    GENERATES = False  # queries that the model wrote itself
    GROUPS = False  # planted groups that can be left out
    REMOVALS = False  # the best documents of a query taken away, one query at a time
    TAIL_PATCHES = False  # one more training step on the best documents

    # Documents and probes (candidates for queries) as lists of dicts, a report, and the tokenizer of texts. The same
    # settings and seed give the same corpus.
    build: Callable[[Testbed], dict]
    # The documents as tensors, and the lists entity and doc_id (and text, where they are texts).
    examples: Callable[[Testbed], Examples]

    new_model: Callable[[Testbed, int], nn.Module]  # with the fresh weights of a seed
    loss_function: Callable[[nn.Module], Callable[..., Tensor]]  # Task.loss_fn
    outputs_function: Callable[[nn.Module], Callable[[Params, Examples], tuple[Tensor, Tensor]]]  # Task.outputs_fn
    encoders: Callable[[nn.Module, Params], dict[str, Callable[[Examples], Any]]]  # Task.encode
    # Work of training on so many tokens, or examples: matrix products of forward and backward passes.
    flops: Callable[[nn.Module, int], float]
    # What a model knows, by kind of probe: shares in [0, 1]; empty where there is no right answer.
    knowledge: Callable[[Testbed, nn.Module, Params], dict[str, float]]

    held_out: Callable[[Testbed], Examples]  # what the loss is watched on during training
    # The query rows for a trained model, and a report of what was left out and why.
    choose_queries: Callable[[Testbed, nn.Module, Params], tuple[list[dict], dict]]
    encode_queries: Callable[[Testbed, list[dict]], Examples]  # query rows as tensors and lists
    targets: Callable[[Examples], np.ndarray]  # number of targets of the main loss of every query, [Q]
    # Losses [1, Q] or, with a second one, [2, Q] float32 of every query, of a loss function and parameters.
    outputs: Callable[[Callable[..., Tensor], Params, Examples], np.ndarray]
    relevance: Callable[[Testbed, list[dict]], np.ndarray]  # [Q, N] bool: documents that are sources by provenance

    def train_models(self, testbed: Testbed, wanted: Sequence[tuple[np.ndarray, int]], how: str) -> Iterator[tuple]:
        """``(model, final parameters, seconds, flops)`` for every (mask, seed), whose masks are applied in one way.

        One after the other: stacked by ``vmap``, a step of models of 100,000 parameters and more takes longer.
        """
        recipe = Recipe.of(testbed.settings["training"])
        for mask, seed in wanted:
            model = self.new_model(testbed, seed)
            init = {k: v.detach() for k, v in model.named_parameters()}
            done = train(self.loss_function(model), init, testbed.train, recipe, seed, mask, how)
            yield model, done.params, done.seconds, self.flops(model, done.tokens)

    def source(self, corpus: dict) -> Path | None:
        """The file that documents are made from, apart from the code: its content is part of what was built."""
        return None

    def check(self, settings: dict) -> Iterator[tuple[str, Any, str]]:
        """What this kind refuses in the settings of a testbed: ``(key, given, what is allowed)``."""
        name = settings["corpus"]["kind"]
        for section, key, allowed in (("model", "kind", self.MODELS), ("training", "optimizer", self.OPTIMIZERS)):
            if (given := settings[section][key]) not in allowed:
                yield f"{section}.{key}", given, f"it must be {' or '.join(allowed)} for a corpus of kind {name}"
        if not self.GROUPS and "leave_group" in settings["designs"]:
            yield "designs", "leave_group", f"a corpus of kind {name} has no planted groups; use half and leave_5"
        counts = (("queries", "generated", self.GENERATES), ("evaluation", "tailpatch_queries", self.TAIL_PATCHES))
        for section, key, able in counts:
            if not able and settings[section][key]:
                yield f"{section}.{key}", settings[section][key], f"a corpus of kind {name} has none: write 0"
        if not self.REMOVALS and settings["removals"]:
            yield "removals", "a plan", f"a corpus of kind {name} has none: write null"

    def save_pretrained(self, testbed: Testbed, model: nn.Module, params: Params) -> None:
        """Also write the model in the format of the hub, where it has one."""

    def cluster(self, row: dict) -> str:
        """Queries with the same label are not independent draws. Here every query stands alone."""
        return row["query_id"]

    def retrieval_measures(self, testbed: Testbed) -> list[str]:
        """Names of the metrics that compare a ranking with :meth:`relevance`."""
        return ["precision_at_10"]

    def strata(self, testbed: Testbed) -> list[str]:
        """Label of every document, where random subsets keep the same share of each label; empty: of all alike."""
        return []

    def groups(self, testbed: Testbed, rows: list[dict]) -> list[dict[str, list[int]]]:
        """Documents that can be left out together and concern one of these queries, by label: one dict a sort of group.
        Only where ``GROUPS``.
        """
        return []
