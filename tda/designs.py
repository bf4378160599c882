"""What a bank retrains on: random subsets and seeds, and the door that keeps them out of what an estimator trains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tda.testbeds import Testbed


def bank_seeds(testbed: Testbed, count: int) -> list[int]:
    """Seeds of retrained models, disjoint from those of the base models, which are never scored against."""
    return [1000 * (testbed.config["seed"] + 1) + r for r in range(count)]


def random_subsets(testbed: Testbed, name: str) -> np.ndarray:
    """The random subsets of a design, bool [M, N], drawn from the config's seed and the design's name; every stratum of
    the modality keeps the same share. ``ValueError`` for a share that keeps all documents or none.
    """
    settings, n = testbed.settings["designs"][name], len(testbed.documents)
    rng = np.random.default_rng([testbed.config["seed"], 31, sum(map(ord, name))])
    kept = round((share := settings["fraction"]) * n)
    if not 0 < kept < n:
        raise ValueError(f"design {name!r}: fraction={share} keeps {kept} of {n} documents; keep some, leave some.")
    subsets = np.zeros((settings["subsets"], n), bool)
    stratum = np.array(testbed.modality.strata(testbed) or [""] * n)
    strata = [np.flatnonzero(stratum == label) for label in dict.fromkeys(stratum)]
    for row in subsets:
        for members in strata:
            row[rng.permutation(members)[: round(share * len(members))]] = True
    return subsets


def refuse_banked(testbed: Testbed, masks: np.ndarray, seeds: Sequence[int]) -> None:
    """Raise ``ValueError`` where an estimator would train on a random subset, or with a seed, of one of the testbed's
    banks: it would be scored on models that it has seen.
    """
    for name, settings in testbed.settings["designs"].items():
        taken = sorted(set(map(int, seeds)) & set(bank_seeds(testbed, settings["seeds"])))
        if taken:
            raise ValueError(
                f"testbed {testbed.name!r}: seeds {taken[:3]} train the bank {name!r}, on which an estimator is "
                f"scored; models of its own take others."
            )
        if name == "leave_group":
            continue
        banked = {row.tobytes() for row in random_subsets(testbed, name)}
        found = [number for number, mask in enumerate(np.asarray(masks)) if mask.tobytes() in banked]
        if found:
            raise ValueError(
                f"testbed {testbed.name!r}: subsets {found[:3]} are those of the bank {name!r}, which an estimator is "
                f"scored on; draw others."
            )
