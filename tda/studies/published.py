"""Chapter 20: the LDS that other packages were published with, and ours beside it (:mod:`tda.evaluation.anchors`)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tda.evaluation.anchors import Anchor
from tda.evaluation.intervals import lds_intervals

# LDS on (halves, 5 % left out): curvlinops, kronfluence, dattri, pyDVL and captum, run in this setting; the unroll was
# written for it. Dampings are absolute. 20 iterations of CG on the (indefinite) Hessian are left out: ours refuses.
PUBLISHED = {
    "logreg": {
        "exact unroll": (0.970, 0.996),
        "hessian, 1e-2": (0.970, 0.995),
        "ggn, 1e-2": (0.970, 0.995),
        "ekfac, 1e-3": (0.942, 0.912),
        "diagonal": (0.676, 0.600),
        "datainf": (0.655, 0.593),
        "gradient dot": (0.644, 0.586),
    },
    "mlp": {
        "exact unroll": (0.850, 0.831),
        "hessian, 1e-2": (0.707, 0.636),
        "ggn, 1e-2": (0.859, 0.812),
        "ekfac, 1e-3": (0.806, 0.674),
        "diagonal": (0.512, 0.379),
        "datainf": (0.526, 0.387),
        "gradient dot": (0.516, 0.380),
    },
}


def compare(anchor: Anchor, scores: dict[str, np.ndarray], published: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """One line a method and design: the published LDS, ours with its 95 % interval over queries and subsets, a verdict.

    ``scores``: {method: [20, 200]}. ``beaten``: all of our interval is above theirs; ``missed``: all of it is below;
    ``met``: theirs lies in it. Raises ``ValueError`` for a method that is not among the published ones.
    """
    if unknown := sorted(set(scores) - set(published)):
        raise ValueError(f"no published number for {unknown}; there are {sorted(published)}.")
    lines = []
    for place, design in enumerate(anchor.subsets):
        for name, found in lds_intervals(scores, anchor.subsets[design], anchor.outputs[design]).items():
            (value, low, high), bar = found.value, published[name][place]
            verdict = "beaten" if low > bar else "met" if high >= bar else "missed"
            line = {"method": name, "design": design, "theirs": bar, "ours": value, "low": low, "high": high}
            lines.append(line | {"verdict": verdict})
    return pd.DataFrame(lines)
