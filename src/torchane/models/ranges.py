"""The range of every number that a config.json gives: declared here, checked everywhere. (Options and settings: torchane/options.py.)"""

from collections.abc import Mapping
from types import MappingProxyType

from torchane.options import Range, real

#: Sizes and constants of models, by the keys of a `config.json`.
MODEL: Mapping[str, Range] = MappingProxyType({
    "vocab_size": Range(1, 1 << 24),
    "hidden_size": Range(1, 1 << 20),
    "intermediate_size": Range(1, 1 << 22),
    "num_hidden_layers": Range(1, 4096),
    "num_attention_heads": Range(1, 1 << 16),
    "num_key_value_heads": Range(1, 1 << 16),
    "max_position_embeddings": Range(1, 1 << 24),
    "head_dim": Range(1, 1 << 16),
    "rope_theta": real(0, 1e30, above=True),
    "rms_norm_eps": real(0, 1),
    "initializer_range": real(0, 1000),
    "n_positions": Range(1, 1 << 24),
    "n_embd": Range(1, 1 << 20),
    "n_layer": Range(1, 4096),
    "n_head": Range(1, 1 << 16),
    "layer_norm_epsilon": real(0, 1),
    "embd_pdrop": real(0, 1 - 2**-24),
    "attn_pdrop": real(0, 1 - 2**-24),
    "resid_pdrop": real(0, 1 - 2**-24),
})  # fmt: skip

#: A token that begins or ends a text, where a `config.json` names one.
TOKEN_ID = Range(0, (1 << 31) - 1)
