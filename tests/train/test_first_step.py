"""The parts of a first step, and the table that shows them."""

import pytest

from torchane.errors import UsageError
from torchane.train.first_step import PARTS, bench_first_step, to_table


def test_the_parts_of_a_first_step_add_up_to_it() -> None:
    said: list[str] = []
    report = bench_first_step(["tiny"], batch_size=1, seq_len=32, said=said.append)
    (result,) = report["results"]
    parts = result["parts_s"]
    assert said == ["tiny: a first step"]
    assert set(parts) == set(PARTS) and all(parts[part] > 0 for part in PARTS)
    step = sum(parts[part] for part in ("capture", "trace", "lower", "load", "run"))
    assert step == pytest.approx(result["first_step_s"]) and result["first_step_s"] + parts["build"] == result["after_imports_s"]
    imports = parts["import_torch"] + parts["import_torchane"]
    assert imports + result["after_imports_s"] < result["from_start_s"] < 3 * (imports + result["after_imports_s"]) and result["processor_s"] > 0
    assert parts["run"] < parts["trace"]  # the second step compiles nothing
    table = to_table(report).splitlines()
    assert table[-1].startswith("tiny") and f"{result['after_imports_s']:.2f}" in table[-1]


def test_an_unknown_model_is_refused_with_the_known() -> None:
    with pytest.raises(UsageError, match="no preset 'huge'.*tiny"):
        bench_first_step(["huge"])
