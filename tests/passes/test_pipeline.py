import sys
from collections import Counter
from dataclasses import replace

import llama_layer
import numpy as np
import pytest
from golden import inputs_of, main

from torchane import chips, passes
from torchane.errors import CompileError, LegalityError, UsageError
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Program
from torchane.mil.text import parse, to_text
from torchane.passes import pipeline

PROGRAMS = {
    "forward": llama_layer.forward,
    "norm gradient": llama_layer.norm_gradient,
    "rotation gradient": llama_layer.rotation_gradient,
}


def on_ports(lowered: passes.Lowered, natural: Program, given: dict[str, np.ndarray], arithmetic: str = "ideal"):
    """The natural program's outputs by name, computed by the lowered one from surfaces."""
    program = lowered.program
    surfaces = {
        port.name: lowered.ports[var.name].stored(given[var.name])
        for port, var in zip(program.inputs, natural.inputs, strict=True)
    }
    found = evaluate(program, surfaces, arithmetic=arithmetic)
    return {
        var.name: lowered.ports[var.name].logical_of(found[port.name])
        for port, var in zip(program.outputs, natural.outputs, strict=True)
    }


@pytest.mark.parametrize("chip", chips.names())
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_layer_lowers_to_a_legal_program_with_the_same_numbers(name, chip):
    natural = PROGRAMS[name]()
    lowered = passes.lower(natural, chips.load(chip), {})
    text = to_text(lowered.program)
    chips.require_settled(parse(text), chips.load(chip))
    given = inputs_of(natural, low=0.1, high=1.0)
    wanted = evaluate(natural, given, arithmetic="ideal")
    for output, found in on_ports(lowered, natural, given).items():
        # 1/64 and 64^-0.5 are exact in fp16; sqrt(eps) is not: 2^-12 of an eps of 1e-5, times scores up to 500
        assert np.abs(found - wanted[output]).max() <= 1e-7 * max(1, np.abs(wanted[output]).max())


def test_a_llama_layer_is_few_ops():
    lowered = passes.lower(llama_layer.forward(), chips.load(), {})
    counts = Counter(op.kind.name for op in lowered.program.ops)
    del counts["const"], counts["reshape"]
    # 7 projections, 2 rotations, scores and mix; transposes: the layout's own test counts them
    assert counts["matmul"] == 11
    # of which 13 small ones a norm, that keep its squares within fp16
    assert sum(counts.values()) - counts["transpose"] <= 60


def test_the_gradient_of_a_norm_survives_fp16_where_the_root_is_large():
    natural = llama_layer.norm_gradient()
    lowered = passes.lower(natural, chips.load(), {})
    rng = np.random.default_rng(0)
    given = {
        "x": rng.normal(0, 0.004, (2, 32, 64)),
        "dy": rng.normal(0, 1, (2, 32, 64)),
        "gain": np.ones(64),
        "root": np.full((2, 32, 1), 240.0),
    }
    wanted = evaluate(natural, given, arithmetic="ideal")["add"]
    found = on_ports(lowered, natural, given, "exact")["add"]
    # a dozen roundings of values up to twice the result
    assert np.abs(found - wanted).max() < 24 * 2**-11 * np.abs(wanted).max()


def test_the_same_layer_by_other_names_is_the_same_text():
    natural = llama_layer.forward()
    renamed = llama_layer.forward(taken=("x", "mul", "q_proj", "reshape", "reshape_1", "matmul", "softmax"))
    assert renamed != natural
    texts = [to_text(passes.lower(program, chips.load(), {}).program) for program in (natural, renamed)]
    assert texts[0] == texts[1]


def test_ports_are_named_by_the_natural_program_and_keep_its_order():
    natural = main("""(tensor<fp16, [2, 32]> b, tensor<fp16, [2, 32]> a) {
        tensor<fp16, [2, 32]> y = exp(x = b);
        tensor<fp16, [2, 32]> x = add(x = y, y = a);
    } -> (y, x)""")
    lowered = passes.lower(natural, chips.load(), {"b": None})
    assert {"a", "b", "x", "y"} <= set(lowered.ports)
    assert [var.name for var in lowered.program.inputs] == ["a00_b", "a01_a"]
    assert [var.name for var in lowered.program.outputs] == ["z00_y", "z01_x"]


