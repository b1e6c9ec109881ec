"""The numbers of the number format: where fp16 ends, where sums end, and what stands for "left out".

    0 .. 2^-24 .. 2^-14 ............................ 32752 ...... 65504 | inf
         smallest  smallest that is normal      end of a sum      fp16's end

    ... -inf ──► EXCLUDED -3e4 ── EXCLUDED_BELOW -2.5e4 ── MASKED -1e4 ◄── finfo.min, -1e9: LEFT_OUT -1e6 and below
"""

import numpy as np

#: The largest finite fp16 number; its smallest positive one; and its smallest that has all 11 digits.
FP16_MAX = 65504.0
FP16_SMALLEST = 2.0**-24
FP16_SMALLEST_NORMAL = 2.0**-14
#: A tensor whose numbers all lie below has at most four of fp16's digits, an error of 3 % and more.
FAINT = 2.0**-20

#: The largest finite sum of products that an engine gives: every chip measured so far (chips/portable.toml, limit
#: accumulator_ceiling). A sum that reaches 32768 on its way is an infinity.
SUM_MAX = 32752.0

#: Data at or below this is a mask's "left out", -1e9 or finfo.min, and no number that a model computes with. A NumPy number: fp16
#: values are compared with it in fp32.
LEFT_OUT = np.float32(-1e6)
#: Added to a score, either leaves nothing after the softmax; score + MASKED stays finite in fp16, where -65504 plus a score may
#: not (reference: mil-text.md, section 5). EXCLUDED stands for -inf, MASKED for large finite numbers: a row that is -inf
#: throughout has a softmax of zeros where torch says so, a row of finfo.min an even one.
MASKED = -1e4
EXCLUDED = -3e4
#: What lies below is EXCLUDED: two MASKED penalties and a score do not reach it, nor does EXCLUDED and a score leave it.
EXCLUDED_BELOW = -2.5e4
