"""transformers says nothing of its own in these tests."""

from collections.abc import Iterator

import pytest

from torchane.finetune.extras import quiet_transformers


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    pytest.importorskip("transformers", reason="transformers is not installed (pip install 'torchane[finetune]')")
    with quiet_transformers():
        yield
