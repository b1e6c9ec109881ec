"""How much processor time does a written token take?    python benchmarks/decode.py [--preset stories15m] [--threads 1]

Fixed: a preset's architecture with random weights in float32 (llama.cpp: the same in fp16), a prompt of 128 tokens, 32 more, greedy. host:
transformers with its growing cache. twin: the same through torch.compile(backend="ane") and a fixed cache. llama.cpp: llama-cpp-python, where
it is installed. One write each, in which all that is compiled is, then --rounds in turn: processor seconds of all threads, by the prompt's token and
by the written one; median, least, most.
The last line of output is JSON.
"""

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers

from torchane import native
from torchane.convert import gguf, hf
from torchane.convert import native as runs
from torchane.data.tokenizer import Tokenizer
from torchane.finetune.extras import quiet_transformers
from torchane.finetune.models import load_base
from torchane.generate.caches import Caches
from torchane.generate.pretrained import compile_for
from torchane.models.build import build_model
from torchane.models.presets import PRESETS
from torchane.runtime.promise import only_torch_writes

PROMPT, MORE = 128, 32


def folder_of(preset: str, place: Path) -> Path:
    model = build_model(PRESETS[preset].config.with_positions(1024))
    place.mkdir()
    tokenizer = Tokenizer.train([__doc__ or ""], 300)  # llama.cpp loads no model without one
    hf.write(runs.model_of(model, tokenizer, preset), place)
    return place


class Writing:
    """A model that generate/pretrained.py would call so, on random tokens. first_s: of its first write."""

    def __init__(self, folder: Path, device: str) -> None:
        self.device, self.model, self.held = device, load_base(folder).model, object()
        compile_for(self.model, device)
        self.caches = Caches(self.model)
        start = time.process_time()
        self.write()
        self.first_s = time.process_time() - start

    def write(self) -> tuple[float, float]:
        """ms of processor time for a token read, and for a token written."""
        ids = torch.randint(5, 1000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
        settings = transformers.GenerationConfig(max_new_tokens=MORE, do_sample=False, pad_token_id=0, disable_compile=True)
        with torch.no_grad(), only_torch_writes(self.held), quiet_transformers():
            cache = {} if self.device == "host" else {"past_key_values": self.caches.fixed(1, 256)}
            marks = [time.process_time()]
            stops = [lambda ids, scores, **_: marks.append(time.process_time()) or torch.zeros(1, dtype=torch.bool)]
            self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, stopping_criteria=stops, **cache)
        return (marks[1] - marks[0]) / PROMPT * 1e3, (marks[-1] - marks[1]) / (len(marks) - 2) * 1e3


class WithLlamaCpp:
    def __init__(self, folder: Path, threads: int) -> None:
        import llama_cpp

        gguf.write(hf.read(folder), folder / "m.gguf", "f16")
        self.model = llama_cpp.Llama(str(folder / "m.gguf"), n_ctx=256, n_threads=threads, n_threads_batch=threads, verbose=False)
        self.first_s = 0.0
        self.write()

    def write(self) -> tuple[float, float]:
        self.model.reset()
        start = time.process_time()
        self.model.eval(list(range(5, 5 + PROMPT)))
        middle = time.process_time()
        for token in range(MORE):
            self.model.eval([5 + token])
        return (middle - start) / PROMPT * 1e3, (time.process_time() - middle) / MORE * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="stories15m", choices=list(PRESETS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    native.set_threads(given.threads)
    with tempfile.TemporaryDirectory() as place:
        folder = folder_of(given.preset, Path(place) / "m")
        writers = {"host": Writing(folder, "host"), "twin": Writing(folder, "twin")}
        if importlib.util.find_spec("llama_cpp"):
            writers["llama.cpp f16"] = WithLlamaCpp(folder, given.threads)
        found = {name: [] for name in writers}
        for _ in range(given.rounds):
            for name, writer in writers.items():
                found[name].append(writer.write())
    results = {}
    for name, times in found.items():
        (read, *reads), (written, *writes) = ((statistics.median(column), min(column), max(column)) for column in zip(*times, strict=True))
        results[name] = {"prefill_ms": (read, *reads), "decode_ms": (written, *writes), "first_s": writers[name].first_s}
        print(f"{name:14} {read:6.2f} ms a token read ({reads[0]:.2f} to {reads[1]:.2f}), {written:7.2f} written ({writes[0]:.2f} to {writes[1]:.2f}), first write {writers[name].first_s:.1f} s")
    print(json.dumps({"preset": given.preset, "threads": given.threads, "rounds": given.rounds, "load": os.getloadavg()[0], "results": results}))


if __name__ == "__main__":
    main()
