"""An audit as data, as a table, as JSON, and as a picture: layers against magnitude, the engine's window drawn in."""

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any
from xml.sax.saxutils import escape

from torchane.train.audit_products import Magnitudes, ProductCounts

#: The window of a product, in powers of two: below it is dropped, a sum above it is an infinity.
LOWEST, HIGHEST = -16, 15
#: A parameter is lost if the engine's gradient is this far off, or this share of its entries vanished.
LOST_ERROR, LOST_SHARE = 0.5, 0.5
_COLORS = {"forward": "#2563eb", "backward": "#d97706", "past the range": "#dc2626"}
#: Of the picture: its left edge, the distance of bars, its height.
_LEFT, _STEP, _PICTURE = 46, 7, 394
_LEGEND = " ".join(f'<tspan style="fill:{color}">{name}</tspan>' for name, color in _COLORS.items())


@dataclass(frozen=True)
class Finding:
    """One op of one dispatch. `where`: the module that it computes; `products` for matmul and conv only."""

    graph: str
    where: str
    program: str
    op: str
    tensor: str
    magnitudes: Magnitudes
    products: ProductCounts | None


@dataclass(frozen=True)
class ParameterFinding:
    """largest: of the gradient in plain PyTorch. lost_share: of its entries that are zero in the engine's arithmetic
    alone. relative_error: the norm of the difference over the norm."""

    name: str
    count: int
    largest: float
    lost_share: float
    relative_error: float

    @property
    def is_lost(self) -> bool:
        return self.lost_share >= LOST_SHARE or self.relative_error >= LOST_ERROR


