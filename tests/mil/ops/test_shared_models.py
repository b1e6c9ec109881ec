"""Whole models with their real weights: the evaluator against an engine's own output, and models against each other."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from second_opinion import ct, program_from

from torchane import mil
from torchane.mil.blobs import BlobFile
from torchane.mil.build import arguments
from torchane.mil.constants import load_blobs
from torchane.mil.ir import Blob, Function, Literal, Program, Var, walk
from torchane.mil.types import DType, TensorType

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from coremltools.converters.mil.frontend.milproto.load import load as load_proto


def from_package(folder: Path) -> Program:
    """The program of an .mlpackage, read by coremltools."""
    inside = folder / "Data" / "com.apple.CoreML"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec = ct.utils.load_spec(str(inside / "model.mlmodel"))
        return program_from(load_proto(spec, spec.specificationVersion, str(inside / "weights")).functions["main"])


def speech(samples: int) -> np.ndarray:
    """A tone that swells and fades, with noise: the models take it for a voice."""
    t = np.arange(samples) / 16_000
    noise = np.random.default_rng(0).normal(size=samples)
    return (0.3 * np.sin(2 * np.pi * 220 * t) * (1 + np.sin(8 * np.pi * t)) + 0.05 * noise).astype(np.float32)


def heard(program: Program) -> dict[str, np.ndarray]:
    (audio,) = [var for var in program.inputs if var.name == "audio_input"]
    inputs = {var.name: np.zeros(var.shape, np.float32) for var in program.inputs}
    return mil.evaluate(program, inputs | {"audio_input": speech(audio.shape[1]).reshape(audio.shape)})


def compiled(shared_data: Path, name: str) -> Program:
    return mil.load(shared_data / "mil_compiled" / f"mobius-silero-{name}.mlmodelc" / "model.mil")


def test_attention_agrees_with_what_an_engine_gave(shared_data):
    """Published beside the program: input, weights and output of a real Neural Engine. Its log says that the output
    is 0.000876 from a CPU's at most; ours is as near."""
    folder = shared_data / "golden" / "espresso-full_fused"
    program = mil.parse((folder / "full_fused.mil").read_text())
    program = load_blobs(program, lambda path: BlobFile.open(folder / f"full_fused_{Path(path).name}"))
    mil.check(program)
    (x,) = program.inputs
    given = np.fromfile(folder / "full_fused_input_seq64_f32le.bin", np.float32).reshape(x.shape)
    wanted = np.fromfile(folder / "full_fused_out_seq64_f32le.bin", np.float32)
    (ours,) = mil.evaluate(program, {x.name: given}).values()
    assert np.abs(ours.ravel() - wanted).max() < 0.00088
    assert np.corrcoef(ours.ravel().astype(np.float64), wanted)[0, 1] > 0.998


@pytest.mark.parametrize(
    ("name", "difference"),
    # 8 bits: a step is 1/127 of the largest weight of a channel, or 256 values per tensor.
    [("unified_int8", 0.07), ("unified_palette_8bit", 0.01)],
)
def test_quantized_models_agree_with_the_one_they_come_from(shared_data, name, difference):
    whole, quantized = heard(compiled(shared_data, "silero-vad-unified-v6.0.0")), heard(compiled(shared_data, name))
    assert 0.5 < whole["vad_output"] < 0.6
    assert np.abs(whole["vad_output"] - quantized["vad_output"]) < difference
    assert np.corrcoef(whole["new_hidden_state"].ravel(), quantized["new_hidden_state"].ravel())[0, 1] > 0.99


def test_every_silero_model_runs(shared_data):
    for name in ("unified_palette_2bit", "unified_256ms_int8"):
        assert 0 <= heard(compiled(shared_data, name))["vad_output"] <= 1


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("mobius-silero-vad-unified-v6.0.0", "silero-vad-unified-v6.0.0"),
        ("mobius-unified_int8", "unified_int8"),
        ("mobius-unified_palette_8bit", "unified_palette_8bit"),
    ],
)
def test_a_package_and_its_compiled_text_agree_to_the_bit(shared_data, package, name):
    of_package = heard(from_package(shared_data / "mlpackage" / f"{package}.mlpackage"))
    of_text = heard(compiled(shared_data, name))
    for key in of_text:
        assert of_package[key].tobytes() == of_text[key].tobytes(), key


def test_a_recurrent_model_of_loops_and_lists_keeps_its_state(shared_data):
    """DTLN's first part: two while_loops over lists. A second frame depends on the first by the states alone."""
    program = from_package(shared_data / "mlpackage" / "dtln-aec-128-part1-fp32.mlpackage")
    mil.check(program)
    frames = np.random.default_rng(1).random((2, 2, 1, 1, 257))
    run = lambda frame, states: mil.evaluate(
        program, {"lpb_magnitude": frame[0], "mic_magnitude": frame[1], "states_in": states}
    )
    first = run(frames[0], np.zeros((1, 2, 128, 2)))
    fresh, carried = (run(frames[1], states) for states in (np.zeros((1, 2, 128, 2)), first["Identity_1"]))
    for mask in (first["Identity"], fresh["Identity"], carried["Identity"]):
        assert mask.shape == (1, 1, 257)
        assert ((mask >= 0) & (mask <= 1)).all()
    assert np.abs(fresh["Identity"] - carried["Identity"]).max() > 1e-3


