"""A corpus of your own: a JSONL or Parquet file with a text column, or a data set of the hub.

The optional :data:`COLUMNS` are kept; missing ones are filled with empty strings. A twentieth of the documents (at
least two) is held out as queries: their second half, given the first. Errors name a document by its line of a JSONL
file or its row of a table, counted from 1.
"""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tda import config
from tda.task import chunks
from tda.testbeds.cutting import split_prompt, train_bpe
from tda.testbeds.language import Language
from tda.testbeds.modality import KINDS, kind
from tda.words import words

COLUMNS = ("doc_id", "entity", "template", "style", "group", "planted", "work")
LARGEST = {"file": 1024, "hub": 4096}  # vocabulary, unless the settings give one
NUMBERS = (int, float, decimal.Decimal)
LABELS = (str, *NUMBERS, datetime.date, datetime.time)
NAMES = {bool: "a truth value", **dict.fromkeys(NUMBERS, "a number"), list: "a list", dict: "an object", bytes: "bytes"}
Rows = list[tuple[str, object]]  # (place, row)


@kind("hub")
class Hub(Language):
    def corpus(self, testbed, given: Tokenizer | None) -> dict:
        context = testbed.settings["model"]["context"]
        return build(testbed.settings["corpus"], testbed.config["seed"], given, context, testbed.name)


@kind("file")
class File(Hub):
    OWN_FILE = True

    def source(self, corpus: dict) -> Path:
        return config.ROOT / Path(corpus["path"]).expanduser()


def require_file(path: Path) -> None:
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise ValueError(f"corpus.path={str(path)!r} {what}. Give a .jsonl or .parquet file with a text column.")


def _read_file(path: Path) -> Rows:
    require_file(path)
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise ValueError(f"corpus.path={str(path)!r}: the suffix must be .jsonl (one JSON object a line) or .parquet.")
    try:
        return readers[path.suffix.lower()](path)
    except OSError as error:
        raise ValueError(f"{path}: could not be read ({error.strerror or error}). Check its permissions.") from None


def _read_jsonl(path: Path) -> Rows:
    rows = []
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")  # Windows tools write a byte-order mark
                if text.strip():
                    rows.append((f"line {number}", json.loads(text, object_pairs_hook=_unique)))
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 ({error}). Save the file as UTF-8.") from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}). One object a line is expected.") from None
    return rows


def _unique(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object, refused where it says a column twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name in found if sum(name == other for other, _ in pairs) > 1)
        raise ValueError(f"the column {twice!r} stands twice in one object")
    return found


def _read_parquet(path: Path) -> Rows:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return _numbered(ParquetFile(path).read().to_pylist())
    except (ArrowException, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path}: not a Parquet file whose columns can all be read ({_line(error)}). Write it again with "
            f"the text column and those that are kept."
        ) from None


def _read_hub(settings: dict) -> Rows:
    import datasets

    try:
        return _numbered(datasets.load_dataset(settings["dataset"], split=settings["split"]).to_list())
    except Exception as error:
        raise ValueError(
            f"corpus.dataset={settings['dataset']!r}, split {settings['split']!r}: could not be loaded "
            f"({_line(error)}). Check both names and the network."
        ) from error


def _numbered(rows: list) -> Rows:
    return [(f"row {number}", row) for number, row in enumerate(rows, start=1)]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def build(settings: dict, seed: int, tokenizer=None, context: int | None = None, name: str = "") -> dict:
    """Documents, probes and tokenizer from ``settings`` (the ``corpus`` section of kind ``file`` or ``hub``).

    Without a ``tokenizer`` a byte-level BPE is trained on the documents, with ``vocabulary`` entries; if that is
    ``None``, with as many as the texts support, up to 1024 (hub: 4096). ``name`` is the testbed's, for errors.
    """
    key = f"testbeds.{name}." if name else ""
    source = KINDS[settings["kind"]].source(settings) or settings["dataset"]
    rows = _read_file(source) if settings["kind"] == "file" else _read_hub(settings)
    as_given, places = _check(rows, settings["text_column"], source, f"{key}corpus.text_column")
    rng = np.random.default_rng([seed, 72])
    documents = [as_given[i] for i in rng.permutation(len(as_given))]
    able = [d for d in documents if len(d["text"].strip()) > 1]
    able.sort(key=lambda d: len(d["text"].split()) < 2 and len(words(d["text"])) < 2)  # those of one word come last
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


def _check(rows: Rows, column: str, source, key: str) -> tuple[list[dict], dict[str, str]]:
    """The documents, and the place of each id in the source."""
    documents, places = [], {}
    for place, row in rows:
        where = f"{source}, {place}"
        if not isinstance(row, dict):
            raise ValueError(f'{where}: {row!r:.40} is not an object with columns. Write {{"{column}": ...}}.')
        if column not in row:
            raise ValueError(f"{where}: no column {column!r}; it has {sorted(row)}. Set {key}.")
        text = row[column]
        if _missing(text) or (isinstance(text, str) and not text.strip()):
            raise ValueError(f"{where}: its text is empty. Remove the document or fill it.")
        if not isinstance(text, str):
            cure = f"Write it as one, or name another column in {key}."
            raise ValueError(f"{where}: its text is {_shown(text)}; a text must be a string. {cure}")
        document = {}
        for name in COLUMNS:
            value = "" if _missing(row.get(name)) else row[name]
            if not isinstance(value, LABELS):
                shown = _shown(value)
                raise ValueError(f"{where}: its {name} is {shown}; it must be text or a number. Give one value.")
            document[name] = str(value)
        document |= {"text": text, "facts": []}
        document["doc_id"] = document["doc_id"] or f"d{int(place.split()[1]):06d}"
        for name in ("text", *COLUMNS):
            try:
                document[name].encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(f"{where}: its {name} holds a lone surrogate, which UTF-8 lacks. Repair it.") from None
        if first := places.get(name := document["doc_id"]):
            raise ValueError(f"{where}: doc_id {name!r} occurs twice (first in {first}). Make ids unique.")
        places[name] = place
        documents.append(document)
    if (n := len(documents)) < 8:
        raise ValueError(f"{source}: {n} documents; at least 8 are needed to train, hold out and attribute.")
    return documents, places


def _missing(value) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _shown(value) -> str:
    return f"{value!r:.40}, {NAMES.get(type(value), f'a {type(value).__name__}')}"


def _bpe(documents: list[dict], settings: dict, key: str, source) -> Tokenizer:
    wanted, name = settings.get("vocabulary"), f"{source}: {key}corpus.vocabulary (null: what the texts support)"
    return train_bpe([d["text"] for d in documents], wanted or LARGEST[settings["kind"]], not wanted, name)


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
    row = {"query_id": f"held_out-{document['doc_id']}", "kind": "held_out", "prompt": prompt, "target": target}
    return row | {name: document[name] for name in ("text", "entity", "work")}
