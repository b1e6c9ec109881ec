"""Names of Dynamo's sources as the user writes them."""

import pytest

from torchane.capture.sources import dotted


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("L['self']._modules['layers']._modules['0']", "layers.0"),
        ("L['self']._modules['head']._parameters['weight']", "head.weight"),
        ("L['fn'].__dict__['base_model']._modules['model']._buffers['table']", "base_model.model.table"),
        ("L['model'].__dict__.base_model", "model.base_model"),
        ("L['self']._modules['my_modules_2']", "my_modules_2"),
        ("L['x']", "x"),
    ],
)
def test_a_source_is_named_without_pythons_own_attributes(source: str, name: str) -> None:
    assert dotted(source) == name
