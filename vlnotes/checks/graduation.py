"""Graduation: a function built in a notebook equals the module's, in value and gradient.

`graduate` runs both on random float64 inputs, and a third, independent version where there is one. What it
measured is printed and also stored in the cell's output as a mark. `marks` collects the marks of the stored
notebooks, `complaints` holds them against the docstrings of the module, `table` makes the page
`data/graduation.md`.
"""

import ast
import contextlib
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

MIME = "application/vnd.vlnotes.graduation+json"
NOTEBOOK_LINE = re.compile(r"^Notebook: (?P<notebook>\d\d_\w+), section (?P<section>\d+)\.$")
HEADING = re.compile(r"^##+ +(?P<section>\d+)\b", re.MULTILINE)


@dataclass(frozen=True)
class Taught:
    """A public function or class whose docstring names the notebook section that builds it."""

    name: str
    notebook: str
    section: int
    equation: str


@dataclass(frozen=True)
class Mark:
    """What one call of `graduate` left in a stored notebook, and where it stands."""

    notebook: str
    section: int
    payload: dict

    @property
    def name(self) -> str:
        return self.payload["function"]


def graduate(
    name: str,
    mine: Callable,
    inputs: dict[str, Any] | Callable[[torch.Generator], dict[str, Any]],
    *,
    reference: Callable | None = None,
    reference_name: str | None = None,
    module: Callable | None = None,
    gradient: bool = True,
    tolerance: float = 1e-9,
    rounding: float = 0.0,
    trials: int = 5,
    seed: int = 0,
) -> None:
    """Prove that the notebook's own function and the module's agree, and leave a mark in the output.

    All floating inputs are float64 and ask for a gradient, a tensor temperature included. An input that one
    version detaches must be detached by the others: a missing gradient counts as zero.

    Args:
        name: full name of the function or class in the module, such as "vlnotes.contrastive.clip_loss".
        mine: the notebook's version; takes the inputs by name where it knows the names, else in order.
        inputs: name -> value. A tuple of ints is a shape filled with normal numbers, `unit_rows(5, 8)` rows
            of length 1, a tensor is taken as it is, a function is called with a generator, all else is passed
            on. Or one function of a generator that returns such a dictionary.
        reference: an independent version, such as one made of PyTorch's or scikit-learn's functions.
        reference_name: what it is called in the table; needed with `reference`.
        module: the module's version where calling `name` itself is not enough: a class to be built first,
            one part of several results.
        gradient: False for functions without a gradient, such as ranks.
        tolerance: largest error allowed, relative to the largest number compared where that is above 1.
        rounding: results are whole multiples of this (pictures: 1 grey level), and two versions may round a number
            that lies between two of them to different sides. Errors up to it are forgiven in the value; the table
            says so. A value that is not rounded is refused.
        trials: how many random inputs.
        seed: of the first one.

    Raises:
        AssertionError: the versions part; says in which input, value or gradient, and by how much.
        ValueError: the name is unknown, its docstring names no notebook section, no gradient reaches an
            input, the module's version never calls `name`, or another version does.
    """
    target = _find(name)
    taught = _taught_from_docstring(name, inspect.getdoc(target))
    if (reference is None) != (reference_name is None):
        raise ValueError(f"{name}: give reference and reference_name together")
    if trials < 1:
        raise ValueError(f"{name}: at least one trial is needed, got {trials}")

    others = {"yours": mine} | ({} if reference is None else {reference_name: reference})
    errors = {who: {"value": 0.0, "gradient": 0.0} for who in others}
    for trial in range(trials):
        drawn = _draw(inputs, seed + trial)
        with _watch(target) as entered:
            expected, slopes = _run(name, module or target, drawn, gradient)
        if not entered:
            raise ValueError(f"the function given as module never calls {name}")
        if rounding and any((value % rounding).any() for value in expected):
            raise ValueError(f"{name}: rounding={rounding} was given, but its results are no multiples of that")
        if gradient and not any(slope.any() for slope in slopes.values()):
            raise ValueError(f"{name}: no gradient reaches any of {list(slopes)}; pass gradient=False if none should")
        for who, function in others.items():
            drawn = _draw(inputs, seed + trial)
            with _watch(target) as entered:
                values, its_slopes = _run(who, function, drawn, gradient)
            if entered:
                raise ValueError(f"{who} calls {name} itself, so their agreement proves nothing")
            if [v.shape for v in values] != [v.shape for v in expected]:
                shapes = [tuple(v.shape) for v in values], [tuple(v.shape) for v in expected]
                raise AssertionError(f"{who} returns the shapes {shapes[0]}, {name} returns {shapes[1]}")
            pairs = [("value", f"result {i}", v, e) for i, (v, e) in enumerate(zip(values, expected, strict=True))]
            pairs += [("gradient", f"input {key}", its_slopes[key], slope) for key, slope in slopes.items()]
            for what, where, got, right in pairs:
                error = _error(got, right, rounding if what == "value" else 0.0)
                errors[who][what] = max(errors[who][what], error)
                if not error <= tolerance:
                    raise AssertionError(
                        f"{who} and {name} part in the {what}: off by {error:.1e} at {where} on random input "
                        f"{trial + 1} of {trials} (allowed {tolerance:.0e})."
                    )

    payload = {
        "function": name,
        "notebook": taught.notebook,
        "section": taught.section,
        "reference": reference_name,
        "value_error": max(e["value"] for e in errors.values()),
        "gradient_error": max(e["gradient"] for e in errors.values()) if gradient else None,
        "tolerance": tolerance,
        "rounding": rounding,
        "trials": trials,
    }
    _display(payload, ["yours", *([reference_name] if reference_name else [])])


