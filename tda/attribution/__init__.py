"""Attribution methods, one module each. Every module in this folder registers itself; none is listed here."""

from importlib import import_module
from pkgutil import iter_modules

from tda.attribution.registry import METHODS, Method, StepTooLarge, attribute, method, named, predict

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["METHODS", "Method", "StepTooLarge", "attribute", "method", "named", "predict"]
