"""A model between two formats: its config, its weights by Hugging Face's names, its tokenizer's files.

Weights are read when they are asked for, one at a time, in the dtype that the file has: a model may be larger than memory.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from torchane.errors import ParseError, UsageError, nearest, shown

Shape = tuple[int, ...]


class Weights(Mapping[str, Tensor]):
    """Tensors by name, read at each look-up. shapes: what each will have; checked when it is read."""

    def __init__(self, shapes: Mapping[str, Shape], read: Callable[[str], Tensor], source: str) -> None:
        self.shapes = dict(shapes)
        self.source = source
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise ParseError(f"{self.source} has no weight {name}{nearest(name, self.shapes)}.")
        tensor = self._read(name)
        if tuple(tensor.shape) != self.shapes[name]:
            raise ParseError(f"{self.source}: {name} is {tuple(tensor.shape)}, and its header says {self.shapes[name]}. It is damaged.")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def but(self, changed: Mapping[str, tuple[Shape, Callable[[], Tensor]]]) -> "Weights":
        """The same with some weights computed otherwise, or added: name -> shape, and what gives it."""
        shapes = {**self.shapes, **{name: shape for name, (shape, _) in changed.items()}}
        return Weights(shapes, lambda name: changed[name][1]() if name in changed else self[name], self.source)


@dataclass(frozen=True)
class Model:
    """config: the content of a `config.json`. files: what else its folder has, by name: tokenizer.json, chat_template.jinja, ...
    quantised: how the source keeps its weights, where that is not as floats; they are floats here."""

    config: Mapping[str, Any]
    weights: Weights
    files: Mapping[str, bytes] = field(default_factory=dict)
    source: str = "model"
    quantised: str | None = None

    @property
    def kind(self) -> str:
        return str(self.config.get("model_type"))

    @property
    def head_dim(self) -> int:
        return self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"]

    @property
    def kv_heads(self) -> int:
        return self.config.get("num_key_value_heads") or self.config["num_attention_heads"]

    @property
    def rope_theta(self) -> float:
        return float(self.rope.get("rope_theta") or self.config.get("rope_theta") or 10000.0)

    @property
    def rope(self) -> Mapping[str, Any]:
        """What config.json says of scaled rotary positions, in either of transformers' spellings; {} for plain ones."""
        found = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        return found if isinstance(found, Mapping) else {}

    @property
    def rope_type(self) -> str:
        return str(self.rope.get("rope_type") or self.rope.get("type") or "default")

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding."""
        return HEAD not in self.weights

    def size(self, key: str) -> int:
        """A whole number of the config. Raises ParseError."""
        value = self.config.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ParseError(f"{self.source}: config.json has {key} {shown(value)}, and it must be a whole number above 0.")
        return value


EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
#: The weights of a layer of Llama, Mistral, Qwen, by what stands after `model.layers.N.`
Q, K, V, O = (f"self_attn.{name}_proj.weight" for name in "qkvo")
GATE, UP, DOWN = (f"mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
ATTENTION_NORM, MLP_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"


def layer_name(layer: int, name: str) -> str:
    return f"model.layers.{layer}.{name}"


def llama_shapes(config: Mapping[str, Any], *, is_tied: bool) -> dict[str, Shape]:
    """Every weight of a Llama of that config."""
    width, hidden = config["hidden_size"], config["intermediate_size"]
    queries, keys = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    layer = {
        ATTENTION_NORM: (width,), Q: (queries, width), K: (keys, width), V: (keys, width), O: (width, queries),
        MLP_NORM: (width,), GATE: (hidden, width), UP: (hidden, width), DOWN: (width, hidden),
    }  # fmt: skip
    shapes = {EMBEDDING: (config["vocab_size"], width), NORM: (width,)}
    if not is_tied:
        shapes[HEAD] = shapes[EMBEDDING]
    return shapes | {layer_name(n, name): shape for n in range(config["num_hidden_layers"]) for name, shape in layer.items()}


def require_names(model: Model, known: Mapping[str, Any], target: str) -> None:
    """Raises UsageError where the model has a weight that `target` has no name for, or lacks one."""
    foreign = [name for name in model.weights if name not in known]
    missing = [name for name in known if name not in model.weights]
    if foreign or missing:
        what = f"{foreign[0]}, which it has no name for" if foreign else f"no {missing[0]}, which it wants"
        more = f" (and {len(foreign or missing) - 1} more)" if len(foreign or missing) > 1 else ""
        raise UsageError(f"{model.source} cannot be written as {target}: it has {what}{more}. Export it with --to hf.")
