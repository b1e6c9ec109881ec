"""`torchane inspect` from the outside."""

import json
import sys
from pathlib import Path

import pytest

import torchane.cli
from torchane import mil
from torchane.mil import parse

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
