"""From what the user asked for to a fine-tuning run: settings, data, model, adapter, folder, then the loop.

    Request ──► settings ─► base's files ─► tokens of the data ─► memory ─► weights ─► adapter ─► Tuner.run ─► test ─► summary
What can be refused is refused in the order of its cost: names and folders first, then the data, then memory; weights last.
"""

import math
import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from torchane import options
from torchane.cli.training import said_rules, set_threads
from torchane.errors import DataError, RunFolderError, UsageError
from torchane.finetune import memory
from torchane.finetune.adapters import adapted, add_adapter, blocks_of, first_of, free_blocks, is_adapted, load_adapter_file, trained
from torchane.finetune.batches import Batches, TrainBatches, bucket_lengths, fixed_batches, padding_share
from torchane.finetune.data import Example, Splits, load_splits
from torchane.finetune.folder import AdapterFolder
from torchane.finetune.loop import Logits, Reporter, TrainReport, Tuner, TuneResult, mean_loss
from torchane.finetune.models import Base, fingerprint, load_base, locate, outline, require_tokenizer
from torchane.finetune.optimizers import make_optimizer, make_schedule
from torchane.finetune.packing import PackedBatches, require_apart, row_length
from torchane.finetune.quantize import Rounded, quantize, recorded
from torchane.finetune.settings import LoraSettings, read_config, resolve
from torchane.finetune.trackers import Trackers, split_names
from torchane.finetune.trackers import check as check_trackers
from torchane.models.files import make_folder
from torchane.runtime import wakeful
from torchane.runtime.devices import auto_choice
from torchane.train.engine import EngineModel
from torchane.train.forward import CompiledModel
from torchane.train.interrupt import StopRequest
from torchane.train.lock import RunLock
from torchane.train.provenance import package_version, provenance

ADAPTERS = "adapters"
#: Where compiling finds that a step has no room.
ADVICE = "Use --grad-checkpoint, a smaller batch (--batch-size, with --grad-accumulation-steps) or shorter examples (--max-seq-length)."
NO_LIMIT = 1 << 30

#: The options of `torchane lora`; None where the user said nothing.
Request: Any = options.record("Request", "lora", leaving_out=["as_json"])
#: What --resume may say anew.
_RESUMABLE = ("resume", "iters", "model", "data", "train", "test", "test_batches", "report_to", "project_name", "device", "threads")

CompileModel = Callable[..., CompiledModel]


class Progress(Reporter, Protocol):
    """A reporter that also says things outside the loop. `lost`: why nobody can hear it any more."""

    @property
    def lost(self) -> Exception | None: ...

    def said(self, text: str) -> None: ...


@dataclass(frozen=True)
class Plan:
    """One call, read: what to do, with what, where. about: of the run that is resumed, None for a new one. rounded: what of the base is kept in few
    bits, once it is loaded."""

    settings: LoraSettings
    model: str
    data: Path
    adapter: Path | None  # None: the base alone is tested
    train: bool
    test: bool
    begin_with: Path | None = None
    report_to: tuple[str, ...] = ()
    project: str | None = None
    about: Mapping[str, Any] | None = None
    rounded: Rounded | None = None


def tune(request: Any, progress: Progress, compile_model: CompileModel = EngineModel) -> dict[str, Any]:
    """Trains and tests as asked, and gives the summary that `--json` prints. Raises TorchaneErrors of every kind."""
    set_threads(request.threads, progress)
    plan = _resumed(request) if request.resume is not None else _new(request)
    check_trackers(plan.report_to)
    with ExitStack() as held:
        folder = None if plan.adapter is None else AdapterFolder(plan.adapter)
        if plan.train and plan.about is None:
            assert folder is not None
            folder.check_free()
        base, splits = _prepare(plan, progress)
        return _carry_out(plan, base, splits, folder, request, progress, compile_model, held)


