"""Every number that an option takes: its range, its odd values, and no option twice."""

import click
import pytest
from click.testing import CliRunner

from torchane.cli import COMMANDS, cli
from torchane.cli.options import Command, Number
from torchane.options import NUMBERS as RANGES


def commands(group: click.Group = cli) -> dict[str, click.Command]:
    found = {}
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        found |= commands(command) if isinstance(command, click.Group) else {f"{group.name} {name}": command}
    return found


EVERY = commands()
NUMBERS = [(name, option) for name, command in EVERY.items() for option in command.params if isinstance(option.type, Number)]
ODD = ["nan", "inf", "-inf", "1e400", "-1", "", " ", "x", "0x10", "9" * 20, "9" * 5000, "1.5", "\u0663\u0663\u0663" * 30]


def test_every_command_refuses_repetition():
    assert len(EVERY) > len(COMMANDS) and all(isinstance(command, Command) for command in EVERY.values())


def test_every_number_has_a_range():
    plain = (click.INT, click.FLOAT)
    kinds = [type(option.type) for command in EVERY.values() for option in command.params]
    assert not [kind for kind in kinds if kind in map(type, plain) or issubclass(kind, click.IntRange | click.FloatRange)]
    assert len(NUMBERS) > 20


@pytest.mark.parametrize(("name", "option"), NUMBERS, ids=[f"{name} {option.opts[0]}" for name, option in NUMBERS])
def test_odd_values_are_refused_by_name_before_anything_is_done(name, option):
    for value in ODD:
        if (not RANGES[option.name].whole and value == "1.5") or (value == "-1" and option.type.allowed.holds(-1)):
            continue
        done = CliRunner().invoke(EVERY[name], [option.opts[0], value])
        assert done.exit_code == 2 and f"'{option.opts[0]}'" in done.output, value
        assert "is not a" in done.output and len(done.output) < 400


@pytest.mark.parametrize(("name", "command"), EVERY.items(), ids=list(EVERY))
def test_an_option_given_twice_is_refused_where_one_value_counts(name, command):
    for option in command.params:
        if isinstance(option, click.Option) and not option.multiple and not option.is_flag and option.name != "help":
            value = option.type.choices[0] if isinstance(option.type, click.Choice) else "1"
            done = CliRunner().invoke(command, [option.opts[0], value, option.opts[0], value])
            assert done.exit_code == 2 and f"{option.opts[0]} is given twice: {value} and {value}" in done.output, option.name


@pytest.mark.parametrize(("name", "value"), [("lr", 1e-9), ("lr", 1000), ("seed", 0), ("seed", 2**63 - 1), ("temperature", 0), ("threads", 1024)])
def test_ends_of_ranges_are_inside(name, value):
    assert Number(RANGES[name]).convert(str(value), None, None) == value
