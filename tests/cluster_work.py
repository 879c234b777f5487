"""The work of test_clusters.py, in a module that costs a worker nothing to import."""

import os
import signal
import time

from lib.files.errors import BadInput


def double(job, folder):
    """Fails for rank 13; the first time, it kills its worker in the middle of rank 2, or waits, if
    a file beside the run folders says so.
    """
    with open(folder / "calls", "a") as calls:
        calls.write("x")
    told = folder.parent / "told"
    if told.exists() and job["rank"] == 2 and len((folder / "calls").read_text()) == 1:
        if told.read_text() == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1)
    if job["rank"] == 13:
        raise RuntimeError("the first line\nthe card fell off the bus")
    if job["rank"] == 14:
        raise BadInput("Rank 14 is too large: lower it.")
    return {"score": job["rank"] * 2}
