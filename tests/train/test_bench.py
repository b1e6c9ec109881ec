"""The benchmark's arithmetic, and that its processes answer and fail as they should."""

import json
from contextlib import ExitStack

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from torchane import native
from torchane.cli.bench import command
from torchane.data.batches import Batch
from torchane.errors import NumericsError, UsageError
from torchane.mil.build import Builder
from torchane.models.config import GPT2Config, LlamaConfig
from torchane.models.llama import LlamaForCausalLM
from torchane.models.presets import Preset, TrainingDefaults
from torchane.runtime.twin import load_program
from torchane.train import bench, bench_turns, bench_worker
from torchane.train.bench import bench_train_step, loss_gaps, ratios, reference_of, save, to_table
from torchane.train.bench_parts import PARTS, PartTimer, measure_parts, part_of, with_floors
from torchane.train.bench_peak import Peak
from torchane.train.bench_process import Process
from torchane.train.bench_turns import Turns
from torchane.train.bench_worker import GRAD_CLIP, Work, draws_masks, make_step, measure, plain_step
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


def test_it_measures_in_turns_and_lists_what_cannot_run(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_turns, "why_not", lambda variant: "no compiler" if variant == "inductor-fp32" else None)
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
    assert report["losses"] == {"reference": "eager-fp32", "steps": 20, "largest_gap": {}, "parted": []}
    assert report["processor"] in to_table(report) and len(report["load"]) == 2
    report["losses"]["parted"] = ["twin: the loss of step 3 is 2, ..."]
    monkeypatch.setattr(bench, "bench_train_step", lambda *given, **options: report)
    result = CliRunner().invoke(command, ["train-step", "--json", "--out", str(tmp_path)])  # losses that part: it fails with all that it measured
    assert isinstance(result.exception, NumericsError) and "the loss of step 3 is 2, ... Please report it" in str(result.exception)
    assert "losses part: twin: the loss of step 3" in result.stderr and json.loads(result.stdout) == report
    assert json.loads(next(tmp_path.glob("*.json")).read_text()) == report


def process(variant: str, round_ms=(), losses=(), peak: int = 100) -> Process:
    times_s = [ms / 1e3 for ms in round_ms]
    return Process(Work(variant, "tiny", 1, 8, 1), None, times_s=times_s, cpu_times_s=[2 * one for one in times_s], round_ms=list(round_ms),
                   losses=list(losses), peak_memory_bytes=peak, warm_s=min(times_s, default=0.0))  # fmt: skip


def test_a_ratio_is_taken_round_by_round_against_the_fastest_of_pytorch():
    theirs = [process("eager-fp32", [50, 50, 50]), process("eager-bf16", [20, 30, 40], peak=200)]
    running = [process("twin", [10, 20, 10]), process("twin-fast", [5, 5, 5], peak=50), *theirs]
    both = {"torch": "eager-bf16", "in_turns": True, "unsteady": []}
    assert ratios(running) == {
        "exact/best-torch": {"median": 2.0, "least": 1.5, "most": 4.0, "processor": 3.0, "peak_memory": 0.5, **both},
        "fast/best-torch": {"median": 6.0, "least": 4.0, "most": 8.0, "processor": 6.0, "peak_memory": 0.25, **both},
    }
    theirs[1].in_turns = False
    assert not ratios(running)["exact/best-torch"]["in_turns"]
    assert ratios(running[:2]) == {}


def test_a_ratio_with_a_variant_that_was_held_up_is_marked_and_said():
    theirs = process("inductor-bf16", [1428, 366, 2323])
    theirs.warm_s = 0.012
    found = ratios([process("twin", [24, 25, 26]), theirs])
    assert found["exact/best-torch"]["unsteady"] == ["inductor-bf16"]
    assert ratios([process("twin", [24, 25, 60]), process("inductor-bf16", [30, 40, 31])])["exact/best-torch"]["unsteady"] == []
    assert ratios([process("twin", [24, 50, 60]), process("inductor-bf16", [30, 40, 31])])["exact/best-torch"]["unsteady"] == ["twin"]


def test_losses_that_part_from_pytorchs_fp32_by_more_than_a_hundredth_are_said():
    theirs = process("inductor-fp32", losses=[2.0, 1.0])
    assert loss_gaps([process("twin", losses=[2.01, 1.005]), theirs], "inductor-fp32") == ({"twin": pytest.approx(0.005)}, [])
    for wrong, gap in (1.02, pytest.approx(0.02)), (float("nan"), None):
        gaps, (text,) = loss_gaps([process("twin-fast", losses=[2.0, wrong]), theirs], "inductor-fp32")
        assert gaps == {"twin-fast": gap} and text.startswith(f"twin-fast: the loss of step 1 is {wrong:g}, and inductor-fp32 has 1: more than 1% apart")


