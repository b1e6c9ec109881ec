"""Model files: pairs of one protobuf and one text, what we write as coremltools reads it, damage."""

import time
from dataclasses import replace

import numpy as np
import pytest
from coremltools.proto import Model_pb2
from inspect_samples import model_file, small_program

from torchane import mil
from torchane.errors import CompileError, UsageError
from torchane.inspect import mlmodel, mlpackage, schema
from torchane.inspect.errors import FormatError
from torchane.inspect.proto_read import ProgramReader
from torchane.inspect.proto_values import Malformed
from torchane.inspect.proto_write import write_program
from torchane.mil.build import Builder
from torchane.mil.text import parse
from torchane.mil.types import BOOL, FP16, FP32, INT32, StateType, TensorType

PAIRS = {
    "mobius-silero-vad-unified-v6.0.0": "mobius-silero-silero-vad-unified-v6.0.0",
    "mobius-unified_int8": "mobius-silero-unified_int8",
    "mobius-unified_palette_8bit": "mobius-silero-unified_palette_8bit",
}
ENCODER = "fluidaudio-parakeet_eou-1280ms-streaming_encoder"


def pair(shared_data, name):
    folder = shared_data / "mil_compiled" / f"{PAIRS[name]}.mlmodelc"
    return mlpackage.load(shared_data / "mlpackage" / f"{name}.mlpackage"), mil.load(folder)


@pytest.mark.parametrize("name", PAIRS)
def test_a_protobuf_and_the_text_that_apples_compiler_made_of_it_have_the_same_ops(shared_data, name):
    ours, apples = pair(shared_data, name)
    assert ours.ops == apples.ops
    assert (ours.outputs, ours.version, ours.main.opset) == (apples.outputs, apples.version, apples.main.opset)
    differences = [str(difference) for difference in mil.diff(ours, apples)]
    assert differences == ["~ order of the inputs: audio_input, cell_state, hidden_state"]  # the compiler sorts them


@pytest.mark.parametrize("name", PAIRS)
def test_both_give_the_same_numbers_to_the_bit(shared_data, name):
    rng = np.random.default_rng(3)
    ours, apples = pair(shared_data, name)
    inputs = {var.name: rng.standard_normal(var.shape).astype(np.float32) for var in ours.inputs}
    left, right = mil.evaluate(ours, inputs), mil.evaluate(apples, inputs)
    assert {name: value.tobytes() for name, value in left.items()} == {n: v.tobytes() for n, v in right.items()}


def test_the_parakeet_encoder_is_the_same_as_protobuf_and_as_text(shared_data):
    ours = mlpackage.load(shared_data / "mlpackage" / f"{ENCODER}.mlmodel", with_weights=False)
    text = shared_data / "mil_compiled" / f"{ENCODER}.model.mil"
    assert ours.ops == parse(text.read_text()).ops
    assert len(ours.ops) == 2971


def test_a_written_model_reads_as_it_was():
    program = small_program()
    model = mlmodel.parse(mlmodel.to_bytes(program, {"author": "me", "own": "key"}))
    assert model.metadata == {"author": "me", "own": "key"}
    assert (model.specification_version, model.kind) == (9, "mlProgram")
    assert mil.diff(program, model.program) == ()
    assert model.program.build_info == program.build_info


def test_equal_programs_give_equal_bytes():
    assert mlmodel.to_bytes(small_program()) == mlmodel.to_bytes(small_program())


def test_coremltools_reads_the_description():
    theirs = Model_pb2.Model.FromString(model_file())
    port = theirs.description.input[0]
    assert (port.name, list(port.type.multiArrayType.shape)) == ("x", [1, 4, 1, 32])
    assert theirs.mlProgram.functions["main"].opset == "CoreML8"


def test_open_sizes_and_states_are_described():
    b = Builder()
    x = b.input("x", TensorType(FP32, (None, 4)))
    state = b.input("s", StateType(TensorType(FP16, (4,))))
    program = b.program(b.add(x=x, y=b.cast(x=b.read_state(input=state), dtype="fp32")))
    model = mlmodel.parse(mlmodel.to_bytes(program))
    assert [str(port) for port in model.description.inputs] == ["fp32 [1, 4] (any of 1..?, 4..4)"]
    assert [(port.kind, str(port)) for port in model.description.states] == [("state", "fp16 [4]")]
    assert model.program.inputs == program.inputs


