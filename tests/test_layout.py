"""The house rules that a machine can hold: floors, light imports, one list of packages, nothing that calls home."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vlnotes"

# A file imports only from floors below its own (ground first); papers may build on the papers named here.
FLOORS = [
    {"validate", "_tiled", "_batches", "_saving", "_caption_files", "_caption_readers", "_caption_checks"},
    {"world", "transport", "augment", "contrastive", "momentum", "text", "records"},
    {"datasets", "encoders", "fusion", "metrics", "disorder", "gradcam"},
    {"clip", "moco", "albef", "downstream", "codis", "psd", "xclip", "modx", "rivals"},
    {"train", "plots", "explorer", "blind", "scoring"},
    {"experiment", "environment", "weights"},
    {"claims"},
    {"checks"},
    {"__main__"},
]
BUILDS_ON = {
    ("codis", "albef"),
    ("downstream", "albef"),
    ("psd", "clip"),
    ("xclip", "clip"),
    ("modx", "clip"),
    ("rivals", "modx"),
    ("rivals", "clip"),
}
LIGHT = {"torch", "torchvision", "transformers", "numpy", "matplotlib", "PIL"}


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def floor_of(name: str) -> int:
    floors = [at for at, names in enumerate(FLOORS) if name in names]
    assert floors, f"vlnotes/{name} stands on no floor; name its floor in tests/test_layout.py"
    return floors[0]


def imports(tree: ast.AST, file: Path) -> list[str]:
    """Absolute names of everything that the tree imports, relative imports resolved."""
    package = ["vlnotes", *file.relative_to(PACKAGE).parent.parts]
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{stem}.{alias.name}" if stem == "vlnotes" else stem for alias in node.names]
    return names


FILES = sorted(f for f in PACKAGE.rglob("*.py") if f != PACKAGE / "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_file_imports_only_from_floors_below(file):
    here = module_name(file)
    for name in imports(ast.parse(file.read_text()), file):
        if name.split(".")[0] != "vlnotes" or len(name.split(".")) < 2:
            continue
        there = name.split(".")[1]
        if there == here or there.startswith("__version"):
            continue
        allowed = floor_of(there) < floor_of(here) or (here, there) in BUILDS_ON
        allowed = allowed or (here.startswith("_") and there.startswith("_"))  # the private parts of one file
        assert allowed, f"vlnotes/{file.relative_to(PACKAGE)} imports vlnotes.{there}, which is not on a lower floor"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_only_light_packages_are_imported_at_the_top(file):
    top = ast.Module([n for n in ast.parse(file.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)], [])
    for name in imports(top, file):
        package = name.split(".")[0]
        assert package in LIGHT | {"vlnotes"} | sys.stdlib_module_names, f"{file.name} imports {package} at import time"


def test_every_module_imports_where_only_the_light_packages_are():
    """A bare GPU machine has torch and its friends; nothing else may be needed before it is used."""
    modules = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in FILES if f.stem != "__main__"]
    heavy = [
        "sklearn",
        "ot",
        "tokenizers",
        "accelerate",
        "seaborn",
        "pandas",
        "anywidget",
        "safetensors",
        "tqdm",
        "scipy",
        "IPython",
    ]
    script = f"""
import sys, torch, torchvision, transformers, matplotlib
had = set(sys.modules)
import importlib
for name in {modules!r}:
    importlib.import_module(name)
extra = sorted(h for h in {heavy!r} if h in sys.modules and h not in had)
assert not extra, extra
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-2000:]


def test_conda_gets_the_same_environment():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "environment.yml").read_text()
    listed = [line.strip()[2:] for line in text.splitlines() if line.strip().startswith("- ")]
    assert f"python{project['requires-python']}" in listed
    assert "pip" in listed
    install = [line for line in listed if line.startswith("-e ")]
    makefile = (ROOT / "Makefile").read_text()
    extras = re.search(r'make_venv\.sh "\$\(VENV\)" "([\w,]+)"', makefile).group(1)
    assert install == [f"-e .[{extras}]"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    # everything else comes through pyproject.toml: no second list of packages that could drift
    assert set(listed) == {"conda-forge", f"python{project['requires-python']}", "pip", "pip:", *install}


def test_the_pinned_versions_lie_in_the_ranges():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.strip().lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    wanted = project["dependencies"] + [r for extra in ("lab", "test") for r in project["optional-dependencies"][extra]]
    for text in wanted:
        need = Requirement(text)
        pin = pins.get(need.name.lower().replace("_", "-"))
        assert pin, f"constraints.txt does not pin {need.name}"
        assert need.specifier.contains(pin, prereleases=True), (
            f"{need.name} is pinned to {pin}, outside {need.specifier}"
        )


def test_ci_runs_the_readmes_test_command():
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.M)
    readme = (ROOT / "README.md").read_text()
    assert "make lab" in readme and "make test" in readme


def test_make_help_names_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.M).group(1).split()
    for target in set(targets) - {"help"}:
        assert re.search(rf'@echo "make {target} ', makefile), f"make help says nothing about {target}"
        assert re.search(rf"^{target}:", makefile, re.M)


def test_nothing_large_and_no_machine_paths_in_the_tree():
    made = {".git", ".venv", "executed", "__pycache__", ".ruff_cache", ".pytest_cache", ".hypothesis"}
    files = (f.relative_to(ROOT) for f in ROOT.rglob("*") if not made & set(f.relative_to(ROOT).parts))
    for name in map(Path.as_posix, files):
        file = ROOT / name
        if not file.is_file() or name.startswith(("runs/", "notebooks/runs/", "site/")):  # trained or built here
            continue
        assert file.stat().st_size < 4 * 2**20, f"{name} is over 4 MB"
        if name.startswith("tests/test_"):  # tests of this very rule need examples
            continue
        if file.suffix in {".py", ".md", ".toml", ".yml", ".ipynb", ".json", ".txt", ".cff", ".sh", ""}:
            text = file.read_text(encoding="utf-8", errors="ignore")
            found = re.search(r"(?<![\w.])/(home|Users|work|root|opt)/\w+", text)
            assert found is None, f"{name} holds the path of a machine: {found.group(0)}"
