"""How far are the gradients of each arithmetic of the twin from float32's?    python benchmarks/arithmetics.py [PRESET ...]

Fixed: random weights and tokens, seed 0, 2 windows of 128, one forward and backward. Of every parameter the norm of the difference over the
norm in PyTorch's eager float32: median and largest. bf16 is PyTorch under autocast.
"""

import sys

import torch
import torch.nn.functional as F

from torchane import native
from torchane.models.build import build_model
from torchane.models.presets import preset


def gradients(name: str, arithmetic: str) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients. arithmetic: "float32", "bf16", or one of the twin."""
    model = build_model(preset(name).config, seed=0)
    tokens = torch.randint(0, model.config.vocab_size, (2, 129), generator=torch.Generator().manual_seed(0))
    forward = model
    if arithmetic not in ("float32", "bf16"):
        forward = torch.compile(model, backend="ane", options={"device": "twin", "arithmetic": arithmetic})
    with torch.autocast("cpu", torch.bfloat16, enabled=arithmetic == "bf16"):
        logits = forward(tokens[:, :-1])
    loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    return loss.item(), [param.grad.double() for param in model.parameters()]


def main() -> None:
    for name in sys.argv[1:] or ["tiny", "stories15m"]:
        loss, wanted = gradients(name, "float32")
        for arithmetic in ("exact", *(["fast"] if native.has_fast() else []), "bf16"):
            its_loss, got = gradients(name, arithmetic)
            errors = sorted(((a - b).norm() / b.norm()).item() for a, b in zip(got, wanted, strict=True))
            print(f"{name} {arithmetic}: loss {abs(its_loss - loss) / loss:.1e}, gradients {errors[len(errors) // 2]:.2%} in the median, {errors[-1]:.2%} at most")


if __name__ == "__main__":
    main()
