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

from tda.testbeds.authors import split_prompt, train_bpe

COLUMNS = ("doc_id", "text", "entity", "template", "style", "group", "planted", "work")


def build(settings: dict, seed: int) -> dict:
    """Documents, probes and a byte-level BPE from ``settings`` (kind ``file``: path, text_column, vocabulary;
    kind ``hub``: dataset, split, text_column, vocabulary).

    Raises ``ValueError`` for an unreadable or non-UTF-8 file, a missing text column, empty texts, repeated ids and
    fewer than eight documents; each message names the row and what to change.
    """
    rows = _read_file(Path(settings["path"])) if settings["kind"] == "file" else _read_hub(settings)
    source = settings["path"] if settings["kind"] == "file" else settings["dataset"]
    documents = _check(rows, settings["text_column"], source)
    rng = np.random.default_rng([seed, 72])
    documents = [documents[i] for i in rng.permutation(len(documents))]
    held = max(2, len(documents) // 20)
    tokenizer = train_bpe([d["text"] for d in documents[held:]], settings["vocabulary"])
    probes = [_probe(d, tokenizer) for d in documents[:held]]
    report = {"source": str(source), "documents": len(documents) - held, "held_out": held}
    return {"documents": documents[held:], "probes": probes, "tokenizer": tokenizer, "report": report}


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
            if not isinstance(row, dict):
                raise ValueError(
                    f'{path}, line {number}: {line[:40]!r} is not an object. Write {{"text": ...}} a line.'
                )
            rows.append(row)
    return rows


def _read_hub(settings: dict) -> list[dict]:
    import datasets

    return datasets.load_dataset(settings["dataset"], split=settings["split"]).to_list()


def _check(rows: list[dict], column: str, source) -> list[dict]:
    documents, ids = [], set()
    for number, row in enumerate(rows, start=1):
        if column not in row:
            raise ValueError(
                f"{source}, document {number}: no column {column!r}; it has {sorted(row)}. Set text_column."
            )
        if not isinstance(row[column], str) or not row[column].strip():
            raise ValueError(f"{source}, document {number}: its text is empty. Remove the document or fill it.")
        document = {name: str(row.get(name) or "") for name in COLUMNS}
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
