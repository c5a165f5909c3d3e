"""The package's layers: imports run downwards only, and no file or folder grows past what one can see at once."""

import ast
from pathlib import Path

import pytest
from toy import Toy

ROOT = Path(__file__).parent.parent
# From the bottom up; names in one row do not import each other.
LAYERS = (("files", "distributed"), ("models",), ("scenes3d", "inference"), ("data",),
          ("evaluation", "config"), ("recipe",), ("checkpoints",), ("training", "predict"))
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted((ROOT / "air").rglob("*.py"))
SCRIPTS = [ROOT / "train.py", *(path for folder in ("benchmarks", "experiments")
                                for path in sorted((ROOT / folder).rglob("*.py")))]


def imported(path):
    """Dotted names of the modules that a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ([f"air.{name.name}" for name in node.names] if node.module == "air" else [node.module])
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__init__.py" or path.parent.name != "air"],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path):
    own = path.relative_to(ROOT / "air").parts[0].removesuffix(".py")
    above = [name for name in imported(path) if name.split(".")[0] == "air" and name.split(".")[1] != own
             and LEVEL[name.split(".")[1]] >= LEVEL[own]]
    assert not above


def test_the_layers_are_all_that_the_package_holds():
    entries = {path.name.removesuffix(".py") for path in (ROOT / "air").iterdir() if path.name != "__pycache__"}
    assert entries == {*LEVEL, "__init__", "py.typed"} and len(entries) <= 14


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 350


@pytest.mark.parametrize("module", ["elbo", "estimator", "enumerate", "nvil", "vimco"])
def test_estimators_ask_a_model_for_nothing_that_the_toy_has_not(module):
    """So they know nothing of latents, of how objects make up an image, or of images at all."""
    tree = ast.parse((ROOT / "air" / "inference" / f"{module}.py").read_text())
    asked = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
             and ast.unparse(node.value) in ("model", "self.model")}
    assert asked <= {*dir(Toy())}
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith(("air.models.air", "air.models.compositing", "air.scenes3d")) for name in imported)
