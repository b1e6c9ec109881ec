"""Continue prompts with a model that transformers loads: its generation draws the tokens, several prompts at once.

    prompts ─► template ─► tokens, filled up on the left ─► model.generate ─► a token of each prompt ─► pieces of text

host    the model as it is, with transformers' growing cache
twin    the same model through torch.compile(backend="ane"), with a cache of a fixed length: a program for each width of the pieces that prompts
ane     are read in (sizes.py), and one for the steps after them, which compile nothing anew
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch

from torchane.errors import UsageError, shown
from torchane.finetune.extras import quiet_transformers, require
from torchane.finetune.models import Base
from torchane.generate.caches import Caches
from torchane.generate.kept import Kept
from torchane.generate.sampling import Sampling, Text, penalised, require_finite
from torchane.generate.sizes import PIECE, Programs, positions_of, width_of
from torchane.generate.text import Written, require_room, require_text
from torchane.runtime.promise import only_torch_writes

#: Positions of a conversation's cache, at least, which its turns share.
LEAST_KEPT = 1024
#: The arithmetic that is the twin's unless another is asked for.
EXACT = "exact"
Message = dict[str, str]


def host_device(name: str, arithmetic: str = EXACT) -> str:
    """What `--device` comes to: "host", "twin" or "ane". auto is an engine that computes, else PyTorch: the twin writes faster, after it has
    compiled for longer than most texts take. Raises UsageError where an arithmetic is asked for and it is not the twin."""
    found = name
    if name == "auto":
        from torchane.runtime.devices import auto_choice  # noqa: PLC0415  (the engine is looked for only where it is asked for)

        found = "ane" if auto_choice()[0] == "ane" else "host"
    if arithmetic != EXACT and found != "twin":
        where = found if found == name else f"{name}, which is {found} here"
        raise UsageError(f"--arithmetic {arithmetic} is the twin's, and --device is {where}. Add --device twin, or leave --arithmetic out.")
    return found


def compile_for(model: Any, device: str, arithmetic: str = EXACT) -> None:
    """Makes the model's calls programs of that device; the host's are left as they are."""
    if device != "host":
        model.requires_grad_(False)  # its weights are constants of the programs, and not staged at each token
        model.compile(backend="ane", dynamic=False, options={"device": device, "frozen": "fp16", "arithmetic": arithmetic})


def templated(base: Base, messages: Sequence[Message], settings: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The text that a conversation is for the model. settings: what its template is given besides. Raises UsageError where its tokenizer has
    no template."""
    tokenizer = base.require_tokenizer()
    if not tokenizer.chat_template:
        raise UsageError(f"The tokenizer of {base.path} has no chat template: the model was not made for conversations. Continue a text with torchane generate.")
    try:
        return str(tokenizer.apply_chat_template(list(messages), **{"tokenize": False, "add_generation_prompt": True, **settings}))
    except Exception as error:  # a template is a program of the model's, and raises what it likes
        raise UsageError(f"The chat template of {base.path} does not take these messages: {error}") from error