def unit_rows(*shape: int) -> Callable[[torch.Generator], torch.Tensor]:
    """Random rows of length 1, to be drawn by `graduate`.

    Args:
        shape: (..., D).

    Returns:
        A function of a generator that returns a float64 tensor of that shape, L2-normalised along the last
        axis.
    """

    def draw(generator: torch.Generator) -> torch.Tensor:
        rows = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize(rows, dim=-1)

    return draw


def taught_functions(package: Path | None = None) -> list[Taught]:
    """Every public function, class and method of the package whose docstring has a `Notebook:` line.

    The files are read, not imported.

    Args:
        package: folder of the package; None is `vlnotes` itself.

    Returns:
        Sorted by notebook, section and name.

    Raises:
        ValueError: a `Notebook:` line is not of the form `Notebook: 02_contrastive_matrix, section 4.`
    """
    package = package or Path(__file__).resolve().parents[1]
    found, bad = [], []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for name, node in _public(ast.parse(path.read_text(encoding="utf-8")), module):
            text = ast.get_docstring(node)
            if text and re.search(r"^Notebook:", text, re.MULTILINE):
                try:
                    found.append(_taught_from_docstring(name, text))
                except ValueError as error:
                    bad.append(str(error))
    if bad:
        raise ValueError("\n".join(bad))
    return sorted(found, key=lambda t: (t.notebook, t.section, t.name))


def marks(notebooks: Path) -> list[Mark]:
    """All graduation marks in the stored outputs of the notebooks of a folder.

    Args:
        notebooks: the folder.

    Returns:
        In the order of the files and cells; `section` is the number of the last `## 4. ...` heading above the
        cell, 0 where there is none.
    """
    found = []
    for path in sorted(notebooks.glob("*.ipynb")):
        section = 0
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                numbers = HEADING.findall("".join(cell["source"]))
                section = int(numbers[-1]) if numbers else section
            for output in cell.get("outputs", []):
                if MIME in output.get("data", {}):
                    found.append(Mark(path.stem, section, output["data"][MIME]))
    return found


