"""The twin: a device in software that runs the MIL text which an engine would be given, under the contract of runtime/device.py.

    device    loads a program as a tape, and runs it           ops       which kernel computes which MIL op
    schedule  the steps of a tape and their order              chain     element-wise ops that run block by block
    arrays    where values lie                                 arena     values that never live at once share memory
    attention  attention and its gradient as one step           turned    constants in the order that products read
    engine    the engine's functions as tables, for its own arithmetic
    shared    constants that several programs hold, once in memory
"""

from torchane.runtime.twin.device import ARITHMETICS, TwinBuffer, TwinDevice, TwinProgram, load_program, read_program

__all__ = ["ARITHMETICS", "TwinBuffer", "TwinDevice", "TwinProgram", "load_program", "read_program"]