def _new(request: Any) -> Plan:
    said = {name: getattr(request, name) for name in (option.key for option in options.of("lora")) if hasattr(request, name)}
    given = {name: value for name, value in said.items() if name not in ("resume", "device", "threads", "config") and options.is_said(value)}
    settings, places = resolve({name: str(value) if isinstance(value, Path) else value for name, value in given.items()}, request.config)
    if not places["train"] and not places["test"]:
        raise UsageError("Say what to do: --train, --test, or both.")
    for name, what in (("model", "a folder, a file or a name on the hub"), ("data", "a folder with train.jsonl, or text")):
        if not places[name]:
            raise UsageError(f"--{name} is missing. Give {what}.")
    adapter = ADAPTERS if places["adapter_path"] is None else str(places["adapter_path"])
    if not adapter and places["train"]:
        raise UsageError("--adapter-path is empty, and training writes an adapter. Give a folder.")
    begin = places["resume_adapter_file"]
    return Plan(
        settings, str(places["model"]), Path(str(places["data"])), Path(adapter) if adapter else None, bool(places["train"]), bool(places["test"]),
        Path(str(begin)) if begin else None, tuple(split_names(places["report_to"])), places["project_name"],
    )  # fmt: skip


def run_folder(given: Mapping[str, Any]) -> Path | None:
    """Where a run of these options writes; None where nothing is trained. Raises UsageError where the config cannot be read."""
    if given["resume"] is not None:
        return Path(given["resume"])
    said = {} if given["config"] is None else read_config(given["config"])
    return Path(str(given["adapter_path"] or said.get("adapter_path") or ADAPTERS)) if given["train"] or said.get("train") else None


def _resumed(request: Any) -> Plan:
    given = [option.flag for option in options.of("lora") if hasattr(request, option.key) and option.key not in _RESUMABLE
             and options.is_said(getattr(request, option.key))]  # fmt: skip
    if given:
        raise UsageError(f"--resume continues a run as it was begun, so {', '.join(given)} cannot be given with it. {', '.join('--' + name.replace('_', '-') for name in _RESUMABLE[1:])} can.")
    about = AdapterFolder(request.resume).about()
    try:
        settings = LoraSettings.from_dict(about["settings"])
        model, data, expected = about["base"]["path"], about["data"]["path"], about["base"]["fingerprint"]
        assert isinstance(expected, str)
    except (KeyError, TypeError, AssertionError) as error:
        raise RunFolderError(f"{request.resume}: its training.json comes from another version of torchane ({error}). Begin a new run.") from error
    if request.iters is not None:
        settings = replace(settings, iters=request.iters)
    if request.test_batches is not None:
        settings = replace(settings, test_batches=request.test_batches)
    return Plan(
        settings, request.model or model, Path(request.data or data), request.resume, True, bool(request.test),
        report_to=tuple(split_names(request.report_to)), project=request.project_name, about=about,
    )  # fmt: skip


def _prepare(plan: Plan, progress: Progress) -> tuple[Base, Splits]:
    """The base and the data's tokens. No weight is loaded before data and memory are known to do."""
    path, kind = locate(plan.model)
    known = outline(path)
    config = known.config.get_text_config()
    if plan.train and plan.adapter is not None and plan.adapter.resolve() == path.resolve():
        raise UsageError(f"--adapter-path {plan.adapter} is the model's own folder, and nothing is overwritten. Choose another.")
    if plan.about is not None and fingerprint(path) != plan.about["base"]["fingerprint"]:
        raise RunFolderError(f"{path} is not the base that {plan.adapter} was begun with. Put that one back (--model names its new place).")
    needed = [name for name, wanted in (("train", plan.train), ("test", plan.test)) if wanted]
    positions = _positions(config)
    splits = load_splits(plan.data, require_tokenizer(path, known.tokenizer), plan.settings, needed, positions)
    for note in splits.notes:
        progress.said(note)
    if plan.about is not None and splits.digest() != plan.about["data"]["sha256"]:
        raise DataError(f"{plan.data} no longer gives the examples that {plan.adapter} was begun with. Restore them (--data names their new place), or begin a new run.")
    _check_ids(splits, getattr(config, "vocab_size", None), path)
    if plan.train:
        needed_bytes = memory.require_room(memory.sizes_of(known, plan.settings), plan.settings, _longest(plan, splits, positions))
        progress.said(f"Memory, estimated before anything is loaded: {needed_bytes}.")
    return replace(load_base(path), kind=kind), splits


