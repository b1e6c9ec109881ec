"""What runs where, when, and in which surfaces: a Plan is data."""

from torchane.plan.plan import Copy, Dispatch, HostCall, Part, Plan, PortSpec, ProgramSpec, Stage, Unstage

__all__ = ["Copy", "Dispatch", "HostCall", "Part", "Plan", "PortSpec", "ProgramSpec", "Stage", "Unstage"]
