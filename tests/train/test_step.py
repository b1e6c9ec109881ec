"""One optimizer step: right numbers, and the same bits for any number of threads."""

import hashlib
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from torchane import native
from torchane.data.batches import IGNORE, Batch
from torchane.errors import NumericsError
from torchane.models.config import LlamaConfig
from torchane.models.llama import LlamaForCausalLM
from torchane.train.settings import TrainSettings
from torchane.train.step import (
    adamw,
    fixed_order_sum,
    gradient_norm,
    learning_rate,
    parameters,
    token_losses,
    train_step,
)

SETTINGS = TrainSettings(steps=100, batch_size=2, seq_len=16, lr=1e-3, warmup_steps=10)
CONFIG = LlamaConfig(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=4, max_position_embeddings=32)  # fmt: skip


@pytest.fixture
def threads():
    """Sets the number of threads of torch and of our extension; puts them back."""
    before = torch.get_num_threads(), native.get_threads()

    def set_threads(count):
        torch.set_num_threads(count)
        native.set_threads(count)

    yield set_threads
    torch.set_num_threads(before[0])
    native.set_threads(before[1])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sha(*tensors):
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


def batch(counted=16):
    """Random tokens; of every row the first `counted` targets are predicted."""
    generator = torch.Generator().manual_seed(0)
    tokens, targets = (torch.randint(0, 96, (2, 16), generator=generator) for _ in range(2))
    targets[:, counted:] = IGNORE
    return Batch(tokens, targets, target_count=2 * counted, target_bytes=4 * counted)


@pytest.mark.parametrize(("vocab", "tokens"), [(512, 1024), (32000, 128), (259, 999)])
def test_loss_and_its_gradient_have_the_same_bits_for_any_number_of_threads(threads, vocab, tokens):
    targets = torch.randint(0, vocab, (1, tokens), generator=torch.Generator().manual_seed(1))
    seen = set()
    for count in (1, 2, 3):
        threads(count)
        logits = noise(1, tokens, vocab).requires_grad_()
        nll = token_losses(logits, targets)
        nll.backward(gradient=torch.full_like(nll, 1 / tokens))
        seen.add((fixed_order_sum(nll), sha(nll, logits.grad)))
    assert len(seen) == 1


def test_the_embeddings_gradient_has_the_same_bits_for_any_number_of_threads(threads):
    tokens = torch.randint(0, 300, (4, 500), generator=torch.Generator().manual_seed(1))
    seen = set()
    for count in (1, 2, 3):
        threads(count)
        weight = noise(300, 288).requires_grad_()
        F.embedding(tokens, weight).backward(noise(4, 500, 288, seed=2))
        seen.add(sha(weight.grad))
    assert len(seen) == 1


@pytest.mark.parametrize("size", [5, 1001, 99991, 1_000_003])
def test_adamw_and_clipping_have_the_same_bits_for_any_number_of_threads(threads, size):
    seen = set()
    for count in (1, 2, 3):
        threads(count)
        model = torch.nn.Linear(size, 1, bias=True)
        with torch.no_grad():
            model.weight.copy_(noise(1, size))
            model.bias.zero_()
        optimizer = adamw(model, SETTINGS)
        for step in range(3):
            model.weight.grad, model.bias.grad = noise(1, size, seed=step), noise(1, seed=step)
            optimizer.update(1.0 / gradient_norm(parameters(optimizer)))
        seen.add(sha(model.weight, model.bias))
    assert len(seen) == 1


def test_the_loss_is_the_mean_nll_and_the_update_is_torchs():
    ours, theirs = LlamaForCausalLM(CONFIG), LlamaForCausalLM(CONFIG)
    optimizer = adamw(ours, SETTINGS)
    data = batch()
    result = train_step(ours, optimizer, data, grad_clip=0.25)
    loss = F.cross_entropy(theirs(data.tokens).double().flatten(0, 1), data.targets.flatten())
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.25)
    decayed = [param for param in theirs.parameters() if param.ndim > 1]
    plain = [param for param in theirs.parameters() if param.ndim == 1]
    torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.95)
    ).step()
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-5) and result.grad_norm > 0.25
    for (name, got), want in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5, msg=name)  # the first AdamW step is lr * sign(g)


