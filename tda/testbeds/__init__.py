"""Testbeds: a corpus with known provenance, the model trained on it, its queries and its retraining bank.

``load("people", profile="smoke")`` returns a :class:`Testbed`; whatever is missing on disk is built when it is first
asked for, and kept. A kind of corpus is one module that registers itself (``people``, ``authors``, ``custom``,
``digits``; they are imported at the end); what it offers is said in :mod:`tda.testbeds.modality`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import tda.config
from tda.artefacts import (
    ArtefactError,
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
from tda.saved import read_files
from tda.task import Examples, use_threads
from tda.testbeds.modality import KINDS, Modality
from tda.testbeds.tables import require_file

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
            tokenizer = Tokenizer.from_file(str(path))
        tokenizer.encode_special_tokens = True  # not kept in the file: "<eos>" written in a text is text
        return tokenizer

    @property
    def modality(self) -> Modality:
        """How testbeds of this kind are built, encoded, trained, asked and measured."""
        return KINDS[self.settings["corpus"]["kind"]]

    @cached_property
    def train(self) -> Examples:
        """The documents as tensors plus the lists ``entity`` and ``doc_id`` (and ``text``, where they are texts)."""
        return self.modality.examples(self)

    @cached_property
    def corpus_key(self) -> str:
        """Changes with everything that the corpus depends on: its settings, the seed, the committed or given
        sources, the saved model that lends its tokenizer.
        """
        return self._corpus_key(*self._made_from())

    def _made_from(self) -> list:
        """What the corpus is made from: SHA-256 of its file, and of the files of the saved model that lends its
        tokenizer.
        """
        file, tokenizer = self.modality.source(self.settings["corpus"]), self.settings["model"].get("from")
        if tokenizer:
            tokenizer = read_files(tokenizer) or tokenizer
        return [file_sha256(file) if file and file.is_file() else "", tokenizer]

    def _corpus_key(self, source: str, tokenizer: str | dict | None) -> str:
        corpus = self.settings["corpus"]
        return key_of({"corpus": corpus, "seed": self.config["seed"], "source": source, "tokenizer": tokenizer})

    def require_corpus(self) -> dict:
        """The corpus's record; builds the corpus if it is missing, or if it is of a file that has been edited since;
        refuses one that was built from other settings.
        """
        path = self.folder / "corpus" / "record.json"
        own, edited = self.modality.OWN_FILE and bool(self.config["overrides"]), False
        if own and path.exists():
            made = read_record(path, "corpus", {"testbed": self.name})
            edited = made["key"] != self.corpus_key and made["key"] == self._corpus_key(*made["made_from"])
        if own and (edited or not path.exists()) and self._corpus_key(*self._made_from()) != self.corpus_key:
            raise ArtefactError(f"{self.settings['corpus']['path']} was edited after it was loaded. Load it again.")
        if edited or not path.exists():
            build_corpus(self, anew=edited)
        return check_key(path, "corpus", self.name, self.corpus_key)


def load(name: str | os.PathLike, profile: str = "smoke", overrides: dict | None = None) -> Testbed:
    """The testbed ``name`` of a profile, or a corpus of your own: ``load("my_texts.jsonl")`` is the testbed
    ``my_texts`` (in lower case, with ``_`` for what is neither a letter nor a digit). A file that is called like a
    testbed of the profile, such as ``people.jsonl``, is the testbed ``file_people``.

    ``overrides`` changes settings, e.g. ``{"testbeds": {"people": {"corpus": {"people": 20}}}}``; everything built with
    overrides goes under ``data/scratch/`` and never touches a profile's artefacts. Settings for a corpus of your own
    stand under the testbed's name or the file's. What was built from your file is built again after you edit the file.
    Raises ``ValueError`` for an unknown name, with the names there are.
    """
    use_threads()
    if not isinstance(name, (str, os.PathLike)) or not isinstance(overrides, (dict, type(None))):
        raise ValueError(f"load({name!r}, overrides={overrides!r}): give a testbed's name or a file, and a map.")
    overrides, name = dict(overrides or {}), os.fspath(name)
    if name.lower().endswith((".jsonl", ".parquet")):
        try:  # not resolved: a link keeps the name that the user gives
            path = Path(os.path.abspath(Path(name).expanduser()))
            require_file(path)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"{name!r} cannot be a file ({error}). Give the path of a .jsonl or .parquet file."
            ) from None
        given = overrides.get("testbeds") or {}
        if isinstance(given, dict) and all(isinstance(entry, dict) for entry in given.values()):
            name, overrides["testbeds"] = _own(path, profile, given)
    config = tda.config.load(profile, overrides)
    if name not in config["testbeds"]:
        raise ValueError(
            f"testbed {name!r} is unknown in profile {config['profile']!r}; it has {sorted(config['testbeds'])}. "
            f"A file of your own must end in .jsonl or .parquet."
        )
    return Testbed(name, config, config["testbeds"][name], tda.config.data_dir(config) / name)


def _own(path: Path, profile: str, testbeds: dict) -> tuple[str, dict]:
    """Name of the testbed of a user's file, and ``testbeds`` of the overrides with its entry."""
    stem = re.sub(r"[^a-z0-9_]+", "_", path.stem.lower())
    stem = stem if stem[0].isalpha() else f"texts_{stem}"
    shipped = (tda.config.ROOT / "data" / "banks" / f"{stem}_queries.json").exists()
    name = f"file_{stem}" if shipped or stem in tda.config.load(profile)["testbeds"] else stem
    mine = testbeds.get(name) or testbeds.get(stem) or {}
    corpus = mine.get("corpus") or {}
    if not isinstance(corpus, dict) or {"kind", "path"} & set(corpus):
        raise ValueError(f"testbeds.{stem}.corpus: the file {path} says its kind and path; leave them out.")
    if unused := sorted(set(testbeds) & {path.name, path.stem} - {stem, name}):
        raise ValueError(
            f"overrides.testbeds: {unused[0]!r} is the testbed {name!r}; write its settings under that name."
        )
    entry = {**mine, "corpus": {"kind": "file", "path": str(path), **(mine.get("corpus") or {})}}
    return name, {**{other: testbeds[other] for other in testbeds if other != stem}, name: entry}


