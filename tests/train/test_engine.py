"""Training through engine programs on the twin: compared with PyTorch, stopped and resumed, on any number of threads."""

import copy
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_run import CONFIG, GPT2, SETTINGS, make_trainer

from torchane import native
from torchane.capture import vocabulary
from torchane.capture.compiled import COMPILED
from torchane.data.batches import IGNORE, Batch
from torchane.errors import CompileError, DeviceError, RunFolderError, UsageError
from torchane.models.build import build_model
from torchane.models.config import Qwen3Config
from torchane.plan.memory import forecast
from torchane.train import engine as module
from torchane.train.engine import EngineModel
from torchane.train.loop import drawing_from
from torchane.train.step import adamw, token_losses, train_step


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    """Torch counts what it has compiled of one model class, and gives up beyond a limit."""
    torch.compiler.reset()


#: Wide enough for work to be cut among threads.
WIDE = replace(CONFIG, hidden_size=128, intermediate_size=352, vocab_size=512, num_key_value_heads=4, max_position_embeddings=64)
STEPS = replace(SETTINGS, steps=8, checkpoint_interval=8)


def on_the_twin(path, settings=STEPS, arithmetic="exact", **options):
    trainer = make_trainer(path, settings, **options)
    trainer.compiled = EngineModel(trainer.model, "twin", arithmetic=arithmetic)
    return trainer


@pytest.fixture(scope="module", params=[CONFIG, GPT2], ids=["llama", "gpt2 with dropout"])
def unbroken(tmp_path_factory, request):
    """A run of eight steps on the twin: its trainer and result."""
    trainer = on_the_twin(tmp_path_factory.mktemp("unbroken") / "run", config=request.param)
    return trainer, trainer.run()


def test_losses_are_those_of_pytorch_in_float32(unbroken, tmp_path):
    trainer, result = unbroken
    eager = make_trainer(tmp_path / "run", STEPS, config=trainer.model.config)
    want = eager.run()
    for ours, theirs in zip(trainer.reporter.steps, eager.reporter.steps, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=0.01)
    assert result.valid_loss == pytest.approx(want.valid_loss, rel=0.005)


def test_a_large_vocabulary_gives_losses_without_logits_and_a_cap_on_logits_gives_none(monkeypatch):
    for name in ("LEAST_SCORES", "NARROWEST"):
        monkeypatch.setattr(vocabulary, name, 16)
    model = build_model(CONFIG)
    tokens, targets = torch.randint(CONFIG.vocab_size, (2, 2, 16), generator=torch.Generator().manual_seed(0))
    targets[0, :5] = IGNORE
    found = EngineModel(model, "twin").losses(tokens, targets)
    assert found is not None
    found.mean().backward()
    grads = [param.grad.clone() for param in model.parameters()]
    model.zero_grad()
    wanted = token_losses(model(tokens), targets)
    wanted.mean().backward()
    assert torch.allclose(found, wanted, atol=5e-3) and not found[:5].any()
    assert max(((one - param.grad).norm() / param.grad.norm()).item() for one, param in zip(grads, model.parameters(), strict=True)) < 5e-3

    class Capped(torch.nn.Module):
        config = CONFIG

        def forward(self, tokens):
            return torch.tanh(model(tokens))

    assert EngineModel(Capped(), "twin").losses(tokens, targets) is None


def test_stopping_and_resuming_changes_no_bit(unbroken, tmp_path):
    config = unbroken[0].model.config
    first = on_the_twin(tmp_path / "run", config=config)
    first.run(lambda: first.state.step >= 3)
    assert first.state.backend["loss_scales"][0][1]["calm_steps"] == 3
    torch.manual_seed(7)  # a new process, whose own generator stands elsewhere
    second = on_the_twin(tmp_path / "run", existing=True, config=config)
    second.resume()
    second.run()
    assert read(second) == read(unbroken[0])


def test_range_control_is_resumed_to_the_bit_and_does_not_depend_on_threads(tmp_path):
    """In the engine's arithmetic; validation has a graph and ranges of its own."""
    whole = on_the_twin(tmp_path / "whole", arithmetic="engine")
    whole.run()
    assert all(control.plans for _, control in whole.compiled._ranges) and len(whole.compiled._ranges) == 2
    before = native.get_threads()
    try:
        native.set_threads(1 if before > 1 else 2)
        first = on_the_twin(tmp_path / "run", arithmetic="engine")
        first.run(lambda: first.state.step >= 3)
    finally:
        native.set_threads(before)
    torch.compiler.reset()
    second = on_the_twin(tmp_path / "run", arithmetic="engine", existing=True)
    second.resume()
    second.run()
    assert second.compiled.state() == whole.compiled.state()
    assert read(second) == read(whole)
    metrics = [Path(one.folder.path, "metrics.jsonl").read_text().splitlines() for one in (second, whole)]
    told = [[{k: v for k, v in json.loads(line).items() if k != "time_s"} for line in lines] for lines in metrics]
    assert told[0] == told[1]


