"""Recurrent layers over a sequence (S, B, I): rnn, gru, lstm. Each step's state is kept in the arithmetic
given, without rounding between steps.

Source: coremltools, mil/ops/defs/iOS15/recurrent.py and iOS18/recurrent.py (reset_after, input_bias).
"""

from collections.abc import Callable

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import require_choice, require_float, require_rank, require_shape
from torchane.mil.types import TensorType

# scaled_tanh and hard_sigmoid with the constants that Core ML gives them here: 1 and 1, 0.2 and 0.5.
# Source: coremltools, mil/ops/tests/iOS14/test_recurrent.py, TestLSTM.test_numpy_numerical.
_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "scaled_tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "sigmoid_hard": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
}


def _require_layer(
    kind: str, gates: int, x: TensorType, initial_h: TensorType, weight_ih: TensorType, weight_hh: TensorType
) -> int:
    """The hidden size H, for x (S, B, I) and weights (gates * H, I) and (gates * H, H)."""
    require_float(kind, x=x, initial_h=initial_h, weight_ih=weight_ih, weight_hh=weight_hh)
    require_rank(kind, (3,), x=x)
    require_rank(kind, (2,), initial_h=initial_h, weight_ih=weight_ih, weight_hh=weight_hh)
    hidden = weight_hh.shape[1]
    if hidden is None or weight_hh.shape[0] != gates * hidden:
        raise CompileError(f"{kind}: weight_hh is {weight_hh} and must be ({gates} * H, H), for {gates} gates.")
    require_shape(kind, (gates * hidden, x.shape[2]), weight_ih=weight_ih)
    return hidden


def _results(x: TensorType, width: int, output_sequence: bool, states: int) -> tuple[TensorType, ...]:
    """The outputs of every step, or of the last, and then what each state ends as."""
    end = TensorType(x.dtype, (x.shape[1], width))
    return (TensorType(x.dtype, (x.shape[0] if output_sequence else 1, x.shape[1], width)), *(end,) * states)


def _scanned(
    x: np.ndarray, direction: str, output_sequence: bool, states: tuple[np.ndarray, ...], step: Callable[..., tuple]
) -> tuple[np.ndarray, ...]:
    """Runs step(x[t], *states) -> states along the sequence. Outputs stand in the order in which they were made:
    the first of a reverse layer belongs to the last entry of x."""
    outputs = []
    for x_t in x[::-1] if direction == "reverse" else x:
        states = step(x_t, *states)
        outputs.append(states[0])
    if not output_sequence:
        return (outputs[-1][None], *states)
    return (np.stack(outputs), *states)


rnn = OpKind("rnn", operands=("x", "initial_h", "weight_ih", "weight_hh", "bias"))


