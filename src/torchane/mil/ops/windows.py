"""What convolution and pooling share: how a window slides over the spatial axes of (N, C, *D), and padding.

Source: coremltools, mil/ops/defs/_utils.py, aggregated_pad and spatial_dimensions_out_shape.
"""

from collections.abc import Sequence

import numpy as np

from torchane.errors import CompileError
from torchane.mil.ops.support import Sizes, require_choice, require_length

PAD_TYPES = ("valid", "same", "custom", "same_lower")


def require_windows(
    kind: str,
    rank: int,
    strides: tuple[int, ...] | None,
    pad: tuple[int, ...] | None,
    dilations: tuple[int, ...] | None,
    pad_type: str,
) -> None:
    """Raises CompileError unless there is one stride and dilation, 1 or more, and two pads for each spatial axis."""
    require_choice(kind, "pad_type", pad_type, PAD_TYPES)
    for name, values in (("strides", strides), ("dilations", dilations)):
        if values is not None:
            require_length(kind, name, values, rank, f"{rank}-D data")
            if min(values) < 1:
                raise CompileError(f"{kind}: {name} {values}; each must be 1 or more.")
    if pad_type == "custom":
        require_length(kind, "pad", pad or (), 2 * rank, f"custom padding of {rank}-D data")
        if min(pad or ()) < 0:
            raise CompileError(f"{kind}: pad {pad}; each must be 0 or more.")


def reach(kernel: Sequence[int], dilations: Sequence[int] | None) -> list[int]:
    """How many entries a dilated kernel spans."""
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilations or (1,) * len(kernel))]


def padding(
    pad_type: str, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int], pad: tuple[int, ...] | None
) -> list[tuple[int, int]]:
    """Entries before and after each spatial axis. `same` keeps ceil(size / stride) positions and puts the odd
    entry behind, `same_lower` before."""
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        assert pad is not None
        return list(zip(pad[::2], pad[1::2]))
    totals = [max(0, -(-size // s) * s - size + span - s) for size, span, s in zip(sizes, spans, strides)]
    small, large = [total // 2 for total in totals], [-(-total // 2) for total in totals]
    return list(zip(small, large) if pad_type == "same" else zip(large, small))


def positions(
    kind: str,
    sizes: Sizes,
    spans: Sequence[int],
    strides: tuple[int, ...],
    pad_type: str,
    pad: tuple[int, ...] | None,
    ceil_mode: bool = False,
) -> Sizes:
    """How many places a window takes along each spatial axis. In ceil_mode a last one may hang over the end,
    as long as it starts within the data or the padding before it."""
    found: list[int | None] = []
    for axis, size in enumerate(sizes):
        if size is None:
            found.append(None)
            continue
        ((before, after),) = padding(
            pad_type, [size], spans[axis : axis + 1], strides[axis : axis + 1], pad and pad[2 * axis : 2 * axis + 2]
        )
        room = size + before + after - spans[axis]
        count = room // strides[axis] + 1
        if ceil_mode:
            count = -(-room // strides[axis]) + 1
            count -= before + after > 0 and (count - 1) * strides[axis] >= size + (before + after) / 2
        if count < 1:
            raise CompileError(
                f"{kind}: spatial axis {axis} has {size} entries, padded by {before} and {after}, "
                f"and a window spans {spans[axis]}: it fits nowhere."
            )
        found.append(count)
    return tuple(found)


def windows(x: np.ndarray, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> np.ndarray:
    """(N, C, *D) -> (N, C, *positions, *kernel), a view."""
    rank = x.ndim - 2
    view = np.lib.stride_tricks.sliding_window_view(x, reach(kernel, dilations), tuple(range(2, x.ndim)))
    every = (slice(None), slice(None))
    return view[
        every + tuple(slice(None, None, s) for s in strides) + tuple(slice(None, None, d) for d in dilations[:rank])
    ]
