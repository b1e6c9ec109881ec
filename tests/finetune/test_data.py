"""Lines become tokens as transformers' own template and tokenizer make them, and every line that is none is named."""

import json

import numpy as np
import pytest
import tiny

from torchane.errors import DataError
from torchane.finetune.data import load_splits
from torchane.finetune.settings import LoraSettings

TOKENIZER = tiny.tokenizer()
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "so?"}, {"role": "assistant", "content": "no"}]


def read(path, needed=("train",), tokenizer=TOKENIZER, positions=512, **settings):
    return load_splits(path, tokenizer, LoraSettings(**settings), needed, positions)


def lines(path, *records, name="train"):
    path.mkdir(exist_ok=True)
    (path / f"{name}.jsonl").write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records) + "\n")
    return path


def text_of(example):
    return TOKENIZER.decode(example.ids)


def learned(example):
    return TOKENIZER.decode(example.ids[example.offset :])


def test_text_ends_with_the_end_token_once(tmp_path):
    first, second = read(lines(tmp_path, {"text": "abc"}, {"text": "d<|endoftext|>"})).train
    assert text_of(first) == "abc<|endoftext|>" and text_of(second) == "d<|endoftext|>" and first.offset == 0


def test_a_chat_is_what_the_template_makes_of_it(tmp_path):
    [plain] = read(lines(tmp_path, {"messages": CHAT})).train
    assert plain.ids.tolist() == TOKENIZER.apply_chat_template(CHAT, return_dict=False)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    [tooled] = read(lines(tmp_path, {"messages": CHAT, "tools": tools})).train
    assert text_of(tooled).startswith("<tools>") and text_of(tooled).endswith(text_of(plain))


def test_a_pair_is_a_chat_of_two_messages_and_its_keys_may_be_named(tmp_path):
    [pair] = read(lines(tmp_path, {"prompt": "hi", "completion": "yes"})).train
    assert text_of(pair) == "<user>hi</user><assistant>yes</assistant>"
    [renamed] = read(lines(tmp_path, {"q": "hi", "a": "yes"}), features={"prompt_feature": "q", "completion_feature": "a"}).train
    assert np.array_equal(renamed.ids, pair.ids)


def test_with_mask_prompt_the_last_message_alone_is_learned(tmp_path):
    [chat] = read(lines(tmp_path, {"messages": CHAT}), mask_prompt=True).train
    assert learned(chat) == "no</assistant>"
    [pair] = read(lines(tmp_path, {"prompt": "hi", "completion": "yes"}), mask_prompt=True).train
    assert learned(pair) == "yes</assistant>"


def test_where_a_template_ends_a_prompt_otherwise_nothing_of_the_answer_is_masked(tmp_path):
    thinking = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant><think>{% endif %}"
    [chat] = read(lines(tmp_path, {"messages": CHAT[:2]}), tokenizer=tiny.tokenizer(template=thinking), mask_prompt=True).train
    assert learned(chat) == "yes"


def test_long_examples_lose_their_ends_and_it_is_said(tmp_path):
    splits = read(lines(tmp_path, {"text": "a" * 50}, {"text": "b"}), max_seq_length=16)
    assert [len(example.ids) for example in splits.train] == [16, 2]
    assert "1 of 2 examples have more than 16 tokens (the longest has 51 tokens), and lose their ends. Split them or raise --max-seq-length" in splits.notes[0]


def test_examples_without_a_token_to_learn_are_left_out_and_it_is_said(tmp_path):
    splits = read(lines(tmp_path, {"prompt": "a" * 90, "completion": "b"}, {"prompt": "c", "completion": "d"}), mask_prompt=True, max_seq_length=40)
    assert len(splits.train) == 1 and any("1 of 2 examples have no token to learn from" in note for note in splits.notes)


def test_no_example_is_longer_than_the_models_positions(tmp_path):
    splits = read(lines(tmp_path, {"text": "a" * 50}), positions=32)
    assert len(splits.train[0].ids) == 32 and "have more than the model's 32 positions (the longest has 51 tokens)" in splits.notes[0]
    assert "--max-seq-length" not in splits.notes[0]  # which would not help


