"""Everything that `torchane inspect` knows of a file, as JSON-ready values: one dict for machines and for the view.

found = describe(Path("model.mlmodelc"))
found["kind"], found["program"]["functions"][0]["ops"]["conv"]
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torchane.chips import Chip, Finding, Verdict, doubts, refusals, warnings
from torchane.errors import CompileError, ParseError, UsageError
from torchane.inspect import e5, hwx, mlmodelc, mlpackage
from torchane.inspect.hwx.describe import describe as describe_hwx
from torchane.inspect.mlmodel import Description, MLModel, Port
from torchane.inspect.recognize import Kind, kind_of, load_program
from torchane.inspect.report import FunctionReport, report
from torchane.mil.blobs import BlobFile
from torchane.mil.check import check
from torchane.mil.diff import diff
from torchane.mil.files import read_whole
from torchane.mil.ir import Program, walk

_LONG = ("lines", "weights")


class Inspection:
    """One file or folder: what it is, and its program if it holds one."""

    def __init__(self, path: Path):
        """Raises ParseError for what is missing, unknown or damaged."""
        self.path = path
        self.kind = kind_of(path)
        self.missing_weights: str | None = None
        self.program: Program | None = None
        self.model: MLModel | None = None
        if self.kind in (Kind.MLPACKAGE, Kind.MLMODEL):
            self.model = mlpackage.read(path, with_weights=False)
            if self.model.program is None:
                return
        if self.kind.holds_program:
            try:
                self.program = load_program(path)
            except ParseError as error:
                self.program = load_program(path, with_weights=False)  # raises where more than weights is wrong
                self.missing_weights = str(error)

    def require_program(self, what: str) -> Program:
        """Raises UsageError where there is none."""
        if self.program is None:
            kind = self.kind.value if self.model is None else f"{self.kind.value} of the kind {self.model.kind}"
            if self.kind is Kind.PIPELINE:
                kind += f"; take one of its models, {mlmodelc.stages(self.path)[0]} and so on"
            raise UsageError(f"{what} needs a program in MIL, and {self.path} is a {kind}.")
        return self.program

    def to_dict(self, *, with_ops: bool = False, with_weights: bool = False) -> dict[str, Any]:
        """JSON-ready. Raises ParseError for a damaged file."""
        found: dict[str, Any] = {"path": str(self.path), "kind": self.kind.value, "size_bytes": _size(self.path)}
        if self.model is not None:
            found["model"] = _model(self.model)
        elif self.kind is Kind.MLMODELC:
            found["model"] = mlmodelc.summary(self.path)
        elif self.kind in (Kind.PIPELINE, Kind.COMPILED):
            found["model"] = mlmodelc.summary(self.path)
        if self.program is not None:
            # Where a constant lies is known before it is read.
            program = load_program(self.path, with_weights=False) if with_weights else self.program
            found["program"] = _program(program, with_ops, with_weights)
            found["program"]["fault"] = _fault(self.program)
        if self.kind is Kind.PIPELINE:
            options = {"with_ops": with_ops, "with_weights": with_weights}
            found["stages"] = [Inspection(stage).to_dict(**options) for stage in mlmodelc.stages(self.path)]
        if self.missing_weights is not None:
            found["weights_missing"] = self.missing_weights
        if self.kind is Kind.HWX:
            found["hwx"] = describe_hwx(hwx.parse(_read(self.path), str(self.path)))
        elif self.kind is Kind.E5_DESCRIPTOR:
            found["e5"] = asdict(e5.parse_descriptor(_read(self.path), str(self.path)))
        elif self.kind is Kind.E5:
            found["e5"] = asdict(e5.read_bundle(self.path))
        elif self.kind is Kind.BLOBS:
            found["records"] = _records(self.path)
        return found

    def on_chip(self, chip: Chip) -> dict[str, Any]:
        """What a chip refuses of the program, function by function, what is doubtful, what it warns of, and its verdict
        on every kind of op and on the whole: the worst of what was found."""
        program = self.require_program("--chip")
        several = len(program.functions) > 1
        found: dict[str, Any] = {"name": chip.name, "title": chip.title, "verdict": "", "refusals": [], "doubts": [], "warnings": [], "ops": {}}
        for function in program.functions:
            alone = replace(program, functions=(function,))
            for key, judge in (("refusals", refusals), ("doubts", doubts), ("warnings", warnings)):
                named = {"function": function.name} if several else {}
                found[key] += [_finding(finding) | named for finding in judge(alone, chip)]
        kinds = sorted({op.kind.name for function in program.functions for op in walk(function.ops)} - {"const"})
        found["ops"] = {kind: _op_verdict(kind, chip) for kind in kinds}
        verdicts = {finding["verdict"] for finding in (*found["refusals"], *found["doubts"])}
        found["verdict"] = next((v.value for v in _WORST_FIRST if v.value in verdicts), Verdict.TAKES.value)
        return found

    def differences(self, other: "Inspection") -> list[dict[str, str]]:
        """What the other program does differently from this one."""
        found = diff(self.require_program("--diff"), other.require_program("--diff"))
        return [asdict(difference) for difference in found]


def _fault(program: Program) -> str | None:
    """Why the program is not well formed; None if it is."""
    try:
        check(program)
    except CompileError as error:
        return str(error)
    return None


def _program(program: Program, with_ops: bool, with_weights: bool) -> dict[str, Any]:
    left_out = [name for name, wanted in zip(_LONG, (with_ops, with_weights)) if not wanted]
    return {
        "version": program.version,
        "build_info": dict(program.build_info),
        "functions": [_function(function, left_out) for function in report(program)],
    }


def _function(function: FunctionReport, left_out: list[str]) -> dict[str, Any]:
    return {key: value for key, value in asdict(function).items() if key not in left_out}


def _model(model: MLModel) -> dict[str, Any]:
    return {
        "specification_version": model.specification_version,
        "kind": model.kind,
        "description": _description(model.description),
        "functions": {name: _description(described) for name, described in model.functions.items()},
        "metadata": dict(model.metadata),
    }


def _description(description: Description) -> dict[str, Any]:
    def shown(ports: tuple[Port, ...]) -> dict[str, str]:
        return {port.name: str(port) for port in ports}

    return {
        "inputs": shown(description.inputs),
        "outputs": shown(description.outputs),
        "states": shown(description.states),
    }


def _records(path: Path) -> list[dict[str, Any]]:
    return [
        {"offset": record.offset, "dtype": record.dtype.mil_name, "values": record.size, "bytes": record.size_bytes}
        for record in BlobFile.open(path).records()
    ]


_WORST_FIRST = (Verdict.REFUSES, Verdict.DISAGREE, Verdict.UNKNOWN)


def _op_verdict(kind: str, chip: Chip) -> dict[str, str]:
    fact = chip.op(kind)
    return {"verdict": chip.verdict(kind).value, "certainty": fact.certainty.value, "source": fact.source}


def _finding(found: Finding) -> dict[str, str]:
    return {
        "name": found.name,
        "rule": found.rule,
        "verdict": found.verdict.value,
        "reason": found.reason,
        "do": found.do,
        "source": found.source,
        "certainty": found.certainty.value,
    }


def _read(path: Path) -> bytes:
    return read_whole(path, "the file")


def _size(path: Path) -> int:
    try:
        files = (path,) if path.is_file() else (file for file in path.rglob("*") if file.is_file())
        return sum(file.stat().st_size for file in files)
    except OSError as error:
        raise ParseError(f"{path}: it cannot be read: {error.strerror or error}.") from error
