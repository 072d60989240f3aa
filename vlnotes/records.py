"""Recorded numbers: what the prose leans on, held to a tolerance.

A notebook says `record("02.full_r1", 61.3, tolerance=6, unit="%")`. The line is printed beside the value that
was measured when the course was written, and the cell fails when the two part (in tests) or says so (for a
reader, who may well have changed something on purpose). Expected values live in `data/records.json` and are
written by one command, `make records`, never by hand. Prose quotes them as
`<!--record:02.full_r1:0-->61 %<!--/-->`, which a test compares and `make tables` writes anew.
"""

import json
import math
import os
import platform
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

MODES = ("strict", "warn", "write")
QUOTE = re.compile(r"<!--record:(?P<name>[^:>\s]+?)(?::(?P<digits>\d))?-->(?P<shown>.*?)<!--/-->", re.DOTALL)
DEVICES = ("any", "cpu", "cuda", "mps")


def record(
    name: str,
    value: float | torch.Tensor,
    *,
    tolerance: float,
    relative: float = 0.0,
    unit: str = "",
    digits: int = 1,
    device: str | torch.device = "any",
    seed: int | None = None,
) -> None:
    """Print a measured number beside its expected value, and fail where the two part.

    The allowed distance is `tolerance + relative * |expected|`. The environment variable `VLNOTES_RECORDS`
    says what happens outside of it: "strict" fails the cell, "warn" (the default) prints a sentence, "write"
    stores the value as the new expected one.

    Args:
        name: one word, the notebook's number first, as in "02.full_r1".
        value: a number or a tensor with one element; finite.
        tolerance: >= 0, in the unit of the value.
        relative: >= 0, share of the expected value that is allowed on top.
        unit: printed after the value, such as "%" or "nats".
        digits: decimals to print.
        device: "any" where the number is the same everywhere, else the device it was computed on.
        seed: the seed the number was made with, stored beside it.

    Raises:
        ValueError: the value is not finite, a tolerance is negative, or the name holds blanks or colons.
        AssertionError: in strict mode, when the value is outside or nothing was ever recorded.
    """
    number = _number(name, value)
    if not re.fullmatch(r"[\w.\-]+", name):
        raise ValueError(f"a record's name is one word of letters, digits, '.', '_' and '-', got {name!r}")
    if not (0 <= tolerance < math.inf and 0 <= relative < math.inf):
        raise ValueError(f"record {name}: tolerances are >= 0, got tolerance={tolerance}, relative={relative}")
    if digits < 0:
        raise ValueError(f"record {name}: digits is >= 0, got {digits}")
    kind = _device_class(device)
    line = f"{name}   {_show(number, unit, digits)}"

    if mode() == "write":
        entry = dict(value=number, tolerance=tolerance, relative=relative, unit=unit, digits=digits, seed=seed)
        _store(name, kind, entry)  # the line below then reads as it will for everybody else

    stored = load().get(name, {})
    expected = stored.get(kind) or stored.get("any")
    if expected is None:
        _nothing_recorded(name, line, kind, stored)
        return
    allowed = tolerance + relative * abs(expected["value"])
    line += f"   expected {_show(expected['value'], '', digits)} +- {_show(allowed, '', digits)}"
    if abs(number - expected["value"]) <= allowed + 1e-12 * abs(expected["value"]):
        print(f"{line}   ok")
    elif mode() == "warn":
        print(f"{line}   OUTSIDE the recorded range: you changed something, or we did")
    else:
        made = ", ".join(f"{k} {v}" for k, v in expected["made_with"].items())
        raise AssertionError(
            f"{line}   OUTSIDE. The expected value was recorded with {made}, seed {expected['seed']}. If the "
            "new value is right, run `make records` and look at what it changes; if not, find what moved it."
        )


def mode() -> str:
    """What a number outside its range does: "strict", "warn" or "write", from `VLNOTES_RECORDS`.

    Unset means "warn", or "strict" where the environment variable `CI` is set.

    Returns:
        One of the three words.

    Raises:
        ValueError: the variable holds another word.
    """
    asked = os.environ.get("VLNOTES_RECORDS", "")
    if not asked:
        return "strict" if os.environ.get("CI", "") not in ("", "0", "false") else "warn"
    if asked not in MODES:
        raise ValueError(f"VLNOTES_RECORDS is one of {', '.join(MODES)}, got {asked!r}")
    return asked


def quote(name: str, digits: int | None = None, device: str | torch.device | None = None) -> str:
    """A recorded value as text, for a table, a figure or a sentence.

    Args:
        name: as given to `record`.
        digits: decimals; None takes those of the record.
        device: whose record; None takes the first there is of any, cpu, cuda, mps.

    Returns:
        Value and unit, such as "61.3 %".

    Raises:
        ValueError: nothing is recorded under this name.
    """
    stored = load().get(name, {})
    kinds = DEVICES if device is None else (_device_class(device), "any")
    entry = next((stored[kind] for kind in kinds if kind in stored), None)
    if entry is None:
        raise ValueError(f"no record named {name!r} in {records_file()}; `make records` writes those of the notebooks")
    return _show(entry["value"], entry["unit"], entry["digits"] if digits is None else digits)