def _positions(config: Any) -> int:
    """The most tokens that a model takes."""
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) else NO_LIMIT


def _check_ids(splits: Splits, vocab: Any, path: Path) -> None:
    """Raises DataError where the tokenizer knows more tokens than the model."""
    largest = max((int(example.ids.max()) for name in ("train", "valid", "test") for example in getattr(splits, name)), default=0)
    if isinstance(vocab, int) and largest >= vocab:
        raise DataError(f"{path}: its tokenizer gave token {largest:,} for this data, and the model has {vocab:,}. Tokenizer and model do not belong together.")


def _lengths(plan: Plan, splits: Splits, positions: int) -> tuple[int, ...]:
    """That batches are padded to: those of validation and test alone, where what is trained is packed."""
    return bucket_lengths([*([] if _is_packed(plan) else splits.train), *splits.valid, *splits.test], positions)


def _is_packed(plan: Plan) -> bool:
    return plan.train and plan.settings.packing


def _longest(plan: Plan, splits: Splits, positions: int) -> int:
    """Of the rows of any batch."""
    return max((*_lengths(plan, splits, positions), row_length(min(plan.settings.max_seq_length, positions), positions) if _is_packed(plan) else 0))


def _carry_out(
    plan: Plan, base: Base, splits: Splits, folder: AdapterFolder | None, request: Any, progress: Progress, compile_model: CompileModel, held: ExitStack
) -> dict[str, Any]:
    settings, own_dtype = plan.settings, base.model.dtype
    count = sum(param.numel() for param in base.model.parameters())
    if _is_packed(plan):
        require_apart(base.model)
    plan = _rounded(plan, base, progress)
    model = _with_adapter(plan, base)
    compiled = _compile(model, settings, request, progress, compile_model)
    progress.said(_describe(base, model, settings, compiled, request, count))
    positions = _positions(base.model.config.get_text_config())
    lengths = _lengths(plan, splits, positions)
    summary: dict[str, Any] = {"adapter": None if folder is None else str(folder.path), "model": plan.model, "device": compiled.device}
    result, stop = TuneResult(0, None, None, 0, False), None
    if plan.train:
        assert folder is not None
        batches, how = _batches(plan, splits, lengths, positions)
        progress.said(f"{len(splits.train):,} examples to train on, {len(splits.valid):,} to validate; {how}.")
        result, stop = _train(plan, base, splits, batches, lengths, model, compiled, folder, own_dtype, progress, held)
    if plan.test and not result.interrupted:
        summary |= _test(splits.test, lengths, model, compiled, settings, progress)
    return {**summary, **asdict(result), "signal": stop if result.interrupted else None}


def _batches(plan: Plan, splits: Splits, lengths: tuple[int, ...], positions: int) -> tuple[Batches, str]:
    """What is trained on, and what to say of its rows."""
    settings, examples = plan.settings, splits.train
    if not settings.packing:
        share = padding_share(examples, lengths)
        return (
            TrainBatches(examples, batch_size=settings.batch_size, lengths=lengths, seed=settings.seed),
            f"batches of {settings.batch_size} are padded to {_said(lengths)} tokens, {100 * share:.1f} % of them padding",
        )
    made = PackedBatches(examples, batch_size=settings.batch_size, length=row_length(min(settings.max_seq_length, positions), positions), seed=settings.seed)
    alone = padding_share(examples, bucket_lengths(examples, positions))
    return made, (
        f"batches of {settings.batch_size} rows of {made.length:,} tokens, {made.row_count:,} in an epoch, {100 * made.padding_share:.1f} % of them padding "
        f"({100 * alone:.1f} % without --packing)"
    )