@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
@pytest.mark.parametrize("config", [WIDE, pytest.param(replace(GPT2, n_embd=128, n_positions=64), marks=pytest.mark.long)], ids=["llama", "gpt2 with dropout"])
def test_whole_steps_have_the_same_bits_on_one_to_four_threads(arithmetic, config):
    """Loss, norm and every weight after three steps of a model that is wide enough for work to be cut."""
    if arithmetic == "fast" and not native.has_fast():
        pytest.skip("this processor has no instructions for products of bf16 numbers")
    model = build_model(config, seed=0)
    engine = EngineModel(model, "twin", arithmetic=arithmetic)
    text = torch.randint(0, config.vocab_size, (4, 65), generator=torch.Generator().manual_seed(0))
    batch = Batch(text[:, :-1].contiguous(), text[:, 1:].contiguous(), 4 * 64, target_bytes=0)
    first = copy.deepcopy(model.state_dict())
    before = torch.get_num_threads(), native.get_threads()
    seen = []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            native.set_threads(threads)
            model.load_state_dict(first)
            optimizer = adamw(model, SETTINGS, engine)
            steps = []
            for step in range(3):
                with drawing_from(0, step):
                    steps.append(train_step(engine, optimizer, batch, grad_clip=1.0))
            seen.append((steps, [param.detach().clone() for param in model.parameters()]))
    finally:
        torch.set_num_threads(before[0])
        native.set_threads(before[1])
    assert all(steps == seen[0][0] for steps, _ in seen) and len({step.loss for step in seen[0][0]}) == 3
    assert all(torch.equal(one, other) for _, params in seen for one, other in zip(params, seen[0][1], strict=True))


@pytest.mark.parametrize("threads", [1])
def test_a_run_has_the_same_bits_on_another_number_of_threads(unbroken, tmp_path, threads):
    before = torch.get_num_threads(), native.get_threads()
    try:
        torch.set_num_threads(threads)
        native.set_threads(threads)
        other = on_the_twin(tmp_path / "run", config=unbroken[0].model.config)
        other.run()
    finally:
        torch.set_num_threads(before[0])
        native.set_threads(before[1])
    assert read(other) == read(unbroken[0])


def test_programs_are_dumped(tmp_path):
    trainer = make_trainer(tmp_path / "run", replace(STEPS, steps=1))
    trainer.compiled = EngineModel(trainer.model, "twin", dump=tmp_path / "dump")
    trainer.run()
    assert list((tmp_path / "dump").rglob("*.mil"))


def test_a_device_that_is_missing_or_unknown_is_refused_at_once():
    with pytest.raises(DeviceError, match="--device twin"):
        EngineModel(torch.nn.Linear(1, 1), "ane")
    with pytest.raises(UsageError, match="Known: auto, twin, ane"):
        EngineModel(torch.nn.Linear(1, 1), "gpu")


def test_auto_becomes_the_twin_where_there_is_no_engine():
    assert EngineModel(torch.nn.Linear(1, 1), "auto").device == "twin"


def test_an_error_of_the_compiler_arrives_as_itself(monkeypatch):
    def refuse(*_, **__):
        raise CompileError("layers.3: no legal form.")

    monkeypatch.setattr(module.backend, "_plan", refuse)
    with pytest.raises(CompileError, match="layers.3: no legal form"):
        EngineModel(torch.nn.Linear(32, 32), "twin")(torch.zeros(1, 32, 32))


def test_a_loss_scale_of_another_version_is_refused():
    with pytest.raises(RunFolderError, match="loss scale does not fit this version"):
        EngineModel(torch.nn.Linear(1, 1), "twin").restore({"loss_scales": [["[(1, 32)]", {"exponent": 3}]]})


def read(trainer) -> bytes:
    return Path(trainer.folder.path, "training.safetensors").read_bytes()


@pytest.mark.parametrize("config", [CONFIG, GPT2], ids=["llama", "gpt2 with dropout"])
def test_dynamo_reads_equal_blocks_once_and_no_bit_changes(monkeypatch, config):
    model = build_model(config)
    plain = copy.deepcopy(model)
    tokens = torch.arange(2 * 16).reshape(2, 16) % config.vocab_size
    seen = []
    ane = module.backend.ane
    monkeypatch.setattr(module.backend, "ane", lambda gm, *rest, **options: seen.append(str(gm.graph)) or ane(gm, *rest, **options))
    for forward in (EngineModel(model, "twin"), torch.compile(plain, backend="ane", options={"device": "twin"}, dynamic=False)):
        torch.manual_seed(0)
        forward(tokens).square().mean().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    bodies = re.findall(r"get_attr\[target=(subgraph\w*)\]", seen[0])
    assert len(bodies) == config.num_hidden_layers
    assert len(set(bodies)) == 1


