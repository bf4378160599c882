"""A corpus of your own: a JSONL or Parquet file with a text column, or a data set of the hub.

Both come through the same door as the built-in testbeds: ``tda.testbeds.load("my.jsonl")``, or an entry of kind
``file`` or ``hub`` in a profile. Optional columns ``doc_id``, ``entity`` (whatever groups documents: author, person,
source), ``group``, ``planted``, ``style`` and ``work`` are kept; missing ones are filled with empty strings.
A twentieth of the documents (at least two) is held out as queries: their second half, given the first.
Errors name a document by its line of a JSONL file or its row of a table, counted from 1.
"""

from __future__ import annotations

import datetime
import decimal
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tda import config
from tda.task import chunks
from tda.testbeds.cutting import split_prompt, train_bpe
from tda.testbeds.language import Language
from tda.testbeds.modality import KINDS, kind
from tda.testbeds.tables import read_file, read_hub
from tda.words import words

COLUMNS = ("doc_id", "entity", "template", "style", "group", "planted", "work")
LARGEST = {"file": 1024, "hub": 4096}  # vocabulary, unless the settings give one
NUMBERS = (int, float, decimal.Decimal)
LABELS = (str, *NUMBERS, datetime.date, datetime.time)
NAMES = {bool: "a truth value", **dict.fromkeys(NUMBERS, "a number"), list: "a list", dict: "an object", bytes: "bytes"}


@kind("hub")
class Hub(Language):
    """The entity of a document is what the source of it says, if it says anything."""

    def corpus(self, testbed, given: Tokenizer | None) -> dict:
        context = testbed.settings["model"]["context"]
        return build(testbed.settings["corpus"], testbed.config["seed"], given, context, testbed.name)


@kind("file")
class File(Hub):
    OWN_FILE = True

    def source(self, corpus: dict) -> Path:
        """Absolute, in the home folder (``~``), or relative to the repository."""
        return config.ROOT / Path(corpus["path"]).expanduser()