def _rounded(plan: Plan, base: Base, progress: Progress) -> Plan:
    """Keeps the base in few bits, where the run wants it so, or the adapter that is tested was trained so; the plan that says it. Raises UsageError where they differ."""
    bits = plan.settings.quantize
    known = recorded(plan.adapter) if plan.adapter is not None and not plan.train else None
    if known is not None and bits not in (None, known.bits):
        raise UsageError(f"--quantize {bits}: {plan.adapter} was trained on its base in {known.bits} bits. Leave it out.")
    if known is not None:
        bits = known.bits
    if not bits:
        return plan
    made = quantize(base.model, bits)
    progress.said(str(made))
    return replace(plan, rounded=made)


def _with_adapter(plan: Plan, base: Base) -> nn.Module:
    """The model that is trained or tested."""
    settings = plan.settings
    if plan.train:
        full = settings.fine_tune_type == "full"
        model = free_blocks(base.model, settings.num_layers) if full else add_adapter(base.model, settings, _base_name(plan, base))
        if plan.begin_with is not None:
            load_adapter_file(model, plan.begin_with)
        return model
    base.model.requires_grad_(False)
    return base.model if plan.adapter is None else adapted(base.model, plan.adapter)


def _base_name(plan: Plan, base: Base) -> str:
    return plan.model if base.kind == "hub" else str(base.path.resolve())


def _compile(model: nn.Module, settings: LoraSettings, request: Any, progress: Progress, compile_model: CompileModel) -> CompiledModel:
    compiled = compile_model(
        Logits(model), device=request.device, recompute="all" if settings.grad_checkpoint else "none", arithmetic=settings.arithmetic,
        frozen="inputs" if settings.fine_tune_type == "full" else "reused",
    )  # fmt: skip
    if isinstance(compiled, EngineModel):
        said: set[str] = set()

        def announce(text: str) -> None:
            if not said:  # once: other lengths take other amounts
                progress.said(text[0].upper() + text[1:])
            said.add(text)

        compiled.announce, compiled.advice = announce, ADVICE
        compiled.optimizer = (settings.optimizer, memory.OPTIMIZER_STATES[settings.optimizer])
    return compiled


def _describe(base: Base, model: nn.Module, settings: LoraSettings, compiled: CompiledModel, request: Any, count: int) -> str:
    """count: of the base's parameters."""
    own = sum(param.numel() for param in trained(model).values())
    count += own if is_adapted(model) else 0
    why = f" (--device auto: {auto_choice()[1]})" if request.device == "auto" and compiled.device in ("twin", "ane") else ""
    kind = str(base.model.dtype).removeprefix("torch.")
    line = f"{base.path}: {count / 1e6:.1f} M parameters in {kind}, on device {compiled.device}{said_rules(settings.arithmetic)}{why}"
    if not own:
        return line
    blocks = len(blocks_of(base.model).modules)
    return (
        f"{line}\nTrainable parameters: {100 * own / count:.3f}% ({own / 1e6:.3f}M/{count / 1e6:.3f}M), {settings.fine_tune_type} of the last "
        f"{blocks - first_of(blocks, settings.num_layers)} of {blocks} blocks"
    )


