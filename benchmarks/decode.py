"""How much processor time does a written token take?    python benchmarks/decode.py [--preset stories15m] [--threads 1]

Fixed: a preset's architecture with random weights in float32 (llama.cpp: the same in fp16), a prompt of 128 tokens, 32 more, greedy. host:
transformers with its growing cache. twin: the same through torch.compile(backend="ane") and a fixed cache. llama.cpp: llama-cpp-python, where
it is installed. Two writes each; of the second the processor seconds of all threads, by the prompt's token and by the written one; by which
the first took longer, what is compiled among it.
The last line of output is JSON.
"""

import argparse
import json
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


def with_transformers(folder: Path, device: str) -> dict[str, float]:
    """As generate/pretrained.py calls a model, on random tokens."""
    base = load_base(folder)
    compile_for(base.model, device)
    ids = torch.randint(5, 1000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    settings = transformers.GenerationConfig(max_new_tokens=MORE, do_sample=False, pad_token_id=0, disable_compile=True)
    marks: list[float] = []
    whole: list[float] = []
    held = object()
    for _ in range(2):
        cache = {} if device == "host" else {"past_key_values": transformers.StaticCache(config=base.model.config, max_cache_len=256)}
        marks = [time.process_time()]
        stops = [lambda ids, scores, **_: marks.append(time.process_time()) or torch.zeros(1, dtype=torch.bool)]
        with torch.no_grad(), only_torch_writes(held), quiet_transformers():
            base.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, stopping_criteria=stops, **cache)
        whole.append(marks[-1] - marks[0])
    return {"first_s": whole[0] - whole[1], "prefill_ms": (marks[1] - marks[0]) / PROMPT * 1e3, "decode_ms": (marks[-1] - marks[1]) / (len(marks) - 2) * 1e3}


def with_llama_cpp(folder: Path, threads: int) -> dict[str, float] | None:
    try:
        import llama_cpp
    except ImportError:
        return None
    gguf.write(hf.read(folder), folder / "m.gguf", "f16")
    model = llama_cpp.Llama(str(folder / "m.gguf"), n_ctx=256, n_threads=threads, n_threads_batch=threads, verbose=False)
    found = {}
    for _ in range(2):
        model.reset()
        start = time.process_time()
        model.eval(list(range(5, 5 + PROMPT)))
        middle = time.process_time()
        for token in range(MORE):
            model.eval([5 + token])
        found = {"prefill_ms": (middle - start) / PROMPT * 1e3, "decode_ms": (time.process_time() - middle) / MORE * 1e3}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="stories15m", choices=list(PRESETS))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    native.set_threads(given.threads)
    with tempfile.TemporaryDirectory() as place:
        folder = folder_of(given.preset, Path(place) / "m")
        results = {"host": with_transformers(folder, "host"), "twin": with_transformers(folder, "twin"), "llama.cpp f16": with_llama_cpp(folder, given.threads)}
    for name, found in results.items():
        print(name, "not installed" if found is None else f"{found['prefill_ms']:.2f} ms a token read, {found['decode_ms']:.2f} ms a token written, first {found.get('first_s', 0):.1f} s more")
    print(json.dumps({"preset": given.preset, "threads": given.threads, "results": results}))


if __name__ == "__main__":
    main()
