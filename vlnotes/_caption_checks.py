"""The one place that judges what the readers bring: names, ids, splits, captions, and whether pictures exist.

Each function takes records and returns the good ones; a bad one goes to `complain(file, entry, reason)`.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlnotes._caption_files import file_split, locate
from vlnotes._caption_readers import Complain, Record, show

# Ours are train, val and test.
SPLIT_NAMES = {"restval": "train", "valid": "val", "validation": "val", "dev": "val"}


class Skipped(NamedTuple):
    """Something that was left out, and why."""

    file: str
    entry: str
    reason: str


def checked_ids(records: list[Record], complain: Complain) -> list[Record]:
    """Usable names, ids, splits and concepts; every id and every picture once."""
    good: list[Record] = []
    seen: dict[Any, str] = {}
    for record in records:
        if not _is_text(record.name):
            complain(record.file, record.entry, f"the picture's name is {record.name!r}; expected UTF-8 text")
            continue
        for kind in ("id", "split", "concept"):
            value = getattr(record, kind)
            number_is_fine = isinstance(value, int) and kind != "split"
            if value is not None and not number_is_fine and not _is_text(value):
                reason = f"the {kind} of {record.name!r} is {show(value)}; expected text"
                complain(record.file, record.entry, reason)
                break
        else:
            record.id = _name(record) if record.id is None else record.id
            keys = ("id", record.id), ("picture", _name(record))
            twice = next((key for key in keys if key in seen), None)
            if twice:
                reason = f"duplicate {twice[0]} {twice[1]!r}: {seen[twice]} has it too"
                complain(record.file, record.entry, reason)
                continue
            seen.update(dict.fromkeys(keys, f"{record.file.name}, {record.entry}"))
            record.split = record.split or file_split(record.file) or "all"
            good.append(record)
    return good


def _name(record: Record) -> str:
    return os.path.join(record.folder, record.name)


def of_split(records: list[Record], split: str | None, path: Path, skipped: list[Skipped]) -> list[Record]:
    """The records of one split, under our three names; an unknown split lists the ones there are."""
    for record in records:
        record.split = SPLIT_NAMES.get(record.split.lower(), record.split.lower())
    if split is None:
        return records
    kept = [record for record in records if record.split == split]
    if not kept:
        counts = ", ".join(f"{name} ({n})" for name, n in Counter(record.split for record in records).items())
        hint = f"; {split} counts as {SPLIT_NAMES[split]} here" if split in SPLIT_NAMES else ""
        left_out = f"; {list_skipped(skipped)}" if skipped else ""
        raise ValueError(f"{path}: no pictures of split {split!r}; it has {counts or 'none'}{hint}{left_out}")
    return kept


def checked_captions(records: list[Record], complain: Complain) -> list[Record]:
    """Captions that are text and not empty, with single blanks; every picture has at least one."""
    good = []
    for record in records:
        captions = []
        for entry, text in record.captions:
            if not isinstance(text, str):
                complain(record.file, entry, f"the caption of {record.name!r} is {show(text)}; expected text")
            elif not text.strip():
                complain(record.file, entry, f"the caption of {record.name!r} is empty; expected text")
            elif not _is_text(text):
                reason = f"the caption of {record.name!r} holds bytes that are no UTF-8: {show(text)}"
                complain(record.file, entry, reason)
            else:
                captions.append((entry, " ".join(text.split())))
        record.captions = captions
        if captions:
            good.append(record)
        else:
            reason = f"picture {record.name!r} has no caption; expected at least one"
            complain(record.file, record.entry, reason)
    return good


def checked_files(records: list[Record], pictures: Path | None, complain: Complain) -> tuple[list[Record], list[str]]:
    """Pictures that exist, and where."""
    files, looked = locate(records, pictures)
    missing = sum(file is None for file in files)
    good, found = [], []
    for record, file in zip(records, files, strict=True):
        if file is not None:
            good.append(record)
            found.append(file)
            continue
        folders = ", ".join(map(str, looked))
        count = f"{missing} of {len(records)} pictures are missing" if missing > 1 else "the only one missing"
        complain(record.file, record.entry, f"no picture {record.name!r} in {folders} ({count})")
    return good, found


def _is_text(value: Any) -> bool:
    """Text that can be written as UTF-8: bytes that were none became lone surrogates on reading."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def list_skipped(skipped: Sequence[Skipped], first: int = 3) -> str:
    """How many were skipped, and the first of them, in words."""
    if not skipped:
        return "nothing skipped"
    some = "; ".join(f"{Path(s.file).name}, {s.entry}: {s.reason}" for s in skipped[:first])
    return f"{len(skipped)} skipped, {'such as ' if len(skipped) > first else ''}{some}"
