"""preprocessing <- planning <- sam3dnet: read from the sources, nothing is imported."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED_OF_SAM3DNET = {
    "preprocessing": ("sam3dnet.errors", "sam3dnet.preprocessing"),
    "planning": ("sam3dnet.errors", "sam3dnet.preprocessing", "sam3dnet.planning"),
    "sam3dnet": ("sam3dnet",),
}
HEAVY = {"torch", "numpy", "scipy", "SimpleITK", "nnunetv2", "batchgenerators", "matplotlib", "tqdm"}


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of each module, or of each thing taken from a module, that is imported anywhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the direction"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def sources() -> list[Path]:
    return sorted(path for folder in ALLOWED_OF_SAM3DNET for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_what_it_may_know(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    for name in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
        assert not is_within(name, ("planning", "preprocessing")), f"import {name} as sam3dnet.{name}"
        if is_within(name, ("sam3dnet",)):
            assert is_within(name, ALLOWED_OF_SAM3DNET[folder]), f"{folder} must not know {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "sam3dnet" / "cli").glob("*.py")), ids=lambda path: path.stem)
def test_commands_import_nothing_heavy_before_parsing(path: Path) -> None:
    """What a command's module imports at its top is light, so that --help answers at once."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        for name in imported_names(node) if isinstance(node, ast.Import | ast.ImportFrom) else ():
            assert name.partition(".")[0] not in HEAVY
            light = ("sam3dnet.__version__", "sam3dnet.cli", "sam3dnet.errors", "sam3dnet.settings")
            assert not is_within(name, ("sam3dnet",)) or is_within(name, light)


@pytest.mark.parametrize("path", sorted((ROOT / "sam3dnet" / "settings").glob("*.py")), ids=lambda path: path.stem)
def test_settings_know_nothing_but_errors(path: Path) -> None:
    for name in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
        assert name.partition(".")[0] not in HEAVY
        assert not is_within(name, ("sam3dnet",)) or is_within(name, ("sam3dnet.errors", "sam3dnet.settings"))


@pytest.mark.parametrize("path", [path for path in sources() if path.name == "__init__.py"], ids=str)
def test_packages_import_nothing(path: Path) -> None:
    """The front door imports what it offers for type checkers alone."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    statements = [node for node in body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
    light = {"importlib.import_module", "typing.TYPE_CHECKING", "typing.Any"}
    assert {name for node in statements for name in imported_names(node)} <= light


@pytest.mark.parametrize("path", sorted((ROOT / "sam3dnet" / "inference").glob("*.py")), ids=lambda path: path.stem)
def test_what_segments_by_itself_knows_nothing_of_answers_to_prompts(path: Path) -> None:
    names = list(imported_names(ast.parse(path.read_text(encoding="utf-8"))))
    assert not [name for name in names if is_within(name, ("sam3dnet.interactive", "sam3dnet.model"))]


@pytest.mark.parametrize("name", ["planning", "preprocessing"])
def test_outer_folders_refuse_another_name(name: str) -> None:
    """From the checkout, `import planning` would find the folder; it must not become a second copy."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {name}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert f"import sam3dnet.{name}" in run.stderr
