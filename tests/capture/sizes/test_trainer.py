"""Hugging Face's Trainer with DataCollatorWithPadding over random lengths of 8 to 512, each step beside eager with the same weights."""

import copy
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from torchane.capture import backend

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

STEPS, BATCH, VOCABULARY = 300, 4, 128
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
DECODER = {**SMALL, "num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0}


def build(name: str) -> torch.nn.Module:
    import transformers as tf

    if name == "Llama":
        return tf.LlamaForCausalLM(tf.LlamaConfig(**DECODER))
    if name == "Qwen3":
        return tf.Qwen3ForCausalLM(tf.Qwen3Config(**DECODER, head_dim=16))
    if name == "BERT":
        return tf.BertForSequenceClassification(tf.BertConfig(**SMALL, num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    config = tf.T5Config(
        vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, use_cache=False, decoder_start_token_id=0, dropout_rate=0.0
    )
    return tf.T5ForConditionalGeneration(config)


class Lines(torch.utils.data.Dataset):
    """Batches of lines of about one length, which is drawn anew for each."""

    def __init__(self) -> None:
        self.lengths = np.random.default_rng(0).integers(8, 513, STEPS)

    def __len__(self) -> int:
        return BATCH * STEPS

    def __getitem__(self, i: int) -> dict[str, Any]:
        draw = np.random.default_rng(i)
        length = max(8, int(self.lengths[i // BATCH]) - 2 * (i % BATCH))
        return {"input_ids": draw.integers(3, VOCABULARY, length).tolist(), "label": int(draw.integers(0, 5))}


def trainer(model: torch.nn.Module, has_classes: bool, folder: Any) -> Any:
    """A Trainer whose `seen` has each step's gaps of loss and of gradients, and its seconds."""
    import transformers as tf
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"<pad>": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}, unk_token="w1"))
    pad = tf.DataCollatorWithPadding(tf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>"))
    eager = copy.deepcopy(model)

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {name: value for name, value in pad(rows).items() if name != "token_type_ids"}
        return batch if has_classes else {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    class Beside(tf.Trainer):
        seen: list[tuple[float, float, float]] = []

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, model: Any, inputs: Any, count: Any = None) -> torch.Tensor:
            eager.load_state_dict(model.state_dict())
            eager.zero_grad()
            right = eager(**inputs).loss
            right.backward()
            start = time.perf_counter()
            loss = super().training_step(model, inputs, count)
            seconds = time.perf_counter() - start
            pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), eager.parameters(), strict=True) if q.grad is not None]
            error = sum((p - q).pow(2).sum() for p, q in pairs).sqrt() / sum(q.pow(2).sum() for _, q in pairs).sqrt()
            self.seen.append((abs(float(loss) / float(right.detach()) - 1), float(error), seconds))
            return loss

    Beside.seen = []
    arguments = tf.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=BATCH, num_train_epochs=1, report_to=[], save_strategy="no", logging_strategy="no",
        disable_tqdm=True, use_cpu=True, learning_rate=1e-3,
    )  # fmt: skip
    return Beside(model=model, args=arguments, train_dataset=Lines(), data_collator=collate)


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "BERT", "T5"])
def test_300_batches_of_random_lengths(name: str, tmp_path: Any) -> None:
    for package in ("transformers", "accelerate"):
        pytest.importorskip(package)
    torch._dynamo.reset()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, before = build(name), len(backend.COMPILED)
    model.compile(backend="ane")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = trainer(model, name == "BERT", tmp_path)
        runs.train()
    losses, gradients, seconds = zip(*runs.seen, strict=True)
    compiled, usual = len(backend.COMPILED) - before, float(np.median(seconds[20:]))
    print(f"{name}: {compiled} graphs, loss {max(losses):.5f}, gradients {max(gradients):.4f}, slowest after 20 {max(seconds[20:]) / usual:.1f} medians")
    assert compiled <= 10
    assert max(losses) < 0.001
    assert max(gradients) < 0.02
    assert max(seconds[20:]) < 10 * usual
