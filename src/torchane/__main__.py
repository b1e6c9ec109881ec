"""`torchane` and `python -m torchane`: the command line, ready for signals before anything large is imported."""

import signal
import sys


def main() -> None:
    """Runs the command line and leaves the process with its exit code."""
    from torchane.cli.signals import end_at_once

    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)
    from torchane.cli import main_process

    sys.exit(main_process())


if __name__ == "__main__":
    main()
