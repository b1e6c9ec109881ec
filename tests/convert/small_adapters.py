"""Adapters as PEFT writes them, with numbers that are no zeros, on a tiny model."""

from pathlib import Path
from typing import Any

import torch

from torchane.finetune.extras import quiet_transformers

#: What PEFT can say of an adapter: the last layers, ranks and alphas of their own, rsLoRA.
FORMS: dict[str, dict[str, Any]] = {
    "all_layers": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "last_layers": {"target_modules": ["q_proj", "k_proj", "o_proj", "gate_proj"], "layers_to_transform": [1, 2]},
    "first_layer": {"target_modules": ["k_proj", "up_proj"], "layers_to_transform": [0]},
    "patterns": {"target_modules": ["q_proj", "k_proj", "up_proj"], "rank_pattern": {"k_proj": 2}, "alpha_pattern": {r"1\.self_attn\.q_proj": 3}},
    "rslora": {"target_modules": ["k_proj", "v_proj"], "use_rslora": True},
}  # fmt: skip


def save(base: Path, folder: Path, *, seed: int = 1, **settings: Any) -> Path:
    torch.manual_seed(seed)
    with quiet_transformers():  # PEFT warns where a tied weight gets an adapter, which is what is tested
        return _save(base, folder, settings)


def _save(base: Path, folder: Path, settings: dict[str, Any]) -> Path:
    import peft
    from transformers import AutoModelForCausalLM

    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), **settings})
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, param in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            param.data.normal_(0, 0.3)
        if "magnitude" in name:
            param.data *= torch.rand_like(param) + 0.5
    model.save_pretrained(folder)
    return folder


def load(base: Path, folder: Path) -> Any:
    """PEFT's model."""
    import peft
    from transformers import AutoModelForCausalLM

    return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager"), folder).eval()


def logits(base: Path, folder: Path, tokens: list[int]) -> torch.Tensor:
    """PEFT's logits (S, V)."""
    with torch.no_grad():
        return load(base, folder)(torch.tensor([tokens])).logits[0]
