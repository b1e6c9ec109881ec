"""The ways of docs/fine-tuning.md to fine-tune in one's own code, by its lines, through the programs: a loop, transformers' Trainer, trl, Lightning."""

import pytest
import tiny
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:.*pin_memory:UserWarning"),
]
TOKENS = torch.arange(256).reshape(8, 32) * 5 % 97


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """adapted() -> PEFT's model, with the same numbers each time."""
    path = tiny.folder(tmp_path_factory.mktemp("base") / "llama", "llama")

    def make():
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
        return get_peft_model(base, LoraConfig(r=8, lora_alpha=160, target_modules="all-linear")).train()

    return make


def compiled(model):
    model.compile(backend="ane", options={"device": "twin"})
    return model


def learned(model):
    return [param for param in model.parameters() if param.requires_grad]


def losses_of_a_loop(model):
    optimizer, losses = torch.optim.AdamW(learned(model), lr=1e-3), []
    for _ in range(3):
        loss = model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def losses_of_trainer(model, path):
    arguments = transformers.TrainingArguments(
        output_dir=str(path), max_steps=3, per_device_train_batch_size=8, learning_rate=1e-3, logging_steps=1, report_to="none", save_strategy="no",
        use_cpu=True, disable_tqdm=True, seed=0, lr_scheduler_type="constant",
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in TOKENS]
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_plain_loop_over_a_peft_model_that_was_compiled_in_place(adapted):
    ours, theirs = losses_of_a_loop(compiled(adapted())), losses_of_a_loop(adapted())
    assert ours == pytest.approx(theirs, rel=0.01) and ours[2] < ours[0]


def test_transformers_trainer_with_a_peft_model_that_was_compiled_in_place(adapted, tmp_path):
    model = compiled(adapted())
    ours, theirs = losses_of_trainer(model, tmp_path / "a"), losses_of_trainer(adapted(), tmp_path / "b")
    assert ours == pytest.approx(theirs, rel=0.01) and ours[2] < ours[0]
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.filterwarnings("ignore")  # trl's and its dependencies' own
def test_trls_trainer_with_a_peft_model_that_was_compiled_in_place(adapted, tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed (pip install trl)")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")

    def losses(model, path):
        arguments = trl.SFTConfig(
            output_dir=str(path), max_steps=3, per_device_train_batch_size=8, learning_rate=1e-3, logging_steps=1, report_to="none", save_strategy="no",
            use_cpu=True, disable_tqdm=True, seed=0, lr_scheduler_type="constant", bf16=False, gradient_checkpointing=False,
        )  # fmt: skip
        rows = datasets.Dataset.from_list([{"input_ids": row.tolist()} for row in TOKENS])
        trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tiny.tokenizer())
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    ours, theirs = losses(compiled(adapted()), tmp_path / "a"), losses(adapted(), tmp_path / "b")
    assert ours == pytest.approx(theirs, rel=0.01) and ours[2] < ours[0]


@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_lightnings_trainer_with_a_peft_model_that_was_compiled_in_place(adapted):
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed (pip install lightning)")

    class Module(lightning.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model, self.losses = model, []

        def training_step(self, batch, index):
            loss = self.model(input_ids=batch, labels=batch, use_cache=False).loss
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(learned(self.model), lr=1e-3)

    def losses(model):
        module = Module(model)
        trainer = lightning.Trainer(
            max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(TOKENS.repeat(3, 1), batch_size=8))
        return module.losses

    ours, theirs = losses(compiled(adapted())), losses(adapted())
    assert ours == pytest.approx(theirs, rel=0.01) and ours[2] < ours[0]
