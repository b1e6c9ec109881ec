"""Recurrent layers, against PyTorch in float64. Their activations, clip and peephole: test_apple_suite.py."""

import numpy as np
import pytest
import torch
from second_opinion import ours, theirs

from torchane.errors import CompileError
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, FP32, TensorType

S, B, I, H = 4, 3, 5, 2
RNG = np.random.default_rng(5)
CASES = [("rnn", "torch"), ("gru", "torch"), ("lstm", "torch")]


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def layer(kind: type, gates: int, turn: list[int], directions: int = 1) -> tuple[torch.nn.Module, list[dict]]:
    """A PyTorch layer in float64 and, for each direction, its weights with the gates in MIL's order."""
    module = kind(I, H, bidirectional=directions == 2, dtype=torch.float64)
    weights = []
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.tensor(normal(*parameter.shape)))
        for suffix in ("", "_reverse")[:directions]:
            named = {
                name: np.concatenate(
                    [np.split(getattr(module, f"{name}_l0{suffix}").numpy(), gates)[gate] for gate in turn]
                )
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
            weights.append({name: array.astype(np.float32) for name, array in named.items()})
    return module, weights


def wide(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float64)


def run_module(module: torch.nn.Module, x: np.ndarray, *states: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        output, last = module(wide(x), tuple(map(wide, states)) if len(states) > 1 else wide(states[0]))
    return [output.numpy(), *(state.numpy() for state in (last if isinstance(last, tuple) else (last,)))]


@pytest.mark.parametrize("output_sequence", [True, False])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("op", ["rnn", "gru", "lstm"])
def test_one_direction_agrees_with_torch(op, direction, output_sequence):
    kinds = {
        "rnn": (torch.nn.RNN, 1, [0]),
        "gru": (torch.nn.GRU, 3, [0, 2, 1]),
        "lstm": (torch.nn.LSTM, 4, [0, 1, 3, 2]),
    }
    module, ((weights),) = layer(*kinds[op])
    x, states = normal(S, B, I), [normal(B, H) for _ in range(2 if op == "lstm" else 1)]
    args = {"weight_ih": weights["weight_ih"], "weight_hh": weights["weight_hh"], "initial_h": states[0]}
    if op == "gru":  # PyTorch's layer resets after the product, and keeps two biases for it
        args |= {"bias": weights["bias_hh"], "input_bias": weights["bias_ih"], "reset_after": True}
    else:
        args |= {"bias": weights["bias_ih"] + weights["bias_hh"]}
    if op == "lstm":
        args |= {"initial_c": states[1]}
    types, values = ours(op, x=x, direction=direction, output_sequence=output_sequence, **args)
    output, *last = run_module(
        module, x[::-1].copy() if direction == "reverse" else x, *(state[None] for state in states)
    )
    wanted = [output if output_sequence else output[-1:], *(state[0] for state in last)]
    assert types == theirs(op, x=x, direction=direction, output_sequence=output_sequence, **args)[0]
    for value, other in zip(values, wanted, strict=True):
        np.testing.assert_allclose(value, other, 1e-5, 1e-6)  # the biases are summed in fp32


def test_both_directions_of_lstm_agree_with_torch():
    module, (there, back) = layer(torch.nn.LSTM, 4, [0, 1, 3, 2], directions=2)
    x, h, c = normal(S, B, I), normal(2, B, H), normal(2, B, H)
    args = {f"{name}{end}": w[name] for end, w in (("", there), ("_back", back)) for name in ("weight_ih", "weight_hh")}
    args |= {f"bias{end}": w["bias_ih"] + w["bias_hh"] for end, w in (("", there), ("_back", back))}
    side_by_side = {"initial_h": np.concatenate(h, axis=1), "initial_c": np.concatenate(c, axis=1)}
    _, values = ours("lstm", x=x, direction="bidirectional", output_sequence=True, **side_by_side, **args)
    output, last_h, last_c = run_module(module, x, h, c)
    for value, other in zip(
        values, (output, np.concatenate(last_h, axis=1), np.concatenate(last_c, axis=1)), strict=True
    ):
        np.testing.assert_allclose(value, other, 1e-5, 1e-6)


def test_gru_resets_before_the_product_unless_told_otherwise():
    weights = {"weight_ih": normal(3 * H, I), "weight_hh": normal(3 * H, H), "bias": normal(3 * H)}
    x, h = normal(1, B, I), normal(B, H)
    _, (_, value) = ours("gru", x=x, initial_h=h, **weights)
    w_r, w_o, w_z = np.split(weights["weight_ih"].astype(np.float64), 3)
    r_r, r_o, r_z = np.split(weights["weight_hh"].astype(np.float64), 3)
    b_r, b_o, b_z = np.split(weights["bias"], 3)
    r = 1 / (1 + np.exp(-(x[0] @ w_r.T + h @ r_r.T + b_r)))
    z = 1 / (1 + np.exp(-(x[0] @ w_z.T + h @ r_z.T + b_z)))
    wanted = (1 - z) * np.tanh(x[0] @ w_o.T + (r * h) @ r_o.T + b_o) + z * h
    np.testing.assert_allclose(value, wanted, 1e-5, 1e-6)


def test_multiply_adds():
    args = {"x": TensorType(FP32, (S, B, I)), "initial_h": TensorType(FP32, (B, H))}
    weights = lambda gates: {
        "weight_ih": TensorType(FP32, (gates * H, I)),
        "weight_hh": TensorType(FP32, (gates * H, H)),
    }
    assert KINDS["rnn"].macs(args | weights(1)) == S * B * H * (I + H)
    assert KINDS["gru"].macs(args | weights(3)) == 3 * S * B * H * (I + H)
    lstm = args | weights(4) | {"initial_c": args["initial_h"], "direction": "bidirectional"}
    assert KINDS["lstm"].macs(lstm) == 8 * S * B * H * (I + H)


XT, HT = TensorType(FP16, (S, B, I)), TensorType(FP16, (B, H))
W4 = {"weight_ih": TensorType(FP16, (4 * H, I)), "weight_hh": TensorType(FP16, (4 * H, H))}


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("lstm", {"x": HT, "initial_h": HT, "initial_c": HT} | W4, "lstm: x is .*rank 3"),
        ("gru", {"x": XT, "initial_h": HT} | W4, r"gru: weight_hh is .*\(3 \* H, H\), for 3 gates"),
        ("lstm", {"x": XT, "initial_h": HT, "initial_c": HT, "direction": "up"} | W4, "lstm: direction is 'up'"),
        (
            "lstm",
            {"x": XT, "initial_h": HT, "initial_c": HT, "direction": "bidirectional"} | W4,
            "lstm: .*weight_ih_back",
        ),
        ("lstm", {"x": XT, "initial_h": HT, "initial_c": HT, "activation": "sin"} | W4, "lstm: activation is 'sin'"),
        (
            "rnn",
            {"x": XT, "initial_h": HT, "weight_ih": TensorType(FP16, (H, 1)), "weight_hh": TensorType(FP16, (H, H))},
            r"rnn: weight_ih is .*shape \[2, 5\]",
        ),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
