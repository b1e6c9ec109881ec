"""From what the user asked for to a run: model, device, data, folder, then the loop.

    Request ──► settings ─► model on a device ─► dataset ─► run folder ─► Trainer.run ─► summary
What can be refused is refused in the order of its cost: names and folders first, then the device, then the data.
"""

import os
import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from torchane import native, options
from torchane.data.corpus import size_of
from torchane.data.dataset import Dataset, corpus_dataset, stories_dataset, tokens_dataset
from torchane.data.tokenizer import Tokenizer
from torchane.data.tokens import token_files
from torchane.errors import DataError, UsageError
from torchane.generate.sampling import Sampling
from torchane.generate.text import continue_text
from torchane.models.build import CausalLM, build_model
from torchane.models.files import make_folder, write_text
from torchane.models.folder import TOKENIZER, load_config
from torchane.models.presets import Preset, preset
from torchane.plan.timeline import draw
from torchane.runtime import wakeful
from torchane.runtime.devices import auto_choice
from torchane.runtime.timeline import LastStep
from torchane.train.audit import audit
from torchane.train.batches import DatasetBatches, digest
from torchane.train.engine import EngineModel
from torchane.train.forward import CompiledModel
from torchane.train.interrupt import StopRequest
from torchane.train.lock import RunLock
from torchane.train.loop import Trainer
from torchane.train.provenance import provenance
from torchane.train.report import Reporter, TrainResult
from torchane.train.run_folder import RunFolder, check_about, check_free, load_tokenizer, remove_empty, reserve
from torchane.train.settings import TrainSettings
from torchane.train.step import adamw

RUNS = Path("runs")
SAMPLE_TOKENS = 200
EXACT, AUTO, NONE = "exact", "auto", "none"  # arithmetic, range control and what is computed again unless others are asked for
# A validation window costs a third of a training window, so this share adds a tenth to the time of a run.
EVAL_SHARE = 0.3
FEWEST_EVAL_WINDOWS = 8
SPARE_BYTES = 64 << 20  # what else may have come into a folder of text since


#: The options of `torchane train`; None where the user said nothing.
Request: Any = options.record("Request", "train", leaving_out=["as_json"])


class Progress(Reporter, Protocol):
    """A reporter that also says things outside the loop, and how far long work there has come. `lost`: why nobody can hear
    it any more.
    """

    lost: Exception | None

    def said(self, text: str) -> None: ...

    def working(self, what: str, done: int, total: int) -> None: ...


#: Given the model, and by their names the options that `torchane train` shares with the backend.
CompileModel = Callable[..., CompiledModel]


def train(request: Request, progress: Progress, compile_model: CompileModel = EngineModel) -> dict[str, Any]:
    """Trains as asked and gives the summary that `--json` prints. Raises TorchaneErrors of every kind."""
    set_threads(request.threads, progress)
    recorder = LastStep() if request.timeline or request.trace else None
    if recorder is not None:
        compile_model = partial(compile_model, observers=(recorder,))
    with ExitStack() as held:
        trainer, about = (_start if request.resume is None else _resume)(request, progress, compile_model, held)
        folder = trainer.folder.path
        for line in wakeful.state():
            progress.said(line)
        held.enter_context(wakeful.awake())
        with StopRequest("\nStopping after this step, with a checkpoint. Ctrl-C again stops at once.\n") as stop:
            result = trainer.run(lambda: stop() or progress.lost is not None)
        _conclude(result, folder, progress)
        if recorder is not None:
            _draw(recorder, request, trainer, about, progress)
        if request.audit:
            _audit(trainer, progress)
    summary = {"run": str(folder), "preset": about["preset"], "device": trainer.compiled.device, **asdict(result)}
    return {**summary, "signal": stop.signal if result.interrupted else None}


def _draw(recorder: LastStep, request: Request, trainer: Trainer, about: Mapping[str, Any], progress: Progress) -> None:
    """Raises RunFolderError where a file cannot be written."""
    if not recorder.last:
        progress.said("No step was made, so there is no timeline of one.")
        return
    settings = trainer.settings
    rows = settings.batch_size * settings.grad_accum_steps
    title = f"{about['preset']}, {rows} x {settings.seq_len} tokens on {trainer.compiled.device}: measured, the last step"
    draw(recorder.last, title, request.timeline, request.trace)
    progress.said(f"The last step is drawn in {' and '.join(str(path) for path in (request.timeline, request.trace) if path is not None)}.")


def set_threads(wanted: int | None, progress: Progress) -> None:
    """No more than there are CPUs: threads that wait for one another would share them, for ever where they are many."""
    if wanted is None:
        return
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if wanted > cpus:
        progress.said(f"--threads {wanted}: there are {cpus} CPUs here, and so many threads are used.")
    torch.set_num_threads(min(wanted, cpus))
    native.set_threads(min(wanted, cpus))


