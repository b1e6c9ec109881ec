"""A process that fine-tunes and dies: python dying.py reads lines of JSON, [folder, base, data, at, what], and forks a child for each.

It answers with the child's exit code; how a child dies: tests/train/crashing.py, or "after": killed `at` seconds after it began. The model is PyTorch's own: what the twin computes is
tested elsewhere.
"""

import json
import os
import signal
import sys
import time
import traceback
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from crashing import ENDED, FAILED, FULL, Calls

from torchane.cli import tuning
from torchane.errors import RunFolderError
from torchane.train.forward import HostModel


class Silent:
    """A reporter that says nothing."""

    lost = None

    def __getattr__(self, name):
        return lambda *arguments: None


def eager(model, device, **options):
    return HostModel(model, "twin")


def tune(folder: Path, base: str, data: str, at: int | None, what: str) -> int:
    """Begins the run or resumes it; where it comes to its end, FOLDER.count says how many calls it made."""
    calls = Calls(None if what == "after" else at, what)
    request = partial(tuning.Request, device="twin", threads=1)
    if (folder / "training.json").exists():
        made = request(resume=folder)
    else:
        made = request(model=base, data=Path(data), train=True, adapter_path=str(folder), config=Path(data) / "settings.yaml")
    try:
        tuning.tune(made, Silent(), eager)
    except RunFolderError as error:
        if "disk is full" not in str(error):
            raise
        return FULL
    calls.at = None
    Path(f"{folder}.count").write_text(str(calls.count))
    return ENDED


def main() -> None:
    torch.set_num_threads(1)
    for name in ("torch._dynamo", "transformers", "peft", "transformers.models.llama.modeling_llama"):
        import_module(name)
    for line in sys.stdin:
        folder, base, data, at, what = json.loads(line)
        child = os.fork()
        if child == 0:
            code = FAILED
            try:
                code = tune(Path(folder), base, data, at, what)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        if what == "after":
            time.sleep(at)
            os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
