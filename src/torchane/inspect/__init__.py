"""Files of Apple's tools: what they are, what they hold, and Core ML packages to write.

    from torchane.inspect.describe import Inspection
    Inspection(Path("model.mlpackage")).to_dict()               what `torchane inspect --json` prints

    from torchane.inspect import mlpackage
    program = mlpackage.load("model.mlpackage")                 # weights mapped
    mlpackage.save(program, "copy.mlpackage")

    from torchane.inspect import hwx
    hwx.to_bytes(hwx.parse(data)) == data

Nothing read here is executed, unpickled or followed out of its folder. Needs NumPy and protobuf.
"""
