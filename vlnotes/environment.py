"""Is everything here that the course needs? One line a requirement, made to be pasted into a bug report."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple


class Line(NamedTuple):
    """One finding: `status` is "OK", "FAIL", or "--" for something optional that is not there."""

    status: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{f'[{self.status}]':<7}{self.name:<23}{self.text}"


def check(speed: bool = True) -> list[Line]:
    """Look at Python, packages, device, threads, memory and data.

    Args:
        speed: also time a training step of the small model (about two seconds).

    Returns:
        The findings, in the order in which they are best read.
    """
    lines = [_python(), *_packages()]
    for look in (_device, _threads, _memory, _data, _speed):
        if look is _speed and (not speed or any(line.status == "FAIL" for line in lines)):
            continue
        try:
            found = look()
        except Exception as error:  # a broken torch is what this command is for
            found = Line("FAIL", look.__name__.strip("_"), f"{type(error).__name__}: {error}")
        lines += [found] if isinstance(found, Line) else found
    return lines


def _python() -> Line:
    ok = sys.version_info >= (3, 11)
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Line("OK" if ok else "FAIL", "python", text + ("" if ok else "; 3.11 or newer is needed"))


def _packages() -> list[Line]:
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires("vlnotes") or []]
    except metadata.PackageNotFoundError:
        return [Line("FAIL", "vlnotes", "not installed; in its folder: pip install -e '.[lab,test]'")]
    lines = [Line("OK", "vlnotes", metadata.version("vlnotes"))]
    for need in wanted:
        extra = "" if need.marker is None else str(need.marker).split("==")[-1].strip(" '\"")
        if extra == "bench":
            continue
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            missing = f"missing; expected {need.specifier}" + (f" (extra [{extra}])" if extra else "")
            lines.append(Line("--" if extra else "FAIL", need.name, missing))
            continue
        ok = need.specifier.contains(version, prereleases=True)
        lines.append(Line("OK" if ok else "FAIL", need.name, version + ("" if ok else f"; expected {need.specifier}")))
    return lines


def _device() -> Line:
    import torch

    from vlnotes.train import pick_device, pick_precision

    device = pick_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    quick = pick_precision(device, measure=True)
    text = f"{device.type} ({name}), trains in {pick_precision(device)}"
    return Line("OK", "device", text + ("; bf16 would be quicker while nothing else runs" if quick not in text else ""))


def _threads() -> Line:
    import torch

    policy = os.environ.get("OMP_WAIT_POLICY", "")
    text = f"{torch.get_num_threads()} compute threads on {os.cpu_count()} cores"
    if policy.upper() != "PASSIVE":
        text += "; set OMP_WAIT_POLICY=PASSIVE before Python starts, or a second busy program makes this one crawl"
        return Line("--", "threads", text)
    return Line("OK", "threads", text + ", waiting quietly (OMP_WAIT_POLICY=PASSIVE)")


def _memory() -> Line:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (ValueError, OSError, AttributeError):  # not on this system
        return Line("--", "memory", "this system does not tell; the course needs about 3 GB")
    if total < 4:
        return Line("FAIL", "memory", f"{total:.1f} GB in all; the course needs about 3 GB free")
    return Line("OK", "memory", f"{free:.1f} GB free of {total:.1f} GB; the course needs about 3 GB")


def _data() -> list[Line]:
    from vlnotes.world import cache_folder

    sample = Path(__file__).parent.parent / "data" / "sample"
    count = len(list(sample.rglob("*.png")))
    lines = [
        Line("OK", "data", f"{count} sample pictures")
        if count
        else Line("--", "data", "no data/sample here; the course draws its own pictures and needs none")
    ]
    folder = Path(cache_folder())
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    writable = os.access(parent, os.W_OK)
    shown = str(folder).replace(str(Path.home()), "~", 1)
    lines.append(Line("OK" if writable else "FAIL", "cache", shown + ("" if writable else " cannot be written")))
    return lines


def _speed() -> Line:
    import torch

    from vlnotes.clip import CLIP
    from vlnotes.train import train

    image = torch.randint(0, 255, (128, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(5, 100, (128, 32), generator=torch.Generator().manual_seed(0))
    batch = {"image": image, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    history = train(CLIP.tiny(), lambda step: batch, steps=8, progress=False)
    step = history["seconds"].diff().iloc[2:].median()
    return Line("OK", "speed", f"{1000 * step:.0f} ms a training step (64 pixels, batch 128)")
