"""Every rule of `portable` once kept and once broken, on text as a device is given it."""

import pytest

from torchane import chips
from torchane.chips import refusals, require_legal, warnings
from torchane.errors import LegalityError
from torchane.mil.ir import Block, Op
from torchane.mil.kinds import kind_of
from torchane.mil.text import parse

PORTABLE = chips.load("portable")
T = "tensor<fp16, [1, 8, 1, 32]>"
CONSTANTS = """
        fp16 half = const()[val = fp16(0.5)];
        bool f = const()[val = bool(false)];
        bool t = const()[val = bool(true)];
        int32 last = const()[val = int32(-1)];
        int32 first = const()[val = int32(1)];
        int32 one = const()[val = int32(1)];
        tensor<int32, [1]> axis1 = const()[val = tensor<int32, [1]>([1])];
        tensor<int32, [1]> axis3 = const()[val = tensor<int32, [1]>([3])];
        tensor<int32, [4]> origin = const()[val = tensor<int32, [4]>([0, 0, 0, 0])];
        tensor<int32, [4]> inside = const()[val = tensor<int32, [4]>([0, 0, 0, 4])];
        tensor<int32, [4]> deeper = const()[val = tensor<int32, [4]>([0, 4, 0, 0])];
        tensor<int32, [4]> small = const()[val = tensor<int32, [4]>([1, 4, 1, 16])];
        tensor<int32, [3]> flat = const()[val = tensor<int32, [3]>([1, 8, 32])];
        string valid = const()[val = string("valid")];
        tensor<int32, [2]> ones2 = const()[val = tensor<int32, [2]>([1, 1])];
        tensor<int32, [4]> zeros4 = const()[val = tensor<int32, [4]>([0, 0, 0, 0])];
        tensor<fp16, [2, 8, 1, 1]> w = const()[val = tensor<fp16, [2, 8, 1, 1]>(BLOBFILE(path = string("@model_path/weights/w.bin"), offset = uint64(64)))];
        tensor<fp16, [2, 8, 1, 3]> wide = const()[val = tensor<fp16, [2, 8, 1, 3]>(BLOBFILE(path = string("@model_path/weights/w.bin"), offset = uint64(128)))];
        tensor<fp16, [2]> bias = const()[val = tensor<fp16, [2]>([0, 0])];
        fp16 zero = const()[val = fp16(0)];
"""


def program(body: str, params: str = f"{T} a00_x, {T} a01_y", outputs: str = "z00", constants: str = CONSTANTS):
    return parse(f"program(1.3)\n{{\nfunc main<ios18>({params}) {{{constants}{body}\n}} -> ({outputs});\n}}\n")


def broken(body: str, **rest: str) -> list[tuple[str, str]]:
    return [(refusal.name, refusal.rule) for refusal in refusals(program(body, **rest), PORTABLE)]


LEGAL = {
    "add": f"{T} z00 = add(x = a00_x, y = a01_y);",
    "mul by a scalar": f"{T} z00 = mul(x = a00_x, y = half);",
    "pow": f"{T} z00 = pow(x = a00_x, y = half);",
    "matmul": "tensor<fp16, [1, 8, 32, 32]> z00 = matmul(x = a00_x, y = a01_y, transpose_x = t, transpose_y = f);",
    "softmax": f"{T} z00 = softmax(x = a00_x, axis = last);",
    "reduce_sum": "tensor<fp16, [1, 1, 1, 32]> z00 = reduce_sum(x = a00_x, axes = axis1, keep_dims = t);",
    "slice": "tensor<fp16, [1, 4, 1, 16]> a = slice_by_size(x = a00_x, begin = deeper, size = small);"
    f"{T} z00 = add(x = a00_x, y = a01_y);",
    "conv": "tensor<fp16, [1, 2, 1, 32]> z00 = conv(x = a00_x, weight = w, strides = ones2, pad_type = valid, "
    "pad = zeros4, dilations = ones2, groups = one);",
}


@pytest.mark.parametrize("name", LEGAL)
def test_what_is_legal_is_let_through(name):
    assert broken(LEGAL[name]) == []
    require_legal(program(LEGAL[name]), PORTABLE)


