"""What every notebook prints first, and how it reports progress."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

from tda.task import use_threads

TOY = (
    "smoke is toy size: its numbers mean nothing. At the size of the committed figures, on the shipped bank of "
    'retrained models: profile = "paper", overrides = {"bank": "shipped"} '
    "(one core: 1 minute in chapter 04, 10 in chapter 10)"
)


def received(**parameters) -> None:
    """Print the parameters that a notebook received, what the profile ``smoke`` is worth and the versions it runs
    with; fix threads and figure style.
    """
    from tda import plotting, provenance

    warnings.filterwarnings("ignore", message="IProgress not found")  # no widgets here, by choice
    threads = use_threads()
    plotting.style()
    for name, value in parameters.items():
        print(f"{name} = {value!r}")
    if parameters.get("profile") == "smoke":
        print(TOY)
    versions = provenance.versions()
    shown = ("python", "torch", "transformers", "numpy", "scikit-learn")
    print(", ".join(f"{name} {versions[name]}" for name in shown if name in versions) + f", {threads} thread(s)")


def progress() -> Callable[[str], None]:
    """A function that reports one line of progress: flushed prints in a batch run, one line that updates
    interactively.
    """
    if os.environ.get("TDA_BATCH"):
        return lambda line: print(line, flush=True)
    from tqdm import tqdm

    bar = tqdm(total=0, bar_format="{desc}")
    return bar.set_description_str