def _train(
    plan: Plan, base: Base, splits: Splits, batches: Batches, lengths: tuple[int, ...], model: nn.Module, compiled: CompiledModel, folder: AdapterFolder,
    dtype: torch.dtype, progress: Progress, held: ExitStack,
) -> tuple[TuneResult, int | None]:  # fmt: skip
    settings = plan.settings
    schedule = make_schedule(settings.lr_schedule, settings.learning_rate)
    optimizer = make_optimizer(settings.optimizer, list(trained(model).values()), schedule(0), settings.optimizer_config)
    make_folder(folder.path)
    held.enter_context(RunLock(folder.path))
    here = {"step": 0, **provenance(), **{name: package_version(name) for name in ("transformers", "peft")}}
    about = dict(plan.about) if plan.about is not None else {
        "base": {
            "path": plan.model if base.kind == "hub" else str(base.path.resolve()), "kind": base.kind, "fingerprint": fingerprint(base.path),
            "quantized": None if plan.rounded is None else plan.rounded.to_dict(),
        },
        "data": {"path": str(plan.data.resolve()), "sha256": splits.digest()},
        "provenance": [],
    }  # fmt: skip
    watched = _Watched(progress, plan, folder.path) if plan.report_to else None
    if watched is not None:
        held.callback(watched.close)
    tuner = Tuner(model, compiled, optimizer, schedule, batches, splits.valid, lengths, settings, folder, watched or progress, dtype)
    if plan.about is None:
        folder.check_free()
        folder.create({**about, "settings": settings.to_dict(), "provenance": [here]})
    else:
        for line in tuner.resume():
            progress.said(line)
        here["step"] = tuner.state.step
        folder.write_about({**about, "settings": settings.to_dict(), "provenance": [*about["provenance"], here]})
        progress.said(_resuming(folder.path, tuner.state.step, settings.iters))
    if not is_adapted(model):
        folder.keep_tokenizer(base.tokenizer)  # a whole model is used without its base
    for line in wakeful.state():
        progress.said(line)
    held.enter_context(wakeful.awake())
    with StopRequest("\nStopping after this iteration, with a checkpoint. Ctrl-C again stops at once.\n") as stop:
        result = tuner.run(lambda: stop() or progress.lost is not None)
    if result.interrupted:
        progress.said(f"Stopped after iteration {result.iters}; everything is saved. Go on with: torchane lora --resume {folder.path}")
    else:
        progress.said(_next(plan.model, folder.path, is_adapted(model)))
    return result, stop.signal


def _resuming(path: Path, step: int, iters: int) -> str:
    if step < iters:
        return f"Resuming {path} after iteration {step} of {iters}."
    return f"{path} has made its {step} iterations, and nothing is left to train. It goes on with --iters of more than {step}."


def _next(model: str, path: Path, is_adapter: bool) -> str:
    """What to do with the result."""
    own, base = shlex.quote(str(path)), shlex.quote(model)
    if not is_adapter:
        return f"Use it: torchane generate {own} --prompt ...; take it elsewhere: torchane export {own} --to gguf"
    return f"Use it: torchane generate {base} --adapter-path {own} --prompt ...; take it elsewhere: torchane export {own} --to mlx,gguf-lora"


class _Watched:
    """A reporter that tells trackers as well."""

    def __init__(self, progress: Progress, plan: Plan, folder: Path) -> None:
        self._progress = progress
        self._trackers = Trackers(plan.report_to, plan.project, folder, plan.settings.to_dict())
        self.close = self._trackers.close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._progress, name)

    def trained(self, report: TrainReport) -> None:
        self._progress.trained(report)
        values = {"iteration": report.step, "train_loss": report.loss, "learning_rate": report.lr, "iterations_per_second": report.iterations_per_s,
                  "tokens_per_second": report.tokens_per_s, "trained_tokens": report.trained_tokens, "peak_memory": report.peak_memory_gb}  # fmt: skip
        self._trackers.log(values, report.step)

    def validated(self, step: int, loss: float, time_s: float) -> None:
        self._progress.validated(step, loss, time_s)
        self._trackers.log({"iteration": step, "val_loss": loss, "val_time": time_s}, step)


def _test(examples: list[Example], lengths: tuple[int, ...], model: nn.Module, compiled: CompiledModel, settings: LoraSettings, progress: Progress) -> dict[str, Any]:
    batches = fixed_batches(examples, batch_size=settings.batch_size, lengths=lengths, most=settings.test_batches)
    loss, tokens = mean_loss(model, compiled, batches)
    progress.said(f"Test loss {loss:.3f}, Test ppl {math.exp(min(loss, 700)):.3f}.")
    return {"test_loss": loss, "test_tokens": tokens}


def _said(lengths: tuple[int, ...]) -> str:
    return ", ".join(map(str, lengths[:-1])) + f" or {lengths[-1]}" if len(lengths) > 1 else str(lengths[0])
