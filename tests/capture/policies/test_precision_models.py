"""Models in which fp16 is not enough somewhere: values and gradients are no further off than 1.2 times the better autocast.

Two roundings of the same size may fall either way: where the first seed is worse, five seeds are compared together.
"""

import pytest
from autocast import Compared, compared
from precision_models import MODELS

QUICK = {"diffusion step", "decays between positions", "log of softmax and an epsilon", "columns by constants", "what the author casts"}


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in MODELS])
def test_a_model_is_as_good_as_autocast(name: str) -> None:
    results = [compared(MODELS[name])]
    if not results[0].is_as_good:
        results += [compared(MODELS[name], seed) for seed in range(1, 5)]
    total = Compared(sum(result.ours for result in results), sum(result.autocast for result in results))
    assert total.is_as_good, results