def complaints(taught: Iterable[Taught], found: Iterable[Mark], notebooks: Iterable[str]) -> list[str]:
    """What is wrong between the module's docstrings and the marks in the notebooks.

    Args:
        taught: from `taught_functions`.
        found: from `marks`.
        notebooks: names of the notebooks that exist, without `.ipynb`. Functions of others are still to come.

    Returns:
        One sentence for each missing, doubled, misplaced or unknown mark and each error above its tolerance.
    """
    taught, found, notebooks = list(taught), list(found), set(notebooks)
    said = []
    for function in taught:
        here = [mark for mark in found if mark.name == function.name]
        place = f"{function.notebook}, section {function.section}"
        if not here and function.notebook in notebooks:
            said.append(f"{function.name} has no graduation mark, its docstring promises one in {place}")
        if len(here) > 1:
            places = "; ".join(f"{m.notebook}, section {m.section}" for m in here)
            said.append(f"{function.name} has {len(here)} graduation marks: {places}")
        for mark in here:
            if (mark.notebook, mark.section) != (function.notebook, function.section):
                stands = f"{mark.notebook}, section {mark.section}"
                said.append(f"{function.name} graduates in {stands}, its docstring says {place}")
    known = {function.name for function in taught}
    for mark in found:
        if mark.name not in known:
            said.append(f"{mark.notebook} graduates {mark.name}, whose docstring has no Notebook line")
        for what in ("value_error", "gradient_error"):
            error = mark.payload[what]
            if error is not None and not error <= mark.payload["tolerance"]:
                said.append(f"{mark.name}: stored {what} {error:.1e} is above {mark.payload['tolerance']:.0e}")
        if not mark.payload["tolerance"] <= 1e-4:
            said.append(f"{mark.name}: a tolerance of {mark.payload['tolerance']} proves nothing")
    return said


def table(taught: Iterable[Taught], found: Iterable[Mark]) -> str:
    """The page that says what graduated, where, and how exactly the versions agree.

    Args:
        taught: from `taught_functions`.
        found: from `marks`.

    Returns:
        Markdown, ending in a newline. Functions without a mark are listed as to come.
    """
    by_name = {mark.name: mark for mark in found}
    lines = [
        "# What graduated from the notebooks",
        "",
        "Made by `make tables` from the stored notebooks; not edited by hand. Each function is built in a",
        "notebook and lives on in `vlnotes`. Both versions, and the reference where there is one, ran on the",
        'same random float64 inputs; the last columns are the largest errors, relative to numbers above 1. "Beyond"',
        "stands where both versions round their results: they may part by one such step.",
        "",
        "| function | notebook, section | paper equation | reference | largest error, value | gradient |",
        "|---|---|---|---|---|---|",
    ]
    for function in taught:
        mark = by_name.get(function.name)
        place = f"{function.notebook}, {function.section}"
        if mark is None:
            cells = [place, function.equation or "", "to come", "", ""]
        else:
            place = f"[{place}](../notebooks/{function.notebook}.ipynb)"
            slope = mark.payload["gradient_error"]
            cells = [
                place,
                function.equation,
                mark.payload["reference"] or "",
                f"{mark.payload['value_error']:.0e}{_forgiven(mark.payload)}",
            ]
            cells.append("has none" if slope is None else f"{slope:.0e}")
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in [f"`{function.name}`", *cells]) + " |")
    return "\n".join(lines) + "\n"


def _find(name: str) -> Any:
    """The object behind "vlnotes.contrastive.clip_loss", or behind a class's method."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if error.name and ".".join(parts[:cut]).startswith(error.name):
                continue
            raise
        for part in parts[cut:]:
            if not hasattr(thing, part):
                raise ValueError(f"there is no {name}: {'.'.join(parts[:cut])} has no {'.'.join(parts[cut:])}")
            thing = getattr(thing, part)
        return thing
    raise ValueError(f"there is no module for {name}; write the full name, as in vlnotes.contrastive.clip_loss")


def _taught_from_docstring(name: str, text: str | None) -> Taught:
    lines = (text or "").splitlines()
    places = [line.strip() for line in lines if line.startswith("Notebook:")]
    match = NOTEBOOK_LINE.match(places[0]) if len(places) == 1 else None
    if match is None:
        raise ValueError(
            f"the docstring of {name} needs one line of the form "
            f"'Notebook: 02_contrastive_matrix, section 4.', found {places or 'none'}"
        )
    equation = re.search(r"^Equation:(.*?)(?=^\S+:|\Z|\n\n)", "\n".join(lines) + "\n", re.MULTILINE | re.DOTALL)
    words = " ".join(equation[1].split()).rstrip(".") if equation else ""
    return Taught(name, match["notebook"], int(match["section"]), words)


def _public(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{prefix}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _public(node, f"{prefix}.{node.name}")


def _draw(inputs: dict[str, Any] | Callable, seed: int) -> dict[str, Any]:
    """Fresh inputs: every floating tensor is a float64 leaf that asks for its gradient."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, value in (inputs(generator) if callable(inputs) else inputs).items():
        if isinstance(value, tuple) and all(isinstance(n, int) and not isinstance(n, bool) for n in value):
            value = torch.randn(*value, generator=generator, dtype=torch.float64)
        elif callable(value) and not isinstance(value, torch.nn.Module):
            value = value(generator)
        if isinstance(value, torch.Tensor):
            value = value.detach().clone()
            if value.is_floating_point():
                value = value.double().requires_grad_()
        drawn[name] = value
    return drawn


