"""Packing: rows that are full, every example once, and each as if it were alone: loss and gradients are those of the same examples unpacked."""

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import transformers

from torchane.data.batches import IGNORE
from torchane.errors import DataError, UsageError
from torchane.finetune.adapters import add_adapter, trained
from torchane.finetune.batches import pad, padding_share
from torchane.finetune.data import Example
from torchane.finetune.loop import Logits, accumulate
from torchane.finetune.packing import PackedBatches, pack, packed, require_apart, row_length
from torchane.finetune.settings import LoraParameters, LoraSettings
from torchane.train.engine import EngineModel
from torchane.train.forward import HostModel

RNG = np.random.default_rng(0)
#: Some longer than the windows of Mistral and Gemma (tiny.py), some with a prompt that is not learned.
EXAMPLES = [Example(RNG.integers(0, 256, size).astype(np.int32), int(offset)) for size, offset in ((100, 0), (70, 30), (40, 39), (33, 0), (20, 5), (12, 0), (9, 8), (5, 0), (2, 0), (64, 0))]
ROWS = [[EXAMPLES[i] for i in row] for row in ([0, 4, 8], [1, 2, 7], [9, 3, 5, 6])]


def batches(**changes):
    arguments = {"batch_size": 4, "length": 64, "seed": 1} | changes
    sizes = np.random.default_rng(2).integers(2, 60, 101)
    return PackedBatches([Example(np.arange(1, size + 1, dtype=np.int32)) for size in sizes], **arguments)


def test_a_row_takes_what_fits_best():
    assert pack([5, 4, 3, 2, 2, 1], 8) == [[0, 2], [1, 3, 4]] + [[5]]
    assert pack([8, 8], 8) == [[0], [1]]


def test_rows_hold_every_example_once_and_no_more_than_fits():
    needed = sorted(RNG.integers(1, 100, 500).tolist(), reverse=True)
    rows = pack(needed, 128)
    assert sorted(itertools.chain(*rows)) == list(range(500))
    assert max(sum(needed[i] for i in row) for row in rows) <= 128
    assert len(rows) <= 11 / 9 * -(-sum(needed) // 128) + 1  # what best fit decreasing keeps to: Johnson 1973


def test_each_example_has_its_own_positions_and_no_target_of_another():
    batch = packed([[Example(np.array([5, 6, 7], np.int32)), Example(np.array([1, 2, 3, 4], np.int32), 3)], [Example(np.array([8, 9], np.int32))]], 8)
    assert batch.tokens.tolist() == [[5, 6, 1, 2, 3, 0, 0, 0], [8] + [0] * 7]
    assert batch.targets.tolist() == [[6, 7, IGNORE, IGNORE, 4] + [IGNORE] * 3, [9] + [IGNORE] * 7]
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2, 0, 1, 2], [0, 0, 1, 2, 3, 4, 5, 6]]
    assert batch.target_count == 4


def test_an_epoch_shows_every_example_in_rows_of_another_order():
    made = batches(batch_size=1)
    epochs = [made._order(epoch) for epoch in range(2)]
    assert all(sorted(itertools.chain(*rows)) == list(range(101)) and len(rows) == made.row_count for rows in epochs)
    assert epochs[0] != epochs[1]
    shown = sum(made.batch(i).target_count for i in range(made.batches_per_epoch))
    assert shown == made._needed.sum() and abs(1 - shown / (made.row_count * 64) - made.padding_share) < 1e-12


def test_a_batch_follows_from_seed_and_iteration():
    made, again, other = batches(), batches(), batches(seed=2)
    first = made.batch(1)
    made.batch(made.batches_per_epoch + 2)
    for each in (made.batch(1), again.batch(1)):
        assert all(torch.equal(*both) for both in zip((each.tokens, each.targets, *each.more), (first.tokens, first.targets, *first.more), strict=True))
    assert not all(torch.equal(made.batch(i).tokens, other.batch(i).tokens) for i in range(made.batches_per_epoch))


def test_a_row_ends_where_the_model_does():
    assert row_length(2048, 1 << 30) == 2048 and row_length(50, 512) == 64 and row_length(49, 49) == 49


def test_examples_that_do_not_fill_a_batch_are_refused():
    with pytest.raises(DataError, match=r"101 examples fill 2 rows of 2,048 tokens, and a batch has 4"):
        batches(length=2048)


def test_the_share_of_padding_is_that_of_the_rows():
    assert padding_share([Example(np.zeros(33, np.int32)), Example(np.zeros(17, np.int32))], (16, 64)) == 1 - 48 / 80


def adapted(kind):
    model = add_adapter(tiny.model(kind), LoraSettings(num_layers=-1, lora_parameters=LoraParameters(rank=4, scale=4.0)), "base")
    for name, param in trained(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(param, std=0.02)
    return model.train()


def step(kind, compiled):
    """The loss, and the largest relative distance of a gradient, from those of the same examples unpacked, in PyTorch float32."""
    alone = adapted(kind)
    together = copy.deepcopy(alone)
    rows, padded = packed(ROWS, 128), pad(EXAMPLES, len(EXAMPLES), (99,))
    assert rows.target_count == padded.target_count
    wanted, found = accumulate(HostModel(Logits(alone)), padded, 1), accumulate(compiled(Logits(together)), rows, 1)
    own = trained(together)
    return abs(found - wanted) / wanted, max(float((own[name].grad - param.grad).norm() / param.grad.norm()) for name, param in trained(alone).items())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_packed_examples_have_the_loss_and_gradients_of_the_same_examples_unpacked(kind):
    loss, gradient = step(kind, HostModel)
    assert loss < 1e-6 and gradient < 1e-5, (loss, gradient)


def through_programs(model):
    return EngineModel(model, "twin", frozen="reused")


def test_so_they_have_through_programs():
    loss, gradient = step("qwen3", through_programs)
    assert loss < 1e-3 and gradient < 0.01, (loss, gradient)


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(tiny.CONFIGS))
def test_every_architecture_keeps_them_apart_through_programs(kind):
    require_apart(tiny.model(kind))
    loss, gradient = step(kind, through_programs)
    print(f"\n{kind} packed: loss within {100 * loss:.4f} %, gradients within {100 * gradient:.3f} %")
    assert loss < 1e-3 and gradient < 0.01, (loss, gradient)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_a_model_that_keeps_examples_apart_is_taken_and_left_as_it_was(kind):
    model = tiny.model(kind).eval()
    before = model.config.to_dict()
    require_apart(model)
    assert model.config.to_dict() == before


def test_a_model_whose_state_goes_on_is_refused():
    config = transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8)
    with pytest.raises(UsageError, match=r"--packing: MambaForCausalLM .*Leave --packing out"):
        require_apart(transformers.MambaForCausalLM(config).eval())


def test_a_model_that_takes_no_notice_of_positions_is_refused():
    inner = tiny.model("gpt2").eval()

    def forward(input_ids, position_ids=None, use_cache=False):
        return SimpleNamespace(logits=inner(input_ids=input_ids).logits)

    forward.config = inner.config
    with pytest.raises(UsageError, match=r"does not keep the examples of a row apart: .* Leave --packing out"):
        require_apart(forward)
