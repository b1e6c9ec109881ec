"""Our own models where their sizes vary: Dynamo traces all of them, and a program serves what comes."""

import pytest
import torch
from capture_helpers import distance

from torchane.models.build import build_model
from torchane.models.config import GPT2Config, LlamaConfig, Qwen3Config

LLAMA = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 80}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**LLAMA),
    "qwen3": Qwen3Config(**LLAMA, head_dim=32),
    "gpt2": GPT2Config(vocab_size=96, n_positions=80, n_embd=64, n_layer=1, n_head=4),
}


@pytest.fixture(autouse=True)
def nothing_known():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "sizes", [[(2, 33), (2, 65)], [(2, 64), (4, 32), (3, 16)], [(1, 1), (2, 65), (2, 7)]], ids=["longer", "shorter", "from one"]
)
def test_sizes_that_vary_by_themselves_are_traced_whole_and_right(name, sizes):
    """Nobody says that they vary: Dynamo finds it at the second call. A part left to PyTorch would be a warning, an error here."""
    model = build_model(CONFIGS[name], seed=0).eval()
    compiled = torch.compile(model, backend="ane", options={"device": "twin"})
    for batch, length in sizes:
        tokens = torch.randint(0, 96, (batch, length), generator=torch.Generator().manual_seed(length))
        assert distance(compiled(tokens).detach(), model(tokens).detach()) < 2e-3
