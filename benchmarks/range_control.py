"""What does range control cost on the twin?    python benchmarks/range_control.py [--preset tiny]

One forward and backward of a preset, batch 16 x 64 random tokens, seed 0, in the engine's arithmetic, one thread; off and on
take turns. 2 steps to warm up, 8 timed; median of the processor's time, which other work on the machine moves little.
Also: ops of the programs (moves left out), multipliers and statistics, and runs beyond one per dispatch in the first step.
The last line of output is JSON. It says nothing of an engine's time.
"""

import argparse
import copy
import json
import statistics
import time

import torch

from torchane import native
from torchane.capture import backend
from torchane.models.llama import LlamaForCausalLM
from torchane.models.presets import preset
from torchane.train.audit import mean_cross_entropy

MOVES = {"reshape", "transpose", "identity", "slice_by_size"}
WARMUP, TIMED = 2, 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="tiny")
    name = parser.parse_args().preset
    native.set_threads(1)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = preset(name).config
    tokens = torch.randint(0, config.vocab_size, (16, 64))
    model = LlamaForCausalLM(config, seed=0)
    runs, found = {}, {}
    for ranges in ("off", "on"):
        torch.compiler.reset()
        own = copy.deepcopy(model)
        options = {"device": "twin", "arithmetic": "engine", "ranges": ranges}
        runs[ranges] = (own, torch.compile(own, backend="ane", options=options, dynamic=False, fullgraph=True))
        step(*runs[ranges], tokens)
        graph = backend.COMPILED[-1]
        found[ranges] = {
            "ops": {f"{plan.name} {spec.name}": ops_of(spec) for plan in graph.plans.values() for spec in plan.programs},
            "first step's runs beyond one per dispatch": 0 if graph.ranges is None else graph.ranges.reruns,
        }
    times: dict[str, list[float]] = {"off": [], "on": []}
    for _ in range(WARMUP + TIMED):
        for ranges, both in runs.items():
            start = time.process_time()
            step(*both, tokens)
            times[ranges].append(time.process_time() - start)
    for ranges, seconds in times.items():
        found[ranges]["cpu_time_s"] = round(statistics.median(seconds[WARMUP:]), 3)
        print(ranges, found[ranges])
    print(json.dumps(found))


def step(model: LlamaForCausalLM, compiled: torch.nn.Module, tokens: torch.Tensor) -> None:
    model.zero_grad()
    mean_cross_entropy(compiled(tokens), tokens.roll(-1, 1)).backward()


def ops_of(spec) -> dict[str, int]:
    counts = {"ops": sum(count for kind, count in spec.op_counts.items() if kind not in MOVES)}
    if spec.ranges is not None:
        counts |= {"multipliers": len(spec.ranges.multipliers), "statistics": spec.ranges.rows}
    return counts


if __name__ == "__main__":
    main()