def test_products_of_bf16_numbers_may_be_as_far_as_autocast_is():
    theirs, autocast = process("eager-fp32", losses=[2.0, 1.0]), process("eager-bf16", losses=[2.0, 1.03])
    fast = process("twin-fast", losses=[2.0, 1.02])
    assert loss_gaps([fast, theirs, autocast], "eager-fp32") == ({"twin-fast": pytest.approx(0.02), "eager-bf16": pytest.approx(0.03)}, [])
    for ours in (process("twin-fast", losses=[2.0, 1.04]), process("twin", losses=[2.0, 1.02])):
        _, (text,) = loss_gaps([ours, theirs, autocast], "eager-fp32")
        assert "apart, so that their times cannot be compared" in text


def test_twenty_losses_are_compared_however_few_steps_are_timed():
    turns = Turns(1, 1, 1, ["eager-fp32"], lambda text: None)
    with ExitStack() as stack:
        turns.take([Work("eager-fp32", "stories260k", 1, 8, 1)], stack)
    (timed,) = turns.timed
    assert len(timed.times_s) == 1 and len(timed.losses) == 20 == len(set(timed.losses))


@pytest.mark.parametrize(("variants", "draws", "reference"), [
    (("inductor-fp32", "eager-fp32", "twin"), False, "eager-fp32"), (("eager-bf16", "inductor-max-fp32"), False, "inductor-max-fp32"),
    (("eager-bf16", "inductor-fp32"), True, "eager-bf16"), (("inductor-fp32", "twin"), True, None), (("twin",), False, None),
])  # fmt: skip
def test_losses_are_compared_with_what_is_nearest_to_fp32_and_draws_the_same_masks(variants, draws, reference):
    assert reference_of(variants, draws) == reference
    assert draws_masks("gpt2") and not draws_masks("tiny")


def test_a_step_has_masks_of_its_own_which_are_eagers(monkeypatch):
    small = GPT2Config(vocab_size=96, n_positions=16, n_embd=32, n_layer=2, n_head=4)
    monkeypatch.setattr(bench_worker, "preset", lambda name: Preset(name, "", small, TrainingDefaults(2, 16, 1, 1e-3, 0)))
    ours, theirs, bf16 = (measure(make_step(Work(variant, "small", 2, 16, 1)), 4)["losses"] for variant in ("twin", "eager-fp32", "eager-bf16"))
    assert ours == pytest.approx(theirs, rel=1e-3) and bf16 == pytest.approx(theirs, rel=5e-3)
    undrawn = measure(make_step(Work("eager-fp32", "small", 2, 16, 1)), 4)["losses"]
    assert undrawn == theirs  # a step's masks are its number's, whoever draws
    monkeypatch.setattr(bench_worker.itertools, "count", lambda: iter([5] * 9))
    assert measure(make_step(Work("eager-fp32", "small", 2, 16, 1)), 1)["losses"][0] != pytest.approx(theirs[0], rel=1e-3)


def test_what_is_far_slower_than_the_best_of_pytorch_is_timed_once_and_ends(monkeypatch):
    turns = Turns(2, 5, 1, [], lambda text: None)
    ended = []
    monkeypatch.setattr(Turns, "_end_alone", lambda self, process, rounds, why: ended.append((process.work.variant, rounds)))
    slow, fast, ours = process("eager-fp32"), process("eager-bf16"), process("twin")
    slow.warm_s, slow.warm_cpu_s, fast.warm_s, fast.warm_cpu_s, ours.warm_s, ours.warm_cpu_s = 1.6, 1.6, 1.0, 1.0, 9.0, 9.0
    turns._running = [slow, fast, ours]
    turns._drop_far_slower()
    assert ended == [("eager-fp32", 1)]
    slow.warm_cpu_s = 1.4  # only slower by the clock: somebody else's work may be why
    turns._drop_far_slower()
    assert len(ended) == 1


def test_where_memory_has_no_room_for_the_next_the_slowest_is_timed_to_its_end(monkeypatch):
    turns, free = Turns(2, 3, 1, [], lambda text: None), iter([110, 130])
    ended = []
    monkeypatch.setattr(bench_turns, "free_bytes", lambda: next(free))
    monkeypatch.setattr(Turns, "_end_alone", lambda self, process, rounds, why: ended.append((process.work.variant, rounds)))
    turns._running = [process("eager-bf16"), process("twin", peak=100)]
    turns._running[1].warm_s = 2.0
    turns._make_room()
    assert ended == [("twin", 3)]


