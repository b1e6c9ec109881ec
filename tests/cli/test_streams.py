"""Standard streams that are closed, full, a terminal, or spell no more than ASCII; and signals, from outside of the process."""

import io
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from torchane.cli.streams import LostOutput, Stream, printable

pytestmark = pytest.mark.usefixtures("own_handlers")

HELP = [sys.executable, "-m", "torchane", "train", "--help"]
HERE = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def shell(command: str, **changes: str) -> subprocess.CompletedProcess:
    return subprocess.run(["/bin/sh", "-c", command, "sh", *HELP], capture_output=True, text=True, env={**HERE, **changes}, check=False)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
def test_a_full_disk_under_standard_output_is_one_line():
    done = shell('"$@" > /dev/full')
    assert done.returncode == 1 and done.stderr == "Standard output could not be written: No space left on device.\n"


def test_a_closed_standard_output_is_one_line():
    done = shell('"$@" >&-')
    assert done.returncode == 1 and done.stderr == "Standard output could not be written: Bad file descriptor.\n"


def test_a_reader_that_has_seen_enough_is_told_nothing():
    with subprocess.Popen(HELP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=HERE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


@pytest.mark.parametrize("closed", ["2>&-", "<&-", "2>&- <&-", "2>/dev/full"])
def test_other_streams_that_are_closed_or_full_change_nothing(closed):
    done = shell(f'"$@" {closed}')
    assert done.returncode == 0 and "Usage: torchane train" in done.stdout


def test_a_message_that_nobody_can_read_leaves_the_exit_code():
    done = subprocess.run(["/bin/sh", "-c", '"$@" --stepz 2>/dev/full', "sh", *HELP[:-1]], env=HERE, check=False)
    assert done.returncode == 2


@pytest.mark.parametrize(("text", "shown"), [
    ("plain\ttext\n", "plain\ttext\n"), ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"), ("a\rb\x7f\x9b", "a\\rb\\x7f\\x9b"),
    ("\u202egnp.exe", "\\u202egnp.exe"), ("é 猫 🦊", "é 猫 🦊"),
])  # fmt: skip
def test_a_terminal_gets_text_and_no_orders(text, shown):
    assert printable(text) == shown
    leader, follower = pty.openpty()
    stream = Stream(open(follower, "w", encoding="utf-8"), is_needed=True)
    stream.write(text)
    stream.close()
    assert os.read(leader, 1000).decode().replace("\r\n", "\n") == shown
    os.close(leader)


def test_elsewhere_text_goes_out_as_it_is_and_what_cannot_be_spelled_is_escaped():
    raw = io.BytesIO()
    stream = Stream(io.TextIOWrapper(raw, encoding="latin-1"), is_needed=True)
    stream.write("\x1b é 猫 \udcff\n")
    stream.flush()
    assert raw.getvalue() == b"\x1b \xe9 \\u732b \\udcff\n"


def test_what_is_lost_is_lost_once_and_not_again_at_the_end(tmp_path):
    read, write = os.pipe()
    os.close(read)
    stream = Stream(open(write, "w"), is_needed=True)
    with pytest.raises(LostOutput) as caught:
        stream.write("x\n")
    assert caught.value.is_closed
    stream.close()  # what was buffered goes nowhere


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("phase", ["importing", "later"])
def test_a_signal_ends_a_command_with_its_code_and_one_line(tmp_path, phase, number):
    """`slow` stands for torch: it catches whatever comes while it is imported, as some packages do."""
    body = "try:\n    open('ready', 'w').close(); time.sleep(60)\nexcept BaseException:\n    pass\n"
    (tmp_path / "slow.py").write_text("import time\n" + (body if phase == "importing" else ""))
    script = f"""
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from torchane.cli import cli, run
from torchane.cli.signals import load
import click
@click.command("slow")
def slow():
    load("slow")
    open("ready", "w").close()
    {"time.sleep(60)" if phase == "later" else ""}
cli.get_command = lambda ctx, name: slow
sys.exit(run(["slow"]))
"""
    here = {**HERE, "PYTHONPATH": f"{tmp_path}{os.pathsep}{HERE['PYTHONPATH']}"}
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=here, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        assert process.stderr.read().strip() == "Stopped."
        assert process.wait() == 128 + number
