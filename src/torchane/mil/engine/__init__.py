"""`engine`: the Neural Engine's own arithmetic, as far as it is known, in NumPy.

    evaluate(program, inputs, arithmetic="engine")                       # M4 and later, as measured
    evaluate(program, inputs, arithmetic=engine(Settings(...)))          # with other assumptions

    fp16 operands ── numbers.decoded ──► an op's rule (rules.py), else its NumPy rule ── numbers.halves ──► fp16

Every rule is a `Record`: what it says, how sure we are, where it holds and what nobody knows
(`python -c "from torchane.mil.engine import table; print(table())"`). The C++ kernels of the twin are tested
against these rules to the bit.
"""

from torchane.mil.engine.arithmetic import ENGINE, EngineArithmetic, engine
from torchane.mil.engine.records import RECORDS, Evidence, Record, table
from torchane.mil.engine.settings import Settings

__all__ = ["ENGINE", "RECORDS", "EngineArithmetic", "Evidence", "Record", "Settings", "engine", "table"]
