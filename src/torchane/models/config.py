"""The shapes of the models that are built here, with the keys of a Hugging Face `config.json`.

    LlamaConfig, Qwen3Config, GPT2Config ──to_dict──► config.json ──from_dict──► the same

What the architecture here does not do (biases, scaled rotary positions, another activation) is
refused by name when a file asks for it, since ignoring it would load a different model.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from torchane.errors import ParseError, UsageError, shown
from torchane.models import ranges

# What `config.json` may say besides our own keys without changing the model that we build.
REQUIRED_VALUES: Mapping[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_scaling": (None,),
    "attention_dropout": (0, 0.0, None),
}


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of one model. `head_dim` follows from the others where a file leaves it out."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    head_dim: int = 0
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        require_values(self)
        if self.num_attention_heads % self.num_key_value_heads:
            raise UsageError(
                f"num_attention_heads is {self.num_attention_heads} and num_key_value_heads is "
                f"{self.num_key_value_heads}: every key-value head serves the same number of query heads, "
                "so the first must be a multiple of the second."
            )
        if self.head_dim == 0:
            if self.hidden_size % self.num_attention_heads:
                raise UsageError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                    f"{self.num_attention_heads}. Change one of them, or say head_dim."
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.head_dim % 2:
            raise UsageError(f"head_dim is {self.head_dim}: rotary positions turn pairs, so it must be even.")

    @property
    def parameter_count(self) -> int:
        """The numbers that the model learns."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        layer = self.hidden_size * (2 * queries + 2 * keys + 3 * self.intermediate_size + 2)
        tables = 1 if self.tie_word_embeddings else 2
        return tables * self.vocab_size * self.hidden_size + self.num_hidden_layers * layer + self.hidden_size

    @property
    def table_count(self) -> int:
        """The numbers that are computed once: cosines and sines of every position, and the angles meanwhile."""
        return 4 * self.max_position_embeddings * self.head_dim

    def with_positions(self, positions: int) -> "LlamaConfig":
        """The same with room for so many positions, if it has fewer."""
        return replace(self, max_position_embeddings=max(self.max_position_embeddings, positions))

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`, as transformers' LlamaConfig reads it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "rope_scaling": None,
            "dtype": "float32",
            **asdict(self),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config.json") -> "LlamaConfig":
        """Reads the content of a `config.json`, ours or transformers'. Raises ParseError naming the key."""
        values = dict(values)
        rope = values.pop("rope_parameters", None)  # where transformers 5 writes rope_theta
        if isinstance(rope, Mapping):
            if rope.get("rope_type", "default") != "default":
                raise ParseError(
                    f"{source}: rope_parameters ask for {shown(rope['rope_type'])} positions; only 'default' is built here."
                )
            values.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        for key, allowed in REQUIRED_VALUES.items():
            if key in values and values[key] not in allowed:
                raise ParseError(
                    f"{source}: {key} is {shown(values[key])}; the Llama that is built here has {allowed[0]!r}."
                )
        if isinstance(values.get("eos_token_id"), list):
            values["eos_token_id"] = next(iter(values["eos_token_id"]), None)
        if values.get("num_key_value_heads") is None and "num_attention_heads" in values:
            values["num_key_value_heads"] = values["num_attention_heads"]
        if values.get("head_dim") is None:
            values.pop("head_dim", None)
        known = {field.name for field in fields(cls)}
        missing = [name for name in SIZES if name not in values and name != "head_dim"]
        if missing:
            raise ParseError(f"{source}: {', '.join(missing)} missing. A Llama's config.json names all its sizes.")
        try:
            return cls(**{key: value for key, value in values.items() if key in known})
        except UsageError as error:
            raise ParseError(f"{source}: {error}") from error


@dataclass(frozen=True)
class Qwen3Config(LlamaConfig):
    """The keys of a Qwen3 `config.json`."""

    rope_theta: float = 1000000.0
    rms_norm_eps: float = 1e-6

    @property
    def parameter_count(self) -> int:
        return super().parameter_count + 2 * self.num_hidden_layers * self.head_dim

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config.json") -> "Qwen3Config":
        """Raises ParseError naming the key that asks for what is not built here."""
        return super().from_dict({**values, "model_type": "llama"}, source=source)  # type: ignore[return-value]


@dataclass(frozen=True)
class GPT2Config:
    """The keys of a GPT-2 `config.json`; without arguments the smallest that OpenAI published. Embeddings and head are
    tied, as in every GPT-2. What other configs call otherwise can be read under their names too, as in transformers.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        require_values(self)
        if self.n_embd % self.n_head:
            raise UsageError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}. Change one of them.")

    @property
    def parameter_count(self) -> int:
        """The numbers that the model learns."""
        width = self.n_embd
        return (self.vocab_size + self.n_positions + 2) * width + self.n_layer * (12 * width + 13) * width

    @property
    def table_count(self) -> int:
        return 0

    @property
    def max_position_embeddings(self) -> int:
        return self.n_positions

    @property
    def num_hidden_layers(self) -> int:
        return self.n_layer

    @property
    def num_key_value_heads(self) -> int:
        return self.n_head

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    def with_positions(self, positions: int) -> "GPT2Config":
        """The same with room for so many positions, if it has fewer."""
        return replace(self, n_positions=max(self.n_positions, positions))

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`, as transformers' GPT2Config reads it."""
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "tie_word_embeddings": True,
            "dtype": "float32",
            **asdict(self),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config.json") -> "GPT2Config":
        """Reads the content of a `config.json`, ours or transformers'. Raises ParseError naming the key."""
        known = {field.name for field in fields(cls)}
        try:
            config = cls(**{key: value for key, value in values.items() if key in known})
        except UsageError as error:
            raise ParseError(f"{source}: {error}") from error
        for key, only in (*GPT2_ONLY, ("n_inner", 4 * config.n_embd)):
            if values.get(key) not in (None, only):
                raise ParseError(f"{source}: {key} is {shown(values[key])}; the GPT-2 that is built here has {only!r}.")
        return config


Config = LlamaConfig | Qwen3Config | GPT2Config

#: By the model_type of a `config.json`.
CONFIGS: Mapping[str, type[Config]] = MappingProxyType({"llama": LlamaConfig, "qwen3": Qwen3Config, "gpt2": GPT2Config})


def read_config(values: Mapping[str, Any], *, source: str = "config.json") -> Config:
    """From the content of a `config.json`. Raises ParseError for another architecture."""
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIGS:
        raise ParseError(f"{source}: model_type is {shown(kind)}; built here are {', '.join(CONFIGS)}.")
    return CONFIGS[kind].from_dict(values, source=source)


# What a GPT-2's `config.json` may say besides our own keys without changing the model that we build.
GPT2_ONLY = (
    ("activation_function", "gelu_new"), ("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False),
    ("add_cross_attention", False), ("tie_word_embeddings", True),
)  # fmt: skip


def require_values(config: Config) -> None:
    """Raises UsageError for the first value of another type or outside its range in `models/ranges.py`."""
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        if name == "head_dim" and value == 0 and not isinstance(value, bool):
            continue  # it follows from the others
        if name in ranges.MODEL:
            ranges.MODEL[name].require(name, value)
        elif name.endswith("_token_id"):
            if value is not None:
                ranges.TOKEN_ID.require(name, value)
        elif not isinstance(value, bool):
            raise UsageError(f"{name} is {shown(value)}, and it must be true or false.")


SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
)  # fmt: skip