def test_several_functions_are_described_one_by_one():
    text = "".join(
        f"func {name}<ios18>(tensor<fp16, [{size}]> x) {{ tensor<fp16, [{size}]> y = relu(x = x); }} -> (y);"
        for name, size in (("b", 2), ("main", 3))
    )
    model = mlmodel.parse(mlmodel.to_bytes(parse(f"program(1.3) {{ {text} }}")))
    assert {name: str(ports.inputs[0]) for name, ports in model.functions.items()} == {
        "b": "fp16 [2]",
        "main": "fp16 [3]",
    }
    assert [function.name for function in model.program.functions] == ["main", "b"]


THREE = "".join(
    f"func {name}<ios18>(tensor<fp16, [2]> x) {{ tensor<fp16, [2]> y = {op}(x = x); }} -> (y);"
    for name, op in (("a", "relu"), ("b", "tanh"), ("main", "exp"))
)


@pytest.mark.parametrize(("default", "read"), [(None, None), ("main", None), ("b", "b")])
def test_the_default_function_comes_back(default, read):
    program = replace(parse(f"program(1.3) {{ {THREE} }}"), default_function=default)
    data = mlmodel.to_bytes(program)
    assert Model_pb2.Model.FromString(data).description.defaultFunctionName == (default or "main")
    assert mlmodel.parse(data).program.default_function == read
    assert mil.diff(program, mlmodel.parse(data).program) == ()


def test_a_default_function_that_is_not_there_is_refused_and_shown():
    program = replace(parse(f"program(1.3) {{ {THREE} }}"), default_function="c")
    with pytest.raises(UsageError, match="default function 'c' is none of the program's: a, b, main"):
        mlmodel.to_bytes(program)
    message = Model_pb2.Model.FromString(mlmodel.to_bytes(replace(program, default_function=None)))
    message.description.defaultFunctionName = "c"
    with pytest.raises(CompileError, match="default function 'c'"):
        mil.check(mlmodel.parse(message.SerializeToString()).program)


def pipeline(kind: str, *models: bytes) -> bytes:
    message = Model_pb2.Model(specificationVersion=5)
    held = message.pipeline if kind == "pipeline" else getattr(message, kind).pipeline
    for place, model in enumerate(models):
        held.models.add().MergeFromString(model)
        held.names.append(f"stage {place}")
    message.description.input.add(name="in").type.stringType.SetInParent()
    return message.SerializeToString(deterministic=True)


@pytest.mark.parametrize("kind", ["pipeline", "pipelineClassifier", "pipelineRegressor"])
def test_the_models_of_a_pipeline_are_read_one_in_the_other(kind):
    model = mlmodel.parse(pipeline(kind, model_file(), pipeline("pipeline", b"\x08\x04\xa2\x1f\x00")))
    (first, program), (second, inner) = model.stages
    assert (first, second, model.kind) == ("stage 0", "stage 1", kind)
    assert mil.diff(program.program, small_program()) == ()
    assert [stage.kind for _, stage in inner.stages] == ["neuralNetwork"]
    assert [port.name for port in inner.description.inputs] == ["in"]


def test_damage_in_a_model_of_a_pipeline_is_named_by_its_byte():
    data = pipeline("pipelineClassifier", model_file(), b"\x08\x04")
    with pytest.raises(FormatError, match="none of the kinds") as caught:
        mlmodel.parse(data)
    assert data[caught.value.offset :].startswith(b"\x08\x04")
    spoiled = Model_pb2.Model.FromString(pipeline("pipeline", model_file(), model_file()))
    spoiled.pipeline.models[1].mlProgram.functions["main"].block_specializations["CoreML8"].operations[1].type = ""
    data = spoiled.SerializeToString(deterministic=True)
    with pytest.raises(FormatError, match="no type") as caught:
        mlmodel.parse(data)
    assert caught.value.offset > len(data) // 2


def test_what_is_not_read_of_a_model_is_said():
    message = Model_pb2.Model.FromString(model_file())
    main = message.mlProgram.functions["main"]
    main.block_specializations["CoreML7"].CopyFrom(main.block_specializations["CoreML8"])
    message.mlProgram.docString = "hello"
    assert mlmodel.parse(model_file()).dropped == ()
    found = mlmodel.parse(message.SerializeToString() + b"\xa2\x82\x01\x00").dropped
    assert found == (
        "fields of a later version of the format, by number: Model 2084",
        "the program's comment, 5 characters",
        "function main: its blocks for CoreML7 (it is of CoreML8)",
    )


