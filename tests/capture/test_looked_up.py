"""Rows of tables by kernels of ours: torch's results, and its errors."""

import pytest
import torch
from torch import Tensor, nn

from torchane.capture.drawn import _is_torchs, drawn
from torchane.capture.looked_up import looked_up, summed

aten = torch.ops.aten


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(4, 7), (3,), (), (2, 0)])
def test_looked_up_is_embedding(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    table, index = torch.randn(11, 6, dtype=dtype), torch.randint(0, 11, shape)
    for one in (table, table.t().contiguous().t(), nn.Parameter(table)):
        with torch.no_grad():
            assert torch.equal(looked_up(one, index), aten.embedding.default(one, index))
    assert torch.equal(looked_up(table, index.int()), aten.embedding.default(table, index.int()))


@pytest.mark.parametrize("padding", [-1, 3])
def test_summed_is_the_gradient_of_embedding(padding: int) -> None:
    grad, index = torch.randn(5, 4, 6), torch.randint(0, 8, (5, 4))
    for one in (grad, grad.transpose(0, 1).contiguous().transpose(0, 1), grad.double(), grad[:, :, :0]):
        assert torch.equal(summed(one, index, 8, padding), aten.embedding_dense_backward.default(one, index, 8, padding, False))


@pytest.fixture
def defaults_are_others():
    """What torch.empty gives where nothing is said is float64, and on no host."""
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def test_results_are_of_the_tables_dtype_and_device_whatever_the_defaults_are(defaults_are_others) -> None:
    table, index = torch.randn(11, 6, dtype=torch.float32, device="cpu"), torch.randint(0, 11, (4, 7), device="cpu")
    grad = torch.randn(4, 7, 6, dtype=torch.float32, device="cpu")
    assert torch.equal(looked_up(table, index), aten.embedding.default(table, index))
    assert torch.equal(summed(grad, index, 11, -1), aten.embedding_dense_backward.default(grad, index, 11, -1, False))
    _is_torchs.cache_clear()
    assert drawn((5000,), 0.5).device.type == "cpu" and _is_torchs()


@pytest.mark.parametrize("wrong", [-1, 11])
def test_a_row_that_there_is_not_is_torchs_error(wrong: int) -> None:
    index = torch.tensor([1, wrong])
    with pytest.raises(IndexError, match="index out of range in self"):
        looked_up(torch.randn(11, 6), index)
    with pytest.raises(IndexError, match="index out of range in self"):
        summed(torch.randn(2, 6), index, 11, -1)


def test_a_compiled_model_looks_up_by_them_and_has_the_gradients_of_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    import torchane.capture.looked_up as module

    real = module.native.take_rows, module.native.sum_rows
    monkeypatch.setattr(module.native, "take_rows", lambda *args: calls.append("take") or real[0](*args))
    monkeypatch.setattr(module.native, "sum_rows", lambda *args: calls.append("sum") or real[1](*args))
    torch.manual_seed(0)
    table, layer = nn.Embedding(40, 16, padding_idx=3), nn.Linear(16, 24)
    tokens = torch.randint(0, 40, (5, 9))

    def loss(tokens: Tensor) -> Tensor:
        return layer(table(tokens))

    found = []
    for call in (torch.compile(loss, backend="ane", options={"device": "twin"}), loss):
        table.zero_grad()
        out = call(tokens)
        out.backward(torch.ones_like(out))
        assert table.weight.grad is not None
        found.append((out.detach(), table.weight.grad.clone()))
    torch.testing.assert_close(found[0], found[1], rtol=4 * 2.0**-11, atol=2.0**-10)
    assert calls == ["take", "sum"]
