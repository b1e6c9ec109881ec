"""A program as a picture: one box an op, layers from top to bottom, SVG.

The layout is fast-sugiyama's (`pip install 'torchane[graph]'`): Sugiyama's layers with few crossings, in wheels for
the common systems and without a Graphviz program beside it. Constants are left out, nested blocks stay in the box of
their op.
"""

from collections.abc import Iterator, Mapping
from html import escape
from importlib import import_module

from torchane.errors import TorchaneError
from torchane.mil.constants import inline_constants
from torchane.mil.evaluate import function_of
from torchane.mil.ir import Function, Op, Program, Var, walk

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 190, 40, 24, 34, 20
_LONGEST = 30

#: A picture of more boxes than this is no help, and its layout takes minutes.
MOST_OPS = 5_000

_STYLE = (
    "text{font:11px sans-serif;text-anchor:middle;fill:#222}.kind{font-weight:bold}"
    "rect{fill:#eef3fa;stroke:#5b7ba8}.port{fill:#e9f5e6;stroke:#5f9350}.work{fill:#fbeedd;stroke:#b98335}"
    ".refused{fill:#f9dede;stroke:#b54a4a}path{fill:none;stroke:#999}"
)

#: What engines spend their time on.
_HEAVY = ("conv", "conv_transpose", "matmul", "linear", "einsum", "scaled_dot_product_attention", "lstm", "gru", "rnn")

Point = tuple[float, float]
Node = str | int


def to_svg(program: Program, *, function: str | None = None, refused: Mapping[str, str] | None = None) -> str:
    """The picture of a function, by its name, or of `program.main`. refused: ops by name that a chip does not take, and
    why; they are drawn red.

    Raises TorchaneError where the layout library is missing or the function has too many ops.
    """
    drawn = function_of(inline_constants(program), function)
    ops = [op for op in drawn.ops if op.kind.name != "const"]
    if len(ops) > MOST_OPS:
        raise TorchaneError(
            f"{drawn.name} has {len(ops):,} ops; a picture holds {MOST_OPS:,} at most. Use --ops for a list."
        )
    boxes, edges = _graph(drawn, ops)
    places, pieces = _layout(len(boxes), edges)
    return _svg(boxes, places, pieces, refused or {})


def _graph(function: Function, ops: list[Op]) -> tuple[list[Op | Var], list[tuple[int, int]]]:
    """Boxes (inputs, ops, outputs) and arrows between them, each once."""
    boxes: list[Op | Var] = list(function.inputs)
    source = {var: number for number, var in enumerate(function.inputs)}
    edges: dict[tuple[int, int], None] = {}
    for op in ops:
        inner = (var for block in op.blocks for nested in walk(block.ops) for var in nested.inputs)
        edges.update({(source[var], len(boxes)): None for var in (*op.inputs, *inner) if var in source})
        source.update(dict.fromkeys(op.outputs, len(boxes)))
        boxes.append(op)
    for var in function.outputs:
        if var in source:
            edges[source[var], len(boxes)] = None
        boxes.append(var)
    return boxes, list(edges)


def _layout(count: int, edges: list[tuple[int, int]]) -> tuple[dict[Node, Point], list[tuple[Node, Node]]]:
    """Where the middle of each box is, y downwards, and the pieces of the arrows; long ones bend at points between
    the boxes. Boxes are called by their number as text, points by a number. Parts that do not touch stand side by side.
    """
    try:
        sugiyama = import_module("fast_sugiyama")
    except ImportError as error:
        raise TorchaneError(
            f"a picture needs the layout library fast-sugiyama, and it cannot be loaded: {error}. "
            "Install it with: pip install 'torchane[graph]'"
        ) from error
    places: dict[Node, Point] = {}
    pieces: list[tuple[Node, Node]] = []
    named = [(str(start), str(end)) for start, end in edges]
    right, points = 0.0, 0
    for positions, width, height, parts in sugiyama.from_edges(named, vertex_spacing=_WIDTH + _GAP_X) if edges else ():
        own = {node: node if isinstance(node, str) else (points := points + 1) for node, _ in positions}
        for node, (x, y) in positions:  # the first layer has the largest y
            places[own[node]] = (right + x, (height - y) * (_HEIGHT + _GAP_Y) / (_WIDTH + _GAP_X))
        pieces += [(own[start], own[end]) for start, end in parts]
        right += width + _WIDTH + _GAP_X
    for number in range(count):
        if str(number) not in places:  # touches nothing
            places[str(number)] = (right, 0.0)
            right += _WIDTH + _GAP_X
    return places, pieces


def _svg(
    boxes: list[Op | Var], places: Mapping[Node, Point], pieces: list[tuple[Node, Node]], refused: Mapping[str, str]
) -> str:
    left = min((x for x, _ in places.values()), default=0.0)
    width = max((x for x, _ in places.values()), default=0.0) - left + _WIDTH + 2 * _MARGIN
    height = max((y for _, y in places.values()), default=0.0) + _HEIGHT + 2 * _MARGIN
    dx, dy = _MARGIN + _WIDTH / 2 - left, _MARGIN + _HEIGHT / 2
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{_STYLE}</style>"]
    for start, end in pieces:
        (x0, y0), (x1, y1) = places[start], places[end]
        x0, y0 = x0 + dx, y0 + dy + (_HEIGHT / 2 if isinstance(start, str) else 0)
        x1, y1 = x1 + dx, y1 + dy - (_HEIGHT / 2 if isinstance(end, str) else 0)
        middle = (y0 + y1) / 2
        lines.append(f'<path d="M{x0:.0f} {y0:.0f}C{x0:.0f} {middle:.0f} {x1:.0f} {middle:.0f} {x1:.0f} {y1:.0f}"/>')
    for number, box in enumerate(boxes):
        x, y = places[str(number)]
        lines.extend(_box(box, x + dx, y + dy, refused))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _box(box: Op | Var, x: float, y: float, refused: Mapping[str, str]) -> Iterator[str]:
    if isinstance(box, Var):
        style, kind, name, types = "port", box.name, "", str(box.type)
    else:
        style = "refused" if box.name in refused else "work" if box.kind.name in _HEAVY else "op"
        kind, name, types = box.kind.name, box.name, ", ".join(str(var.type) for var in box.outputs)
    title = "\n".join(line for line in (f"{kind} {name}".strip(), types, refused.get(name, "")) if line)
    yield f"<g><title>{escape(title)}</title>"
    yield (
        f'<rect class="{style}" x="{x - _WIDTH / 2:.0f}" y="{y - _HEIGHT / 2:.0f}" width="{_WIDTH}" height="{_HEIGHT}" '
        'rx="5"/>'
    )
    yield f'<text class="kind" x="{x:.0f}" y="{y - 4:.0f}">{escape(_short(kind))}</text>'
    yield f'<text x="{x:.0f}" y="{y + 12:.0f}">{escape(_short(types))}</text></g>'


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
