"""`torchane run` from the outside: the twin where it can, NumPy where it must, each op named, and the numbers."""

import json
import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import torchane.cli
from torchane import mil, options
from torchane.inspect import mlpackage
from torchane.mil import parse

ON_TWIN = """program(1.3)
{
    func main<ios18>(tensor<fp16, [1, 4, 1, 32]> x) {
        tensor<fp16, [1, 4, 1, 32]> a = exp(x = x)[name = string("a")];
        tensor<fp16, [1, 4, 1, 32]> y = mul(x = a, y = fp16(0.3))[name = string("y")];
    } -> (y);
}
"""
TWO = """func main<ios18>(tensor<fp32, [2]> a, tensor<int32, [2]> b) {
    tensor<int32, [2]> c = cumsum(x = b, axis = int32(0), exclusive = bool(false), reverse = bool(false));
    tensor<fp32, [2]> s = sin(x = a);
} -> (s, c);
func other<ios18>(tensor<fp32, [2]> a) { tensor<fp32, [2]> y = cos(x = a); } -> (y);
"""
PAIR = ON_TWIN.replace("-> (y);", "-> (y, z);").replace("tensor<fp16, [1, 4, 1, 32]> y = ", "tensor<fp16, [1, 4, 1, 32]> z = exp(x = x)[name = string(\"z\")];\n tensor<fp16, [1, 4, 1, 32]> y = ")


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """run("model.mil", ...) -> exit code, standard output, standard error; in a folder with programs and inputs."""
    monkeypatch.chdir(tmp_path)
    Path("model.mil").write_text(ON_TWIN)
    Path("two.mil").write_text(TWO)
    Path("pair.mil").write_text(PAIR)
    np.save("x.npy", np.random.default_rng(0).standard_normal((1, 4, 1, 32)).astype(np.float32))
    np.save("a.npy", np.array([0.5, 1.5], np.float32))
    np.save("b.npy", np.array([3, 4]))

    def command(*arguments: object) -> tuple[int, str, str]:
        code = torchane.cli.run(["run", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def test_the_twin_runs_what_it_has_kernels_for(run):
    code, out, err = run("model.mil", "--input", "x.npy", "--output", "y.npy", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["ran_on"], found["native_ops"], found["numpy_ops"]) == ("twin", 2, [])
    expected = mil.evaluate(parse(ON_TWIN), {"x": np.load("x.npy")})["y"]
    assert np.load("y.npy").tobytes() == expected.tobytes()


def test_ops_without_a_kernel_go_through_numpy_and_are_named_with_the_reason(run):
    mixed = ON_TWIN.replace("exp(x = x)", "sin(x = x)")
    Path("mixed.mil").write_text(mixed)
    code, out, err = run("mixed.mil", "--input", "x.npy", "--output", "y.npy", "--json")
    assert code == 0
    assert err == (
        "1 of 2 ops went through the NumPy rules, which are slow:\n  sin a: the twin has no kernel for it\n"
    )
    found = json.loads(out)
    assert (found["ran_on"], found["native_ops"]) == ("twin and numpy", 1)
    assert found["numpy_ops"] == [{"name": "a", "op": "sin", "reason": "the twin has no kernel for it"}]
    expected = mil.evaluate(parse(mixed), {"x": np.load("x.npy")})["y"]
    assert np.load("y.npy").tobytes() == expected.tobytes()


def test_of_many_ops_of_one_kind_three_are_named(run):
    body = "".join(f"tensor<fp16, [2]> a{i} = sin(x = x); " for i in range(5))
    Path("many.mil").write_text(f"func main(tensor<fp16, [2]> x) {{ {body} }} -> (a4);")
    _, _, err = run("many.mil", "--input", "a.npy")
    assert "  sin a0, a1, a2 and 2 more: the twin has no kernel for it\n" in err


def test_a_program_that_is_all_numpy_runs(run):
    code, out, err = run(
        "two.mil", "--input", "a=a.npy", "--input", "b=b.npy", "--output", "c=c.npy", "--output", "s=s"
    )
    assert code == 0
    assert "2 of 2 ops" in err and "cumsum c: " in err and "sin s: " in err
    assert np.load("c.npy").tolist() == [3, 7]
    np.testing.assert_allclose(np.load("s"), np.sin(np.load("a.npy")), rtol=1e-6)
    assert "s: float32 [2]" in out and "-> c.npy" in out


def test_types_that_the_twin_lacks_are_the_reason_that_is_given(run):
    Path("wide.mil").write_text(ON_TWIN.replace("fp16", "fp32"))
    code, out, err = run("wide.mil", "--input", "x.npy", "--json")
    assert code == 0 and "computes in fp16" in err
    assert json.loads(out)["ran_on"] == "numpy"


@pytest.mark.parametrize("arithmetic", ["exact", "engine"])
def test_the_twin_has_kernels_for_both_arithmetics(run, arithmetic):
    code, out, err = run("model.mil", "--input", "x.npy", "--output", "y.npy", "--arithmetic", arithmetic, "--json")
    assert (code, err, json.loads(out)["ran_on"]) == (0, "", "twin")
    expected = mil.evaluate(parse(ON_TWIN), {"x": np.load("x.npy")}, arithmetic=arithmetic)["y"]
    assert np.load("y.npy").tobytes() == expected.tobytes()


def test_ideal_arithmetic_rounds_nothing(run):
    code, _, err = run("model.mil", "--input", "x.npy", "--output", "y.npy", "--arithmetic", "ideal")
    assert (code, err) == (0, "")
    x = np.load("x.npy").astype(np.float64)
    np.testing.assert_allclose(np.load("y.npy"), np.exp(x) * float(np.float16(0.3)), rtol=1e-12)


def test_the_arithmetics_are_the_evaluators():
    allowed = next(option.allowed for option in options.of("run") if option.name == "arithmetic")
    assert set(allowed) == set(import_module("torchane.mil.evaluate").ARITHMETICS)


def test_a_function_is_chosen_by_name(run):
    code, _, _ = run("two.mil", "--function", "other", "--input", "a.npy", "--output", "y.npy")
    assert code == 0
    np.testing.assert_allclose(np.load("y.npy"), np.cos(np.load("a.npy")), rtol=1e-6)


def test_packages_run_as_their_text_does(run):
    mlpackage.save(parse(ON_TWIN), "m.mlpackage")
    run("m.mlpackage", "--input", "x.npy", "--output", "p.npy")
    run("model.mil", "--input", "x.npy", "--output", "y.npy")
    assert Path("p.npy").read_bytes() == Path("y.npy").read_bytes()


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (("model.mil",), 2, "needs a value for x (tensor<fp16, [1, 4, 1, 32]>)"),
    (("model.mil", "--input", "z=x.npy"), 2, "there is no input 'z'; there are x"),
    (("model.mil", "--input", "a.npy"), 2, "was given the shape"),
    (("two.mil", "--input", "a.npy"), 2, "which one? The program has a, b"),
    (("model.mil", "--input", "x.npy", "--input", "x=x.npy"), 2, "--input x is given twice"),
    (("model.mil", "--input", "x.npy", "--output", "no/such/y.npy"), 1, "cannot be written"),
    (("model.mil", "--input", "nothing.npy"), 2, "nothing.npy: it cannot be read"),
    (("model.mil", "--input", "model.mil"), 1, "no .npy file of numbers"),
    (("pair.mil", "--input", "x.npy", "--output", "y=same.npy", "--output", "z=./same.npy"), 2, "--output z and --output y are the same file"),
    (("two.mil", "--function", "third", "--input", "a.npy"), 2, "no function 'third'; it has main, other"),
    (("model.mil", "--arithmetic", "magic"), 2, "Invalid value"),
    (("nothing.mil", "--input", "x.npy"), 1, "nothing.mil: it cannot be read"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_message(run, arguments, code, said):
    done, _, err = run(*arguments)
    assert (done, said in err) == (code, True), err
    assert "Traceback" not in err


@pytest.mark.parametrize(("make", "what"), [(os.mkfifo, "a named pipe"), (os.mkdir, "a folder"), (lambda path: os.symlink("/dev/zero", path), "a device")])
def test_an_input_that_is_no_file_is_refused_at_once(run, make, what):
    make("odd.npy")
    code, _, err = run("model.mil", "--input", "odd.npy")
    assert code == 2 and f"odd.npy: it is {what}, not a file" in err


def test_a_program_that_does_not_check_is_refused(run):
    Path("wrong.mil").write_text(ON_TWIN.replace("[1, 4, 1, 32]> y", "[1, 4, 1, 31]> y"))
    code, _, err = run("wrong.mil", "--input", "x.npy")
    assert code == 1 and "CompileError" in err and "'y'" in err


def test_an_output_may_take_the_place_of_an_input_and_a_failed_run_leaves_it(run):
    given = np.load("x.npy").astype(np.float16)
    np.save("x.npy", given)
    assert run("model.mil", "--input", "a.npy", "--output", "x.npy")[0] == 2
    assert np.load("x.npy").tobytes() == given.tobytes()
    assert run("model.mil", "--input", "x.npy", "--output", "x.npy")[0] == 0
    assert np.load("x.npy").tobytes() == mil.evaluate(parse(ON_TWIN), {"x": given})["y"].tobytes()
    assert run("model.mil", "--input", "x.npy", "--output", "/dev/null")[0] == 0 and not Path("/dev/null").is_file()


@pytest.mark.parametrize("change", [np.asfortranarray, lambda x: x.astype(">f4"), lambda x: x.astype(np.float64)], ids=["columns", "byte order", "float64"])
def test_an_input_may_lie_in_any_order_and_type(run, change):
    run("model.mil", "--input", "x.npy", "--output", "y.npy")
    np.save("other.npy", change(np.load("x.npy")))
    assert run("model.mil", "--input", "other.npy", "--output", "z.npy")[0] == 0
    assert Path("y.npy").read_bytes() == Path("z.npy").read_bytes()


def test_nothing_is_unpickled(run):
    np.save("bad.npy", np.array([print], dtype=object), allow_pickle=True)
    code, _, err = run("model.mil", "--input", "bad.npy")
    assert code == 1 and "no .npy file of numbers" in err


def test_a_header_that_promises_too_much_is_refused(run):
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,), }"
    Path("bomb.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    code, _, err = run("model.mil", "--input", "bomb.npy")
    assert code in (1, 2) and "bomb.npy" in err and "Traceback" not in err


def test_the_recorded_output_of_an_engine_is_met(run, shared_data):
    """Means and maxima beside what the recorded log says of another arithmetic: 1.6e-4 and 8.8e-4."""
    golden = shared_data / "golden" / "espresso-full_fused"
    Path("weights").mkdir()
    for file in golden.glob("full_fused_*.bin"):
        (Path("weights") / file.name.removeprefix("full_fused_")).write_bytes(file.read_bytes())
    Path("golden.mil").write_text((golden / "full_fused.mil").read_text())
    np.save("in.npy", np.fromfile(golden / "full_fused_input_seq64_f32le.bin", "<f4").reshape(1, 768, 1, 64))
    code, out, err = run("golden.mil", "--input", "in.npy", "--output", "out.npy", "--json")
    assert (code, err, json.loads(out)["ran_on"]) == (0, "", "twin")
    recorded = np.fromfile(golden / "full_fused_out_seq64_f32le.bin", "<f4").reshape(1, 768, 1, 64)
    apart = np.abs(np.load("out.npy").astype(np.float32) - recorded)
    assert apart.mean() < 2e-4 and apart.max() < 1e-3


def test_the_default_function_of_a_package_runs(run):
    """Neither main nor the first: what the package says."""
    program = parse("".join(
        f"func {name}(tensor<fp32, [2]> a) {{ tensor<fp32, [2]> y = {op}(x = a)[name = string(\"y\")]; }} -> (y);"
        for name, op in (("first", "cos"), ("main", "sin"), ("wanted", "tanh"))
    ))  # fmt: skip
    for default, function in ((None, np.sin), ("wanted", np.tanh)):
        path = mlpackage.save(replace(program, default_function=default), "m.mlpackage")
        text = mil.save(mlpackage.load(path), "text")
        for file in (path, text):
            code, _, _ = run(file, "--input", "a.npy", "--output", "y.npy")
            assert code == 0
            np.testing.assert_array_equal(np.load("y.npy"), function(np.load("a.npy").astype(np.float64)).astype(np.float32))


def test_a_pointer_of_git_lfs_in_place_of_an_input_is_called_one(run):
    Path("x.npy").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 384\n")
    code, _, err = run("model.mil", "--input", "x.npy")
    assert code == 1 and "x.npy: this is a Git LFS pointer" in err
