"""Fit the constants of the cost model to published points and write src/torchane/plan/fitted.toml.

    python scripts/fit_cost_model.py            fits, prints the errors, writes the file
    python scripts/fit_cost_model.py --check    fits nothing: says whether the file is what its constants give

Only points that are not `held_out` are fitted. What is minimised is the log of predicted / published, squared up to 0.3 and
linear beyond (some figures are off by several times, and none may rule), each point weighted by one over the root of how
many its source has of that machine (a sweep of twenty sizes is no twenty witnesses), plus a weak pull to published readings of
each constant. Coordinate descent from there: no randomness, the same bits every time. See docs/cost-model.md.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from torchane.chips.points import Point, machine, points
from torchane.plan.constants import ENGINE_OF, KNOWN_FORMS, Fitted, load_fitted
from torchane.plan.cost import Engine, Globals, program_cost

OUT = Path(__file__).resolve().parents[1] / "src" / "torchane" / "plan" / "fitted.toml"
#: The log error up to which a residual counts by its square; the strength of the pull to START.
LINEAR_BEYOND, PULL = 0.3, 0.1

#: Published readings that the fit starts from and is pulled to; who reports them is explained in chips/SOURCES.md.
START_GLOBALS = {"columns_half": 10.0, "tile_columns": 96.0, "cast_factor": 1.5}
START_ENERGY = {"active_w": 1.0, "joule_per_flop": 0.37e-12, "joule_per_weight_byte": 20e-12}
START_ENGINES = {  # s, bytes/s of surfaces, bytes/s of weights
    "m1": (2.0e-4, 8e9, 51e9),  # GDE M1: 0.19 to 0.23 ms, 9 GB/s of a roofline, 51 GB/s of weights
    "m2": (1.2e-4, 10e9, 51e9),  # no reading: between M1 and M3
    "m3": (1.3e-4, 45e9, 48e9),  # SLV 0.13 ms, Yoon 45 to 60 GB/s of weights
    "m4": (9.0e-5, 40e9, 50e9),  # MDX 0.09 ms, LED 43.5 GB/s of weights
    "m4max": (1.2e-4, 40e9, 107e9),  # ORI 0.095, PR40 0.175 ms, MXF 107 GB/s of weights
    "m5": (1.0e-4, 31e9, 130e9),  # GDE 0.11 ms, 24 GB/s of activations, 112 to 145 GB/s of weights
    "m5max": (9.5e-5, 40e9, 140e9),  # QANE 0.095 ms, 70 GB/s of activations, 150 GB/s of weights
    "m6": (2.5e-4, 38e9, 150e9),  # M6S 0.16 to 0.36 ms, 35 to 40 GB/s of activations, 150 GB/s of weights
}


def time_ratio(point: Point, fitted: Fitted) -> float:
    """Predicted over published milliseconds."""
    cost = program_cost(
        point.layers, point.bytes_in, point.bytes_out, machine(point.chip), fitted.engines[engine_of(point)], fitted.shared,
        fp32_surfaces=point.surfaces == "fp32", dispatches=point.dispatches,
    )  # fmt: skip
    return cost.time_s * 1e3 / point.ms


def energy_ratio(point: Point, fitted: Fitted) -> float:
    """Predicted over published millijoules of the rail, at the published time: the power alone is judged."""
    assert point.watts is not None
    cost = program_cost(
        point.layers, point.bytes_in, point.bytes_out, machine(point.chip), fitted.engines[engine_of(point)], fitted.shared
    )
    published_s = point.ms / 1e3
    return (cost.energy_j + fitted.shared.active_w * (published_s - cost.time_s)) / (point.watts * published_s)


def engine_of(point: Point) -> str:
    """An "M5 (Max class GPU)" is priced as an M5: the figures called M5 Max were taken beside another server."""
    return "m5" if "class" in point.machine and point.chip.startswith("m5") else ENGINE_OF[point.chip]


def descend(start: np.ndarray, loss: Callable[[np.ndarray], float], rounds: int = 14) -> np.ndarray:
    """Coordinate descent in the log of each constant, its step shrinking every round."""
    best, least, step = start, loss(start), 0.3
    for _ in range(rounds):
        for axis in range(len(best)):
            for sign in (1.0, -1.0):
                while True:
                    tried = best.copy()
                    tried[axis] += sign * step
                    value = loss(tried)
                    if value >= least - 1e-9:
                        break
                    best, least = tried, value
        step *= 0.65
    return best


def robust(ratios: Sequence[float], weights: np.ndarray) -> float:
    error = np.abs(np.log(np.array(ratios)))
    square = error**2 / (2 * LINEAR_BEYOND)
    return float(np.sum(weights * np.where(error < LINEAR_BEYOND, square, error - LINEAR_BEYOND / 2)))


def fit(used: Sequence[Point]) -> Fitted:
    """Constants of time from all points, then those of energy from the points with watts."""
    counts = Counter((point.machine, point.source) for point in used)
    weights = np.array([counts[point.machine, point.source] ** -0.5 for point in used])
    weights /= weights.mean()
    names = list(START_ENGINES)
    start = np.log(np.array([*START_GLOBALS.values(), *(value for name in names for value in START_ENGINES[name])]))

    def built(x: np.ndarray) -> Fitted:
        plain = np.exp(x)
        engines = {name: Engine(*map(float, plain[3 + 3 * i : 6 + 3 * i])) for i, name in enumerate(names)}
        return Fitted(Globals(*map(float, plain[:3]), *START_ENERGY.values()), engines)

    x = descend(start, lambda x: robust([time_ratio(p, built(x)) for p in used], weights) + PULL * float(np.sum((x - start) ** 2)))
    fitted = built(x)
    metered = [point for point in used if point.watts is not None]
    even = np.ones(len(metered))

    def powered(y: np.ndarray) -> Fitted:
        return Fitted(Globals(*list(vars(fitted.shared).values())[:3], *map(float, np.exp(y))), fitted.engines)

    begin = np.log(np.array(list(START_ENERGY.values())))
    return rounded(powered(descend(begin, lambda y: robust([energy_ratio(p, powered(y)) for p in metered], even))))


def rounded(fitted: Fitted) -> Fitted:
    """As the file will have them, so that its residuals are theirs."""

    def six(record: Globals | Engine) -> dict[str, float]:
        return {name: float(f"{value:.6g}") for name, value in vars(record).items()}

    return Fitted(Globals(**six(fitted.shared)), {name: Engine(**six(engine)) for name, engine in fitted.engines.items()})


def group_of(point: Point) -> str:
    """Which errors a prediction of this kind has shown: "known", "form" (a form that no constant has seen) or "chip"."""
    if point.machine in UNSEEN_MACHINES:
        return "chip"
    forms = any(layer.form not in KNOWN_FORMS or layer.weight_bits < 16 for layer in point.layers)
    return "form" if forms or point.route == "mle5" else "known"


UNSEEN_MACHINES = ("M1 (Air)", "M2 Pro", "M3 Ultra", "M5 Pro", "M3 Max", "M3 (Air)", "M4 Pro")


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """published / predicted: the tenth and the ninetieth of a hundred, and the median of |predicted / published - 1|."""
    inverse = 1 / np.array(ratios)
    off = np.abs(np.array(ratios) - 1)
    return {
        "points": len(ratios), "low": float(np.quantile(inverse, 0.1)), "high": float(np.quantile(inverse, 0.9)),
        "median_error": float(np.median(off)), "beyond_two": int(np.sum((inverse > 2) | (inverse < 0.5))),
    }  # fmt: skip


def summary(fitted: Fitted) -> dict[str, dict[str, float]]:
    """Errors by group: what was fitted, what was held out, and that by why it was; the same for energy."""
    scored = [point for point in points() if not point.unusable]
    held = [point for point in scored if point.held_out]
    found = {
        "fitted": spread([time_ratio(p, fitted) for p in scored if not p.held_out]),
        "held_out": spread([time_ratio(p, fitted) for p in held]),
    }
    for group in ("known", "form", "chip"):
        found[group] = spread([time_ratio(p, fitted) for p in held if group_of(p) == group])
    metered = [point for point in scored if point.watts is not None]
    found["energy_fitted"] = spread([energy_ratio(p, fitted) for p in metered if not p.held_out])
    found["energy_held_out"] = spread([energy_ratio(p, fitted) for p in metered if p.held_out])
    return found


def text_of(fitted: Fitted) -> str:
    """The file, by hand: a table for each constant, each error, each residual."""
    lines = ["# Written by scripts/fit_cost_model.py; do not edit. Constants, errors and every residual of the cost model.", "", "[shared]"]
    lines += [f"{name} = {value:.6g}" for name, value in vars(fitted.shared).items()]
    for name, engine in fitted.engines.items():
        lines += ["", f"[engines.{name}]", *(f"{key} = {value:.6g}" for key, value in vars(engine).items())]
    for name, values in summary(fitted).items():
        lines += ["", f"[errors.{name}]", "# published / predicted, 10th and 90th percentile; |predicted / published - 1|"]
        lines += [f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}" for key, value in values.items()]
    lines += ["", "# ratio: predicted / published milliseconds; energy_ratio: of millijoules at the published time.", "residuals = ["]
    for point in points():
        if point.unusable:
            continue
        energy = "" if point.watts is None else f", energy_ratio = {energy_ratio(point, fitted):.3f}"
        held = ", held_out = true" if point.held_out else ""
        lines.append(
            f'    {{ machine = "{point.machine}", kind = "{point.kind}", shape = "{point.shape}", ms = {point.ms:g}, '
            f"ratio = {time_ratio(point, fitted):.3f}{energy}{held} }},"
        )
    lines.append("]")
    residuals = lines[lines.index("residuals = [") :]
    head = lines[: lines.index("residuals = [") - 1]
    note = lines[lines.index("residuals = [") - 1]
    return "\n".join([head[0], "", note, *residuals, *head[1:]]) + "\n"


def show(fitted: Fitted) -> None:
    for name, values in summary(fitted).items():
        print(f"{name:16} " + "  ".join(f"{key} {value:.3g}" for key, value in values.items()))
    for point in points():
        if point.held_out and not 0.5 <= time_ratio(point, fitted) <= 2:
            print(f"beyond 2 times: {point.machine}, {point.kind} {point.shape}: {time_ratio(point, fitted):.2f} of {point.ms} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fit nothing; compare the file with what its constants give")
    if parser.parse_args().check:
        show(load_fitted())
        assert text_of(load_fitted()) == OUT.read_text(encoding="utf-8"), f"{OUT} is not what its constants give: fit again"
        return
    fitted = fit([point for point in points() if not point.held_out and not point.unusable])
    OUT.write_text(text_of(fitted), encoding="utf-8")
    show(fitted)


if __name__ == "__main__":
    main()
