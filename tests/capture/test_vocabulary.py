"""Losses over a vocabulary in slices: their numbers, what stays as it was, and that no score of every token is held."""

import copy
import math
import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from capture_helpers import compile_for_twin, distance
from torch import nn

import torchane
from torchane import native
from torchane.capture import vocabulary
from torchane.capture import vocabulary_ops as ops
from torchane.capture.compile_options import Options
from torchane.capture.compiled import COMPILED
from torchane.plan import Unstage
from torchane.plan.cost import CORES, SLOW_MULTIPLE_BYTES
from torchane.runtime.devices import open_device
from torchane.runtime.twin import TwinDevice

#: Roundings of fp16 through three products and back.
CLOSE = 2e-3
VOCAB, SIZE, ROWS = 700, 64, (2, 48)

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Classifier(nn.Module):
    def __init__(self, loss: Loss, spread: float = 5.0, bias: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.inner, self.head = nn.Embedding(VOCAB, SIZE), nn.Linear(SIZE, SIZE), nn.Linear(SIZE, VOCAB, bias=bias)
        self.loss = loss
        with torch.no_grad():
            self.head.weight *= spread

    def scores(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.inner(self.embed(tokens))))

    def forward(self, tokens: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.loss(self.scores(tokens), target)


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cut at 4 million scores is cut at once here."""
    torch._dynamo.reset()
    monkeypatch.setattr(vocabulary, "LEAST_SCORES", 1)
    monkeypatch.setattr(vocabulary, "NARROWEST", 64)
    monkeypatch.setattr(vocabulary, "WIDEST", 160)


def batch(ignored: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens, target = (torch.randint(0, VOCAB, ROWS, generator=generator) for _ in range(2))
    target[0, :ignored] = -100
    return tokens, target


def step(run: Callable[..., torch.Tensor], model: nn.Module, *inputs: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss = run(*inputs)
    (loss * torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view(loss.shape)).sum().backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]


def errors(model: nn.Module, *inputs: torch.Tensor, **options: object) -> list[float]:
    """Distances of the loss and the gradients from PyTorch's in float64."""
    double = copy.deepcopy(model).double()
    wanted = step(double, double, *inputs)
    found = step(compile_for_twin(model, **options), model, *inputs)
    return [distance(one.double(), other) for one, other in zip(found, wanted, strict=True)]


def is_sliced() -> bool:
    """No port of any program holds a score for each token."""
    plans = COMPILED[-1].plans.values()
    ports = [port.layout.shape for plan in plans for spec in plan.programs for port in (*spec.inputs, *spec.outputs)]
    return bool(ports) and not any(VOCAB in shape or math.prod(shape) == math.prod(ROWS) * VOCAB for shape in ports)


FORMS: dict[str, Loss] = {
    "of each": lambda scores, t: F.cross_entropy(scores.float().flatten(0, 1), t.flatten(), reduction="none"),
    "mean": lambda scores, t: F.cross_entropy(scores.view(-1, VOCAB), t.view(-1)),
    "sum of what is not ignored": lambda scores, t: F.cross_entropy(scores.reshape(-1, VOCAB), t.reshape(-1) % 5, ignore_index=3, reduction="sum"),
    "the next token": lambda scores, t: F.cross_entropy(scores[..., :-1, :].contiguous().view(-1, VOCAB), t[:, 1:].reshape(-1)),
    "classes as second axis": lambda scores, t: F.cross_entropy(scores.transpose(1, 2), t, reduction="none"),
    "a logarithm first": lambda scores, t: F.nll_loss(F.log_softmax(scores.view(-1, VOCAB), -1), t.view(-1)),
    "a module": lambda scores, t: nn.CrossEntropyLoss()(scores[:, 1:].flatten(0, 1), t[:, 1:].flatten()),
}


@pytest.mark.parametrize("form", [*FORMS][:2])
def test_losses_and_gradients_are_those_of_the_whole(form: str) -> None:
    found = errors(Classifier(FORMS[form]), *batch())
    assert found[0] < 2e-4 and max(found) < CLOSE
    assert is_sliced()
    for plan in COMPILED[-1].plans.values():
        slices = [dispatch.program for dispatch in plan.dispatches if dispatch.where.startswith("vocabulary.")]
        assert len(slices) == 5 and len(set(slices)) <= 2  # equal slices share a program; the last one may be smaller


@pytest.mark.long
@pytest.mark.parametrize("form", [*FORMS][2:])
def test_other_ways_to_write_it(form: str) -> None:
    found = errors(Classifier(FORMS[form]), *batch())
    assert found[0] < 2e-4 and max(found) < CLOSE
    assert is_sliced()


@pytest.mark.long
@pytest.mark.parametrize(
    "options", [{"chip": "m4", "ranges": "on"}, {"chip": "m1"}, {"arithmetic": "engine", "ranges": "on"}], ids=str
)
def test_other_chips_and_policies_have_them_too(options: dict[str, object]) -> None:
    assert max(errors(Classifier(FORMS["mean"]), *batch(), **options)) < CLOSE
    assert is_sliced()


@pytest.mark.long
@pytest.mark.parametrize("spread", [30.0, 200.0])
def test_tokens_that_are_certain_have_gradients_as_good_as_without_slices(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 - p of a token that is predicted has no digits in fp16."""
    model = Classifier(FORMS["mean"], spread)
    tokens, _ = batch()
    target = model.scores(tokens).argmax(-1).detach()
    sliced = errors(model, tokens, target)
    assert is_sliced()
    torch._dynamo.reset()
    monkeypatch.setattr(vocabulary, "LEAST_SCORES", 1 << 40)
    whole = errors(model, tokens, target)
    assert not is_sliced()
    assert all(one < 1.1 * other + 1e-4 for one, other in zip(sliced, whole, strict=True))


@pytest.mark.long
def test_a_classifier_that_is_frozen_has_no_gradient_and_may_be_a_constant() -> None:
    for frozen in ("inputs", "fp16"):
        torch._dynamo.reset()
        model = Classifier(FORMS["mean"])
        model.head.requires_grad_(False)
        assert max(errors(model, *batch(), frozen=frozen)) < CLOSE
        assert is_sliced()


@pytest.mark.long
def test_a_classifier_that_is_the_embedding_too() -> None:
    model = Classifier(FORMS["mean"], spread=0.3)
    model.head.weight = model.embed.weight
    assert max(errors(model, *batch())) < CLOSE
    assert is_sliced()
    copies = [copy for step in COMPILED[-1].plans["backward"].steps if isinstance(step, Unstage) for copy in step.copies]
    parts = [copy.layout.is_own_order for copy in copies if copy.part is not None]
    assert len(parts) == 5 and all(parts)  # so that an optimizer of ours may read them where they lie


@pytest.mark.long
def test_a_model_in_bfloat16_keeps_its_dtypes() -> None:
    model = Classifier(FORMS["of each"]).bfloat16()
    tokens, target = batch()
    loss = compile_for_twin(model)(tokens, target)
    assert is_sliced() and loss.dtype == torch.float32
    loss.sum().backward()
    wide = copy.deepcopy(model).float()
    wide.zero_grad()
    wide(tokens, target).sum().backward()
    for one, other in zip(model.parameters(), wide.parameters(), strict=True):
        assert one.grad.dtype == torch.bfloat16 and distance(one.grad.float(), other.grad) < 1e-2


def test_without_gradients_there_is_the_loss_alone() -> None:
    model = Classifier(FORMS["mean"])
    with torch.no_grad():
        found, wanted = compile_for_twin(model)(*batch()), model.double()(*batch())
    assert abs(found - wanted) < 1e-4 * wanted and is_sliced() and list(COMPILED[-1].plans) == ["forward"]
    assert not _kept_scores() and not _scores_that_leave()


def test_a_target_that_is_no_token_is_torchs_error() -> None:
    tokens, target = batch()
    target[1, 3] = VOCAB
    with pytest.raises(IndexError, match=f"Target {VOCAB} is out of bounds"):
        compile_for_twin(Classifier(FORMS["mean"]))(tokens, target)


def test_a_batch_that_is_ignored_throughout_gives_what_torch_gives() -> None:
    tokens, target = batch()
    loss = compile_for_twin(Classifier(FORMS["of each"]))(tokens, torch.full_like(target, -100))
    assert not loss.any()


# ---- scores that stay from forward to backward


def _kept_scores() -> list[int]:
    """Of which widths the forward leaves scores for the backward."""
    plan = COMPILED[-1].plans["forward"]
    return [shape[1] for name, shape in _scores_that_leave() if name in plan.kept_names]


def _scores_that_leave() -> list[tuple[str, tuple[int, ...]]]:
    plan = COMPILED[-1].plans["forward"]
    ports = [port for dispatch in plan.dispatches for port in zip(dispatch.outputs, plan.programs[dispatch.program].outputs, strict=True)]
    return [(name, port.layout.logical) for name, port in ports if port.layout.logical in [(96, 160), (96, 60)]]


def _results(most_bytes: int, run: Callable[[nn.Module, nn.Module], object], monkeypatch: pytest.MonkeyPatch, **options: object) -> list[torch.Tensor]:
    """What a run leaves in `.grad`, where scores may take so many bytes. run: given a compiled model and the model."""
    torch._dynamo.reset()
    monkeypatch.setattr(vocabulary, "KEPT_BYTES", most_bytes)
    model = Classifier(FORMS["of each"])
    run(compile_for_twin(model, **options), model)
    return [param.grad for param in model.parameters()]


def test_scores_are_computed_once_and_the_backward_reads_them() -> None:
    model = Classifier(FORMS["mean"])
    compile_for_twin(model)(*batch()).backward()
    assert _kept_scores() == [160] * 4 + [60]
    products = [plan.macs for plan in COMPILED[-1].plans.values()]
    head, inner = 96 * VOCAB * SIZE, 96 * SIZE * SIZE
    codes = 96 * VOCAB * ops.CODE
    assert products == [head + codes + inner, 2 * head + codes + 2 * inner]


TIMES: dict[str, Callable[[nn.Module, nn.Module], object]] = {
    "a step": lambda compiled, model: compiled(*batch()).sum().backward(),
    "weighted tokens": lambda compiled, model: (compiled(*batch()) * torch.linspace(-1, 1, 96)).sum().backward(),
    "a loss that its scale has to be lowered for": lambda compiled, model: (compiled(*batch()) * 3e7).sum().backward(),
    "a graph that is kept": lambda compiled, model: [loss.backward(retain_graph=True) for loss in [compiled(*batch()).sum()] for _ in range(2)],
    "two batches, the last one first": lambda compiled, model: [loss.sum().backward() for loss in [compiled(*batch(n)) for n in (0, 9)][::-1]],
    "two lengths": lambda compiled, model: [compiled(*(one[:, :size] for one in batch())).sum().backward() for size in (48, 32, 48)],
}


@pytest.mark.parametrize("times", [*TIMES][:1])
@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
def test_gradients_have_the_bits_of_scores_that_are_computed_again(times: str, arithmetic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _require_equal_bits(times, arithmetic, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("times", [*TIMES][1:])
def test_whatever_is_done_with_a_loss_has_these_bits(times: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _require_equal_bits(times, "exact", monkeypatch)


def _require_equal_bits(times: str, arithmetic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if arithmetic == "fast" and not native.has_fast():
        pytest.skip("no instructions that multiply bf16 numbers")
    wanted = _results(0, TIMES[times], monkeypatch, arithmetic=arithmetic)
    assert not _kept_scores() and not _scores_that_leave()
    for most_bytes, count in ((2 * 96 * 160 * 2, 2), (1 << 29, 5)):
        found = _results(most_bytes, TIMES[times], monkeypatch, arithmetic=arithmetic)
        assert times == "two lengths" or len(_kept_scores()) == count
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True)), most_bytes


def test_scores_of_an_engine_or_where_memory_is_saved_are_not_kept() -> None:
    def room(device: str = "twin", **options: object) -> int:
        parsed = Options.parse({"device": device, **options})
        return vocabulary.bytes_to_keep(parsed, open_device("twin", parsed.arithmetic))

    assert room() == vocabulary.KEPT_BYTES
    others = [{"chip": "m4"}, {"ranges": "on"}, {"recompute": "half"}, {"recompute": "all"}, {"arithmetic": "engine"}, {"arithmetic": "engine", "ranges": "off"}]
    assert not any(room(**one) for one in others)  # type: ignore[arg-type]

    class Engine(TwinDevice):
        frees_processor = True

    assert vocabulary.bytes_to_keep(Options.parse({}), Engine()) == 0


def test_slices_whose_scores_fit_are_kept_where_they_are_whole_rows_of_a_port() -> None:
    slices = [(0, 320), (320, 640), (640, 657)]
    assert vocabulary.kept_slices(64, slices, 1 << 20) == slices
    assert vocabulary.kept_slices(33, slices, 1 << 20) == slices[:2]
    assert vocabulary.kept_slices(64, slices, 2 * 2 * 64 * 320) == slices[:2] and vocabulary.kept_slices(64, slices, 2 * 2 * 64 * 320 - 1) == slices[:1]
    assert not vocabulary.kept_slices(64, slices, 0)


LEFT: dict[str, tuple[Callable[[Loss], nn.Module], Loss]] = {
    "a bias": (lambda loss: Classifier(loss, bias=True), FORMS["mean"]),
    "smoothing": (Classifier, lambda scores, t: F.cross_entropy(scores.view(-1, VOCAB), t.view(-1), label_smoothing=0.1)),
    "weights of classes": (Classifier, lambda scores, t: F.cross_entropy(scores.view(-1, VOCAB), t.view(-1), weight=torch.ones(VOCAB))),
    "a softcap": (Classifier, lambda scores, t: F.cross_entropy(torch.tanh(scores).view(-1, VOCAB), t.view(-1))),
    "probabilities": (Classifier, lambda scores, t: F.cross_entropy(scores.view(-1, VOCAB), F.one_hot(t.view(-1).clamp(min=0), VOCAB).float())),
    "scores that are returned": (Classifier, lambda scores, t: (F.cross_entropy(scores.view(-1, VOCAB), t.view(-1)), scores)),
}


@pytest.mark.parametrize("what", LEFT)
def test_other_losses_are_left_as_they_are(what: str) -> None:
    kind, loss = LEFT[what]
    seen: list[object] = []

    def backend(gm: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        vocabulary.slice_losses(gm)
        seen.extend(node.target for node in gm.graph.nodes)
        return gm

    torch.compile(kind(loss), backend=backend)(*batch())
    assert seen and vocabulary.sliced_cross_entropy not in seen


def test_explain_says_that_scores_are_returned() -> None:
    model = Classifier(LEFT["scores that are returned"][1])
    assert "something else reads the scores" in str(torchane.explain(model, *batch()))


@pytest.mark.parametrize("rows", [128, 256, 1024, 2048, 16384])
@pytest.mark.parametrize(("vocab", "channels"), [(151936, 1024), (32000, 768), (50304, 512), (128256, 4096)])
def test_slices_cover_the_vocabulary_and_avoid_whole_mebibytes(rows: int, vocab: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = vocabulary.slices_of(rows, vocab, channels)
    assert [a for a, _ in found] == [0, *(b for _, b in found[:-1])] and found[-1][1] == vocab
    assert len(found) <= vocabulary.MOST_SLICES and all(a % 32 == 0 for a, _ in found)
    assert all(b - a <= 1 << ops.CODE for a, b in found)
    assert all(-(-(b - a) // CORES) * channels * 2 % SLOW_MULTIPLE_BYTES for a, b in found)


def test_codes_tell_every_token_of_a_slice_from_every_other() -> None:
    size = 300
    code = ops.vocabulary_code(torch.arange(1000, 1000 + size), 1000, size)
    alike = code @ ops.code_matrix(size)
    assert torch.equal(alike == ops.CODE, torch.eye(size, dtype=torch.bool)) and int(alike.fill_diagonal_(0).max()) <= ops.CODE - 2
    assert not ops.vocabulary_code(torch.tensor([999, 1300, -100]), 1000, size).any()


def test_the_ops_alone_are_cross_entropy_and_its_gradient() -> None:
    """In PyTorch, as the host computes a step that programs do not."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 8, generator=generator), torch.randn(90, 8, generator=generator)
    target = torch.tensor([0, 89, -100, 40, 63])
    code = [ops.vocabulary_code(target, start, 30) for start in (0, 30, 60)]
    found = [ops.vocabulary_scores(x, weight[start : start + 30], one) for start, one in zip((0, 30, 60), code, strict=True)]
    nll, taken, factor, rest = ops.vocabulary_loss(*map(list, zip(*found, strict=True)), target, -100, 90)
    leaf = x.clone().requires_grad_()
    scores = leaf @ weight.T
    wanted = F.cross_entropy(scores, target, reduction="none")
    grad = torch.autograd.grad(wanted.sum(), scores)[0]
    assert torch.allclose(nll, wanted, atol=1e-5)
    kept = [ops.vocabulary_kept_scores(x, weight[start : start + 30], one) for start, one in zip((0, 30, 60), code, strict=True)]
    assert all(torch.equal(one, other) for few, many in zip(found, kept, strict=True) for one, other in zip(few, many)) and torch.equal(kept[1][3], scores[:, 30:60])
    rows = ops.vocabulary_rows(torch.ones(5), factor)
    parts = [ops.vocabulary_gradient(rows, x, weight[i * 30 : i * 30 + 30], one, taken, rest) for i, one in enumerate(code)]
    assert torch.allclose(torch.cat(parts, 1), grad, atol=1e-5)
    again = [ops.vocabulary_gradient_of(rows, many[3], one, taken, rest) for many, one in zip(kept, code, strict=True)]
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))
    assert operator.getitem(rows, 2) == 0
