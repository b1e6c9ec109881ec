"""What does a program that serves a range of sizes cost, and what does it save?    python benchmarks/padding.py [--rounds 8]

Fixed: a Llama of 2 layers of 256, 4 sequences, forward and backward on the twin, one thread. Sizes just below a bucket's edge and just above it.
share: of a step's multiply-adds, at the bucket's size and at the true one. cost: processor seconds of the bucket's program, over those of a program of
the exact shape; both take turns in every round, the median of rounds counts. Then 40 lengths, 8 to 512, one step each: compilations and processor
seconds in all, with buckets and with exact shapes. Nothing is read from the cache of lowered programs. The last line of output is JSON.
"""

import argparse
import json
import os
import statistics
import time
import warnings
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from torchane.capture import backend
from torchane.capture.sizes.buckets import Buckets

LAYERS, HIDDEN, BATCH, VOCABULARY = 2, 256, 4, 512
SIZES = (63, 65, 127, 129, 255, 257)
LENGTHS = 40


def build() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=1024, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def compiled(model: torch.nn.Module, buckets: str) -> Any:
    options = {"device": "twin", "cache": "off", "progress": "off", "buckets": buckets}
    return torch.compile(model, backend="ane", options=options, dynamic=buckets == "auto")


def batch(size: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (BATCH, size), generator=torch.Generator().manual_seed(size))


def step(model: Any, size: int) -> float:
    """Processor seconds of all threads."""
    tokens = batch(size)
    start = time.process_time()
    model(input_ids=tokens, labels=tokens).loss.backward()
    return time.process_time() - start


def multiply_adds(model: torch.nn.Module, size: int) -> int:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=batch(size), labels=batch(size)).loss.backward()
    return int(counter.get_total_flops()) // 2


def beside_exact(size: int, rounds: int) -> dict[str, float]:
    """Both programs of one size, in turns."""
    bucket = Buckets().of(size, is_first=False)
    models = {kind: build() for kind in ("auto", "off")}
    seconds: dict[str, list[float]] = {kind: [] for kind in models}
    calls = {}
    for kind, model in models.items():
        torch._dynamo.reset()
        calls[kind] = compiled(model, kind)
        for _ in range(2):
            step(calls[kind], size)
    for turn in range(rounds):
        for kind in list(models)[:: 1 if turn % 2 else -1]:
            models[kind].zero_grad()
            seconds[kind].append(step(calls[kind], size))
    filled, exact = (statistics.median(seconds[kind]) for kind in ("auto", "off"))
    share = multiply_adds(build(), bucket) / multiply_adds(build(), size)
    return {"size": size, "bucket": bucket, "share": share, "exact_ms": exact * 1e3, "bucket_ms": filled * 1e3, "cost": filled / exact}


def over_lengths(buckets: str) -> dict[str, float]:
    torch._dynamo.reset()
    call, before, start = compiled(build(), buckets), len(backend.COMPILED), time.process_time()
    for size in np.random.default_rng(0).integers(8, 513, LENGTHS):
        step(call, int(size))
    return {"compilations": len(backend.COMPILED) - before, "seconds": time.process_time() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    load = os.getloadavg()[0]
    found = [beside_exact(size, rounds) for size in SIZES]
    print(f"{'size':>5} {'bucket':>7} {'share':>6} {'exact':>9} {'bucket':>9} {'cost':>6}")
    for one in found:
        print(f"{one['size']:>5} {one['bucket']:>7} {one['share']:>6.2f} {one['exact_ms']:>6.0f} ms {one['bucket_ms']:>6.0f} ms {one['cost']:>6.2f}")
    lengths = {kind: over_lengths(kind) for kind in ("auto", "off")}
    for kind, one in lengths.items():
        print(f"{LENGTHS} lengths, buckets {kind}: {one['compilations']} compilations, {one['seconds']:.0f} processor s")
    print(json.dumps({"sizes": found, "lengths": lengths, "load": load}))


if __name__ == "__main__":
    main()