def build_corpus(testbed: Testbed, anew: bool = False) -> dict:
    """Generate or cut the corpus and write it to ``<folder>/corpus``; returns its report. Replaces what was there; with
    ``anew`` also the models and results, once the corpus could be made.
    """
    from datasets import disable_progress_bars

    disable_progress_bars()
    target = testbed.folder / "corpus"
    with exclusive(testbed.folder):
        with Stopwatch() as watch:
            built = testbed.modality.build(testbed)
        if anew:
            _clear(testbed.folder)
        remove(target / "record.json")
        contents = {part: save_rows(target / part, built[part]) for part in ("documents", "probes")}
        if "tokenizer" in built:
            built["tokenizer"].save(str(target / "tokenizer.json"))
            contents["tokenizer"] = file_sha256(target / "tokenizer.json")
        details = {"kind": "corpus", "testbed": testbed.name, "key": testbed.corpus_key, "contents": contents}
        details["made_from"] = testbed._made_from()
        made = record(testbed.settings["corpus"], testbed.config["seed"], report=built["report"], watch=watch)
        write_record(target / "record.json", made | details)
    return built["report"]


def _clear(folder: Path) -> None:
    """Remove what was made from a user's file as it was: corpus, models, queries, banks, scores."""
    for path in folder.iterdir():
        if path.name != ".lock":
            remove(path)


def check_key(path: Path, kind: str, testbed: str, key: str) -> dict:
    """The record at ``path``, refused if it is damaged, of another testbed or made from other settings than the present
    ones.
    """
    cure = f"run the workflow again (it rebuilds what changed), or delete {path.parent}"
    return read_record(path, kind, {"testbed": testbed, "key": key}, cure)


def _dataset(testbed: Testbed, part: str) -> Dataset:
    wanted, folder = testbed.require_corpus()["contents"][part], testbed.folder / "corpus" / part
    return load_rows(folder, wanted, f"delete {folder.parent} and run again")


from tda.testbeds import authors, custom, digits, people  # noqa: E402, F401 (each registers its kinds)
