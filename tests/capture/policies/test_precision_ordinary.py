"""Ordinary models are left as they are: the same op in the same place with the policy and without."""

import pytest
import torch
from zoo import FAMILIES, batch_for

import torchane

QUICK = {"our Llama", "smooth ResNet"}


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in FAMILIES])
def test_an_ordinary_model_is_the_same_with_the_policy_and_without(name: str) -> None:
    found = []
    for precision in ("auto", "fp16"):
        torch._dynamo.reset()
        torch.manual_seed(0)
        explained = torchane.explain(FAMILIES[name](), options={"precision": precision}, **batch_for(name))
        assert explained.share("program") == 1.0
        found.append([(row.graph, row.name, row.place) for row in explained.rows])
    assert found[0] == found[1]
