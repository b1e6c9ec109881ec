"""The first Ctrl-C asks, the second one ends."""

import os
import signal

import pytest

from torchane.train.interrupt import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_says_so(number, capfd):
    with StopRequest("Saving.\n") as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
    assert capfd.readouterr().err == "Saving.\n"


def test_the_second_signal_ends_at_once():
    with StopRequest("") as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        os.kill(os.getpid(), signal.SIGINT)


def test_the_handlers_come_back():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest(""):
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
