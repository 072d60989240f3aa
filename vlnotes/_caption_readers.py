"""The layouts in which captions are handed around, each read into the same plain list of records.

A reader only turns a file into records; whether ids, captions and pictures are any good is judged in one
place, `_caption_checks`. Where a reader meets an entry that it cannot turn into a record it calls
`complain(file, entry, reason)`, which either raises or writes the entry down, and goes on with the next one.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Complain = Callable[[Path, str, str], None]

PICTURE_KEYS = ("image", "file", "file_name", "filename", "path", "filepath", "image_name", "image_path")
CAPTION_KEYS = ("caption", "captions", "text", "sentence", "sentences", "comment")
ID_KEYS = ("id", "image_id", "img_id")
TOKEN_LINE = re.compile(r"^([^\t]+)#(\d+)\t(.*)$")


@dataclass(slots=True)
class Record:
    """One picture as a file tells it, before anything was checked."""

    file: Path  # the file that tells of it
    entry: str  # where in that file
    name: Any  # the picture's file name
    folder: str = ""  # Karpathy's `filepath`
    id: Any = None
    split: Any = None
    concept: Any = None
    captions: list[tuple[str, Any]] = field(default_factory=list)  # (entry, text)
    extra: dict = field(default_factory=dict)


def _read_coco(file: Path, content: dict, complain: Complain) -> list[Record]:
    by_id: dict[Any, Record] = {}
    records = []
    for i, image in enumerate(content["images"]):
        entry = f"images[{i}]"
        if not isinstance(image, dict) or not {"id", "file_name"} <= image.keys():
            complain(file, entry, f"expected a dict with `id` and `file_name`, got {show(image)}")
            continue
        number = image["id"]
        if not isinstance(number, int | str):
            complain(file, entry, f"the picture's id is {show(number)}; expected a number or text")
            continue
        if number in by_id:
            complain(file, entry, f"duplicate id: {number!r} is already {by_id[number].entry}")
            continue
        record = by_id[number] = Record(file, entry, image["file_name"], id=number, extra=image)
        record.split, record.concept = image.get("split"), image.get("concept")
        records.append(record)
    seen: set[Any] = set()
    for i, note in enumerate(content["annotations"]):
        entry = f"annotations[{i}]"
        owner = note.get("image_id") if isinstance(note, dict) else None
        if not isinstance(owner, int | str):
            complain(file, entry, f"expected a dict with `image_id` and `caption`, got {show(note)}")
        elif owner not in by_id:
            complain(file, entry, f"image_id {owner!r} is the id of no entry in `images`")
        elif isinstance(note.get("id"), int | str) and note["id"] in seen:
            complain(file, entry, f"duplicate id: an earlier annotation has id {note['id']!r} too")
        else:
            if isinstance(note.get("id"), int | str):
                seen.add(note["id"])
            by_id[owner].captions.append((entry, note.get("caption")))
    return records


def _read_karpathy(file: Path, content: dict, complain: Complain) -> list[Record]:
    records = []
    for i, image in enumerate(content["images"]):
        entry = f"images[{i}]"
        fine = isinstance(image, dict) and "filename" in image and isinstance(image.get("sentences"), list)
        if not fine:
            reason = f"expected a dict with `filename` and a list `sentences`, got {show(image)}"
            complain(file, entry, reason)
            continue
        record = Record(file, entry, image["filename"], str(image.get("filepath") or ""))
        record.id = next((image[key] for key in ("cocoid", "imgid") if key in image), None)
        record.split, record.concept = image.get("split"), image.get("concept")
        record.extra = {key: value for key, value in image.items() if key != "sentences"}
        for j, sentence in enumerate(image["sentences"]):
            text = sentence.get("raw") if isinstance(sentence, dict) else sentence
            record.captions.append((f"{entry}.sentences[{j}]", text))
        records.append(record)
    return records


def _read_token(file: Path, lines: list[str], complain: Complain) -> list[Record]:
    records: dict[str, Record] = {}
    seen: set[tuple[str, str]] = set()
    open_caption = None  # the record whose caption the next line may go on with
    for i, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = TOKEN_LINE.match(line)
        if open_caption is not None and not any(c.isalnum() or c in "\t#" for c in line):
            entry, text = open_caption.captions[-1]  # real captions hold line breaks: "ready to be cut\n."
            open_caption.captions[-1] = (entry, f"{text} {line}")
            continue
        open_caption = None
        if not match:
            complain(file, f"line {i}", f"expected `name.jpg#0<TAB>caption`, got {line[:80]!r}")
        elif (match[1], match[2]) in seen:
            complain(file, f"line {i}", f"duplicate id: {match[1]}#{match[2]} was there before")
        else:
            seen.add((match[1], match[2]))
            record = open_caption = records.setdefault(match[1], Record(file, f"line {i}", match[1]))
            record.captions.append((f"line {i}", match[3]))
    return list(records.values())


def _read_table(file: Path, content: tuple[str, str], complain: Complain) -> list[Record]:
    header: list[str] = []
    rows = []
    for entry, cells in _cells(file, *content, complain):
        if not header:
            header = [cell.strip().lower() for cell in cells]
        elif len(cells) != len(header):
            reason = f"expected {len(header)} columns ({', '.join(header)}), got {len(cells)}"
            complain(file, entry, f"{reason}; a caption that holds the delimiter {content[1]!r} needs quotes")
        else:
            rows.append((entry, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}))
    return _rows_to_records(file, rows, complain)


def _cells(file: Path, text: str, delimiter: str, complain: Complain) -> Iterator[tuple[str, list[str]]]:
    """Rows of cells; in `|` and tab files, quotes mean something only around a whole cell."""
    if delimiter in "\t|":
        for i, line in enumerate(text.split("\n"), 1):
            cells = [cell.strip() for cell in line.split(delimiter)]
            for j, cell in enumerate(cells):
                inner = cell[1:-1]
                if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', ""):
                    cells[j] = inner.replace('""', '"')
            if line.strip():
                yield f"line {i}", cells
        return
    lines = io.StringIO(text, newline="\n")
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            complain(file, f"line {first}", f"cannot be read as a row ({error}); are its quotes closed?")
            continue
        if any(cell.strip() for cell in cells):
            yield f"line {first}", cells


def _read_list(file: Path, content: list, complain: Complain) -> list[Record]:
    rows = []
    for i, item in enumerate(content):
        if isinstance(item, dict):
            rows.append((f"[{i}]", {key.lower(): value for key, value in item.items()}))
        else:
            complain(file, f"[{i}]", f"expected a dict with a picture and its caption, got {show(item)}")
    return _rows_to_records(file, rows, complain)


def _rows_to_records(file: Path, rows: list[tuple[str, dict]], complain: Complain) -> list[Record]:
    """Rows of a table or a JSON list; rows of the same picture are put together."""
    names = dict.fromkeys(name for _, row in rows for name in row)  # in order of appearance
    pictures = [name for name in names if name in PICTURE_KEYS]
    folder_key = "filepath" if "filepath" in pictures and {"filename", "file_name"} & set(pictures) else None
    pictures = [name for name in pictures if name != folder_key]
    captions = [name for name in names if name in CAPTION_KEYS]
    for kind, keys in (("picture", pictures), ("caption", captions)):
        if len(keys) > 1:
            raise ValueError(f"{file}: {len(keys)} {kind} columns ({', '.join(keys)}); rename or drop all but one")
    if not rows:
        return []
    id_key = next((key for key in ID_KEYS if key in names), None)
    if id_key and _numbers_rows(rows, pictures[0], id_key):
        id_key = None
    records: dict[tuple[str, str], Record] = {}
    for entry, row in rows:
        name, folder = row.get(pictures[0]), str(row.get(folder_key) or "")
        if not isinstance(name, str) or not name.strip():
            complain(file, entry, f"`{pictures[0]}` should name a picture file, got {show(name)}")
            continue
        cells = (row.get(key) for key in (id_key, "split", "concept"))
        number, split, concept = (None if cell == "" else cell for cell in cells)
        record = records.get((folder, name))
        if record is None:
            record = Record(file, entry, name, folder, number, split, concept, extra=row)
            records[folder, name] = record
        elif (record.id, record.split, record.concept) != (number, split, concept):
            reason = f"{name!r} has another id, split or concept than in its first entry, {record.entry}"
            complain(file, entry, reason)
            continue
        texts = row.get(captions[0])
        if isinstance(texts, list):
            record.captions += [(f"{entry}.{captions[0]}[{j}]", text) for j, text in enumerate(texts)]
        else:
            record.captions.append((entry, texts))
    return list(records.values())


def _numbers_rows(rows: list[tuple[str, dict]], picture_key: str, id_key: str) -> bool:
    """True if the id column counts captions: no value twice, although a picture has several rows."""
    ids = {str(row.get(id_key)) for _, row in rows}
    return len(ids) == len(rows) and len({str(row.get(picture_key)) for _, row in rows}) < len(rows)


def _read_dict(file: Path, content: list[tuple[str, Any]], complain: Complain) -> list[Record]:
    records: dict[str, Record] = {}
    for name, texts in content:
        entry = json.dumps(name, ensure_ascii=False)
        if name in records:
            complain(file, entry, "duplicate id: the same picture is named twice")
            continue
        texts = texts if isinstance(texts, list) else [texts]
        record = Record(file, entry, name)
        record.captions = [(f"{entry}[{j}]", text) for j, text in enumerate(texts)]
        records[name] = record
    return list(records.values())


READERS = {
    "coco": _read_coco,
    "karpathy": _read_karpathy,
    "token": _read_token,
    "table": _read_table,
    "list": _read_list,
    "dict": _read_dict,
}


def show(value: Any) -> str:
    """A value for an error message, cut to 80 letters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
