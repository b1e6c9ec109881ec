"""What the compiler and the runtime agree on: how tensors lie in ports, under which powers of two, within which numbers.

    numbers   fp16's ends, the end of a sum of products, the numbers that stand for "left out" of a softmax
    ports     where the elements of a tensor lie in a surface
    passes    what a pass did to a program
    ranges    which power of two a value is stored under, where a program's range is controlled

Data and arithmetic only: passes write what these describe, and the runtime reads it.
"""
