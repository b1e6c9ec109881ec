"""Who may import whom: each package only what stands above it in the list, and no two files each other."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "torchane"

#: From the ground up; a row may import the rows before it and itself.
FLOORS = (
    {"errors"},
    {"interpreter"},
    {"options"},
    {"mil"},
    {"abi"},
    {"chips"},
    {"native"},
    {"inspect"},
    {"passes"},
    {"plan"},
    {"runtime"},
    {"capture"},
    {"optim"},
    {"models", "data"},
    {"convert"},
    {"energy", "train"},
    {"finetune"},
    {"generate"},
    {"cli"},
)
#: What a row may not import though it comes before: a device is handed text, and does not compile; a file's format has no programs.
APART = {"runtime": {"passes", "inspect"}, "convert": {"capture", "runtime", "plan", "passes"}}
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
NUMPY_ONLY = {"errors", "interpreter", "options", "mil", "abi", "chips", "inspect", "passes", "plan", "runtime", "native"}
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
            assert parts[1] not in APART.get(package, ()), f"{package} imports {parts[1]}, and does without it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_compiler_and_its_tools_do_not_need_torch(path: Path) -> None:
    package = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if package in NUMPY_ONLY:
        assert not [name for name in _imports(path) if name.split(".")[0] in ("torch", "transformers")]


def test_what_compiler_and_runtime_share_is_imported_from_its_home() -> None:
    """Ports, ranges and the numbers of the number format come from torchane.abi, not from a module that happens to use them."""
    homes = {path: ast.parse(path.read_text(encoding="utf-8")).body for path in (SOURCE / "abi").glob("*.py")}
    defined = {node.name for body in homes.values() for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    names = {name for body in homes.values() for node in body if isinstance(node, ast.Assign) for name in ast.walk(node.targets[0])}
    defined |= {name.id for name in names if isinstance(name, ast.Name) and name.id.isupper()}
    assert {"PortLayout", "Ranges", "FP16_MAX"} <= defined
    for path in FILES:
        for name in _imports(path):
            module, _, what = name.rpartition(".")
            if module.startswith("torchane.") and what in defined:
                assert module.startswith("torchane.abi."), f"{path.relative_to(SOURCE)} takes {what} from {module}"


def test_aten_is_named_in_capture_alone() -> None:
    named = [path for path in FILES if "ops.aten" in path.read_text(encoding="utf-8")]
    assert {path.relative_to(SOURCE).parts[0] for path in named} <= {"capture"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_what_torch_does_not_promise_is_reached_from_one_file(path: Path) -> None:
    """Names with an underscore, in any of torch's modules, and torch.fx.experimental. capture/torch_private.py alone has them."""
    if path.relative_to(SOURCE) == Path("capture/torch_private.py"):
        return
    text = path.read_text(encoding="utf-8")
    found = [name for name in _imports(path) if name.split(".")[0] == "torch" and _is_private(name)]
    found += [name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute) and _is_private(name := ast.unparse(node)) and name.startswith("torch.")]
    assert not found, f"{path.relative_to(SOURCE)} reaches {', '.join(found)}: take it from torchane.capture.torch_private"


def _is_private(name: str) -> bool:
    return name.startswith("torch.fx.experimental") or any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def test_no_two_modules_import_each_other() -> None:
    """Directly or over others, within functions and for type checkers included. A package's __init__ is a module of its own."""
    modules = {_module(path): path for path in SOURCE.rglob("*.py")}
    graph = {name: {_imported(found, modules) for found in _imports(path)} - {None} for name, path in modules.items()}
    _require_no_cycle(graph)


def test_no_two_files_of_the_extension_include_each_other() -> None:
    folder = ROOT / "csrc"
    files = {path for path in folder.rglob("*") if path.suffix in (".h", ".cpp")}
    graph: dict[str, set[str]] = {}
    for path in files:
        names = re.findall(r'^#include "(.+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
        found = {next(place for place in (path.parent / name, folder / name) if place in files) for name in names}
        graph[str(path)] = {str(place) for place in found}
    _require_no_cycle(graph)


def test_a_cycle_is_found() -> None:
    with pytest.raises(AssertionError, match="a -> b -> a|b -> a -> b"):
        _require_no_cycle({"a": {"b"}, "b": {"a"}})


def _module(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


def _imported(name: str, modules: dict[str, Path]) -> str | None:
    """The module of ours that an import of `name` reads: itself, or the one that it is a name of."""
    return name if name in modules else name.rpartition(".")[0] if name.rpartition(".")[0] in modules else None


def _require_no_cycle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError("a cycle: " + " -> ".join(error.args[1])) from error
