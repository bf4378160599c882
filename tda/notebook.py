"""What every notebook prints first, and how it reports progress."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

from tda.task import use_threads

TOY = """\
smoke is toy size: its numbers mean nothing. At the size of the committed figures, on the shipped bank of retrained \
models: profile = "paper", overrides = {"bank": "shipped"} (one core: 1 minute in chapter 04, 10 in chapter 10)"""


def received(**parameters) -> None:
    """Print what a notebook received, what ``smoke`` is worth and the versions; fix threads and figure style."""
    from tda import plotting, provenance

    warnings.filterwarnings("ignore", message="IProgress not found")  # no widgets here, by choice
    threads = use_threads()
    plotting.style()
    for name, value in parameters.items():
        print(f"{name} = {value!r}")
    if parameters.get("profile") == "smoke":
        print(TOY)
    versions, shown = provenance.versions(), ("python", "torch", "transformers", "numpy", "scikit-learn")
    print(", ".join(f"{name} {versions[name]}" for name in shown) + f", {threads} thread(s)")


def progress() -> Callable[[str], None]:
    """A function that reports a line of progress: printed at once in a batch run, else one line that changes."""
    if os.environ.get("TDA_BATCH"):
        return lambda line: print(line, flush=True)
    from tqdm import tqdm

    return tqdm(total=0, bar_format="{desc}").set_description_str
