"""The benchmark's arithmetic, and that its processes answer and fail as they should."""

import pytest
import torch

from torchane.data.batches import Batch
from torchane.errors import UsageError
from torchane.models.config import LlamaConfig
from torchane.models.llama import LlamaForCausalLM
from torchane.train import bench
from torchane.train.bench import bench_train_step, to_table
from torchane.train.bench_worker import GRAD_CLIP, plain_step
from torchane.train.settings import TrainSettings
from torchane.train.step import adamw, train_step

CONFIG = LlamaConfig(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
                     num_key_value_heads=4, max_position_embeddings=16)  # fmt: skip


def test_pytorchs_step_and_ours_do_the_same_work():
    settings = TrainSettings(steps=1, batch_size=2, seq_len=16, lr=1e-3, warmup_steps=0)
    text = torch.randint(0, 96, (2, 17), generator=torch.Generator().manual_seed(0))
    batch = Batch(text[:, :-1].contiguous(), text[:, 1:].contiguous(), target_count=32, target_bytes=0)
    ours, theirs = LlamaForCausalLM(CONFIG), LlamaForCausalLM(CONFIG)
    our_optimizer, their_optimizer = adamw(ours, settings), adamw(theirs, settings)
    for _ in range(3):
        want = train_step(ours, our_optimizer, batch, GRAD_CLIP).loss
        assert plain_step(theirs, theirs, their_optimizer, batch, bf16=False) == pytest.approx(want, rel=1e-4)


def test_it_measures_in_turns_and_lists_what_cannot_run(monkeypatch):
    monkeypatch.setattr(bench, "why_not", lambda variant: "no compiler" if variant == "inductor-fp32" else None)
    report = bench_train_step("tiny", variants=("eager-fp32", "inductor-fp32"), batch_size=1, seq_len=8, threads=1,
                              warmup=1, rounds=2, steps=2)  # fmt: skip
    measured, skipped = report["results"]
    assert skipped == {"variant": "inductor-fp32", "skipped": "no compiler"}
    assert measured["steps"] == 4 and measured["ms_p10"] <= measured["ms_median"] <= measured["ms_p90"]
    assert measured["tokens_per_s"] == pytest.approx(8 / measured["ms_median"] * 1e3)
    assert measured["cpu_ms_median"] > 0
    assert measured["peak_memory_bytes"] > 50e6
    assert {"torch", "platform", "machine", "commit", "command", "threads", "batch_size"} <= set(report)
    assert "skipped: no compiler" in to_table(report) and "eager-fp32" in to_table(report)


def test_a_process_that_fails_is_listed_with_its_last_words():
    report = bench_train_step("tiny", variants=("eager-fp32",), batch_size=1, seq_len=999, threads=1, rounds=1)
    assert "999 tokens and its max_position_embeddings is" in report["results"][0]["skipped"]


def test_without_a_compiler_inductor_is_not_tried(monkeypatch):
    monkeypatch.setattr(bench, "has_cpp_compiler", lambda: False)
    assert "needs a C++ compiler" in bench.why_not("inductor-bf16")
    assert bench.why_not("eager-bf16") is None


def test_unknown_names_list_the_known():
    with pytest.raises(UsageError, match="no variant jax. The variants are twin"):
        bench_train_step("tiny", variants=("jax",))
    with pytest.raises(UsageError, match="no preset 'huge'"):
        bench_train_step("huge", variants=("twin",))
