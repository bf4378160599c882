"""Base models: train the seeds of a testbed, choose its queries, and hand both out as a :class:`tda.task.Task`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from tda import lm
from tda.artefacts import exclusive, key_of, load_rows, remove, save_rows, write_record
from tda.designs import refuse_banked
from tda.notebook import progress
from tda.provenance import Stopwatch, record
from tda.recipe import Recipe
from tda.task import Examples, Params, Task
from tda.testbeds import Testbed, check_key
from tda.training import at_moments, checkpoint_checksums, load_run, train


def model_key(testbed: Testbed) -> str:
    """Changes with the corpus, the architecture, the recipe and the choice of queries."""
    return key_of([testbed.corpus_key, *(testbed.settings[name] for name in ("model", "training", "queries"))])


def initial(testbed: Testbed, seed: int) -> tuple[torch.nn.Module, Params]:
    """A fresh model and its parameters as a dict."""
    model = testbed.modality.new_model(testbed, seed)
    return model, {k: v.detach() for k, v in model.named_parameters()}


def seeds_of(testbed: Testbed) -> list[int]:
    """Seeds of the base models: ``seed, seed + 1, ...``; the retraining bank uses others."""
    return [testbed.config["seed"] + i for i in range(testbed.settings["training"]["seeds"])]


def train_base(testbed: Testbed, progress: Callable[[str], None] | None = None) -> dict:
    """Train every seed, choose the queries with the first, write ``<folder>/model`` and ``<folder>/queries`` anew.
    Returns the record: curves, knowledge (recall of probes, or accuracy), held-out losses, seconds.
    """
    testbed.require_corpus()
    recipe, modality = Recipe.of(testbed.settings["training"]), testbed.modality
    watch_set = modality.held_out(testbed)
    folder, runs, about = testbed.folder / "model", [], _about(testbed)
    with exclusive(testbed.folder):
        remove(folder)
        for seed in seeds_of(testbed):
            model, init = initial(testbed, seed)
            loss_fn, place = modality.loss_function(model), folder / f"seed_{seed}"
            say = (lambda line, seed=seed: progress(f"seed {seed}, {line}")) if progress else None
            with Stopwatch() as watch:
                done = train(loss_fn, init, testbed.train, recipe, seed, None, "filter", place, watch_set, say, about)
            run = {
                "seed": seed,
                "recipe": vars(recipe),
                "examples": len(testbed.documents),
                "learning_rates": done.learning_rates,
                "curves": done.curves,
                "checkpoints": checkpoint_checksums(place),
                "seconds": done.seconds,
                "peak_mb": watch.peak_mb,
                "flops": modality.flops(model, done.tokens),
                "final_train_loss": float(lm.losses(loss_fn, done.params, testbed.train).mean()),
                "final_held_out_loss": float(lm.losses(loss_fn, done.params, watch_set).mean()),
                "knowledge": modality.knowledge(testbed, model, done.params),
            }
            if not runs:
                rows, report = modality.choose_queries(testbed, model, done.params)
                digest = save_rows(testbed.folder / "queries", rows)
                modality.save_pretrained(testbed, model, done.params)
            runs.append(run)
        made = {**about, "runs": runs, "queries": report, "queries_sha256": digest}
        made = record(testbed.settings["training"], seeds_of(testbed), kind="base models", **made)
        write_record(folder / "record.json", made)
    load_queries.cache_clear()
    _task.cache_clear()
    return made


def base_record(testbed: Testbed) -> dict:
    """The record of the base models, which are trained first if they are missing, with a line of progress an epoch."""
    testbed.require_corpus()
    path = testbed.folder / "model" / "record.json"
    if not path.exists():
        train_base(testbed, progress())
    return check_key(path, "base models", testbed.name, model_key(testbed))


def _about(testbed: Testbed) -> dict[str, str]:
    """What every checkpoint says of itself, apart from its seed and step."""
    return {"testbed": testbed.name, "key": model_key(testbed)}


def query_rows(testbed: Testbed) -> list[dict]:
    """The chosen queries, as :class:`tda.testbeds.modality.Modality` describes them."""
    return load_queries(testbed.folder, base_record(testbed)["queries_sha256"])


def which(testbed: Testbed, split: str | None = None, query_set: str | None = None) -> np.ndarray:
    """[Q] bool: the queries of a split (tune, test) and a set (held_out, generated, ...); ``None``: of any."""
    rows = query_rows(testbed)
    return np.array([split in (None, r["split"]) and query_set in (None, r["query_set"]) for r in rows], bool)


@lru_cache(maxsize=8)
def load_queries(folder: Path, sha256: str) -> list[dict]:
    """The queries in ``folder``, whose content must have this checksum (the base models' record has it)."""
    cure = f"delete {folder / 'model'} and run again, which trains the models and chooses the queries anew"
    return load_rows(folder / "queries", sha256, cure).to_list()


def query_examples(testbed: Testbed, query_set: str | None = None, split: str | None = None) -> Examples:
    """The queries as tensors and lists, optionally of one set (held_out, generated, ...) or split (tune, test)."""
    chosen = which(testbed, split, query_set)
    rows = [row for row, keep in zip(query_rows(testbed), chosen, strict=True) if keep]
    if not rows:
        raise ValueError(f"testbed {testbed.name!r} has no queries with query_set={query_set!r}, split={split!r}.")
    return testbed.modality.encode_queries(testbed, rows)


def query_clusters(testbed: Testbed, chosen: np.ndarray) -> list[str]:
    """Labels of queries that are not independent draws, for the intervals: the person, the author, else the query."""
    return [testbed.modality.cluster(row) for row, keep in zip(query_rows(testbed), chosen, strict=True) if keep]


def relevance(testbed: Testbed) -> np.ndarray:
    """[Q, N] bool provenance: documents that state the queried fact, share its entity or show its class."""
    return testbed.modality.relevance(testbed, query_rows(testbed))


def load_task(testbed: Testbed, seed: int | None = None) -> Task:
    """The trained model of a testbed as a :class:`Task` (the first seed unless told otherwise), trained if missing. Its
    ``encode`` offers ``group`` (entity), ``features`` and, for language models, ``text``.
    """
    return _task(testbed, seeds_of(testbed)[0] if seed is None else seed, base_record(testbed)["key"])


@lru_cache(maxsize=4)
def _task(testbed: Testbed, seed: int, key: str) -> Task:
    """One object per trained model, so that what methods derive from it (a Fisher) can be kept with it."""
    runs = {run["seed"]: run for run in base_record(testbed)["runs"]}
    if seed not in runs:
        raise ValueError(f"testbed {testbed.name!r}: no base model of seed {seed}; trained seeds are {sorted(runs)}.")
    model, _ = initial(testbed, seed)
    modality, recipe = testbed.modality, Recipe.of(testbed.settings["training"])
    loss_fn = modality.loss_function(model)

    def retrain(mask: np.ndarray, seed: int) -> Params:
        return train(loss_fn, initial(testbed, seed)[1], testbed.train, recipe, seed, mask, "mask").params

    def retrain_many(masks: np.ndarray, seeds: Sequence[int], moments: int) -> Iterator[list[Params]]:
        refuse_banked(testbed, masks, seeds)
        wanted = list(zip(masks, seeds, strict=True))
        if moments == 1:
            return ([params] for _, params, _, _ in modality.train_models(testbed, wanted, "filter"))
        several = replace(recipe, checkpoints=moments)
        starts = (initial(testbed, seed)[1] for seed in seeds)
        return (
            at_moments(loss_fn, init, testbed.train, several, seed, mask)
            for init, (mask, seed) in zip(starts, wanted, strict=True)
        )

    run = load_run(testbed.folder / "model" / f"seed_{seed}", runs[seed], retrain, retrain_many, _about(testbed))
    params = run.checkpoints[-1].params
    model.load_state_dict(params, strict=False)
    encode, outputs_fn = modality.encoders(model, params), modality.outputs_function(model)
    return Task(testbed.name, loss_fn, params, model, run, encode, outputs_fn, modality.OUTPUT_LOSS)
