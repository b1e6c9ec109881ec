"""Who may import whom: each package only what stands above it in the house."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "torchane"

#: From the ground up; a row may import the rows before it and itself.
FLOORS = (
    {"errors"},
    {"mil"},
    {"chips"},
    {"native"},
    {"inspect"},
    {"passes"},
    {"plan"},
    {"runtime"},
    {"capture"},
    {"optim"},
    {"models", "data"},
    {"generate", "energy", "train"},
    {"cli"},
)
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
NUMPY_ONLY = {"errors", "mil", "chips", "inspect", "passes", "plan", "runtime", "native"}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem not in ("__init__", "__main__"))


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_only_what_stands_above_it(path: Path) -> None:
    package = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "torchane" and len(parts) > 1 and parts[1] in LEVEL:
            assert LEVEL[parts[1]] <= LEVEL[package], f"{package} imports {parts[1]}, which stands below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_compiler_and_its_tools_do_not_need_torch(path: Path) -> None:
    package = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if package in NUMPY_ONLY:
        assert not [name for name in _imports(path) if name.split(".")[0] in ("torch", "transformers")]


def test_aten_is_named_in_capture_alone() -> None:
    named = [path for path in FILES if "ops.aten" in path.read_text(encoding="utf-8")]
    assert {path.relative_to(SOURCE).parts[0] for path in named} <= {"capture"}
