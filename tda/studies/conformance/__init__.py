"""Our numbers beside independent implementations', on the same models and data.

A :class:`Comparison` names a quantity and an oracle and computes it twice. :func:`rows` makes every comparison whose
oracle is installed, one dict each with the columns

    quantity, oracle, oracle_version, max_rel_diff, rank_correlation, tolerance, pass

and :func:`missing` names those that could not be made, with the reason: together they are all of
:func:`comparisons`. The oracles are optional (``tests/requirements-oracles.txt``, installed with ``--no-deps``) and
imported where they are used. One module a subject; the settings are in :mod:`tda.studies.conformance.settings`.
"""

from __future__ import annotations

from collections.abc import Callable

from tda.studies.conformance import curvature, faults, tracin, trak, unrolling
from tda.studies.conformance.comparison import COLUMNS, ORACLES, Comparison, absent, compare

SUBJECTS = (curvature, tracin, trak, unrolling, faults)

__all__ = ["COLUMNS", "ORACLES", "SUBJECTS", "Comparison", "absent", "compare", "comparisons", "missing", "rows"]


def comparisons() -> list[Comparison]:
    """All comparisons, by subject, whether their oracle is installed or not."""
    return [comparison for subject in SUBJECTS for comparison in subject.comparisons()]


def rows(progress: Callable[[str], None] = lambda line: None) -> list[dict]:
    """The row of every comparison that can be made here; ``progress`` gets a line about each."""
    made = []
    for comparison in comparisons():
        if not absent(comparison.oracle):
            row = compare(comparison)
            progress(f"{row['quantity']} | {row['oracle']}: {row['max_rel_diff']:.1e} of {row['tolerance']:g}")
            made.append(row)
    return made


def missing() -> list[dict[str, str]]:
    """``{quantity, oracle, reason}`` of every comparison that cannot be made here."""
    return [
        {"quantity": comparison.quantity, "oracle": comparison.oracle, "reason": reason}
        for comparison in comparisons()
        if (reason := absent(comparison.oracle))
    ]