def build(
    settings: dict, seed: int, tokenizer: Tokenizer | None = None, context: int | None = None, name: str = ""
) -> dict:
    """Documents, probes and tokenizer from ``settings`` (kind ``file``: path, text_column, vocabulary; kind ``hub``:
    dataset, split, text_column, vocabulary).

    Without a ``tokenizer`` a byte-level BPE is trained on the documents, with ``vocabulary`` entries; if that is
    ``None``, with as many as the texts support, up to 1024 (hub: 4096). No document may have more tokens than
    ``context`` holds. ``name`` is the testbed's, for errors. Raises ``ValueError`` for a file that cannot be read or is
    not UTF-8, for a text that is missing, empty, no string or too long, for repeated ids, for fewer than eight
    documents and for a vocabulary that the texts do not support; each message names the place and what to change.
    """
    key = f"testbeds.{name}." if name else ""
    source = KINDS[settings["kind"]].source(settings) or settings["dataset"]
    rows = read_file(source) if settings["kind"] == "file" else read_hub(settings)
    as_given, places = _check(rows, settings["text_column"], source, f"{key}corpus.text_column")
    rng = np.random.default_rng([seed, 72])
    documents = [as_given[i] for i in rng.permutation(len(as_given))]
    able = sorted((d for d in documents if len(d["text"].strip()) > 1), key=lambda d: not _two_words(d["text"]))
    held, given, probes = max(2, len(documents) // 20), tokenizer, []
    while len(probes) < held:  # a text that turns out to be a single token cannot be a query: the next one is taken
        asked = able[:held]
        if len(asked) < held:
            raise ValueError(
                f"{source}: {held} documents that can be cut in two (words, characters, tokens) are needed as queries; "
                f"it has {len(asked)}. Add longer documents."
            )
        names = {d["doc_id"] for d in asked}
        kept = [d for d in documents if d["doc_id"] not in names]
        tokenizer = given or _bpe(kept, settings, key, source)
        _fit(as_given, tokenizer, context, f"{key}model.context", lambda d: f"{source}, {places[d['doc_id']]}")
        probes = [probe for probe in (_probe(d, tokenizer) for d in asked) if probe]
        single = names - {probe["query_id"].removeprefix("held_out-") for probe in probes}
        able = [d for d in able if d["doc_id"] not in single]
    report = {"source": str(source), "documents": len(kept), "held_out": held}
    return {"documents": kept, "probes": probes, "tokenizer": tokenizer, "report": report}


def _check(rows: list[tuple[str, object]], column: str, source, key: str) -> tuple[list[dict], dict[str, str]]:
    """The documents, and the place of each id in the source."""
    documents, places = [], {}
    for place, row in rows:
        where = f"{source}, {place}"
        if not isinstance(row, dict):
            shown = f"{row!r:.40}"
            raise ValueError(f'{where}: {shown} is not an object with columns. Write {{"{column}": ...}}.')
        if column not in row:
            raise ValueError(f"{where}: no column {column!r}; it has {sorted(row)}. Set {key}.")
        text = row[column]
        if _missing(text) or (isinstance(text, str) and not text.strip()):
            raise ValueError(f"{where}: its text is empty. Remove the document or fill it.")
        if not isinstance(text, str):
            raise ValueError(
                f"{where}: its text is {_shown(text)}; a text must be a string. Write it as one, or name another "
                f"column in {key}."
            )
        document = {name: "" if _missing(row.get(name)) else row[name] for name in COLUMNS}
        for name, value in document.items():
            if not isinstance(value, LABELS):
                raise ValueError(
                    f"{where}: its {name} is {_shown(value)}; it must be text or a number. Give one value."
                )
        document = {name: str(value) for name, value in document.items()} | {"text": text, "facts": []}
        document["doc_id"] = document["doc_id"] or f"d{int(place.split()[1]):06d}"
        for name in ("text", *COLUMNS):
            try:
                document[name].encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(f"{where}: its {name} holds a lone surrogate, which UTF-8 lacks. Repair it.") from None
        if document["doc_id"] in places:
            first = places[document["doc_id"]]
            raise ValueError(
                f"{where}: doc_id {document['doc_id']!r} occurs twice (first in {first}). Make ids unique."
            )
        places[document["doc_id"]] = place
        documents.append(document)
    if len(documents) < 8:
        raise ValueError(
            f"{source}: {len(documents)} documents; at least 8 are needed to train, hold out and attribute."
        )
    return documents, places


def _missing(value) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _shown(value) -> str:
    what = NAMES.get(type(value), f"a {type(value).__name__}")
    return f"{value!r:.40}, {what}"


def _two_words(text: str) -> bool:
    return len(text.split()) > 1 or len(words(text)) > 1


def _bpe(documents: list[dict], settings: dict, key: str, source) -> Tokenizer:
    wanted = settings.get("vocabulary")
    texts = [d["text"] for d in documents]
    tokenizer = train_bpe(texts, wanted or LARGEST[settings["kind"]], at_most=True)
    if wanted and (size := tokenizer.get_vocab_size()) < wanted:
        raise ValueError(
            f"{source}: {key}corpus.vocabulary is {wanted}, but {sum(map(len, texts)):,} characters of text support "
            f"only {size} entries. Lower vocabulary to {size}, or leave it out to take what the texts support."
        )
    return tokenizer


def _fit(documents: list[dict], tokenizer: Tokenizer, context: int | None, key: str, where) -> None:
    """Refuse documents without tokens or with more than the context holds after the token that opens them."""
    lengths = []
    for part in chunks(len(documents), 1000):
        texts = [d["text"] for d in documents[part]]
        lengths += [len(e.ids) for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    for document, length in zip(documents, lengths, strict=True):
        if not length:
            raise ValueError(f"{where(document)}: its text has no token of the model's tokenizer. Remove the document.")
        if context and length + 1 > context:
            raise ValueError(
                f"{where(document)}: its text has {length} tokens and one boundary, more than the context of "
                f"{context}: {document['text'][:40]!r}... Shorten it, or raise {key} (all fit {max(lengths) + 1})."
            )


def _probe(document: dict, tokenizer: Tokenizer) -> dict | None:
    half = max(1, len(tokenizer.encode(document["text"], add_special_tokens=False).ids) // 2)
    try:
        prompt, target = split_prompt(document["text"], tokenizer, half)
    except ValueError:
        return None
    return {
        "query_id": f"held_out-{document['doc_id']}",
        "kind": "held_out",
        "prompt": prompt,
        "target": target,
        "text": document["text"],
        "entity": document["entity"],
        "work": document["work"],
    }
