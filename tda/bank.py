"""The retraining bank: models retrained on designed subsets of the documents, and their losses on every query.

- ``half``: random subsets of a fixed share of the documents, trained for the same number of epochs;
- ``leave_<n>``: random subsets with a small share left out, masked and paired with full runs of the same seed;
- ``leave_group``: one planted group left out at a time, masked and paired likewise.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tda import artefacts, config, models
from tda.artefacts import atomic, key_of, require, write_json
from tda.designs import bank_seeds, random_subsets
from tda.provenance import Stopwatch, record
from tda.retrain import Retrained, retrain_all, retrained, truth_key
from tda.testbeds import Testbed

SHIPPED = "restore the committed files (git checkout data/banks) or retrain (--config bank=rebuild)"


@dataclass(frozen=True)
class Design:
    """Which models to retrain: subsets bool [M, N], one label each, R seeds, and how a subset is applied."""

    name: str
    subsets: np.ndarray
    labels: list[str]
    seeds: list[int]
    how: str

    def models(self) -> list[tuple[np.ndarray, int]]:
        """(mask, seed) of every model; paired designs end with the full runs."""
        full = [np.ones(self.subsets.shape[1], bool)] if self.how == "mask" else []
        return [(mask, seed) for mask in [*self.subsets, *full] for seed in self.seeds]


@dataclass(frozen=True)
class Bank:
    """A finished bank: ``outputs`` float32 [M, R, Q], the main losses, and ``outputs_second``, where queries have a
    second one; ``base`` [R, Q], the full runs of a paired design. Its file holds the same.
    """

    design: str
    subsets: np.ndarray
    labels: list[str]
    seeds: np.ndarray
    query_set: np.ndarray
    split: np.ndarray
    outputs: np.ndarray
    record: dict
    outputs_second: np.ndarray | None = None
    base: np.ndarray | None = None


def design(testbed: Testbed, name: str) -> Design:
    """The design ``name`` of a testbed's config, drawn from the config's seed. ``ValueError`` if there is none."""
    designs = testbed.settings["designs"]
    if name not in designs:
        raise ValueError(f"testbed {testbed.name!r} has no design {name!r}; its config names {sorted(designs)}.")
    settings, n = designs[name], len(testbed.documents)
    seeds = bank_seeds(testbed, settings["seeds"])
    if name == "leave_group":
        groups = planted_groups(testbed, settings["groups"])
        subsets = np.ones((len(groups), n), bool)
        for row, members in zip(subsets, groups.values(), strict=True):
            row[members] = False
        return Design(name, subsets, list(groups), seeds, "mask")
    subsets = random_subsets(testbed, name)
    labels = [f"subset {i}" for i in range(len(subsets))]
    return Design(name, subsets, labels, seeds, "filter" if name == "half" else "mask")


def planted_groups(testbed: Testbed, wanted: int) -> dict[str, list[int]]:
    """``label -> document indices``: sorts of group in turn, all about test queries, which are those reported."""
    rng = np.random.default_rng([testbed.config["seed"], 32])
    asked = [row for row in models.query_rows(testbed) if row["split"] == "test"]
    pools = [[(k, pool[k]) for k in rng.permutation(sorted(pool))] for pool in testbed.modality.groups(testbed, asked)]
    turns = [pool[i] for i in range(max(map(len, pools), default=0)) for pool in pools if i < len(pool)]
    groups = {str(label): members for label, members in turns if len(members) < len(testbed.documents)}
    if len(groups) < 2:
        raise ValueError(
            f"testbed {testbed.name!r} has {len(groups)} groups to leave out; leave_group needs at least 2. Give the "
            f"documents an 'entity' or 'group' column, or remove the design from the config."
        )
    return dict(list(groups.items())[:wanted])


def run_shard(testbed: Testbed, name: str, shard: int, progress: Callable[[str], None] | None = None) -> dict:
    """Train every ``shards``-th model of a design, starting at ``shard``; mark the shard as done, return cost."""
    plan, shards = design(testbed, name), testbed.settings["designs"][name]["shards"]
    if not 0 <= shard < shards:
        raise ValueError(f"shard={shard}; design {name!r} has {shards} shards, numbered from 0.")
    mine = plan.models()[shard::shards]
    with Stopwatch() as watch:
        summary = {"models": len(mine), **_cost(retrain_all(testbed, mine, plan.how, name, progress))}
    made = record({"design": name, "shard": shard}, plan.seeds, watch=watch, **summary)
    write_json(testbed.folder / f"bank_{name}.parts" / f"shard{shard}.json", made)
    return summary


def _cost(done: list[Retrained]) -> dict[str, float]:  # core-seconds of training, whenever that was
    return {"training_seconds": float(sum(d.seconds for d in done)), "flops": sum(d.flops for d in done)}


def merge(testbed: Testbed, name: str, progress: Callable[[str], None] | None = None) -> Bank:
    """Collect the models of all shards into ``bank_<name>.npz`` (training any that is missing) and return the bank."""
    plan, rows = design(testbed, name), models.query_rows(testbed)
    done = retrain_all(testbed, plan.models(), plan.how, name, progress)
    m, r = plan.subsets.shape[0], len(plan.seeds)
    losses = np.stack([d.outputs for d in done]).reshape(-1, r, *done[0].outputs.shape)  # [M (+1), R, outputs, Q]
    arrays = {name: np.array(value) for name, value in _drawn(plan, rows).items()}
    arrays |= {"outputs": losses[:m, :, 0], "tokens": testbed.modality.targets(models.query_examples(testbed))}
    if losses.shape[2] > 1:
        arrays["outputs_second"] = losses[:m, :, 1]
    if plan.how == "mask":
        arrays["base"] = losses[m, :, 0]
    knowledge = {kind: float(np.mean([d.knowledge[kind] for d in done[: m * r]])) for kind in done[0].knowledge}
    about = {"kind": "bank", "testbed": testbed.name, "design": name, "key": bank_key(testbed, name), "how": plan.how}
    about |= {"knowledge": knowledge, "retrainings": len(done), **_cost(done)}
    made = record(testbed.settings["designs"][name], plan.seeds, **about)
    artefacts.save_arrays(testbed.folder / f"bank_{name}.npz", arrays, made)
    return load(testbed, name)


def _drawn(plan: Design, rows: list[dict]) -> dict:
    """What a bank holds besides losses: subsets and queries."""
    drawn = {"subsets": plan.subsets, "labels": plan.labels, "seeds": plan.seeds}
    return drawn | {name: [row[name] for row in rows] for name in ("query_set", "split")}


def bank_key(testbed: Testbed, name: str) -> str:
    settings = {k: v for k, v in testbed.settings["designs"][name].items() if k != "shards"}
    return key_of([truth_key(testbed), testbed.config["seed"], name, settings])


def load(testbed: Testbed, name: str) -> Bank:
    """The bank of a design; retrained first if it is missing (or taken from ``data/banks`` under ``bank: shipped``)."""
    path = testbed.folder / f"bank_{name}.npz"
    if not path.exists():
        return take_shipped(testbed, name)[0] if testbed.config["bank"] == "shipped" else merge(testbed, name)
    cure = f"delete {path.name} and {path.name}.json and run the workflow (or this cell) again"
    return _read(testbed, design(testbed, name), path, cure, {"testbed": testbed.name, "design": name})


def _read(testbed: Testbed, plan: Design, path: Path, cure: str, about: dict | None = None) -> Bank:
    """The bank at ``path``, refused unless it is the one of ``plan``; a shipped one has no ``about``, but is pinned."""
    drawn = _drawn(plan, models.query_rows(testbed))
    m, r, q = (len(drawn[name]) for name in ("subsets", "seeds", "split"))
    shapes = {"outputs": (m, r, q)}
    if testbed.modality.SECOND:
        shapes["outputs_second"] = (m, r, q)
    if plan.how == "mask":
        shapes["base"] = (r, q)
    expect = {"key": bank_key(testbed, plan.name), **(about or {})}
    arrays, made = artefacts.load_arrays(path, "bank", [*drawn, *shapes], expect, cure, pinned=about is None)
    for name, value in drawn.items():
        same = np.array_equal(arrays[name], value) and arrays[name].dtype.kind == np.asarray(value).dtype.kind
        require(same, path, f"holds other {name} than the config draws", cure)
    for name, shape in shapes.items():
        held = arrays[name]
        fits = held.shape == shape and held.dtype == np.float32 and np.isfinite(held).all()
        require(fits, path, f"its {name} are not finite float32 losses {list(shape)}", cure)
    fields = {name: arrays[name] for name in [*drawn, *shapes]} | {"labels": plan.labels}
    return Bank(plan.name, record=made, **fields)


def shipped_path(testbed: Testbed, name: str) -> Path:
    return config.ROOT / "data" / "banks" / f"{testbed.name}_{name}.npz"


def take_shipped(testbed: Testbed, name: str, check: int = 2) -> tuple[Bank, float]:
    """The committed bank, taken over after retraining ``check`` of its subsets (and the full run of a paired design)
    with its first seed, and their largest loss difference. Raises :class:`ArtefactError` where a file is not the one
    that ``data/banks/index.json`` lists, and where a retrained model is not the shipped one (:func:`disagreement`).
    """
    plan, path, worst = design(testbed, name), shipped_path(testbed, name), 0.0
    bank = _read(testbed, plan, path, SHIPPED)
    banks = [losses for losses in (bank.outputs, bank.outputs_second) if losses is not None]
    order = np.random.default_rng([testbed.config["seed"], 33]).permutation(len(plan.subsets))
    pairs = [(f"model {m}", plan.subsets[m], [losses[m] for losses in banks]) for m in order[:check]]
    if bank.base is not None:
        pairs.append(("the full run", np.ones(bank.subsets.shape[1], bool), [bank.base]))
    for label, mask, shipped in pairs:
        again = retrained(testbed, mask, plan.seeds[0], plan.how).outputs
        for here, there, of_bank in zip(again, shipped, banks, strict=False):
            worst = max(worst, float(np.abs(here - there[0]).max()))
            problem = disagreement(here, there[0], of_bank)
            require(not problem, path, f"{label} retrained here is not the shipped one: {problem}", SHIPPED)
    target = testbed.folder / f"bank_{name}.npz"
    with atomic(target) as temporary:
        shutil.copyfile(path, temporary)
        artefacts.write_record(f"{target}.json", bank.record | {"testbed": testbed.name, "design": name})
    return bank, worst


def disagreement(again: np.ndarray, shipped: np.ndarray, outputs: np.ndarray) -> str:
    """Why losses [Q] of a retrained model cannot be those of the same model in a bank ``outputs`` [M, R, Q], or "".

    Floating point differs between processors and a thousand steps amplify it, so equality cannot be asked for. But a
    model is nearer to itself elsewhere, from the same parameters and batches, than another seed is. Its losses must
    correlate above 0.9 with the shipped ones, and differ from them in root mean square, in their mean and in the
    logarithm of their spread by no more than any two seeds of one subset do.
    """
    x, y, all_of = (np.asarray(v, np.float64) for v in (again, shipped, outputs))
    if not (agreement := float(np.corrcoef(x, y)[0, 1])) > 0.9:
        return f"its losses correlate {agreement:.2f} (at least 0.9 is asked)"
    one, other = np.triu_indices(all_of.shape[1], 1)
    distances = {
        "every loss (root mean square)": lambda x, y: np.sqrt(((x - y) ** 2).mean(-1)),
        "the mean loss": lambda x, y: np.abs(x.mean(-1) - y.mean(-1)),
        "the spread of the losses (logarithm)": lambda x, y: np.abs(np.log(x.std(-1) / y.std(-1))),
    }
    for what, distance in distances.items():
        found = float(distance(x, y))
        most = float(distance(all_of[:, one], all_of[:, other]).max()) + 1e-3  # rounding, where seeds hardly matter
        if not found <= most:
            return f"{what} differs by {found:.3f} (two seeds of one subset: at most {most:.3f})"
    return ""
