"""The table of options: what is made from it agrees, and an unknown name or value is refused with the nearest one."""

import dataclasses
from pathlib import Path

import pytest

from torchane import options
from torchane.capture.compile_options import Options
from torchane.cli.training import Request
from torchane.errors import UsageError


def test_no_command_has_two_options_of_one_name():
    for command in {command for option in options.TABLE for command in option.commands}:
        for names in ([option.name for option in options.of(command)], [option.key for option in options.of(command)]):
            assert len(names) == len(set(names)), command


def test_every_default_is_one_that_the_option_takes():
    for option in options.TABLE:
        if option.kind == "number" and option.default is not None:
            option.range.require(option.name, option.default)
        elif option.kind != "number" and not option.multiple:
            option.require(option.default, "here")


def test_an_option_that_two_commands_share_takes_the_same_values():
    for name in options.shared("train", "backend"):
        one, other = (next(option for option in options.of(command) if option.name == name) for command in ("train", "backend"))
        assert one.allowed == other.allowed, name
    assert set(options.shared("train", "backend")) == {"device", "dump", "arithmetic", "ranges", "recompute"}


def test_a_request_has_the_flags_of_train():
    assert [field.name for field in dataclasses.fields(Request)] == [o.key for o in options.of("train") if o.key != "as_json"]
    assert Request() == Request(device="auto") and Request().steps is None and Request().audit is False
    with pytest.raises(TypeError, match="stepz"):
        Request(stepz=3)


def test_the_backend_has_the_defaults_of_the_table():
    assert dataclasses.asdict(Options.parse({})) == {
        "device": "auto", "chip": "portable", "dump": None, "arithmetic": "exact", "ranges": "auto", "precision": "auto", "cache": "on",
        "buckets": "auto", "progress": "on", "recompute": "none", "frozen": "inputs", "partition": None, "observers": (), "without": (),
    }  # fmt: skip
    assert Options.parse({"dump": Path("here"), "without": "drop_dead, drop_noops"}).without == ("drop_dead", "drop_noops")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"devise": "twin"}, "torch.compile.*: unknown option devise .did you mean device[?].. Known: device, chip"),
        ({"zzz": 1}, "torch.compile.*: unknown option zzz. Known: device"),
        ({"ranges": "onn"}, "ranges is 'onn' .did you mean on[?].. Known: auto, on, off"),
        ({"arithmetic": 3}, "arithmetic is 3. Known: exact, fast, engine"),
        ({"device": 3}, 'device is 3. It is "auto", "twin", "ane", or an open Device'),
        ({"chip": None}, "chip is None, and takes a name"),
        ({"dump": 3}, "dump is 3, and takes a folder"),
        ({"partition": "layers"}, "partition is 'layers', and takes a function"),
        ({"without": 3}, "without is 3, and takes names"),
        ({"without": "drop_ded"}, "no pass is called 'drop_ded' .did you mean drop_dead[?].."),
        ({"without": "lower_layout"}, "without: lower_layout cannot be left out: "),
    ],
)
def test_what_no_option_takes_is_refused_by_name(given, said):
    with pytest.raises(UsageError, match=said):
        Options.parse(given)


def test_the_same_table_gives_a_settings_file_its_ranges():
    with pytest.raises(UsageError, match="lr is -1, and it must be a number above 0 to 1,000"):
        options.NUMBERS["lr"].require("lr", -1)
