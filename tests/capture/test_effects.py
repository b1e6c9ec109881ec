"""Ops with effects carry tokens through AOTAutograd's graphs: outputs and gradients keep their places."""

import copy
from collections.abc import Callable

import pytest
import torch
from capture_helpers import compile_for_twin, distance, gradients
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:.*runs? in PyTorch on the CPU:torchane.errors.TorchaneWarning")

GRADIENT_BAR = 0.02


def posed(a: torch.Tensor) -> torch.Tensor:
    return a @ a.mT + torch.eye(len(a))


def _of_spectrum(values: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """A function of a matrix by its spectrum: its gradient reaches the vectors."""
    return vectors @ torch.diag(values.log1p()) @ vectors.mT


#: Each checks its result by an op with an effect, or calls one that does.
WITH_EFFECTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "inv": torch.linalg.inv,
    "solve": lambda a: torch.linalg.solve(posed(a), a),
    "solve from the right": lambda a: torch.linalg.solve(posed(a), a, left=False),
    "cholesky": lambda a: torch.linalg.cholesky(posed(a)),
    "eigh": lambda a: torch.linalg.eigvalsh(posed(a)).diag(),
    "slogdet": lambda a: a * torch.linalg.slogdet(posed(a))[1],
    "det": lambda a: a * torch.linalg.det(posed(a) / 2),
    "svd": lambda a: torch.linalg.svdvals(posed(a)).diag(),
    "Cayley": lambda a: torch.linalg.solve(torch.eye(len(a)) + a - a.mT, torch.eye(len(a)) - a + a.mT),
    "inv twice": lambda a: torch.linalg.inv(torch.linalg.inv(a) + torch.eye(len(a))),
    "a Gaussian's log density": lambda a: a * torch.distributions.MultivariateNormal(a[0], posed(a)).log_prob(a[1]),
}

#: Others of torch.linalg, each once.
SIBLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "eigh with vectors": lambda a: _of_spectrum(*torch.linalg.eigh(posed(a) + torch.diag(torch.arange(8.0)))),
    "svd with vectors": lambda a: torch.linalg.svd(a + torch.diag(torch.arange(8.0)))[0],
    "qr": lambda a: sum(torch.linalg.qr(a)),
    "solve_triangular": lambda a: torch.linalg.solve_triangular(posed(a).tril(), a, upper=False),
    "lu_factor": lambda a: torch.linalg.lu_factor(posed(a))[0],
    "lu_factor and lu_solve": lambda a: torch.linalg.lu_solve(*torch.linalg.lu_factor(posed(a)), a),
    "lu": lambda a: torch.linalg.lu(posed(a))[2],
    "pinv": lambda a: torch.linalg.pinv(posed(a)),
    "matrix_exp": lambda a: torch.linalg.matrix_exp(a / 4),
    "cholesky_solve": lambda a: torch.cholesky_solve(a, torch.linalg.cholesky(posed(a))),
    "inv_ex": lambda a: torch.linalg.inv_ex(posed(a))[0],
}


class Mix(nn.Module):
    def __init__(self, how: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(8) + 0.1 * torch.randn(8, 8))
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(x @ self.how(self.weight))


class Stack(nn.Module):
    """Layers, and two results: the order of outputs shows."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers, self.head = nn.ModuleList(layers), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for layer in self.layers:
            x = layer(x)
        return self.head(x), x.mean()


def assert_agrees(model: nn.Module) -> None:
    torch._dynamo.reset()
    eager, x = copy.deepcopy(model), torch.randn(2, 3, 8)
    compiled = compile_for_twin(model)
    got, expected = compiled(x), eager(x)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.shape == theirs.shape
        assert distance(ours, theirs) < GRADIENT_BAR
    for result in (got, expected):
        (result[0].square().sum() + result[1]).backward()
    for (name, ours), theirs in zip(gradients(model).items(), gradients(eager).values(), strict=True):
        assert distance(ours, theirs) < GRADIENT_BAR, name
    with torch.no_grad():
        for ours, theirs in zip(compiled(x), eager(x), strict=True):
            assert distance(ours, theirs) < GRADIENT_BAR


@pytest.mark.parametrize("name", WITH_EFFECTS)
def test_outputs_and_gradients_agree_with_eager(name: str) -> None:
    torch.manual_seed(0)
    assert_agrees(Stack(Mix(WITH_EFFECTS[name])))


@pytest.mark.long
@pytest.mark.parametrize("name", SIBLINGS)
def test_siblings_agree_with_eager(name: str) -> None:
    torch.manual_seed(0)
    assert_agrees(Stack(Mix(SIBLINGS[name])))


@pytest.mark.filterwarnings("ignore:.*cannot trace all of:torchane.errors.TorchaneWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo reads it after a cut
def test_lstsq_whose_shapes_depend_on_numbers_is_cut_around() -> None:
    torch.manual_seed(0)
    assert_agrees(Stack(Mix(lambda a: torch.linalg.lstsq(posed(a), a).solution)))


@pytest.mark.parametrize("name", ["inv", "solve", "cholesky"])
def test_equal_layers_with_effects_have_gradients(name: str) -> None:
    torch.manual_seed(0)
    assert_agrees(Stack(*(Mix(WITH_EFFECTS[name]) for _ in range(3))))
