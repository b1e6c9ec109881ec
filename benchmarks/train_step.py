"""How long does one training step take, compared with PyTorch?    python benchmarks/train_step.py --preset stories15m

The same as `torchane bench train-step --json`; conditions in src/torchane/train/bench.py.
"""

import sys

from torchane.cli import main

main(["bench", "train-step", "--json", *sys.argv[1:]])
