"""What a comparison is, and the row that it becomes."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr, t

COLUMNS = ("quantity", "oracle", "oracle_version", "max_rel_diff", "rank_correlation", "tolerance", "pass")
# oracle -> its distribution and its module
ORACLES = {
    "kronfluence": ("kronfluence", "kronfluence"),
    "curvlinops": ("curvlinops-for-pytorch", "curvlinops"),
    "captum": ("captum", "captum"),
    "traker": ("traker", "trak"),
    "dattri": ("dattri", "dattri"),
    "autograd": ("torch", "torch"),
}


def largest(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, as a share of the oracle's largest magnitude."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def up_to_scale(ours: np.ndarray, theirs: np.ndarray) -> float:
    """:func:`largest` after the best common factor, for scores whose scale the oracle does not fix."""
    return largest(ours, theirs * (ours * theirs).sum() / np.square(theirs).sum())


def far_end(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of two random quantities, [draws, ...] each: the far end of the 95 % interval of the difference of their means.

    Not a share of anything: the quantity's own unit.
    """
    means = [values.reshape(len(values), -1).mean(1) for values in (ours, theirs)]
    error = np.sqrt(sum(mean.var(ddof=1) / len(mean) for mean in means))
    gap = abs(means[0].mean() - means[1].mean())
    return float(gap + t.ppf(0.975, sum(map(len, means)) - 2) * error)


@dataclass(frozen=True)
class Comparison:
    """One quantity, computed by us and by an ``oracle`` of :data:`ORACLES`; ``ours`` and ``theirs`` return arrays of
    equal shape. It passes if ``distance(ours, theirs)`` is at most ``tolerance``.
    """

    quantity: str
    oracle: str
    ours: Callable[[], np.ndarray]
    theirs: Callable[[], np.ndarray]
    tolerance: float = 1e-3
    distance: Callable[[np.ndarray, np.ndarray], float] = largest


def compare(comparison: Comparison) -> dict:
    """The row of one comparison (:data:`COLUMNS`); numbers that are not finite do not pass."""
    ours, theirs = (np.asarray(values, np.float64) for values in (comparison.ours(), comparison.theirs()))
    if ours.shape != theirs.shape:
        raise ValueError(
            f"{comparison.quantity}: ours is {ours.shape}, that of {comparison.oracle} is {theirs.shape}; a comparison "
            f"needs the same quantity in the same order."
        )
    gap = comparison.distance(ours, theirs)
    values = (
        comparison.quantity,
        comparison.oracle,
        importlib.metadata.version(ORACLES[comparison.oracle][0]).split("+")[0],
        gap,
        float(spearmanr(ours.ravel(), theirs.ravel()).statistic),
        comparison.tolerance,
        bool(gap <= comparison.tolerance),
    )
    return dict(zip(COLUMNS, values, strict=True))


def quietly(function: Callable) -> Callable:
    """Decorator: without the progress bars and deprecation warnings of other packages. Errors are errors."""

    @functools.wraps(function)
    def run(*positional, **named):
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*positional, **named)

    return run


def absent(oracle: str) -> str:
    """Why an oracle cannot be asked, or an empty string."""
    distribution, module = ORACLES[oracle]
    if importlib.util.find_spec(module) is not None:
        return ""
    return f"{distribution} is not installed (pip install --no-deps -r tests/requirements-oracles.txt)"