ILLEGAL = {
    "an op that is not taken": (f"{T} z00 = rsqrt(x = a00_x, epsilon = half);", ("z00", "taken")),
    "an op that nobody knows": (f"{T} z00 = frobnicate(x = a00_x);", ("z00", "taken")),
    "a cast": ("tensor<fp32, [1, 8, 1, 32]> z00 = cast(x = a00_x, dtype = valid);", ("z00", "taken")),
    "integers": (f"tensor<int32, [1, 8, 1, 32]> a = add(x = a00_x, y = a01_y); {T} z00 = exp(x = a00_x);", ("a", "fp16_only")),
    "an exponent of run time": (f"{T} z00 = pow(x = a00_x, y = a01_y);", ("z00", "constant")),
    "a literal argument": (f"{T} z00 = mul(x = a00_x, y = fp16(0.5));", ("z00", "named_constants")),
    "an argument left out": ("tensor<fp16, [1, 8, 1, 1]> z00 = matmul(x = a00_x, y = a01_y, transpose_y = t);", ("z00", "explicit_arguments")),
    "softmax over channels": (f"{T} z00 = softmax(x = a00_x, axis = first);", ("z00", "last_axis")),
    "a sum that drops its axis": ("tensor<fp16, [1, 1, 1, 32]> z00 = reduce_sum(x = a00_x, axes = axis1, keep_dims = f);", ("z00", "argument")),
    "a maximum over channels": ("tensor<fp16, [1, 1, 1, 32]> z00 = reduce_max(x = a00_x, axes = axis1, keep_dims = t);", ("z00", "last_axis")),
    "the middle of a row": (
        f"tensor<fp16, [1, 4, 1, 16]> a = slice_by_size(x = a00_x, begin = inside, size = small); {T} z00 = exp(x = a00_x);",
        ("a", "row_slice_starts_at_zero"),
    ),
    "rank 3": (f"tensor<fp16, [1, 8, 32]> a = reshape(x = a00_x, shape = flat); {T} z00 = exp(x = a00_x);", ("a", "result_rank")),
    "zero times a reduction": (
        ("tensor<fp16, [1, 1, 1, 32]> a = reduce_sum(x = a00_x, axes = axis1, keep_dims = t);"
        "tensor<fp16, [1, 1, 1, 32]> z00 = mul(x = zero, y = a);"),
        ("z00", "no_zero_times_reduction"),
    ),
    "a large kernel": (
        ("tensor<fp16, [1, 2, 1, 30]> a = conv(x = a00_x, weight = wide, strides = ones2, pad_type = valid, pad = zeros4, "
        f"dilations = ones2, groups = one); {T} z00 = exp(x = a00_x);"),
        ("a", "kernel"),
    ),
    "a bias": (
        ("tensor<fp16, [1, 2, 1, 32]> z00 = conv(x = a00_x, weight = w, bias = bias, strides = ones2, pad_type = valid, "
        "pad = zeros4, dilations = ones2, groups = one);"),
        ("z00", "absent"),
    ),
    "an output that is an input": (f"{T} z00 = exp(x = a00_x);", ("a00_x", "no_output_is_input")),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_what_is_not_legal_is_named_with_its_rule(name):
    body, finding = ILLEGAL[name]
    outputs = "a00_x, z00" if name == "an output that is an input" else "z00"
    assert finding in broken(body, outputs=outputs)


def test_a_weight_of_run_time_is_refused():
    body = (
        "tensor<fp16, [1, 2, 1, 32]> z00 = conv(x = a00_x, weight = a01_w, strides = ones2, pad_type = valid, pad = zeros4, "
        "dilations = ones2, groups = one);"
    )
    assert ("z00", "constant") in broken(body, params=f"{T} a00_x, tensor<fp16, [2, 8, 1, 1]> a01_w")


PORTS = {
    "fp32": ("tensor<fp32, [1, 8, 1, 32]>", "port_dtype"),
    "rank 3": ("tensor<fp16, [1, 8, 32]>", "port_rank"),
    "a row of 31": ("tensor<fp16, [1, 8, 1, 31]>", "port_row_multiple"),
    "a row of 1": ("tensor<fp16, [1, 8, 1, 1]>", "port_row_multiple"),
    "an unknown size": ("tensor<fp16, [1, ?, 1, 32]>", "port_fixed"),
    "a scalar": ("fp16", "port_rank"),
}


@pytest.mark.parametrize("name", PORTS)
def test_a_port_that_breaks_a_rule_is_named(name):
    type_, rule = PORTS[name]
    found = broken(f"{T} z00 = exp(x = a00_x);", params=f"{T} a00_x, {type_} a01_w")
    assert ("the input a01_w", rule) in found


def test_ports_that_do_not_sort_as_declared_are_refused():
    assert ("a", "sorted_ports") in broken(f"{T} z00 = add(x = b, y = a);", params=f"{T} b, {T} a")
    body = f"{T} z9 = exp(x = a00_x); {T} z10 = tanh(x = a00_x);"
    assert ("z10", "sorted_ports") in broken(body, outputs="z9, z10")


def test_an_identity_as_the_only_output_is_refused():
    assert ("z00", "no_output_of_identity_alone") in broken(f"{T} a = exp(x = a00_x); {T} z00 = identity(x = a);")
    assert broken(f"{T} a = exp(x = a00_x); {T} z00 = identity(x = a); {T} z01 = tanh(x = a);", outputs="z00, z01") == []


def test_an_output_that_others_read_is_refused_where_there_are_several():
    body = f"{T} z00 = exp(x = a00_x); {T} z01 = tanh(x = z00);"
    assert ("z00", "outputs_not_read") in broken(body, outputs="z00, z01")


def test_an_output_that_is_a_constant_or_listed_twice_is_refused():
    assert ("half", "no_constant_output") in broken(f"{T} z00 = exp(x = a00_x);", outputs="half, z00")
    assert ("z00", "outputs_once") in broken(f"{T} z00 = exp(x = a00_x);", outputs="z00, z00")


def test_too_many_surfaces_are_refused():
    params = ", ".join(f"{T} a{i:03d}" for i in range(128))
    assert ("the program", "surfaces_at_most") in broken(f"{T} z00 = exp(x = a000);", params=params)


def test_an_empty_program_is_refused():
    assert ("the program", "has_ops") in broken("", outputs="a00_x", constants="")


def test_an_extent_that_is_no_power_of_two_is_a_warning():
    row = "tensor<fp16, [1, 8, 1, 96]>"
    odd = program(f"{row} z00 = softmax(x = a00_x, axis = last);", params=f"{row} a00_x")
    assert refusals(odd, PORTABLE) == ()
    (warning,) = warnings(odd, PORTABLE)
    assert (warning.rule, warning.certainty) == ("power_of_two_extent", chips.Certainty.CONFLICT)


def test_a_vocabulary_of_rows_is_a_warning_on_portable_and_refused_on_m1():
    wide = "tensor<fp16, [1, 1, 32000, 32]>"
    tall = program(f"{wide} z00 = exp(x = a00_x);", params=f"{wide} a00_x")
    assert refusals(tall, PORTABLE) == ()
    assert {warning.rule for warning in warnings(tall, PORTABLE)} == {"size_at_most"}
    assert {refusal.rule for refusal in refusals(tall, chips.load("m1"))} == {"size_at_most"}


def test_a_deep_chain_is_a_warning():
    chain = "".join(f"{T} v{i} = exp(x = {'a00_x' if i == 0 else f'v{i - 1}'});" for i in range(384))
    deep = program(chain, outputs="v383")
    assert [warning.rule for warning in warnings(deep, PORTABLE)] == ["depth_at_most"]


def test_the_error_names_the_first_faults_and_says_what_to_do():
    body = "".join(f"{T} v{i} = rsqrt(x = a00_x, epsilon = half);" for i in range(6)) + f"{T} z00 = exp(x = v5);"
    with pytest.raises(LegalityError) as caught:
        require_legal(program(body), PORTABLE)
    message = str(caught.value)
    assert message.startswith("the chip portable does not take this program: 6 rules broken.")
    assert "v0: rsqrt is not taken: it does not compile on M3 Max, M5 Max and M1" in message
    assert "Write pow(x, -0.5) (pass decompose_arithmetic)." in message
    assert message.endswith("and 2 more")


def test_inline_constants_are_understood():
    natural = parse(f"program(1.3)\n{{\nfunc main<ios18>({T} a00_x) {{ {T} z00 = softmax(x = a00_x, axis = int32(3)); }} -> (z00);\n}}\n")
    assert {refusal.rule for refusal in refusals(natural, PORTABLE)} == {"named_constants"}


def test_control_flow_is_refused():
    plain = program(f"{T} z00 = exp(x = a00_x);", constants="")
    (exp,) = plain.ops
    branch = Op(kind_of("cond"), {}, exp.outputs, blocks=(Block((), (exp,), exp.outputs),))
    found = refusals(plain.with_(ops=(branch,)), PORTABLE)
    assert [(refusal.name, refusal.rule) for refusal in found] == [("z00", "taken")]
    assert "no control flow" in found[0].reason


def test_of_a_state_its_tensor_is_judged():
    """A state is no tensor, so that rules on ports said of every one that it is no fp16, of rank 0, of one entry."""
    body = f"{T} before = read_state(input = a00_s); write_state(input = a00_s, data = a01_y); {T} z00 = identity(x = before);"
    said = [str(found) for found in refusals(program(body, f"state<{T}> a00_s, {T} a01_y", constants=""), PORTABLE)]
    assert {line.split(":")[0] for line in said} == {"before", "write_state", "z00"}
    assert not any("the state" in line or "rank" in line for line in said)
    wide = "state<tensor<fp32, [8, 33]>> a00_s"
    said = [str(found) for found in refusals(program(f"{T} z00 = relu(x = a01_y);", f"{wide}, {T} a01_y", constants=""), PORTABLE)]
    for reason in ("tensor<fp32, [8, 33]>", "of rank 2", "its last axis has 33 entries"):
        assert any(line.startswith("the state a00_s: it") and reason in line for line in said), (reason, said)