def test_a_report_is_kept_under_a_name_that_says_what_was_measured(tmp_path):
    report = {"preset": "tiny", "batch_size": 4, "seq_len": 64, "ratios": {}}
    bench.require_writable(tmp_path / "new")
    assert save(report, tmp_path / "new") == tmp_path / "new" / "train-step-tiny-4x64.json"
    assert json.loads(save(report, tmp_path / "one.json").read_text()) == report
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out .*file: there can be no folder"):
        bench.require_writable(tmp_path / "file")


def test_the_parts_of_a_step_add_up_to_it():
    timer = PartTimer()
    parts = measure_parts(make_step(Work("twin", "stories260k", 1, 32, 1), timer), timer, 1)
    taken = {name: part["ms"] for name, part in parts.items()}
    assert set(parts) == {*PARTS, "whole"}
    assert all(taken[name] > 0 for name in ("products", "attention", "norms", "element-wise", "staging", "loss", "clipping", "optimizer", "Python"))
    assert sum(taken[name] for name in PARTS) == pytest.approx(taken["whole"], rel=0.02)
    assert all(parts[name]["mb"] > 0 for name in ("products", "attention", "norms", "element-wise", "staging"))


def test_a_floor_is_multiply_adds_at_the_peak_or_bytes_at_the_speed_of_memory():
    parts = {name: {"ms": 1.0, "mb": 0.0} for name in (*PARTS, "whole")} | {"norms": {"ms": 1.0, "mb": 3.0}}
    found = with_floors(parts, macs=10**9, parameters=10**6, scores=10**6, flops=1e12, bytes_per_s=1e9)
    floors = {name: part["floor_ms"] for name, part in found.items() if "floor_ms" in part}
    assert floors == {"products": 2.0, "norms": 3.0, "clipping": 2.0, "optimizer": 28.0, "loss": 16.0}
    table = bench.bench_parts.to_table("twin", found)
    assert "28.0 ms, bytes at the speed of memory" in table and "2.0 ms, multiply-adds at the peak" in table


def test_a_steps_traffic_is_what_it_reads_and_writes():
    b = Builder()
    x, y = b.input("x", (32, 64)), b.input("y", (64, 96))
    program = load_program(b.program(b.matmul(x=x, y=y)), "one product")
    assert program.traffic == (2 * (32 * 64 + 64 * 96 + 32 * 96), 0)


@pytest.mark.parametrize(("ops", "part"), [
    (["matmul"], "products"), (["conv", "add"], "products"), (["softmax"], "attention"), (["matmul", "add", "softmax", "matmul"], "attention"), (["matmul", "matmul"], "attention"), (["matmul", "maximum", "matmul", "exp", "reduce_sum"], "products"), (["mul", "reduce_sum", "rsqrt"], "norms"),
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
    monkeypatch.setattr(bench_turns, "has_cpp_compiler", lambda: False)
    assert "needs a C++ compiler" in bench_turns.why_not("inductor-bf16")
    assert bench_turns.why_not("eager-bf16") is None


def test_instructions_that_the_environment_leaves_out_are_said_with_those_of_the_other_side():
    masks = dict.fromkeys(bench.MASKS, "avx2")
    assert bench.masked({**masks, "PATH": "/bin"}) == masks and bench.masked({"TORCHANE_ISA": ""}) == {}
    assert "say nothing" not in bench.masks_line(masks) and "ONEDNN_MAX_CPU_ISA=avx2" in bench.masks_line(masks)
    line = bench.masks_line({"TORCHANE_ISA": "avx2"})
    assert "ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA, MKL_ENABLE_INSTRUCTIONS not set" in line and "say nothing" in line


def test_unknown_names_list_the_known():
    with pytest.raises(UsageError, match="no variant jax. The variants are twin"):
        bench_train_step("tiny", variants=("jax",))
    with pytest.raises(UsageError, match="no preset 'huge'"):
        bench_train_step("huge", variants=("twin",))


@pytest.mark.parametrize(("weights", "rate"), [(1_000, 2e-5), (30_000_000, 2e-5), (600_000_000, 1e-6)])
def test_a_larger_model_takes_a_smaller_rate(weights, rate):
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(torch.empty(weights, device="meta")))
    assert bench_worker.learning_rate(model) == pytest.approx(rate)