def test_a_text_is_cut_into_windows_that_overlap_by_a_token(tmp_path):
    text = "".join(f"{i} foxes.\n" for i in range(200))
    (tmp_path / "notes.txt").write_text(text)
    splits = read(tmp_path / "notes.txt", max_seq_length=64)
    joined = np.concatenate([example.ids[:-1] for example in splits.train] + [splits.train[-1].ids[-1:]])
    assert TOKENIZER.decode(joined).removesuffix("<|endoftext|>") == text[: len(joined) - 1]
    assert splits.valid and splits.test == splits.valid and max(len(example.ids) for example in splits.train) == 64
    assert "windows of 64 tokens to train on" in splits.notes[0]


def test_a_missing_validation_is_said_and_a_jsonl_alone_is_the_split_that_is_needed(tmp_path):
    lines(tmp_path, {"text": "abc"})
    assert any("nothing is validated" in note for note in read(tmp_path).notes)
    assert len(read(tmp_path / "train.jsonl", needed=("test",)).test) == 1


def test_a_split_that_is_not_needed_is_not_read(tmp_path):
    lines(lines(tmp_path, {"text": "abc"}), "damaged", name="test")
    assert read(tmp_path).test == []


def test_equal_examples_have_one_digest_and_others_another(tmp_path):
    one, again = read(lines(tmp_path, {"text": "abc"})).digest(), read(tmp_path).digest()
    assert one == again != read(lines(tmp_path, {"text": "abd"})).digest()


@pytest.mark.parametrize(
    ("records", "settings", "said"),
    [
        ([{"text": "a"}, "{nope"], {}, "train.jsonl, line 2 is no JSON"),
        ([{"question": "a", "answer": "b"}], {}, 'line 1 has "question", "answer"; expected is "messages"'),
        ([{"q": "a"}], {"features": {"prompt_feature": "q"}}, 'line 1 has "q"; expected is "messages", "q" and "completion", or "text"'),
        ([{}], {}, "line 1 has nothing; expected"),
        (["[1]"], {}, r"line 1 is \[1\]; expected is an object"),
        ([{"text": 3}], {}, 'line 1: "text" is 3; expected is text'),
        ([{"text": "a"}, "", {"messages": CHAT}], {}, 'line 3 is of the form "chat", and the lines before it of "text"'),
        ([{"messages": []}], {}, r'"messages" is \[\]; expected is a list'),
        ([{"messages": [{"content": "a"}]}], {}, "a message is .*expected is"),
        ([{"messages": CHAT, "tools": "f"}], {}, "\"tools\" is 'f'; expected is a list"),
        ([{"text": "a"}], {"mask_prompt": True}, "--mask-prompt leaves out the prompt, and a text has none"),
        ([""], {}, "train.jsonl holds no example, and --train needs one"),
        (
            [{"prompt": "abcdefgh", "completion": "i"}] * 3, {"mask_prompt": True, "max_seq_length": 4},
            "No example to learn from is left, and --train needs one.*3 of 3 examples have more than 4 tokens.*Split them or raise --max-seq-length.*3 of 3 examples have no token",
        ),
    ],
)
def test_a_line_that_is_no_example_is_named_with_what_was_expected(tmp_path, records, settings, said):
    with pytest.raises(DataError, match=said):
        read(lines(tmp_path, *records), **settings)


def test_a_tokenizer_without_template_says_what_to_do(tmp_path):
    lines(tmp_path, {"messages": CHAT})
    with pytest.raises(DataError, match="line 1 is a conversation, and the model's tokenizer has no chat template.*chat_template.jinja"):
        read(tmp_path, tokenizer=tiny.tokenizer(template=None))


def test_what_a_template_refuses_is_said_with_the_line(tmp_path):
    lines(tmp_path, {"messages": CHAT})
    with pytest.raises(DataError, match="line 1: the model's chat template refuses it: only one turn"):
        read(tmp_path, tokenizer=tiny.tokenizer(template="{{ raise_exception('only one turn') }}"))


def test_a_path_that_is_not_there_and_a_split_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="There is no .*nowhere"):
        read(tmp_path / "nowhere")
    lines(tmp_path, {"text": "abc"}, name="valid")
    with pytest.raises(DataError, match="train.jsonl does not exist, and --train needs one"):
        read(tmp_path)
