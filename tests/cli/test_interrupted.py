"""export, fuse and import are stopped before every call that they make of files: nothing half written has a final name, and what was there stays."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="gguf is not installed (pip install 'torchane[finetune]')")
pytest.importorskip("peft", reason="peft is not installed (pip install 'torchane[finetune]')")
import small_adapters
import small_models
from dying import GONE

from torchane.finetune.extras import quiet_transformers

#: command -> arguments, what it writes.
COMMANDS = {
    "hf": (["export", "m", "--to", "hf", "--out", "new/out"], "new/out/hf"),
    "gguf": (["export", "m", "--to", "gguf", "--out", "new/out"], "new/out/gguf"),
    "llama2c": (["export", "m", "--to", "llama2c", "--out", "new/out"], "new/out/llama2c"),
    "mlx": (["export", "a", "--model", "m", "--to", "mlx", "--out", "new/out"], "new/out/mlx"),
    "peft": (["export", "a", "--model", "m", "--to", "peft", "--out", "new/out"], "new/out/peft"),
    "gguf-lora": (["export", "a", "--model", "m", "--to", "gguf-lora", "--out", "new/out"], "new/out/gguf-lora"),
    "fuse": (["fuse", "--model", "m", "--adapter-path", "a", "--save-path", "new/fused"], "new/fused"),
    "import": (["import", "m.gguf", "--out", "new/back"], "new/back"),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A model, an adapter and a .gguf."""
    from torchane.convert import gguf, hf

    place = tmp_path_factory.mktemp("sources")
    with quiet_transformers():
        small_models.save(place / "m", "llama", rms_norm_eps=1e-5)  # what llama2.c has
        small_adapters.save(place / "m", place / "a", target_modules=["q_proj", "down_proj"])
    gguf.write(hf.read(place / "m"), place / "m.gguf", "f16")
    return place


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """call(folder, arguments, at, what) -> (exit code, calls, what it said)."""
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(Path(__file__).with_name("dying.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=here, text=True) as process:

        def ask(folder: Path, arguments: list[str], at: int | None = None, what: str = "kill") -> tuple[int, int, str]:
            process.stdin.write(json.dumps([str(folder), arguments, at, what]) + "\n")
            process.stdin.flush()
            return tuple(json.loads(process.stdout.readline()))

        yield ask
        process.stdin.close()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stop_everywhere(sources: Path, call, tmp_path: Path, command: str, what: str, places: int | None = None) -> None:
    arguments, target = COMMANDS[command]
    whole = shutil.copytree(sources, tmp_path / "work")  # in the folder of the stopped ones, whose path a result may name
    code, count, said = call(whole, arguments)
    assert code == 0 and count > 8, said
    before, wanted = files(sources), files(whole / target)
    shutil.rmtree(whole)
    step = 1 if places is None else max(1, count // places)
    for at in range(1, count + 1, step):
        folder = shutil.copytree(sources, tmp_path / "work")
        code, _, said = call(folder, arguments, at, what)
        found = files(folder)
        kept = {name: content for name, content in found.items() if name in before}
        assert kept == before, at
        made = {name for name in found if name not in before}
        if (folder / target).exists():
            assert files(folder / target) == wanted, at
        if what == "kill":
            assert code == GONE and all(name.startswith(f"{target}/") or ".partial-" in name for name in made), (at, made)
            again = call(folder, arguments)
            assert again[0] == (2 if (folder / target).exists() and files(folder / target) == wanted and "is there already" in again[2] else 0), again[2]
            assert files(folder / target) == wanted
        else:
            assert all(name.startswith(f"{target}/") for name in made) and (code, "Traceback" in said) == (130 if what == "interrupt" else 1, False), (at, code, said)
            assert "Stopped." in said if what == "interrupt" else "No space left" in said, (at, said)
            assert (folder / "new").exists() == (folder / target).exists(), at
        shutil.rmtree(folder)


@pytest.mark.long
@pytest.mark.parametrize("what", ["kill", "interrupt"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_stopped_at_any_call_leaves_nothing_half_written(sources, call, tmp_path, command, what):
    stop_everywhere(sources, call, tmp_path, command, what)


def test_an_export_that_is_interrupted_at_some_of_its_calls_leaves_nothing(sources, call, tmp_path):
    stop_everywhere(sources, call, tmp_path, "hf", "interrupt", places=4)
