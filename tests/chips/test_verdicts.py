"""What each chip takes, refuses, or is in doubt about: per op, per form, and for programs that others ran."""

import pytest

from torchane import chips
from torchane.chips import Verdict, doubts, refusals, require_legal, require_settled
from torchane.errors import LegalityError
from torchane.mil.text import parse

TAKES, REFUSES, DISAGREE, UNKNOWN = Verdict
REAL = tuple(name for name in chips.names() if name != "portable")

#: From the reports that SOURCES.md names: chip -> verdict -> ops.
VERDICTS = {
    "portable": {TAKES: ("matmul", "pow"), REFUSES: ("concat", "log", "abs", "tile", "cast", "cond", "einsum", "frobnicate")},
    "m1": {TAKES: ("log", "abs"), REFUSES: ("sqrt", "scatter", "floor"), DISAGREE: ("concat", "rsqrt", "sin"), UNKNOWN: ("relu", "frobnicate")},
    "m2": {TAKES: ("log", "erf"), REFUSES: ("one_hot",), DISAGREE: ("concat", "gather"), UNKNOWN: ("greater", "linear")},
    "m3": {TAKES: ("concat", "cast", "abs"), REFUSES: ("reduce_mean", "tile"), DISAGREE: ("rsqrt", "split"), UNKNOWN: ("log", "layer_norm")},
    "m4": {TAKES: ("log", "cast", "abs"), REFUSES: ("range_1d",), DISAGREE: ("concat", "gelu", "tile", "quantize"), UNKNOWN: ("pad", "select")},
    "m5": {TAKES: ("pad", "slice_by_index"), REFUSES: ("non_zero",), DISAGREE: ("concat", "cast", "l2_norm"), UNKNOWN: ("relu", "batch_norm")},
}  # fmt: skip


@pytest.mark.parametrize(
    ("chip", "verdict", "op"),
    [(chip, verdict, op) for chip, found in VERDICTS.items() for verdict, ops in found.items() for op in ops],
)
def test_an_op_has_the_verdict_that_the_reports_give(chip, verdict, op):
    assert chips.load(chip).verdict(op) is verdict


def test_every_chip_has_ops_of_every_verdict_and_portable_has_no_doubts():
    for name in chips.names():
        chip = chips.load(name)
        found = {chip.verdict(op) for op in chip.ops}
        assert found == ({TAKES, REFUSES} if name == "portable" else set(Verdict)), name


@pytest.mark.parametrize("name", chips.names())
def test_an_op_that_a_report_says_works_on_the_chip_is_never_refused(name):
    """A chip's own entry that names it as working, or a source that says so of it, is a conflict at least."""
    chip = chips.load(name)
    if chip.is_strict:
        return
    for fact in chip.ops.values():
        works = fact.source.partition("works:")[2].partition(";")[0]
        if name.upper() in works:
            assert chip.verdict(fact.name) is not REFUSES, fact


CONSTANTS = """
    string valid = const()[val = string("valid")];
    tensor<int32, [2]> ones = const()[val = tensor<int32, [2]>([1, 1])];
    tensor<int32, [4]> zeros = const()[val = tensor<int32, [4]>([0, 0, 0, 0])];
    int32 one = const()[val = int32(1)];
    int32 last = const()[val = int32(-1)];
    bool no = const()[val = bool(false)];
    bool yes = const()[val = bool(true)];
    tensor<int32, [4]> far = const()[val = tensor<int32, [4]>([0, 0, 0, 32])];
    tensor<int32, [4]> half = const()[val = tensor<int32, [4]>([1, 64, 1, 32])];
    string half_float = const()[val = string("fp16")];
    string float = const()[val = string("fp32")];
    tensor<fp16, [64, 64, 1, 1]> w = const()[val = tensor<fp16, [64, 64, 1, 1]>(BLOBFILE(path = string("@model_path/weights/w.bin"), offset = uint64(64)))];
"""
X = "tensor<fp16, [1, 64, 1, 32]>"
CONV = "conv(x = {}, weight = {}, strides = ones, pad_type = valid, pad = zeros, dilations = ones, groups = one)"
#: Forms of published training kernels that their authors ran on an M4 (MDX, PR22, SLV), in our own words.
M4_RAN = {
    "parts joined along channels for the backward": (
        f"{X} x",
        f"{X} q = {CONV.format('x', 'w')}; {X} k = tanh(x = q); "
        "tensor<fp16, [1, 192, 1, 32]> out = concat(values = (q, k, x), axis = one, interleave = no);",
        "out",
    ),
    "weights packed beside the activations": (
        "tensor<fp16, [1, 64, 1, 64]> x",
        f"{X} a = slice_by_size(x = x, begin = zeros, size = half); {X} b = slice_by_size(x = x, begin = far, size = half); "
        "tensor<fp16, [1, 64, 32, 32]> out = matmul(x = a, y = b, transpose_x = yes, transpose_y = no);",
        "out",
    ),
    "weights as inputs of their own, rank 3, ports in another order": (
        "tensor<fp16, [1, 64, 32]> x, tensor<fp16, [1, 64, 64]> W",
        "tensor<fp16, [1, 64, 32]> out = matmul(x = W, y = x, transpose_x = no, transpose_y = no);",
        "out",
    ),
    "a softmax over the vocabulary in channels": (
        "tensor<fp16, [1, 32000, 1, 32]> x",
        "tensor<fp16, [1, 32000, 1, 32]> out = softmax(x = x, axis = one);",
        "out",
    ),
    "fp32 in and out": (
        "tensor<fp32, [1, 64, 1, 32]> x",
        f"{X} h = cast(x = x, dtype = half_float); {X} y = {CONV.format('h', 'w')}; "
        "tensor<fp32, [1, 64, 1, 32]> out = cast(x = y, dtype = float);",
        "out",
    ),
}


