"""Evaluation meets sums of log-probabilities taken token by token in float64, and says which line of a file is wrong."""

import json
import math

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed (pip install 'torchane[finetune]')")
import small_models

from torchane import native
from torchane.errors import DataError
from torchane.finetune.extras import quiet_transformers
from torchane.finetune.models import load_base
from torchane.generate import evaluate
from torchane.generate.evaluate import Evaluator, Record

TEXT = "The cat's hat, 1234 of them, sat on the mat; we'll see \u00e9t\u00e9 \u2014 \u4f60\u597d!"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with quiet_transformers():
        return load_base(small_models.save(tmp_path_factory.mktemp("m") / "m"))


def nats(base, tokens: list[int], start: int) -> float:
    """Minus the logarithm of the probability of tokens[start:], one model call for each."""
    total = 0.0
    for at in range(start, len(tokens)):
        with torch.no_grad():
            total -= float(base.model(torch.tensor([tokens[:at]])).logits[0, -1].double().log_softmax(0)[tokens[at]])
    return total


def test_perplexity_and_bits_per_byte_are_those_of_each_token_in_its_window(base):
    ids = [0, *base.tokenizer(TEXT).input_ids]
    want = sum(nats(base, ids[begin : begin + 9], 1) for begin in range(0, len(ids) - 1, 8))
    found = Evaluator(base, seq_len=8, batch_size=3).perplexity([TEXT])
    assert found["tokens"] == len(ids) - 1 and found["bytes"] == len(TEXT.encode())
    assert found["nats_per_token"] == pytest.approx(want / (len(ids) - 1), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(want / (len(ids) - 1)), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(want / math.log(2) / len(TEXT.encode()), rel=1e-5)


def test_a_choice_is_preferred_by_the_probability_of_its_tokens(base):
    prompt, choices = "The cat", ["sat on the mat", "hat", "1234 of them, sat on the mat; we'll see", "!"]
    before = base.tokenizer(prompt).input_ids
    want = [nats(base, base.tokenizer(f"{prompt} {choice}").input_ids, len(before)) for choice in choices]
    best = want.index(min(want))
    per_byte = min(range(4), key=lambda n: want[n] / len(choices[n].encode()))
    assert best != per_byte  # the two ways differ here
    for answer in (best, per_byte, choices[best]):
        found = Evaluator(base, batch_size=3).choice([Record(1, {"prompt": prompt, "choices": choices, "answer": answer})])
        is_best, is_per_byte = answer in (best, choices[best]), answer == per_byte
        assert found == {"accuracy": float(is_best), "accuracy_per_byte": float(is_per_byte), "count": 1}


@pytest.mark.long
@pytest.mark.skipif(not native.is_built(), reason="the extension is not built")
def test_programs_measure_what_pytorch_measures_and_texts_of_like_lengths_share_one(base, tmp_path):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    texts = [TEXT[:begin] for begin in (20, 30, 33, len(TEXT))]
    with quiet_transformers():
        programs = Evaluator(load_base(small_models.save(tmp_path / "m")), "twin", batch_size=2)
    ours, theirs = programs.perplexity(texts), Evaluator(base).perplexity(texts)
    assert ours["nats_per_token"] == pytest.approx(theirs["nats_per_token"], rel=1e-3)
    assert counters["stats"]["unique_graphs"] <= 2
    torch._dynamo.reset()


def test_exact_match_compares_the_likeliest_text(base):
    evaluator = Evaluator(base, batch_size=2)
    [one] = evaluator.writer.write(["[user] The cat\n"], evaluate.Sampling(max_tokens=6, temperature=0), is_templated=True)
    records = [Record(n, {"prompt": "The cat", "completion": text}) for n, text in enumerate((f" {one.text}\n", "other", one.text), 1)]
    assert evaluator.match(records, 6) == {"exact_match": pytest.approx(2 / 3), "count": 3}
    talk = Record(1, {"messages": [{"role": "user", "content": "The cat"}, {"role": "assistant", "content": one.text}]})
    assert evaluator.match([talk], 6)["exact_match"] == 1.0


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "line 1: it is no JSON"),
        (["[1]"], "line 1: it is a list; expected is an object"),
        (['{"text": "a"}', '{"txt": "a"}'], "line 2: it has 'txt'; expected is \"text\", \"prompt\""),
        (['{"text": "a"}', '{"prompt": "a", "completion": "b"}'], "line 2: it has 'prompt', 'completion'; expected.*all lines alike"),
        (['{"text": 3}'], "line 1: text is 3, and it must be text"),
        (['{"prompt": "a", "choices": ["b"], "answer": 0}'], r"line 1: choices is \['b'\]"),
        (['{"prompt": "a", "choices": ["b", "c"], "answer": 2}'], "line 1: answer is 2, and it must be one of the choices"),
        (['{"messages": [{"role": "user", "content": "a"}]}'], "line 1: messages must be a list"),
        ([], "has no lines"),
    ],
)
def test_wrong_lines_are_named(tmp_path, lines, said):
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=f"d.jsonl.*{said}"):
        evaluate.read(tmp_path / "d.jsonl")


def test_the_keys_of_a_line_say_what_is_measured(tmp_path):
    (tmp_path / "d.txt").write_text("text")
    assert evaluate.read(tmp_path / "d.txt") == ("perplexity", [Record(1, {"text": "text"})])
    for line, kind in (({"text": "a"}, "perplexity"), ({"prompt": "a", "completion": "b"}, "match"), ({"prompt": "a", "choices": ["b", "c"], "answer": "c"}, "choice")):
        (tmp_path / "d.jsonl").write_text(f"{json.dumps(line)}\n\n{json.dumps(line)}\n")
        assert evaluate.read(tmp_path / "d.jsonl")[0] == kind and [record.line for record in evaluate.read(tmp_path / "d.jsonl")[1]] == [1, 3]
