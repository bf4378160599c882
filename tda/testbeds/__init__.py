"""Testbeds: a corpus with known provenance, the model trained on it, its queries and its retraining bank.

Whatever is missing on disk is built when it is first asked for, and kept. A kind of corpus is one module that registers
itself (:mod:`tda.testbeds.modality`).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import tda.config
from tda import artefacts
from tda.artefacts import ArtefactError, file_sha256, key_of, read_record, remove
from tda.config_checks import refuse
from tda.provenance import Stopwatch, record
from tda.saved import read_files
from tda.task import Examples, use_threads
from tda.testbeds import authors, custom, digits, images, people  # noqa: F401 (each registers its kinds)
from tda.testbeds.modality import KINDS, Modality

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
        """The training documents, shuffled when built (columns: doc_id, entity, and text or pixels, ...)."""
        return self._rows("documents")

    @cached_property
    def probes(self) -> Dataset:
        """Candidate queries that the corpus itself offers; the model decides which become queries."""
        return self._rows("probes")

    def _rows(self, part: str) -> Dataset:
        wanted, folder = self.require_corpus()["contents"][part], self.folder / "corpus"
        return artefacts.load_rows(folder / part, wanted, f"delete {folder} and run again")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        path, cure = self.folder / "corpus" / "tokenizer.json", f"delete {self.folder / 'corpus'} and run again"
        wanted = self.require_corpus()["contents"].get("tokenizer")
        with artefacts.reading(path, cure):
            same = file_sha256(path) == wanted
            artefacts.require(same, path, "truncated, edited or of another testbed (sha256 differs)", cure)
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
        """Changes with the settings, the seed, the sources, and the saved model that lends its tokenizer."""
        return self._corpus_key(*self._made_from())

    def _made_from(self) -> list:
        """SHA-256 of the file that the corpus is made from, and of those of the saved model that lends a tokenizer."""
        file, tokenizer = self.modality.source(self.settings["corpus"]), self.settings["model"].get("from")
        lent = tokenizer and (read_files(tokenizer) or tokenizer)
        return [file_sha256(file) if file and file.is_file() else "", lent]

    def _corpus_key(self, source: str, tokenizer: str | dict | None) -> str:
        corpus = self.settings["corpus"]
        return key_of({"corpus": corpus, "seed": self.config["seed"], "source": source, "tokenizer": tokenizer})

    def require_corpus(self) -> dict:
        """The record of the corpus, which is built if it is missing or of a file that has been edited since, and
        refused if it was built from other settings.
        """
        path = self.folder / "corpus" / "record.json"
        own, edited = self.modality.OWN_FILE and bool(self.config["overrides"]), False
        if own and path.exists():
            made = read_record(path, "corpus", {"testbed": self.name})
            edited = made["key"] != self.corpus_key and made["key"] == self._corpus_key(*made["made_from"])
        if edited or not path.exists():
            if own and self._corpus_key(*self._made_from()) != self.corpus_key:
                raise ArtefactError(f"{self.settings['corpus']['path']} was edited after it was loaded. Load it again.")
            build_corpus(self, anew=edited)
        return check_key(path, "corpus", self.name, self.corpus_key)


def load(name: str | os.PathLike, profile: str = "smoke", overrides: dict | None = None) -> Testbed:
    """The testbed ``name`` of a profile, or a corpus of your own: ``load("my_texts.jsonl")`` is the testbed
    ``my_texts`` (in lower case, with ``_`` for what is neither a letter nor a digit), built again after you edit the
    file; ``people.jsonl``, called like a testbed of the profile, is ``file_people``.

    ``overrides`` changes settings, e.g. ``{"testbeds": {"people": {"corpus": {"people": 20}}}}`` (of a corpus of your
    own under the testbed's name or the file's); everything built with overrides goes under ``data/scratch/``. Raises
    ``ValueError`` for an unknown name, with the names there are.
    """
    use_threads()
    if not isinstance(name, (str, os.PathLike)) or not isinstance(overrides, (dict, type(None))):
        raise ValueError(f"load({name!r}, overrides={overrides!r}): give a testbed's name or a file, and a map.")
    overrides, name = dict(overrides or {}), os.fspath(name)
    if name.lower().endswith((".jsonl", ".parquet")):
        try:  # not resolved: a link keeps the name that the user gives
            path = Path(os.path.abspath(Path(name).expanduser()))
            custom.require_file(path)
        except (OSError, RuntimeError) as error:
            message = f"{name!r} cannot be a file ({error}). Give the path of a .jsonl or .parquet file."
            raise ValueError(message) from None
        given = overrides.get("testbeds") or {}
        if isinstance(given, dict) and all(isinstance(entry, dict) for entry in given.values()):
            name, overrides["testbeds"] = _own(path, profile, given)
    config = tda.config.load(profile, overrides)
    check_kinds(config)
    if name not in config["testbeds"]:
        raise ValueError(
            f"testbed {name!r} is unknown in profile {config['profile']!r}; it has {sorted(config['testbeds'])}. "
            f"A file of your own must end in .jsonl or .parquet."
        )
    return Testbed(name, config, config["testbeds"][name], tda.config.data_dir(config) / name)


def check_kinds(config: dict) -> None:
    """Raises :class:`tda.config.ConfigError`, one line, for the first setting of a testbed that its kind of corpus
    refuses (:meth:`tda.testbeds.modality.Modality.check`).
    """
    faults = (
        (f"testbeds.{name}.{key}", given, f"; {allowed}")
        for name, testbed in config["testbeds"].items()
        for key, given, allowed in KINDS[testbed["corpus"]["kind"]].check(testbed)
    )
    refuse(faults, config["places"])


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
    if other := sorted(set(testbeds) & {path.name, path.stem} - {stem, name}):
        raise ValueError(f"overrides.testbeds: {other[0]!r} is the testbed {name!r}; give its settings that name.")
    entry = {**mine, "corpus": {"kind": "file", "path": str(path), **corpus}}
    return name, {**{other: testbeds[other] for other in testbeds if other != stem}, name: entry}


def build_corpus(testbed: Testbed, anew: bool = False) -> dict:
    """Make the corpus and write it to ``<folder>/corpus``, in place of what was there (``anew``: and of the models and
    results); returns its report.
    """
    target = testbed.folder / "corpus"
    with artefacts.exclusive(testbed.folder):
        with Stopwatch() as watch:
            built = testbed.modality.build(testbed)
        for path in testbed.folder.iterdir() if anew else [target / "record.json"]:
            if path.name != ".lock":
                remove(path)
        contents = {part: artefacts.save_rows(target / part, built[part]) for part in ("documents", "probes")}
        if "tokenizer" in built:
            built["tokenizer"].save(str(target / "tokenizer.json"))
            contents["tokenizer"] = file_sha256(target / "tokenizer.json")
        details = {"kind": "corpus", "testbed": testbed.name, "key": testbed.corpus_key, "contents": contents}
        details |= {"made_from": testbed._made_from(), "report": built["report"]}
        made = record(testbed.settings["corpus"], testbed.config["seed"], watch=watch, **details)
        artefacts.write_record(target / "record.json", made)
    return built["report"]


def check_key(path: Path, kind: str, testbed: str, key: str) -> dict:
    """The record at ``path``, refused if it is damaged, of another testbed or made from other settings than now."""
    cure = f"run the workflow again (it rebuilds what changed), or delete {path.parent}"
    return read_record(path, kind, {"testbed": testbed, "key": key}, cure)
