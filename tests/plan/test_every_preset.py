"""Every preset, trained whole and by adapters, plans for every machine that is known: no refusal, and a price of sense."""

import json
from pathlib import Path

import pytest

import torchane.cli
from torchane import chips
from torchane.capture.plans import compile_step
from torchane.chips.points import machines
from torchane.models.build import build_model
from torchane.models.presets import PRESETS

#: Tokens of a step, within what every preset takes.
TOKENS = 128


@pytest.mark.long
@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("how", [(), ("--lora", "8", "--frozen", "fp16")], ids=["whole", "adapters"])
def test_every_machine_has_a_plan(preset: str, how: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    names = list(machines())
    code = torchane.cli.run(["plan", "--preset", preset, "--seq-len", str(TOKENS), "--compare", ",".join(names), "--json", *how])
    out, err = capsys.readouterr()
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])["compared"]
    assert [price["machine"] for price in found] == names
    for price in found:
        low, high = price["interval_ms"]
        assert 0 < low < price["predicted_ms"] < high and 0 < price["share_of_peak"] < 1, price["machine"]
        assert price["loaded_programs"] < 100, price["machine"]
    print("\n".join(f"{preset} {' '.join(how)} {p['machine']} {p['ms_per_256_tokens']:.2f} {p['mj_per_token']:.3f} {p['dispatches_per_step']} {p['loaded_programs']}" for p in found))


@pytest.mark.long
@pytest.mark.parametrize("preset", list(PRESETS))
def test_no_layer_has_more_ports_than_an_engine_takes(preset: str) -> None:
    """A layer with its weights as inputs fits into one program, so no weights need to share a surface."""
    model = PRESETS[preset].config
    captured = compile_step(lambda: build_model(model), batch_size=1, seq_len=TOKENS, options={"chip": "m4", "ranges": "on"})
    most = chips.load("m4").limit("surfaces")
    for plan in captured.plans:
        assert max(len(spec.inputs) + len(spec.outputs) for spec in plan.programs) <= most
        layers = [dispatch.where for dispatch in plan.dispatches if "layers" in dispatch.where]
        assert layers and len(layers) == len(set(layers))  # none is cut into pieces


def test_a_small_gpt2_with_adapters_and_constants_has_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part of its frozen table of positions is read."""
    small = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256, "vocab_size": 512}
    (tmp_path / "config.json").write_text(json.dumps({**PRESETS["gpt2"].config.to_dict(), **small}))
    code = torchane.cli.run(["plan", "--preset", str(tmp_path), "--seq-len", "32", "--chip", "m5", "--lora", "4", "--frozen", "fp16", "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    price = json.loads(out.splitlines()[-1])
    assert price["predicted_ms"] > 0 and price["memory_bytes"]["constants"] > 0
