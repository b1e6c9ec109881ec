"""Everything that `torchane inspect` knows of a file, as JSON-ready values: one dict for machines and for the view.

found = describe(Path("model.mlmodelc"))
found["kind"], found["program"]["functions"][0]["ops"]["conv"]
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torchane.chips import Chip, Finding, Verdict, doubts, refusals, warnings
from torchane.chips import load as load_chip
from torchane.errors import CompileError, ParseError, UsageError
from torchane.inspect import e5, hwx, mlmodelc, mlpackage
from torchane.inspect.hwx.describe import describe as describe_hwx
from torchane.inspect.mlmodel import MLModel
from torchane.inspect.ports import Description, plain
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

    def __init__(self, path: str | os.PathLike[str]):
        """Raises ParseError for what is missing, unknown or damaged."""
        self.path = path = Path(path)
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
            elif self.model is not None and self.model.stages:
                kind += f" of {len(self.model.stages)} models; take one that is in a file of its own"
            raise UsageError(f"{what} needs a program in MIL, and {self.path} is a {kind}.")
        return self.program

    def to_dict(self, *, with_ops: bool = False, with_weights: bool = False) -> dict[str, Any]:
        """JSON-ready. Raises ParseError for a damaged file."""
        found: dict[str, Any] = {"path": str(self.path), "kind": self.kind.value, "size_bytes": _size(self.path)}
        options = {"with_ops": with_ops, "with_weights": with_weights}
        if self.model is not None:
            found["model"] = _model(self.model)
        elif self.kind in (Kind.MLMODELC, Kind.PIPELINE, Kind.COMPILED):
            found["model"] = mlmodelc.summary(self.path)
        if self.program is not None:
            # Where a constant lies is known before it is read.
            program = load_program(self.path, with_weights=False) if with_weights else self.program
            found["program"] = _program(program, self.program, **options)
        if self.kind is Kind.PIPELINE:
            found["stages"] = [Inspection(stage).to_dict(**options) for stage in mlmodelc.stages(self.path)]
        elif self.model is not None and self.model.stages:
            found["stages"] = list(_stages(self.model, str(self.path), **options))
        if self.missing_weights is not None:
            found["weights_missing"] = self.missing_weights
        if self.kind in (Kind.MLMODELC, Kind.PIPELINE, Kind.COMPILED, Kind.MLPACKAGE):
            found["not_read"] = list(_not_read(self.path, self.kind))
        if self.kind is Kind.HWX:
            found["hwx"] = describe_hwx(hwx.parse(_read(self.path), str(self.path)))
        elif self.kind is Kind.E5_DESCRIPTOR:
            found["e5"] = asdict(e5.parse_descriptor(_read(self.path), str(self.path)))
        elif self.kind is Kind.E5:
            found["e5"] = asdict(e5.read_bundle(self.path))
        elif self.kind is Kind.BLOBS:
            found |= _records(self.path)
        return found

    def on_chip(self, chip: Chip | str) -> dict[str, Any]:
        """What a chip, or the one of that name, refuses of the program, function by function, what is doubtful, what it
        warns of, and its verdict on every kind of op and on the whole: the worst of what was found."""
        chip = load_chip(chip) if isinstance(chip, str) else chip
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

    def differences(self, other: "Inspection | str | os.PathLike[str]") -> list[dict[str, str]]:
        """What the other program, or that of another file, does differently from this one."""
        other = other if isinstance(other, Inspection) else Inspection(other)
        found = diff(self.require_program("--diff"), other.require_program("--diff"))
        return [asdict(difference) for difference in found]


def _fault(program: Program) -> str | None:
    """Why the program is not well formed; None if it is."""
    try:
        check(program)
    except CompileError as error:
        return str(error)
    return None


def _program(program: Program, loaded: Program, *, with_ops: bool, with_weights: bool) -> dict[str, Any]:
    """loaded: the same program with its weights, if they are there, for the checker."""
    left_out = [name for name, wanted in zip(_LONG, (with_ops, with_weights)) if not wanted]
    default = {} if program.default_function is None else {"default_function": program.default_function}
    return {
        "version": program.version,
        "build_info": dict(program.build_info),
        **default,
        "functions": [_function(function, left_out) for function in report(program)],
        "fault": _fault(loaded),
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
        "dropped": list(model.dropped),
    }


def _stages(model: MLModel, path: str, **options: bool) -> Iterator[dict[str, Any]]:
    """The models of a pipeline in one file, as the files of one in a folder are described."""
    for place, (name, stage) in enumerate(model.stages):
        within = f"{path}, model {place}{f' ({name})' if name else ''}"
        found = {"path": within, "kind": Kind.MLMODEL.value, "size_bytes": stage.size_bytes, "model": _model(stage)}
        if stage.program is not None:
            found["program"] = _program(stage.program, stage.program, **options)
        if stage.stages:
            found["stages"] = list(_stages(stage, within, **options))
        yield found


def _description(description: Description) -> dict[str, Any]:
    found: dict[str, Any] = {
        "inputs": plain(description.inputs),
        "outputs": plain(description.outputs),
        "states": plain(description.states),
    }
    if description.training_inputs:
        found["training inputs"] = plain(description.training_inputs)
    if description.predicted:
        found["predicted"] = list(description.predicted)
    return found


def _not_read(path: Path, kind: Kind) -> Iterator[str]:
    """The files of a folder that hold neither the model, nor weights, nor what is said of it, by their place in it.
    A program may name weight files by any name, so that their content tells them."""
    read = {path / "model.mil", path / mlmodelc.METADATA, path / mlpackage.MANIFEST}
    if kind is Kind.MLPACKAGE:
        read.add(mlpackage.model_path(path))
    apart = mlmodelc.stages(path) if kind is Kind.PIPELINE else ()
    for file in sorted(path.rglob("*")):
        within = file.relative_to(path)
        known = file in read or any(file.is_relative_to(stage) for stage in apart)
        if file.is_file() and not known and not _holds_weights(file):
            yield str(within)


def _holds_weights(file: Path) -> bool:
    try:
        return kind_of(file) is Kind.BLOBS
    except ParseError:
        return False


def _records(path: Path) -> dict[str, Any]:
    """Every record that is there, and what else is. Raises BlobError for a file with nothing else."""
    survey = BlobFile.open(path).survey()
    if survey.faults and not survey.records:
        raise survey.faults[0]
    shown = [
        {"offset": record.offset, "data": record.start, "dtype": record.dtype.mil_name, "values": record.size,
         "bytes": record.size_bytes}
        for record in survey.records
    ]  # fmt: skip
    return {"records": shown, "records_counted": survey.counted, "faults": [str(fault) for fault in survey.faults]}


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
