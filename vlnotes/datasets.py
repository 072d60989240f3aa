"""Pictures with captions from the files that people have: COCO, Karpathy, Flickr30k, tables, plain JSON.

`open_captions` finds out what a path holds and gives a `CaptionDataset`. Small sets then train from memory
(`load_pictures`), large ones from disk (`PairDataset`); `caption_targets` says which caption belongs to which
picture. A stream shows its data phase by phase: `cut` and `by_label` say which samples each phase has,
`split_pairs` takes them apart, `phase_batches` makes the batches. Nothing is lost silently: what cannot be used
is refused by name, or with `skip_bad=True` dropped, counted and listed.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from vlnotes._batches import Batch, pair_batches, trim_padding
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
from vlnotes.text import encode


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


def open_first(place: str | Path, *, skip_bad: bool = False) -> "CaptionDataset":
    """The pictures with captions at a place, or the first such set in a folder of sets.

    Args:
        place: what `open_captions` takes, or a folder of such folders; they are tried by name.
        skip_bad: see `open_captions`.

    Returns:
        A `CaptionDataset`.

    Raises:
        ValueError: nothing there can be opened; says why for the place and for each folder in it.
    """
    reasons = []
    for path in (Path(place), *sorted(path for path in Path(place).glob("*/") if path.is_dir())):
        try:
            return open_captions(path, skip_bad=skip_bad)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError("no set of pictures with captions: " + "; ".join(reasons))


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
        length: L, tokens a caption; longer ones are cut, and counted in a warning.
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
        length: int = 40,
        generator: torch.Generator | None = None,
    ) -> None:
        if images is not None and len(images) != len(dataset):
            raise ValueError(f"{len(images)} images for {len(dataset)} pictures in the dataset; expected one each")
        self.dataset, self.images, self.size, self.generator = dataset, images, size, generator
        targets = caption_targets(dataset)
        self.counts = torch.bincount(targets.text_to_image, minlength=len(dataset))  # (N,)
        self.first = self.counts.cumsum(0) - self.counts  # (N,) row of each picture's first caption
        tokens = encode(tokenizer, targets.captions, length)
        self.input_ids = tokens["input_ids"].int()  # (M, L), half the memory of int64
        self.attention_mask = tokens["attention_mask"].bool()  # (M, L)

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


def collate(samples: Sequence[dict[str, Any]], pad_id: int = 0) -> dict[str, Any]:
    """Samples become one batch: the `collate_fn` of a DataLoader, for a `PairDataset` or dicts of your own.

    Captions of different lengths are padded at the end to the longest, and padding that all of them share is cut.

    Args:
        samples: B dicts with the same keys. Tensors and numbers are stacked, everything else comes as a list.
            Where there is an attention_mask (L,), it is padded with 0.
        pad_id: what input_ids (L,) are padded with; 0 is [PAD] in tokenizers of `train_tokenizer`. For another one:
            `functools.partial(collate, pad_id=tokenizer.pad_token_id)`.

    Returns:
        dict such as image (B, 3, H, W), input_ids and attention_mask (B, L), ids (B,).

    Raises:
        TypeError: an image that is no tensor.
        ValueError: no samples, keys or shapes that differ, a mask of another length than its ids; names the sample.
    """
    if not samples:
        raise ValueError("samples is empty; a batch needs at least one")
    first = samples[0]

    def complain(index: int, what: str) -> None:
        name = f" (id {int(samples[index]['ids'])})" if "ids" in samples[index] else ""
        raise ValueError(f"sample {index} of the batch{name}: {what}")

    for index, sample in enumerate(samples):
        if sample.keys() != first.keys():
            complain(index, f"has the keys {sorted(sample)}; the first sample has {sorted(first)}")
        if "image" in sample and not isinstance(sample["image"], Tensor):
            kind = type(sample["image"]).__name__
            raise TypeError(f"sample {index} of the batch: image is {kind}; expected a tensor (3, H, W)")
        mask, row = sample.get("attention_mask"), sample.get("input_ids")
        if mask is not None and row is not None and mask.shape != row.shape:
            complain(index, f"attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(row.shape)}")

    batch: dict[str, Any] = {}
    for name, value in first.items():
        column = [sample[name] for sample in samples]
        if name in ("input_ids", "attention_mask"):
            fill = pad_id if name == "input_ids" else 0
            batch[name] = torch.nn.utils.rnn.pad_sequence(column, batch_first=True, padding_value=fill)  # (B, L)
        elif isinstance(value, Tensor):
            for index, other in enumerate(column):
                if other.shape != value.shape:
                    sizes = f"shape {tuple(other.shape)}; the first sample's has {tuple(value.shape)}"
                    complain(index, f"{name} has {sizes}: one batch, one size")
            batch[name] = torch.stack(column)
        else:
            batch[name] = torch.tensor(column) if isinstance(value, int | float) else column
    return trim_padding(batch)


# --- streams --------------------------------------------------------------------------------------


class Phase(NamedTuple):
    """One stretch of a stream: a name, and which samples belong to it."""

    name: str
    indices: Tensor  # (n,) int64


def cut(count: int, pieces: int, seed: int = 0) -> list[Phase]:
    """Equal pieces of one data set, as if it arrived little by little.

    Args:
        count: N, number of samples.
        pieces: how many; where they do not divide N, the first ones hold one sample more.
        seed: of the shuffle before the cut.

    Returns:
        Phases "1 of 5", "2 of 5" ...; every sample is in exactly one, and in each the indices ascend.

    Raises:
        ValueError: no pieces, or more pieces than samples.
    """
    if not 1 <= pieces <= count:
        raise ValueError(f"pieces is {pieces}; expected 1 to {count}, the number of samples")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    parts = order.tensor_split(pieces)
    return [Phase(f"{number} of {pieces}", part.sort().values) for number, part in enumerate(parts, start=1)]


def by_label(labels: Iterable[Hashable], groups: Sequence[Any] | None = None) -> list[Phase]:
    """Phases by what every sample is: who made it, what it shows, where it comes from.

    Class-incremental by shape: `by_label([scene.objects[0].shape for scene in World().single(1000)])`.
    Real drawings by maker: `by_label([extra["vendor"] for extra in data.extra])`.

    Args:
        labels: N of them, one a sample; a tensor or a list.
        groups: the phases in order; each is a label, or a list or tuple of labels that come together. None: a phase a
            label, in the order in which they first appear.

    Returns:
        Phases named by their labels ("circle + star"); every sample is in exactly one.

    Raises:
        ValueError: no labels, a label of the data that no group has, a label that two groups or no sample has.
    """
    labels = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    if not labels:
        raise ValueError("labels is empty; expected one a sample")
    rows: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        rows.setdefault(label, []).append(index)
    phases = rows if groups is None else groups
    wanted = [list(group) if isinstance(group, list | tuple) else [group] for group in phases]
    asked = Counter(label for group in wanted for label in group)
    twice = [label for label, times in asked.items() if times > 1]
    strange = [label for label in asked if label not in rows]
    lost = [label for label in rows if label not in asked]
    if twice or strange or lost or not all(wanted):
        what = {"named twice": twice, "of no sample": strange, "in no group": lost}
        found = "; ".join(f"{why}: {some[:8]}" for why, some in what.items() if some) or "an empty group"
        raise ValueError(f"groups must hold every label of the data once; {found}")
    found = [(" + ".join(map(str, group)), sorted(row for label in group for row in rows[label])) for group in wanted]
    return [Phase(name, torch.tensor(indices)) for name, indices in found]


class PhasePairs(NamedTuple):
    """The pictures and captions of one phase, as `phase_batches` takes them; a plain tuple of the four will do."""

    name: str
    images: Tensor  # (n, 3, H, W) uint8
    tokens: dict[str, Tensor]  # each (m, L)
    owner: Tensor  # (m,) int64, in 0 to n - 1


def split_pairs(phases: Sequence[Phase], images: Tensor, tokens: dict[str, Tensor], owner: Tensor) -> list[PhasePairs]:
    """Take pictures with captions apart, phase by phase; a caption goes where its picture goes.

    Args:
        phases: from `cut` or `by_label`; together they hold every picture exactly once.
        images: (N, 3, H, W) uint8.
        tokens: input_ids and attention_mask, each (M, L).
        owner: (M,) int64, the picture that each caption belongs to.

    Returns:
        One `PhasePairs` a phase, in the same order. Picture i of a phase is `images[phase.indices[i]]`.

    Raises:
        ValueError: pictures in no phase or in two, indices out of range, numbers that do not fit.
    """
    if any(len(rows) != len(owner) for rows in tokens.values()):
        counts = ", ".join(f"{name} {len(rows)}" for name, rows in tokens.items())
        raise ValueError(f"owner has {len(owner)} captions, tokens have {counts}; expected one row a caption")
    if owner.numel() and not 0 <= int(owner.min()) <= int(owner.max()) < len(images):
        span = f"{int(owner.min())} to {int(owner.max())}"
        raise ValueError(f"owner runs from {span}; expected pictures 0 to {len(images) - 1}")
    every = torch.cat([phase.indices for phase in phases]) if phases else torch.empty(0, dtype=torch.int64)
    if every.numel() and not 0 <= int(every.min()) <= int(every.max()) < len(images):
        raise ValueError(f"phases name pictures {int(every.min())} to {int(every.max())}; there are {len(images)}")
    times = torch.bincount(every, minlength=len(images))  # (N,)
    if not bool((times == 1).all()):
        nowhere, often = (times == 0).nonzero().flatten(), (times > 1).nonzero().flatten()
        raise ValueError(
            f"every picture belongs to exactly one phase; {len(nowhere)} to none {nowhere[:5].tolist()}, "
            f"{len(often)} to several {often[:5].tolist()}"
        )
    parts = []
    for name, indices in phases:
        place = torch.full((len(images),), -1)
        place[indices] = torch.arange(len(indices))
        said = (place[owner] >= 0).nonzero().flatten()  # (m,)
        some = {key: rows[said] for key, rows in tokens.items()}
        parts.append(PhasePairs(name, images[indices], some, place[owner[said]]))
    return parts


def phase_batches(
    parts: Iterable[tuple[str, Tensor, dict[str, Tensor], Tensor]], batch_size: int = 128, seed: int = 0
) -> dict[str, Callable[[int], Batch]]:
    """The batches of every phase of a stream, ready for `vlnotes.train.train`, one training after the other.

    Args:
        parts: the phases in order, each (name, images (n, 3, H, W), tokens (m, L), owner (m,)): from `split_pairs`, or
            one a domain of the world.
        batch_size: B.
        seed: of the shuffles, and of the choice among a picture's captions.

    Returns:
        name -> function of the step, in order. `ids` count through the whole stream, so that no two pictures share
        one; for `split_pairs` of some phases, `torch.cat([p.indices for p in phases])[ids]` are the rows they had.

    Raises:
        ValueError: no phases, two of one name, fewer pictures than a batch, and what `pair_batches` refuses; the
            message names the phase.
    """
    made: dict[str, Callable[[int], Batch]] = {}
    offset = 0
    for name, images, tokens, owner in parts:
        if name in made:
            raise ValueError(f"two phases are called {name!r}; names must differ")
        if len(images) < batch_size:
            raise ValueError(f"phase {name!r}: {len(images)} pictures do not fill one batch of {batch_size}")
        try:
            own = pair_batches(images, tokens, owner, batch_size, seed)
        except ValueError as error:
            raise ValueError(f"phase {name!r}: {error}") from error
        made[name] = _counted_from(own, offset)
        offset += len(images)
    if not made:
        raise ValueError("a stream needs at least one phase")
    return made


def _counted_from(batches: Callable[[int], Batch], offset: int) -> Callable[[int], Batch]:
    def batch_at(step: int) -> Batch:
        batch = batches(step)
        return {**batch, "ids": batch["ids"] + offset}

    return batch_at
