"""What does a step of LoRA take on Qwen3 0.6B: memory, tokens per second, the first step? Beside PEFT in eager PyTorch.

    python benchmarks/lora_step.py [--rounds 3] [--steps 3] [--variant twin twin-fast twin-4 eager-bf16 eager-fp32] [--json out.json]

Fixed: Qwen3 0.6B's config with random weights in bfloat16 (the eager-fp32 variant: in float32), LoRA of rank 8 in every linear layer of
all 28 blocks, Adam, 4 x 256 tokens, seed 0, every processor. twin-fast: products of bf16 numbers; twin-4: linear layers kept in 4 bits. Eager takes transformers' own loss, the twin that of torchane lora. Each variant runs in a process of its own: peak memory is that process's. A round runs every variant
once, so that what else the machine does meets all of them; results are medians over rounds, and all of a round's numbers beside them. The
first step is measured from the call on, imports and the model's making aside, with an empty cache of lowered programs and, for the
twin, again with what that left. Then the timed steps: median, least and most by the wall, and the processor's time, which other work on
the machine moves less. The last line of output is JSON. It says nothing of an engine's time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from torchane import native
from torchane.errors import TorchaneWarning
from torchane.finetune.adapters import add_adapter, trained
from torchane.finetune.batches import pad
from torchane.finetune.data import Example
from torchane.finetune.loop import Logits, accumulate, peak_memory_gb
from torchane.finetune.quantize import quantize
from torchane.finetune.settings import LoraSettings
from torchane.train.engine import EngineModel
from torchane.train.provenance import provenance

BATCH, LENGTH, RANK = 4, 256, 8
VARIANTS = {"twin": torch.bfloat16, "twin-fast": torch.bfloat16, "twin-4": torch.bfloat16, "eager-bf16": torch.bfloat16, "eager-fp32": torch.float32}
#: Qwen/Qwen3-0.6B, config.json.
CONFIG = {
    "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960, "rope_theta": 1000000.0, "tie_word_embeddings": True,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, nargs="+", default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=1, help="how often each variant runs, in turns")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each")
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"], help="fewer blocks, to try it out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a file for the results")
    parser.add_argument("--in-this-process", choices=VARIANTS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.in_this_process:
        print(json.dumps(measured(chosen.in_this_process, chosen.steps, chosen.layers)))
        return
    conditions = {"benchmark": "lora-step", **provenance(), "isa": native.get_isa(), "timed_steps": chosen.steps, "layers": chosen.layers}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen.variant}
    for number in range(chosen.rounds):
        for name in chosen.variant:
            rounds[name].append(once(name, chosen))
            print(f"round {number + 1}: {name} {json.dumps(rounds[name][-1])}", flush=True)
    found = {name: {**medians(all_of), "rounds": all_of} for name, all_of in rounds.items()}
    for name, of_it in found.items():
        print(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in of_it.items() if isinstance(value, float))}")
    text = json.dumps({**conditions, "results": found})
    if chosen.json is not None:
        chosen.json.write_text(text + "\n", encoding="utf-8")
    print(text)


def once(name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """One process of a variant, and of the twin's a second one with the programs that the first one left."""
    with tempfile.TemporaryDirectory() as folder:
        found = in_another_process(name, folder, chosen)
        if name.startswith("twin"):
            found["first_step_from_cache"] = in_another_process(name, folder, chosen, steps=0)["first_step"]
    return found


def medians(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Of the numbers that one looks for, over rounds; a step's are those of its median step."""
    seen = {
        "first_step_wall_s": [one["first_step"]["wall_s"] for one in rounds],
        "first_step_cpu_s": [one["first_step"]["cpu_s"] for one in rounds],
        "first_step_from_cache_wall_s": [one["first_step_from_cache"]["wall_s"] for one in rounds if "first_step_from_cache" in one],
        "step_wall_s": [one["step_wall_s"][0] for one in rounds if one["step_wall_s"]],
        "step_cpu_s": [one["step_cpu_s"][0] for one in rounds if one["step_cpu_s"]],
        "tokens_per_s": [one["tokens_per_s"] for one in rounds if one["tokens_per_s"]],
        "peak_memory_gb": [one["peak_memory_gb"] for one in rounds],
    }
    return {key: statistics.median(values) for key, values in seen.items() if values}


def in_another_process(name: str, cache: str, chosen: argparse.Namespace, steps: int | None = None) -> dict[str, Any]:
    options = ["--steps", str(chosen.steps if steps is None else steps), "--layers", str(chosen.layers)]
    command = [sys.executable, __file__, "--in-this-process", name, *options]
    ended = subprocess.run(command, env={**os.environ, "TORCHANE_CACHE": cache}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def measured(name: str, steps: int, layers: int) -> dict[str, Any]:
    warnings.simplefilter("ignore", TorchaneWarning)
    import transformers  # noqa: PLC0415

    torch.manual_seed(0)
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(transformers.Qwen3Config(**{**CONFIG, "num_hidden_layers": layers}), dtype=VARIANTS[name])
    model = empty.to_empty(device="cpu")
    model.init_weights()
    if name == "twin-4":
        quantize(model, 4)
    model = add_adapter(model, LoraSettings(num_layers=-1), "qwen3-0.6b").train()
    forecasts: list[str] = []
    ours = None
    if name.startswith("twin"):
        ours = EngineModel(Logits(model), "twin", frozen="reused", arithmetic="fast" if name == "twin-fast" else "exact")
        ours.announce = forecasts.append
    optimizer = torch.optim.Adam(trained(model).values(), lr=1e-5)
    ids = torch.randint(0, CONFIG["vocab_size"], (BATCH, LENGTH + 1), dtype=torch.int32).numpy()
    batch = pad([Example(row) for row in ids], BATCH, (LENGTH,))
    before_gb, losses = peak_memory_gb(), []

    def step() -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        if ours is not None:
            losses.append(accumulate(ours, batch, 1))
        else:  # as who uses PEFT does it: transformers' own loss
            loss = model(input_ids=batch.tokens, labels=batch.targets, shift_labels=batch.targets, use_cache=False).loss
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - wall, time.process_time() - cpu

    first, timed = step(), [step() for _ in range(steps)]
    walls, cpus = [wall for wall, _ in timed], [cpu for _, cpu in timed]
    tokens = BATCH * LENGTH
    return {
        "first_step": {"wall_s": first[0], "cpu_s": first[1]},
        "step_wall_s": [statistics.median(walls), min(walls), max(walls)] if walls else None,
        "step_cpu_s": [statistics.median(cpus), min(cpus), max(cpus)] if cpus else None,
        "tokens_per_s": tokens / statistics.median(walls) if walls else None,
        "tokens_per_cpu_s": tokens / statistics.median(cpus) if cpus else None,
        "peak_memory_gb": peak_memory_gb(),
        "peak_before_gb": before_gb,
        "losses": losses,
        "forecast": forecasts,
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
