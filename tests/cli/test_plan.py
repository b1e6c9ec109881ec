"""`torchane plan` from the outside."""

import json
from pathlib import Path

import pytest

import torchane.capture.plans
import torchane.cli

TEXT = """program(1.3)
{
    func main<ios18>(tensor<fp16, [1, 64, 1, 32]> a00_x, tensor<fp16, [1, 64, 1, 32]> a01_y) {
        tensor<fp16, [1, 64, 1, 32]> z00 = add(x = a00_x, y = a01_y)[name = string("z00")];
    } -> (z00);
}
"""

#: A weight beyond the longest axis and the longest sum of every chip.
LARGE = """program(1.3)
{
    func main<ios18>(tensor<fp16, [1, 1, 64, 70016]> a00_x, tensor<fp16, [1, 1, 70016, 90016]> a01_weight) {
        bool no = const()[name = string("no"), val = bool(false)];
        tensor<fp16, [1, 1, 64, 90016]> z00 = matmul(x = a00_x, y = a01_weight, transpose_x = no, transpose_y = no)[name = string("z00")];
    } -> (z00);
}
"""

#: A convolution with more channels than m4 and m5 take; of m3 it is not reported.
UNTRIED = """program(1.3)
{
    func main<ios18>(tensor<fp16, [1, 64, 1, 32]> a00_x) {
        string valid = const()[name = string("valid"), val = string("valid")];
        tensor<int32, [2]> ones = const()[name = string("ones"), val = tensor<int32, [2]>([1, 1])];
        tensor<int32, [4]> none = const()[name = string("none"), val = tensor<int32, [4]>([0, 0, 0, 0])];
        int32 one = const()[name = string("one"), val = int32(1)];
        tensor<fp16, [124160, 64, 1, 1]> w = const()[name = string("w"), val = tensor<fp16, [124160, 64, 1, 1]>(BLOBFILE(path = string("@model_path/weights/weight.bin"), offset = uint64(64)))];
        tensor<fp16, [1, 124160, 1, 32]> z00 = conv(x = a00_x, weight = w, strides = ones, pad = none, pad_type = valid, dilations = ones, groups = one)[name = string("z00")];
    } -> (z00);
}
"""


