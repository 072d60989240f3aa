"""Which caption file is it, and which of a folder's files are to be read.

The content decides, not the file's name: a `.txt` may be a Flickr30k token file and a `.json` may hold boxes.
"""

import csv
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from vlnotes._caption_readers import CAPTION_KEYS, PICTURE_KEYS, READERS, TOKEN_LINE, Complain, Record

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
SUFFIXES = (".json", ".jsonl", ".token", ".csv", ".tsv", ".txt")  # what is looked at in a folder
LAYOUTS = ("karpathy", "coco", "token", "table", "list", "dict")  # in a folder the first of these wins
SPLITS = ("train", "restval", "val", "valid", "validation", "dev", "test", "")  # as file names tell them
EXPECTED = (
    "expected COCO captions JSON, Karpathy JSON, a Flickr30k token file, a CSV/TSV whose header line names a "
    f"picture column ({', '.join(PICTURE_KEYS)}) and a caption column ({', '.join(CAPTION_KEYS)}), or plain "
    'JSON like {"a.jpg": ["a caption"]} or [{"image": "a.jpg", "caption": "a caption"}]'
)

_SPLIT_NAME = re.compile(rf"^(.*?)(?:^|[_-])({'|'.join(SPLITS[:-1])})(\d*)$", re.IGNORECASE)


class Opened(NamedTuple):
    """A caption file that was recognised: its content is parsed, its entries are not looked at yet."""

    file: Path
    layout: str
    content: Any


def recognise(file: Path) -> Opened | str:
    """Find out by content which layout a file has; a file that is none gives the reason as text.

    Raises:
        ValueError: the file is empty, or begins like JSON and is none.
    """
    raw = file.read_bytes()
    if not raw.strip():
        raise ValueError(f"the file is empty; {EXPECTED}")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("the file is UTF-16; save it as UTF-8")
    if b"\0" in raw[:4096]:
        return "binary, no text"
    if b'"bbox"' in raw and not any(word in raw for word in (b'"caption', b'"sentence', b'"text"')):
        return "COCO JSON without captions: instances or keypoints"  # not parsed: COCO's own has 450 MB
    # Bytes that are no UTF-8 become lone surrogates, so that the entry that holds them can be named later.
    text = raw.decode("utf-8-sig", errors="surrogateescape").replace("\r\n", "\n")
    suffix = file.suffix.lower()
    if suffix in (".json", ".jsonl") or text.lstrip()[:1] in ("{", "["):
        return _recognise_json(file, text, lines=suffix == ".jsonl")
    lines = text.split("\n")
    if suffix == ".token" or any(TOKEN_LINE.match(line) for line in lines[:20]):
        return Opened(file, "token", lines)
    header = next(line for line in lines if line.strip())
    for delimiter in "\t,;|":
        names = [cell.strip().lower() for cell in next(csv.reader([header], delimiter=delimiter))]
        if set(names) & set(PICTURE_KEYS) and set(names) & set(CAPTION_KEYS):
            return Opened(file, "table", (text, delimiter))
    return f"no token lines, and no header with a picture and a caption column; it begins {header[:80]!r}"


def _recognise_json(file: Path, text: str, lines: bool) -> Opened | str:
    try:
        if lines:
            content = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error}); is the file cut short? {EXPECTED}") from error
    if isinstance(content, list):
        head = [item for item in content[:100] if isinstance(item, dict)]
        if any(set(map(str.lower, item)) & set(CAPTION_KEYS) for item in head):
            if any(set(map(str.lower, item)) & set(PICTURE_KEYS) for item in head):
                return Opened(file, "list", content)
            return f"a JSON list of captions without pictures; its first item has {sorted(head[0])}"
        return "a JSON list without captions"
    if not isinstance(content, dict):
        return f"JSON, but only a {type(content).__name__}"
    images, annotations = content.get("images"), content.get("annotations")
    if isinstance(images, list):
        if any("sentences" in image for image in images[:100] if isinstance(image, dict)):
            return Opened(file, "karpathy", content)
        if isinstance(annotations, list):
            keys = {key for item in annotations[:100] if isinstance(item, dict) for key in item}
            if "caption" in keys:
                return Opened(file, "coco", content)
            if annotations:
                return f"COCO JSON without captions; its annotations have {sorted(keys)}"
            return f"COCO JSON with {len(images)} images and no annotations"
        return f"JSON with {len(images)} images, but neither their `sentences` nor `annotations`"
    if any(name.lower().endswith(PICTURE_SUFFIXES) for name in content):
        if any(isinstance(value, str | list) for value in content.values()):
            # Once more as pairs: a dict would silently keep only the last of two equal keys.
            return Opened(file, "dict", json.loads(text, object_pairs_hook=list))
    return f"JSON of another layout; its first keys are {list(content)[:5]}"


