"""Queries of a language model, chosen after training, because only what it knows is worth attributing.

``held_out`` never occur in training: on `people` a fact in a wording that no document uses for that person, kept only
if the model completes it. ``unseen_work`` are passages of works by the same author that the model never saw.
``generated`` is the model's own output. The main loss covers the whole sentence, or of a passage the continuation; the
second one the answer alone, or the whole passage.
"""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest

import numpy as np
import torch

from tda import config, lm
from tda.artefacts import check_pinned, read_json
from tda.task import Examples, Params, chunks


def encode_queries(tokenizer, rows: list[dict], main: str, context: int) -> Examples:
    """Query rows as tensors: ``labels`` are the targets of the main loss, which covers the ``text`` or the ``target``
    (``main``), ``labels_second`` those of the other.
    """
    texts, names = [row["text"] for row in rows], [f"query {row.get('query_id', i)!r}" for i, row in enumerate(rows)]
    whole = lm.encode(tokenizer, texts, context, names=names)
    target = lm.encode(tokenizer, texts, context, [row["target"] for row in rows], names)
    main, second = (whole, target) if main == "text" else (target, whole)
    strings = {k: [row[k] for row in rows] for k in ("query_id", "query_set", "split", "entity") if k in rows[0]}
    return main | {"labels_second": second["labels"]} | strings


def second(queries: Examples) -> Examples:
    """The same queries, measured by their second loss."""
    return queries | {"labels": queries["labels_second"]}


def knows(model, params: Params, examples: Examples) -> np.ndarray:
    """[Q] bool: every target token is the model's first choice, given the tokens before it."""
    logits_of, found = lm.logits_function(model), []
    with torch.no_grad():
        for c in chunks(len(examples["text"]), 128):
            choice = logits_of(params, examples["input_ids"][c]).argmax(-1)[:, :-1]
            labels = examples["labels"][c][:, 1:]
            found.append(((choice == labels) | (labels == lm.IGNORE)).all(1))
    return torch.cat(found).numpy()


def recall(model, params: Params, tokenizer, probes: list[dict], context: int) -> dict[str, float]:
    """Share of the probes whose answer the model completes, by kind of probe (held_out, trained)."""
    shares = {}
    for kind in sorted({row["kind"] for row in probes}):
        rows = [row for row in probes if row["kind"] == kind]
        shares[kind] = float(_known(model, params, tokenizer, rows, context).mean())
    return shares


def _known(model, params: Params, tokenizer, rows: list[dict], context: int) -> np.ndarray:
    return knows(model, params, lm.encode(tokenizer, [r["text"] for r in rows], context, [r["target"] for r in rows]))


def shipped(testbed) -> tuple[list[dict], dict] | None:
    """Under ``bank: shipped`` the queries that the shipped models were asked, and where they are; else nothing."""
    if testbed.config["bank"] != "shipped":
        return None
    path = config.ROOT / "data" / "banks" / f"{testbed.name}_queries.json"
    check_pinned(path, "restore it (git checkout data/banks) or choose anew (--config bank=rebuild)")
    return read_json(path), {"shipped with the bank": str(path.relative_to(config.ROOT))}


def choose(testbed, model, params: Params) -> tuple[list[dict], dict]:
    """The queries of a testbed for a trained model, and a report of what was left out and why.

    Under ``bank: shipped`` they are those of :func:`shipped`.
    """
    if found := shipped(testbed):
        return found
    wanted, rng = testbed.settings["queries"], np.random.default_rng([testbed.config["seed"], 17])
    modality, context = testbed.modality, testbed.settings["model"]["context"]
    rows, report = [], {}
    for name in ("held_out", "unseen_work"):
        candidates = [dict(row) for row in testbed.probes if row["kind"] == name]
        if candidates and modality.KNOWN_ONLY:
            known = _known(model, params, testbed.tokenizer, candidates, context)
            report[f"{name}_not_known"] = int((~known).sum())
            candidates = [row for row, keep in zip(candidates, known, strict=True) if keep]
        kept = rng.permutation(len(candidates))[: wanted["held_out"]]
        rows += [candidates[i] | {"query_set": name} for i in sorted(kept)]
    generated, report["generated"] = modality.generate(testbed, model, params, wanted["generated"], rng)
    rows += generated
    if not rows:
        raise ValueError(
            f"testbed {testbed.name!r}: the model knows no query. Train longer (training.epochs) or lower training.lr."
        )
    _split(rows, wanted["tune"], modality.UNIT, rng)
    report["queries"] = dict(Counter(row["query_set"] for row in rows))
    keep = ("query_id", "query_set", "split", "prompt", "target", "text", "entity", "attribute", "value", "work")
    return [{k: str(row.get(k, "")) for k in keep} for row in rows], report


def _split(rows: list[dict], share: float, unit: str, rng) -> None:
    # A generation continues the opening of a held-out passage: the two must not be on different sides.
    names = sorted({row[unit] for row in rows})
    tune = {names[i] for i in rng.permutation(len(names))[: round(share * len(names))]}
    for row in rows:
        row["split"] = "tune" if row[unit] in tune else "test"


def generated_passages(testbed, model, params, wanted: int, rng) -> tuple[list[dict], dict]:
    """Let the model continue the opening of held-out passages, an equal number for each author."""
    tokenizer, context = testbed.tokenizer, testbed.settings["model"]["context"]
    openings = [row for row in testbed.probes if row["kind"] == "held_out"]
    by_entity: dict[str, list[dict]] = {}
    for i in rng.permutation(len(openings)):
        by_entity.setdefault(openings[i]["entity"], []).append(openings[i])
    found, dropped = [], 0
    for opening in (row for turn in zip_longest(*by_entity.values()) for row in turn if row):
        if len(found) == wanted:
            break
        prompt = tokenizer.encode(opening["prompt"], add_special_tokens=False).ids
        room = context - 1 - len(prompt)
        new = lm.generate(model, params, [lm.boundary_id(tokenizer), *prompt], min(60, room), rng)
        before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *new])
        target = whole.removeprefix(before)  # some tokenizers do not give the prompt back as it was
        text = opening["prompt"] + target
        # What was sampled need not be how the tokenizer would cut the text; the text is what is attributed.
        length = len(tokenizer.encode(text, add_special_tokens=False).ids)
        if "\ufffd" in target or not whole.startswith(before) or not target.strip() or length >= context:
            dropped += 1
            continue
        row = {"query_id": f"generated-{len(found):03d}", "query_set": "generated", "prompt": opening["prompt"]}
        found.append(row | {"text": text, "target": target, "entity": opening["entity"], "work": opening["work"]})
    return found, {"drawn": len(found) + dropped, "unusable": dropped}
