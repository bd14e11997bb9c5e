"""Ctrl-C that lets what is being computed finish."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Holds back the first Ctrl-C; yields a function that says whether it came. A second one raises at once.

    Outside of the main thread, where Python delivers no signals, it does nothing.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return

    previous = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: object) -> None:
        came.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, handle)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
