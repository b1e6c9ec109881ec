"""LoRA adapters as GGUF, for llama.cpp's --lora and Ollama's ADAPTER.

    general.type "adapter", adapter.type "lora", adapter.lora.alpha      NAME.lora_a [r, in], NAME.lora_b [out, r], NAME as in a model

llama.cpp multiplies by alpha / r, with r taken from each B and one alpha for all: where modules differ, B takes the difference. B's rows of q and k
stand in the model's order (rotary.py); an alpha of 0 would mean 1. Sources: llama.cpp, convert_lora_to_gguf.py, src/llama-adapter.cpp.
"""

from pathlib import Path

from torchane.convert import rotary
from torchane.convert.adapter import EMBED_TOKENS, LM_HEAD, Adapter, LowRank, require_fits, require_no_whole
from torchane.convert.gguf import package
from torchane.convert.gguf_file import GgufFile
from torchane.convert.gguf_names import architecture_of, from_gguf, heads_turned, to_gguf, turned
from torchane.convert.model import Model
from torchane.errors import ParseError, UsageError, shown


def write(adapter: Adapter, path: Path, base: Model) -> None:
    """In float32. Raises UsageError for what llama.cpp does not load or would compute otherwise."""
    require_no_whole(adapter, "llama.cpp")
    architecture = architecture_of(base)
    if adapter.is_dora:
        raise UsageError(f"{adapter.source} is DoRA, and llama.cpp knows only LoRA. Merge it: --to gguf.")
    tied = base.is_tied or base.config.get("tie_word_embeddings")
    if LM_HEAD in adapter.modules and tied:
        raise UsageError(f"{adapter.source} has a LoRA on lm_head, which in {base.source} is the embedding itself; llama.cpp would leave it out. Merge it: --to gguf.")
    if EMBED_TOKENS in adapter.modules and tied:
        raise UsageError(f"{adapter.source} has a LoRA on embed_tokens, which in {base.source} is the head, too; llama.cpp would change both. Merge it: --to gguf.")
    require_fits(adapter, base)
    alpha = adapter.scale * adapter.rank
    if alpha == 0:
        raise UsageError(f"{adapter.source} has alpha 0, which computes nothing, and which llama.cpp takes for 1.")
    gguf = package()
    writer = gguf.GGUFWriter(None, architecture.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    if adapter.base:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, Path(adapter.base).name)
    for name, module in adapter.modules.items():
        theirs = to_gguf(f"{name}.weight", architecture)
        if theirs is None:
            raise UsageError(f"{adapter.source}: llama.cpp has no name for {name} in {architecture.name}. Merge it: --to gguf.")
        module = module.scaled(alpha / module.rank)
        b = turned(module.b.float(), heads_turned(f"{name}.weight", base, architecture))
        a = module.a.float().T if module.is_embedding else module.a.float()
        writer.add_tensor(f"{theirs}.lora_a", a.contiguous().numpy())
        writer.add_tensor(f"{theirs}.lora_b", b.contiguous().numpy())
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path, base: Model) -> Adapter:
    """For that base, whose heads say in which order rows stand. Raises ParseError."""
    file = GgufFile(path)
    architecture = architecture_of(base)
    about = {key: file.keys.get(key) for key in ("general.type", "adapter.type", "general.architecture")}
    if about != {"general.type": "adapter", "adapter.type": "lora", "general.architecture": architecture.name}:
        raise ParseError(f"{path} says {shown(about)}, and a LoRA for {base.source} says adapter, lora, {architecture.name}.")
    alpha = file.keys.get("adapter.lora.alpha")
    if not isinstance(alpha, float):
        raise ParseError(f"{path}: adapter.lora.alpha is {shown(alpha)}, and it must be a number.")
    modules: dict[str, LowRank] = {}
    for theirs, stored in file.tensors.items():
        name, _, part = theirs.rpartition(".")
        own = from_gguf(name, architecture)
        if part not in ("lora_a", "lora_b") or own is None or f"{name}.lora_a" not in file.tensors or f"{name}.lora_b" not in file.tensors or len(stored.shape) != 2:
            raise ParseError(f"{path}: {shown(theirs)} is no half of a LoRA of {architecture.name}.")
        if part == "lora_b":
            b = turned(file.read(theirs), heads_turned(own, base, architecture), rotary.to_halves)
            module = own.removesuffix(".weight")
            a = file.read(f"{name}.lora_a")
            is_embedding = module == EMBED_TOKENS
            modules[module] = LowRank(a.T.contiguous() if is_embedding else a, b, alpha / b.shape[1] if alpha else 1.0, None, is_embedding)
    adapter = Adapter(modules, base.source, 0.0, {}, str(path))
    require_fits(adapter, base)
    return adapter


def is_adapter(path: Path) -> bool:
    """Raises ParseError for what is no GGUF."""
    return GgufFile(path).keys.get("general.type") == "adapter"


