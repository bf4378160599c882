"""Memory, forecast before it is asked for."""

from __future__ import annotations

import psutil

SHARE = 0.6  # of the memory that is free now; the rest is for activations, the other job and the system


def require(size: float, what: str, advice: str) -> None:
    """``ValueError`` if ``size`` bytes for ``what`` exceed their share of the free memory; ``advice``: what fits."""
    free = psutil.virtual_memory().available
    if size > SHARE * free:
        raise ValueError(
            f"{what} needs {size / 1e6:.0f} MB; {free / 1e6:.0f} MB are free and at most {SHARE:.0%} of it "
            f"is used. {advice}"
        )
