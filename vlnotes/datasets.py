"""Pictures with captions from the files that people have: COCO, Karpathy, Flickr30k, tables, plain JSON.

`open_captions` finds out what a path holds and gives a `CaptionDataset`. Small sets then train from memory
(`load_pictures`), large ones from disk (`PairDataset`); `caption_targets` says which caption belongs to which
picture. Nothing is lost silently: what cannot be used is refused by name, or with `skip_bad=True` dropped,
counted and listed.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from vlnotes._caption_checks import (
    Skipped,
    checked_captions,
    checked_files,
    checked_ids,
    list_skipped,
    of_split,
)
from vlnotes._caption_files import find, read
from vlnotes._caption_readers import Record


def open_captions(
    path: str | Path, split: str | None = None, *, skip_bad: bool = False, pictures: str | Path | None = None
) -> "CaptionDataset":
    """Open pictures with captions, whatever common layout they come in.

    A file may be COCO captions JSON, Karpathy JSON, a Flickr30k token file (`name.jpg#0<TAB>caption`), a CSV
    or TSV with a header line, or plain JSON: {"a.jpg": ["a caption"]} or [{"image": "a.jpg", "caption": "a
    caption"}]. Tables and lists may also have split, id and concept columns, and several rows a picture. The
    content decides, not the file's name. A folder may hold one such file (itself, or in `annotations/`), or
    the splits of one set (captions_train.json, captions_val.json). If it holds several layouts, the first of
    Karpathy, COCO, token file, table, JSON list, JSON dict is opened, and `report()` names the others; two
    sets of one layout are refused.

    Splits are called train, val and test: restval joins train, valid and dev are val. A file without splits
    takes the split in its own name (captions_val2017.json), and "all" where there is none. Captions are
    stripped, and line breaks and runs of blanks become one blank. Pictures are looked for under `filepath`,
    beside the file, in `images/`, in a folder named by the split (val2017), for a file in `annotations/` also
    one level up, last under the working directory. That they exist is checked here; that they decode, on
    access or by `verify()`.

    Args:
        path: the file, or the folder that holds it.
        split: the split to keep; None keeps all.
        skip_bad: leave out what cannot be used and list it in `skipped`, instead of raising at the first.
        pictures: one more folder to look for pictures in, before all others.

    Returns:
        A `CaptionDataset`.

    Raises:
        ValueError: no caption file, an unknown or empty split, or anything unusable in it: the message names
            file,
            entry, and what was expected.
    """
    path = Path(path)
    skipped: list[Skipped] = []

    def complain(file: Path, entry: str, reason: str) -> None:
        if not skip_bad:
            raise ValueError(f"{file}, {entry}: {reason}")
        skipped.append(Skipped(str(file), entry, reason))

    opened, unopened = find(path, complain)
    records = [record for one in opened for record in read(one, complain)]
    records = checked_ids(records, complain)
    records = of_split(records, split, path, skipped)
    wanted = len(records)
    records = checked_captions(records, complain)
    records, files = checked_files(records, None if pictures is None else Path(pictures), complain)
    if not records:
        raise ValueError(f"{path}: none of its {wanted} pictures can be used; {list_skipped(skipped)}")
    sources = [str(one.file) for one in opened]
    return CaptionDataset(records, files, opened[0].layout, sources, skipped, unopened, skip_bad)


# --- the dataset ----------------------------------------------------------------------------------


class CaptionDataset(Dataset):
    """Pictures with their captions; `d[i]` is (RGB picture, list of captions, id).

    Made by `open_captions`. Besides `len` and `[]`:

    - `captions[i]` the same list without opening the picture, `ids[i]`, `files[i]`, `splits[i]`;
    - `concepts[i]` what the picture shows (several may share one), or `concepts` None where the data says
      nothing of it;
    - `extra[i]` the other keys that the file has for the picture;
    - `skipped` what was left out, `layout` and `sources` what was opened, `report()` all of it in words.

    Args:
        records: checked records, see `_caption_readers`.
        files: the picture file of each.
        layout: "karpathy", "coco", "token", "table", "list" or "dict".
        sources: the caption files that were read.
        skipped: what was left out so far.
        unopened: other files in the folder, with the reason.
        skip_bad: whether pictures that do not decode are dropped by `verify` and `load_pictures`.
    """

    def __init__(
        self,
        records: list[Record],
        files: list[str],
        layout: str,
        sources: list[str],
        skipped: list[Skipped],
        unopened: list[str],
        skip_bad: bool,
    ) -> None:
        self.captions = [[text for _, text in record.captions] for record in records]
        self.ids = [record.id for record in records]
        self.files = files
        self.splits = [record.split for record in records]
        concepts = [record.concept for record in records]
        self.concepts = concepts if any(concept is not None for concept in concepts) else None
        self.extra = [record.extra for record in records]
        self.layout, self.sources, self.unopened = layout, sources, unopened
        self.skipped, self.skip_bad = skipped, skip_bad
        self._entries = [(str(record.file), record.entry) for record in records]

    @property
    def source(self) -> str:
        """The caption file or files, as text."""
        return ", ".join(self.sources)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str], Any]:
        return self.picture(index), self.captions[index], self.ids[index]

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {n}" for name, n in Counter(self.splits).items())
        captions = sum(map(len, self.captions))
        return (
            f"CaptionDataset({len(self)} pictures, {captions} captions, splits: {splits}, "
            f"layout: {self.layout}, source: {self.source}, skipped: {len(self.skipped)})"
        )

    def picture(self, index: int, at_least: int | None = None) -> Image.Image:
        """One picture as RGB, upright.

        Args:
            index: which one.
            at_least: a JPEG may be decoded smaller, but not below this side length; None keeps its size.

        Returns:
            A PIL picture of mode RGB.

        Raises:
            ValueError: the file does not decode as a picture; names file and entry.
        """
        file = self.files[index]
        try:
            with Image.open(file) as image:
                if at_least is not None:
                    image.draft(None, (at_least, at_least))
                return to_rgb(image)
        except Exception as error:  # Pillow's decoders raise many kinds
            source, entry = self._entries[index]
            size = os.path.getsize(file) if os.path.exists(file) else None
            state = "is gone" if size is None else f"has {size} bytes and does not decode"
            raise ValueError(
                f"{file} {state} (named by {source}, {entry}); expected a whole picture, such as a JPEG "
                f"or PNG ({error})"
            ) from error

    def verify(self, progress: bool = True, workers: int | None = None) -> list[Skipped]:
        """Open every picture once, which `open_captions` does not do.

        Args:
            progress: show a bar.
            workers: threads; None takes the cores, at most 8.

        Returns:
            The pictures that do not decode; with `skip_bad` they are dropped from the dataset, too.

        Raises:
            ValueError: some do not decode, and the dataset was opened without `skip_bad`.
        """

        def look(row: int, index: int) -> None:
            self.picture(index)

        everything = range(len(self))
        return self._drop(_each(look, everything, "verify", workers=workers, progress=progress, collect=True))

    def report(self) -> str:
        """What was opened and what was left out, in one paragraph."""
        counts = [len(captions) for captions in self.captions]
        parts = [f"{len(self):,} pictures with {sum(counts):,} captions"]
        if counts:
            parts[0] += f" ({min(counts)} to {max(counts)} a picture)"
        parts.append("splits: " + ", ".join(f"{name} {n:,}" for name, n in Counter(self.splits).items()))
        restval = sum(extra.get("split") == "restval" for extra in self.extra)
        parts[-1] += f" (train holds {restval:,} of restval)" if restval else ""
        if self.concepts is not None:
            parts.append(f"{len(set(self.concepts)):,} concepts")
        parts.append(f"read as {self.layout} from {self.source}")
        if self.unopened:
            parts.append("not opened: " + ", ".join(self.unopened))
        return "; ".join([*parts, list_skipped(self.skipped)]) + "."

    def _drop(self, bad: dict[int, str]) -> list[Skipped]:
        """Take out the pictures with these indices, and write down why."""
        found = [Skipped(*self._entries[index], reason) for index, reason in sorted(bad.items())]
        if not bad:
            return found
        if not self.skip_bad:
            raise ValueError(f"{len(bad)} of {len(self)} pictures are bad; the first: {found[0].reason}")
        if len(bad) == len(self):
            raise ValueError(f"none of the {len(self)} pictures decodes; the first: {found[0].reason}")
        self._keep([index for index in range(len(self)) if index not in bad])
        self.skipped.extend(found)
        return found

    def _keep(self, indices: Sequence[int]) -> None:
        for name in ("captions", "ids", "files", "splits", "concepts", "extra", "_entries"):
            values = getattr(self, name)
            if values is not None:
                setattr(self, name, [values[index] for index in indices])

    def subset(self, indices: Sequence[int]) -> "CaptionDataset":
        """A dataset of some of the pictures, for a split of one's own.

        Args:
            indices: which pictures, in which order; each once.

        Returns:
            A new `CaptionDataset`; this one stays as it is.

        Raises:
            ValueError: an index out of range or named twice.
        """
        chosen = [int(index) for index in indices]
        if any(not 0 <= index < len(self) for index in chosen) or len(set(chosen)) < len(chosen):
            raise ValueError(f"expected different indices from 0 to {len(self) - 1}, each at most once")
        part = copy(self)
        part.skipped = list(self.skipped)
        part._keep(chosen)
        return part


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as an upright 8-bit RGB one: EXIF-rotated, grey, palette, CMYK and 16 bit alike.

    What is transparent shows white. 16-bit greys v become v / 257, so that black stays black and white white.

    Args:
        image: a PIL picture.

    Returns:
        A PIL picture of mode RGB.

    Raises:
        ValueError: floating point or 32-bit values outside 0 to 65,535, whose white nobody knows.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float64)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"mode {image.mode} with values {values.min():g} to {values.max():g}; expected 8 or 16 bit"
            )
        return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


# --- into tensors ---------------------------------------------------------------------------------


def square(image: Image.Image, size: int) -> Tensor:
    """The largest centred square of a picture, resized with antialiasing.

    Args:
        image: RGB, any size.
        size: side of the result in pixels.

    Returns:
        (3, size, size) uint8.
    """
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, size, size)


def load_pictures(
    dataset: CaptionDataset,
    size: int = 64,
    indices: Sequence[int] | None = None,
    workers: int | None = None,
    *,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Pictures as one uint8 tensor, resized and cropped to squares, so that a small set trains from memory.

    A dataset opened with `skip_bad` loses its pictures that do not decode (they join `skipped`), so that row
    i of the result is `dataset[i]` afterwards. If only some `indices` were asked for, their numbers shift
    when that happens: then `return_indices=True` is needed.

    Args:
        dataset: from `open_captions`.
        size: side of the pictures in pixels.
        indices: which pictures, in which order; None takes all.
        workers: threads; None takes the cores, at most 8.
        return_indices: also give the indices of the rows.

    Returns:
        (N, 3, size, size) uint8; with `return_indices` a pair of it and (N,) int64, the place in the dataset,
        as it is after the call, of every row.

    Raises:
        ValueError: a picture does not decode and the dataset was opened without `skip_bad`, or an index is
            out of range.
    """
    chosen = list(range(len(dataset))) if indices is None else [int(index) for index in indices]
    if any(not 0 <= index < len(dataset) for index in chosen):
        raise ValueError(f"indices {min(chosen)} to {max(chosen)}; the dataset has pictures 0 to {len(dataset) - 1}")
    images = torch.empty(len(chosen), 3, size, size, dtype=torch.uint8)

    def load(row: int, index: int) -> None:
        images[row] = square(dataset.picture(index, at_least=2 * size), size)

    progress = len(chosen) >= 1000
    bad = _each(load, chosen, "pictures", workers=workers, progress=progress, collect=dataset.skip_bad)
    if bad and indices is not None and not return_indices:
        raise ValueError(
            f"{len(bad)} of the chosen pictures do not decode, and dropping them moves the others: call "
            f"dataset.verify() first, or pass return_indices=True; the first: {bad[min(bad)]}"
        )
    before = len(dataset)
    dataset._drop(bad)
    if bad:
        images = images[[row for row, index in enumerate(chosen) if index not in bad]]
        place = np.cumsum([index not in bad for index in range(before)]) - 1
        chosen = [int(place[index]) for index in chosen if index not in bad]
    return (images, torch.tensor(chosen, dtype=torch.int64)) if return_indices else images


def _each(
    work: Callable[[int, int], Any],
    indices: Sequence[int],
    label: str,
    *,
    workers: int | None,
    progress: bool,
    collect: bool,
) -> dict[int, str]:
    """Run `work(row, index)` in threads: Pillow lets them run side by side.

    With `collect` gives the indices whose picture is bad, and why; without, the first bad one raises.
    """
    from tqdm.auto import tqdm

    bad: dict[int, str] = {}

    def one(row: int, index: int) -> None:
        try:
            work(row, index)
        except ValueError as error:
            if not collect:
                raise
            bad[index] = str(error)

    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        done = pool.map(one, range(len(indices)), indices)
        for _ in tqdm(done, total=len(indices), desc=label, disable=not progress, file=sys.stdout):
            pass
    return bad


class CaptionTargets(NamedTuple):
    """All captions in one list, and what each belongs to."""

    captions: list[str]  # M of them
    text_to_image: Tensor  # (M,) int64, the index of the caption's picture
    image_concept: Tensor  # (N,) int64, equal where pictures show the same; without concepts all differ
    text_concept: Tensor  # (M,) int64


def caption_targets(dataset: CaptionDataset) -> CaptionTargets:
    """The flat list of captions, with the index of each one's picture and concept, for retrieval scores.

    `image_concept[:, None] == text_concept[None, :]` is the (N, M) matrix of what counts as right by concept.

    Args:
        dataset: from `open_captions`.

    Returns:
        `CaptionTargets`.
    """
    counts = torch.tensor([len(captions) for captions in dataset.captions])
    text_to_image = torch.arange(len(dataset)).repeat_interleave(counts)  # (M,)
    concepts = dataset.concepts or [None] * len(dataset)
    numbers: dict[Any, int] = {}
    names = [("picture", i) if concept is None else ("concept", concept) for i, concept in enumerate(concepts)]
    image_concept = torch.tensor([numbers.setdefault(name, len(numbers)) for name in names])  # (N,)
    captions = [caption for some in dataset.captions for caption in some]
    return CaptionTargets(captions, text_to_image, image_concept, image_concept[text_to_image])


class PairDataset(Dataset):
    """Every picture with one of its captions, drawn anew each time it is asked for: what a DataLoader needs.

    All captions are tokenised once, here; pictures are decoded when asked for, unless they are given as a
    tensor. In the workers of a DataLoader the captions are drawn with the worker's own seed, which follows
    from the `generator` given to the DataLoader and changes every epoch.

    Args:
        dataset: from `open_captions`.
        tokenizer: a transformers tokenizer, see `vlnotes.text`.
        images: (N, 3, size, size) uint8 from `load_pictures`, to train from memory; None reads from disk.
        size: side of the pictures in pixels, when they are read from disk.
        length: L, tokens a caption; longer ones are cut.
        generator: draws the captions; None always takes a picture's first one.

    Raises:
        ValueError: another number of `images` than of pictures in the dataset.
    """

    def __init__(
        self,
        dataset: CaptionDataset,
        tokenizer: Any,
        images: Tensor | None = None,
        *,
        size: int = 64,
        length: int = 32,
        generator: torch.Generator | None = None,
    ) -> None:
        if images is not None and len(images) != len(dataset):
            raise ValueError(f"{len(images)} images for {len(dataset)} pictures in the dataset; expected one each")
        self.dataset, self.images, self.size, self.generator = dataset, images, size, generator
        targets = caption_targets(dataset)
        self.counts = torch.bincount(targets.text_to_image, minlength=len(dataset))  # (N,)
        self.first = self.counts.cumsum(0) - self.counts  # (N,) row of each picture's first caption
        tokens = [
            tokenizer(
                targets.captions[at : at + 8192],
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            for at in range(0, len(targets.captions), 8192)
        ]
        self.input_ids = torch.cat([part["input_ids"].int() for part in tokens])  # (M, L), half the memory of int64
        self.attention_mask = torch.cat([part["attention_mask"].bool() for part in tokens])  # (M, L)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        one = self.batch([index], generator=self._dice())
        return {name: value[0] for name, value in one.items()}

    def batch(self, indices: Sequence[int] | Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Several pictures at once, each with one caption.

        Args:
            indices: (B,) which pictures.
            generator: draws the captions; None takes each picture's first one.

        Returns:
            dict of image (B, 3, size, size) uint8, input_ids and attention_mask (B, L) int64, ids (B,) int64,
            which are indices into the dataset.
        """
        ids = torch.as_tensor(indices, dtype=torch.int64)  # (B,)
        which = torch.zeros(len(ids)) if generator is None else torch.rand(len(ids), generator=generator)
        rows = self.first[ids] + (which * self.counts[ids]).long()  # (B,)
        if self.images is not None:
            image = self.images[ids]
        else:
            at_least = 2 * self.size
            image = torch.stack([square(self.dataset.picture(i, at_least), self.size) for i in ids.tolist()])
        return {
            "image": image,
            "input_ids": self.input_ids[rows].long(),
            "attention_mask": self.attention_mask[rows].long(),
            "ids": ids,
        }

    def __getstate__(self) -> dict[str, Any]:
        """For workers that start afresh: a generator's own pickle shares memory that is gone too soon."""
        state = None if self.generator is None else self.generator.get_state().numpy()
        return {**self.__dict__, "generator": state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.generator is not None:
            self.generator = torch.Generator().set_state(torch.from_numpy(state["generator"].copy()))

    def _dice(self) -> torch.Generator | None:
        """Our generator, or in a worker process one that is seeded for this worker and this epoch."""
        worker = get_worker_info()
        if worker is None or self.generator is None:
            return self.generator
        if getattr(self, "_worker_seed", None) != worker.seed:
            self._worker_seed, self.generator = worker.seed, torch.Generator().manual_seed(worker.seed)
        return self.generator