def _start(
    request: Request, progress: Progress, compile_model: CompileModel, held: ExitStack
) -> tuple[Trainer, Mapping[str, Any]]:
    chosen = preset(request.preset or "tiny")
    settings = choose_settings(chosen, request)
    if request.out is not None:
        check_free(request.out)
    config = chosen.config.with_positions(settings.seq_len)
    model = build_model(config, seed=settings.seed)
    arithmetic, ranges, recompute = request.arithmetic or EXACT, request.ranges or AUTO, request.recompute or NONE
    compiled = _compile(model, chosen.name, request, arithmetic, ranges, recompute, progress, compile_model)
    out = claim(request.out, chosen.name, held)  # what cannot be written shows before minutes of encoding
    tokenizer = request.tokenizer and Tokenizer.load(request.tokenizer)
    dataset = load_dataset(request.data, config.vocab_size, settings.seed, progress, tokenizer, out)
    progress.said(dataset.describe())
    batches = DatasetBatches(dataset, settings)
    about = {
        "preset": chosen.name,
        "device": compiled.device,
        "arithmetic": arithmetic,
        "ranges": ranges,
        "recompute": recompute,
        "seed": settings.seed,
        "data": {
            "path": request.data and str(request.data.resolve()),
            "size_bytes": request.data and size_of(request.data),
            "sha256": digest(dataset),
        },
        "settings": settings.to_dict(),
        "provenance": [{"step": 0, **provenance()}],
    }
    folder = RunFolder.create(out, about, model, dataset.tokenizer and dataset.tokenizer.to_text())
    progress.said(f"The run folder is {out}.")
    trainer = Trainer(
        model, compiled, adamw(model, settings, compiled), batches, settings, folder, progress, _sampler(dataset.tokenizer)
    )
    return trainer, about


def claim(out: Path | None, name: str, held: ExitStack) -> Path:
    """The folder of a new run, made and locked until `held` closes; runs/NAME-1 or the first free number where none is said.
    It is removed again if nothing was written into it. Raises UsageError, RunFolderError.
    """
    is_new = out is None or not out.exists()
    path = reserve(RUNS, name) if out is None else out
    make_folder(path)
    if is_new:
        held.callback(remove_empty, path)
    held.enter_context(RunLock(path))
    check_free(path)  # another process may have begun a run there meanwhile
    return path


def _resume(
    request: Request, progress: Progress, compile_model: CompileModel, held: ExitStack
) -> tuple[Trainer, Mapping[str, Any]]:
    assert request.resume is not None
    fixed = (
        "preset",
        "seq_len",
        "batch_size",
        "grad_accum",
        "lr",
        "seed",
        "eval_interval",
        "checkpoint_interval",
        "out",
        "tokenizer",
        "recompute",
    )
    given = [f"--{name.replace('_', '-')}" for name in fixed if getattr(request, name) is not None]
    if given:
        raise UsageError(
            f"--resume continues a run as it was begun, so {', '.join(given)} cannot be given with it. "
            "--steps, --data (where the text has moved), --device, --arithmetic, --ranges, --threads, --dump, --timeline, --trace and --json can."
        )
    RunFolder.open(request.resume)  # before a lock is put where no run is
    held.enter_context(RunLock(request.resume))
    folder = RunFolder.open(request.resume)
    about = folder.about()
    source = folder.path / "run.json"
    check_about(about, source)
    chosen, done = about["preset"], about["provenance"]
    settings = TrainSettings.from_dict(about["settings"], source=str(source))
    path, expected = about["data"]["path"], about["data"]["sha256"]
    if request.steps is not None:
        settings = replace(settings, steps=request.steps)
    model = build_model(load_config(folder.path), seed=settings.seed)
    arithmetic, ranges = request.arithmetic or about["arithmetic"], request.ranges or about["ranges"]
    compiled = _compile(model, chosen, request, arithmetic, ranges, about.get("recompute", NONE), progress, compile_model)
    path = request.data or (path and Path(path))
    _require_size(path, about["data"]["size_bytes"], folder.path)
    is_text = path is None or token_files(path) is None
    tokenizer = load_tokenizer(folder.path) if is_text or (folder.path / TOKENIZER).exists() else None
    dataset = load_dataset(path, model.config.vocab_size, settings.seed, progress, tokenizer, folder.path)
    if digest(dataset) != expected:
        raise DataError(
            f"{path or 'The story generator'} no longer gives the text that {folder.path} was trained on. "
            "Restore that text (--data names its new place), or begin a new run."
        )
    trainer = Trainer(
        model, compiled, adamw(model, settings, compiled), DatasetBatches(dataset, settings), settings, folder, progress,
        _sampler(tokenizer),
    )  # fmt: skip
    mended = trainer.resume()
    step = trainer.state.step
    about |= {"arithmetic": arithmetic, "ranges": ranges, "settings": settings.to_dict(), "provenance": [*done, {"step": step, **provenance()}]}
    folder.write_about(about)
    progress.said("\n".join([*mended, f"Resuming {folder.path} after step {step} of {settings.steps}."]))
    return trainer, about


