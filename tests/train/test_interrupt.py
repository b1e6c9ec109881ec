"""The first Ctrl-C asks, the second one ends."""

import os
import signal

import pytest

from torchane.train.interrupt import SIGNALS, StopRequest

pytestmark = pytest.mark.usefixtures("own_handlers")


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_says_so(number, capfd):
    with StopRequest("Saving.\n") as stop:
        assert not stop() and stop.signal is None
        os.kill(os.getpid(), number)
        assert stop() and stop.signal == number
    assert capfd.readouterr().err == "Saving.\n"


def test_the_second_signal_ends_at_once():
    with StopRequest("") as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        os.kill(os.getpid(), signal.SIGINT)


def test_the_handlers_come_back():
    with StopRequest(""):
        assert signal.getsignal(signal.SIGINT) != signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_what_the_caller_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    with StopRequest("") as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop()


def test_a_terminal_that_is_gone_is_no_error():
    kept = os.dup(2)
    os.close(2)
    try:
        with StopRequest("Saving.\n") as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
