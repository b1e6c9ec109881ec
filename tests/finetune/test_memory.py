"""The estimate before loading: exact in what can be counted, and what is too large is refused with what would fit."""

from dataclasses import replace

import pytest
import tiny
import torch

from torchane.convert import gguf, hf
from torchane.errors import UsageError
from torchane.finetune.adapters import add_adapter, free_blocks, trained
from torchane.finetune.memory import measure, require_room, sizes_of
from torchane.finetune.models import load_base, outline
from torchane.finetune.settings import LoraSettings

SETTINGS = LoraSettings(batch_size=8)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("how", ["lora", "dora", "full"])
def test_what_is_trained_is_counted_exactly(kind, how):
    settings = replace(SETTINGS, fine_tune_type=how, num_layers=2)
    sizes = measure(tiny.model(kind), settings, 0)
    model = tiny.model(kind)
    made = free_blocks(model, 2) if how == "full" else add_adapter(model, settings, "b")
    assert sizes.trained == sum(param.numel() for param in trained(made).values())


def test_a_folder_is_measured_without_its_weights(tmp_path):
    path = tiny.folder(tmp_path / "m", "qwen3", dtype=torch.bfloat16)
    sizes = sizes_of(outline(path), SETTINGS)
    count = sum(param.numel() for param in tiny.model("qwen3").parameters())
    assert sizes.numbers == count and 2 * count <= sizes.weight_bytes <= 2 * count + 10_000


@pytest.mark.parametrize("kind", ["bf16", "q8_0"])
def test_a_file_is_measured_without_its_weights(tmp_path, kind):
    gguf.write(hf.read(tiny.folder(tmp_path / "m", "qwen3", dtype=torch.bfloat16)), tmp_path / "m.gguf", kind)
    sizes = sizes_of(outline(tmp_path / "m.gguf"), SETTINGS)
    loaded = list(load_base(tmp_path / "m.gguf").model.parameters())
    assert sizes.numbers == sum(param.numel() for param in loaded) and sizes.weight_bytes == sum(param.numel() * param.element_size() for param in loaded)


def test_too_little_memory_names_what_would_fit():
    sizes = measure(tiny.model("llama"), SETTINGS, 1 << 20)
    needed = sizes.estimate(SETTINGS, 512)
    one = sizes.estimate(replace(SETTINGS, grad_checkpoint=True), 512).total
    with pytest.raises(UsageError, match="A step needs about .*It would fit with --grad-checkpoint[.]"):
        require_room(sizes, SETTINGS, 512, free=one + (1 << 30))
    smaller = sizes.estimate(replace(SETTINGS, grad_checkpoint=True, batch_size=4), 512).total
    with pytest.raises(UsageError, match="It would fit with --grad-checkpoint --batch-size 4 --grad-accumulation-steps 2"):
        require_room(sizes, SETTINGS, 512, free=smaller + (1 << 30))
    with pytest.raises(UsageError, match="Nothing smaller of this model would fit"):
        require_room(sizes, SETTINGS, 512, free=1 << 20)
    assert require_room(sizes, SETTINGS, 512, free=needed.total + (1 << 30)) == needed


def test_logits_count_where_their_loss_is_not_in_slices():
    """Gemma 2 caps its logits; of the others a slice is there at a time, where the vocabulary is large."""
    plain, capped = (replace(measure(tiny.model(kind), SETTINGS, 0), vocab=200_000) for kind in ("llama", "gemma2"))
    assert plain.estimate(SETTINGS, 512).logits < 100e6 < 2 * 4 * 8 * 512 * 200_000 == capped.estimate(SETTINGS, 512).logits
    few = replace(plain, vocab=500)
    assert few.estimate(SETTINGS, 512).logits == 2 * 4 * 8 * 512 * 500


def test_scores_that_a_loss_in_slices_keeps_count_as_saved():
    plain = replace(measure(tiny.model("llama"), SETTINGS, 0), vocab=200_000)

    def scores(settings, length):
        return plain.estimate(settings, length).saved - replace(plain, is_sliced=False).estimate(settings, length).saved

    assert scores(SETTINGS, 16) == 2 * 8 * 16 * 200_000 and scores(SETTINGS, 512) == 1 << 29
    assert scores(replace(SETTINGS, grad_checkpoint=True), 512) == 0
