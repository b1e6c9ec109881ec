"""`torchane`: one command a module, each loaded when it is called, so that `--help` answers at once.

Exit codes: 0 done; 1 something failed that the message explains; 2 the call itself is wrong; 128 + N stopped by signal N: 130
by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP. What we report on purpose is one message on standard error, never a traceback.
"""

import signal
import sys
from collections.abc import Mapping, Sequence

import click

from torchane.cli.signals import Stopped, end_at_once, load, own_process, raising
from torchane.cli.streams import LostOutput, open_standard_streams
from torchane.errors import TorchaneError, UsageError

FAILED, MISUSED, INTERRUPTED = 1, 2, 130

# command -> module that holds it as `command`, and what the list of commands says of it
COMMANDS: Mapping[str, tuple[str, str]] = {
    "train": ("torchane.cli.train", "Train a language model; without arguments, a small one in two minutes."),
    "lora": ("torchane.cli.lora", "Fine-tune a model that you have; mlx-lm's flags and data."),
    "generate": ("torchane.cli.generate", "Continue prompts with a model: a run, a folder, a .gguf, an adapter."),
    "chat": ("torchane.cli.chat", "Talk with a model that was made for it."),
    "eval": ("torchane.cli.evaluate", "Measure a model on a file: perplexity, exact match, multiple choice."),
    "export": ("torchane.cli.export", "Write a model or an adapter as transformers, mlx-lm, llama.cpp or Ollama reads it."),
    "fuse": ("torchane.cli.fuse", "Merge an adapter into its base."),
    "import": ("torchane.cli.import_files", "Take a GGUF, a llama2.c model or another tool's adapter."),
    "explain": ("torchane.cli.explain", "Say of each op of a model where it runs and why."),
    "bench": ("torchane.cli.bench", "Measure on this machine, compared with PyTorch."),
    "inspect": ("torchane.cli.inspect", "Show what a MIL, Core ML, .hwx or weight file holds."),
    "plan": ("torchane.cli.plan", "Predict time and energy on a Neural Engine that need not be here."),
    "doctor": ("torchane.cli.doctor", "Probe this machine's Neural Engine and write a report."),
    "cache": ("torchane.cli.cache", "Show or clear the compiled Neural Engine programs."),
    "run": ("torchane.cli.run_program", "Run a MIL program on the twin."),
}


class LazyGroup(click.Group):
    """Knows its commands by name and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return load(COMMANDS[name][0]).command if name in COMMANDS else None

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


def main() -> None:
    """Runs the command line and leaves the process with its exit code."""
    sys.exit(main_process())


def main_process() -> int:
    """`run` for a process of its own: with its streams, and signals that end it from here to the end."""
    open_standard_streams()
    own_process()
    if signal.getsignal(signal.SIGINT) == end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = run()
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)  # while Python ends, too
    return code


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and gives its exit code."""
    try:
        with raising():
            code = cli.main(arguments, prog_name="torchane", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (LostOutput, BrokenPipeError) as error:
        if isinstance(error, LostOutput) and not error.is_closed:  # else whoever read our output has seen enough
            click.echo(str(error), err=True)
        return FAILED
    except TorchaneError as error:
        click.echo(f"{type(error).__name__}: {error}", err=True)
        return MISUSED if isinstance(error, UsageError) else FAILED
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped.", err=True)
        return INTERRUPTED
    except Stopped as error:
        click.echo("Stopped.", err=True)
        return 128 + error.number
