"""The public names, what importing them loads, and which way imports point."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import streamadapt as sa

PACKAGE = Path(sa.__file__).parent
ROOT = "streamadapt"

# Each module may import from its own layer and from those above it in this list. `streamadapt`
# itself, which only hands names on, has a place of its own; `testing` may import anything.
LAYERS = (
    {
        "closing",
        "errors",
        "events",
        "fingerprint",
        "layout",
        "locking",
        "moments",
        "profile",
        "scores",
        "transfer",
    },
    {"bank", "ops", "store", "streams"},
    {"alignment", "drift", "estimators", "guard", "taps"},
    {
        "acting",
        "arguments",
        "arming",
        "backends",
        "batch",
        "between",
        "capturing",
        "committing",
        "controls",
        "describe",
        "domains",
        "duty",
        "engine",
        "guarding",
        "journal",
        "keeping",
        "ledger",
        "outbox",
        "parts",
        "passes",
        "readings",
        "readout",
        "runtime",
        "settling",
        "shadow",
        "snapshots",
        "steplock",
        "stepping",
        "watching",
        "weighing",
        "worlds",
    },
    {"calibration", "offline", "processor"},
    {ROOT},
    {"frames"},
    {"pipeline"},
    {"doctor", "instrumentation", "replay"},
    {"__main__", "cli"},
    {"testing"},
)
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}

# Loaded on first use.
LAZY = (
    "Pipeline",
    "__version__",
    "frames",
    "instrumentation",
    "pipeline",
    "replay",
    "testing",
)

# What `import streamadapt` must not load: a server has no use for it, or may not have it.
HEAVY = ("PIL", "av", "cv2", "matplotlib", "prometheus_client", "ray", "sklearn", "triton")


def test_all_is_the_sorted_public_surface() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == ROOT
        for alias in node.names
    }
    assert sa.__all__ == sorted(imported | set(LAZY))
    assert dir(sa) == sa.__all__
    for name in sa.__all__:
        assert getattr(sa, name) is not None


def test_the_surface_is_what_the_documentation_promises() -> None:
    assert sa.__all__ == [
        "FileStore",
        "Guard",
        "Moments",
        "Pipeline",
        "SourceProfile",
        "StreamProcessor",
        "__version__",
        "adabn",
        "alignment",
        "between",
        "calibrate",
        "drift",
        "errors",
        "estimators",
        "events",
        "fold",
        "frames",
        "instrumentation",
        "journal",
        "pipeline",
        "replay",
        "testing",
    ]


def test_a_name_that_is_not_there_says_so() -> None:
    with pytest.raises(AttributeError) as caught:
        sa.adaptation  # noqa: B018
    assert str(caught.value) == "module 'streamadapt' has no attribute 'adaptation'"


def modules() -> Iterator[ModuleType]:
    """Every module but the command line, whose `__main__` would run it; Triton's only with it."""
    triton = importlib.util.find_spec("triton") is not None
    for found in pkgutil.walk_packages(sa.__path__, prefix=f"{ROOT}."):
        parts = found.name.split(".")
        if parts[1] not in ("cli", "__main__") and (triton or "triton" not in parts):
            yield importlib.import_module(found.name)


FOLDERS = sorted({path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"cli"})


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_hands_on_exactly_its_public_names(folder: str) -> None:
    module = importlib.import_module(f"{ROOT}.{folder}")
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing
    assert len(set(module.__all__)) == len(module.__all__)
    private = [name for name in module.__all__ if name.startswith("_")]
    assert not private


# Imports -----------------------------------------------------------------------------------------


def place_of(path: Path) -> str:
    """The module or folder right below the package."""
    first = path.relative_to(PACKAGE).parts[0]
    return ROOT if first == "__init__.py" else first.removesuffix(".py")


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and place of each import from the package, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == ROOT:
                    yield node.lineno, alias.name.split(".")[1] if "." in alias.name else ROOT
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            parts = (node.module or "").split(".")
            if parts[0] == ROOT and len(parts) > 1:
                yield node.lineno, parts[1]
            elif parts[0] == ROOT:
                for alias in node.names:
                    yield node.lineno, alias.name if alias.name in HEIGHT else ROOT


def test_every_module_has_its_layer() -> None:
    places = {place_of(path) for path in PACKAGE.rglob("*.py")}
    assert places == set(HEIGHT), "name a new module in LAYERS, in the lowest layer that it can be"


def test_imports_point_one_way() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}: {place_of(path)} imports {imported}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, imported in imports_of(path)
        if HEIGHT[imported] > HEIGHT[place_of(path)]
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_testing() -> None:
    importers = {
        place_of(path)
        for path in PACKAGE.rglob("*.py")
        for _, imported in imports_of(path)
        if imported == "testing"
    }
    assert importers <= {"testing"}


def test_importing_the_package_loads_nothing_heavy_and_leaves_cuda_alone() -> None:
    program = (
        "import sys, torch; before = set(sys.modules); import streamadapt\n"
        "new = sorted({name.split('.')[0] for name in set(sys.modules) - before})\n"
        "assert not torch.cuda.is_initialized()\n"
        "own = [n for n in ('instrumentation', 'replay', 'testing', 'cli')\n"
        "       if f'streamadapt.{n}' in sys.modules]\n"
        f"print([name for name in new if name in {HEAVY!r}] + own)\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor')\n"
        "       if name in sys.modules and name not in before])\n"
    )
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=PACKAGE.parent,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split("\n")[:2] == ["[]", "[]"]


# Documentation and types -------------------------------------------------------------------------


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"][ROOT]


def test_doctests_show_what_they_say() -> None:
    attempted, failed = 0, []
    for module in modules():
        result = doctest.testmod(module)
        attempted += result.attempted
        if result.failed:
            failed.append(module.__name__)
    assert not failed
    assert attempted > 0


def test_every_public_class_and_function_is_documented() -> None:
    bare = []
    for module in modules():
        if not (module.__doc__ or "").strip():
            bare.append(module.__name__)
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__
            public = own and not name.startswith("_")
            documented = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
            defined = inspect.isclass(value) or inspect.isfunction(value)
            # A dataclass without a docstring gets its signature for one.
            if public and defined and (not documented or documented.startswith(f"{name}(")):
                bare.append(f"{module.__name__}.{name}")
    assert not bare