def wrong_quotes(text: str) -> list[str]:
    """Sentences about the quoted records in a text that do not say what the record says.

    Args:
        text: markdown with quotes written `<!--record:name-->61.3 %<!--/-->` or, with other decimals,
            `record:name:0`.

    Returns:
        One sentence for every quote that differs, names nothing, or is not closed.
    """
    found = []
    for match in QUOTE.finditer(text):
        try:
            right = _quoted(match)
        except ValueError as error:
            found.append(str(error))
            continue
        if match["shown"] != right:
            found.append(f"the text says {match['shown']!r} where record {match['name']} says {right!r}")
    opened = text.count("<!--record:")
    if opened != len(QUOTE.findall(text)):
        found.append(f"{opened} quotes are opened with <!--record:name-->, some are not closed with <!--/-->")
    return found


def rewrite_quotes(text: str) -> str:
    """The same text with every quoted record brought up to date.

    Args:
        text: markdown, see `wrong_quotes`.

    Returns:
        The text; unchanged where nothing is quoted.

    Raises:
        ValueError: a quote names a record that does not exist.
    """
    return QUOTE.sub(lambda m: f"{m[0][: m.start('shown') - m.start()]}{_quoted(m)}<!--/-->", text)


def load() -> dict[str, dict[str, dict]]:
    """All recorded values: name -> device class -> entry. Empty where nothing was recorded yet.

    Raises:
        ValueError: the file is no JSON.
    """
    path = records_file()
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}); `make records` writes it anew once it is deleted") from error


def keep_only(names: Iterable[str]) -> list[str]:
    """Drop every record that no notebook makes any more.

    Args:
        names: the names still in use.

    Returns:
        The names that were dropped, sorted.
    """
    stored, names = load(), set(names)
    dropped = sorted(set(stored) - names)
    if dropped:
        _save({name: entry for name, entry in stored.items() if name in names})
    return dropped


def records_file() -> Path:
    """Where the recorded values live: `VLNOTES_RECORDS_FILE`, else `data/records.json` of the course.

    The course is the folder that holds `vlnotes/`, or, for an installed `vlnotes`, the nearest folder upwards
    of the working directory that has `data/` and `notebooks/`.
    """
    if os.environ.get("VLNOTES_RECORDS_FILE"):
        return Path(os.environ["VLNOTES_RECORDS_FILE"])
    home = Path(__file__).resolve().parents[1]
    here = Path.cwd()
    for folder in (home, here, *here.parents):
        if (folder / "data").is_dir() and (folder / "notebooks").is_dir():
            return folder / "data" / "records.json"
    return home / "data" / "records.json"


def _nothing_recorded(name: str, line: str, kind: str, stored: dict) -> None:
    if stored:  # known on other devices: no reason to fail on this one
        others = "; ".join(f"{_show(e['value'], '', e['digits'])} on {_device_words(k)}" for k, e in stored.items())
        print(f"{line}   no record yet for {kind}; {others}")
    elif mode() == "warn":
        print(f"{line}   no record yet")
    else:
        raise AssertionError(
            f"{line}   nothing is recorded under this name in {records_file()}. "
            "`make records` (VLNOTES_RECORDS=write) runs the notebooks and stores what they measure."
        )


def _store(name: str, kind: str, entry: dict) -> None:
    stored = load()
    entry["made_with"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vlnotes": _our_version(),
    }
    stored.setdefault(name, {})[kind] = entry
    _save(stored)


def _save(stored: dict) -> None:
    path = records_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".writing")  # a run that is killed never leaves half a file
    beside.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _quoted(match: re.Match) -> str:
    return quote(match["name"], None if match["digits"] is None else int(match["digits"]))


def _number(name: str, value: float | torch.Tensor) -> float:
    value = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if value.size != 1:
        raise ValueError(f"record {name}: one number is recorded at a time, got {value.size}")
    try:
        number = float(value.item())
    except (TypeError, ValueError) as error:
        raise TypeError(f"record {name}: expected a number, got {value.item()!r}") from error
    if not math.isfinite(number):
        raise ValueError(f"record {name}: the value is {number}; look at the step that made it, not at the record")
    return number


def _device_class(device: str | torch.device) -> str:
    kind = "any" if device == "any" else torch.device(device).type
    if kind not in DEVICES:
        raise ValueError(f"records are kept for {', '.join(DEVICES)}, got the device {device!r}")
    return kind


def _device_words(kind: str) -> str:
    return "any device" if kind == "any" else kind


def _show(value: float, unit: str, digits: int) -> str:
    text = f"{value:,.{digits}f}"
    if value != 0 and float(text.replace(",", "")) == 0:  # never show a small number as zero
        text = f"{value:.2g}" if abs(value) >= 1e-3 else f"{value:.1e}"
    return f"{text} {unit}".rstrip()


def _our_version() -> str:
    try:
        return version("vlnotes")
    except PackageNotFoundError:
        from vlnotes import __version__

        return __version__