def with_made_up_weights(program: Program) -> Program:
    """Every constant of an absent weight file replaced by small random numbers of its type."""
    rng = np.random.default_rng(2)

    def made_up(constant: Literal) -> Literal:
        type_ = constant.type
        assert isinstance(type_, TensorType)
        if type_.dtype.is_float:
            return Literal(type_, (rng.normal(size=type_.shape) * 0.05).astype(type_.dtype.numpy))
        high = 2 if type_.dtype == DType.BOOL else 100
        return Literal(type_, rng.integers(0, high, type_.shape).astype(type_.dtype.numpy))

    ops = []
    for op in program.ops:
        attrs = {k: made_up(v) if isinstance(v.value, Blob) else v for k, v in op.attrs.items()}
        ops.append(op.__class__(op.kind, op.args, op.outputs, attrs, op.blocks))
    return program.with_(ops=tuple(ops))


def made_up_input(var: Var) -> np.ndarray:
    shape = [1 if size is None else size for size in var.shape]
    whole = not var.type.dtype.is_float
    return np.ones(shape) if whole else np.random.default_rng(3).normal(size=shape)


def runs_as_declared(path: Path) -> None:
    program = mil.parse(path.read_text(encoding="utf-8"), str(path))
    mil.check(program)
    if all(op.kind.has_rules or op.kind.name == "const" for op in walk(program.ops)):
        program = with_made_up_weights(program)
        outputs = mil.evaluate(program, {var.name: made_up_input(var) for var in program.inputs})
        for var in program.outputs:
            assert outputs[var.name].dtype == var.type.dtype.numpy
            assert all(want in (None, have) for want, have in zip(var.shape, outputs[var.name].shape, strict=True))


def test_every_shared_program_is_checked_and_runs_as_declared(shared_data):
    """With made-up weights where the file has none; the 2,971 ops of the Parakeet encoder are the long run's."""
    paths = [path for path in sorted(shared_data.rglob("*.mil")) if path.stat().st_size < 200_000]
    assert len(paths) > 15
    for path in paths:
        runs_as_declared(path)


@pytest.mark.long
def test_the_parakeet_encoder_runs_as_declared(shared_data):
    (path,) = (path for path in shared_data.rglob("*.mil") if path.stat().st_size > 200_000)
    runs_as_declared(path)


def unpacked(program: Program) -> dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Every compressed weight by its name in the whole model: unpacked by the op's rule, and the op's arguments."""
    found = {}
    for op in program.ops:
        if op.kind.name.startswith("constexpr_"):
            alone = Program((Function("main", (), (op,), op.outputs),))
            (value,) = mil.evaluate(alone, {}).values()
            name = op.output.name.removesuffix("_quantized").removesuffix("_palettized")
            found[name] = value, {key: arg.value for key, arg in arguments(op).items()}
    return found


def whole_weights(shared_data: Path) -> dict[str, np.ndarray]:
    program = compiled(shared_data, "silero-vad-unified-v6.0.0")
    return {op.output.name: op.attrs["val"].value for op in program.ops if op.kind.name == "const"}


def test_every_int8_weight_is_within_half_a_step_of_the_one_it_stands_for(shared_data):
    """Rounding to int8 errs by half a step at most; the scale, the result and the whole model's weight are each
    rounded to fp16, one part in 2^11. At the ends of int8 the largest weight of a channel is cut off."""
    whole = whole_weights(shared_data)
    weights = unpacked(compiled(shared_data, "unified_int8"))
    assert len(weights) == 7
    for name, (ours, args) in weights.items():
        wanted = whole[name].astype(np.float64)
        step = args["scale"].astype(np.float64).reshape(-1, *[1] * (wanted.ndim - 1))
        steps = np.where(np.isin(args["quantized_data"], (-128, 127)), 1.0, 0.5)
        assert (np.abs(ours - wanted) <= steps * step + 3 * np.abs(wanted) * 2**-11).all(), name


@pytest.mark.parametrize("name", ["unified_palette_8bit", "unified_palette_2bit"])
def test_every_palette_weight_is_the_nearest_of_its_palette(shared_data, name):
    """But for ties within rounding: the palettes were made from fp32, the whole model's weights are fp16."""
    whole = whole_weights(shared_data)
    weights = unpacked(compiled(shared_data, name))
    assert len(weights) == 7
    for key, (ours, args) in weights.items():
        wanted, palette = whole[key].astype(np.float64), np.sort(args["lut"].astype(np.float64))
        above = np.clip(np.searchsorted(palette, wanted), 1, len(palette) - 1)
        nearest = np.minimum(np.abs(palette[above] - wanted), np.abs(palette[above - 1] - wanted))
        assert (np.abs(ours - wanted) <= nearest + 2**-10 * np.maximum(np.abs(wanted), 2**-4)).all(), key
