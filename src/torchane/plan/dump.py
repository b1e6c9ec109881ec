"""Writes a plan and its programs into a folder, as an engine would be handed them.

    forward.txt                    the plan, one line a step; above it, which sizes it serves where sizes vary
    forward/00_layers_0/model.mil  a program's text
    forward/00_layers_0/weights/   the files that its BLOBFILE constants name
    forward/00_layers_0/passes.txt what each pass left of it, how long it took and how far it may move numbers
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from torchane.errors import RunFolderError
from torchane.plan.plan import Plan, ProgramSpec


def dump_plan(plan: Plan, folder: Path, notes: Sequence[str] = ()) -> None:
    """notes: lines above the plan. Raises RunFolderError where the folder cannot be written."""
    try:
        target = folder / plan.name
        target.mkdir(parents=True, exist_ok=True)
        (folder / f"{plan.name}.txt").write_text("\n".join([*notes, f"{plan}\n"]), encoding="utf-8")
        for program in plan.programs:
            own = target / program.name
            own.mkdir(exist_ok=True)
            (own / "model.mil").write_text(program.text, encoding="utf-8")
            (own / "passes.txt").write_text(_passes(program), encoding="utf-8")
            for path, content in program.blobs.items():
                file = own / PurePosixPath(path).relative_to("@model_path")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
    except OSError as error:
        raise RunFolderError(
            f"Cannot write the programs to {folder}: {error.strerror}. Choose another folder "
            "(--dump, or options={'dump': ...})."
        ) from error


def _passes(program: ProgramSpec) -> str:
    """A line for each pass, in order. Layers of equal structure share a program, which was lowered once."""
    if not program.passes:
        return "This program was lowered by another process and kept on disk. options={'cache': 'off'} lowers it again.\n"
    lines = [f"{'pass':22} {'ops after':>9} {'ms':>8}  numbers"]
    lines += [f"{one.name:22} {one.ops:9,} {1e3 * one.time_s:8.2f}  {one.moves or 'the same bits'}" for one in program.passes]
    return "\n".join(lines) + "\n"
