"""A corpus of your own: a JSONL or Parquet file with a text column, or a data set of the hub.

Both come through the same door as the built-in testbeds: ``tda.testbeds.load("my.jsonl")``, or an entry of kind
``file`` or ``hub`` in a profile. Optional columns ``doc_id``, ``entity`` (whatever groups documents: author, person,
source), ``group``, ``planted``, ``style`` and ``work`` are kept; missing ones are filled with empty strings.
A twentieth of the documents (at least two) is held out as queries: their second half, given the first.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tda import config
from tda.testbeds.authors import split_prompt, train_bpe

COLUMNS = ("doc_id", "text", "entity", "template", "style", "group", "planted", "work")


def build(settings: dict, seed: int) -> dict:
    """Documents, probes and a byte-level BPE from ``settings`` (kind ``file``: path, text_column, vocabulary;
    kind ``hub``: dataset, split, text_column, vocabulary).

    Raises ``ValueError`` for an unreadable or non-UTF-8 file, a missing text column, empty texts, repeated ids and
    fewer than eight documents; each message names the row and what to change.
    """
    rows = _read_file(config.ROOT / settings["path"]) if settings["kind"] == "file" else _read_hub(settings)
    source = settings["path"] if settings["kind"] == "file" else settings["dataset"]
    documents = _check(rows, settings["text_column"], source)
    rng = np.random.default_rng([seed, 72])
    documents = [documents[i] for i in rng.permutation(len(documents))]
    held = max(2, len(documents) // 20)
    asked = [d for d in documents if " " in d["text"].strip()][:held]  # one word cannot be cut into prompt and target
    if len(asked) < held:
        raise ValueError(
            f"{source}: {held} documents of at least two words are needed as queries; it has {len(asked)}."
        )
    documents = [d for d in documents if d not in asked]
    tokenizer = train_bpe([d["text"] for d in documents], settings["vocabulary"])
    probes = [_probe(d, tokenizer) for d in asked]
    report = {"source": str(source), "documents": len(documents), "held_out": held}
    return {"documents": documents, "probes": probes, "tokenizer": tokenizer, "report": report}


def _read_file(path: Path) -> list[dict]:
    if not path.exists():
        raise ValueError(
            f"corpus.path={str(path)!r} does not exist. Give a .jsonl or .parquet file with a text column."
        )
    if path.suffix == ".parquet":
        import pandas as pd

        return pd.read_parquet(path).to_dict("records")
    if path.suffix != ".jsonl":
        raise ValueError(f"corpus.path={str(path)!r}: the suffix must be .jsonl (one JSON object a line) or .parquet.")
    rows = []
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 ({error}). Save the file as UTF-8.") from None
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}). One object a line is expected.") from None
            rows.append(row)
    return rows


def _read_hub(settings: dict) -> list[dict]:
    import datasets

    return datasets.load_dataset(settings["dataset"], split=settings["split"]).to_list()


def _check(rows: list[dict], column: str, source) -> list[dict]:
    documents, ids = [], set()
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(
                f'{source}, document {number}: {row!r} is not an object with columns. Write {{"{column}": ...}}.'
            )
        if column not in row:
            raise ValueError(
                f"{source}, document {number}: no column {column!r}; it has {sorted(row)}. Set text_column."
            )
        if not isinstance(row[column], str) or not row[column].strip():
            raise ValueError(f"{source}, document {number}: its text is empty. Remove the document or fill it.")
        if not row[column].isascii() and row[column] != row[column].encode("utf-8", "replace").decode("utf-8"):
            raise ValueError(
                f"{source}, document {number}: its text holds a lone surrogate, which UTF-8 cannot. Repair it."
            )
        document = {name: _label(row.get(name)) for name in COLUMNS}
        document |= {"text": row[column], "doc_id": document["doc_id"] or f"d{number:06d}", "facts": []}
        if document["doc_id"] in ids:
            raise ValueError(
                f"{source}, document {number}: doc_id {document['doc_id']!r} occurs twice. Make ids unique."
            )
        ids.add(document["doc_id"])
        documents.append(document)
    if len(documents) < 8:
        raise ValueError(
            f"{source}: {len(documents)} documents; at least 8 are needed to train, hold out and attribute."
        )
    return documents


def _label(value) -> str:
    return "" if value is None or value != value else str(value)  # NaN, which Parquet's nulls become, is not itself


def _probe(document: dict, tokenizer) -> dict:
    half = max(1, len(tokenizer.encode(document["text"]).ids) // 2)
    prompt, target = split_prompt(document["text"], tokenizer, half)
    return {
        "query_id": f"held_out-{document['doc_id']}",
        "kind": "held_out",
        "prompt": prompt,
        "target": target,
        "text": document["text"],
        "entity": document["entity"],
        "work": document["work"],
    }
