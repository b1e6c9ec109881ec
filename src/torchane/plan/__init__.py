"""What runs where, when, in which surfaces, and what it is predicted to take on an engine. Needs no torch.

    Plan                                              a graph as data: programs, dispatches, copies, host work
    price_program(program, pricing_for("m4max"))      predicted milliseconds and millijoules of a MIL program, op by op
"""

from torchane.plan.constants import Measured, Pricing, pricing_for, read_measurements
from torchane.plan.plan import Copy, Dispatch, HostCall, Part, Plan, PortSpec, ProgramSpec, Stage, Step, Unstage
from torchane.plan.price import OpPrice, ProgramPrice, price_program

__all__ = [
    "Copy", "Dispatch", "HostCall", "Measured", "OpPrice", "Part", "Plan", "PortSpec", "Pricing", "ProgramPrice", "ProgramSpec",
    "Stage", "Step", "Unstage", "price_program", "pricing_for", "read_measurements",
]  # fmt: skip
