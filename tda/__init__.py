"""Training-data attribution: what the notebooks of the compendium share.

``tda.attribute(name, task, train, queries, **options)`` runs a registered method; ``tda.testbeds.load`` opens a
testbed.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    # Loaded on first use: `import tda` stays cheap for the workflow, which needs only the configuration.
    if name in ("attribute", "METHODS"):
        from tda import attribution

        return getattr(attribution, name)
    raise AttributeError(f"module 'tda' has no attribute {name!r}")
