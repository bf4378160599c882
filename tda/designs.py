"""Which models a retraining bank holds:

- ``half``: random subsets of a fixed share of the documents, trained for the same number of epochs;
- ``leave_5`` (or any ``leave_<n>``): random subsets with a small share left out, masked and paired with full runs;
- ``leave_group``: one planted group left out at a time (a person or author, the statements of one fact, a cluster of
  near-duplicates), masked and paired with full runs of the same seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tda import models
from tda.retrain import bank_seeds
from tda.testbeds import Testbed


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
    pools = [[(k, pool[k]) for k in rng.permutation(sorted(pool))] for pool in testbed.modality.groups(testbed, asked)]
    turns = [pool[i] for i in range(max(map(len, pools), default=0)) for pool in pools if i < len(pool)]
    groups = {str(label): members for label, members in turns if len(members) < len(documents)}
    if len(groups) < 2:
        raise ValueError(
            f"testbed {testbed.name!r} has {len(groups)} groups to leave out; leave_group needs at least 2. Give the "
            f"documents an 'entity' or 'group' column, or remove the design from the config."
        )
    return dict(list(groups.items())[:wanted])
