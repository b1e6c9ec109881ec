"""Plans of a step without running it, on fake weights, and their price."""

import pytest
import torch

from torchane.capture import backend
from torchane.capture.explain import explain
from torchane.capture.plans import compile_step, compile_steps
from torchane.models.build import build_model
from torchane.models.presets import preset
from torchane.plan import pricing_for
from torchane.plan.step import price_step
from torchane.runtime.twin import device as twin


@pytest.fixture(scope="module")
def captured():
    torch._dynamo.reset()
    return compile_step(lambda: build_model(preset("tiny").config), batch_size=2, seq_len=64, options={"chip": "m4"})


def test_the_plans_are_those_that_the_runtime_executes(captured):
    torch._dynamo.reset()
    run = explain(build_model(preset("tiny").config), torch.zeros(2, 64, dtype=torch.long), options={"chip": "m4"})
    assert [plan.name for plan in captured.plans] == ["forward", "backward"]
    for ours, theirs in zip(captured.plans, run.plans, strict=True):
        assert [spec.text for spec in ours.programs] == [spec.text for spec in theirs.programs]
        assert ours.steps == theirs.steps
    assert captured.memory == run.memory


def test_a_step_is_the_sum_of_its_programs(captured):
    price = price_step(captured.outline.graphs, pricing_for("m4"), tokens=128)
    assert price.engine_ms == pytest.approx(sum(program.predicted_ms for program in price.programs))
    assert price.predicted_ms == pytest.approx(price.engine_ms + price.staging_ms - price.hidden_ms)
    assert price.predicted_mj == pytest.approx(sum(program.predicted_mj for program in price.programs))
    assert price.dispatches_per_step == sum(len(plan.dispatches) for plan in captured.plans)
    assert price.flops == 2 * sum(plan.macs for plan in captured.plans)
    assert price.ms_per_256_tokens == pytest.approx(2 * price.predicted_ms)


def test_steps_for_several_chips_are_those_for_each_from_one_trace(monkeypatch):
    config, chosen, traced = preset("tiny").config, [{"chip": "m1", "ranges": "on", "cache": "off"}, {"chip": "m4", "cache": "off"}], []
    trace = backend.aot_compiled
    monkeypatch.setattr(backend, "aot_compiled", lambda *inputs, **given: traced.append(given) or trace(*inputs, **given))
    torch._dynamo.reset()
    together = compile_steps(lambda: build_model(config), batch_size=2, seq_len=64, options=chosen)
    assert len(traced) == 1
    for one, options in zip(together, chosen, strict=True):
        torch._dynamo.reset()
        alone = compile_step(lambda: build_model(config), batch_size=2, seq_len=64, options=options)
        assert (one.plans, one.memory, one.parameters, one.share_in_programs) == (alone.plans, alone.memory, alone.parameters, alone.share_in_programs)
    assert together[0].plans != together[1].plans


def test_one_partition_serves_all_chips_so_what_is_computed_again_is_the_same():
    torch._dynamo.reset()
    with pytest.raises(AssertionError, match="one partition serves all"):
        compile_steps(lambda: build_model(preset("tiny").config), batch_size=1, seq_len=32, options=[{"recompute": "none"}, {"recompute": "half"}])


def test_what_the_host_does_is_listed(captured):
    assert "aten.embedding.default" in price_step(captured.outline.graphs, pricing_for("m1"), tokens=128).host_ops


def test_weights_of_any_size_take_no_memory():
    torch._dynamo.reset()
    seen = []

    def build():
        model = build_model(preset("tiny").config)
        seen.extend(type(parameter.data).__name__ for parameter in model.parameters())
        return model

    compile_step(build, batch_size=1, seq_len=32)
    assert set(seen) == {"FakeTensor"}


def test_no_program_is_loaded(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(twin, "load_program", None)  # calling it would fail
    assert compile_step(lambda: build_model(preset("tiny").config), batch_size=1, seq_len=32).plans[0].programs


def test_the_share_in_programs_is_that_of_the_rows(captured):
    assert captured.share_in_programs == 1.0


def test_warnings_of_host_work_are_left_to_the_caller(recwarn):
    torch._dynamo.reset()
    wide = compile_step(lambda: build_model(preset("tiny").config), batch_size=80, seq_len=256, options={"chip": "m1"})
    assert wide.share_in_programs < 0.5
    assert [warning for warning in recwarn if "PyTorch on the CPU" in str(warning.message)] == []
