"""From a learner to a statement: what eps and which sizes make sense, by a public pilot."""

from __future__ import annotations

import numpy as np

from tda.verification.claims import Attribution, least_squares
from tda.verification.learners import Learner
from tda.verification.residual import attained, plan
from tda.verification.statement import Statement
from tda.verification.subsets import draw


def pilot(
    learner: Learner, rng: np.random.Generator, share: float = 0.2, delta: float = 0.05, p: float = 0.5,
    budget: int = 5000, rho: float = 1 / 3, most: int = 3000, **options,
) -> tuple[Statement, Attribution, np.ndarray]:  # fmt: skip
    """``(statement, reference, residual [Q])`` from ``budget`` trainings on random subsets with the options' ``seed``.

    eps is ``share`` of the smallest output variance, so that it means something; ``reference`` is a least-squares
    fit, a stand-in for the best predictor; the residual B_{>=2} is the fit's mean square corrected for its N + 1 free
    parameters, and sizes follow from the largest one by :func:`plan`, with at most ``most`` bases: where that cuts the
    plan, the statement's ``delta`` is the larger one that the sizes attain. Further options go to :class:`Statement`.
    Raises ``ValueError`` for budgets up to N + 1, for an output that does not vary, and if ``most`` bases decide
    nothing.
    """
    free = learner.n + 1
    if budget <= free:
        raise ValueError(f"budget={budget} for {learner.n} examples; a pilot needs more than N + 1 trainings.")
    subsets = draw(rng, budget, learner.n, p)
    f = learner(subsets, np.full(budget, options.get("seed", 0))).values
    if not f.var(0).min() > 0:
        raise ValueError("an output does not vary with the subset: there is nothing to attribute. Raise the bound.")
    reference = least_squares(subsets, f, p)
    left = np.square(f - reference.predict(subsets)).sum(0) / (budget - free)
    eps = float(share * f.var(0).min())
    fresh, bases = plan(eps, delta, float(left.max()), rho, points=learner.points)
    if bases > most:
        bases, delta = most, attained(eps, float(left.max()), rho, most, learner.points)
    sizes = {"fresh": fresh, "bases": bases, "rho": rho}
    return Statement(learner.spec(), eps, delta, p=p, **(sizes | options)), reference, left
