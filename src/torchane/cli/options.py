"""Options as every command has them: numbers within the ranges of models/ranges.py, and nothing given twice."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from torchane.models.ranges import OPTIONS, Range


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


def number(name: str, *, least: int | None = None, **attributes: Any) -> Any:
    """The option --NAME, whose values have the range of that name; least: where a command wants more than its least."""
    allowed = OPTIONS[name.removeprefix("--").replace("-", "_")]
    return click.option(name, type=Number(allowed if least is None else replace(allowed, least=least)), **attributes)
