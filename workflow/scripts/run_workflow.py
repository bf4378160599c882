"""Snakemake under a lock that dies with its process: `python workflow/scripts/run_workflow.py --cores 2 ...`.

Snakemake's own lock is a file that outlives a kill or a power cut and then has to be removed by hand. This one is held
by the process (flock), so a run that was killed resumes with the same command, and two runs in one folder are still
refused.
"""

import fcntl
import os
import sys
from pathlib import Path

folder = Path(__file__).resolve().parents[2] / ".snakemake"
folder.mkdir(exist_ok=True)
handle = (folder / "run.lock").open("a+")
try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(f"Error: another run is working in {folder.parent}; wait until it ends, or use a second clone.")
os.set_inheritable(handle.fileno(), True)
os.execv(sys.executable, [sys.executable, "-m", "snakemake", "--nolock", *sys.argv[1:]])
