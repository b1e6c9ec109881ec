"""Sums, extremes, variances and softmaxes against torch in float64."""

import pytest
import torch
from harness import check, trace

from torchane.capture import rules

aten = torch.ops.aten
X = torch.sin(torch.arange(60.0) * 1.7).reshape(3, 4, 5)
DIMS = [[0], [-1], [0, 2], [0, 1, 2]]


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", DIMS, ids=str)
def test_over_axes(dim, keepdim):
    for target in (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.logsumexp.default):
        check(target, X, dim, keepdim)
    for target in (aten.var.correction, aten.var_mean.correction, aten.std.correction):
        for correction in (None, 0, 1):
            check(target, X, dim, correction=correction, keepdim=keepdim)


def test_over_everything():
    for target in (aten.sum.default, aten.mean.default, aten.max.default, aten.min.default):
        check(target, X)
    check(aten.sum.dim_IntList, X, None)
    check(aten.sum.dim_IntList, torch.tensor(2.0), [0])


def test_extremes_without_their_places():
    check(aten.max.dim, X, 1)
    check(aten.min.dim, X, -1, True)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_cumsum(dim):
    check(aten.cumsum.default, X, dim)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmaxes_and_their_gradients(dim):
    check(aten._softmax.default, X, dim, False)
    check(aten._safe_softmax.default, X, dim)
    check(aten._log_softmax.default, X, dim, False)
    y = torch.softmax(X, dim)
    check(aten._softmax_backward_data.default, X.cos(), y, dim, torch.float64)
    check(aten._log_softmax_backward_data.default, X.cos(), y.log(), dim, torch.float64)


def test_softmax_of_large_scores_stays_finite():
    check(aten._softmax.default, X * 5000, -1, False)
    check(aten._log_softmax.default, X * 5000, -1, False)


def test_a_mean_that_counts_integers_runs_on_the_host():
    graph = trace(lambda x: x.sum(dtype=torch.int64), torch.ones(3))
    node = next(node for node in graph.graph.nodes if node.target == aten.sum.default)
    assert "int64" in rules.why_not(node)


@pytest.mark.parametrize("order", [1, 2, float("inf"), -float("inf")])
def test_vector_norms(order):
    check(aten.linalg_vector_norm.default, X, order, [1], True)
    check(aten.linalg_vector_norm.default, X, order)


def test_other_vector_norms_run_on_the_host():
    graph = trace(lambda x: torch.linalg.vector_norm(x, 3), torch.ones(3))
    node = next(node for node in graph.graph.nodes if node.target == aten.linalg_vector_norm.default)
    assert "order 3" in rules.why_not(node)
