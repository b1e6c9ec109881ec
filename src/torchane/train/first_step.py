"""How long until the first training step is done, and where does it go?    torchane bench first-step

Every preset is a process of its own, one after the other. Its first step (forward, loss, backward,
clipping, AdamW) compiles; the second does not.

    import_torch, import_torchane    Python's modules
    build      the model with random weights
    trace      AOTAutograd: forward and backward graph, cut in two
    lower      graphs to legal programs and plans
    load       texts and weight files to loaded programs
    run        the second step
    capture    the rest of the first step: Dynamo's reading of the model, guards, first touches of memory
    from start = all of it, from the start of the process to the end of the first step, by the clock; processor: the same by the processor's time, of all
    threads, which a busy machine stretches less
    after imports = build and the first step, by the clock
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from torchane.capture import backend
from torchane.errors import TorchaneError
from torchane.models.presets import preset
from torchane.train.bench_worker import Work, make_step, peak_memory_bytes, use_threads
from torchane.train.provenance import processor, provenance

PARTS = ("import_torch", "import_torchane", "build", "capture", "trace", "lower", "load", "run")

#: The worker's first lines: nothing large is imported before the clock runs, and then as the command line does.
_WORKER = """
import json, sys, time
began_s, start = float(sys.argv[2]), time.perf_counter()
from torchane.interpreter import importing
with importing(owned=True):
    import torch
    after_torch = time.perf_counter()
    from torchane.train import first_step
first_step.worker(json.loads(sys.argv[1]), began_s, after_torch - start, time.perf_counter() - after_torch)
"""


class FirstStepError(TorchaneError):
    """A preset's process ended before its answer."""


def bench_first_step(
    presets: Sequence[str],
    *,
    device: str = "twin",
    batch_size: int | None = None,
    seq_len: int | None = None,
    threads: int = 2,
    said: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Seconds by part for every preset, as JSON takes them. Raises UsageError for an unknown preset,
    FirstStepError with what went wrong in a process."""
    results = []
    load = os.getloadavg()[0]
    for name in presets:
        sizes = preset(name).training
        said(f"{name}: a first step")
        work = Work(device, name, batch_size or sizes.batch_size, seq_len or sizes.seq_len, threads)
        results.append(_measured(work))
    return {
        "question": "How long until the first training step is done, and where does it go?",
        "threads": threads,
        **provenance(),
        "processor": processor(),
        "load": load,
        "results": results,
    }


def _measured(work: Work) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-c", _WORKER, json.dumps(work.__dict__), str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"its process ended with code {done.returncode}"])[-1]
        raise FirstStepError(f"{work.preset}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def worker(values: dict[str, Any], began_s: float, import_torch_s: float, import_torchane_s: float) -> None:
    """Prints one preset's result as the last line. began_s: when the process was started, as time.time() has it."""
    work = Work(**values)
    use_threads(work.threads)
    start = time.perf_counter()
    step = make_step(work)
    times = {"import_torch": import_torch_s, "import_torchane": import_torchane_s, "build": time.perf_counter() - start}
    seconds = []
    processor_s = from_start_s = 0.0  # at the end of the first step
    for _ in range(2):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
        processor_s, from_start_s = processor_s or time.process_time(), from_start_s or time.time() - began_s
    for part in ("trace", "lower", "load"):
        times[part] = sum(compiled.times_s[part] for compiled in backend.COMPILED)
    times["run"] = seconds[1]
    times["capture"] = seconds[0] - sum(times[part] for part in ("trace", "lower", "load", "run"))
    print(json.dumps({
        "preset": work.preset,
        "batch_size": work.batch_size,
        "seq_len": work.seq_len,
        "from_start_s": from_start_s,
        "first_step_s": seconds[0],
        "after_imports_s": times["build"] + seconds[0],
        "processor_s": processor_s,
        "parts_s": {part: times[part] for part in PARTS},
        "peak_memory_bytes": peak_memory_bytes(),
    }))  # fmt: skip


def to_table(report: dict[str, Any]) -> str:
    """The results as lines of text."""
    columns = ("from start", "processor", "after imports", *(part.replace("_", " ") for part in PARTS))
    lines = [
        f"seconds; {report['threads']} threads; torch {report['torch']} on {report['processor']}, load {report['load']:.1f}",
        f"{'':13}{'tokens':>8}" + "".join(f"{name:>{max(9, len(name) + 2)}}" for name in columns),
    ]
    for result in report["results"]:
        values = (result["from_start_s"], result["processor_s"], result["after_imports_s"], *(result["parts_s"][part] for part in PARTS))
        tokens = result["batch_size"] * result["seq_len"]
        cells = "".join(f"{value:>{max(9, len(name) + 2)}.2f}" for name, value in zip(columns, values, strict=True))
        lines.append(f"{result['preset']:13}{tokens:>8,}{cells}")
    return "\n".join(lines)
