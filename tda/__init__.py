"""Training-data attribution: what the notebooks of the compendium share.

``tda.attribute(name, task, train, queries, **options)`` runs a registered method; ``tda.testbeds.load`` opens a
testbed.
"""

import sys

__version__ = "0.1.0"

# jsonschema imports this optional check where it is installed: a second at the start of every job, for a format that no
# schema here uses. None makes the import fail at once.
sys.modules.setdefault("rfc3987_syntax", None)


def __getattr__(name: str):
    if name in ("attribute", "METHODS"):  # on first use: `import tda` stays cheap for the workflow
        from tda import attribution

        return getattr(attribution, name)
    raise AttributeError(f"module 'tda' has no attribute {name!r}")
