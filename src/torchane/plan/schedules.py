"""Training schedules that others have published, as programs that the cost model prices: no constant is fitted to them.

    SCHEDULES["maderix-static"].programs     stories110m, one micro-step of 256 tokens, on the engine
    SCHEDULES["maderix-static"].published    what their authors measured, by machine

Shapes are those of llama2.c's stories110m: 12 layers, 768 channels, 2,048 hidden, 12 heads. The engine's part is priced; what
the authors leave to the processor (gradients of weights, the loss, Adam) is not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torchane.chips.points import Layer
from torchane.plan.work import OpWork, ProgramWork

LAYERS, DIM, HIDDEN, HEADS, HEAD, TOKENS = 12, 768, 2048, 12, 64, 256
SCORES = HEADS * TOKENS


@dataclass(frozen=True)
class Figure:
    """Published milliseconds of one micro-step: of the engine's part and of everything, (lowest, highest); None: not said."""

    engine_ms: tuple[float, float] | None
    total_ms: tuple[float, float] | None
    source: str


@dataclass(frozen=True)
class Schedule:
    """`programs`: (name, dispatches in a micro-step, work). `staged_bytes`: what the host writes and reads of surfaces."""

    name: str
    title: str
    programs: tuple[tuple[str, int, ProgramWork], ...]
    published: Mapping[str, Figure]
    tokens: int = TOKENS

    @property
    def surface_bytes(self) -> tuple[int, int]:
        """(in, out) of all dispatches: these schedules write and read every surface on the host."""
        return (
            sum(count * work.bytes_in for _, count, work in self.programs),
            sum(count * work.bytes_out for _, count, work in self.programs),
        )


def _constant(inner: int, outer: int) -> Layer:
    return Layer("conv", 1, inner, outer, TOKENS)


def _given(inner: int, outer: int) -> Layer:
    return Layer("dynamic", 1, inner, outer, TOKENS)


def _numbers(passes: int, channels: int) -> Layer:
    return Layer("pointwise", passes, 1, channels, TOKENS)


_SCORES = Layer("matmul", HEADS, HEAD, TOKENS, TOKENS)
_VALUES = Layer("matmul", HEADS, TOKENS, HEAD, TOKENS)
_SOFTMAX = (_numbers(2, SCORES), Layer("softmax", 1, 1, SCORES, TOKENS))


def _program(layers: Sequence[Layer], channels_in: int, channels_out: int, weights: int = 0) -> ProgramWork:
    """Ports of [1, channels, 1, 256] in fp16; `weights`: numbers that come in beside them."""
    row = 2 * TOKENS
    return ProgramWork((OpWork("layers", "layers", tuple(layers)),), row * channels_in + 2 * weights, row * channels_out, False)


def _layers(dense: Callable[[int, int], Layer], weights_in: bool) -> tuple[tuple[str, int, ProgramWork], ...]:
    """The six programs of one layer, forward and backward, weights as `dense` makes them."""
    square, wide = (DIM * DIM, DIM * HIDDEN) if weights_in else (0, 0)
    attention = [_numbers(5, DIM), *[dense(DIM, DIM)] * 3, _numbers(3, DIM), _SCORES, *_SOFTMAX, _VALUES]
    ffn = [_numbers(5, DIM), dense(DIM, HIDDEN), dense(DIM, HIDDEN), _numbers(3, HIDDEN), dense(HIDDEN, DIM)]
    ffn_back = [_numbers(3, HIDDEN), dense(DIM, HIDDEN), _numbers(9, HIDDEN), dense(HIDDEN, DIM), dense(HIDDEN, DIM)]
    scores_back = [_numbers(4, DIM), dense(DIM, DIM), _numbers(4, DIM), _SCORES, *_SOFTMAX, _VALUES, _SCORES]
    softmax_back = [_numbers(2, SCORES), _numbers(2, DIM), _numbers(5, SCORES), _VALUES, _VALUES, _numbers(3, DIM)]
    return (
        ("attention forward", LAYERS, _program([*attention, dense(DIM, DIM)], DIM, 6 * DIM, 4 * square)),
        ("ffn forward", LAYERS, _program(ffn, DIM, 2 * DIM + 3 * HIDDEN, 3 * wide)),
        ("ffn backward", LAYERS, _program(ffn_back, DIM + 2 * HIDDEN, DIM + 2 * HIDDEN, 3 * wide)),
        ("scores backward", LAYERS, _program(scores_back, 4 * DIM, DIM + 2 * SCORES, square)),
        ("softmax backward", LAYERS, _program(softmax_back, 2 * SCORES + 2 * DIM, 2 * DIM)),
        ("qkv backward", LAYERS, _program([_numbers(3, DIM), *[dense(DIM, DIM)] * 3, _numbers(2, DIM)], 3 * DIM, DIM, 3 * square)),
    )


