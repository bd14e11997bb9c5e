import os
import signal
import threading

import pytest

from fedjax_edge.simulation.interrupt import deferred_interrupt


def test_the_first_one_waits_and_the_second_does_not():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_are_left_alone():
    outcomes = []

    def in_thread():
        with deferred_interrupt() as interrupted:
            outcomes.append(interrupted())

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert outcomes == [False]