def test_an_op_without_a_legal_form_is_refused_with_reason_and_remedy():
    natural = main("(tensor<fp16, [2, 32]> x) { tensor<fp16, [2, 32]> y = floor(x = x); } -> (y)")
    with pytest.raises(LegalityError, match=r"the chip portable does not take this program: 1 rules? broken\.\n  z00_y: floor is not taken"):
        passes.lower(natural, chips.load(), {})


def test_a_chip_that_takes_more_is_given_more():
    natural = main("(tensor<fp16, [2, 32]> x) { tensor<fp16, [2, 32]> y = log(x = x, epsilon = fp16(0)); } -> (y)")
    with pytest.raises(LegalityError, match="log is not taken"):
        passes.lower(natural, chips.load(), {})
    assert passes.lower(natural, chips.load("m4"), {}).program


@pytest.mark.parametrize(
    ("kind", "portable", "m4"),
    [("add", True, True), ("silu", True, True), ("concat", True, True), ("layer_norm", True, True), ("select", True, True),
     ("log", False, True), ("reduce_log_sum_exp", False, True), ("floor", False, False), ("topk", False, False)],
)  # fmt: skip
def test_which_kinds_have_a_form(kind, portable, m4):
    assert passes.has_form(kind, chips.load("portable")) is portable
    assert passes.has_form(kind, chips.load("m4")) is m4


def test_a_sum_of_exponentials_lowers_where_there_is_a_logarithm():
    natural = main("""(tensor<fp16, [2, 32]> x) {
        tensor<fp16, [2]> y = reduce_log_sum_exp(x = x, axes = tensor<int32, [1]>([1]));
    } -> (y)""")
    lowered = passes.lower(natural, chips.load("m4"), {})
    given = inputs_of(natural)
    wanted = evaluate(natural, given, arithmetic="ideal")["y"]
    assert np.abs(on_ports(lowered, natural, given)["y"] - wanted).max() < 1e-10


def test_control_flow_and_several_functions_are_refused():
    natural = main("(tensor<fp16, [2, 32]> x) { tensor<fp16, [2, 32]> y = exp(x = x); } -> (y)")
    both = replace(natural, functions=(natural.main, replace(natural.main, name="other")))
    with pytest.raises(CompileError, match="one function and no control flow"):
        passes.lower(both, chips.load(), {})


def test_a_program_that_is_not_well_formed_is_refused_before_any_pass():
    natural = main("(tensor<fp16, [2, 32]> x) { tensor<fp16, [2, 32]> y = exp(x = x); } -> (y)")
    broken = natural.with_(ops=())
    with pytest.raises(CompileError, match="after the pass capture the program is not well formed"):
        passes.lower(broken, chips.load(), {})


def test_a_pass_that_breaks_a_program_is_named():
    def forgets(program: Program) -> Program:
        return program.with_(ops=program.ops[1:])

    natural = main("(tensor<fp16, [2]> x) { tensor<fp16, [2]> a = exp(x = x); tensor<fp16, [2]> y = exp(x = a); } -> (y)")
    with pytest.raises(CompileError, match="after the pass forgets the program is not well formed"):
        passes.run(pipeline.plain(forgets, ""), natural, passes.Job(chips.load()))


def test_a_pass_that_cannot_go_on_is_named():
    b = Builder()
    x = b.input("logits", (2, 32000))
    with pytest.raises(CompileError, match=r"most is 16777216 entries. \(pass lower_selections\)"):
        passes.lower(b.program(b.concat(values=[x, x], axis=1)), chips.load(), {})


def test_every_pass_has_a_reason_for_its_place_and_control_stands_before_outputs_are_settled():
    names = [one.name for one in passes.pass_list(control=True)]
    assert all(one.why for one in passes.pass_list(control=True))
    assert names[names.index("control_ranges") + 1] == "settle_outputs"
    assert [one.name for one in passes.pass_list()] == [name for name in names if name != "control_ranges"]