def program(params: str, body: str, outputs: str):
    return parse(f"program(1.3)\n{{\nfunc main<ios18>({params}) {{{CONSTANTS}{body}\n}} -> ({outputs});\n}}\n")


@pytest.mark.parametrize("form", M4_RAN)
def test_a_form_that_was_run_on_an_m4_is_not_refused_there(form):
    found = program(*M4_RAN[form])
    assert [str(refusal) for refusal in refusals(found, chips.load("m4"))] == []
    require_legal(found, chips.load("m4"))
    if form != "weights packed beside the activations":
        assert refusals(found, chips.load("portable"))


@pytest.mark.parametrize(
    ("form", "verdict"),
    [
        ("parts joined along channels for the backward", DISAGREE),
        ("weights as inputs of their own, rank 3, ports in another order", DISAGREE),
        ("a softmax over the vocabulary in channels", None),
        ("fp32 in and out", None),
    ],
)
def test_a_doubt_is_told_with_its_verdict_and_what_we_write_keeps_clear_of_it(form, verdict):
    m4, found = chips.load("m4"), program(*M4_RAN[form])
    told = doubts(found, m4)
    assert {doubt.verdict for doubt in told} == ({verdict} if verdict else set())
    assert all(doubt.source and doubt.do for doubt in told)
    if verdict:
        with pytest.raises(LegalityError, match="the chip m4 is not known to take this program"):
            require_settled(found, m4)


def test_portable_refuses_what_is_in_doubt():
    found = program(*M4_RAN["parts joined along channels for the backward"])
    portable = chips.load("portable")
    assert ("out", REFUSES) in {(refusal.name, refusal.verdict) for refusal in refusals(found, portable)}
    assert doubts(found, portable) == ()


def test_what_nobody_tried_is_unknown_not_refused():
    found = program(X + " x", f"{X} out = relu(x = x);", "out")
    (doubt,) = doubts(found, chips.load("m4"))
    assert (doubt.name, doubt.verdict) == ("out", UNKNOWN)
    assert "nobody has reported" in doubt.reason


def test_a_weight_of_run_time_is_refused_only_where_it_is_known_to_be_ignored():
    found = program(f"{X} x, tensor<fp16, [64, 64, 1, 1]> y", f"{X} out = {CONV.format('x', 'y')};", "out")
    rules = {name: {r.rule for r in refusals(found, chips.load(name))} for name in REAL}
    assert "constant" in rules["m3"]
    assert all("constant" not in rules[name] for name in ("m1", "m2", "m4", "m5"))


@pytest.mark.parametrize(("size", "wide", "is_refused"), [(16, True, False), (16, False, True), (24, True, True), (32, False, False)])
def test_a_row_of_a_port_is_measured_in_bytes(size, wide, is_refused):
    """JMH M4: rows of 16 and 32 fp32 pass, 4, 8, 12 and 24 do not."""
    dtype, cast = ("fp32", "half_float") if wide else ("fp16", "half_float")
    x = f"tensor<{dtype}, [1, 64, 1, {size}]>"
    half = f"tensor<fp16, [1, 64, 1, {size}]>"
    body = f"{half} h = {f'cast(x = x, dtype = {cast})' if wide else 'tanh(x = x)'}; {half} out = tanh(x = h);"
    found = {r.rule for r in refusals(program(f"{x} x", body, "out"), chips.load("m4")) if r.name == "the input x"}
    assert ("port_row_multiple" in found) is is_refused


def test_no_program_that_ran_on_an_m3_max_is_refused_for_it(shared_data):
    m3 = chips.load("m3")
    files = sorted((shared_data / "mil_generated").glob("*.mil"))
    assert len(files) == 10
    for file in files:
        assert [str(refusal) for refusal in refusals(parse(file.read_text(), file.name), m3)] == [], file.name
