"""Which way imports point, read from the syntax trees, and what `import forgetkit` loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("timm", "transformers", "torchvision", "matplotlib", "datasets", "peft", "sklearn", "rich")
ECOSYSTEMS = {"timm", "transformers", "torchvision", "peft", "datasets"}
KNOWS_ECOSYSTEMS = {
    # Loading and saving in a library's own format, image files, and trained reference models.
    "loading", "saving", "torchvision_models", "images", "benchmark", "demo", "cli", "testing",
    "dryrun.sweep",
    # A callback has to derive from the class of the trainer that it is for.
    "trainer_log",
}  # fmt: skip
METHODS_MUST_NOT_IMPORT = {
    # Whatever knows devices, loaders, optimisers, files of models, or another method.
    "engine", "api", "cli", "data", "patch", "dryrun", "benchmark", "demo", "testing", "methods",
    "audit", "metrics", "loading", "saving", "result", "adapting", "hub", "images", "choosing",
}  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "forgetkit").rglob("*.py")):
        parts = path.relative_to(ROOT / "forgetkit").with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def imports(path: Path, *, only_at_run_time: bool = True) -> set[str]:
    """Return every module name that a file imports, those for type checkers left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[int] = set()
    if only_at_run_time:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped |= {id(inner) for statement in node.body for inner in ast.walk(statement)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def top_level_imports(path: Path) -> set[str]:
    """Return what is imported when the file itself is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


ALL = dict(modules())


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.slow
@pytest.mark.parametrize("statement", ["import forgetkit", "from forgetkit import forget"])
def test_importing_forgetkit_loads_nothing_heavy(statement: str) -> None:
    code = (
        f"import sys, torch; before = set(sys.modules); {statement}; "
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "forgetkit" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_every_public_name_can_be_imported() -> None:
    import forgetkit

    assert len(forgetkit.__all__) > 10
    for name in forgetkit.__all__:
        assert getattr(forgetkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = forgetkit.nothing


def test_no_module_hides_a_public_name() -> None:
    """Importing ``forgetkit.x`` puts the module in the place of a function of the same name."""
    import forgetkit

    assert not {name.partition(".")[0] for name in ALL} & set(forgetkit.__all__)


@pytest.mark.parametrize("name", [name for name in ALL if not within(name, KNOWS_ECOSYSTEMS)])
def test_the_core_names_no_ecosystem(name: str) -> None:
    roots = {module.partition(".")[0] for module in imports(ALL[name])}
    allowed = {"peft"} if name in ("weights", "hub") else set()
    assert roots & ECOSYSTEMS <= allowed


@pytest.mark.parametrize(
    "name", [name for name in ALL if not within(name, {"benchmark", "testing"})]
)
def test_no_file_loads_an_ecosystem_when_imported(name: str) -> None:
    roots = {module.partition(".")[0] for module in top_level_imports(ALL[name])}
    assert roots.isdisjoint(ECOSYSTEMS | {"matplotlib"})


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("methods.")])
def test_a_method_imports_mathematics_only(name: str) -> None:
    ours = {module for module in imports(ALL[name]) if module.startswith("forgetkit")}
    inner = {module.removeprefix("forgetkit.") for module in ours}
    assert not [module for module in inner if within(module, METHODS_MUST_NOT_IMPORT)]
    theirs = {module.partition(".")[0] for module in imports(ALL[name])} - {"forgetkit"}
    assert "accelerate" not in theirs


@pytest.mark.parametrize("name", [name for name in ALL if within(name, {"engine", "choosing"})])
def test_the_engine_names_no_method(name: str) -> None:
    assert not any(module.startswith("forgetkit.methods") for module in imports(ALL[name]))


MATHEMATICS = {
    "types", "losses", "errors", "per_sample", "curvature", "attacks", "sample_sums",
    "parameter_uses", "convolution_cuts", "moving",
}  # fmt: skip
"""Files that know torch and each other only."""


@pytest.mark.parametrize(
    "name",
    [name for name in ALL if name in MATHEMATICS],
)
def test_mathematics_knows_torch_and_types_only(name: str) -> None:
    ours = {module for module in imports(ALL[name]) if module.startswith("forgetkit")}
    assert {module.removeprefix("forgetkit.") for module in ours} <= MATHEMATICS


@pytest.mark.parametrize(
    "name", [name for name in ALL if within(name, {"patch", "data", "dryrun"})]
)
def test_the_layers_below_know_neither_engine_nor_command_line(name: str) -> None:
    for module in imports(ALL[name]):
        assert not module.startswith(("forgetkit.engine", "forgetkit.api", "forgetkit.cli"))


def test_no_file_is_a_drawer_for_everything() -> None:
    names = {path.stem for path in ALL.values()}
    assert names.isdisjoint({"utils", "helpers", "common", "misc"})


@pytest.mark.parametrize(
    "path", sorted((ROOT / "adapters" / "forgetkit_adapters").glob("*.py")), ids=lambda p: p.stem
)
def test_an_adapter_names_its_own_ecosystem_only(path: Path) -> None:
    roots = {module.partition(".")[0] for module in imports(path)}
    assert roots & ECOSYSTEMS <= {path.stem}
