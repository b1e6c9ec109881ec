"""The benchmark's arithmetic, and that its processes answer and fail as they should."""

import pytest
import torch

from torchane import native
from torchane.data.batches import Batch
from torchane.errors import NumericsError, UsageError
from torchane.models.config import LlamaConfig
from torchane.models.llama import LlamaForCausalLM
from torchane.train import bench
from torchane.train.bench import Process, bench_train_step, ratios, require_equal_losses, to_table
from torchane.train.bench_parts import PARTS, PartTimer, measure_parts, part_of
from torchane.train.bench_peak import Peak
from torchane.train.bench_worker import GRAD_CLIP, Work, make_step, plain_step
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
    assert measured["macs"] is None and measured["share_of_peak"] is None and report["ratios"] == {} and report["peak_gflops"]["fp32"] > 0
    assert "skipped: no compiler" in to_table(report) and "eager-fp32" in to_table(report)


def process(variant: str, round_ms=(), losses=()) -> Process:
    times_s = [ms / 1e3 for ms in round_ms]
    return Process(Work(variant, "tiny", 1, 8, 1), None, times_s=times_s, round_ms=list(round_ms), losses=list(losses))


def test_a_ratio_is_taken_round_by_round_against_the_fastest_of_pytorch():
    running = [process("twin", [10, 20, 10]), process("twin-fast", [5, 5, 5]), process("eager-fp32", [50, 50, 50]), process("eager-bf16", [20, 30, 40])]
    assert ratios(running) == {
        "exact/best-torch": {"median": 2.0, "least": 1.5, "most": 4.0, "torch": "eager-bf16"},
        "fast/best-torch": {"median": 6.0, "least": 4.0, "most": 8.0, "torch": "eager-bf16"},
    }
    assert ratios(running[:2]) == {}


def test_losses_that_part_from_pytorchs_fp32_by_more_than_a_hundredth_end_it():
    theirs = [process("eager-bf16", losses=[9.0, 9.0]), process("inductor-fp32", losses=[2.0, 1.0])]
    require_equal_losses([process("twin", losses=[2.01, 1.005]), *theirs])
    for wrong in (1.02, float("nan")):
        with pytest.raises(NumericsError, match=r"twin-fast: the loss of step 1 is .* inductor-fp32 has 1: more than 1% apart"):
            require_equal_losses([process("twin-fast", losses=[2.0, wrong]), *theirs])


def test_the_parts_of_a_step_add_up_to_it():
    timer = PartTimer()
    parts = measure_parts(make_step(Work("twin", "stories260k", 1, 32, 1), timer), timer, 1)
    assert set(parts) == {*PARTS, "whole"} and all(parts[name] > 0 for name in ("products", "element-wise", "staging", "loss", "clipping", "optimizer"))
    assert sum(parts[name] for name in PARTS) == pytest.approx(parts["whole"], rel=0.02)


@pytest.mark.parametrize(("ops", "part"), [
    (["matmul", "add", "softmax", "matmul"], "attention"), (["matmul"], "products"), (["conv", "add"], "products"), (["softmax"], "softmax"), (["mul", "reduce_sum", "rsqrt"], "sums and norms"),
    (["transpose"], "moves"), (["slice_by_index", "concat"], "moves"), (["mul", "transpose"], "element-wise"), (["silu"], "element-wise"),
])  # fmt: skip
def test_a_step_of_a_tape_belongs_to_the_part_that_its_ops_say(ops, part):
    assert part_of(ops) == part


def test_the_peak_is_the_best_of_all_measurements_and_leaves_the_threads_as_they_were():
    before = native.get_threads(), torch.get_num_threads()
    peak = Peak(1)
    peak.measure()
    first = peak.to_dict()
    peak.measure()
    assert {"fp32", "bf16", "exact"} <= set(first) and all(peak.gflops[kind] >= first[kind] > 0 for kind in first)
    assert peak.of("twin") == max(peak.gflops["fp32"], peak.gflops["exact"]) * 1e9
    assert before == (native.get_threads(), torch.get_num_threads())


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