@contextlib.contextmanager
def _watch(target: Any) -> Iterator[list[str]]:
    """Collects the names under which a function, or a method of a class, is entered from Python."""
    parts = vars(target).values() if isinstance(target, type) else [target]
    parts = [part.__func__ if isinstance(part, staticmethod | classmethod) else part for part in parts]
    codes = {getattr(inspect.unwrap(part), "__code__", None) for part in parts if callable(part)} - {None}
    entered, before = [], sys.getprofile()

    def hook(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in codes:
            entered.append(frame.f_code.co_name)

    sys.setprofile(hook)
    try:
        yield entered
    finally:
        sys.setprofile(before)


def _run(
    who: str, function: Callable, inputs: dict[str, Any], gradient: bool
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Results as float64 tensors, and the slope of a fixed mix of them for every floating input."""
    try:
        known = inspect.signature(function).parameters
        named = set(inputs) <= set(known) or any(p.kind is p.VAR_KEYWORD for p in known.values())
    except (TypeError, ValueError):  # builtins without a signature
        named = False
    results = _tensors(who, function(**inputs) if named else function(*inputs.values()))
    if not results:
        raise AssertionError(f"{who} returns nothing that can be compared")
    bad = [i for i, result in enumerate(results) if not result.detach().isfinite().all()]
    if bad:
        raise AssertionError(f"{who} returns NaN or infinity in result {bad[0]}")
    slopes = {}
    if gradient:
        leaves = {n: v for n, v in inputs.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
        slopes = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        mixer = torch.Generator().manual_seed(1)
        mixed = [(r * torch.randn(r.shape, generator=mixer, dtype=r.dtype)).sum() for r in results]
        mixed = [m for m in mixed if m.requires_grad]
        if mixed:
            found = torch.autograd.grad(sum(mixed), list(leaves.values()), allow_unused=True)
            slopes |= {n: g for n, g in zip(leaves, found, strict=True) if g is not None}
    return [result.detach() for result in results], slopes


def _tensors(who: str, result: Any) -> list[torch.Tensor]:
    """All numbers in a result, in order; dictionaries by sorted key."""
    if isinstance(result, torch.Tensor):
        return [result.double()]
    if isinstance(result, dict):
        return [t for key in sorted(result) for t in _tensors(who, result[key])]
    if isinstance(result, tuple | list):
        return [t for part in result for t in _tensors(who, part)]
    if result is None:
        return []
    try:
        return [torch.as_tensor(result, dtype=torch.float64)]
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{who} returns {type(result).__name__}, which cannot be compared as numbers") from error


def _error(got: torch.Tensor, right: torch.Tensor, forgiven: float = 0.0) -> float:
    if right.numel() == 0:
        return 0.0
    return (((got - right).abs().max() - forgiven).clamp(min=0) / max(1.0, right.abs().max().item())).item()


def _forgiven(payload: dict) -> str:
    rounding = payload.get("rounding")
    return f" beyond {rounding:g}" if rounding else ""


def _display(payload: dict, compared: list[str]) -> None:
    slope = payload["gradient_error"]
    text = f"graduated: {payload['function']} = {' = '.join(compared)}\n"
    text += f"on {payload['trials']} random inputs; largest error in value {payload['value_error']:.0e}"
    text += _forgiven(payload)
    text += ", no gradient" if slope is None else f", in gradient {slope:.0e}"
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        get_ipython = None
    if get_ipython is None or get_ipython() is None:
        print(text)
    else:
        display({"text/plain": text, MIME: payload}, raw=True)
