"""An adapter between two formats: for each module a product of two thin matrices, and a magnitude where it is DoRA.

    y = W x + scale * B (A x)                                             A [r, in], B [out, r]
    y = (m / |W + scale B A|) (W x + scale B A x)                         DoRA: m [out], |.| of each row
    e = E[t] + scale * (B A)[:, t]                                        an embedding: A [r, tokens], B [width, r]

Modules have Hugging Face's names, without "base_model.model." and ".weight". Sources: Hu et al. 2021, arXiv 2106.09685; Liu et al.
2024, arXiv 2402.09353.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from torchane.convert.model import EMBEDDING, HEAD, Model, Shape
from torchane.errors import ParseError, UsageError, nearest

LM_HEAD, EMBED_TOKENS = HEAD.removesuffix(".weight"), EMBEDDING.removesuffix(".weight")


@dataclass(frozen=True)
class LowRank:
    """What is added to one module. is_embedding: A's columns are tokens."""

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None
    is_embedding: bool = False

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def scaled(self, scale: float) -> "LowRank":
        """The same function, with another scale."""
        if scale == self.scale:
            return self
        return replace(self, b=(self.b.float() * (self.scale / scale)).to(self.b.dtype), scale=scale)

    def widened(self, rank: int) -> "LowRank":
        """The same function, with rows of zeros up to that rank."""
        more = rank - self.rank
        if not more:
            return self
        pad = torch.nn.functional.pad
        return replace(self, a=pad(self.a, (0, 0, 0, more)), b=pad(self.b, (0, more)))


@dataclass(frozen=True)
class Adapter:
    """modules: by name. whole: weights that were trained entirely, by the name of the weight. base: what it was trained on."""

    modules: Mapping[str, LowRank]
    base: str | None = None
    dropout: float = 0.0
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    source: str = "adapter"

    @property
    def is_dora(self) -> bool:
        return any(module.magnitude is not None for module in self.modules.values())

    @property
    def rank(self) -> int:
        return max(module.rank for module in self.modules.values())

    @property
    def scale(self) -> float:
        """The scale that most modules have."""
        scales = [module.scale for module in self.modules.values()]
        return max(set(scales), key=lambda scale: (scales.count(scale), scale))

    def uniform(self) -> "Adapter":
        """The same function with one rank and one scale for all modules. What was alike before is not changed."""
        scale, rank = self.scale or 1.0, self.rank
        return replace(self, modules={name: module.scaled(scale).widened(rank) for name, module in self.modules.items()})

    def layers(self) -> set[int]:
        """The layers that have a module in it."""
        return {int(name.split(".")[2]) for name in self.modules if name.startswith("model.layers.")}


def require_fits(adapter: Adapter, base: Model) -> None:
    """Raises ParseError where the adapter belongs to another model: its name or its shapes."""
    wrong = []
    for name, module in adapter.modules.items():
        weight = weight_name(name, base)
        if weight is None:
            wrong.append(f"{name} is no part of {base.source}{nearest(name, [known.removesuffix('.weight') for known in base.weights])}")
            continue
        wide = base.weights.shapes[weight]
        if is_turned(base, name) or module.is_embedding:
            wide = wide[::-1]
        has = (module.b.shape[0], module.a.shape[1])
        if has != wide or module.a.shape[0] != module.b.shape[1] or (module.magnitude is not None and module.magnitude.numel() != wide[0]):
            wrong.append(f"{name} is for {has[1]} inputs and {has[0]} outputs, and {base.source} has {wide[1]} and {wide[0]} there")
    for name, tensor in adapter.whole.items():
        own = weight_name(name.removesuffix(".weight"), base) if name.endswith(".weight") else name if name in base.weights else None
        if own is None or base.weights.shapes[own] != tuple(tensor.shape):
            wrong.append(f"{name} {tuple(tensor.shape)} is no weight of {base.source}")
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        named = f" It says that it was trained on {adapter.base}." if adapter.base else ""
        raise ParseError(f"{adapter.source} belongs to another model: {wrong[0]}{more}.{named} Name its base with --model.")


def without_unchanged(adapter: Adapter, base: Model) -> Adapter:
    """Without whole weights that are the base's own: PEFT saves the embedding and the head with every adapter that touches them."""

    def is_changed(name: str, tensor: Tensor) -> bool:
        own = name if name in base.weights else weight_name(name.removesuffix(".weight"), base)
        return own is None or base.weights.shapes[own] != tuple(tensor.shape) or not torch.equal(base.weights[own].to(tensor.dtype), tensor)

    return replace(adapter, whole={name: tensor for name, tensor in adapter.whole.items() if is_changed(name, tensor)})


def weight_name(module: str, base: Model) -> str | None:
    """The weight of a module; a tied head has the embedding's."""
    name = f"{module}.weight"
    if name in base.weights:
        return name
    return EMBEDDING if module == LM_HEAD and base.is_tied and EMBEDDING in base.weights else None


def is_turned(base: Model, module: str) -> bool:
    """Whether a weight is stored [in, out]: GPT-2's, but for its embeddings and head."""
    return base.kind == "gpt2" and ".h." in module


def shape_of(module: LowRank) -> Shape:
    return (module.b.shape[0], module.a.shape[1])


def require_no_whole(adapter: Adapter, target: str) -> None:
    """Raises UsageError for weights that were trained entirely, which only a merged model can hold."""
    if adapter.whole:
        raise UsageError(f"{adapter.source} trained {next(iter(adapter.whole))} entirely, which no adapter for {target} can hold. Merge it: torchane fuse, or --to hf or gguf.")
