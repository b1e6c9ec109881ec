"""Options as click flags: made from the table of torchane/options.py, and nothing given twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from torchane.models.presets import PRESETS
from torchane.options import Option, Range, of


class Command(click.Command):
    """Refuses an option that is given twice and takes one value: click would use the last without a word."""

    def make_parser(self, ctx: click.Context) -> Any:
        parser = super().make_parser(ctx)
        for option in {*parser._long_opt.values(), *parser._short_opt.values()}:
            if option.action == "store":
                option.process = _once(option)
        return parser


def _once(option: Any) -> Callable[[Any, Any], None]:
    process = option.process

    def process_once(value: Any, state: Any) -> None:
        if option.dest in state.opts:
            raise click.UsageError(f"{option.obj.opts[0]} is given twice: {state.opts[option.dest]} and {value}. Give it once.")
        process(value, state)

    return process_once


class Number(click.ParamType):
    """A number of a range."""

    def __init__(self, allowed: Range) -> None:
        self.allowed = allowed
        self.name = "integer" if allowed.whole else "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = value if not isinstance(value, str) else int(value) if self.allowed.whole else float(value)
        except ValueError:
            number = None
        if not self.allowed.holds(number):
            text = str(value)
            self.fail(f"{text if len(text) <= 40 else text[:40] + '...'} is not {self.allowed}.", param, ctx)
        return number


def takes(command: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Every option of a command, as the table has them."""

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(of(command)):
            function = _flag(option)(function)
        return function

    return decorated


def _flag(option: Option) -> Any:
    names = [each for each in (option.short, option.flag, option.key) if each is not None]
    help = option.help.format(presets="; ".join(f"{preset.name}: {preset.summary}" for preset in PRESETS.values()) + ".") if option.kind == "preset" else option.help
    if option.kind == "flag":
        return click.option(*names, is_flag=True, help=help)
    return click.option(
        *names, type=_type(option), help=help or None, metavar=option.metavar, multiple=option.multiple,
        default=() if option.multiple else option.default, show_default=option.show_default,
    )  # fmt: skip


def _type(option: Option) -> Any:
    if option.kind == "number":
        return Number(option.range)
    if option.kind in ("choice", "preset"):
        return click.Choice(option.allowed or list(PRESETS))
    if option.kind != "path":
        return str
    what = option.allowed[0] if option.allowed else ""
    return click.Path(path_type=Path, exists=what == "folder", file_okay=what != "folder", dir_okay=what != "new file")
