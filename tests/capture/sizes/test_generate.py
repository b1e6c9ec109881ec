"""transformers' `generate` for 500 tokens, with a cache of fixed size and with one that grows: few programs, eager's tokens."""

import warnings
from typing import Any

import pytest
import torch

from torchane.capture import backend

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

PROMPT, MORE, VOCABULARY = 40, 500, 128
#: Two tokens whose logits lie nearer than this, of the largest, are one as good as the other: sixteen roundings to fp16.
TIE = 16 * 2**-11
#: Prompt, first token, then each doubling of the cache: 64, 128, 256, 512, 1024.
PROGRAMS = {"static": 3, "dynamic": 8}


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_500_tokens(cache: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch._dynamo.reset()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=1024, initializer_range=0.3, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    prompt = torch.randint(1, VOCABULARY, (1, PROMPT))
    settings: dict[str, Any] = {"max_new_tokens": MORE, "do_sample": False, "attention_mask": torch.ones_like(prompt), "disable_compile": True}
    if cache == "static":
        settings["cache_implementation"] = "static"
    right = model.generate(prompt, **settings)
    before = len(backend.COMPILED)
    model.compile(backend="ane")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = model.generate(prompt, **settings)
    compiled = len(backend.COMPILED) - before
    same = int((ours == right)[0].long().cumprod(0).sum()) - PROMPT
    with torch.no_grad():
        logits = type(model).forward(model, input_ids=ours).logits[0, PROMPT - 1 : -1]
    behind = (logits.amax(-1) - logits.gather(-1, ours[0, PROMPT:, None])[:, 0]) / logits.abs().amax(-1)
    print(f"{cache}: {compiled} graphs; {same} of {MORE} tokens before the first that differs; eager puts {int((behind > 0).sum())} of them second, by {float(behind.max()):.5f} at most")
    assert ours.shape == right.shape == (1, PROMPT + MORE)
    assert len(set(ours[0, PROMPT:].tolist())) > 10  # it says more than one thing
    assert float(behind.max()) < TIE
    assert compiled <= PROGRAMS[cache]