@pytest.mark.parametrize("name", sorted({one.name for one in passes.pass_list() if not one.needed}))
def test_a_layer_keeps_its_numbers_without_a_pass_that_can_be_left_out(name):
    natural = llama_layer.forward()
    try:
        lowered = passes.lower(natural, chips.load(), {}, without=[name])
    except UsageError as error:  # where the result is illegal, with the chip's reason
        assert f"without={name}" in str(error)
        return
    assert name not in {one.name for one in lowered.passes}
    given = inputs_of(natural, low=0.1, high=1.0)
    wanted = evaluate(natural, given, arithmetic="ideal")
    for output, found in on_ports(lowered, natural, given).items():
        assert np.abs(found - wanted[output]).max() <= 1e-7 * max(1, np.abs(wanted[output]).max())


def test_most_passes_can_be_left_out_of_a_layer():
    natural = llama_layer.forward()
    assert passes.lower(natural, chips.load(), {}, without=["drop_noops", "merge_duplicates", "spread_powers", "scale_squares"]).program


@pytest.mark.parametrize("name", ["inline_constants", "lower_layout", "control_ranges", "name_values", "decompose_norms"])
def test_a_pass_that_is_needed_is_not_left_out(name):
    with pytest.raises(UsageError, match=f"{name} cannot be left out: "):
        passes.pass_list(without=[name])


def test_a_pass_that_nobody_knows_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="no pass is called 'drop_noop' .did you mean drop_noops"):
        passes.pass_list(without=["drop_noop"])


def test_a_program_that_is_illegal_without_a_pass_is_refused_by_the_name_of_the_option():
    natural = main("(tensor<fp16, [2, 32]> x) { tensor<fp16, [1]> one = floor(x = tensor<fp16, [1]>([1.5])); tensor<fp16, [2, 32]> y = add(x = x, y = one); } -> (y)")
    assert passes.lower(natural, chips.load(), {}).program
    with pytest.raises(UsageError, match="without=fold_constants: .* none without them. the chip portable .*\n.*floor is not taken"):
        passes.lower(natural, chips.load(), {}, without=["fold_constants"])


def test_what_each_pass_did_is_told_in_order():
    natural = main("(tensor<fp16, [2, 32]> x) { tensor<fp16, [2, 32]> dead = exp(x = x); tensor<fp16, [2, 32]> y = exp(x = x); } -> (y)")
    lowered = passes.lower(natural, chips.load(), {})
    assert [one.name for one in lowered.passes] == [one.name for one in passes.pass_list()]
    counts = {one.name: one.ops for one in lowered.passes[:2]}
    assert counts == {"inline_constants": 2, "drop_dead": 1}
    assert lowered.passes[-1].ops == len(lowered.program.ops) and all(one.time_s >= 0 for one in lowered.passes)


def _long(count: int) -> Program:
    b = Builder()
    x = w = b.input("x", (4, 32))
    for index in range(count // 5):
        w = b.mul(x=b.silu(x=w), y=x)
        low = b.slice_by_size(x=w, begin=(0, 0), size=(4, 16))
        high = b.slice_by_size(x=w, begin=(0, 16), size=(4, 16))
        w = b.add(x=b.concat(values=[high, low], axis=1), y=b.mul(x=w, y=float(index % 7)))
    return b.program(w)


def _calls(step: passes.Pass, program: Program) -> tuple[Program, int]:
    """The program after a pass, and how many calls that took: the same number however busy the machine is."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        return passes.run(step, program, passes.Job(chips.load())), calls
    finally:
        sys.setprofile(None)


def test_no_pass_is_quadratic():
    """Six times the ops take about six times the calls, in every pass; quadratic work would take 36 times as many."""
    calls = {}
    steps = [one for one in passes.pass_list() if one.name != "lower_layout"]
    for count in (200, 1200):
        program = _long(count)
        for place, step in enumerate(steps):
            program, calls[place, count] = _calls(step, program)
    for place, step in enumerate(steps):
        assert calls[place, 1200] < 10 * max(calls[place, 200], 1000), step.name
