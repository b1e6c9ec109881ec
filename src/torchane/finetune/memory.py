"""How much memory a fine-tuning step will take, from the model's config alone, before anything is loaded.

    weights      as their files have them, or in few bits; full: float32
    staged       fp16 copies of weights, in surfaces: of a block's and a part of the head; full: of all products
    training     the trained numbers in float32: gradients, the optimizer's, and an adapter itself
    saved        what the forward keeps for the backward, fp16: a coarse count, per token of a batch; and scores of a loss in slices of the vocabulary
    logits       float32, and their gradient; where the loss is computed in slices of the vocabulary, those of a slice

Compiling tells the exact sizes later (plan/memory.py); this refuses what cannot fit before minutes of loading.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from torchane.capture.few_bits import GROUP
from torchane.capture.vocabulary import SCORES, is_worth_it, most_kept
from torchane.errors import UsageError
from torchane.finetune.adapters import adapter_numbers, blocks_of, first_of, linear_kinds, targets_of
from torchane.finetune.extras import quiet_transformers, require
from torchane.finetune.models import Outline
from torchane.finetune.quantize import targets as in_few_bits
from torchane.finetune.settings import LoraSettings
from torchane.plan.memory import RESERVE_BYTES, free_bytes, size_text

#: Numbers that the optimizer keeps for each trained one.
OPTIMIZER_STATES = {"adam": 2, "adamw": 2, "sgd": 1, "muon": 1, "adafactor": 1}
_LOGITS = 2
#: A wide head is cut into blocks of at most so many rows (capture/wide.py).
_HEAD_ROWS = 1 << 14


@dataclass(frozen=True)
class Estimate:
    """Bytes, by what they hold."""

    weights: int
    staged: int
    training: int
    saved: int
    logits: int

    @property
    def total(self) -> int:
        return sum(getattr(self, each.name) for each in fields(self))

    def __str__(self) -> str:
        sizes = {each.name: getattr(self, each.name) for each in fields(self)}
        return f"{size_text(self.total)} ({', '.join(f'{name} {size_text(size)}' for name, size in sizes.items() if size)})"


@dataclass(frozen=True)
class Sizes:
    """What a model's memory is counted from. numbers: of its parameters. products: those that products read, at_once: of them, in one block or a part of the head; linear: those
    that may be kept in few bits; trained: those that are trained. per_token: what one token's forward keeps for the backward; squared: the same for each pair of tokens.
    is_sliced: logits are simply a product with the head, so that their loss may be computed in slices."""

    numbers: int
    weight_bytes: int
    products: int
    at_once: int
    linear: int
    trained: int
    per_token: int
    squared: int
    vocab: int
    is_sliced: bool = False

    def estimate(self, settings: LoraSettings, length: int) -> Estimate:
        full = settings.fine_tune_type == "full"
        copies = 1 + OPTIMIZER_STATES[settings.optimizer] + (0 if full else 1)
        tokens = settings.batch_size * length
        kept = 0 if settings.grad_checkpoint else tokens * (self.per_token + self.squared * length)
        scores = most_kept(tokens, self.vocab) if self.is_sliced and not settings.grad_checkpoint else 0
        few = 0 if settings.quantize is None else self.linear * (self.weight_bytes / self.numbers - settings.quantize / 8 - 2 * self.weight_bytes / self.numbers / GROUP)
        return Estimate(
            weights=4 * self.numbers if full else int(self.weight_bytes - few),
            staged=2 * (self.products if full else self.at_once),
            training=4 * self.trained * copies,
            saved=2 * kept + scores,
            logits=4 * _LOGITS * (SCORES if self.is_sliced and is_worth_it(tokens, self.vocab) else tokens * self.vocab),
        )


def sizes_of(known: Outline, settings: LoraSettings) -> Sizes:
    """From a config, with the model built without memory."""
    with torch.device("meta"), quiet_transformers():
        model = require("transformers").AutoModelForCausalLM.from_config(known.config)
    return measure(model, settings, known.weight_bytes)


def measure(model: nn.Module, settings: LoraSettings, weight_bytes: int) -> Sizes:
    """Of a model, which may be on the meta device. weight_bytes: of its weights as they are kept."""
    kinds = linear_kinds()
    blocks: Any = blocks_of(model).modules
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    linear = [module for module in model.modules() if isinstance(module, kinds)]
    if settings.fine_tune_type == "full":
        trained = sum(param.numel() for block in blocks[first_of(len(blocks), settings.num_layers) :] for param in block.parameters())
    else:
        targets = [model.get_submodule(name) for name in targets_of(model, settings.num_layers, settings.lora_parameters.keys)]
        shapes = [_out_in(module) for module in targets]
        trained = adapter_numbers(settings.lora_parameters, shapes, dora=settings.fine_tune_type == "dora")
    inside = [module for block in blocks for module in block.modules() if isinstance(module, kinds)]
    return Sizes(
        numbers=sum(param.numel() for param in model.parameters()),
        weight_bytes=weight_bytes,
        products=sum(module.weight.numel() for module in linear),  # type: ignore[union-attr, operator, misc]
        at_once=max(_HEAD_ROWS * config.hidden_size, *(sum(module.weight.numel() for module in block.modules() if isinstance(module, kinds)) for block in blocks)),
        linear=sum(model.get_submodule(name).weight.numel() for name in in_few_bits(model, 4).modules),  # type: ignore[union-attr, operator, misc]
        trained=trained,
        per_token=sum(sum(module.weight.shape) for module in inside),  # type: ignore[union-attr, operator, misc]
        squared=len(blocks) * config.num_attention_heads,
        vocab=config.vocab_size,
        is_sliced=_has_plain_head(model, config),
    )


def _has_plain_head(model: Any, config: Any) -> bool:
    """Logits are a linear layer's results, without a bias, a scale or a cap."""
    head = model.get_output_embeddings()
    changed = any(getattr(config, name, None) not in (None, 1.0) for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"))
    return type(head) is nn.Linear and head.bias is None and not changed


def _out_in(module: Any) -> tuple[int, int]:
    rows, columns = (int(size) for size in module.weight.shape)
    return (rows, columns) if isinstance(module, nn.Linear | nn.Embedding) else (columns, rows)  # GPT-2's are (in, out)


def require_room(sizes: Sizes, settings: LoraSettings, length: int, free: int | None = None) -> Estimate:
    """The estimate for batches of this length. Raises UsageError where it cannot fit, naming what would."""
    needed = sizes.estimate(settings, length)
    free = free_bytes() if free is None else free
    loading = sizes.weight_bytes if settings.quantize else 0  # the file's own type is there before few bits are
    if free is None or max(needed.total, loading) + RESERVE_BYTES <= free:
        return needed
    fits = next((said for said, tried, size in _smaller(settings, length) if sizes.estimate(tried, size).total + RESERVE_BYTES <= free), None)
    advice = f"It would fit with {fits}." if fits else "Nothing smaller of this model would fit: use a smaller model, or a machine with more memory."
    raise UsageError(
        f"A step needs about {needed} and {size_text(RESERVE_BYTES)} to work in; {size_text(free)} of memory are free. {advice}"
    )


def _smaller(settings: LoraSettings, length: int) -> Iterator[tuple[str, LoraSettings, int]]:
    """What asks for less memory, the mildest change first."""
    checked = replace(settings, grad_checkpoint=True)
    yield "--grad-checkpoint", checked, length
    if settings.fine_tune_type != "full" and settings.quantize is None:
        yield "--quantize 4 --grad-checkpoint", replace(checked, quantize=4), length
    size, cut = settings.batch_size, length
    while size > 1:
        size //= 2
        parts = settings.grad_accumulation_steps * (settings.batch_size // size)
        yield f"--grad-checkpoint --batch-size {size} --grad-accumulation-steps {parts}", replace(checked, batch_size=size), length
    while cut > 64:
        cut //= 2
        yield f"--grad-checkpoint --batch-size 1 --max-seq-length {cut}", replace(checked, batch_size=1), cut
