"""The retraining bank: models retrained on designed subsets of the documents, and their losses on every query.

Designs:

- ``half``: random subsets of a fixed share of the documents, trained for the same number of epochs;
- ``leave_5`` (or any ``leave_<n>``): random subsets with a small share left out, masked and paired with full runs;
- ``leave_group``: one planted group left out at a time (a person or author, the statements of one fact, a cluster of
  near-duplicates), masked and paired with full runs of the same seed.

A bank file holds ``subsets`` bool [M, N], ``outputs`` and (where queries have a second output) ``outputs_second``
float32 [M, R, Q], ``base`` [R, Q] (paired designs), ``labels`` [M], ``seeds`` [R], ``tokens``, ``query_set`` and
``split`` [Q].
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tda import config, models
from tda.artefacts import ArtefactError, atomic, key_of, load_arrays, save_arrays, write_json
from tda.provenance import Stopwatch, record
from tda.retrain import bank_seeds, retrain_all, retrained, training_seconds, truth_key
from tda.testbeds import Testbed
from tda.testbeds.people import fact_id


@dataclass(frozen=True)
class Design:
    """Which models to retrain: subsets [M, N], one label each, R seeds, and how a subset is applied."""

    name: str
    subsets: np.ndarray
    labels: list[str]
    seeds: list[int]
    how: str

    def models(self) -> list[tuple[np.ndarray, int]]:
        """(mask, seed) of every model; paired designs end with the full runs."""
        masks = list(self.subsets)
        if self.how == "mask":
            masks.append(np.ones(self.subsets.shape[1], bool))
        return [(mask, seed) for mask in masks for seed in self.seeds]


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


def design(testbed: Testbed, name: str) -> Design:
    """The design ``name`` of a testbed's config, drawn from the config's seed. Raises ``ValueError`` if there is
    none.
    """
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
    rng = np.random.default_rng([testbed.config["seed"], 31, sum(map(ord, name))])
    kept = round(settings["fraction"] * n)
    if not 0 < kept < n:
        raise ValueError(
            f"design {name!r}: fraction={settings['fraction']} keeps {kept} of {n} documents; keep some, leave some."
        )
    subsets = np.zeros((settings["subsets"], n), bool)
    for row in subsets:
        row[rng.permutation(n)[:kept]] = True
    how = "filter" if name == "half" else "mask"
    return Design(name, subsets, [f"subset {i}" for i in range(len(subsets))], seeds, how)


def planted_groups(testbed: Testbed, wanted: int) -> dict[str, list[int]]:
    """``label -> document indices``: entities, facts of test queries, and clusters of near-duplicates, in turn.

    All are about the test queries (clusters: those that state a queried fact, where facts are known), so that every
    group left out concerns some query that is reported.
    """
    documents, rng = testbed.documents, np.random.default_rng([testbed.config["seed"], 32])
    asked = [row for row in models.query_rows(testbed) if row["split"] == "test"]
    kinds: dict[str, dict[str, list[int]]] = {"entity": {}, "fact": {}, "cluster": {}}
    queried = {row["entity"] for row in asked}
    facts = {fact_id(r["entity"], r["attribute"], r["value"]) for r in asked if r["attribute"]}
    for i, (entity, stated, group) in enumerate(
        zip(documents["entity"], documents["facts"], documents["group"], strict=True)
    ):
        if entity in queried:
            kinds["entity"].setdefault(f"entity {entity}", []).append(i)
        for fact in set(stated) & facts:
            kinds["fact"].setdefault(f"fact {fact}", []).append(i)
        if group and (set(stated) & facts or not facts):
            kinds["cluster"].setdefault(f"cluster {group}", []).append(i)
    pools = [[(k, pool[k]) for k in rng.permutation(sorted(pool))] for pool in kinds.values()]
    turns = [pool[i] for i in range(max(map(len, pools), default=0)) for pool in pools if i < len(pool)]
    groups = {str(label): members for label, members in turns if len(members) < len(documents)}
    if len(groups) < 2:
        raise ValueError(
            f"testbed {testbed.name!r} has {len(groups)} groups to leave out; leave_group needs at least 2. Give the "
            f"documents an 'entity' or 'group' column, or remove the design from the config."
        )
    return dict(list(groups.items())[:wanted])


def parts_folder(testbed: Testbed, name: str) -> Path:
    return testbed.folder / f"bank_{name}.parts"


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
        parts_folder(testbed, name) / f"shard{shard}.json",
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
    save_arrays(testbed.folder / f"bank_{name}.npz", arrays, made | {"kind": "bank"})
    return load(testbed, name)


def bank_key(testbed: Testbed, name: str) -> str:
    settings = {k: v for k, v in testbed.settings["designs"][name].items() if k != "shards"}
    return key_of([truth_key(testbed), testbed.config["seed"], name, settings])


def load(testbed: Testbed, name: str) -> Bank:
    """The bank of a design; retrained first if it is missing (or taken from ``data/banks`` under ``bank: shipped``)."""
    path = testbed.folder / f"bank_{name}.npz"
    if not path.exists():
        return take_shipped(testbed, name)[0] if testbed.config["bank"] == "shipped" else merge(testbed, name)
    return _read(testbed, name, path)


def _read(testbed: Testbed, name: str, path: Path) -> Bank:
    arrays, made = load_arrays(path, "bank", ("subsets", "outputs", "labels", "seeds", "query_set", "split"))
    if made.get("key") != bank_key(testbed, name):
        raise ArtefactError(
            f"{path} was retrained for other documents, queries or settings than the present ones. Run the workflow "
            f"again, or delete the file."
        )
    fields = {k: arrays[k] for k in ("subsets", "outputs", "seeds", "query_set", "split")}
    optional = {k: arrays.get(k) for k in ("outputs_second", "base")}
    return Bank(name, **fields, **optional, labels=arrays["labels"].tolist(), record=made)


def shipped_path(testbed: Testbed, name: str) -> Path:
    return config.ROOT / "data" / "banks" / f"{testbed.name}_{name}.npz"


def take_shipped(testbed: Testbed, name: str, check: int = 2) -> tuple[Bank, float]:
    """Take over the committed bank, after retraining ``check`` of its models. Returns it with their largest loss
    difference.

    Raises :class:`ArtefactError` where a retrained model's losses correlate below 0.9 with the shipped ones: floating
    point differs between machines, so equality cannot be asked for, but the models must agree.
    """
    bank = _read(testbed, name, shipped_path(testbed, name))
    plan, worst = design(testbed, name), 0.0
    if not np.array_equal(plan.subsets, bank.subsets):
        raise ArtefactError(
            f"{shipped_path(testbed, name)} holds other subsets than the config draws. Use bank: rebuild."
        )
    chosen = np.random.default_rng([testbed.config["seed"], 33]).permutation(bank.subsets.shape[0])[:check]
    for m in chosen:
        again = retrained(testbed, plan.subsets[m], plan.seeds[0], plan.how).outputs[0]
        worst = max(worst, float(np.abs(again - bank.outputs[m, 0]).max()))
        agreement = float(np.corrcoef(again, bank.outputs[m, 0])[0, 1])
        if not agreement > 0.9:
            raise ArtefactError(
                f"{shipped_path(testbed, name)}: model {m} retrained here correlates {agreement:.2f} with the "
                f"shipped losses. Use bank: rebuild."
            )
    target = testbed.folder / f"bank_{name}.npz"
    for suffix in ("", ".json"):
        with atomic(target.with_name(target.name + suffix)) as temporary:
            shutil.copyfile(f"{shipped_path(testbed, name)}{suffix}", temporary)
    return bank, worst


def ship(testbed: Testbed) -> list[Path]:
    """Copy a testbed's banks and the queries they were measured on to ``data/banks``, to be committed."""
    paths = []
    for name in testbed.settings["designs"]:
        load(testbed, name)
        for suffix in ("", ".json"):
            with atomic(Path(f"{shipped_path(testbed, name)}{suffix}")) as temporary:
                shutil.copyfile(f"{testbed.folder / f'bank_{name}.npz'}{suffix}", temporary)
            paths.append(Path(f"{shipped_path(testbed, name)}{suffix}"))
    return [*paths, write_json(shipped_path(testbed, "queries").with_suffix(".json"), models.query_rows(testbed))]
