"""Testbeds: a corpus with known provenance, the model trained on it, its queries and its retraining bank.

``load("people", profile="smoke")`` returns a :class:`Testbed`; whatever is missing on disk is built when it is first
asked for, and kept. Kinds of corpora live in one module each (``people``, ``authors``, ``custom``, ``digits``); what
differs between texts and images, in two (``language``, ``digits``), reached through :attr:`Testbed.modality`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import tda.config
from tda.artefacts import (
    exclusive,
    file_sha256,
    key_of,
    load_rows,
    read_record,
    reading,
    remove,
    require,
    save_rows,
    write_record,
)
from tda.provenance import Stopwatch, record
from tda.task import Examples, use_threads

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class Testbed:
    """One testbed of one profile: ``settings`` is its section of the config, ``folder`` its place on disk."""

    name: str
    config: dict
    settings: dict
    folder: Path

    @cached_property
    def documents(self) -> Dataset:
        """The training documents, shuffled when built (columns: doc_id, text, entity, facts, template, style, ...; of
        images: doc_id, pixels, label, original, flipped, entity).
        """
        return _dataset(self, "documents")

    @cached_property
    def probes(self) -> Dataset:
        """Candidate queries that the corpus itself offers; the model decides which become queries."""
        return _dataset(self, "probes")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        path, cure = self.folder / "corpus" / "tokenizer.json", f"delete {self.folder / 'corpus'} and run again"
        wanted = self.require_corpus()["contents"].get("tokenizer")
        with reading(path, cure):
            found = file_sha256(path)
            require(found == wanted, path, "truncated, edited or of another testbed (sha256 differs)", cure)
            return Tokenizer.from_file(str(path))

    @property
    def modality(self) -> ModuleType:
        """How this testbed encodes, trains, asks and measures: :mod:`tda.testbeds.language` or
        :mod:`tda.testbeds.digits`.
        """
        from tda.testbeds import digits, language

        return digits if self.settings["corpus"]["kind"] == "digits" else language

    @cached_property
    def train(self) -> Examples:
        """The documents as tensors plus the lists ``entity`` and ``doc_id`` (and ``text``, where they are texts)."""
        return self.modality.examples(self)

    @cached_property
    def corpus_key(self) -> str:
        """Changes with everything that the corpus depends on: its settings, the seed, the committed or given
        sources.
        """
        corpus = self.settings["corpus"]
        index = tda.config.ROOT / "data" / "sources" / "index.json"
        given = tda.config.ROOT / (corpus.get("path") or index)
        source = file_sha256(given) if corpus["kind"] in ("authors", "file") and given.exists() else ""
        tokenizer = self.settings["model"].get("from")  # a saved model brings its own
        return key_of({"corpus": corpus, "seed": self.config["seed"], "source": source, "tokenizer": tokenizer})

    def require_corpus(self) -> dict:
        """The corpus's record; builds the corpus if it is missing, refuses one that was built from other settings."""
        if not (self.folder / "corpus" / "record.json").exists():
            build_corpus(self)
        return check_key(self.folder / "corpus" / "record.json", "corpus", self.name, self.corpus_key)


def load(name: str, profile: str = "smoke", overrides: dict | None = None) -> Testbed:
    """The testbed ``name`` of a profile, or a corpus of your own: ``load("my_texts.jsonl")`` is the testbed
    ``my_texts`` (in lower case, with ``_`` for what is neither a letter nor a digit).

    ``overrides`` changes settings, e.g. ``{"testbeds": {"people": {"corpus": {"people": 20}}}}``; everything built with
    overrides goes under ``data/scratch/`` and never touches a profile's artefacts. Raises ``ValueError`` for an unknown
    name, with the names there are.
    """
    use_threads()
    overrides = dict(overrides or {})
    if name.endswith((".jsonl", ".parquet")):
        path, name = str(Path(name).resolve()), re.sub(r"[^a-z0-9_]+", "_", Path(name).stem.lower())
        name = name if name[0].isalpha() else f"texts_{name}"
        entry = {"corpus": {"kind": "file", "path": path}}
        mine = overrides.setdefault("testbeds", {}).get(name, {})
        overrides["testbeds"] = {
            **overrides["testbeds"],
            name: {**mine, "corpus": {**entry["corpus"], **mine.get("corpus", {})}},
        }
    config = tda.config.load(profile, overrides)
    if name not in config["testbeds"]:
        raise ValueError(
            f"testbed {name!r} is unknown in profile {config['profile']!r}; it has {sorted(config['testbeds'])}. "
            f"A file of your own must end in .jsonl or .parquet."
        )
    return Testbed(name, config, config["testbeds"][name], tda.config.data_dir(config) / name)


def build_corpus(testbed: Testbed) -> dict:
    """Generate or cut the corpus and write it to ``<folder>/corpus``; returns its report. Replaces what was there."""
    from datasets import disable_progress_bars

    from tda.testbeds import authors, custom, digits, people

    disable_progress_bars()

    kinds = {"people": people, "authors": authors, "file": custom, "hub": custom, "digits": digits}
    target = testbed.folder / "corpus"
    with exclusive(testbed.folder):
        with Stopwatch() as watch:
            built = kinds[testbed.settings["corpus"]["kind"]].build(testbed.settings["corpus"], testbed.config["seed"])
            built = built if isinstance(built, dict) else vars(built)
        if testbed.settings["model"].get("from"):
            from tda.lm import saved_tokenizer

            built["tokenizer"] = saved_tokenizer(testbed.settings["model"]["from"])
        remove(target / "record.json")
        contents = {part: save_rows(target / part, built[part]) for part in ("documents", "probes")}
        if "tokenizer" in built:
            built["tokenizer"].save(str(target / "tokenizer.json"))
            contents["tokenizer"] = file_sha256(target / "tokenizer.json")
        details = {"kind": "corpus", "testbed": testbed.name, "key": testbed.corpus_key, "contents": contents}
        made = record(testbed.settings["corpus"], testbed.config["seed"], report=built["report"], watch=watch)
        write_record(target / "record.json", made | details)
    return built["report"]


def check_key(path: Path, kind: str, testbed: str, key: str) -> dict:
    """The record at ``path``, refused if it is damaged, of another testbed or made from other settings than the present
    ones.
    """
    cure = f"run the workflow again (it rebuilds what changed), or delete {path.parent}"
    return read_record(path, kind, {"testbed": testbed, "key": key}, cure)


def _dataset(testbed: Testbed, part: str) -> Dataset:
    wanted, folder = testbed.require_corpus()["contents"][part], testbed.folder / "corpus" / part
    return load_rows(folder, wanted, f"delete {folder.parent} and run again")