def _dynamic() -> tuple[tuple[str, int, ProgramWork], ...]:
    """Ten programs a layer: the six, with the products of four of them in programs of their own (SLV, MDX dynamic)."""
    six = {name: work for name, _, work in _layers(_given, True)}
    square, wide = DIM * DIM, DIM * HIDDEN
    attention = six["attention forward"].layers[:-1]
    scores_back = [layer for layer in six["scores backward"].layers if layer.form != "dynamic"]
    return (
        ("attention forward", LAYERS, _program(attention, DIM, 5 * DIM, 3 * square)),
        ("output forward", LAYERS, _program([_given(DIM, DIM)], DIM, DIM, square)),
        ("ffn forward", LAYERS, six["ffn forward"]),
        ("ffn backward, down", LAYERS, _program([_given(DIM, HIDDEN)], DIM, HIDDEN, wide)),
        ("ffn backward, gate and up", LAYERS, _program([_given(HIDDEN, DIM)] * 2, 2 * HIDDEN, DIM, 2 * wide)),
        ("output backward", LAYERS, _program([_given(DIM, DIM)], DIM, DIM, square)),
        ("scores backward", LAYERS, _program(scores_back, 4 * DIM, DIM + 2 * SCORES)),
        ("softmax backward", LAYERS, six["softmax backward"]),
        ("q backward", LAYERS, _program([_given(DIM, DIM)], DIM, DIM, square)),
        ("kv backward", LAYERS, _program([_given(DIM, DIM)] * 2, 2 * DIM, DIM, 2 * square)),
    )


_MDX3 = "maderix/ANE issue 3, community_results.json"
SCHEDULES: Mapping[str, Schedule] = {
    schedule.name: schedule
    for schedule in (
        Schedule(
            "maderix-static", "maderix: constant weights, 72 programs, compiled anew after each update",
            _layers(_constant, False),
            {
                "m1pro": Figure((32, 35), (148, 163), _MDX3), "m1max": Figure((35, 45), (143, 167), _MDX3),
                "m3ultra": Figure((10, 10), (91, 91), "maderix/ANE#28"),
                "m4": Figure((9.6, 9.6), (106.7, 106.7), "maderix/ANE README"),
                "m4pro": Figure((8.9, 8.9), (69, 73), _MDX3), "m4max": Figure((10.2, 10.2), (64, 64), _MDX3),
                "m5": Figure((9.1, 9.8), (101, 120), _MDX3),
            },
        ),
        Schedule(
            "maderix-dynamic", "maderix: weights as inputs, ten programs a layer", _dynamic(),
            {"m4": Figure((49, 49), (110, 115), "maderix/ANE README"), "m3ultra": Figure(None, (115.4, 115.4), "maderix/ANE#28")},
        ),
        Schedule(
            "pull-request-22", "pull request 22 of maderix/ANE: weights as inputs of their own", _layers(_given, True),
            {"m4": Figure(None, (76.9, 76.9), "maderix/ANE#22")},
        ),
        Schedule(
            "slv", "SLV: weights as inputs, ten programs a layer", _dynamic(),
            {
                "m4": Figure((37.3, 37.3), (71.8, 94.9), "slavko ANE-Training"),
                "m3pro": Figure((49.0, 49.0), (80.9, 202.5), "slavko ANE-Training"),
            },
        ),
    )
}  # fmt: skip
