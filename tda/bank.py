"""The retraining bank: models retrained on designed subsets of the documents, and their losses on every query.

Which subsets those are is said in :mod:`tda.designs`. A bank file holds ``subsets`` bool [M, N], ``outputs`` and (where
queries have a second output) ``outputs_second`` float32 [M, R, Q], ``base`` [R, Q] (paired designs), ``labels`` [M],
``seeds`` [R], ``tokens``, ``query_set`` and ``split`` [Q].
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tda import config, models
from tda.artefacts import (
    atomic,
    file_sha256,
    key_of,
    load_arrays,
    read_json,
    require,
    save_arrays,
    write_json,
    write_record,
)
from tda.designs import Design, design
from tda.provenance import Stopwatch, record
from tda.retrain import retrain_all, retrained, training_seconds, truth_key
from tda.testbeds import Testbed


@dataclass(frozen=True)
class Bank:
    """A finished bank; ``outputs`` are the main loss, ``outputs_second`` is ``None`` where there is no other. See the
    module's text for shapes.
    """

    design: str
    subsets: np.ndarray
    outputs: np.ndarray
    outputs_second: np.ndarray | None
    labels: list[str]
    seeds: np.ndarray
    query_set: np.ndarray
    split: np.ndarray
    base: np.ndarray | None
    record: dict


def run_shard(
    testbed: Testbed, name: str, shard: int, progress: Callable[[str], None] | None = None
) -> dict[str, float]:
    """Train every ``shards``-th model of a design, starting at ``shard``; what is already cached is kept.

    Writes the marker ``bank_<name>.parts/shard<shard>.json`` last. Returns counts and cost.
    """
    plan = design(testbed, name)
    shards = testbed.settings["designs"][name]["shards"]
    if not 0 <= shard < shards:
        raise ValueError(f"shard={shard}; design {name!r} has {shards} shards, numbered from 0.")
    mine = plan.models()[shard::shards]
    with Stopwatch() as watch:
        done = retrain_all(testbed, mine, plan.how, name, progress)
    summary = {"models": len(mine), "training_seconds": training_seconds(done), "flops": sum(d.flops for d in done)}
    write_json(
        testbed.folder / f"bank_{name}.parts" / f"shard{shard}.json",
        record({"design": name, "shard": shard}, plan.seeds, watch=watch, **summary),
    )
    return summary


def merge(testbed: Testbed, name: str, progress: Callable[[str], None] | None = None) -> Bank:
    """Collect the models of all shards into ``bank_<name>.npz`` (training any that is missing) and return the bank."""
    plan = design(testbed, name)
    done = retrain_all(testbed, plan.models(), plan.how, name, progress)
    m, r = plan.subsets.shape[0], len(plan.seeds)
    losses = np.stack([d.outputs for d in done]).reshape(-1, r, *done[0].outputs.shape)  # [M (+1), R, outputs, Q]
    rows = models.query_rows(testbed)
    arrays = {
        "subsets": plan.subsets,
        "outputs": losses[:m, :, 0],
        "labels": np.array(plan.labels),
        "seeds": np.array(plan.seeds),
        "tokens": testbed.modality.targets(models.query_examples(testbed)),
        "query_set": np.array([row["query_set"] for row in rows]),
        "split": np.array([row["split"] for row in rows]),
    }
    if losses.shape[2] > 1:
        arrays["outputs_second"] = losses[:m, :, 1]
    if plan.how == "mask":
        arrays["base"] = losses[m, :, 0]
    cost = {
        "training_seconds": training_seconds(done),
        "flops": sum(d.flops for d in done),
        "knowledge": {name: float(np.mean([d.knowledge[name] for d in done[: m * r]])) for name in done[0].knowledge},
        "retrainings": len(done),
    }
    made = record(testbed.settings["designs"][name], plan.seeds, key=bank_key(testbed, name), how=plan.how, **cost)
    about = {"kind": "bank", "testbed": testbed.name, "design": name}
    save_arrays(testbed.folder / f"bank_{name}.npz", arrays, made | about)
    return load(testbed, name)


def bank_key(testbed: Testbed, name: str) -> str:
    settings = {k: v for k, v in testbed.settings["designs"][name].items() if k != "shards"}
    return key_of([truth_key(testbed), testbed.config["seed"], name, settings])


def load(testbed: Testbed, name: str) -> Bank:
    """The bank of a design; retrained first if it is missing (or taken from ``data/banks`` under ``bank: shipped``)."""
    path = testbed.folder / f"bank_{name}.npz"
    if not path.exists():
        return take_shipped(testbed, name)[0] if testbed.config["bank"] == "shipped" else merge(testbed, name)
    cure = f"delete {path.name} and {path.name}.json and run the workflow (or this cell) again"
    return _read(testbed, design(testbed, name), path, cure)


def _read(testbed: Testbed, plan: Design, path: Path, cure: str, shipped: bool = False) -> Bank:
    """The bank at ``path``, which must be the one that ``plan`` asks for: subsets, seeds, labels and queries too."""
    expect = {"key": bank_key(testbed, plan.name)}  # which holds the design; older files say no more
    if not shipped:
        expect |= {"testbed": testbed.name, "design": plan.name}
    rows = models.query_rows(testbed)
    wanted = {"subsets": plan.subsets, "labels": plan.labels, "seeds": plan.seeds}
    wanted |= {name: [row[name] for row in rows] for name in ("query_set", "split")}
    m, (r, q) = len(plan.subsets), (len(plan.seeds), len(rows))
    shapes = {"outputs": (m, r, q)}
    if testbed.modality.second_output(testbed) is not None:
        shapes["outputs_second"] = (m, r, q)
    if plan.how == "mask":
        shapes["base"] = (r, q)
    arrays, made = load_arrays(path, "bank", [*wanted, *shapes], expect, cure, pinned=shipped)
    for name, value in wanted.items():
        same = np.array_equal(arrays[name], value) and arrays[name].dtype.kind == np.asarray(value).dtype.kind
        require(same, path, f"holds other {name} than the config draws", cure)
    for name, shape in shapes.items():
        held = arrays[name]
        fits = held.shape == shape and held.dtype == np.float32 and np.isfinite(held).all()
        require(fits, path, f"its {name} are not finite float32 losses {list(shape)}", cure)
    fields = {k: arrays[k] for k in ("subsets", "outputs", "seeds", "query_set", "split")}
    optional = {k: arrays.get(k) for k in ("outputs_second", "base")}
    return Bank(plan.name, **fields, **optional, labels=arrays["labels"].tolist(), record=made)


def shipped_path(testbed: Testbed, name: str) -> Path:
    return config.ROOT / "data" / "banks" / f"{testbed.name}_{name}.npz"


SHIPPED = "restore the committed files (git checkout data/banks) or retrain (--config bank=rebuild)"


def take_shipped(testbed: Testbed, name: str, check: int = 2) -> tuple[Bank, float]:
    """Take over the committed bank, after retraining ``check`` of its subsets (and the full run of a paired design)
    with its first seed. Returns it with their largest loss difference.

    Raises :class:`ArtefactError` where a file is not the one that ``data/banks/index.json`` lists, and where a
    retrained model is not the shipped one (:func:`disagreement`).
    """
    plan, path, worst = design(testbed, name), shipped_path(testbed, name), 0.0
    bank = _read(testbed, plan, path, SHIPPED, shipped=True)
    chosen = np.random.default_rng([testbed.config["seed"], 33]).permutation(bank.subsets.shape[0])[:check]
    pairs = [(f"model {m}", plan.subsets[m], (bank.outputs[m], _of(bank.outputs_second, m))) for m in chosen]
    if bank.base is not None:
        pairs.append(("the full run", np.ones(bank.subsets.shape[1], bool), (bank.base, None)))
    for label, mask, held in pairs:
        again = retrained(testbed, mask, plan.seeds[0], plan.how).outputs
        for here, there, of_bank in zip(again, held, (bank.outputs, bank.outputs_second), strict=False):
            if there is not None:
                worst = max(worst, float(np.abs(here - there[0]).max()))
                problem = disagreement(here, there[0], of_bank)
                require(not problem, path, f"{label} retrained here is not the shipped one: {problem}", SHIPPED)
    target = testbed.folder / f"bank_{name}.npz"
    about = {"testbed": testbed.name, "design": name}
    with atomic(target) as temporary:
        shutil.copyfile(path, temporary)
        write_record(target.with_name(target.name + ".json"), bank.record | about)
    return bank, worst


def _of(outputs: np.ndarray | None, m: int) -> np.ndarray | None:
    return None if outputs is None else outputs[m]


def disagreement(again: np.ndarray, shipped: np.ndarray, outputs: np.ndarray) -> str:
    """Why losses [Q] of a retrained model cannot be those of the same model in a bank ``outputs`` [M, R, Q]; empty if
    they can.

    Floating point differs between processors and a thousand steps amplify it, so equality cannot be asked for. But the
    same model elsewhere starts from the same parameters and sees the same batches: it is nearer to itself than another
    seed is. Its losses must correlate above 0.9 with the shipped ones, and differ from them in root mean square, in
    their mean and in the logarithm of their spread by no more than any two seeds of one subset do.
    """
    x, y, all_of = (np.asarray(v, np.float64) for v in (again, shipped, outputs))
    agreement = float(np.corrcoef(x, y)[0, 1])
    if not agreement > 0.9:
        return f"its losses correlate {agreement:.2f} (at least 0.9 is asked)"
    one, other = np.triu_indices(all_of.shape[1], 1)
    for what, distance in DISTANCES.items():
        found = float(distance(x, y))
        most = float(distance(all_of[:, one], all_of[:, other]).max()) + 1e-3  # rounding, where seeds hardly matter
        if not found <= most:
            return f"{what} differs by {found:.3f} (two seeds of one subset: at most {most:.3f})"
    return ""


DISTANCES = {
    "every loss (root mean square)": lambda x, y: np.sqrt(((x - y) ** 2).mean(-1)),
    "the mean loss": lambda x, y: np.abs(x.mean(-1) - y.mean(-1)),
    "the spread of the losses (logarithm)": lambda x, y: np.abs(np.log(x.std(-1) / y.std(-1))),
}


def ship(testbed: Testbed) -> list[Path]:
    """Copy a testbed's banks and the queries they were measured on to ``data/banks``, to be committed, and list their
    checksums in its ``index.json``.
    """
    paths = []
    for name in testbed.settings["designs"]:
        load(testbed, name)
        for suffix in ("", ".json"):
            with atomic(Path(f"{shipped_path(testbed, name)}{suffix}")) as temporary:
                shutil.copyfile(f"{testbed.folder / f'bank_{name}.npz'}{suffix}", temporary)
            paths.append(Path(f"{shipped_path(testbed, name)}{suffix}"))
    paths.append(write_json(shipped_path(testbed, "queries").with_suffix(".json"), models.query_rows(testbed)))
    return [*paths, pin(paths)]


def pin(paths: list[Path]) -> Path:
    """List the SHA-256 of committed files of one folder in its ``index.json`` (:func:`tda.artefacts.check_pinned`)."""
    index = paths[0].parent / "index.json"
    known = read_json(index) if index.exists() else {}
    return write_json(index, known | {path.name: file_sha256(path) for path in paths})
