"""Beside mlx-lm's own commands, on the same tiny model: what docs/coming-from-mlx.md says is equal."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_adapters
import small_models
import torch

from torchane.convert import hf, merge, mlx, peft
from torchane.errors import TorchaneError
from torchane.finetune.extras import quiet_transformers
from torchane.finetune.models import load_base
from torchane.generate import harness
from torchane.generate.evaluate import Evaluator
from torchane.generate.pretrained import Writer
from torchane.generate.sampling import Sampling

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]
PROMPTS = ["The cat", "we'll see", "1234 of them,"]
TEXT = " ".join(small_models.TEXT[:4])
CHOICES = ["sat on the mat", "hat", "1234 of them, sat on the mat; we'll see", "!"]
LLAMA = {"head_dim": 24}
QWEN3 = {"head_dim": 32, "tie_word_embeddings": True}


@pytest.fixture(scope="module", params=[("llama", LLAMA), ("qwen3", QWEN3)], ids=["llama", "qwen3"])
def folder(request, tmp_path_factory):
    pytest.importorskip("mlx_lm", reason="mlx-lm is not installed (pip install 'mlx[cpu]' mlx-lm)")
    kind, changes = request.param
    with quiet_transformers():
        return small_models.save(tmp_path_factory.mktemp("m") / "m", kind, max_position_embeddings=512, **changes)


def run(module: str, monkeypatch: Any, capsys: Any, *arguments: object) -> str:
    """What `mlx_lm.MODULE arguments` writes on standard output."""
    import importlib

    monkeypatch.setattr(sys, "argv", [f"mlx_lm.{module}", *map(str, arguments)])
    capsys.readouterr()
    importlib.import_module(f"mlx_lm.{module}").main()
    return str(capsys.readouterr().out)


def ours(folder: Path, prompt: str, adapter: Path | None = None, tokens: int = 12) -> str:
    from torchane.generate.adapted import with_adapter

    base = load_base(folder)
    model = base.model if adapter is None else with_adapter(base, adapter)
    with quiet_transformers():
        [one] = Writer(base, "host", model).write([prompt], Sampling(max_tokens=tokens, temperature=0))
    return one.text


def theirs(folder: Path, prompt: str, adapter: Path | None = None, tokens: int = 12) -> str:
    """The likeliest tokens by mlx-lm's own generation, decoded by the model's tokenizer: mlx-lm's decoder drops a text's first space, and
    has letters in the place of control characters."""
    from mlx_lm.generate import stream_generate
    from mlx_lm.utils import load

    model, tokenizer = load(str(folder), adapter_path=str(adapter) if adapter else None)
    written = [one.token for one in stream_generate(model, tokenizer, tokenizer.encode(prompt), max_tokens=tokens)]
    return str(tokenizer._tokenizer.decode(written, skip_special_tokens=True))


def test_generate_writes_what_mlx_lm_writes(folder, monkeypatch, capsys):
    assert [ours(folder, prompt) for prompt in PROMPTS] == [theirs(folder, prompt) for prompt in PROMPTS]
    told = ("--model", folder, "--prompt", "The cat", "--temp", 0, "--max-tokens", 3, "--ignore-chat-template", "--verbose", "False")
    assert run("generate", monkeypatch, capsys, *told).strip() == ours(folder, "The cat", tokens=3).strip()


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_and_the_folder_it_is_fused_into_write_in_mlx_lm_what_they_write_here(folder, tmp_path, dora):
    with quiet_transformers():
        adapter = small_adapters.save(folder, tmp_path / "peft", target_modules=["q_proj", "v_proj", "down_proj"], use_dora=dora)
    base, read = hf.read(folder), peft.read(adapter)
    for name in ("mlx", "fused"):
        (tmp_path / name).mkdir()
    mlx.write(read, tmp_path / "mlx", base)
    hf.write(merge.merge(base, read), tmp_path / "fused")
    for prompt in PROMPTS:
        want = ours(folder, prompt, adapter)
        assert want == theirs(folder, prompt, tmp_path / "mlx") == theirs(tmp_path / "fused", prompt)
        assert want == ours(tmp_path / "fused", prompt) != ours(folder, prompt)


def test_fuse_makes_the_weights_that_mlx_lms_makes(folder, tmp_path, monkeypatch, capsys):
    with quiet_transformers():
        adapter = small_adapters.save(folder, tmp_path / "peft", target_modules=["q_proj", "down_proj"])
    base, read = hf.read(folder), peft.read(adapter)
    (tmp_path / "mlx").mkdir()
    mlx.write(read, tmp_path / "mlx", base)
    run("fuse", monkeypatch, capsys, "--model", folder, "--adapter-path", tmp_path / "mlx", "--save-path", tmp_path / "theirs")
    found, merged = hf.read(tmp_path / "theirs"), merge.merge(base, read)
    assert set(found.weights.shapes) == set(merged.weights.shapes)
    for name in merged.weights.shapes:
        torch.testing.assert_close(found.weights[name], merged.weights[name], rtol=1e-5, atol=1e-6)


def test_perplexity_of_the_same_rows_is_mlx_lms(folder, tmp_path):
    """Its rows have L tokens, of which it asks for all but the first; ours, for whole windows, are the same."""
    import mlx.core as core
    from mlx_lm.perplexity import eval_ppl
    from mlx_lm.utils import load

    base, length = load_base(folder), 32
    ids = [base.tokenizer.bos_token_id, *base.tokenizer(TEXT).input_ids]
    ids = ids[: (len(ids) - 1) // length * length + 1]
    rows = [ids[begin : begin + length + 1] for begin in range(0, len(ids) - 1, length)]
    perplexity, _ = eval_ppl(load(str(folder))[0], core.array(rows))
    text = base.tokenizer.decode(ids[1:])
    assert base.tokenizer(text).input_ids == ids[1:]
    found = Evaluator(base, seq_len=length).perplexity([text])
    assert found["tokens"] == length * len(rows) and found["perplexity"] == pytest.approx(perplexity, rel=1e-5)
    with torch.no_grad():
        exact = base.model.double()(torch.tensor(rows)[:, :-1]).logits.log_softmax(-1).gather(2, torch.tensor(rows)[:, 1:, None])
    assert found["perplexity"] == pytest.approx(math.exp(-float(exact.mean())), rel=1e-5)


def test_a_task_of_the_harness_has_the_numbers_that_mlx_lm_evaluate_has(folder, tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (pip install lm-eval)")
    from mlx_lm.evaluate import MLXLM

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    lines = [{"prompt": prompt, "choices": CHOICES, "answer": n % 4} for n, prompt in enumerate(PROMPTS * 4)]
    (tmp_path / "d.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    task = {
        "task": "ours", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "d.jsonl")}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{prompt}}", "doc_to_choice": "{{choices}}", "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    kept = lm_eval.simple_evaluate(model=MLXLM(str(folder), use_chat_template=False), tasks=[dict(task)])
    found = harness.measure(Evaluator(load_base(folder)), [dict(task)])["ours"]
    assert found == pytest.approx({name: value for name, value in kept["results"]["ours"].items() if isinstance(value, int | float)})
    asked = Evaluator(load_base(folder))
    rows, starts = zip(*(asked._continued(line["prompt"], choice) for line in lines[:3] for choice in CHOICES), strict=True)
    ours = [-float(each.sum()) for each in asked._nats(rows, starts)]
    logged = [float(answer[0][0]) for sample in sorted(kept["samples"]["ours"], key=lambda one: one["doc_id"])[:3] for answer in sample["resps"]]
    np.testing.assert_allclose(ours, logged, rtol=1e-4)


def test_a_folder_that_mlx_lm_converted_is_read_and_a_quantised_one_refused(folder, tmp_path, monkeypatch, capsys):
    run("convert", monkeypatch, capsys, "--hf-path", folder, "--mlx-path", tmp_path / "plain", "--dtype", "float32")
    assert ours(tmp_path / "plain", PROMPTS[0]) == ours(folder, PROMPTS[0])
    run("convert", monkeypatch, capsys, "--hf-path", folder, "--mlx-path", tmp_path / "few", "-q", "--q-group-size", 32, "--q-bits", 4)
    for read in (load_base, hf.read):
        with pytest.raises(TorchaneError, match="[qQ]uantised"):
            read(tmp_path / "few")