def _require_size(path: Path | None, trained_on_bytes: int | None, run: Path) -> None:
    """Raises DataError where there is far more to read than the run was trained on, before hours of reading it."""
    if path is not None and trained_on_bytes is not None:
        found = size_of(path)
        if found > 2 * trained_on_bytes + SPARE_BYTES:
            raise DataError(
                f"{path} has {found:,} bytes, and {run} was trained on {trained_on_bytes:,} there. Give --data the text as it was, or begin "
                "a new run."
            )


def choose_settings(chosen: Preset, request: Request) -> TrainSettings:
    """The preset's own settings, and over them what the user said."""
    defaults = chosen.training
    steps = request.steps or defaults.steps
    batch_size = request.batch_size or defaults.batch_size
    grad_accum = request.grad_accum or 1
    eval_interval = request.eval_interval or min(defaults.eval_interval, steps)
    return TrainSettings(
        steps=steps,
        batch_size=batch_size,
        seq_len=request.seq_len or defaults.seq_len,
        grad_accum_steps=grad_accum,
        lr=request.lr or defaults.lr,
        warmup_steps=defaults.warmup_steps,
        weight_decay=defaults.weight_decay,
        seed=request.seed or 0,
        eval_interval=eval_interval,
        eval_windows=max(FEWEST_EVAL_WINDOWS, round(EVAL_SHARE * eval_interval * batch_size * grad_accum)),
        checkpoint_interval=request.checkpoint_interval or defaults.checkpoint_interval,
    )


def load_dataset(
    path: Path | None, vocab_size: int, seed: int, progress: Progress, tokenizer: Tokenizer | None = None, folder: Path | None = None
) -> Dataset:
    """The text or tokens below path, or our stories. Tokens of a text lie in unnamed files of `folder`. Raises DataError."""
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"The tokenizer has {tokenizer.vocab_size:,} tokens and the model {vocab_size:,}. Choose a --preset with as many (gpt2 "
            "has 50,257, qwen3-0.6b 151,936), or a smaller tokenizer."
        )
    if path is None:
        return stories_dataset(vocab_size, seed, tokenizer=tokenizer, progress=progress.working)
    files = token_files(path)
    if files is not None:
        return tokens_dataset(files, vocab_size, tokenizer)
    return corpus_dataset(path, vocab_size, tokenizer=tokenizer, folder=folder, progress=progress.working)


def _compile(
    model: CausalLM,
    name: str,
    request: Request,
    arithmetic: str,
    ranges: str,
    recompute: str,
    progress: Progress,
    compile_model: CompileModel,
) -> CompiledModel:
    said = {name: getattr(request, name) for name in options.shared("train", "backend")}
    compiled = compile_model(model, **{**said, "arithmetic": arithmetic, "ranges": ranges, "recompute": recompute})
    if isinstance(compiled, EngineModel):
        compiled.announce = lambda text: progress.said(text[0].upper() + text[1:])
    size = sum(param.numel() for param in model.parameters()) / 1e6
    why = f" (--device auto: {auto_choice()[1]})" if request.device == "auto" and compiled.device in ("twin", "ane") else ""
    progress.said(f"{name}: {size:.1f} M parameters, on device {compiled.device}{said_rules(arithmetic)}{why}")
    return compiled


def said_rules(arithmetic: str) -> str:
    """What is not `exact`, after the device's name."""
    return {"engine": " in the engine's arithmetic", "fast": " with products of bf16 numbers"}.get(arithmetic, "")


def _sampler(tokenizer: Tokenizer | None) -> Callable[[CausalLM], str] | None:
    if tokenizer is None:
        return None

    def sample(model: CausalLM) -> str:
        return "".join(continue_text(model, tokenizer, "", Sampling(max_tokens=SAMPLE_TOKENS)))

    return sample


def _audit(trainer: Trainer, progress: Progress) -> None:
    """The next training batch in the engine's arithmetic: said as a table, kept in the run folder."""
    report = audit(trainer.model, trainer.batches.train(trainer.state.step))
    folder = trainer.folder.path
    write_text(folder / "audit.json", report.to_json())
    write_text(folder / "audit.svg", report.to_svg())
    progress.said(f"\n{report.table()}\n\nAll of it: {folder / 'audit.json'}; the picture: {folder / 'audit.svg'}")


def _conclude(result: TrainResult, folder: Path, progress: Progress) -> None:
    if result.interrupted:
        progress.said(
            f"Stopped after step {result.steps}; everything is saved. Go on with: torchane train --resume {shlex.quote(str(folder))}"
        )
        return
    floor = (
        ""
        if result.floor is None or result.bits_per_byte is None
        else f" ({result.bits_per_byte / result.floor:.2f} times the floor of {result.floor:.3f})"
    )
    quality = f"validation loss {result.valid_loss:.3f}" if result.bits_per_byte is None else f"{result.bits_per_byte:.3f} bits per byte"
    speed = "" if result.tokens_per_s is None else f", {result.tokens_per_s:,.0f} tokens/s"
    progress.said(
        f"Trained {result.steps:,} step{'' if result.steps == 1 else 's'}: {quality}{floor}{speed}.\n"
        f"Now let it write: torchane generate {shlex.quote(str(folder))}"
    )
