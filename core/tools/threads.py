"""How threads wait for each other; light, since it counts only before torch is imported."""

from __future__ import annotations

import os

WAITING = "OMP_WAIT_POLICY"
SAID = (WAITING, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # what users set where they want it otherwise


def let_waiting_threads_sleep() -> None:
    """Make OpenMP's threads sleep while they wait for each other, here and in child processes.

    torch cuts an operation into as many shares as there are threads, and those that are done wait
    for the last one; by default they do so at full speed, for a while. Where another process has
    one of the cores, the thread that all wait for is not running, and the waiting ones take the
    time that it needs. Shares and their number stay as they are, and so do results.

    Nothing is changed where the environment says how they wait (`SAID`), nor once torch is there.
    """
    if not any(name in os.environ for name in SAID):
        os.environ[WAITING] = "PASSIVE"
