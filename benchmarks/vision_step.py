"""How long do a training step and the first step of networks for images take?

    python benchmarks/vision_step.py [--network resnet18 ...] [--steps 5] [--also cached torch gradients] [--json out.json]

Batch 2 x 3 x 224 x 224, random weights, seed 0, SGD, one thread; the networks of the gradient tests. torch.compile(backend="ane") on the
twin and eager fp32 take turns: 1 step to warm up, then the timed ones: median, least and most, by the wall and by the processor's time
of the process, which other work on the machine moves little. The first step traces and compiles, with an empty cache of lowered
programs; --also cached: in another process, with what that left; --also torch: by torch.compile(backend="aot_eager"),
which traces the network as we do and lowers nothing. --also gradients: as the long test does, the share of multiply-adds in programs and the
gradient's error beside that of autocast to bf16, relative to eager fp32. The last line of output is JSON, which --json writes too, after each network.
It says nothing of an engine's time.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchane import native
from torchane.capture.backend import COMPILED
from torchane.errors import TorchaneWarning
from torchane.train.provenance import provenance

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "capture"))
from test_vision_long import step as gradient
from vision_models import NETWORKS

WARMUP = 1
BACKENDS: dict[str, dict[str, Any]] = {"ane": {"device": "twin", "progress": "off"}, "aot_eager": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each")
    parser.add_argument("--also", choices=("cached", "torch", "gradients"), nargs="+", default=[], help="what to measure besides")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a file for the results")
    parser.add_argument("--in-this-process", choices=BACKENDS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.in_this_process:
        print(json.dumps(measured(chosen.network[0], chosen.in_this_process, chosen.steps, "gradients" in chosen.also)))
        return
    conditions = {"benchmark": "vision-step", **provenance(), "isa": native.get_isa(), "timed_steps": chosen.steps}
    found: dict[str, Any] = {}
    for name in chosen.network:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder:
            empty = in_another_process(name, "ane", folder, chosen.steps, *(["gradients"] if "gradients" in chosen.also else []))
            first = dict(empty["first step"])
            if "cached" in chosen.also:
                first["twin, from the cache"] = in_another_process(name, "ane", folder, 0)["first step"]["twin"]
        if "torch" in chosen.also:
            first["torch's part"] = in_another_process(name, "aot_eager", "", 0)["first step"]["aot_eager"]
        found[name] = {"load": load, **empty, "first step": first}
        print(name, json.dumps(found[name], indent=1), flush=True)
        if chosen.json is not None:
            chosen.json.write_text(json.dumps({**conditions, "results": found}) + "\n", encoding="utf-8")
    print(json.dumps({**conditions, "results": found}))


def in_another_process(name: str, backend: str, cache: str, steps: int, *also: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--in-this-process", backend, "--network", name, "--steps", str(steps)]
    command += ["--also", *also] if also else []
    ended = subprocess.run(command, env={**os.environ, "TORCHANE_CACHE": cache}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def measured(name: str, backend: str, steps: int, with_gradients: bool) -> dict[str, Any]:
    native.set_threads(1)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", TorchaneWarning)
    torch.manual_seed(0)
    model, x = NETWORKS[name]().train(), torch.randn(2, 3, 224, 224)
    eager, fresh = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    compiled = torch.compile(model, backend=backend, options=BACKENDS[backend] or None, dynamic=False)
    variant = "twin" if backend == "ane" else backend
    calls = {variant: (model, compiled), "eager fp32": (eager, eager)}
    first = {variant: timed(lambda both=both: step(*both, x)) for variant, both in calls.items()}
    seconds: dict[str, list[tuple[float, float]]] = {variant: [] for variant in calls}
    for _ in range(WARMUP + steps if steps else 0):
        for variant, both in calls.items():
            seconds[variant].append(timed(lambda both=both: step(*both, x)))
    shown = {variant: both[WARMUP:] for variant, both in seconds.items() if both}
    found = {
        "first step": {variant: {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)} for variant, (wall, cpu) in first.items()},
        "step": {variant: {"wall_s": spread([w for w, _ in both]), "cpu_s": spread([c for _, c in both])} for variant, both in shown.items()},
    }
    return {**found, **gradients(fresh, model, compiled, eager)} if with_gradients else found


def gradients(fresh: dict[str, torch.Tensor], model: nn.Module, compiled: nn.Module, eager: nn.Module) -> dict[str, float]:
    """As tests/capture/test_vision_long.py has them, at the first weights."""
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    halved = copy.deepcopy(eager)
    for each in (model, eager, halved):
        each.load_state_dict(fresh)
        each.zero_grad()
    right = gradient(eager, eager, x)
    autocast = (gradient(halved, halved, x, torch.autocast("cpu", torch.bfloat16)) - right).norm() / right.norm()
    error = (gradient(model, compiled, x) - right).norm() / right.norm()
    rows = [row for one in COMPILED[0:] for row in one.rows]
    share = sum(row.macs for row in rows if row.place == "program") / sum(row.macs for row in rows)
    return {"share of multiply-adds in programs": share, "gradient error": error.item(), "gradient error of autocast to bf16": autocast.item()}


def step(model: nn.Module, call: nn.Module, x: torch.Tensor) -> None:
    """The loss weighs the outputs at random, as the gradient tests do: U-Net gives an image."""
    model.zero_grad()
    logits = call(x)
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))).mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad


def timed(run: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "least": round(min(values), 3), "most": round(max(values), 3)}


if __name__ == "__main__":
    main()
