"""`torchane`: one command a module, each loaded when it is called, so that `--help` answers at once.

Exit codes: 0 done; 1 something failed that the message explains; 2 the call itself is wrong; 130 stopped
by Ctrl-C. What we report on purpose is one message on standard error, never a traceback.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

import click

from torchane.errors import TorchaneError, UsageError

FAILED, MISUSED, INTERRUPTED = 1, 2, 130

# command -> module that holds it as `command`, and what the list of commands says of it
COMMANDS: Mapping[str, tuple[str, str]] = {
    "train": ("torchane.cli.train", "Train a language model; without arguments, a small one in two minutes."),
    "generate": ("torchane.cli.generate", "Continue a prompt with a trained model."),
    "explain": ("torchane.cli.explain", "Say of each op of a model where it runs and why."),
    "bench": ("torchane.cli.bench", "Measure, beside PyTorch, on this machine."),
    "inspect": ("torchane.cli.inspect", "Show what a MIL, Core ML, .hwx or weight file holds."),
    "run": ("torchane.cli.run_program", "Run a MIL program on the twin."),
}


class LazyGroup(click.Group):
    """Knows its commands by name and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return import_module(COMMANDS[name][0]).command if name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="torchane")
def cli() -> None:
    """Train PyTorch models through Apple Neural Engine programs, on the engine or on its software twin.

    \b
    Begin here:
      torchane train                                   a small model learns in two minutes
      torchane generate runs/tiny-1 --prompt "Mira"    and writes
      torchane train --data notes/ --steps 1000        the same with your own text

    \b
    In your own code:
      model = torch.compile(model, backend="ane")

    Every command explains its options: torchane train --help
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and leaves the process with its exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and gives its exit code."""
    try:
        code = cli.main(arguments, prog_name="torchane", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except TorchaneError as error:
        click.echo(f"{type(error).__name__}: {error}", err=True)
        return MISUSED if isinstance(error, UsageError) else FAILED
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped.", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
