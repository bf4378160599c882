"""Damage every kind of artefact in every way that files get damaged, and read it: ``python tests/corruption.py``.

A tiny testbed is built in a temporary folder, and a second one (another seed) as the source of foreign files. Then
one artefact at a time is truncated, flipped, swapped, edited with and without its checksum, or replaced by something
else; the step that would consume it reads it; everything is restored. Allowed outcomes: one ``ArtefactError`` that
names the file and a cure, or the right content (where a reader rebuilds it). Anything else makes the script exit with
1: ``SILENT`` (wrong content went through), ``RAW`` (another exception), ``UNNAMED`` (no file or no cure is named).
Takes a minute or two on one core. ``--only`` keeps the cases whose label holds a text, ``--list`` names them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
from conftest import make_testbed
from ship_banks import pin, ship

from tda import bank, evidence, measures, models, queries, retrain, scores, tuning
from tda.artefacts import SEAL, ArtefactError, digest, file_sha256, save_arrays, save_sealed, write_json, write_record
from tda.evaluation import removal
from tda.evaluation.intervals import Interval
from tda.task import use_threads
from tda.testbeds import Testbed

ROWS = [
    {"id": "gradient_dot", "method": "gradient_dot", "notebook": "04_first_methods"},
    {"id": "bm25", "method": "bm25", "notebook": "04_first_methods"},
    {"id": "fisher", "method": "fisher_influence", "notebook": "20_influence", "tune": {"damping": [3.0, 1e6]}},
]
CLAIM = {"id": "one", "notebook": "20_influence", "metric": "finding_one", "row": "", "against": ""}
CURE = re.compile(r"delete|chmod|git checkout|[Rr]un .* again|run the step")


@dataclass
class World:
    """A folder with testbed, banks, figures and committed files; ``bed()`` opens it anew, with nothing remembered."""

    home: Path
    seed: int = 0
    bank: str = "rebuild"
    small: bool = False  # only a source of foreign files
    loaded: Testbed | None = None

    def bed(self):
        for cached in (models.load_queries, models._task):
            cached.cache_clear()
        changes = {"training": {"seeds": 2}, "designs": {"leave_group": {"groups": 3, "seeds": 2, "shards": 1}}}
        settings = {"seed": self.seed, "bank": self.bank, "rows": ROWS, "claims": []}
        if self.loaded is None:
            self.loaded = make_testbed(self.home / "people", changes, **settings)
        return replace(self.loaded)

    def __enter__(self):
        banks, self.patches = self.home / "data" / "banks", []
        shipped = lambda testbed, name: banks / f"{testbed.name}_{name}.npz"  # noqa: E731
        for owner, name, value in (
            (bank, "shipped_path", shipped),
            (queries, "config", SimpleNamespace(ROOT=self.home)),
            (evidence, "figures_dir", lambda config: self.home / "figures"),
        ):
            self.patches.append(patch.object(owner, name, value))
            self.patches[-1].start()
        return self

    def __exit__(self, *_):
        for one in self.patches:
            one.stop()

    def build(self) -> None:
        bed = self.bed()
        models.train_base(bed)
        if self.small:
            del bed.settings["designs"]["leave_group"]
        for design in bed.settings["designs"]:
            bank.merge(bed, design)
        measures.write(bed, [row["id"] for row in ROWS])
        if not self.small:
            planned = measures.removals(bed)
            removal.merge(bed, planned)
            lines = measures._kept(bed, ["gradient_dot"])[0].head(2)
            removal.save_table(bed, planned, lines.assign(metric="removal_3"))
        for value, row in enumerate(("20_influence", "21_better_hessians"), 10 * self.seed):
            evidence.save_findings(
                row, bed.config, bed, {f"finding_{n}": Interval(value, value - 1, value + 1) for n in ("one", "two")}
            )
        ship(bed)


@dataclass(frozen=True)
class Artefact:
    """``path``, how the step that consumes it reads it, and files of the same kind that are not it (label -> path)."""

    name: str
    path: Path
    read: Callable[[World], object]
    foreign: dict[str, Path]
    world: World


def artefacts(here: World, other: World) -> Iterator[Artefact]:
    """Every kind of artefact that a later step reads."""
    bed = here.bed()
    folder, away = bed.folder, other.home / "people"
    plan, group = bank.design(bed, "half"), bank.design(bed, "leave_group")
    at = [retrain.cached_path(bed, plan.subsets[m], plan.seeds[r], plan.how) for m, r in ((0, 0), (1, 0), (0, 1))]
    paired = retrain.cached_path(bed, group.subsets[0], group.seeds[0], group.how)
    steps = sorted(path.name for path in (folder / "model" / "seed_0").glob("*.safetensors"))
    run = lambda seed: lambda w: _run(models.load_task(w.bed(), seed).run)  # noqa: E731
    one = lambda w: retrain.retrained(w.bed(), plan.subsets[0], plan.seeds[0], plan.how).outputs  # noqa: E731
    stranger = next(iter((away / "retrained").rglob("*.npz")))

    def add(name: str, place: str, read: Callable, foreign: dict[str, Path] | None = None, world: World = here):
        there = {"of another testbed": other.home / place} if (other.home / place).exists() else {}
        return Artefact(name, here.home / place, read, there | (foreign or {}), world)

    yield add("corpus record", "people/corpus/record.json", lambda w: w.bed().require_corpus()["contents"])
    yield add("documents", "people/corpus/documents", lambda w: w.bed().documents.to_list())
    yield add("probes", "people/corpus/probes", lambda w: w.bed().probes.to_list())
    yield add("tokenizer", "people/corpus/tokenizer.json", lambda w: w.bed().tokenizer.to_str())
    yield add("queries", "people/queries", lambda w: models.query_rows(w.bed()))
    yield add("model record", "people/model/record.json", lambda w: models.base_record(w.bed())["queries_sha256"])
    for step, near in ((steps[0], steps[1]), (steps[1], steps[2]), (steps[-1], steps[1])):
        more = {"of another seed": folder / "model/seed_1" / step, "of another step": folder / "model/seed_0" / near}
        yield add(f"checkpoint {step[5:11]}", f"people/model/seed_0/{step}", run(0), more)
    more = {"of another mask": at[1], "of another seed": at[2], "masked": paired, "of another testbed": stranger}
    yield add("retrained model", str(at[0].relative_to(here.home)), one, more)
    for design, wrong in (("half", "leave_group"), ("leave_group", "half")):
        read = lambda w, design=design: _bank(bank.load(w.bed(), design))  # noqa: E731
        more = {"of another design": folder / f"bank_{wrong}.npz"}
        yield add(f"bank {design}", f"people/bank_{design}.npz", read, more)
        read = lambda w, design=design: _bank(bank.take_shipped(w.bed(), design)[0])  # noqa: E731
        more = {"of another design": here.home / f"data/banks/people_{wrong}.npz"}
        place = f"data/banks/people_{design}.npz"
        yield add(f"shipped bank {design}", place, read, more, World(here.home, bank="shipped"))
    asked = lambda w: queries.choose(w.bed(), None, None)[0]  # noqa: E731
    yield add("shipped queries", "data/banks/people_queries.json", asked, world=World(here.home, bank="shipped"))
    yield add("removals", "people/removals.npz", lambda w: (b := w.bed()) and removal.load(b, measures.removals(b)))
    near = {"of another row": folder / "scores/bm25.npz"}
    yield add("scores", "people/scores/gradient_dot.npz", lambda w: scores.load(w.bed(), "gradient_dot")[0], near)
    tuned = lambda w: tuning.tuned(b := w.bed(), tuning.row_of(b, "fisher"))["options"]  # noqa: E731
    yield add("tuned choice", "people/tuned/fisher.json", tuned)
    table = lambda w: [frame.to_csv() for frame in measures.of_testbed(w.bed())]  # noqa: E731
    yield add("metrics", "people/metrics/gradient_dot.csv", table, {"of another row": folder / "metrics/bm25.csv"})
    near = {"of a row": folder / "metrics/gradient_dot.csv"}
    removed = lambda w: removal.load_table(b := w.bed(), measures.removals(b)).to_csv()  # noqa: E731
    yield add("removal table", "people/metrics/removal.csv", removed, near)
    near = {"of another chapter": here.home / "figures/tables/21_findings_people.csv"}
    found = lambda w: tuple(vars(evidence.interval_of(CLAIM, (b := w.bed()).config, b)).values())  # noqa: E731
    yield add("findings", "figures/tables/20_findings_people.csv", found, near)


def _arrays(fields: dict) -> dict:
    return {k: v.numpy().tolist() if hasattr(v, "numpy") else np.asarray(v).tolist() for k, v in fields.items()}


def _bank(held) -> dict:
    return {k: np.asarray(v).tolist() for k, v in vars(held).items() if k != "record"}


def _run(run) -> list:
    moments = [run.initial, *run.checkpoints]
    return [(c.step, c.lr, c.lr_sum, *map(_arrays, (c.params, *c.optimizer.values()))) for c in moments]


def _unlink(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def damages(one: Artefact) -> Iterator[tuple[str, Callable[[], object]]]:
    """``(label, what is done to the file)`` for everything that can happen to an artefact of this form."""
    path, beside = one.path, one.path.with_name(one.path.name + ".json")
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in (".arrow", ".json"))
    for file in files:
        content, label = file.read_bytes(), "" if file == path else f"{file.name} "
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        yield f"{label}truncated", lambda f=file, c=content: f.write_bytes(c[: len(c) // 2])
        yield f"{label}empty", lambda f=file: f.write_bytes(b"")
        yield f"{label}one bit flipped", lambda f=file, c=bytes(flipped): f.write_bytes(c)
        yield f"{label}something else", lambda f=file: f.write_bytes(b"something else\n")
    yield "lost", lambda: _unlink(path)
    yield "a folder in its place" if path.is_file() else "a file in its place", lambda: _swap(path)
    yield "a broken link", lambda: (_unlink(path), path.symlink_to(path.with_name("nowhere")))
    yield "not readable", lambda: patch("os.access", lambda p, mode: Path(p) != path)
    for label, source in one.foreign.items():
        yield label, lambda s=source: _copy(s, path, beside=False)
        if source.with_name(source.name + ".json").exists():
            yield f"{label}, with its record", lambda s=source: _copy(s, path, beside=True)
    record = beside if beside.exists() else path if path.suffix == ".json" and "tokenizer" not in path.name else None
    if record:
        yield "record null", lambda: record.write_text("null")
        yield "record a list", lambda: record.write_text("[1]")
        yield "record of nothing", lambda: record.write_text("{}")
        yield "record edited", lambda: _edit(record, one.name)
        yield "record a folder", lambda: _swap(record)
    if record == beside:
        yield "record lost", beside.unlink
    if path.suffix == ".npz":
        yield from _inside(one, path, beside)
    if path.suffix == ".csv":
        lines = path.read_text().splitlines(keepends=True)
        swapped = "".join([lines[0].replace("value", "worth"), *lines[1:]])
        for label, text in (
            ("last line dropped", "".join(lines[:-1])),
            ("a value edited", re.sub(r"(\d)(?=[^\d]*$)", lambda m: str((int(m[1]) + 1) % 10), "".join(lines))),
            ("only its header", lines[0]),
            ("a column renamed", swapped),
        ):
            yield label, lambda t=text: path.write_text(t)
            if label in ("only its header", "a column renamed"):
                yield f"{label}, checksums recomputed", lambda t=text: (path.write_text(t), _reseal(beside, path))


def _inside(one: Artefact, path: Path, beside: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What only the content can tell: all checksums are made to agree."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    record = json.loads(beside.read_text() if beside.exists() else str(arrays.pop("record")))
    main = next(name for name in ("outputs", "scores", "codes") if name in arrays)
    values = arrays[main]
    changes = {"values not finite": np.full_like(values, np.nan), "another type": values.astype(np.float64)}
    changes |= {"another shape": values[:-1]}
    if one.name.startswith("shipped"):
        changes |= {"values doubled": 2 * values, "values reversed": values[..., ::-1], "values shifted": values + 1}
    changed = {label: {main: new} for label, new in changes.items()}
    if "subsets" in arrays:
        whole = arrays["subsets"].astype(np.int64)
        changed |= {"subsets as numbers": {"subsets": whole}, "subsets reordered": {"subsets": arrays["subsets"][::-1]}}
        changed |= {
            "other seeds": {"seeds": arrays["seeds"] + 1},
            "labels reordered": {"labels": arrays["labels"][::-1]},
        }
    changed["an array missing"] = {main: None}
    for label, new in changed.items():
        kept = {name: value for name, value in (arrays | new).items() if value is not None}
        write = save_arrays if beside.exists() else save_sealed
        pinned = [path, beside] if one.name.startswith("shipped") else []
        yield f"{label}, checksums recomputed", lambda k=kept, w=write, p=pinned: (w(path, k, record), p and pin(p))
    if beside.exists():
        yield (
            "pickled objects, checksums recomputed",
            lambda: (
                np.savez(path, **arrays | {main: np.array([{"a": 1}])}),
                _reseal(beside, path),
            ),
        )
    if one.name.startswith("shipped"):
        doubled = arrays | {main: 2 * values}
        yield "values doubled, its record recomputed", lambda: save_arrays(path, doubled, record)
        yield "the index lost", (path.parent / "index.json").unlink


def _swap(path: Path) -> None:
    was_folder = path.is_dir()
    _unlink(path)
    path.write_text("a file") if was_folder else path.mkdir()


def _copy(source: Path, path: Path, beside: bool) -> None:
    _unlink(path)
    shutil.copytree(source, path) if source.is_dir() else shutil.copy(source, path)
    if beside:
        shutil.copy(f"{source}.json", f"{path}.json")


def _edit(record: Path, name: str) -> None:
    """Another key; for a tuned choice (where another key is chosen anew) another choice."""
    held = json.loads(record.read_text())
    if isinstance(held, list):
        held[0]["text"] += "!"
    elif name == "tuned choice":
        held["options"] = {"damping": 7.0}
    else:
        held["key"] = "0" * 12
    write_json(record, held)


def _reseal(beside: Path, path: Path) -> None:
    held = json.loads(beside.read_text()) | {"sha256": file_sha256(path)}
    write_record(beside, {k: v for k, v in held.items() if k != SEAL})


def judge(one: Artefact, label: str, damage: Callable[[], object], right: str) -> tuple[str, str]:
    """``(outcome, message)`` of reading a damaged artefact; ``refused`` and ``right`` are allowed."""
    done = damage()
    during = done if label == "not readable" else contextlib.nullcontext()
    try:
        with during:
            return ("right" if digest(one.read(one.world)) == right else "SILENT"), ""
    except ArtefactError as error:
        places = {one.path.name, one.path.name + ".json", "index.json"}
        named = any(place in str(error) for place in places) and CURE.search(str(error))
        return ("refused" if named else "UNNAMED"), str(error)
    except Exception as error:
        return "RAW", repr(error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="cases whose label holds this text")
    parser.add_argument("--list", action="store_true", help="name the cases, damage nothing")
    parser.add_argument("--messages", action="store_true", help="print every message")
    given = parser.parse_args()
    use_threads()
    began, counts, broken = time.perf_counter(), Counter(), Counter()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        here, other, spare = World(root / "here"), World(root / "other", seed=1, small=True), root / "spare"
        for world in (other, here):
            with world:
                world.build()
        shutil.copytree(here.home, spare, symlinks=True)
        print(f"built in {time.perf_counter() - began:.0f} s", flush=True)
        with here:
            for one in list(artefacts(here, other)):
                right, outcomes = digest(one.read(one.world)), Counter()
                for label, damage in list(damages(one)):
                    case = f"{one.name}: {label}"
                    if given.only not in case:
                        continue
                    if given.list:
                        print(case)
                        continue
                    outcome, message = judge(one, label, damage, right)
                    shutil.rmtree(here.home)
                    shutil.copytree(spare, here.home, symlinks=True)
                    outcomes[outcome] += 1
                    if given.messages or outcome not in ("refused", "right"):
                        print(f"  {outcome}: {case}: {message.replace(str(root), '')}", flush=True)
                counts += outcomes
                broken[one.name] = sum(outcomes.values())
                print(f"{one.name}: " + ", ".join(f"{n} {what}" for what, n in sorted(outcomes.items())), flush=True)
    bad = sum(n for what, n in counts.items() if what not in ("refused", "right"))
    print(
        f"{sum(counts.values())} damaged artefacts of {len(broken)} kinds: {counts['refused']} refused by name and with"
    )
    print(f"a cure, {counts['right']} give the right content, {bad} wrong; {time.perf_counter() - began:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
