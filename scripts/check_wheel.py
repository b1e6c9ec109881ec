"""Does an installed wheel compute, and does its bridge refuse by name?    python scripts/check_wheel.py

Needs NumPy and no torch: the twin runs a program, and what the bridge says where Apple's framework has no engine is an error of ours.
"""

import sys

import numpy as np

from torchane import native
from torchane.errors import AppleError, MissingDeviceError
from torchane.mil.build import Builder
from torchane.mil.name_constants import name_constants
from torchane.mil.save import emit
from torchane.runtime.ane import framework
from torchane.runtime.twin import TwinDevice


def main() -> int:
    b = Builder()
    x = b.input("a0_x", (1, 1, 32, 32))
    text, blobs = emit(name_constants(b.program(b.matmul(x=x, y=x, name="z0_y"))))
    twin = TwinDevice()
    loaded = twin.load(text, blobs)
    given, result = twin.allocate(loaded.inputs[0]), twin.allocate(loaded.outputs[0])
    given.array[...] = np.random.default_rng(0).standard_normal(given.array.shape)
    twin.run(loaded, [given], [result])
    wide = given.array[0, 0].astype(np.float64)
    assert np.allclose(result.array[0, 0], wide @ wide, rtol=2.0**-9, atol=2.0**-9)
    try:
        native.apple.open(["/no/such/library.dylib"])
    except AppleError as error:
        assert "/no/such/library.dylib" in str(error)
    else:
        raise AssertionError("a library that is not there was opened")
    try:
        print(f"there is an engine here: {framework.find().usable}")
    except MissingDeviceError as error:
        print(error)
    print(f"the wheel computes with {native.get_isa()} kernels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