def file_split(file: Path) -> str | None:
    """The split that a file name tells, as in captions_val2017.json or train.csv."""
    match = _SPLIT_NAME.match(file.stem)
    return match[2].lower() if match else None


def find(path: Path, complain: Complain) -> tuple[list[Opened], list[str]]:
    """The caption files to read for `path`, and a note on every other one that a folder holds.

    In a folder the layouts are preferred in the order of `LAYOUTS`. Several files of one layout are taken
    together if they are the splits of one set (captions_train.json, captions_val.json), and refused
    otherwise.

    Raises:
        ValueError: nothing there, no caption file, or several that are not splits of one set.
    """
    if path.is_file():
        try:
            opened = recognise(path)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if isinstance(opened, str):
            raise ValueError(f"{path}: {opened}; {EXPECTED}")
        return [opened], []
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder; expected a caption file or a folder with one")
    found, notes = [], []
    for folder in (path, path / "annotations"):
        for file in sorted(folder.iterdir()) if folder.is_dir() and not found else ():
            if file.suffix.lower() not in SUFFIXES or not file.is_file():
                continue
            try:
                opened = recognise(file)
            except ValueError as error:
                if file.suffix.lower() != ".txt":
                    complain(file, "whole file", str(error))
                notes.append(f"{file.name} ({error})")
                continue
            if isinstance(opened, str):
                notes.append(f"{file.name} ({opened})")
            else:
                found.append(opened)
    if not found:
        seen = "; ".join(notes) or f"no file in {' '.join(SUFFIXES)}"
        raise ValueError(f"{path}: the folder holds no caption file. Seen: {seen}. {EXPECTED}")
    layout = min((o.layout for o in found), key=LAYOUTS.index)
    chosen = [o for o in found if o.layout == layout]
    chosen.sort(key=lambda o: SPLITS.index(file_split(o.file) or ""))
    if len(chosen) > 1 and not _one_set(chosen):
        names = ", ".join(f"{o.file.name} ({o.layout})" for o in found)
        raise ValueError(f"{path}: several caption files, not splits of one set: {names}. Name one of them.")
    return chosen, [f"{o.file.name} ({o.layout})" for o in found if o.layout != layout] + notes


def _one_set(opened: list[Opened]) -> bool:
    """True if the names differ in the split alone: captions_train2017.json and captions_val2017.json."""
    names = [_SPLIT_NAME.match(o.file.stem) for o in opened]
    if not all(names) or len({o.file.suffix for o in opened}) > 1:
        return False
    return len({(m[1], m[3]) for m in names}) == 1 and len({m[2].lower() for m in names}) == len(names)


def read(opened: Opened, complain: Complain) -> list[Record]:
    """Turn a recognised file into records; a file without pictures is complained about."""
    records = READERS[opened.layout](opened.file, opened.content, complain)
    if not records:
        reason = f"no pictures in it ({opened.layout} layout); expected at least one"
        complain(opened.file, "whole file", reason)
    return records


def locate(records: list[Record], pictures: Path | None = None) -> tuple[list[str | None], list[Path]]:
    """The picture file of every record (None where there is none), and the folders that were looked through.

    Every folder is listed once and looked up from memory: a stat for each of 100,000 pictures would take long
    on a network disk.
    """
    listings: dict[str, frozenset[str]] = {}

    def is_file(path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in listings:
            try:
                with os.scandir(folder) as entries:
                    listings[folder] = frozenset(entry.name for entry in entries if entry.is_file())
            except OSError:
                listings[folder] = frozenset()
        return name in listings[folder]

    files: list[str | None] = []
    looked: dict[str, None] = {}
    roots: dict[tuple[Path, str], list[str]] = {}  # (file, filepath) -> folders, the likeliest first
    for record in records:
        key = (record.file, record.folder)
        if key not in roots:
            roots[key] = _roots(record, pictures)
            looked.update(dict.fromkeys(roots[key]))
        name = record.name.replace("\\", "/")
        files.append(next((path for root in roots[key] if is_file(path := os.path.join(root, name))), None))
    return files, [Path(root) for root in looked]


def _roots(record: Record, pictures: Path | None) -> list[str]:
    """Folders in which the pictures of `record.file` may lie; an absolute name passes through them all."""
    beside = record.file.absolute().parent
    bases = [beside, beside / "images"]
    if beside.name == "annotations":  # COCO: annotations/captions_val2017.json tells of val2017/*.jpg
        bases += [beside.parent, beside.parent / "images"]
    if pictures is not None:
        bases.insert(0, pictures.absolute())
    match = _SPLIT_NAME.match(record.file.stem)
    folders = [record.folder, match[2] + match[3] if match else ""]
    with_folder = [base / folder for folder in folders if folder for base in bases]
    return list(dict.fromkeys(str(root) for root in [*with_folder, *bases, Path.cwd()]))
