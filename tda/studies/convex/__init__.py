"""Removing training examples from a convex model: exact refits, and three ways to foresee them.

``problem`` holds the losses, the model and its exact fit; ``removal`` the refits and their approximations (influence,
rescaled influence, Newton step); ``laws`` the average-case rates and how slopes are measured. All in float64.
"""

from tda.studies.convex.problem import LOGISTIC, SQUARED, fit, separable
from tda.studies.convex.removal import METHODS, errors, influence, newton_step, next_order, refit, rescaled_influence

__all__ = [
    "LOGISTIC",
    "METHODS",
    "SQUARED",
    "errors",
    "fit",
    "influence",
    "newton_step",
    "next_order",
    "refit",
    "rescaled_influence",
    "separable",
]