@pytest.mark.parametrize(("type_", "reason"), [
    (TensorType(BOOL, (2,)), "the port x is a tensor<bool, \\[2\\]>"),
    (TensorType(FP16), "tensors of one axis or more"),
])  # fmt: skip
def test_ports_that_core_ml_lacks_are_refused(type_, reason):
    b = Builder()
    x = b.input("x", type_)
    with pytest.raises(UsageError, match=reason):
        mlmodel.to_bytes(b.program(b.identity(x=x)))


def test_an_unknown_opset_is_refused():
    program = parse("func main<ios99>(tensor<fp16, [2]> x) { tensor<fp16, [2]> y = relu(x = x); } -> (y);")
    with pytest.raises(UsageError, match="no opset 'ios99'"):
        mlmodel.to_bytes(program)


@pytest.mark.parametrize(("data", "offset", "reason"), [
    (b"", 0, "none of the kinds"),
    (b"\x08\x09", 2, "none of the kinds"),
    (b"\x08\x09\xb2\x1f\x05", 2, "needs 5 bytes and 0 are left"),
    (b"\xb2\x1f\x00", 3, "no specification version"),
    (b"\x08\x09\xb2\x1f\x00", 5, "has no function"),
    (b"not a model at all", 0, "no Core ML model"),
])  # fmt: skip
def test_damage_is_named_by_its_byte(data, offset, reason):
    with pytest.raises(FormatError, match=reason) as caught:
        mlmodel.parse(data, "model.mlmodel")
    assert caught.value.offset == offset
    assert str(caught.value).startswith("model.mlmodel: byte ")


def test_a_name_that_nothing_defines_is_refused_where_the_op_lies():
    program = Model_pb2.Model.FromString(model_file())
    operations = program.mlProgram.functions["main"].block_specializations["CoreML8"].operations
    operations[1].inputs["x"].arguments[0].name = "nowhere"
    data = program.SerializeToString(deterministic=True)
    with pytest.raises(FormatError, match="'nowhere' is not defined") as caught:
        mlmodel.parse(data)
    assert data[caught.value.offset :].startswith(b"\x0a\x03mul")


def test_nested_blocks_come_back_and_define_nothing_outside():
    text = """func main<ios18>(tensor<bool, [1]> p, tensor<fp16, [2]> x) {
        tensor<fp16, [2]> y = cond(pred = p)[name = string("y")]
            () { tensor<fp16, [2]> a = relu(x = x)[name = string("a")]; } -> (a)
            () { tensor<fp16, [2]> a = exp(x = x)[name = string("a")]; } -> (a);
    } -> (y);"""
    program = parse(text)
    message = schema.Program()
    write_program(program, message)
    assert ProgramReader().program(message).functions == program.functions
    block = message.functions["main"].block_specializations["CoreML8"]
    block.outputs[:] = ["a"]
    with pytest.raises(Malformed, match="'a' is not defined"):
        ProgramReader().program(message)


def test_deep_nesting_is_refused():
    message = schema.Model(specificationVersion=9)
    inner = message.mlProgram.attributes["deep"].type
    for _ in range(500):
        inner = inner.listType.type
    inner.tensorType.dataType = 11
    with pytest.raises(FormatError, match="deeper than 100"):
        mlmodel.parse(message.SerializeToString())


def test_a_million_empty_operations_are_refused_at_the_first():
    message = schema.Model(specificationVersion=9)
    function = message.mlProgram.functions["main"]
    function.opset = "CoreML8"
    block = function.block_specializations["CoreML8"]
    for _ in range(1_000_000):
        block.operations.add()
    data = message.SerializeToString()
    start = time.process_time()
    with pytest.raises(FormatError, match="an operation has no type") as caught:
        mlmodel.parse(data)
    assert caught.value.offset < 100
    assert time.process_time() - start < 5


def test_the_int32_port_is_described():
    b = Builder()
    x = b.input("x", TensorType(INT32, (2,)))
    model = mlmodel.parse(mlmodel.to_bytes(b.program(b.add(x=x, y=np.array([1, 2], np.int32)))))
    assert str(model.description.inputs[0]) == "int32 [2]"
