"""One rule per ATen op: how torch's graphs are written in natural MIL (torch's shapes, fp16, any MIL op).

    from torchane.capture import rules
    aot_autograd(..., decompositions=rules.decompositions())
    rule = rules.rule_for(node, chip)        # None: the host runs it; rules.why_not(node, chip) says why
    result = rule(builder, *args, **kwargs)  # Var, Literal (a constant), None, or a tuple of them

Passes make the result legal for a chip. A family is a file; `registry` says what a rule may expect.
"""

from torchane.capture.rules import (  # noqa: F401  (each fills the registry)
    activations,
    constants,
    convolution,
    dropout,
    elementwise,
    linear,
    norms,
    pooling,
    reductions,
    selection,
    shape,
    slices,
    softmax,
    vocabulary,
)
from torchane.capture.rules.decompose import decompositions
from torchane.capture.rules.registry import ON_THE_HOST, RULES, NoRule, Rule, covered_ops, lowers, rule_for, why_not

__all__ = ["ON_THE_HOST", "RULES", "NoRule", "Rule", "covered_ops", "decompositions", "lowers", "rule_for", "why_not"]
