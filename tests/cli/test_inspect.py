"""`torchane inspect` from the outside."""

import json
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from coremltools.proto import Model_pb2

import torchane.cli
from torchane import mil
from torchane.inspect import mlmodel, mlpackage
from torchane.mil import parse
from torchane.mil.blobs import BlobWriter

TEXT = """program(1.3)
{
    func main<ios18>(tensor<fp16, [1, 4, 1, 32]> x) {
        tensor<fp16, [1, 4, 1, 32]> a = relu(x = x)[name = string("a")];
        tensor<fp16, [1, 4, 1, 32]> y = mul(x = a, y = fp16(0.5))[name = string("y")];
    } -> (y);
}
"""


@pytest.fixture
def inspect(capsys, tmp_path, monkeypatch):
    """inspect("model.mil", ...) -> exit code, standard output, standard error; in an empty folder with two programs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    Path("before.mil").write_text(TEXT)
    Path("after.mil").write_text(TEXT.replace("relu", "tanh"))

    def run(*arguments: object) -> tuple[int, str, str]:
        code = torchane.cli.run(["inspect", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_program_is_shown(inspect):
    code, out, err = inspect("before.mil")
    assert (code, err) == (0, "")
    for line in (
        "before.mil: MIL text", "input   x: tensor<fp16, [1, 4, 1, 32]>", "output  y:", "2 ops: mul 1, relu 1",
        "0 parameters, 0 const statements, 2 bytes of constants, 0 multiply-adds a run",
    ):  # fmt: skip
        assert line in out


def test_ops_and_weights_are_listed_when_asked_for(inspect):
    _, out, _ = inspect("before.mil", "--ops", "--weights")
    assert "multiply-adds" in out and "constants" in out and "inline" in out


def test_a_row_of_a_table_is_a_line_where_the_output_is_no_terminal(inspect, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = inspect("before.mil", "--ops")
    assert any(line.split() == ["y", "mul", "tensor<fp16,", "[1,", "4,", "1,", "32]>", "0"] for line in out.splitlines())


def test_a_program_that_is_not_well_formed_is_shown_with_the_reason(inspect):
    Path("wrong.mil").write_text(TEXT.replace("32]> y", "31]> y"))
    code, out, _ = inspect("wrong.mil")
    assert code == 0
    assert "Not well formed: main: op 'y' (mul): the result y is declared as" in out
    assert "2 ops: mul 1, relu 1" in out


def test_the_models_of_a_pipeline_are_shown_one_after_the_other(inspect):
    for stage, text in (("model0", TEXT), ("model1", TEXT.replace("relu", "tanh"))):
        Path("p.mlmodelc", stage).mkdir(parents=True)
        Path("p.mlmodelc", stage, "model.mil").write_text(text)
    code, out, _ = inspect("p.mlmodelc")
    assert code == 0
    assert "compiled Core ML pipeline" in out
    assert out.index("p.mlmodelc/model0") < out.index("relu 1") < out.index("p.mlmodelc/model1") < out.index("tanh 1")
    code, _, err = inspect("p.mlmodelc", "--chip", "portable")
    assert code == 2 and "take one of its models, p.mlmodelc/model0" in err


def test_weights_are_listed_with_their_place_in_their_file(inspect, shared_data):
    _, out, _ = inspect(shared_data / "mil_compiled" / "mobius-silero-unified_int8.mlmodelc", "--weights")
    assert "@model_path/weights/weight.bin at 319,808" in out


def test_json_is_one_object(inspect):
    code, out, _ = inspect("before.mil", "--json", "--ops", "--chip", "portable", "--diff", "after.mil")
    found = json.loads(out)
    assert code == 0
    assert found["kind"] == "MIL text"
    assert found["program"]["functions"][0]["ops"] == {"mul": 1, "relu": 1}
    assert found["chip"]["name"] == "portable"
    assert found["diff"] == [{"change": "changed", "where": "op 'a' (tanh)", "what": "was relu"}]


def test_differences_are_shown(inspect):
    _, out, _ = inspect("before.mil", "--diff", "after.mil")
    assert "Differences: 1\n~ op 'a' (tanh): was relu" in out
    _, out, _ = inspect("before.mil", "--diff", "before.mil")
    assert "The programs do the same." in out


def test_refusals_are_shown_with_what_to_do(inspect):
    _, out, _ = inspect("before.mil", "--chip", "portable")
    assert "refuses" in out and "relu" in out and "what to do" in out


def test_a_picture_is_drawn(inspect):
    code, out, _ = inspect("before.mil", "--graph", "out.svg", "--chip", "portable")
    assert code == 0 and "The picture is out.svg." in out
    assert Path("out.svg").read_text().startswith("<svg ")


def test_a_picture_without_its_library_is_an_error_that_says_what_to_install(inspect, monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_sugiyama", None)
    code, _, err = inspect("before.mil", "--graph", "out.svg")
    assert code == 1 and "pip install 'torchane[graph]'" in err


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (("nothing.mil",), 1, "ParseError: nothing.mil: it cannot be read"),
    (("before.mil", "--chip", "m99"), 2, "UsageError: no chip is called 'm99'"),
    (("before.mil", "--graph", "no/such/out.svg"), 1, "the picture cannot be written"),
    ((), 2, "Missing argument"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_message(inspect, arguments, code, said):
    done, _, err = inspect(*arguments)
    assert (done, said in err) == (code, True), err
    assert "Traceback" not in err


def test_names_are_shown_as_they_are_and_not_taken_for_markup(inspect):
    Path("markup.mil").write_text(TEXT.replace('string("a")', 'string("[red]a[/red]")'))
    _, out, _ = inspect("markup.mil", "--ops")
    assert "[red]a[/red]" in out


@pytest.mark.parametrize("name", ["hwx/tinygrad-ops-gemm-ef7e5c.hwx", "mlpackage/mobius-unified_int8.mlpackage",
                                  "mil_compiled/mobius-silero-unified_int8.mlmodelc/weights/weight.bin"])  # fmt: skip
def test_shared_files_are_shown(inspect, shared_data, name):
    code, out, err = inspect(shared_data / name, "--ops", "--weights")
    assert (code, err) == (0, "") and len(out) > 500


def test_a_bundle_is_shown(inspect):
    Path("a.bundle/main").mkdir(parents=True)
    Path("a.bundle/analytics.mil").write_text(
        TEXT.replace('[name = string("a")]', '[name = string("a"), SelectedBackend = string("ane")]')
    )
    Path("a.bundle/x.e5").write_bytes(b"\1")
    _, out, _ = inspect("a.bundle")
    assert "1 ops on ane" in out and "x.e5: byte 0" in out


def test_a_saved_program_says_the_same_as_its_text(inspect):
    mil.save(parse(TEXT), "folder")
    _, out, _ = inspect("before.mil", "--diff", "folder")
    assert "The programs do the same." in out


def test_the_ports_of_a_model_without_a_program_are_shown(inspect):
    """A neural network, alone and in a pipeline."""
    network = Model_pb2.Model(specificationVersion=4)
    network.neuralNetwork.SetInParent()
    port = network.description.input.add(name="picture").type.imageType
    port.width, port.height, port.colorSpace = 224, 224, 20
    network.description.output.add(name="label").type.stringType.SetInParent()
    network.description.predictedFeatureName = "label"
    pipeline = Model_pb2.Model(specificationVersion=4, description=network.description)
    pipeline.pipelineClassifier.pipeline.models.add().CopyFrom(network)
    pipeline.pipelineClassifier.pipeline.names.append("only")
    for name, model, times in (("n.mlmodel", network, 1), ("p.mlmodel", pipeline, 2)):
        Path(name).write_bytes(model.SerializeToString())
        code, out, err = inspect(name)
        assert (code, err) == (0, "")
        for line in ("  input   picture: image 224 x 224 RGB\n", "  output  label: string\n", "  predicts label\n"):
            assert out.count(line) == times, (line, out)
    assert "p.mlmodel, model 0 (only)" in out
    code, _, err = inspect("p.mlmodel", "--chip", "m4")
    assert code == 2 and "of the kind pipelineClassifier of 1 models" in err


def test_flexible_shapes_are_shown_beside_a_program(inspect):
    text = TEXT.replace("1, 32]> x", "1, ?]> x").replace("32]>", "?]>").replace(
        "> x) {", '> x) [FlexibleShapeInformation = tuple<string, dict<string, tensor<int32, [4]>>>(("DefaultShapes", '
        '{{"x", [1, 4, 1, 32]}}))] {')  # fmt: skip
    Path("open.mil").write_text(text)
    code, out, _ = inspect("open.mil")
    assert code == 0 and 'FlexibleShapeInformation: ["DefaultShapes", {"x": [1, 4, 1, 32]}]' in out
    message = Model_pb2.Model.FromString(mlmodel.to_bytes(parse(text).with_(attrs={})))
    held = message.description.input[0].type.multiArrayType
    held.ClearField("shapeRange")
    for size in (32, 64):
        held.enumeratedShapes.shapes.add().shape.extend([1, 4, 1, size])
    Path("open.mlmodel").write_bytes(message.SerializeToString())
    code, out, _ = inspect("open.mlmodel")
    assert code == 0
    assert "  input   x: fp16 [1, 4, 1, 1] (2 shapes: [1, 4, 1, 32], [1, 4, 1, 64])\n" in out
    assert out.count("  output  y:") == 2  # an open size is flexible too


def test_a_compiled_model_without_a_program_shows_what_apples_summary_says(inspect):
    Path("n.mlmodelc").mkdir()
    Path("n.mlmodelc/coremldata.bin").write_bytes(b"?")
    ports = [{"name": "x", "formattedType": "MultiArray (Float32)", "isOptional": "1", "hasShapeFlexibility": "1",
              "shapeFlexibility": "1 | 2", "type": "MultiArray"}]  # fmt: skip
    Path("n.mlmodelc/metadata.json").write_text(json.dumps([{
        "specificationVersion": 4, "modelType": {"name": "MLModelType_neuralNetwork"}, "inputSchema": ports,
        "outputSchema": [{"name": "y", "type": "String"}, 3], "neuralNetworkLayerTypeHistogram": {"Convolution": 3},
    }]))  # fmt: skip
    code, out, _ = inspect("n.mlmodelc")
    assert code == 0
    for line in ("Specification 4, neuralNetwork.", "  input   x: MultiArray (Float32) (shapeFlexibility 1 | 2), optional",
                 "  output  y: String", "  layers: Convolution 3"):  # fmt: skip
        assert line in out


def test_a_weight_file_shows_every_record_and_what_else_is_there(inspect):
    record = struct.Struct("<IIQQQ32x")
    data = struct.pack("<II56x", 1, 2)
    for place, size in ((64, 3), (131, 5)):
        data += record.pack(0xDEADBEEF, 4, size, place + 64, 0) + b"\1" * size
    Path("w.bin").write_bytes(data + b"junk")
    code, out, err = inspect("w.bin")
    assert (code, err) == (0, "")
    assert "2 records" in out and "The header counts 1 of them." in out
    assert "w.bin: byte 200: the last 4 bytes belong to no record." in out
    _, out, _ = inspect("w.bin", "--json")
    assert [record["offset"] for record in json.loads(out)["records"]] == [64, 131]
    Path("w.bin").write_bytes(data[:100])
    code, _, err = inspect("w.bin")
    assert code == 1 and "byte 64: no record can be here" in err


def test_the_default_function_is_named(inspect):
    Path("two.mil").write_text(mil.to_text(replace(parse(TWO), default_function="second")))
    _, out, _ = inspect("two.mil")
    assert "second<ios18>, the default function" in out and "first<ios18>\n" in out


TWO = """func first(tensor<fp16, [1, 4, 1, 32]> x) { tensor<fp16, [1, 4, 1, 32]> y = relu(x = x); } -> (y);
func second(tensor<fp16, [1, 4, 1, 31]> x) { tensor<fp16, [1, 4, 1, 31]> z = tanh(x = x); } -> (z);
"""


def test_a_chip_judges_each_of_several_functions(inspect):
    Path("two.mil").write_text(TWO)
    code, out, _ = inspect("two.mil", "--chip", "portable")
    assert code == 0
    assert "second: the input x" in out and "first: the input x" not in out


def test_one_of_several_functions_is_drawn_by_name(inspect):
    Path("two.mil").write_text(TWO)
    code, _, err = inspect("two.mil", "--graph", "a.svg")
    assert code == 2 and "it has first, second" in err
    code, _, _ = inspect("two.mil", "--graph", "a.svg", "--function", "second")
    assert code == 0 and "tanh" in Path("a.svg").read_text()


def test_files_of_a_folder_that_are_not_read_are_named(inspect):
    mil.save(parse(TEXT), "m.mlmodelc")
    for name in ("coremldata.bin", "analytics/coremldata.bin"):
        Path("m.mlmodelc", name).parent.mkdir(exist_ok=True)
        Path("m.mlmodelc", name).write_bytes(b"?")
    Path("m.mlmodelc", "weights.bin").write_bytes(BlobWriter().to_bytes())
    _, out, _ = inspect("m.mlmodelc")
    assert "Not read: analytics/coremldata.bin, coremldata.bin." in out
    package = mlpackage.save(parse(TEXT), "m.mlpackage")
    _, out, _ = inspect(package)
    assert "Not read" not in out
    (package / "Data" / "notes.txt").write_text("")
    _, out, _ = inspect(package)
    assert "Not read: Data/notes.txt." in out
