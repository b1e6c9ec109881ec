"""`python -m torchane`: the command line, for an environment whose scripts are not on the path."""

from torchane.cli import main

main()
