"""x * sigmoid(x): one table on an engine where nothing else reads the sigmoid. By the NumPy rules and on the twin."""

from dataclasses import replace

import numpy as np
import pytest

from torchane.mil import evaluate, parse, to_text
from torchane.mil.constants import map_literals
from torchane.mil.engine import Settings, engine
from torchane.mil.engine.fusion import fused
from torchane.mil.ir import Blob, Literal
from torchane.runtime.inside import Opened
from torchane.runtime.mixed import run_mixed
from torchane.runtime.twin import TwinDevice, load_program

X = np.linspace(-9, 9, 64, dtype=np.float16).reshape(1, 2, 1, 32)
T = "tensor<fp16, [1, 2, 1, 32]>"


def function(body: str, outputs: str = "y", inputs: str = f"{T} h"):
    return parse(f"func main({inputs}) {{ {body} }} -> ({outputs});")


SILU = function(f"{T} y = silu(x = h);")
PARTS = f"{T} s = sigmoid(x = h); {T} y = mul(x = h, y = s);"


def by_rule(program, **options):
    return evaluate(program, {"h": X}, **{"arithmetic": "engine", **options})


def on_twin(program):
    return run_mixed(program, {"h": X}, arithmetic="engine").outputs


@pytest.mark.parametrize("run", [by_rule, on_twin])
@pytest.mark.parametrize("body", [PARTS, PARTS.replace("x = h, y = s", "x = s, y = h"), PARTS.replace("x = h, y", "y = h, x")])
def test_a_product_with_its_own_sigmoid_is_a_silu(run, body):
    wanted = run(SILU)["y"]
    assert run(function(body))["y"].tobytes() == wanted.tobytes()
    assert by_rule(function(body), arithmetic=engine(Settings(silu="parts")))["y"].tobytes() != wanted.tobytes()


APART = {
    "another op reads the sigmoid": (PARTS + f"{T} z = add(x = s, y = h);", "y, z"),
    "the sigmoid leaves": (PARTS, "y, s"),
    "the product reads it twice": (f"{T} s = sigmoid(x = h); {T} y = mul(x = s, y = s);", "y"),
    "two products read it": (PARTS + f"{T} z = mul(x = h, y = s);", "y, z"),
    "the sigmoid is of something else": (f"{T} d = add(x = h, y = h); {T} s = sigmoid(x = d); {T} y = mul(x = h, y = s);", "y"),
}


@pytest.mark.parametrize("case", APART)
def test_where_the_sigmoid_is_needed_otherwise_both_are_computed(case):
    body, outputs = APART[case]
    program = function(body, outputs)
    assert fused(program.main) is program.main
    apart = by_rule(program, arithmetic=engine(Settings(silu="parts")))
    for run in (by_rule, on_twin):
        found = run(program)
        assert {name: value.tobytes() for name, value in found.items()} == {name: value.tobytes() for name, value in apart.items()}


def test_other_arithmetics_compute_what_is_written():
    program = function(PARTS)
    s = (1 / (1 + np.exp(-X.astype(np.float64)))).astype(np.float16)
    wanted = (X.astype(np.float64) * s.astype(np.float64)).astype(np.float16)
    assert by_rule(program, arithmetic="exact")["y"].tobytes() == wanted.tobytes()


def test_floats_of_32_bits_are_not_the_engines():
    body = PARTS.replace("fp16", "fp32")
    assert fused(function(body, inputs=f"{T.replace('fp16', 'fp32')} h").main).ops[0].kind.name == "sigmoid"


def test_within_nested_blocks_too():
    program = parse(f"""func main(tensor<bool, []> p, {T} h) {{
        {T} y = cond(pred = p)[name = string("y")] () {{ {T} s = sigmoid(x = h); {T} a = mul(x = h, y = s); }} -> (a)
            () {{ {T} t = sigmoid(x = h); {T} b = mul(x = t, y = t); }} -> (b);
    }} -> (y);""")
    kinds = [[op.kind.name for op in block.ops] for block in fused(program.main).ops[0].blocks]
    assert kinds == [["silu"], ["sigmoid", "mul"]]
    found = evaluate(program, {"p": np.array(True), "h": X}, arithmetic="engine")["y"]
    assert found.tobytes() == by_rule(SILU)["y"].tobytes()


def test_the_twin_counts_the_ops_that_are_written():
    stats = load_program(function(PARTS), "x", "engine").stats
    assert (stats.ops, stats.float_ops) == (2, {"sigmoid": 1, "mul": 1})
    device = TwinDevice(arithmetic="engine")
    loaded = load_program(function(PARTS), "x", "engine")
    buffers = [device.allocate(type_) for type_ in (*loaded.inputs, *loaded.outputs)]
    device.run(loaded, buffers[:1], buffers[1:])


def test_who_looks_inside_sees_what_is_computed():
    """With every value as an output nothing would be fused, and the audit would see other numbers."""
    opened = Opened(to_text(function(PARTS)), {}, "x", "engine")
    seen = {var.name: value for var, value in opened.values(TwinDevice(arithmetic="engine"), [X]).items()}
    assert "s" not in seen
    assert seen["y"].tobytes() == by_rule(SILU)["y"].tobytes()


def test_the_captured_feed_forward_block_had_its_silu_in_one(shared_data):
    """Three units of 2^-16 for each of 2,048 products, and two in parts: by report all 196,608 outputs of the capture are the
    former. The program is the public one, its weights are 0.01."""
    text = (shared_data / "mil_generated" / "espresso-ffn_fwd_taps.mil").read_text().replace("256]", "32]").replace("7680,1,256", "7680,1,32")

    def filled(literal: Literal) -> Literal:
        return Literal(literal.type, np.full(literal.type.shape, 0.01, np.float16)) if isinstance(literal.value, Blob) else literal

    program = map_literals(parse(text), filled)
    program = program.with_(ops=program.ops, outputs=(next(op.output for op in program.ops if op.output.name == "y"),))
    x = np.full(program.inputs[0].shape, 0.59, np.float16)
    assert set(run_mixed(program, {"x": x}, arithmetic="engine").outputs["y"].ravel().tolist()) == {3 * 2048 / 2**16}
    kept = replace(program.main, outputs=(*program.outputs, next(op.output for op in program.ops if op.output.name == "sig")))
    assert set(run_mixed(replace(program, functions=(kept,)), {"x": x}, arithmetic="engine").outputs["y"].ravel().tolist()) == {2 * 2048 / 2**16}