@dataclass(frozen=True)
class Audit:
    """loss_scale: what the backward ran under. recommended_loss_scale: see audit.HEADROOM. controlled: the same step under
    range control; its loss scale is that of the incoming gradient alone, and magnitudes are those that are stored."""

    loss: float
    loss_exact: float
    loss_scale: float
    recommended_loss_scale: float
    findings: tuple[Finding, ...]
    parameters: tuple[ParameterFinding, ...]
    controlled: "Audit | None" = None

    @property
    def product_findings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.products is not None)

    @property
    def lost_parameters(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters if parameter.is_lost)

    def dropped_share(self, graph: str | None = None) -> float:
        """Of all products of two numbers that are not zero; of one graph, "forward" or "backward", if said."""
        counts = [f.products for f in self.product_findings if graph in (None, f.graph) and f.products]
        return sum(c.dropped for c in counts) / max(1, sum(c.products for c in counts))

    def to_json(self) -> str:
        return json.dumps(self._data(), indent=1)

    def _data(self) -> dict[str, Any]:
        return asdict(replace(self, controlled=None)) | {
            "dropped_share": {graph: self.dropped_share(graph) for graph in ("forward", "backward")},
            "lost_parameters": list(self.lost_parameters),
            "controlled": None if self.controlled is None else self.controlled._data(),
        }

    def table(self, rows: int = 12) -> str:
        """For people: the totals, the ops that lose most, the parameters that lose most; before and after range control."""
        if self.controlled is None:
            return self._table(rows)
        without, within = replace(self, controlled=None), self.controlled
        return f"Without range control:\n{without._table(rows)}\n\nWith range control:\n{within._table(rows, True)}"

    def _table(self, rows: int, controlled: bool = False) -> str:
        overflowed = sum(f.products.overflowed for f in self.product_findings if f.products)
        near = sum(f.products.near for f in self.product_findings if f.products)
        sums = sum(f.products.sums for f in self.product_findings if f.products)
        lines = [
            f"loss {self.loss:.6f} in the engine's arithmetic, {self.loss_exact:.6f} in PyTorch",
            f"incoming gradient times {self.loss_scale:g}; each tensor then has a power of two of its own"
            if controlled
            else f"loss scale {self.loss_scale:g}, recommended {self.recommended_loss_scale:g}",
            f"products dropped: forward {self.dropped_share('forward'):.2%}, backward {self.dropped_share('backward'):.2%}",
            f"sums near the range's end: {near:,}, past it: {overflowed:,} of {sums:,}",
            f"lost parameters: {', '.join(self.lost_parameters) or 'none'}",
            "",
            f"{'products dropped':>16} {'largest':>9} {'smallest':>9} {'zeros':>6}  op",
        ]
        worst = sorted(self.product_findings, key=lambda f: -f.products.dropped_share if f.products else 0.0)
        for f in worst[:rows]:
            assert f.products is not None
            m = f.magnitudes
            lines.append(
                f"{f.products.dropped_share:16.2%} {_power(m.largest):>9} {_power(m.smallest):>9} {m.zeros / m.count:6.1%}  "
                f"{f.graph} {f.op} {f.where or f.program} ({f.tensor})"
            )
        lines += ["", f"{'entries lost':>16} {'error':>9} {'largest':>9}         parameter"]
        for p in sorted(self.parameters, key=lambda p: (-p.lost_share, -p.relative_error))[:rows]:
            lines.append(f"{p.lost_share:16.2%} {p.relative_error:9.2%} {_power(p.largest):>9}  {'LOST' if p.is_lost else '    '}   {p.name}")
        return "\n".join(lines)

    def to_svg(self) -> str:
        """One bar per product in the order of execution, from its smallest result to its largest; the window shaded.
        Below it the same under range control."""
        reports = [(self, "Results of products: smallest to largest. Shaded: the window of the engine.")]
        if self.controlled is not None:
            reports.append((self.controlled, "The same under range control, as they are stored."))
        width = max(_LEFT + _STEP * len(report.product_findings) + 20 for report, _ in reports)
        width = max(420, width)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_PICTURE * len(reports)}" font-family="sans-serif" font-size="10">',
            "<style>.f{stroke:#2563eb}.b{stroke:#d97706}.o{stroke:#dc2626}text{fill:#444}</style>",
        ]
        for index, (report, title) in enumerate(reports):
            parts += [f'<g transform="translate(0 {_PICTURE * index})">', *report._picture(width, title), "</g>"]
        return "\n".join([*parts, "</svg>"]) + "\n"

    def _picture(self, width: int, title: str) -> list[str]:
        findings = self.product_findings
        left, top, height, step = _LEFT, 34, 320, _STEP
        low, high = -26, 17

        def y(power: float) -> float:
            return round(top + (high - max(low, min(high, power))) / (high - low) * height, 1)

        parts = [
            f'<rect x="{left}" y="{y(HIGHEST)}" width="{width - left - 10}" height="{y(LOWEST) - y(HIGHEST)}" fill="#16a34a" fill-opacity="0.1"/>',
            f'<text x="{left}" y="14">{title}</text>',
            f'<text x="{left}" y="27">{_LEGEND}</text>',
        ]
        for power in range(low + 2, high, 8):
            parts.append(f'<text x="4" y="{y(power) + 3}">2^{power}</text><line x1="{left - 4}" x2="{left}" y1="{y(power)}" y2="{y(power)}" stroke="#999"/>')
        for index, f in enumerate(findings):
            m, x = f.magnitudes, left + step * index + step / 2
            assert f.products is not None
            kind = "o" if f.products.overflowed else "b" if f.graph == "backward" else "f"
            if m.largest > 0:
                about = escape(f"{f.graph} {f.op} {f.where or f.program}: {_power(m.smallest)} to {_power(m.largest)}, {f.products.dropped_share:.1%} of products dropped")
                parts.append(
                    f'<line class="{kind}" x1="{x}" x2="{x}" y1="{y(math.log2(m.smallest))}" y2="{y(math.log2(m.largest))}" '
                    f'stroke-width="4"><title>{about}</title></line>'
                )
        return parts


def _power(value: float) -> str:
    return f"2^{math.log2(value):.1f}" if value > 0 else "0"
