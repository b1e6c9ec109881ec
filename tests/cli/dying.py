"""A process that runs a command and is stopped: python dying.py reads lines of JSON, [folder, arguments, at, what], and forks a child for each.

It answers with [the child's exit code, how many calls it made, what it said]. The child counts what Python's audit hooks tell of files of that
folder: open, mkdir, rename, remove, rmdir. Before call number `at` it is gone as by SIGKILL ("kill"), or interrupted as by Ctrl-C ("interrupt"),
or finds the disk full ("full").
"""

import errno
import json
import os
import sys
import tempfile
from pathlib import Path

import torch

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
GONE = 9


class Calls:
    """Audit hooks stay as long as their process."""

    def __init__(self, folder: Path, at: int | None, what: str) -> None:
        self.folder, self.at, self.what, self.count = str(folder), at, what, 0
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in EVENTS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if not os.path.abspath(os.fsdecode(arguments[0])).startswith(self.folder):
            return
        self.count += 1
        if self.count != self.at:
            return
        if self.what == "kill":
            os._exit(GONE)
        if self.what == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise KeyboardInterrupt


def run(folder: Path, arguments: list[str], at: int | None, what: str, told: str) -> None:
    import torchane.cli

    os.chdir(folder)
    sys.stdout = sys.stderr = open(told, "w")
    calls = Calls(folder, at, what)
    code = torchane.cli.run(arguments)
    sys.stderr.flush()
    Path(f"{told}.count").write_text(str(calls.count))
    os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    import transformers  # noqa: F401, PLC0415  (once, not in each child)

    import torchane.convert.export
    import torchane.convert.hf
    import torchane.convert.merge
    import torchane.convert.recognize
    import torchane.finetune.models
    import torchane.train.run_folder  # noqa: F401

    told = str(Path(tempfile.mkdtemp()) / "told")
    for line in sys.stdin:
        folder, arguments, at, what = json.loads(line)
        Path(f"{told}.count").write_text("0")
        child = os.fork()
        if child == 0:
            try:
                run(Path(folder), arguments, at, what, told)
            finally:
                os._exit(70)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([code, int(Path(f"{told}.count").read_text()), Path(told).read_text()]), flush=True)


if __name__ == "__main__":
    main()
