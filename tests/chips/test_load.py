import copy
import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from torchane import chips
from torchane.chips.conditions import OP_CHECKS, PORT_CHECKS, PROGRAM_CHECKS
from torchane.chips.load import parse_chip
from torchane.errors import UsageError
from torchane.mil import ops as _ops  # noqa: F401  (fills the op table)
from torchane.mil.kinds import KINDS

#: Ops of MIL that our op table may not know and that the data files speak of.
_BEYOND_OUR_TABLE = {
    "scaled_dot_product_attention", "topk", "argsort", "non_zero", "cumsum", "band_part", "quantize", "dequantize",
    "constexpr_affine_dequantize", "constexpr_blockwise_shift_scale", "constexpr_lut_to_dense",
    "constexpr_sparse_to_dense", "cond", "while_loop", "read_state", "write_state",
}  # fmt: skip

#: Issue by issue what `portable` is: no more and no less.
PORTABLE = {
    "add", "sub", "mul", "real_div", "maximum", "pow", "sqrt", "exp", "tanh", "sigmoid", "identity", "matmul", "conv",
    "softmax", "reduce_sum", "reduce_max", "reshape", "transpose", "slice_by_size",
}  # fmt: skip


def facts():
    for name in chips.names():
        chip = chips.load(name)
        entries = [*chip.ops.values(), *chip.limits.values()]
        conditions = [*chip.every_op, *chip.ports, *chip.programs, *(c for fact in chip.ops.values() for c in fact.conditions)]
        for entry in (*entries, *conditions):
            yield name, entry


def test_the_chips_are_those_with_a_file_and_portable_is_first():
    assert chips.names() == ("portable", "m1", "m2", "m3", "m4", "m5")


def test_an_unknown_chip_is_a_usage_error_that_names_the_known():
    with pytest.raises(UsageError, match=r"no chip is called 'm9'. Known: portable, m1, m2"):
        chips.load("m9")


def test_every_entry_has_a_source_and_a_certainty():
    for name, entry in facts():
        assert entry.source.strip(), f"{name}: {entry}"
        assert isinstance(entry.certainty, chips.Certainty)


def test_every_source_tag_is_explained():
    explained = (resources.files("torchane.chips") / "SOURCES.md").read_text(encoding="utf-8")
    tags = {"GDE", "MDX", "QANE", "ORI", "FG", "ESP", "ANF", "TMC", "SLV", "JMH", "IMP", "M6S", "EIL", "MXF", "OMX", "RUS"}
    used = {tag for _, entry in facts() for tag in tags if tag in entry.source.replace(":", " ").replace(",", " ").split()}
    assert all(tag in explained for tag in used)
    assert len(used) > 10


def test_portable_takes_exactly_the_safe_ops():
    assert chips.load("portable").kinds == PORTABLE


def test_every_chip_takes_what_it_must_for_a_layer():
    # m1 has no safe root, and pow stands in for it
    assert all(chips.load(name).kinds >= PORTABLE - {"sqrt"} for name in chips.names())


def test_every_op_of_the_files_is_an_op_of_mil():
    for name in chips.names():
        assert set(chips.load(name).ops) <= set(KINDS) | _BEYOND_OUR_TABLE


def test_every_rule_of_the_files_has_a_check_and_every_check_a_use():
    loaded = [chips.load(name) for name in chips.names()]
    on_ops = {c.rule for chip in loaded for c in (*chip.every_op, *(c for fact in chip.ops.values() for c in fact.conditions))}
    assert on_ops == set(OP_CHECKS)
    assert {c.rule for chip in loaded for c in chip.ports} == set(PORT_CHECKS)
    assert {c.rule for chip in loaded for c in chip.programs} == set(PROGRAM_CHECKS)


def test_every_op_that_is_not_taken_says_why_and_what_to_do():
    for name in chips.names():
        for fact in chips.load(name).ops.values():
            assert fact.is_taken or (fact.why and fact.do)


def test_an_op_that_no_file_names_is_not_taken():
    fact = chips.load().op("frobnicate")
    assert not fact.is_taken
    assert fact.certainty is chips.Certainty.UNKNOWN


def test_a_chip_says_what_it_knows_of_an_op():
    fact = chips.load("portable").op("softmax")
    assert fact.is_taken
    assert [condition.rule for condition in fact.conditions] == ["last_axis", "power_of_two_extent"]


def test_a_file_that_extends_another_replaces_what_it_names():
    m4, portable = chips.load("m4"), chips.load("portable")
    assert m4.op("slice_by_size").conditions == ()
    assert m4.op("matmul") == portable.op("matmul")
    assert m4.limits == portable.limits
    sizes = [condition for condition in m4.every_op if condition.rule == "size_at_most"]
    assert [condition.value for condition in sizes] == [(0, 65536, 65536, 65536)]


def test_limits_are_read_by_name():
    assert chips.load().limit("port_row_multiple") == 32
    assert chips.load().limit("loaded_programs") == 100


@pytest.fixture
def data():
    return tomllib.loads((resources.files("torchane.chips") / "portable.toml").read_text(encoding="utf-8"))


def test_an_op_with_two_entries_is_caught(data):
    twice = copy.deepcopy(data)
    twice["ops"].append(twice["ops"][0])
    with pytest.raises(AssertionError, match="add has two entries"):
        parse_chip(twice)


def test_an_unknown_key_is_caught(data):
    with pytest.raises(AssertionError, match="unknown keys"):
        parse_chip({**data, "opps": []})


def test_a_refusal_without_a_remedy_is_caught(data):
    with pytest.raises(AssertionError, match="say why and what to do"):
        parse_chip({**data, "ops": [{"names": ["tan"], "taken": False, "certainty": "one", "source": "x"}]})


def test_nobody_is_told_to_cut_a_program():
    """What is too large for a program is cut by the partitioner, or left to PyTorch."""
    told = re.compile(r"\b(Cut|Split|Divide) (it|the program|your (model|program|network)) (in|into|by)\b")
    for path in Path(chips.__file__).parents[1].rglob("*"):
        if path.suffix in (".py", ".toml"):
            found = [line for line in path.read_text(encoding="utf-8").splitlines() if told.search(line) and '"' in line]
            assert not found, f"{path}: {found}"
