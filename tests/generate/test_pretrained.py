"""Writing with transformers' models: the tokens that transformers generates, alone and together, on the host and through programs."""

import json

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed (pip install 'torchane[finetune]')")
import small_models

from torchane import native
from torchane.errors import UsageError
from torchane.finetune.extras import quiet_transformers
from torchane.finetune.models import load_base
from torchane.generate import pretrained
from torchane.generate.pretrained import Writer, templated
from torchane.generate.sampling import Sampling

PROMPTS = ["The cat", "sat on the mat; we'll see", "1234 of them, sat"]
GREEDY = Sampling(max_tokens=12, temperature=0)


@pytest.fixture(scope="module", params=["llama", pytest.param("qwen3", marks=pytest.mark.long)])
def folder(request, tmp_path_factory):
    with quiet_transformers():
        return small_models.save(tmp_path_factory.mktemp("m") / "m", request.param)


@pytest.fixture(scope="module")
def base(folder):
    return load_base(folder)


@pytest.fixture(scope="module")
def theirs(base):
    """What transformers' own generate gives for each prompt."""
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([base.tokenizer(prompt).input_ids])
        with quiet_transformers():
            tokens = base.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        found.append(base.tokenizer.decode(tokens, skip_special_tokens=True))
    return found


def test_one_prompt_gives_what_transformers_generates(base, theirs):
    pieces = []
    [one] = Writer(base).write(PROMPTS[:1], GREEDY, tell=lambda index, piece: pieces.append(piece))
    assert one.text == "".join(pieces) == theirs[0] and one.tokens == 12 and one.end == "length"
    assert one.prompt_tokens == len(base.tokenizer(PROMPTS[0]).input_ids) and one.prefill_s > 0 and one.decode_s > 0


def test_several_prompts_at_once_give_what_each_gives_alone(base, theirs):
    assert [one.text for one in Writer(base).write(PROMPTS, GREEDY)] == theirs


def test_a_stop_ends_one_prompt_and_not_the_others(base, theirs):
    stop = theirs[1][3:6]
    assert stop and stop not in theirs[0]
    done = Writer(base).write(PROMPTS[:2], Sampling(max_tokens=12, temperature=0, stop=(stop,)))
    assert [one.text for one in done] == [theirs[0], theirs[1].partition(stop)[0]] and [one.end for one in done] == ["length", "stop"]


