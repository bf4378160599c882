"""Evaluation of scores: LDS with its noise ceiling, intervals, retrieval metrics, tables and verdicts."""

from .ceiling import Ceiling, ceiling, ceiling_curve, seeds_needed, spearman_brown_ceiling
from .claims import (
    CLAIM_COLUMNS,
    Criterion,
    Measurement,
    claims_table,
    criterion_of,
    holm_levels,
    p_value,
    verdict,
)
from .coverage import simulate_bank, simulate_coverage
from .intervals import (
    Interval,
    RowResult,
    lds_difference,
    lds_interval,
    lds_intervals,
    mean_interval,
    mean_intervals,
    naive_bootstrap,
)
from .lds import group_lds, lds, spearman_rows
from .retrieval import average_precision, mrr, precision_at_k, recall_at_k
from .tables import (
    COST_COLUMNS,
    LEADERBOARD_COLUMNS,
    check_leaderboard,
    leaderboard,
    leaderboard_row,
    measurements,
    pivot,
    to_latex,
    to_markdown,
)

__all__ = [
    "CLAIM_COLUMNS",
    "COST_COLUMNS",
    "LEADERBOARD_COLUMNS",
    "Ceiling",
    "Criterion",
    "Interval",
    "Measurement",
    "RowResult",
    "average_precision",
    "ceiling",
    "ceiling_curve",
    "check_leaderboard",
    "claims_table",
    "criterion_of",
    "group_lds",
    "holm_levels",
    "lds",
    "lds_difference",
    "lds_interval",
    "lds_intervals",
    "leaderboard",
    "leaderboard_row",
    "mean_interval",
    "mean_intervals",
    "measurements",
    "mrr",
    "naive_bootstrap",
    "p_value",
    "pivot",
    "precision_at_k",
    "recall_at_k",
    "seeds_needed",
    "simulate_bank",
    "simulate_coverage",
    "spearman_brown_ceiling",
    "spearman_rows",
    "to_latex",
    "to_markdown",
    "verdict",
]
