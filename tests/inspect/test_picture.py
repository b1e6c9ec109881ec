"""Pictures of programs: every op is there once, arrows lead down."""

import re
import sys
import xml.etree.ElementTree as xml
from itertools import pairwise

import pytest
from inspect_samples import small_program

from torchane.errors import TorchaneError
from torchane.inspect import picture
from torchane.inspect.picture import to_svg
from torchane.inspect.recognize import load_program
from torchane.mil import parse

SVG = "{http://www.w3.org/2000/svg}"
ARROW = re.compile(r"M(-?\d+) (-?\d+)C-?\d+ -?\d+ -?\d+ -?\d+ (-?\d+) (-?\d+)")


def kinds(svg: str) -> list[str]:
    return [text.text for text in xml.fromstring(svg).iter(f"{SVG}text") if text.get("class") == "kind"]


def test_every_op_and_port_has_a_box():
    program = small_program(large=True)
    assert sorted(kinds(to_svg(program))) == sorted(
        ["x", "add", "relu", "mul", "concat", "cast", program.outputs[0].name]
    )


def test_arrows_lead_down_within_the_picture(shared_data):
    svg = to_svg(load_program(shared_data / "mil_compiled" / "mobius-silero-unified_int8.mlmodelc"))
    root = xml.fromstring(svg)
    _, _, width, height = map(float, root.get("viewBox").split())
    arrows = [tuple(map(int, ARROW.fullmatch(path.get("d")).groups())) for path in root.iter(f"{SVG}path")]
    assert len(arrows) > 55
    for x0, y0, x1, y1 in arrows:
        assert 0 <= x0 <= width and 0 <= x1 <= width and 0 <= y0 < y1 <= height


def test_boxes_do_not_overlap(shared_data):
    root = xml.fromstring(to_svg(load_program(shared_data / "mil_compiled" / "mobius-silero-unified_int8.mlmodelc")))
    corners = sorted((float(box.get("y")), float(box.get("x"))) for box in root.iter(f"{SVG}rect"))
    for (y0, x0), (y1, x1) in pairwise(corners):
        assert y1 - y0 >= picture._HEIGHT or (y0 == y1 and x1 - x0 >= picture._WIDTH)


def test_refused_ops_are_red_and_say_why():
    svg = to_svg(small_program(), refused={"concat": "it fails <there>"})
    (red,) = (box for box in xml.fromstring(svg).iter(f"{SVG}rect") if box.get("class") == "refused")
    assert red is not None
    assert "it fails &lt;there&gt;" in svg


@pytest.mark.parametrize("text", [
    "func main() { fp16 c = const()[val = fp16(1)]; } -> (c);",
    "func main(fp16 x) { } -> (x);",
    "func main(fp16 x, fp16 y) { fp16 a = relu(x = x); fp16 b = exp(x = y); } -> (b);",
    "func main() { } -> ();",
    "func main(fp16 x) { fp16 y = add(x = x, y = x); } -> (y, y);",
])  # fmt: skip
def test_odd_programs_have_a_picture(text):
    xml.fromstring(to_svg(parse(text)))


def test_a_missing_layout_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_sugiyama", None)
    with pytest.raises(TorchaneError, match=r"pip install 'torchane\[graph\]'"):
        to_svg(small_program())


def test_too_many_ops_are_refused(monkeypatch):
    monkeypatch.setattr(picture, "MOST_OPS", 3)
    with pytest.raises(TorchaneError, match="4 ops; a picture holds 3 at most"):
        to_svg(small_program())