class Writer:
    """A model with its tokenizer and its device."""

    def __init__(self, base: Base, device: str = "host", model: Any = None, extra_ends: Sequence[str] = (), arithmetic: str = EXACT) -> None:
        """model: in the base's place, with an adapter around it. extra_ends: tokens that end a text besides the model's own. arithmetic: the
        twin's. Raises UsageError for a token that the tokenizer does not have."""
        self.base, self.device = base, device
        self.model = base.model if model is None else model
        self.tokenizer = base.require_tokenizer()
        compile_for(self.model, device, arithmetic)
        config = self.model.config.get_text_config()
        self.positions: int = getattr(config, "max_position_embeddings", None) or 1 << 30
        self.extra_ends = tuple(map(self._token, extra_ends))
        self._kept: Kept | None = None
        self._programs = Programs()
        self._caches = Caches(self.model)
        self._held = object()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Around calls of the model, whose weights nothing but PyTorch's ops write as long as the writer is there (runtime/promise.py)."""
        try:
            with torch.no_grad(), only_torch_writes(self._held), quiet_transformers():
                yield
        except BaseException:
            self._held = object()  # a call may have ended halfway
            raise

    def write(
        self, prompts: Sequence[str], sampling: Sampling, *, is_templated: bool = False, keeps: bool = False,
        tell: Callable[[int, str], None] = lambda index, piece: None,
    ) -> list[Written]:  # fmt: skip
        """tell(index of the prompt, piece) is called as pieces become certain. is_templated: the prompts hold the special tokens already.
        keeps: of one prompt: its cache stays, and the next prompt is read from where it differs on, which alone is counted as read.
        Raises UsageError for a prompt that is no text, or longer than the model's positions."""
        for prompt in prompts:
            require_text(prompt)
        rows = [self.tokenizer(prompt, add_special_tokens=not is_templated).input_ids or self.first() for prompt in prompts]
        longest = max(map(len, rows))
        require_room(longest, self.positions)
        most = min(sampling.max_tokens, self.positions - longest)
        with self.asking():
            kept, width, cache = self._places_for(rows, most, keeps)
        rows = [row[sum(kept.mask) :] for row in rows] if kept is not None else rows
        ids, mask = self._filled(rows, width, kept)
        collect = _Collector(self.tokenizer, prompts, rows, sampling, self._ends(), tell)
        self._kept = None  # what ends halfway leaves a cache that nothing is known of
        with self.asking(), torch.random.fork_rng(devices=[]):
            self._read_pieces(ids, mask, width, cache)
            torch.manual_seed(sampling.seed)
            done = self.model.generate(  # which calls the model for the prompts, in pieces, then for each token
                input_ids=ids, attention_mask=mask, generation_config=self._settings(sampling, most), stopping_criteria=[collect],
                logits_processor=[_Scores(mask, sampling.repetition_penalty)], **cache,
            )  # fmt: skip
        if kept is not None:
            kept.wrote(done[0].tolist(), mask[0].tolist())
            self._kept = kept
        return collect.results(self.positions if most < sampling.max_tokens else None)

    def ready(self, rows: Sequence[Sequence[int]], most: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """(tokens, mask, cache) for transformers' generate of at most so many tokens behind each row: filled up on the left, and read but for the last piece."""
        _, width, cache = self._places_for(rows, most, keeps=False)
        ids, mask = self._filled(rows, width)
        self._read_pieces(ids, mask, width, cache)
        return ids, mask, cache

    def _read_pieces(self, ids: torch.Tensor, mask: torch.Tensor, width: int, cache: dict[str, Any]) -> None:
        """All pieces of what is new but the last, into the cache. transformers' own pieces have strides of their own, and a program each."""
        if self.device == "host":
            return
        settings = self._settings(Sampling(temperature=0), 1)
        for end in range(ids.shape[1] - width + PIECE, ids.shape[1], PIECE):
            self.model.generate(input_ids=ids[:, :end], attention_mask=mask[:, :end], generation_config=settings, **cache)

    def _places_for(self, rows: Sequence[Sequence[int]], most: int, keeps: bool) -> tuple[Kept | None, int, dict[str, Any]]:
        """(the cache of a conversation, what rows are filled up to, the cache as generate takes it)."""
        if keeps:
            [row] = rows
            kept, width = self._kept_for(row, most)
            room, cache = kept.room, kept.cache
        elif self.device == "host":
            return None, max(map(len, rows)), {}  # which makes its own
        else:
            width, room = self._programs.choose(len(rows), max(map(len, rows)), most)
            kept, cache = None, self._caches.fixed(len(rows), room)
        if room is not None:
            self._programs.used(len(rows), width, room)
        return kept, width, {"past_key_values": cache}

    def _kept_for(self, row: Sequence[int], most: int) -> tuple[Kept, int]:
        """(the cache of the last text, as far as this one begins like it; what is new filled up to so many tokens). A new one where it has no
        room, or cannot give up the rest."""
        kept = self._kept
        if kept is not None:
            count, places = kept.common(row)
            width = self._width(len(row) - count, kept.room, places + most)
            is_whole = places == len(kept.ids)
            if width is not None and (kept.can_crop or (is_whole and kept.room is None)):  # a window counts places that only fill up, too
                kept.crop(places)
                return kept, width
        if self.device == "host":
            return Kept(self._caches.growing()), len(row)
        room = positions_of(width_of(len(row)) + most, LEAST_KEPT)
        return Kept(self._caches.fixed(1, room), room), self._width(len(row), room, most) or width_of(len(row))

    def _width(self, tokens: int, room: int | None, others: int) -> int | None:
        """What so many tokens are filled up to, in a cache of that room (None: the host's) beside so many others. None where it is too small."""
        if room is None:
            return tokens
        widths = (self._programs.width(1, tokens, room), width_of(tokens))
        return next((width for width in widths if width is not None and width + others <= room), None)

    def _token(self, text: str) -> int:
        token = self.tokenizer.get_vocab().get(text)
        if token is None:
            raise UsageError(f"--extra-eos-token: {shown(text)} is no token of {self.base.path}. It must be one of its vocabulary, as written there; --stop ends at any text.")
        return int(token)

    def first(self) -> list[int]:
        """Where there is no prompt: the token that begins a text."""
        first = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        if first is None:
            raise UsageError(f"{self.base.path} has no token that begins a text: give a --prompt.")
        return [first]

    def _filled(self, rows: Sequence[Sequence[int]], width: int, kept: Kept | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, mask), both (B, width), the rows at the right; behind what is kept, where there is something."""
        ids = torch.full((len(rows), width), self._padding())
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for row, tokens in enumerate(rows):
            ids[row, width - len(tokens) :] = torch.tensor(tokens)
            mask[row, width - len(tokens) :] = 1
        if kept is not None:
            ids, mask = (torch.cat([torch.tensor([before], dtype=torch.long), now], dim=1) for before, now in ((kept.ids, ids), (kept.mask, mask)))
        return ids, mask

    def _padding(self) -> int:
        return next((token for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if token is not None), 0)

    def _ends(self) -> list[int]:
        """The tokens that end a text, by the model's own settings and its tokenizer."""
        named = getattr(self.model.generation_config, "eos_token_id", None)
        ends = {*(named if isinstance(named, list) else [named]), self.tokenizer.eos_token_id, *self.extra_ends} - {None}
        return sorted(ends)

    def _settings(self, sampling: Sampling, most: int) -> Any:
        """Ours, whatever the model's generation_config.json says."""
        draws = sampling.temperature > 0
        chosen = {"temperature": sampling.temperature, "top_k": sampling.top_k or 0, "top_p": sampling.top_p, "min_p": sampling.min_p or None} if draws else {}
        return require("transformers").GenerationConfig(
            max_new_tokens=most, do_sample=draws, pad_token_id=self._padding(),
            eos_token_id=self._ends() or None, use_cache=True, disable_compile=True, **chosen,
        )  # fmt: skip


class _Scores:
    """A processor of scores before they are drawn from. transformers' own penalty counts what prompts are filled up with as seen."""

    def __init__(self, mask: torch.Tensor, penalty: float) -> None:
        self._mask, self._penalty = mask.bool(), penalty

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        require_finite(scores)
        width = self._mask.shape[1]
        seen = (ids[:width][mask].tolist() + ids[width:].tolist() for ids, mask in zip(input_ids, self._mask, strict=True))
        return torch.stack([penalised(row, tokens, self._penalty) for row, tokens in zip(scores, seen, strict=True)])


class _Collector:
    """A stopping criterion of transformers: it sees every token as it is drawn, and says which prompts are done."""

    def __init__(self, tokenizer: Any, prompts: Sequence[str], rows: Sequence[Sequence[int]], sampling: Sampling, ends: Sequence[int], tell: Callable[[int, str], None]) -> None:
        self.written = [Written(prompt, len(row)) for prompt, row in zip(prompts, rows, strict=True)]
        self.texts = [Text(lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True), sampling.stop) for _ in prompts]
        self._over = [False] * len(prompts)
        self._ends, self._tell = set(ends), tell
        self._start = time.perf_counter()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        now = time.perf_counter() - self._start
        for index, token in enumerate(input_ids[:, -1].tolist()):
            if self._over[index]:
                continue
            one, text = self.written[index], self.texts[index]
            one.prefill_s, one.decode_s = (one.prefill_s, now - one.prefill_s) if one.prefill_s else (now, 0.0)
            if token in self._ends:
                one.end, self._over[index] = "end", True
                continue
            self._tell(index, text.add(token))
            if text.is_over:
                one.end, self._over[index] = "stop", True
        return torch.tensor(self._over)

    def results(self, positions: int | None) -> list[Written]:
        """positions: the model's, where they ended what nothing else did; else None."""
        for index, (one, text) in enumerate(zip(self.written, self.texts, strict=True)):
            self._tell(index, text.finish())
            one.text, one.tokens = text.text, text.tokens
            if positions is not None and one.end == "length":
                one.end, one.note = "context", f"The text ends where the model's {positions:,} positions do, before --max-tokens."
        return self.written