def test_the_seed_decides_the_draws_and_torchs_own_is_left_alone(base):
    state = torch.random.get_rng_state()
    texts = [Writer(base).write(PROMPTS[:1], Sampling(max_tokens=12, temperature=1.5, seed=seed))[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2] and torch.equal(state, torch.random.get_rng_state())


def test_a_penalty_leaves_what_prompts_are_filled_up_with_out(base):
    sampling = Sampling(max_tokens=12, temperature=0, repetition_penalty=1.5)
    assert [one.text for one in Writer(base).write(PROMPTS, sampling)] == [Writer(base).write([prompt], sampling)[0].text for prompt in PROMPTS]


def test_a_text_ends_at_the_models_positions(base):
    [one] = Writer(base).write(["The cat " * 20], Sampling(max_tokens=500, temperature=0))
    assert one.prompt_tokens + one.tokens == 128 and one.end == "context" and "the model's 128 positions" in one.note
    with pytest.raises(UsageError, match="A prompt has .* tokens, and the model has 128 positions"):
        Writer(base).write(["The cat " * 200], GREEDY)


def test_a_template_makes_a_text_of_messages(base):
    assert templated(base, [{"role": "user", "content": "hi"}]) == "[user] hi\n"
    base.tokenizer.chat_template, kept = None, base.tokenizer.chat_template
    with pytest.raises(UsageError, match="has no chat template: the model was not made for conversations"):
        templated(base, [{"role": "user", "content": "hi"}])
    base.tokenizer.chat_template = kept


@pytest.mark.long
@pytest.mark.skipif(not native.is_built(), reason="the extension is not built")
def test_programs_give_the_hosts_text_and_compile_nothing_anew_for_the_next_prompt(folder, theirs):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    writer = Writer(load_base(folder), "twin")
    assert [one.text for one in writer.write(PROMPTS[:1], GREEDY)] == theirs[:1]
    assert counters["stats"]["unique_graphs"] == 2  # of the prompt, and of a step after it
    counters.clear()
    assert writer.write(PROMPTS[1:2], Sampling(max_tokens=40, temperature=0))[0].text.startswith(theirs[1])
    assert counters["stats"]["unique_graphs"] == 0
    torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.skipif(not native.is_built(), reason="the extension is not built")
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_long_prompts_share_one_program_and_give_transformers_scores(kind, tmp_path, monkeypatch):
    """In pieces of 512 tokens, and steps to the model's last position: three graphs compiled in all."""
    from torch._dynamo.utils import counters

    scores = []
    monkeypatch.setattr(pretrained._Scores, "__call__", lambda self, ids, found: scores.append(found[0]) or found)
    with quiet_transformers():
        folder = small_models.save(tmp_path / "m", kind, max_position_embeddings=2048)
    torch._dynamo.reset()
    counters.clear()
    writer, plain = Writer(load_base(folder), "twin"), Writer(load_base(folder))
    text = plain.tokenizer.decode(torch.randint(4, 40, (1300,), generator=torch.Generator().manual_seed(0)).tolist())
    for tokens in (700, 1300, 600):
        prompt = plain.tokenizer.decode(plain.tokenizer(text).input_ids[:tokens], skip_special_tokens=True)
        [ours], _ = (one.write([prompt], Sampling(max_tokens=1, temperature=0)) for one in (writer, plain))
        assert ours.prompt_tokens > tokens - 50 and small_models.close(scores[-2], scores[-1]) < 5e-3
        assert counters["stats"]["unique_graphs"] == 1
    [ours] = writer.write(["The cat"], Sampling(max_tokens=2000, temperature=0))
    assert ours.tokens == 2000 and counters["stats"]["unique_graphs"] == 3  # of a short prompt, and of a step
    torch._dynamo.reset()


def test_an_adapter_of_any_tool_is_put_around_the_model(folder, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed (pip install 'torchane[finetune]')")
    import small_adapters

    from torchane.convert import hf, mlx, peft
    from torchane.generate.adapted import with_adapter

    one = small_adapters.save(folder, tmp_path / "peft", target_modules=["q_proj", "down_proj"])
    (tmp_path / "mlx").mkdir()
    mlx.write(peft.read(one), tmp_path / "mlx", hf.read(folder))
    assert json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())["fine_tune_type"] == "lora"
    with quiet_transformers():
        want = small_adapters.logits(folder, one, [5, 6, 7])
    for path in (one, tmp_path / "mlx"):
        with torch.no_grad():
            got = with_adapter(load_base(folder), path)(torch.tensor([[5, 6, 7]])).logits[0]
        assert small_models.close(got, want) < 1e-5


@pytest.mark.long
@pytest.mark.skipif(not native.is_built(), reason="the extension is not built")
def test_an_adapter_is_in_the_programs(folder, tmp_path):
    """On the twin the host's text is written, in two graphs, and they are what ran."""
    pytest.importorskip("peft", reason="peft is not installed (pip install 'torchane[finetune]')")
    import small_adapters
    from torch._dynamo.utils import counters

    from torchane.generate.adapted import with_adapter

    adapter = small_adapters.save(folder, tmp_path / "a", target_modules=["q_proj", "down_proj"])
    texts = []
    for device in ("host", "twin"):
        torch._dynamo.reset()
        counters.clear()
        base = load_base(folder)
        [one] = Writer(base, device, with_adapter(base, adapter)).write(PROMPTS[:1], GREEDY)
        texts.append(one.text)
    assert texts[0] == texts[1] != Writer(load_base(folder)).write(PROMPTS[:1], GREEDY)[0].text
    assert counters["stats"]["unique_graphs"] == 2
    torch._dynamo.reset()