@rnn.infers
def _(
    x: TensorType,
    initial_h: TensorType,
    weight_ih: TensorType,
    weight_hh: TensorType,
    bias: TensorType | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[TensorType, ...]:
    """h = activation(W_ih x + W_hh h + bias) -> (S or 1, B, H), last h (B, H)."""
    hidden = _require_layer("rnn", 1, x, initial_h, weight_ih, weight_hh)
    require_shape("rnn", (x.shape[1], hidden), initial_h=initial_h)
    require_shape("rnn", (hidden,), bias=bias)
    require_choice("rnn", "direction", direction, ("forward", "reverse"))
    require_choice("rnn", "activation", activation, tuple(_ACTIVATIONS))
    return _results(x, hidden, output_sequence, states=1)


@rnn.evaluates
def _(
    x: np.ndarray,
    initial_h: np.ndarray,
    weight_ih: np.ndarray,
    weight_hh: np.ndarray,
    bias: np.ndarray | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[np.ndarray, ...]:
    act, constant = _ACTIVATIONS[activation], 0 if bias is None else bias

    def step(x_t: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, ...]:
        return (act(x_t @ weight_ih.T + h @ weight_hh.T + constant),)

    return _scanned(x, direction, output_sequence, (initial_h,), step)


@rnn.costs
def _(x: TensorType, initial_h: TensorType, weight_ih: TensorType, weight_hh: TensorType, **rest: object) -> int:
    return x.shape[0] * x.shape[1] * (weight_ih.size + weight_hh.size)


gru = OpKind("gru", operands=("x", "initial_h", "weight_ih", "weight_hh", "bias", "input_bias"))


@gru.infers
def _(
    x: TensorType,
    initial_h: TensorType,
    weight_ih: TensorType,
    weight_hh: TensorType,
    bias: TensorType | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: TensorType | None = None,
) -> tuple[TensorType, ...]:
    """Weights and biases hold the gates reset, output, update, in this order -> (S or 1, B, H), last h (B, H).

    h = (1 - z) o + z h with o = activation(W_o x + R_o (r h) + b), or, reset_after (iOS18, PyTorch's layer),
    activation(W_o x + input_bias_o + r (R_o h + b_o)).
    """
    hidden = _require_layer("gru", 3, x, initial_h, weight_ih, weight_hh)
    require_shape("gru", (x.shape[1], hidden), initial_h=initial_h)
    require_shape("gru", (3 * hidden,), bias=bias, input_bias=input_bias)
    require_choice("gru", "direction", direction, ("forward", "reverse"))
    require_choice("gru", "recurrent_activation", recurrent_activation, tuple(_ACTIVATIONS))
    require_choice("gru", "activation", activation, tuple(_ACTIVATIONS))
    return _results(x, hidden, output_sequence, states=1)


@gru.evaluates
def _(
    x: np.ndarray,
    initial_h: np.ndarray,
    weight_ih: np.ndarray,
    weight_hh: np.ndarray,
    bias: np.ndarray | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    gate, act = _ACTIVATIONS[recurrent_activation], _ACTIVATIONS[activation]
    w_r, w_o, w_z = np.split(weight_ih, 3)
    r_r, r_o, r_z = np.split(weight_hh, 3)
    b_r, b_o, b_z = np.split(np.zeros(len(weight_hh)) if bias is None else bias, 3)
    i_r, i_o, i_z = np.split(np.zeros(len(weight_hh)) if input_bias is None else input_bias, 3)

    def step(x_t: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, ...]:
        r = gate(x_t @ w_r.T + h @ r_r.T + b_r + i_r)
        z = gate(x_t @ w_z.T + h @ r_z.T + b_z + i_z)
        recurrent = r * (h @ r_o.T + b_o) if reset_after else (r * h) @ r_o.T + b_o
        return ((1 - z) * act(x_t @ w_o.T + i_o + recurrent) + z * h,)

    return _scanned(x, direction, output_sequence, (initial_h,), step)


@gru.costs
def _(x: TensorType, initial_h: TensorType, weight_ih: TensorType, weight_hh: TensorType, **rest: object) -> int:
    return x.shape[0] * x.shape[1] * (weight_ih.size + weight_hh.size)


lstm = OpKind(
    "lstm",
    operands=(
        "x", "initial_h", "initial_c", "weight_ih", "weight_hh", "bias", "peephole",
        "weight_ih_back", "weight_hh_back", "bias_back", "peephole_back",
    ),
)  # fmt: skip


@lstm.infers
def _(
    x: TensorType,
    initial_h: TensorType,
    initial_c: TensorType,
    weight_ih: TensorType,
    weight_hh: TensorType,
    bias: TensorType | None = None,
    peephole: TensorType | None = None,
    weight_ih_back: TensorType | None = None,
    weight_hh_back: TensorType | None = None,
    bias_back: TensorType | None = None,
    peephole_back: TensorType | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> tuple[TensorType, ...]:
    """Weights and biases hold the gates input, forget, output, cell, in this order -> (S or 1, B, H), last h
    and c (B, H); with `bidirectional` both directions side by side, 2 H wide. peephole (3 H,) lets the cell
    reach the gates input, forget, output. clip bounds the cell's state after each step. A reverse layer gives its
    outputs last entry of x first; in a bidirectional one both halves stand in the order of x.
    """
    require_choice("lstm", "direction", direction, ("forward", "reverse", "bidirectional"))
    for name, value in (("recurrent_", recurrent_activation), ("cell_", cell_activation), ("", activation)):
        require_choice("lstm", f"{name}activation", value.lower(), tuple(_ACTIVATIONS))
    hidden = _require_layer("lstm", 4, x, initial_h, weight_ih, weight_hh)
    both = direction == "bidirectional"
    if both:
        if weight_ih_back is None or weight_hh_back is None:
            raise CompileError("lstm: direction bidirectional needs weight_ih_back and weight_hh_back.")
        require_shape("lstm", weight_ih.shape, weight_ih_back=weight_ih_back)
        require_shape("lstm", weight_hh.shape, weight_hh_back=weight_hh_back)
        require_shape("lstm", (4 * hidden,), bias_back=bias_back)
        require_shape("lstm", (3 * hidden,), peephole_back=peephole_back)
    width = 2 * hidden if both else hidden
    require_shape("lstm", (x.shape[1], width), initial_h=initial_h, initial_c=initial_c)
    require_shape("lstm", (4 * hidden,), bias=bias)
    require_shape("lstm", (3 * hidden,), peephole=peephole)
    return _results(x, width, output_sequence, states=2)


@lstm.evaluates
def _(
    x: np.ndarray,
    initial_h: np.ndarray,
    initial_c: np.ndarray,
    weight_ih: np.ndarray,
    weight_hh: np.ndarray,
    bias: np.ndarray | None = None,
    peephole: np.ndarray | None = None,
    weight_ih_back: np.ndarray | None = None,
    weight_hh_back: np.ndarray | None = None,
    bias_back: np.ndarray | None = None,
    peephole_back: np.ndarray | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> tuple[np.ndarray, ...]:
    acts = tuple(_ACTIVATIONS[name.lower()] for name in (recurrent_activation, cell_activation, activation))
    layer = (weight_ih, weight_hh, bias, peephole)
    if direction != "bidirectional":
        step = _lstm_step(*layer, *acts, clip)
        return _scanned(x, direction, output_sequence, (initial_h, initial_c), step)
    back = (weight_ih_back, weight_hh_back, bias_back, peephole_back)
    h, c = np.split(initial_h, 2, axis=1), np.split(initial_c, 2, axis=1)
    there = _scanned(x, "forward", output_sequence, (h[0], c[0]), _lstm_step(*layer, *acts, clip))
    back_again = _scanned(x, "reverse", output_sequence, (h[1], c[1]), _lstm_step(*back, *acts, clip))
    turned = (back_again[0][::-1], *back_again[1:])
    return tuple(np.concatenate(pair, axis=-1) for pair in zip(there, turned))


def _lstm_step(weight_ih, weight_hh, bias, peephole, gate, cell, act, clip) -> Callable[..., tuple]:
    constant = 0 if bias is None else bias
    hidden = weight_hh.shape[1]
    p_i, p_f, p_o = np.split(np.zeros(3 * hidden) if peephole is None else peephole, 3)

    def step(x_t: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, ...]:
        i, f, o, z = np.split(x_t @ weight_ih.T + h @ weight_hh.T + constant, 4, axis=1)
        new = gate(f + p_f * c) * c + gate(i + p_i * c) * cell(z)
        new = new if clip is None else np.clip(new, -clip, clip)
        return gate(o + p_o * new) * act(new), new

    return step


@lstm.costs
def _(
    x: TensorType,
    initial_h: TensorType,
    initial_c: TensorType,
    weight_ih: TensorType,
    weight_hh: TensorType,
    direction: str = "forward",
    **rest: object,
) -> int:
    return x.shape[0] * x.shape[1] * (weight_ih.size + weight_hh.size) * (2 if direction == "bidirectional" else 1)
