"""Says so when the torch that pip brought is a CUDA build: it works, and is several gigabytes larger."""

import torch

if torch.version.cuda is not None:
    print(
        f"Note: pip brought a CUDA build of torch ({torch.__version__}). It works; torchane only uses its CPU part. "
        "For the small CPU build, start again with `make clean` and\n"
        '  make demo PIP_ARGS="--index-url URL"\n'
        "where URL is the CPU package index that pytorch.org/get-started shows for pip on Linux."
    )
