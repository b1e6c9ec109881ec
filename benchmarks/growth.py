"""How does a training step's cost grow with the sequence and the batch, beside PyTorch?

    python benchmarks/growth.py [--seq-lens 128,512,1024,2048,4096] [--batch-sizes 1,4,16] [--variants twin-fast,eager-bf16] [--steps 2]

A Llama of two blocks, 256 wide, 4 heads of 64, 1,024 tokens in its vocabulary, the same weights and batch for all. Sequences at a batch of 1, batches at 128
tokens. Each step in a process of its own, one thread: processor milliseconds of a step (least of --steps, after two others), peak memory. Lines of JSON. The exit
code is 1 if one of them has an error.
"""

import argparse
import json
import subprocess
import sys

#: Of the child: as torchane bench train-step, with a model whose positions are as many as asked for.
WORKER = """
import json, sys
from dataclasses import replace
from torchane.models import presets
from torchane.models.config import LlamaConfig
from torchane.train import bench_worker
variant, batch_size, seq_len, steps = sys.argv[1], *map(int, sys.argv[2:])
config = LlamaConfig(vocab_size=1024, hidden_size=256, intermediate_size=704, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=4, max_position_embeddings=seq_len)
chosen = replace(presets.preset("tiny"), config=config)
bench_worker.preset = lambda name: chosen
bench_worker.use_threads(1)
step = bench_worker.make_step(bench_worker.Work(variant, "growth", batch_size, seq_len, 1))
bench_worker.measure(step, 2)
print(json.dumps(bench_worker.measure(step, steps)))
"""


def measured(variant: str, batch_size: int, seq_len: int, steps: int) -> dict[str, object]:
    command = [sys.executable, "-c", WORKER, variant, *map(str, (batch_size, seq_len, steps))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    found = json.loads(done.stdout.splitlines()[-1])
    return {"cpu_ms": round(min(found["cpu_times_s"]) * 1e3, 1), "peak_mb": found["peak_memory_bytes"] >> 20}


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq-lens", type=numbers, default=[128, 512, 1024, 2048, 4096])
    parser.add_argument("--batch-sizes", type=numbers, default=[4, 16])
    parser.add_argument("--variants", type=lambda text: text.split(","), default=["twin-fast", "twin", "eager-bf16", "eager-fp32"])
    parser.add_argument("--steps", type=int, default=2)
    given = parser.parse_args()
    failed = 0
    for batch_size, seq_len in [(1, length) for length in given.seq_lens] + [(size, 128) for size in given.batch_sizes]:
        for variant in given.variants:
            found = measured(variant, batch_size, seq_len, given.steps)
            failed += "error" in found
            print(json.dumps({"batch_size": batch_size, "seq_len": seq_len, "variant": variant, **found}), flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
