"""Every option, in one table: from it come the flags of every command, `Request`, and the options of the backend.

    TABLE ──► of("train") ──► cli/options.py: click flags        record("Request", "train") ──► cli/training.py
          └─► of("backend") ──► torch.compile(options={...})     NUMBERS: the ranges of numbers, settings of run.json included

An option is declared once with its type, default, help, allowed values, and the commands that take it. Two commands whose option of
one name means something else have a row each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from torchane.errors import UsageError, nearest, shown

BILLION = 10**9


@dataclass(frozen=True)
class Range:
    """Numbers from least to most, both allowed; `above`: the least itself is not. whole: Python ints; else finite floats."""

    least: float
    most: float
    whole: bool = True
    above: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        least = f"above {self.least:,}" if self.above else f"from {self.least:,}"
        return f"{kind} {least} to {self.most:,}"

    def holds(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return (value > self.least if self.above else value >= self.least) and value <= self.most

    def require(self, name: str, value: Any) -> None:
        """Raises UsageError, which names both."""
        if not self.holds(value):
            raise UsageError(f"{name} is {shown(value)}, and it must be {self}.")


def real(least: float, most: float, *, above: bool = False) -> Range:
    return Range(least, most, whole=False, above=above)


#: The range of every number among the options and the settings of a run.json. Ends are far beyond what makes sense and below what
#: would fail in a way that nobody could read: an overflow inside torch, memory for numbers that do not exist.
NUMBERS: Mapping[str, Range] = MappingProxyType({
    "steps": Range(1, BILLION),
    "batch_size": Range(1, 1 << 20),
    "grad_accum": Range(1, 1 << 20),
    "grad_accum_steps": Range(1, 1 << 20),
    "seq_len": Range(1, 1 << 20),
    "lr": real(0, 1000, above=True),
    "seed": Range(0, (1 << 63) - 1),  # torch takes no more
    "eval_interval": Range(1, BILLION),
    "eval_windows": Range(1, 1 << 60),  # grows with the three before
    "checkpoint_interval": Range(1, BILLION),
    "warmup_steps": Range(0, BILLION),
    "weight_decay": real(0, 1000),
    "beta1": real(0, 1 - 2**-30),
    "beta2": real(0, 1 - 2**-30),
    "eps": real(0, 1, above=True),
    "grad_clip": real(0, 1e30, above=True),
    "final_lr_ratio": real(0, 1),
    "threads": Range(1, 1024),
    "max_tokens": Range(1, BILLION),
    "temperature": real(0, 1000),
    "top_k": Range(0, BILLION),
    "limit": Range(1, BILLION),
    "num_shots": Range(0, 1 << 20),
    "top_p": real(0, 1, above=True),
    "min_p": real(0, 1),
    "repetition_penalty": real(0, 1000, above=True),
    "warmup": Range(1, 1_000_000),
    "rounds": Range(1, 1_000_000),
    "repeats": Range(1, 1_000_000),
    "depth": Range(1, 256),
    "lora": Range(1, 1 << 16),
    "memory_gb": real(1, 1 << 20),
    "num_layers": Range(-1, 1 << 16),
    "iters": Range(1, BILLION),
    "val_batches": Range(-1, BILLION),
    "test_batches": Range(-1, BILLION),
    "learning_rate": real(0, 1000),
    "steps_per_report": Range(1, BILLION),
    "steps_per_eval": Range(1, BILLION),
    "grad_accumulation_steps": Range(1, 1 << 20),
    "save_every": Range(1, BILLION),
    "max_seq_length": Range(2, 1 << 20),
})  # fmt: skip

#: number: of the Range of its name. choice: one of `allowed`. preset: one of models/presets.py. path: `allowed` says of what ("file",
#: "new file", "folder", or anything). device: a name, or an open Device. names: several, joined by commas. objects: a list of them.
Kind = Literal["number", "choice", "preset", "text", "path", "flag", "device", "names", "function", "objects"]


@dataclass(frozen=True)
class Option:
    """One option of one or more commands. name: as in Python, and with dashes as a flag. default: None where the command decides.
    dest: what the command calls it, if otherwise. least: where a command wants more than the least of the range. short: another flag, -x."""

    name: str
    commands: tuple[str, ...]
    kind: Kind
    help: str = ""
    default: Any = None
    allowed: tuple[str, ...] = ()
    metavar: str | None = None
    dest: str | None = None
    multiple: bool = False
    show_default: bool = False
    least: int | None = None
    short: str | None = None

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def key(self) -> str:
        return self.dest or self.name

    @property
    def range(self) -> Range:
        """Of a number. Raises KeyError where NUMBERS has none of its name."""
        found = NUMBERS[self.name]
        return found if self.least is None else Range(self.least, found.most, found.whole, found.above)

    def require(self, value: Any, where: str) -> None:
        """Raises UsageError, which begins with `where`, for a value that the option does not take. None is nothing said."""
        if value is None and self.default is None:
            return
        wrong = f"{where}: {self.name} is {shown(value)}"
        if self.kind == "choice" and value not in self.allowed:
            near = nearest(value, self.allowed) if isinstance(value, str) else ""
            raise UsageError(f"{wrong}{near}. Known: {', '.join(self.allowed)}.")
        if self.kind == "device" and not isinstance(value, str) and not hasattr(value, "load"):
            raise UsageError(f'{wrong}. It is "auto", "twin", "ane", or an open Device.')
        if self.kind == "function" and not callable(value):
            raise UsageError(f"{wrong}, and takes a function.")
        if self.kind == "text" and not isinstance(value, str):
            raise UsageError(f"{wrong}, and takes a name.")
        if self.kind == "objects" and not isinstance(value, tuple | list):
            raise UsageError(f"{where}: {self.name} is {shown(value)}, and it must be a list.")
        if self.kind == "names" and not isinstance(value, str | tuple | list):
            raise UsageError(f"{wrong}, and takes names, joined by commas.")
        if self.kind == "path" and not isinstance(value, str | PathLike):
            raise UsageError(f"{wrong}, and takes a folder.")


#: Of the backend and of every command that runs programs.
DEVICES = ("auto", "twin", "ane")
ARITHMETICS = ("exact", "fast", "engine")
_OF_THE_TWIN = "Of the twin. exact: exact products, fp32 sums; fast: bf16 products, where the CPU has them; engine: the chip's own rules."
RANGES = ("auto", "on", "off")
PRECISIONS = ("auto", "fp16")
RECOMPUTE = ("none", "half", "all")
_RECOMPUTED = ("What the backward of each equal layer computes again instead of reading it from memory: none, half (what is cheap to make again), all (a layer "
               "keeps its inputs only)")  # fmt: skip
FROZEN = ("inputs", "reused", "fp16", "int8", "int4")
SWITCH = ("on", "off")
GGUF_TYPES = ("f16", "bf16", "q8_0")
_MEASURED = ("twin", "ane")
OWN_VARIANTS = ("twin", "twin-fast", "ane")
PYTORCH_VARIANTS = ("eager-fp32", "eager-bf16", "inductor-fp32", "inductor-bf16", "inductor-max-fp32", "inductor-max-bf16")
_BENCHES = ("bench train-step", "bench first-step")
_ENGINE_BENCHES = ("bench layer", "bench peak")
_JSON_LAST_LINE = "The last line on standard output is one JSON object."


def _train() -> tuple[Option, ...]:
    here = ("train",)
    return (
        Option("preset", here, "preset", "The model. {presets}  [default: tiny]"),
        Option("data", here, "path", "A file or folder of text or source code, .jsonl or notebooks among them, or uint16 tokens (.bin) of nanoGPT or "
               "llama2.c. Without it: stories made up here, whose entropy is known.", metavar="PATH"),
        Option("tokenizer", here, "path", "A byte-level tokenizer.json.  [default: one is trained]", metavar="FILE"),
        Option("steps", here, "number", "Optimizer steps, in all.  [default: the preset's]"),
        Option("seq_len", here, "number", "Tokens in one window.  [default: the preset's]"),
        Option("batch_size", here, "number", "Windows in one micro-step.  [default: the preset's]"),
        Option("grad_accum", here, "number", "Micro-steps in one step, merged into one batch.  [default: 1]"),
        Option("lr", here, "number", "Peak learning rate.  [default: the preset's]"),
        Option("seed", here, "number", "Fixes initial weights, batches and samples.  [default: 0]"),
        Option("eval_interval", here, "number", "Validate every so often.", metavar="STEPS"),
        Option("checkpoint_interval", here, "number", "Save every so often.", metavar="STEPS"),
        Option("device", here, "choice", "ane: Apple's Neural Engine; twin: the same programs on the CPU; auto: the engine where torchane doctor, or a quick "
               "look, has seen it compute.", "auto", DEVICES, show_default=True),
        Option("arithmetic", here, "choice", f"{_OF_THE_TWIN}  [default: exact]", allowed=ARITHMETICS),
        Option("ranges", here, "choice", "Powers of two that keep every product inside the engine's window. auto: for an engine and its arithmetic.  "
               "[default: auto]", allowed=RANGES),
        Option("recompute", here, "choice", f"{_RECOMPUTED}. --resume goes on as it was begun.  [default: none]", allowed=RECOMPUTE),
        Option("timeline", here, "path", "At the end, draw what device and host did in the last step.", allowed=("new file",), metavar="OUT.svg"),
        Option("trace", here, "path", "The same as trace events, which Perfetto opens.", allowed=("new file",), metavar="OUT.json"),
        Option("audit", here, "flag", "At the end, show what the engine's arithmetic does to one batch; audit.json, audit.svg."),
        Option("threads", here, "number", "CPU threads. The numbers do not depend on it."),
        Option("out", here, "path", "The run folder.  [default: runs/PRESET-N]", metavar="DIR"),
        Option("resume", here, "path", "Continue this run folder where it was saved.", allowed=("folder",), metavar="RUN"),
        Option("dump", here, "path", "Write every engine program and plan there.", metavar="DIR"),
        Option("json", here, "flag", _JSON_LAST_LINE, dest="as_json"),
    )  # fmt: skip


def _lora() -> tuple[Option, ...]:
    here = ("lora",)
    return (
        Option("model", here, "text", "The model: a Hugging Face folder, a run folder, a llama2.c .bin, a .gguf, or a name on the hub.", metavar="PATH"),
        Option("train", here, "flag", "Train."),
        Option("data", here, "path", "A folder with train.jsonl and, if there, valid.jsonl and test.jsonl; or a file or folder of text.", metavar="PATH"),
        Option("fine_tune_type", here, "choice", "What is trained.  [default: lora]", allowed=("lora", "dora", "full")),
        Option("optimizer", here, "choice", "torch's.  [default: adam]", allowed=("adam", "adamw", "muon", "sgd", "adafactor")),
        Option("mask_prompt", here, "flag", "Only the last message, or the completion, is learned."),
        Option("packing", here, "flag", "Several examples in one row of up to --max-seq-length tokens, each as if it were alone."),
        Option("num_layers", here, "number", "How many of the last blocks; -1: all.  [default: 16]"),
        Option("batch_size", here, "number", "Examples in a batch.  [default: 4]"),
        Option("iters", here, "number", "Batches, in all.  [default: 1000]"),
        Option("val_batches", here, "number", "Batches of a validation; -1: all.  [default: 25]"),
        Option("learning_rate", here, "number", "[default: 1e-5]"),
        Option("steps_per_report", here, "number", "Iterations between reports of the loss.  [default: 10]"),
        Option("steps_per_eval", here, "number", "Iterations between validations.  [default: 200]"),
        Option("grad_accumulation_steps", here, "number", "Iterations whose gradients make one update.  [default: 1]"),
        Option("resume_adapter_file", here, "path", "Begin with the weights of this adapter_model.safetensors.", allowed=("new file",), metavar="FILE"),
        Option("adapter_path", here, "text", "Where the adapter is written, and read by --test alone.  [default: adapters]", metavar="DIR"),
        Option("save_every", here, "number", "Iterations between checkpoints.  [default: 100]"),
        Option("test", here, "flag", "Measure the loss on the test examples, after training or alone."),
        Option("test_batches", here, "number", "Batches of the test; -1: all.  [default: 500]"),
        Option("max_seq_length", here, "number", "Longer examples lose their ends.  [default: 2048]"),
        Option("config", here, "path", "A YAML file of these settings, lora_parameters (rank, scale, dropout, keys) and lr_schedule; flags win.",
               allowed=("new file",), metavar="FILE", short="-c"),
        Option("grad_checkpoint", here, "flag", "Compute each block again in the backward instead of keeping it: less memory, more time."),
        Option("quantize", here, "choice", "Keep the linear layers of the base in so many bits, rounded (QLoRA). Not with full.", allowed=("4", "8")),
        Option("arithmetic", here, "choice", f"{_OF_THE_TWIN}  [default: exact]", allowed=ARITHMETICS),
        Option("report_to", here, "text", "wandb, swanlab, or both, joined by a comma.", metavar="NAME"),
        Option("project_name", here, "text", "The project of --report-to.", metavar="NAME"),
        Option("seed", here, "number", "Fixes the adapter's first numbers, batches and dropout.  [default: 0]"),
        Option("resume", here, "path", "Continue the run in this adapter folder, with the same bits as if it had never stopped.", allowed=("folder",), metavar="DIR"),
        Option("device", here, "choice", "ane: Apple's Neural Engine; twin: the same programs on the CPU; auto: the engine where torchane doctor, or a quick "
               "look, has seen it compute.", "auto", DEVICES, show_default=True),
        Option("threads", here, "number", "CPU threads. The numbers do not depend on it."),
        Option("json", here, "flag", _JSON_LAST_LINE, dest="as_json"),
    )  # fmt: skip


def _backend() -> tuple[Option, ...]:
    here = ("backend",)
    return (
        Option("device", here, "device", 'The engine where there is one, else the twin ("auto"); "twin", "ane", or an open Device.', "auto", DEVICES),
        Option("chip", ("backend", "explain"), "text", "The target whose rules every program must meet, and whose predicted time decides how a step is cut: "
               "m1, m4max, ... portable: what all take, a program for each layer.", "portable", show_default=True),
        Option("dump", here, "path", "A folder that receives every program and plan."),
        Option("arithmetic", here, "choice", 'Of the twin: "exact"; "fast", bf16 products where the CPU has them; or "engine", the chip\'s own.', "exact",
               ARITHMETICS),
        Option("ranges", here, "choice", '"on" keeps every product inside the engine\'s window by powers of two per tensor, "off" leaves it to the loss '
               'scale alone, "auto" is on for an engine and for its arithmetic.', "auto", RANGES),
        Option("precision", here, "choice", '"auto" leaves to PyTorch, in float32, what fp16 is not enough for and autocast would keep in float32; '
               '"fp16" puts into programs whatever has a rule.', "auto", PRECISIONS),
        Option("cache", ("backend", "plan"), "choice", '"on" keeps lowered programs, and the plan of a --preset, on disk for other processes (`torchane cache`).',
               "on", SWITCH),
        Option("buckets", here, "sizes", '"auto": where a size varies, a program serves a range of sizes; "off": one for each size; or the sizes that '
               "programs have, as in (64, 128, 512).", "auto"),
        Option("progress", here, "choice", '"on" says on standard error how far compiling is, where it takes more than five seconds.', "on", SWITCH),
        Option("recompute", here, "choice", f"{_RECOMPUTED}.", "none", RECOMPUTE, show_default=True),
        Option("frozen", ("backend", "plan"), "choice", 'What parameters that want no gradient are to programs. inputs: staged by every forward, as trained ones are; '
               "reused: staged before each program that reads them, into surfaces that the next programs take over, and again for the backward: memory for a layer's, not "
               "for all; fp16, int8, int4: constants, in as many bits (m4: int8; m5: both), with programs for each layer that are made anew where a checksum says that "
               "the numbers have changed.", "inputs", FROZEN, show_default=True),
        Option("partition", here, "function", "What cuts a graph into programs: a Partitioner (torchane/plan/partition.py). Nothing said: for a chip the one that "
               "is predicted to take the least time (torchane/plan/search.py), for `portable` a program for each layer."),
        Option("observers", here, "objects", "Observers (torchane/runtime/observers.py): called before and after each step of every plan.", ()),
        Option("without", ("backend", "explain"), "names", "Passes to leave out, for debugging; refused with the reason where programs are illegal "
               "without one.", "", metavar="PASS,PASS"),
    )  # fmt: skip


def _bench() -> tuple[Option, ...]:
    step, first = (_BENCHES[0],), (_BENCHES[1],)
    return (
        Option("preset", step, "preset", "The model.", "tiny", show_default=True),
        Option("preset", first, "preset", "The model; may be repeated.  [default: tiny]", dest="presets", multiple=True),
        Option("device", step, "choice", "What to measure.", "twin", _MEASURED, show_default=True),
        Option("device", first, "choice", "What to compile for.", "twin", _MEASURED, show_default=True),
        Option("variant", step, "choice", "Only this one; may be repeated. twin-fast: bf16 products; inductor: torch.compile, max: its max-autotune.  [default: "
               "the device, with twin also twin-fast where the CPU has it, and all of PyTorch's]", allowed=(*OWN_VARIANTS, *PYTORCH_VARIANTS), dest="variants", multiple=True),
        Option("batch_size", _BENCHES, "number", "[default: the preset's]"),
        Option("seq_len", _BENCHES, "number", "[default: the preset's]"),
        Option("threads", step, "number", "CPU threads.  [default: all]"),
        Option("threads", first, "number", "CPU threads.", 2, show_default=True),
        Option("warmup", step, "number", "Steps before the first timed one.", 3, show_default=True),
        Option("rounds", step, "number", "Turns through all variants.", 5, show_default=True),
        Option("steps", step, "number", "Timed steps a turn.", 4, show_default=True),
        Option("out", step, "path", "Keep the report in this .json file, or in this folder under a name that says preset and sizes.", metavar="PATH"),
        Option("parts", step, "flag", "Also show where the twin's time goes (products, attention, norms, element-wise, staging, loss, optimizer, Python), and the "
               "least that each part could take on this machine."),
        Option("json", (*_BENCHES, *_ENGINE_BENCHES), "flag", _JSON_LAST_LINE, dest="as_json"),
        Option("shape", ("bench layer",), "text", "Of the layer and its input.", "768,512", show_default=True, metavar="DIM,SEQ"),
        Option("device", _ENGINE_BENCHES, "choice", "What to measure.", "twin", _MEASURED, show_default=True),
        Option("sizes", ("bench peak",), "text", "Of the square matrices.", "512,1024,2048", show_default=True, metavar="N,N"),
        Option("depth", ("bench peak",), "number", "Products in a stack.", 8, show_default=True),
        Option("repeats", _ENGINE_BENCHES, "number", "Timed runs, after two that are not.", 10, show_default=True),
        Option("no_watts", _ENGINE_BENCHES, "flag", "Read no meters, which takes 6 seconds for each row."),
    )  # fmt: skip


def _generate() -> tuple[Option, ...]:
    here, both = ("generate",), ("generate", "chat")
    return (
        Option("model", (*both, "eval"), "text", "The same as MODEL, as mlx-lm has it.", metavar="MODEL", dest="named"),
        Option("prompt", here, "text", "The text to continue, or - for standard input; may be repeated. Without it the model begins a text of its own.",
               dest="prompts", multiple=True, short="-p"),
        Option("adapter_path", both, "path", "An adapter on the model: a folder of PEFT or mlx-lm, a LoRA as .gguf.", metavar="DIR"),
        Option("system_prompt", both, "text", "What a conversation begins with, for a model with a chat template.", metavar="TEXT"),
        Option("ignore_chat_template", here, "flag", "Continue the prompt as it is, though the model has a chat template."),
        Option("prefill_response", here, "text", "How the answer begins, for a model with a chat template.", metavar="TEXT"),
        Option("chat_template_config", both, "text", "JSON for the chat template, {\"enable_thinking\": false}.", metavar="JSON"),
        Option("extra_eos_token", both, "text", "A token that ends the text, too; may be repeated.", multiple=True, metavar="TOKEN"),
        Option("max_tokens", both, "number", "Stop after so many tokens.", 200, show_default=True, short="-m"),
        Option("temperature", both, "number", "Below 1 the likely gets likelier; 0 always takes the likeliest token.", 0.8, show_default=True, short="--temp"),
        Option("top_p", both, "number", "Draw from the likeliest tokens that together have this probability.", 1.0, show_default=True),
        Option("top_k", both, "number", "Draw from the K likeliest tokens only; 0: from all."),
        Option("min_p", both, "number", "Draw from tokens that have at least this share of the likeliest one's probability.", 0.0, show_default=True),
        Option("repetition_penalty", both, "number", "Above 1: tokens that were there get less likely.", 1.0, show_default=True),
        Option("stop", both, "text", "End before this text; may be repeated.", multiple=True, metavar="TEXT"),
        Option("seed", both, "number", "The same seed draws the same text.", 0, show_default=True),
        Option("device", both, "choice", "host: PyTorch; twin, ane: Neural Engine programs on the CPU or the engine; auto: the engine where torchane doctor has seen it "
               "compute, else host, whose first text waits for no compilation.", "auto", ("auto", "host", "twin", "ane"), show_default=True),
        Option("arithmetic", (*both, "eval"), "choice", _OF_THE_TWIN, "exact", ARITHMETICS, show_default=True),
        Option("json", here, "flag", "One JSON object on standard output instead of the text.", dest="as_json"),
    )  # fmt: skip


def _eval() -> tuple[Option, ...]:
    here = ("eval",)
    return (
        Option("data", here, "path", "A text, or a .jsonl file.", allowed=("new file",), metavar="FILE"),
        Option("tasks", here, "text", "Instead of --data: tasks of lm-evaluation-harness, or .yaml files of your own, joined by commas. Needs: pip install lm-eval", metavar="TASK,TASK"),
        Option("adapter_path", here, "path", "An adapter on the model: a folder of PEFT or mlx-lm, a LoRA as .gguf.", metavar="DIR"),
        Option("num_shots", here, "number", "Of --tasks: solved examples before each question.  [default: the task's]", metavar="N"),
        Option("apply_chat_template", here, "flag", "Of --tasks: questions are messages to a model with a chat template."),
        Option("limit", here, "number", "Only so many lines, or of each task.", metavar="N"),
        Option("batch_size", here, "number", "Windows, prompts or choices at once.", 8, show_default=True),
        Option("seq_len", here, "number", "Tokens of a window of text.  [default: the model's positions, at most 1024]", least=2),
        Option("max_tokens", here, "number", "Of an answer that is written.", 200, show_default=True),
        Option("device", here, "choice", "host: PyTorch; twin, ane: Neural Engine programs; auto: the engine where torchane doctor has seen it compute, else host.",
               "auto", ("auto", "host", "twin", "ane"), show_default=True),
        Option("json", here, "flag", _JSON_LAST_LINE, dest="as_json"),
    )  # fmt: skip


def _convert() -> tuple[Option, ...]:
    export, fuse, bring = ("export",), ("fuse",), ("import",)
    return (
        Option("to", export, "text", "The formats, joined by commas: hf, peft, mlx, gguf, gguf-lora, llama2c.", metavar="FORMAT,FORMAT"),
        Option("gguf_type", export, "choice", "What a GGUF keeps its matrices in.", "f16", GGUF_TYPES, show_default=True),
        Option("model", (*export, *fuse, *bring), "text", "The base of an adapter: a folder, a file, a run, or a name on the hub.  [default: the one that the adapter names]",
               metavar="BASE"),
        Option("tokenizer", (*export, *bring), "path", "The tokenizer.bin of a llama2.c model.  [default: the one beside it]", metavar="FILE"),
        Option("out", export, "path", "The folder that gets one folder for each format.  [default: NAME-export]", metavar="DIR"),
        Option("out", bring, "path", "The new folder.  [default: NAME-imported]", metavar="DIR"),
        Option("adapter_path", fuse, "path", "The adapter's folder or file.", Path("adapters"), show_default=True, metavar="DIR"),
        Option("save_path", fuse, "path", "The new folder.", Path("fused_model"), show_default=True, metavar="DIR"),
        Option("dequantize", fuse, "flag", "Take a base that is quantised (GGUF in Q8_0, llama2.c v2), and write it as floats."),
        Option("json", (*export, *fuse, *bring), "flag", _JSON_LAST_LINE, dest="as_json"),
    )  # fmt: skip


def _explain() -> tuple[Option, ...]:
    here = ("explain",)
    return (
        Option("batch_size", here, "number", "", 1, show_default=True),
        Option("seq_len", here, "number", "", 128, show_default=True, least=2),
        Option("json", here, "flag", "One JSON object with every ATen call instead of the table.", dest="as_json"),
    )  # fmt: skip


def _inspect() -> tuple[Option, ...]:
    here = ("inspect",)
    return (
        Option("ops", here, "flag", "List every op with its result and its multiply-adds.", dest="with_ops"),
        Option("weights", here, "flag", "List every constant with its size and place.", dest="with_weights"),
        Option("chip", here, "text", "Say what this chip takes, refuses, and what reports disagree on, each with its sources (portable, m1, ...).",
               metavar="NAME"),
        Option("diff", here, "path", "Say what the program in OTHER does differently.", dest="other", metavar="OTHER"),
        Option("graph", here, "path", "Draw the program; what --chip refuses is red. Needs: pip install 'torchane[graph]'", allowed=("new file",),
               metavar="OUT.svg"),
        Option("function", here, "text", "Which function --graph draws; if not said the only one, the default one, or main.", metavar="NAME"),
        Option("json", here, "flag", "One JSON object on standard output instead of tables.", dest="as_json"),
    )  # fmt: skip


def _plan() -> tuple[Option, ...]:
    here = ("plan",)
    return (
        Option("chip", here, "text", "The chip to predict for: m1, m4max, m5pro, ...", metavar="NAME"),
        Option("compare", here, "text", "Several chips, a line each, instead of --chip.", metavar="NAME,NAME"),
        Option("function", here, "text", "Which function of FILE; main, or the only one, if not said.", metavar="NAME"),
        Option("preset", here, "text", "A training step of this model (tiny, stories110m, ... or a folder with a config.json) as torchane runs it today.",
               metavar="NAME"),
        Option("batch_size", here, "number", "Of --preset: sequences in a step.  [default: 1]"),
        Option("seq_len", here, "number", "Of --preset: tokens in a sequence.  [default: 256]", least=2),
        Option("grad_accum", here, "number", "Of --preset: micro-steps in a step, merged into one batch as `torchane train` does, and priced beside calls of "
               "loss.backward() for each.  [default: 1]"),
        Option("recompute", here, "choice", f"{_RECOMPUTED}; auto: of these the one that is predicted to take the least time, and fits into --memory-gb.", "none",
               (*RECOMPUTE, "auto"), show_default=True),
        Option("timeline", here, "path", "Of --preset: draw what engine and host do over a step.", allowed=("new file",), metavar="OUT.svg"),
        Option("trace", here, "path", "Of --preset: the same as trace events, which Perfetto opens.", allowed=("new file",), metavar="OUT.json"),
        Option("schedule", here, "text", "A schedule that others published: maderix-static, maderix-dynamic, pull-request-22, slv.", metavar="NAME"),
        Option("lora", here, "number", "Of --preset: train adapters of this rank beside every linear layer of its blocks and freeze the rest.",
               metavar="RANK"),
        Option("memory_gb", here, "number", "Of --preset: refuse a step that needs more memory than such a Mac has, and name what would fit."),
        Option("measured", here, "path", "Measurements of one machine, which take the place of the fitted constants.  [default: those that torchane doctor left of this machine]", metavar="FILE.json"),
        Option("anyway", here, "flag", "Price FILE on a chip that refuses it, as --compare does."),
        Option("json", here, "flag", "One JSON object as the last line.", dest="as_json"),
    )  # fmt: skip


def _doctor_cache_run() -> tuple[Option, ...]:
    doctor, cache, run = ("doctor",), ("cache",), ("run",)
    return (
        Option("quick", doctor, "flag", "About 20 seconds: the route, three ops, a dispatch's time. Keeps no record."),
        Option("report", doctor, "path", "Write the report there.  [default: torchane-doctor.json]", allowed=("new file",), metavar="FILE"),
        Option("compare", doctor, "path", "Show where another machine's report differs.", metavar="OTHER.json"),
        Option("json", doctor, "flag", "The report as one JSON object on the last line, and no file.", dest="as_json"),
        Option("clear", cache, "flag", "Remove every program that no process is using."),
        Option("json", cache, "flag", "One JSON object as the last line.", dest="as_json"),
        Option("input", run, "text", "An input's value. The name may be left out where the program has one input. Repeatable.", dest="inputs",
               multiple=True, metavar="[NAME=]X.npy"),
        Option("output", run, "text", "Where to write an output. The name may be left out where there is one output. Repeatable.", dest="outputs",
               multiple=True, metavar="[NAME=]Y.npy"),
        Option("function", run, "text", "Which function; if not said the only one, the default one, or main.", metavar="NAME"),
        Option("arithmetic", run, "choice", "exact: each result is rounded once. fast: the factors of products are rounded to bf16 before. engine: as the "
               "chip is thought to compute. ideal: float64 from end to end, all in NumPy.", "exact", ("exact", "ideal", "engine", "fast"), show_default=True),
        Option("json", run, "flag", "One JSON object on standard output instead of lines.", dest="as_json"),
    )  # fmt: skip


TABLE: tuple[Option, ...] = (
    *_train(), *_lora(), *_generate(), *_eval(), *_convert(), *_explain(), *_bench(), *_inspect(), *_plan(), *_doctor_cache_run(), *_backend(),
)  # fmt: skip


def of(command: str) -> tuple[Option, ...]:
    """The options of a command of `torchane`, or of the "backend" of torch.compile, in the order in which --help lists them."""
    return tuple(option for option in TABLE if command in option.commands)


def shared(one: str, other: str) -> tuple[str, ...]:
    """The names of the options that two commands both take."""
    return tuple(option.name for option in of(one) if option.name in {each.name for each in of(other)})


def is_said(value: Any) -> bool:
    """Whether the value of an option was given. A number of 0 was, although Python holds it equal to False."""
    return value is not None and value is not False


def parse(command: str, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Every option of a command with its value: what was given, else its default.
    Raises UsageError that begins with `where`, for an unknown name, with the nearest one, and for a value that an option does not take."""
    known = {option.key: option for option in of(command)}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UsageError(f"{where}: unknown option {', '.join(unknown)}{nearest(unknown[0], known)}. Known: {', '.join(known)}.")
    for name, value in given.items():
        known[name].require(value, where)
    return {name: given.get(name, option.default) for name, option in known.items()}


_TYPES: Mapping[str, Any] = {"flag": bool, "path": Path, "choice": str, "preset": str, "text": str, "device": Any, "names": str | Sequence[str], "sizes": Any, "function": Any, "objects": Sequence[Any]}


def record(name: str, command: str, *, leaving_out: Sequence[str] = ()) -> type:
    """A frozen dataclass with a field for each option of a command and the option's default."""
    fields = [
        (option.key, _type(option), field(default=False if option.kind == "flag" else option.default))
        for option in of(command) if option.key not in leaving_out
    ]  # fmt: skip
    return make_dataclass(name, fields, frozen=True)


def _type(option: Option) -> Any:
    kind = (int if option.range.whole else float) if option.kind == "number" else _TYPES[option.kind]
    return kind | None if option.default is None and option.kind != "flag" else kind
