"""Models that nobody prepared: tiny configurations of other transformers families, and hand-written networks."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from zoo import SMALL, Build, Classifier, hugging_face

_DECODER = {
    **SMALL, "vocab_size": 64, "num_key_value_heads": 2, "use_cache": False, "attention_dropout": 0.1, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_HEADS = {**_DECODER, "head_dim": 8}
_OLD = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False}
_MASKED = {**SMALL, "vocab_size": 64}


def _causal(name: str, **values: object) -> Build:
    return hugging_face(f"{name}ForCausalLM", f"{name}Config", **values)


TEXT: dict[str, Build] = {
    "Qwen2": _causal("Qwen2", **_DECODER),
    "Phi": _causal("Phi", **_DECODER, partial_rotary_factor=0.5, resid_pdrop=0.1, embd_pdrop=0.1),
    "Phi-3": _causal("Phi3", **_DECODER, resid_pdrop=0.1),
    "OLMo": _causal("Olmo", **_DECODER, clip_qkv=8.0),
    "OLMo 2": _causal("Olmo2", **_DECODER),
    "Gemma": _causal("Gemma", **_HEADS),
    "Gemma 3": hugging_face("Gemma3ForCausalLM", "Gemma3TextConfig", **_HEADS, sliding_window=4, initializer_range=0.06),
    "StableLM": _causal("StableLm", **_DECODER),
    "Falcon": _causal("Falcon", vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, use_cache=False, hidden_dropout=0.1, attention_dropout=0.1),
    "Falcon, ALiBi": _causal("Falcon", vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, use_cache=False, alibi=True),
    "GPT-J": _causal("GPTJ", **_OLD, rotary_dim=4, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1),
    "OPT": _causal("OPT", vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32, use_cache=False, dropout=0.1, attention_dropout=0.1),
    "MPT": _causal("Mpt", vocab_size=64, d_model=32, n_layers=2, n_heads=4, max_seq_len=32, use_cache=False),
    "BLOOM": _causal("Bloom", vocab_size=64, hidden_size=32, n_layer=2, n_head=4, use_cache=False, hidden_dropout=0.1, attention_dropout=0.1),
    "Cohere": _causal("Cohere", **_DECODER),
    "Cohere 2": _causal("Cohere2", **_HEADS, sliding_window=4),
    "StarCoder 2": _causal("Starcoder2", **_DECODER, residual_dropout=0.1, embedding_dropout=0.1),
    "SmolLM 3": _causal("SmolLM3", **_DECODER),
    "Granite": _causal("Granite", **_DECODER, embedding_multiplier=2.0, residual_multiplier=0.5, logits_scaling=2.0),
    "GLM": _causal("Glm", **_HEADS),
    "Nemotron": _causal("Nemotron", **_DECODER),
    "GPT-Neo": _causal("GPTNeo", vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=4, max_position_embeddings=64, use_cache=False, embed_dropout=0.1, resid_dropout=0.1, attention_dropout=0.1),
    "Llama, YaRN": _causal("Llama", **_HEADS, rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    "Llama, attention written out": _causal("Llama", **_HEADS, attn_implementation="eager"),
    "Mixtral": _causal("Mixtral", **_DECODER, num_local_experts=4, num_experts_per_tok=2),
    "DeepSeek-V3": _causal(
        "DeepseekV3", **{**_DECODER, "num_key_value_heads": 4}, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1,
        moe_intermediate_size=16, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    ),
    "Mamba": _causal("Mamba", vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, use_cache=False),
    "RoBERTa": hugging_face("RobertaForMaskedLM", "RobertaConfig", **_MASKED, pad_token_id=0, max_position_embeddings=64),
    "DistilBERT": hugging_face("DistilBertForMaskedLM", "DistilBertConfig", vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64),
    "ELECTRA": hugging_face("ElectraForMaskedLM", "ElectraConfig", **_MASKED, embedding_size=16),
    "ALBERT": hugging_face("AlbertForMaskedLM", "AlbertConfig", **_MASKED, embedding_size=16, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1),
    "Longformer": hugging_face("LongformerForMaskedLM", "LongformerConfig", **_MASKED, attention_window=[8, 8], max_position_embeddings=64, pad_token_id=0),
    "DeBERTa": hugging_face("DebertaV2ForMaskedLM", "DebertaV2Config", **_MASKED, relative_attention=True, max_position_embeddings=32, pos_att_type=["p2c", "c2p"], position_buckets=8),
    "ModernBERT": hugging_face("ModernBertForMaskedLM", "ModernBertConfig", **_MASKED, global_attn_every_n_layers=2, local_attention=8, pad_token_id=0, attention_dropout=0.1),
    "T5": hugging_face("T5ForConditionalGeneration", "T5Config", vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, use_cache=False, decoder_start_token_id=0, feed_forward_proj="gated-gelu"),
    "BART": hugging_face("BartForConditionalGeneration", "BartConfig", vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, use_cache=False),
}  # fmt: skip


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 2, 1), nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class InvertedResidual(nn.Module):
    """MobileNet's and EfficientNet's block, its middle convolution depthwise."""

    def __init__(self, channels: int, act: Callable[[], nn.Module]):
        super().__init__()
        wide = 2 * channels
        self.layers = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), act(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), act(),
            SqueezeExcite(wide), nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class DenseBlock(nn.Module):
    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c), nn.SiLU(), nn.Conv2d(c, growth, 3, padding=1))
            for c in range(channels, channels + 3 * growth, growth)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class UNet(nn.Module):
    def __init__(self, transposed: bool):
        super().__init__()
        self.top, self.down, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1), nn.GroupNorm(4, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2) if transposed else nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(16, 8, 1))
        self.out = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = F.silu(self.top(x))
        return self.out(torch.cat([high, self.up(F.silu(self.norm(self.down(high))))], 1))


class Waves(nn.Module):
    """One-dimensional: strided, grouped, dilated, transposed, and a gated causal layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(3, 8, 9, stride=4, padding=4), nn.GELU(), nn.Conv1d(8, 8, 3, dilation=2, padding=2, groups=4),
            nn.BatchNorm1d(8), nn.SiLU(), nn.ConvTranspose1d(8, 8, 8, stride=4, padding=2),
        )  # fmt: skip
        self.filter, self.gate = nn.Conv1d(8, 8, 2, dilation=2), nn.Conv1d(8, 8, 2, dilation=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(x.flatten(2))
        late = F.pad(x, (2, 0))
        return x + torch.tanh(self.filter(late)) * torch.sigmoid(self.gate(late))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.tokens = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.channels = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.norm = nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(x)


class Windows(nn.Module):
    """Swin's: windows of a rolled image, a bias table looked up by position, patches merged."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.merge = nn.Conv2d(3, 16, 2, 2), nn.LayerNorm(16), nn.Linear(64, 32)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.table = nn.Parameter(torch.randn(49, 2) * 0.1)
        places = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        apart = (places[:, :, None] - places[:, None, :]) + 3
        self.register_buffer("index", (apart[0] * 7 + apart[1]).flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        batch, high, wide, size = x.shape
        rolled = torch.roll(self.norm(x), (-2, -2), (1, 2))
        windows = rolled.view(batch, high // 4, 4, wide // 4, 4, size).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, size)
        q, k, v = self.qkv(windows).view(-1, 16, 3, 2, 8).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / 8**0.5 + self.table[self.index].view(16, 16, 2).permute(2, 0, 1)
        mixed = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, size))
        mixed = mixed.view(batch, high // 4, wide // 4, 4, 4, size).permute(0, 1, 3, 2, 4, 5).reshape(x.shape)
        x = x + torch.roll(mixed, (2, 2), (1, 2))
        return self.merge(torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1))


class SwitchedExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(48, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 1, 3).flatten(2)
        shares = self.gate(x).softmax(-1)
        kept, index = shares.topk(2, -1)
        shares = torch.zeros_like(shares).scatter(-1, index, kept / kept.sum(-1, keepdim=True))
        return sum(shares[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


def _head(channels: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)


def _flat_head(size: int) -> tuple[nn.Module, ...]:
    return nn.Flatten(), nn.Linear(size, 5)


def _stem(act: Callable[[], nn.Module]) -> tuple[nn.Module, ...]:
    return nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), act()


def _encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(48, 4, 64, batch_first=True, norm_first=norm_first, activation="gelu")
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


#: All take images of 16 x 16.
NETWORKS: dict[str, Build] = {
    "MobileNet": lambda: Classifier(*_stem(nn.Hardswish), InvertedResidual(8, nn.Hardswish), InvertedResidual(8, nn.Hardswish), *_head(8)),
    "EfficientNet": lambda: Classifier(*_stem(nn.SiLU), InvertedResidual(8, nn.SiLU), nn.Dropout(0.2), *_head(8)),
    "DenseNet": lambda: Classifier(nn.Conv2d(3, 8, 3, padding=1), DenseBlock(8, 4), nn.BatchNorm2d(20), nn.SiLU(), nn.AvgPool2d(2), *_head(20)),
    "LeNet": lambda: Classifier(nn.Conv2d(3, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3), nn.Tanh(), *_flat_head(128)),
    "U-Net": lambda: Classifier(UNet(True), *_head(16)),
    "U-Net, resized": lambda: Classifier(UNet(False), *_head(16)),
    "waves": lambda: Classifier(Waves(), nn.AdaptiveAvgPool1d(4), *_flat_head(32)),
    "MLP-Mixer": lambda: Classifier(Mixer(), *_flat_head(256)),
    "Swin": lambda: Classifier(Windows(), *_flat_head(512)),
    "experts": lambda: Classifier(SwitchedExperts(), *_flat_head(256)),
    "nn.TransformerEncoder": lambda: Classifier(Rows(), _encoder(False), *_flat_head(768)),
    "nn.TransformerEncoder, norms first": lambda: Classifier(Rows(), _encoder(True), *_flat_head(768)),
    "instance norm": lambda: Classifier(nn.Conv2d(3, 8, 3, padding_mode="reflect"), nn.InstanceNorm2d(8, affine=True), nn.Mish(), nn.PixelUnshuffle(2), *_head(32)),
    "weight norm": lambda: Classifier(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(768, 32)), nn.PReLU(32), nn.Linear(32, 5)),
    "3-D convolution": lambda: Classifier(nn.Unflatten(2, (4, 4)), nn.Conv3d(3, 4, 3, padding=1), nn.SiLU(), *_flat_head(1024)),
}  # fmt: skip


class Rows(nn.Module):
    """Images as sequences of their rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 1, 3).flatten(2)
