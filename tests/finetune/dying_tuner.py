"""A process that fine-tunes and dies: python dying_tuner.py [twin] reads lines of JSON, [folder, base, data, at, what], and forks a child for each.

It answers with the child's exit code; how a child dies: tests/train/crashing.py, or by SIGKILL, `at` seconds after it began ("after") or after its first iteration ("step"). Without
"twin" the model is PyTorch's own.
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
from torchane.train.engine import EngineModel
from torchane.train.forward import HostModel

TIMED = ("after", "step")


class Silent:
    """A reporter that says nothing."""

    lost = None

    def __getattr__(self, name):
        return lambda *arguments: None


def eager(model, device, **options):
    return HostModel(model, "twin")


def tune(folder: Path, base: str, data: str, at: int | None, what: str) -> int:
    """Begins the run or resumes it; where it comes to its end, FOLDER.calls says which calls it made."""
    calls = Calls(None if what in TIMED else at, what)
    request = partial(tuning.Request, device="twin", threads=1)
    if (folder / "training.json").exists():
        made = request(resume=folder)
    else:
        made = request(model=base, data=Path(data), train=True, adapter_path=str(folder), config=Path(data) / "settings.yaml")
    try:
        tuning.tune(made, Silent(), EngineModel if "twin" in sys.argv else eager)
    except RunFolderError as error:
        if "disk is full" not in str(error):
            raise
        return FULL
    calls.at = None
    Path(f"{folder}.calls").write_text(" ".join(calls.names))
    return ENDED


def wait_for_an_iteration(child: int, folder: Path) -> None:
    """Until it has made one, or ends. A validation's line comes before the training graph is compiled."""
    before = iterations(folder)
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and iterations(folder) <= before:
        before = min(before, iterations(folder))  # resuming takes away what came after the checkpoint
        time.sleep(0.01)


def iterations(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count('"kind": "step"') if path.exists() else 0


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
        if what == "step":
            wait_for_an_iteration(child, Path(folder))
        if what in TIMED:
            time.sleep(at)
            os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
