"""How long do a training step and the first step of networks for images take?    python benchmarks/vision_step.py [--network resnet18]

Batch 2 x 3 x 224 x 224, random weights of transformers' models, seed 0, SGD. torch.compile(backend="ane") on the twin and eager fp32
take turns, one thread; 1 step to warm up, 5 timed: median, least and most, by the wall and by the processor's time of the process,
which other work on the machine moves little. The first step compiles: with an empty cache of lowered programs, and, in
another process, with what that left. The last line of output is JSON. It says nothing of an engine's time.
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
from typing import Any

import torch
import transformers
from torch import nn

from torchane import native
from torchane.errors import TorchaneWarning

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("ResNet", {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}),
    "resnet50": ("ResNet", {}),
    "mobilenet_v2": ("MobileNetV2", {}),
    "convnext_tiny": ("ConvNext", {}),
}
WARMUP, TIMED = 1, 5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    names = chosen.network or list(NETWORKS)
    if chosen.in_this_process:
        print(json.dumps(measured(names[0])))
        return
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            runs = [in_another_process(name, folder) for _ in range(2)]
        found[name] = {**runs[0], "first step from the cache": runs[1]["first step"]}
        print(name, json.dumps(found[name], indent=1))
    print(json.dumps({"torch": torch.__version__, "isa": native.get_isa(), "load": os.getloadavg()[0], "results": found}))


def in_another_process(name: str, cache: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--in-this-process", "--network", name]
    ended = subprocess.run(command, env={**os.environ, "TORCHANE_CACHE": cache}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def measured(name: str) -> dict[str, Any]:
    native.set_threads(1)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", TorchaneWarning)
    torch.manual_seed(0)
    family, config = NETWORKS[name]
    made = getattr(transformers, f"{family}ForImageClassification")(getattr(transformers, f"{family}Config")(num_labels=1000, **config))
    ours, x, labels = copy.deepcopy(made), torch.randn(2, 3, 224, 224), torch.tensor([1, 2])
    calls = {"twin": (ours, torch.compile(ours, backend="ane", options={"device": "twin"}, dynamic=False)), "eager fp32": (made, made)}
    first = {variant: timed(lambda both=both: step(*both, x, labels)) for variant, both in calls.items()}
    seconds: dict[str, list[tuple[float, float]]] = {variant: [] for variant in calls}
    for _ in range(WARMUP + TIMED):
        for variant, both in calls.items():
            seconds[variant].append(timed(lambda both=both: step(*both, x, labels)))
    shown = {variant: both[WARMUP:] for variant, both in seconds.items()}
    return {
        "first step": {variant: {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)} for variant, (wall, cpu) in first.items()},
        "step": {variant: {"wall_s": spread([w for w, _ in both]), "cpu_s": spread([c for _, c in both])} for variant, both in shown.items()},
    }


def step(model: nn.Module, call: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> None:
    model.zero_grad()
    nn.functional.cross_entropy(call(x).logits, labels).backward()
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
