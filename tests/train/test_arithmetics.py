"""What `fast` arithmetic costs in digits, beside PyTorch's autocast to bf16."""

import pytest
import torch
import torch.nn.functional as F

from torchane import native
from torchane.models.build import build_model
from torchane.models.presets import preset


def gradients(arithmetic: str) -> list[torch.Tensor]:
    model = build_model(preset("stories260k").config, seed=0)
    tokens = torch.randint(0, model.config.vocab_size, (2, 65), generator=torch.Generator().manual_seed(0))
    forward = model
    if arithmetic in ("exact", "fast"):
        forward = torch.compile(model, backend="ane", options={"device": "twin", "arithmetic": arithmetic})
    with torch.autocast("cpu", torch.bfloat16, enabled=arithmetic == "bf16"):
        logits = forward(tokens[:, :-1])
    F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return [param.grad.double() for param in model.parameters()]


@pytest.mark.skipif(not native.is_built() or not native.has_fast(), reason="this processor has no instructions for products of bf16 numbers")
def test_gradients_in_fast_are_no_further_from_float32_than_autocasts():
    wanted = gradients("float32")

    def error(arithmetic: str) -> float:
        errors = sorted(((a - b).norm() / b.norm()).item() for a, b in zip(gradients(arithmetic), wanted, strict=True))
        return errors[len(errors) // 2]

    exact, fast, bf16 = error("exact"), error("fast"), error("bf16")
    assert exact < fast < 1.2 * bf16
