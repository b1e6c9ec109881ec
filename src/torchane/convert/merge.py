"""A base and an adapter -> the model that computes the same without the adapter.

    LoRA    W + scale B A
    DoRA    (m / |W + scale B A|) (W + scale B A), row by row

In float32, rounded once to the dtype of the base. A head that was tied to the embedding gets a matrix of its own where an adapter
changes only one of the two.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchane.convert.adapter import EMBED_TOKENS, LM_HEAD, Adapter, LowRank, is_turned, require_fits, weight_name
from torchane.convert.model import EMBEDDING, HEAD, Model, Shape

Changed = dict[str, tuple[Shape, Callable[[], Tensor]]]


def merge(base: Model, adapter: Adapter) -> Model:
    """Weights are computed when they are asked for. Raises ParseError where the adapter belongs to another model."""
    require_fits(adapter, base)
    changed: Changed = {}
    config: dict[str, Any] = dict(base.config)
    if base.is_tied and ({LM_HEAD, EMBED_TOKENS} & set(adapter.modules) or {HEAD, EMBEDDING} & set(adapter.whole)):
        changed[HEAD] = (base.weights.shapes[EMBEDDING], lambda: base.weights[EMBEDDING])
        config["tie_word_embeddings"] = False
    for name, tensor in adapter.whole.items():
        own = name if name in base.weights or name in changed else weight_name(name.removesuffix(".weight"), base) or name
        changed[own] = (tuple(tensor.shape), lambda tensor=tensor, own=own: tensor.to(_dtype(base, own)))
    for name, module in adapter.modules.items():
        own = f"{name}.weight"
        before = changed[own][1] if own in changed else lambda own=own: base.weights[own]
        turned = module.is_embedding or is_turned(base, name)
        shape = base.weights.shapes.get(own) or base.weights.shapes[EMBEDDING]
        changed[own] = (shape, lambda before=before, module=module, turned=turned: merged(before(), module, turned))
    return replace(base, config=config, weights=base.weights.but(changed))


@torch.no_grad()
def merged(weight: Tensor, module: LowRank, turned: bool = False) -> Tensor:
    """weight [out, in] (turned: [in, out]) with the adapter in it, in its dtype."""
    wide = weight.float().T if turned else weight.float()
    new = wide + module.scale * (module.b.float() @ module.a.float())
    if module.magnitude is not None:
        new = new * (module.magnitude.float().reshape(-1, 1) / new.norm(dim=1, keepdim=True))
    return (new.T if turned else new).to(weight.dtype).contiguous()


def _dtype(base: Model, name: str) -> torch.dtype:
    return base.weights[name if name in base.weights else EMBEDDING].dtype