@pytest.mark.parametrize("rows", [7, 600])
def test_token_losses_and_their_gradient_are_those_of_cross_entropy(rows):
    """Tolerance: a few roundings of fp32, of e^ above all."""
    targets = torch.randint(0, 4000, (1, rows), generator=torch.Generator().manual_seed(0))
    targets[0, 3::5] = IGNORE
    weights, ours, theirs = noise(rows), *(noise(1, rows, 4000, seed=1).requires_grad_() for _ in range(2))
    found = token_losses(ours, targets)
    wanted = F.cross_entropy(theirs.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORE)
    found.backward(weights)
    wanted.backward(weights)
    assert torch.allclose(found, wanted, rtol=8 * 2.0**-24, atol=0)
    assert torch.allclose(ours.grad, theirs.grad, rtol=32 * 2.0**-24, atol=4 * 2.0**-24)


def test_logits_in_bf16_get_a_gradient_in_bf16():
    ours, theirs = (noise(1, 6, 96).to(torch.bfloat16).requires_grad_() for _ in range(2))
    targets = torch.zeros(1, 6, dtype=torch.int64)
    token_losses(ours, targets).sum().backward()
    F.cross_entropy(theirs.flatten(0, 1).float(), targets.flatten(), reduction="sum").backward()
    assert ours.grad.dtype == torch.bfloat16 and torch.allclose(ours.grad, theirs.grad, rtol=2.0**-7, atol=1e-4)


def test_the_gradient_lies_where_the_logits_were_and_nobody_reads_these_afterwards():
    logits = noise(1, 6, 96).requires_grad_()
    scores = logits * 1.0
    kept = scores.exp()  # of which autograd keeps the result alone
    address = scores.data_ptr()
    seen = []
    scores.register_hook(lambda grad: seen.append(grad.data_ptr()))
    nll = token_losses(scores, torch.zeros(1, 6, dtype=torch.int64))
    nll.backward(torch.ones(6), retain_graph=True)
    assert seen == [address]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        nll.backward(torch.ones(6))
    kept.sum().backward()
    late = scores.square()
    with torch.no_grad():
        scores.add_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        late.sum().backward()


def test_ignored_targets_weigh_nothing():
    model = LlamaForCausalLM(CONFIG)
    data = batch(counted=8)
    result = train_step(model, adamw(model, SETTINGS), data, grad_clip=1.0)
    want = F.cross_entropy(LlamaForCausalLM(CONFIG)(data.tokens[:, :8]).flatten(0, 1), data.targets[:, :8].flatten())
    assert result.loss == pytest.approx(want.item(), rel=1e-6)


def test_a_loss_that_is_nan_changes_nothing():
    model = LlamaForCausalLM(CONFIG)
    before = sha(*model.parameters())
    with pytest.raises(NumericsError, match="the loss is nan"):
        train_step(lambda tokens: model(tokens) * math.nan, adamw(model, SETTINGS), batch(), grad_clip=1.0)
    assert sha(*model.parameters()) == before


def test_gradients_that_are_infinite_change_nothing():
    model = LlamaForCausalLM(CONFIG)
    before = sha(*model.parameters())
    model.lm_head.weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(NumericsError, match="norm of the gradients is"):
        train_step(model, adamw(model, SETTINGS), batch(), grad_clip=1.0)
    assert sha(*model.parameters()) == before


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=200), st.integers(1, 2000))
def test_the_norm_is_that_of_exact_arithmetic(values, times):
    param = torch.nn.Parameter(torch.zeros(len(values) * times))
    param.grad = torch.tensor(values).repeat(times)
    want = math.sqrt(math.fsum(float(x) ** 2 for x in param.grad))
    assert gradient_norm([param]) == pytest.approx(want, rel=1e-12)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_a_tenth():
    rates = [learning_rate(step, SETTINGS) for step in range(1, 101)]
    assert rates[0] == pytest.approx(1e-4) and rates[9] == 1e-3 and rates[-1] == pytest.approx(1e-4)
    assert rates.index(max(rates)) == 9
    assert all(a > b for a, b in pairwise(rates[9:]))


def test_a_run_shorter_than_its_warm_up_reaches_its_peak_half_way():
    short = TrainSettings(steps=6, batch_size=1, seq_len=8, lr=1.0, warmup_steps=100)
    assert [learning_rate(step, short) for step in range(1, 5)][:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    one = TrainSettings(steps=1, batch_size=1, seq_len=8, lr=1.0, warmup_steps=100)
    assert learning_rate(1, one) == pytest.approx(0.1)
