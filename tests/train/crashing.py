"""A process that trains and dies: python crashing.py reads lines of JSON, [folder, at, what], and forks a child for each.

It answers with the child's exit code. The child counts its calls of os.open, write, fsync, replace and unlink, and at the call
number `at` it is gone, as by SIGKILL: nothing after it runs. A process of its own, since torch's backward does not survive a fork of one
that has run a backward before.
"""

import errno
import json
import os
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
from small_run import SETTINGS, make_trainer

from torchane.errors import RunFolderError
from torchane.models.config import LlamaConfig

CALLS = ("open", "write", "fsync", "replace", "unlink")
ENDED, FAILED, FULL, GONE = 0, 1, 2, 9
CONFIG = LlamaConfig(vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=1, max_position_embeddings=16)  # fmt: skip
STEPS = replace(SETTINGS, steps=4, eval_interval=2, checkpoint_interval=2)


class Calls:
    """Counts, and at the call number `at` does `what`: "kill", "half" (of a write, then kill), "full" (from then on)."""

    def __init__(self, at: int | None, what: str) -> None:
        self.names: list[str] = []
        self.at, self.what = at, what
        for name in CALLS:
            # Waiting for the disk would tell nothing: it is the process that dies here.
            setattr(os, name, self._counting(name, (lambda descriptor: None) if name == "fsync" else getattr(os, name)))

    @property
    def count(self) -> int:
        return len(self.names)

    def _counting(self, name, call):
        def counted(*arguments, **options):
            self.names.append(name)
            if self.at is None or self.count < self.at:
                return call(*arguments, **options)
            if self.what == "full":
                if name in ("write", "fsync"):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return call(*arguments, **options)
            if self.what == "half" and name == "write":
                call(arguments[0], arguments[1][: len(arguments[1]) // 2])
            os._exit(GONE)

        return counted


def train(path: Path, at: int | None, what: str) -> int:
    """Begins the run or resumes it; where it comes to its end, PATH.count says how many calls it made."""
    calls = Calls(at, what)
    existing = (path / "run.json").exists()
    try:
        trainer = make_trainer(path, STEPS, existing=existing, config=CONFIG)
        if existing:
            trainer.resume()
        trainer.run()
    except RunFolderError:
        return FULL
    calls.at = None
    Path(f"{path}.count").write_text(str(calls.count))
    return ENDED


def main() -> None:
    torch.set_num_threads(1)
    import_module("torch._dynamo")  # torch's optimizers import it at their first step: seconds in every child
    for line in sys.stdin:
        folder, at, what = json.loads(line)
        child = os.fork()
        if child == 0:
            code = FAILED
            try:
                code = train(Path(folder), at, what)
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