@pytest.fixture
def plan(capsys, tmp_path, monkeypatch):
    """plan("x.mil", ...) -> exit code, standard output, standard error; in a folder with two programs."""
    monkeypatch.chdir(tmp_path)
    Path("x.mil").write_text(TEXT)
    Path("refused.mil").write_text(TEXT.replace("add(", "floor_div("))
    Path("large.mil").write_text(LARGE)
    Path("wide.mil").write_text(LARGE.replace("70016", "20480").replace("90016", "64"))
    Path("untried.mil").write_text(UNTRIED)
    Path("open.mil").write_text(TEXT.replace("[1, 64, 1, 32]", "[1, ?, 1, 32]"))

    def run(*arguments: object) -> tuple[int, str, str]:
        code = torchane.cli.run(["plan", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_program_is_priced_and_every_number_is_called_predicted(plan):
    code, out, err = plan("x.mil", "--chip", "m4")
    assert (code, err) == (0, "")
    assert "x.mil on m4: predicted" in out and "verdict of m4: takes" in out
    assert out.endswith("Predicted, not measured: docs/cost-model.md.\n")


def test_json_is_the_last_line_with_the_documented_fields(plan):
    _, out, _ = plan("x.mil", "--chip", "m4", "--json")
    found = json.loads(out.splitlines()[-1])
    assert found["predicted"] is True
    assert {"predicted_ms", "interval_ms", "predicted_mj", "bound", "ops"} <= set(found)
    documented = (Path(__file__).parents[2] / "docs" / "cost-model.md").read_text(encoding="utf-8")
    assert [key for key in (*found, *found["ops"][0]) if f"`{key}`" not in documented] == []


def test_chips_are_compared_a_line_each(plan):
    _, out, _ = plan("x.mil", "--compare", "m1,m4pro, m6", "--json")
    found = json.loads(out.splitlines()[-1])["compared"]
    assert [price["machine"] for price in found] == ["m1", "m4pro", "m6"]
    assert "priced as m4" in out


def test_machines_that_no_step_tells_apart_are_compiled_once(plan, monkeypatch):
    from torchane.capture import plans

    chips, compile_steps = [], plans.compile_steps

    def counted(build, *, options, **given):
        chips.append([one["chip"] for one in options])
        return compile_steps(build, options=options, **given)

    monkeypatch.setattr(plans, "compile_steps", counted)
    _, out, _ = plan("--preset", "tiny", "--seq-len", 32, "--compare", "m4,m4pro,m1,m4max,m1ultra", "--json")
    found = json.loads(out.splitlines()[-1])["compared"]
    assert chips == [["m4", "m1", "m4max"]]  # traced once
    assert [price["machine"] for price in found] == ["m4", "m4pro", "m1", "m4max", "m1ultra"]
    assert found[0]["predicted_ms"] == found[1]["predicted_ms"] != found[3]["predicted_ms"]


@pytest.mark.long
@pytest.mark.parametrize("frozen", ["inputs", "fp16", "int8"])
def test_adapters_are_priced_with_the_weights_beside_them_frozen(plan, frozen):
    code, out, _ = plan("--preset", "tiny", "--chip", "m4", "--seq-len", 32, "--lora", 4, "--frozen", frozen, "--json")
    found, whole = json.loads(out.splitlines()[-1]), json.loads(plan("--preset", "tiny", "--chip", "m4", "--seq-len", 32, "--json")[1].splitlines()[-1])
    assert code == 0 and (found["lora"], found["frozen"]) == (4, frozen) and "adapters of rank 4" in out
    assert (found["memory_bytes"]["constants"] > 0) == (frozen != "inputs")
    assert found["memory_bytes"]["optimizer"] < 0.2 * whole["memory_bytes"]["optimizer"]
    assert found["flops"] < whole["flops"]
    assert (found["bytes_staged"] < 0.5 * whole["bytes_staged"]) == (frozen != "inputs")


def test_a_published_schedule_stands_beside_its_prediction(plan):
    code, out, _ = plan("--schedule", "slv", "--chip", "m3pro", "--json")
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and "published: engine 49 ms" in out
    assert found["published"]["engine_ms"] == [49.0, 49.0] and found["predicted"]
    assert "nobody has published this schedule on m5" in plan("--schedule", "slv", "--chip", "m5")[1]


def test_a_training_step_is_priced_and_again_without_being_compiled(plan, monkeypatch):
    drawn = ("--timeline", "step.svg", "--trace", "step.json")
    arguments = ("--preset", "tiny", "--batch-size", 1, "--seq-len", 32, "--chip", "m4", "--json", *drawn)
    code, out, _ = plan(*arguments)
    found = json.loads(out.splitlines()[-1])
    monkeypatch.setattr(torchane.capture.plans, "compile_steps", None)  # calling it would fail
    assert plan(*arguments)[1] == out
    assert code == 0 and found["tokens"] == 32 and found["dispatches_per_step"] > 0
    assert {"ms_per_256_tokens", "mj_per_token", "loaded_programs", "memory_bytes"} <= set(found)
    documented = (Path(__file__).parents[2] / "docs" / "cost-model.md").read_text(encoding="utf-8")
    assert [key for key in (*found, *found["programs"][0]) if f"`{key}`" not in documented] == []
    assert "predicted, not measured" in Path("step.svg").read_text(encoding="utf-8")
    events = [event for event in json.loads(Path("step.json").read_text(encoding="utf-8"))["traceEvents"] if event.get("cat") == "dispatch"]
    assert len(events) == found["dispatches_per_step"]
    assert sum(event["dur"] for event in events) == pytest.approx(1e3 * found["engine_ms"])


def test_a_folder_with_a_config_is_a_preset(plan, tmp_path):
    from torchane.models.presets import preset

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(preset("tiny").config.to_dict()))
    names = ("mine", "tiny")
    ours, theirs = (plan("--preset", name, "--seq-len", 32, "--chip", "m4", "--json")[1].splitlines()[-1] for name in names)
    assert json.loads(ours) | {"preset": "tiny"} == json.loads(theirs)


def test_measurements_take_the_place_of_constants(plan):
    Path("m4.json").write_text(json.dumps({"format": "torchane measurements", "version": 1, "machine": "m4", "dispatch_s": 1.0}))
    _, out, _ = plan("x.mil", "--chip", "m4", "--measured", "m4.json", "--json")
    assert json.loads(out.splitlines()[-1])["predicted_ms"] > 1000
    assert "are measured" in out


def test_what_doctor_measured_on_this_machine_is_taken_for_its_chip(plan, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHANE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "ane").mkdir(parents=True)
    record = {"format": "torchane measurements", "version": 1, "machine": "m4", "dispatch_s": 1.0}
    (tmp_path / "cache" / "ane" / "measurements.json").write_text(json.dumps(record))
    assert "are measured" in plan("x.mil", "--chip", "m4")[1]
    assert "are measured" not in plan("x.mil", "--chip", "m1")[1]


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (("--chip", "m4"), 2, "give one of FILE, --preset and --schedule; there is none"),
    (("x.mil", "--preset", "tiny", "--chip", "m4"), 2, "there are 2"),
    (("x.mil",), 2, "say --chip NAME or --compare"),
    (("x.mil", "--chip", "m4", "--compare", "m1"), 2, "--chip and --compare both name chips"),
    (("x.mil", "--compare", ","), 2, "no chip is named"),
    (("x.mil", "--chip", ""), 2, "no chip is named"),
    (("x.mil", "--chip", "M4 Max"), 2, "Did you mean m4max?"),
    (("x.mil", "--chip", "portable"), 2, "no chip is called 'portable'"),
    (("x.mil", "--chip", "m4", "--seq-len", "8"), 2, "--seq-len goes with --preset"),
    (("x.mil", "--chip", "m4", "--cache", "off"), 2, "--cache goes with --preset"),
    (("--schedule", "slv", "--chip", "m4", "--anyway"), 2, "--anyway goes with FILE"),
    (("--schedule", "slv", "--chip", "m4", "--recompute", "all"), 2, "--recompute goes with --preset"),
    (("x.mil", "--chip", "m4", "--memory-gb", "8"), 2, "--memory-gb goes with --preset"),
    (("x.mil", "--chip", "m4", "--trace", "t.json"), 2, "--trace goes with --preset"),
    (("--preset", "tiny", "--compare", "m1,m4", "--timeline", "t.svg"), 2, "show one chip"),
    (("--preset", "tiny", "--chip", "m4", "--memory-gb", "0"), 2, "is not a number from 1 to"),
    (("--schedule", "best", "--chip", "m4"), 2, "There are maderix-static"),
    (("--preset", "huge", "--chip", "m4"), 2, "The presets are tiny"),
    (("--preset", "tiny", "--chip", "m4", "--frozen", "int8"), 2, "has none. Add --lora RANK"),
        (("x.mil", "--chip", "m4", "--lora", "4"), 2, "--lora goes with --preset"),
        (("--preset", "tiny", "--chip", "m2", "--lora", "4", "--frozen", "int8"), 2, "is not known to take int8 constants"),
        (("--preset", "tiny", "--chip", "m4", "--seq-len", "9999"), 2, "Its longest is 256: --seq-len 256"),
    (("none.mil", "--chip", "m4"), 1, "it cannot be read"),
    (("open.mil", "--chip", "m4", "--anyway"), 1, "has no price"),
    (("large.mil", "--chip", "m4"), 1, "its inner size is 70016, above 32768"),
    (("large.mil", "--chip", "m4"), 1, "Split the sum into several matmuls and add them"),
    (("large.mil", "--chip", "m1"), 1, "90016 entries, above 16384"),
    (("large.mil", "--chip", "m5"), 1, "No chip takes it as it is"),
    (("wide.mil", "--chip", "m1"), 1, "Taken by m4, m5: --chip m4."),
    (("untried.mil", "--chip", "m4"), 1, "No chip is known to take it as it is. Reports on m3 are missing or disagree."),
    (("--schedule", "slv", "--chip", "m4", "--grad-accum", "4"), 2, "--grad-accum goes with --preset"),
    (("refused.mil", "--chip", "m4"), 1, "floor_div is not taken"),
    (("refused.mil", "--chip", "m4"), 1, "No chip takes it as it is. --anyway"),
    (("x.mil", "--chip", "m4", "--function", "other"), 2, "no function 'other'"),
    (("x.mil", "--chip", "m4", "--measured", "x.mil"), 2, "no record of measurements"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_message(plan, arguments, code, said):
    done, _, err = plan(*arguments)
    assert (done, said in err) == (code, True), err
    assert "Traceback" not in err


def test_a_refused_program_is_priced_anyway(plan):
    code, out, _ = plan("refused.mil", "--chip", "m4", "--anyway")
    assert code == 0 and "verdict of m4: refuses" in out


@pytest.mark.long
def test_a_step_that_needs_more_memory_than_there_is_names_what_would_fit(plan):
    code, _, err = plan("--preset", "tiny", "--chip", "m4", "--batch-size", 64, "--memory-gb", 1.5)
    assert code == 1 and "Try --recompute half or all" in err
    fits = int(err.rpartition("--batch-size ")[2].split(".")[0])
    assert plan("--preset", "tiny", "--chip", "m4", "--batch-size", fits, "--memory-gb", 1.5)[0] == 0
    assert plan("--preset", "tiny", "--chip", "m4", "--batch-size", fits + 4, "--memory-gb", 1.5)[0] == 1


@pytest.mark.long
def test_what_is_computed_again_takes_less_memory_and_says_so(plan):
    code, out, _ = plan("--preset", "tiny", "--chip", "m4", "--recompute", "all", "--json")
    assert code == 0 and "computed again in the backward: all" in out
    found = json.loads(out.splitlines()[-1])
    kept = json.loads(plan("--preset", "tiny", "--chip", "m4", "--json")[1].splitlines()[-1])
    assert found["memory_bytes"]["saved"] < 0.2 * kept["memory_bytes"]["saved"]
    assert found["flops"] > kept["flops"]


@pytest.mark.long
def test_a_step_that_the_chip_does_not_take_names_the_batch_that_it_would(plan):
    code, _, err = plan("--preset", "tiny", "--chip", "m1", "--batch-size", 80)
    assert code == 1 and "Try --batch-size 64." in err


def test_both_ways_to_name_chips_and_a_misspelt_schedule_are_refused_with_what_would_work(plan):
    assert "Write --chip m4, or --compare m1,m5 alone." in plan("x.mil", "--chip", "m4", "--compare", "m1,m5")[2]
    assert "no schedule is called 'maderix-statik' (did you mean maderix-static?)" in plan("--schedule", "maderix-statik", "--chip", "m4")[2]
