"""Tasks of lm-evaluation-harness: the harness's own class for transformers' models gives the same numbers, on the host and through programs."""

import json
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed (pip install 'torchane[finetune]')")
import small_models

from torchane import native
from torchane.errors import UsageError
from torchane.finetune.extras import quiet_transformers
from torchane.finetune.models import load_base
from torchane.generate import evaluate, harness
from torchane.generate.evaluate import Evaluator

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]
CHOICES = ["sat on the mat", "hat", "1234 of them, sat on the mat; we'll see", "!"]
PROMPTS = ["The cat", "1234 of them,", "we'll see", "The hat sat on", "sat"]
LINES = [{"prompt": prompt, "choices": CHOICES, "answer": n % 4} for n, prompt in enumerate(PROMPTS)]
#: A task of each kind of question that the harness asks.
KINDS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice", "doc_to_text": "{{prompt}}", "doc_to_choice": "{{choices}}", "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{(prompt + ' ' + choices[2] + ' ') * 12}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "written": {
        "output_type": "generate_until", "doc_to_text": "{{prompt}}", "doc_to_target": "{{choices[0]}}", "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": ["\n\n", "on"], "max_gen_toks": 24, "do_sample": False},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (pip install lm-eval)")
    with quiet_transformers():
        return small_models.save(tmp_path_factory.mktemp("m") / "m")


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A function of the kind of questions."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    (tmp_path / "d.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    files = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "d.jsonl")}, "cache_dir": str(tmp_path / "cache")}, "test_split": "test"}
    return lambda kind: {"task": kind, **files, **KINDS[kind]}


def theirs(folder, task: dict[str, Any]) -> dict[str, float]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    base = load_base(folder)
    found = lm_eval.simple_evaluate(model=HFLM(pretrained=base.model, tokenizer=base.require_tokenizer(), batch_size=2), tasks=[task])["results"][task["task"]]
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", ["host", pytest.param("twin", marks=pytest.mark.skipif(not native.is_built(), reason="the extension is not built"))])
def test_every_kind_of_question_has_the_harnesss_own_numbers(folder, task, kind, device):
    torch._dynamo.reset()
    ours = harness.measure(Evaluator(load_base(folder), device, batch_size=2), [task(kind)])[kind]
    assert ours == pytest.approx(theirs(folder, task(kind)), rel=1e-6 if device == "host" else 2e-3, abs=1e-9)
    torch._dynamo.reset()


@pytest.mark.skipif(not native.is_built(), reason="the extension is not built")
def test_questions_of_like_lengths_share_programs(folder, task):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    asked = Evaluator(load_base(folder), "twin", batch_size=2)
    harness.measure(asked, [task("choice")])
    assert counters["stats"]["unique_graphs"] == 1
    harness.measure(asked, [task("written")])
    assert counters["stats"]["unique_graphs"] == 3  # of the prompts, and of a step after them
    torch._dynamo.reset()


def test_it_prefers_what_our_own_choice_prefers(folder, task, tmp_path):
    asked = Evaluator(load_base(folder))
    found = harness.measure(asked, [task("choice")])["choice"]
    ours = asked.choice(evaluate.read(tmp_path / "d.jsonl")[1])
    assert (found["acc,none"], found["acc_norm,none"]) == (pytest.approx(ours["accuracy"]), pytest.approx(ours["accuracy_per_byte"]))


def test_shots_and_a_template_change_what_is_asked(folder, task):
    asked = {**task("choice"), "fewshot_split": "test", "metric_list": [{"metric": "brier_score"}]}
    ways = {"plain": {}, "talk": {"is_talk": True}, "shots": {"num_shots": 2}}
    scores = {name: harness.measure(Evaluator(load_base(folder)), [dict(asked)], **settings)["choice"]["brier_score,none"] for name, settings in ways.items()}
    assert len(set(scores.values())) == 3, scores


def test_a_task_of_ones_own_is_a_yaml_file(folder, task, tmp_path):
    yaml = pytest.importorskip("yaml")
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(task("choice")))
    asked = Evaluator(load_base(folder))
    assert harness.measure(asked, [str(tmp_path / "t.yaml")]) == harness.measure(asked, [task("choice")])


def test_a_task_that_is_not_to_be_had_is_named(folder):
    with pytest.raises(UsageError, match="no_such_task"):
        harness.measure(Evaluator(load_base(folder)), ["no_such_task"])