def test_blocks_read_once_are_what_they_were_to_everybody_else():
    model = build_model(CONFIG)
    tokens = torch.arange(16)[None] % CONFIG.vocab_size
    before = model(tokens), list(model.state_dict())
    blocks = type(model.model.layers[0])
    EngineModel(model, "twin")
    EngineModel(model, "twin")
    assert torch.equal(model(tokens), before[0])
    assert list(model.state_dict()) == before[1]
    assert isinstance(model.model.layers[0], blocks)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.model.layers[0].mlp.up_proj.weight.zero_()
    assert torch.equal(model(tokens), before[0])
    assert not torch.equal(twin(tokens), before[0])


class Block(torch.nn.Module):
    def __init__(self, norm=False):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.norm = torch.nn.BatchNorm1d(8) if norm else torch.nn.Identity()

    def forward(self, x):
        return x + self.norm(self.linear(x))


def test_blocks_that_torch_takes_no_region_of_stay():
    for blocks in ([Block()], [Block(norm=True), Block(norm=True)], [torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)]):
        kinds = [type(block) for block in blocks]
        module.trace_blocks_once(torch.nn.ModuleList(blocks))
        assert [type(block) for block in blocks] == kinds


def test_copies_and_pickles_of_blocks_are_of_the_class_from_before():
    shared = Block()
    blocks = torch.nn.ModuleList([shared, shared, Block()])
    module.trace_blocks_once(blocks)
    assert {type(block) for block in blocks} != {Block}
    for again in (copy.deepcopy(blocks), pickle.loads(pickle.dumps(blocks))):
        assert {type(block) for block in again} == {Block}
        assert again[0] is again[1]
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(again.parameters(), blocks.parameters(), strict=True))


@pytest.mark.parametrize(("tokens", "slices"), [(64, False), (256, True), (4096, True), (1 << 15, False)])
def test_losses_over_a_large_vocabulary_are_in_slices(tokens, slices, monkeypatch):
    engine = EngineModel(torch.nn.Linear(2, 2), "twin")
    engine._vocab_size = 32000
    monkeypatch.setattr(engine, "_call", lambda *inputs: "in slices")
    given = torch.zeros(1, tokens, dtype=torch.int64)
    assert (engine.losses(given, given) == "in slices") == slices


NEEDS_FAST = pytest.mark.skipif(not native.has_fast(), reason="no instructions that multiply bf16 numbers")


@pytest.mark.parametrize(
    "model, arithmetic",
    [
        ("llama", "exact"), pytest.param("gpt2", "fast", marks=NEEDS_FAST), pytest.param("llama", "fast", marks=[NEEDS_FAST, pytest.mark.long]),
        pytest.param("qwen3", "exact", marks=pytest.mark.long), pytest.param("qwen3", "fast", marks=[NEEDS_FAST, pytest.mark.long]),
        pytest.param("gpt2", "exact", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_what_is_kept_for_the_backward_is_less_and_no_bit_of_a_gradient_is_another(monkeypatch, model, arithmetic):
    config = {
        "llama": WIDE,
        "qwen3": Qwen3Config(vocab_size=512, hidden_size=128, intermediate_size=352, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=64),
        "gpt2": replace(GPT2, n_embd=128, n_head=4, vocab_size=512, n_positions=64, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0),
    }[model]  # fmt: skip
    tokens = torch.randint(0, 512, (4, 65), generator=torch.Generator().manual_seed(3))
    found = []
    for keeps_less in (True, False):
        torch.compiler.reset()
        built = build_model(config)
        engine = EngineModel(built, "twin", arithmetic=arithmetic)
        assert engine._keeps_less
        engine._keeps_less = keeps_less
        loss = token_losses(engine(tokens[:, :-1]), tokens[:, 1:]).mean()
        loss.backward()
        compiled = COMPILED[-1]
        kept = forecast((compiled.plans["forward"],), 1).saved
        found.append((loss.item(), {name: param.grad for name, param in built.named_parameters()}, kept))
    (loss, gradients, less), (whole_loss, whole_gradients, all_of_it) = found
    assert less < all_of_it and loss == whole_loss
    assert [name for name, gradient in gradients.items() if not torch.equal(gradient, whole_gradients[name])] == []


@pytest.mark.parametrize("options", [{"arithmetic": "engine"}, {"ranges": "on"}])
def test_where_ranges_look_at_what_is_kept_all_of_it_is(options):
    assert not EngineModel(build_model(CONFIG), "twin", **options)._keeps_less
