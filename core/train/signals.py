"""Signals: the first Ctrl-C ends a run after its step, saved; the second one ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from attrs import define


@define
class Stop:
    """Whether the run was asked to end."""

    asked: bool = False


@contextmanager
def graceful() -> Iterator[Stop]:
    """Give what Ctrl-C and SIGTERM set; at the second one, KeyboardInterrupt is raised.

    Outside the main thread, where Python hears no signals, nobody sets it.
    """
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
