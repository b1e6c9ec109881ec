"""A base whose linear layers are kept in 4 or 8 bits (QLoRA): what is trained beside them sees their rounded numbers, and so does all else.

    weight (O, I), groups of 64 along I ──► whole numbers, a scale and a bias for each group ──► weight = number x scale + bias
The numbers are those of mlx's affine form with its default group, so that an adapter fits the base that `mlx_lm.convert -q` makes of the same model. Embeddings, head and
norms keep the type of their file. Sources: Dettmers et al. 2023, arXiv 2305.14314; mlx 0.32, mlx/ops.cpp, affine_quantize.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchane.capture.few_bits import GROUP, dequantise
from torchane.convert.adapter import weight_name
from torchane.convert.model import Model, Shape
from torchane.errors import UsageError
from torchane.finetune.adapters import blocks_of, linear_kinds
from torchane.finetune.extras import require
from torchane.finetune.folder import TRAINING, AdapterFolder

#: Below it a group's scale is taken as this, so that a group of equal numbers has one.
_LEAST_SCALE = 1e-7
_TOLD = "The base's {} linear layers that the adapter was trained beside in {} bits have those numbers here."


@dataclass(frozen=True)
class Rounded:
    """What of a base is kept in few bits. modules: names of linear layers, and whether their weights lie as (inputs, outputs); left: of those that are not, since their
    rows are no multiple of 64."""

    bits: int
    modules: Mapping[str, bool]
    left: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"bits": self.bits, "modules": dict(self.modules)}

    def __str__(self) -> str:
        left = f"; {len(self.left)} stay as they are, {self.left[0]} and others, whose rows are no multiple of {GROUP} numbers" if self.left else ""
        return f"{len(self.modules)} linear layers of the base are kept in {self.bits} bits, rounded{left}."


def quantised(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """weight (O, I), I a multiple of 64 -> packed, scales, biases as `capture.few_bits.dequantise` takes them.
    The group's number that is farthest from 0 is met exactly, and so is 0 where it lies among them."""
    most = (1 << bits) - 1
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(2), groups.amax(2)
    scales = ((high - low) / most).clamp_min(_LEAST_SCALE)
    is_low = low.abs() > high.abs()
    scales = torch.where(is_low, scales, -scales)
    edge = torch.where(is_low, low, high)
    steps = (edge / scales).round()
    scales, biases = torch.where(steps == 0, scales, edge / steps), torch.where(steps == 0, 0.0, edge)
    numbers = ((groups - biases[..., None]) / scales[..., None]).round().clamp(0, most).to(torch.uint8)
    if bits == 4:
        numbers = numbers[..., : GROUP // 2] | (numbers[..., GROUP // 2 :] << 4)
    return numbers.flatten(1).contiguous(), scales.to(weight.dtype), biases.to(weight.dtype)


def rounded(weight: Tensor, bits: int, *, is_turned: bool = False) -> Tensor:
    """The numbers that a weight has once it was kept in few bits, in its dtype. is_turned: it lies as (inputs, outputs)."""
    found: Tensor = dequantise(*quantised(weight.T if is_turned else weight, bits))
    return found.T.contiguous() if is_turned else found


class _FewBits(nn.Module):
    """What a linear layer has instead of its weight; `weight` makes the numbers."""

    is_turned = False

    def _take(self, layer: Any, bits: int) -> None:
        nn.Module.__init__(self)
        made = quantised(layer.weight.detach().T if self.is_turned else layer.weight.detach(), bits)
        self.packed, self.scales, self.biases = (nn.Parameter(one, requires_grad=False) for one in made)
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:
        found: Tensor = dequantise(self.packed, self.scales, self.biases)
        return found.T if self.is_turned else found


class QuantizedLinear(_FewBits, nn.Linear):
    """nn.Linear, to PEFT and all others."""

    def __init__(self, layer: nn.Linear, bits: int) -> None:
        self._take(layer, bits)
        self.in_features, self.out_features = layer.in_features, layer.out_features


def _of_conv1d() -> type[nn.Module]:
    """The same of GPT-2's layer, a class of transformers'."""

    class QuantizedConv1D(_FewBits, require("transformers.pytorch_utils").Conv1D):  # type: ignore[misc]
        is_turned = True

        def __init__(self, layer: Any, bits: int) -> None:
            self._take(layer, bits)
            self.nf, self.nx = layer.nf, layer.nx

    return QuantizedConv1D


def targets(model: nn.Module, bits: int) -> Rounded:
    """The linear layers of its blocks; the model may be on the meta device."""
    blocks, kinds, modules, left = blocks_of(model), linear_kinds(), {}, []
    for index, block in enumerate(blocks.modules):
        for name, module in block.named_modules():
            if isinstance(module, kinds):
                full, is_turned = f"{blocks.path}.{index}.{name}", not isinstance(module, nn.Linear)
                if module.weight.shape[0 if is_turned else 1] % GROUP:  # type: ignore[union-attr, operator]
                    left.append(full)
                else:
                    modules[full] = is_turned
    return Rounded(bits, modules, tuple(left))


def quantize(model: nn.Module, bits: int) -> Rounded:
    """Replaces them, one after the other, in place."""
    found = targets(model, bits)
    conv1d = _of_conv1d() if any(found.modules.values()) else None
    for name, is_turned in found.modules.items():
        parent, _, own = name.rpartition(".")
        layer: Any = model.get_submodule(name)
        setattr(model.get_submodule(parent), own, conv1d(layer, bits) if is_turned and conv1d is not None else QuantizedLinear(layer, bits))
    return found


def recorded(adapter: Path) -> Rounded | None:
    """What an adapter's training.json says that its base was kept in; None where that was its file's type, or nobody says.
    Raises RunFolderError where it was edited or damaged."""
    if not (adapter / TRAINING).exists():
        return None
    found = AdapterFolder(adapter).about().get("base", {}).get("quantized")
    return None if found is None else Rounded(int(found["bits"]), found["modules"])


@torch.no_grad()
def round_module(model: nn.Module, found: Rounded) -> str:
    """Gives the layers of a model the numbers that an adapter was trained beside, in place, as plain weights; what to tell of it. Raises UsageError where one is not there."""
    for name, is_turned in found.modules.items():
        try:
            layer: Any = model.get_submodule(name)
        except AttributeError as error:
            raise UsageError(f"The adapter was trained beside a layer {name} in {found.bits} bits, and this model has none. Give its own base.") from error
        layer.weight.copy_(rounded(layer.weight, found.bits, is_turned=is_turned))
    return _TOLD.format(len(found.modules), found.bits)


def round_model(base: Model, found: Rounded) -> tuple[Model, str]:
    """The same of a model as files have it: its weights are rounded when they are asked for."""
    changed: dict[str, tuple[Shape, Callable[[], Tensor]]] = {}
    for module, is_turned in found.modules.items():
        name = weight_name(module, base)
        if name is None:
            raise UsageError(f"The adapter was trained beside a layer {module} in {found.bits} bits, and {base.source} has none. Give its own base.")
        changed[name] = (base.weights.shapes[name], partial(_rounded_weight, base, name, found.bits, is_turned))
    return replace(base, weights=base.weights.but(changed)), _TOLD.format(len(found.modules), found.bits)


def _rounded_weight(base: Model, name: str, bits: int, is_turned: bool) -> Tensor:
    return rounded(base.weights[name], bits, is_turned=is_turned)
