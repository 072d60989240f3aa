"""The explorer: a contrastive matrix to walk through with mouse or arrow keys, over training and across models.

In a notebook an `Explorer` shows itself as the last line of a cell; `save` writes the same as one page that needs
neither Python nor a network. Values, probabilities and rankings are worked out by the page: pointing never waits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import to_rgb

from vlnotes.explorer import encoding
from vlnotes.explorer.pages import framed, page, source

if TYPE_CHECKING:
    from vlnotes.world import Pairs

_made = count()
# Deflated bytes that a notebook keeps. Jupyter drops an output of more than about 3 MB, and nobody wants to store one;
# beyond this the page gets its bytes from the running kernel, and only the still picture is stored.
STORED = 1_500_000


class Explorer:
    """A matrix of N pictures by M captions, to be looked at cell by cell.

    Args:
        similarity: (N, M) or (steps, N, M), cosines or other real numbers; at most 1,024 a side.
        pictures: N pictures, uint8 (N, 3, H, W) or a list of PIL pictures.
        captions: M texts.
        compare: a second model's matrix, of the same shape, to stand beside the first or to be subtracted from.
        names: what the two models are called.
        steps: what the steps are called, for instance [0, 10, 100, 1000] or names of stream phases.
        step_label: what a step is.
        rows: N names, where "picture 7" says too little.
        text_to_image: (M,) the row that caption j was written for, -1 for none; the diagonal where N = M.
        truth: (N, M), what the world says of each pair: True, False, and None, NaN or -1 where nobody knows.
        overlays: name -> (N, M) or (steps, N, M); bool marks cells, real numbers are amounts to lay over them.
        row_attributes: name -> N values to sort the pictures by.
        column_attributes: name -> M values to sort the captions by; without, captions follow their own pictures.
        temperature: where the slider starts; divides the values before each softmax.
        label: what a value is called.
        called: what a row and a column are called, in the singular.
        title: of the saved page.
        bits: 8 or 16 a value; None keeps 16 up to half a million values, 8 beyond. The readout shows no more digits
            than that leaves.

    Raises:
        ValueError: NaN, shapes that do not fit each other, too many rows or columns, an unknown setting.
        TypeError: a wrong kind of argument.

    Example:
        >>> explorer = Explorer(similarity, pictures=images, captions=texts)
        >>> explorer.observe(lambda change: print(change["new"]), names="selected")
        >>> explorer.selected = (3, 3)
    """

    def __init__(
        self,
        similarity: Any,
        pictures: Any = None,
        captions: Sequence[str] | None = None,
        *,
        compare: Any = None,
        names: Sequence[str] = ("first", "second"),
        steps: Sequence | None = None,
        step_label: str = "step",
        rows: Sequence[str] | None = None,
        text_to_image: Any = None,
        truth: Any = None,
        overlays: Mapping[str, Any] | None = None,
        row_attributes: Mapping[str, Sequence] | None = None,
        column_attributes: Mapping[str, Sequence] | None = None,
        temperature: float = 0.07,
        label: str = "cosine",
        called: Sequence[str] = ("picture", "caption"),
        title: str = "Contrastive matrix",
        bits: int | None = None,
    ):
        models = [encoding.matrices(similarity, "similarity")]
        if compare is not None:
            models.append(encoding.matrices(compare, "compare"))
            if models[1].shape != models[0].shape:
                raise ValueError(
                    f"compare: expected (steps, N, M) = {models[0].shape}, as similarity, got {models[1].shape}"
                )
        if len(models) > 1 and (len(names) != 2 or not all(isinstance(name, str) for name in names)):
            raise ValueError(f"names: expected two names, one for each model, got {names!r}")
        if len(called) != 2 or not all(isinstance(word, str) and word for word in called):
            raise ValueError(f"called: expected two words, for a row and for a column, got {called!r}")
        self._called = [[word, _plural(word)] for word in called]
        self._models = models
        moments, n, m = models[0].shape
        self.shape = (moments, n, m)
        self._names = list(names[: len(models)])
        self._steps = [str(step) for step in _counted(steps, moments, "steps", "matrices")]
        self._rows = _texts(rows, n, "rows", "rows") if rows is not None else None
        self._captions = _texts(captions, m, "captions", "columns", called[1])
        self._pictures = _pictures(pictures, n)
        self._owner = _owners(text_to_image, n, m)
        self._truth = None if truth is None else encoding.truth_codes(truth, (n, m))
        self._overlays = self._layers(overlays or {})
        self._attributes = [
            _attributes(given, need, which)
            for given, need, which in (
                (row_attributes, n, "row_attributes"),
                (column_attributes, m, "column_attributes"),
            )
        ]
        if not isinstance(temperature, int | float) and not hasattr(temperature, "item"):
            raise TypeError(f"temperature: expected a number, got {type(temperature).__name__}")
        if not 0.005 <= float(temperature) <= 2:
            raise ValueError(f"temperature: expected a number from 0.005 to 2, got {float(temperature):g}")
        if bits not in (None, 8, 16):
            raise ValueError(f"bits: expected 8, 16 or None, got {bits!r}")
        self._temperature, self._label, self._title = float(temperature), str(label), str(title)
        self._step_label = str(step_label)
        self._bits = bits or (16 if len(models) * models[0].size <= encoding.FINE_CELLS else 8)

    @classmethod
    def from_features(cls, image_features: Any, text_features: Any, **options: Any) -> Explorer:
        """An explorer of one's own features: they are normalised and multiplied.

        Args:
            image_features: (N, D) or (steps, N, D).
            text_features: (M, D) or (steps, M, D).
            options: passed on to `Explorer`.

        Returns:
            The explorer of their cosines.

        Raises:
            ValueError: widths or steps that differ, NaN, infinity, or a feature of length 0.
        """
        images, texts = (encoding.plain(x).astype(np.float32) for x in (image_features, text_features))
        shapes = f"got {images.shape} and {texts.shape}"
        if images.ndim not in (2, 3) or images.ndim != texts.ndim or images.shape[-1] != texts.shape[-1]:
            raise ValueError(f"features: expected (N, D) and (M, D), or both with steps before them; {shapes}")
        if images.ndim == 3 and len(images) != len(texts):
            raise ValueError(f"features: expected as many steps of pictures as of texts; {shapes}")
        unit = []
        for name, x in (("image_features", images), ("text_features", texts)):
            length = np.linalg.norm(x, axis=-1, keepdims=True)
            if not np.isfinite(length).all() or not (length > 0).all():
                raise ValueError(f"{name}: a feature holds NaN or infinity, or has length 0 and so no direction")
            unit.append(x / length)
        return cls(np.clip(unit[0] @ unit[1].swapaxes(-1, -2), -1, 1), **options)

    @classmethod
    def from_pairs(cls, similarity: Any, pairs: Pairs, **options: Any) -> Explorer:
        """An explorer of pictures and captions of the picture world, with everything that the world knows of them.

        Args:
            similarity: (N, M) or (steps, N, M).
            pairs: N pictures with M captions, as `vlnotes.world.pairs` gives them.
            options: passed on to `Explorer`; they go before what is found here.

        Returns:
            The explorer; pictures can be sorted by ground, by number of things and by the first thing's shape and
            colour, captions by kind.
        """
        from vlnotes.world import holds

        truth = [[holds(scene, caption.predicate) for caption in pairs.captions] for scene in pairs.scenes]
        seen = [[scene.objects[i] for i in scene.visible] for scene in pairs.scenes]
        found = {
            "pictures": pairs.images,
            "captions": pairs.texts,
            "text_to_image": pairs.text_to_image,
            "truth": np.array(truth, dtype=object),
            "row_attributes": {
                "number of things": [len(things) for things in seen],
                "first shape": [things[0].shape if things else None for things in seen],
                "first colour": [things[0].colour if things else None for things in seen],
                "place": [scene.place for scene in pairs.scenes],
            },
            "column_attributes": {"kind of caption": [caption.kind for caption in pairs.captions]},
        }
        return cls(similarity, **(found | options))

    def __repr__(self) -> str:
        moments, n, m = self.shape
        over = f", {moments} steps" if moments > 1 else ""
        return f"Explorer({n} {self._called[0][1]} x {m} {self._called[1][1]}{over})"

    @property
    def selected(self) -> tuple[int, int] | None:
        """The pinned cell, (row, column) as the matrix was given, or None. Set it and the page follows."""
        return self.widget.selected

    @selected.setter
    def selected(self, cell: Sequence[int] | None) -> None:
        self.widget.selected = None if cell is None else self._cell(cell)

    def observe(self, handler: Callable[[Any], None], names: str = "selected") -> None:
        """Call a function whenever the pinned cell changes, by a click, a key, or Python.

        Args:
            handler: gets a change with "new" and "old", as traitlets has it.
            names: "selected".
        """
        self.widget.observe(handler, names)

    def unobserve(self, handler: Callable[[Any], None], names: str = "selected") -> None:
        """Take an observer back.

        Args:
            handler: what `observe` got.
            names: "selected".
        """
        self.widget.unobserve(handler, names)

    @cached_property
    def widget(self) -> Any:
        """The live widget (anywidget), to be put among other widgets; a cell needs only the explorer itself."""
        return _widget_class()(explorer=self)

    def save(self, path: str | Path) -> Path:
        """Write one page that works offline, with no kernel and no other file.

        Args:
            path: of the HTML file.

        Returns:
            The path.
        """
        path = Path(path)
        path.write_text(page(self._about(""), self._packed[1], self._still), encoding="utf-8")
        return path

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        # The stored output is the page alone: widget state would show nothing once the kernel is gone.
        # While a kernel runs, the widget's model finds the page by its key and carries the selection.
        about = self._about(self.widget.key)
        kept = b"" if self.widget.data else self._packed[1]
        return {"text/plain": repr(self), "text/html": framed(about, kept, self._still)}

    def _cell(self, cell: Sequence[int]) -> tuple[int, int]:
        _, n, m = self.shape
        try:
            row, column = (int(i) for i in cell)
        except (TypeError, ValueError):
            raise ValueError(f"selected: expected (row, column) or None, got {cell!r}") from None
        if not (0 <= row < n and 0 <= column < m):
            raise ValueError(f"selected: expected a row below {n} and a column below {m}, got {(row, column)}")
        return row, column

    def _layers(self, given: Mapping[str, Any]) -> list[tuple[dict, np.ndarray]]:
        """The overlays: those given, after those that follow from pairs and truth."""
        moments, n, m = self.shape
        layers: dict[str, Any] = {}
        own = np.zeros((n, m), bool)
        if self._owner is not None:
            has = self._owner >= 0
            own[self._owner[has], np.arange(m)[has]] = True
            layers["own pairs"] = own
        if self._truth is not None:
            name = f"true, but of another {self._called[0][0]}" if self._owner is not None else "true pairs"
            layers[name] = (self._truth == 1) & ~own
        layers |= dict(given)
        found = []
        for k, (name, values) in enumerate(layers.items()):
            about, codes = encoding.overlay(values, name, moments, (n, m))
            colour = [round(255 * part) for part in to_rgb(encoding.OVERLAYS[k % len(encoding.OVERLAYS)])]
            found.append(
                (
                    about | {"name": str(name), "colour": colour, "start": name in given and about["kind"] == "bool"},
                    codes,
                )
            )
        return found

    @cached_property
    def _limits(self) -> tuple[float, float]:
        return float(min(x.min() for x in self._models)), float(max(x.max() for x in self._models))

    @cached_property
    def _still(self) -> bytes:
        return encoding.still(self._models[0][-1], *self._limits)

    @cached_property
    def _packed(self) -> tuple[dict, bytes]:
        """(what does not change of the description, the deflated bytes)."""
        moments, n, m = self.shape
        low, high = self._limits
        top = 2**self._bits - 1
        arrays = {f"model{k}": encoding.quantise(x, low, high, self._bits) for k, x in enumerate(self._models)}
        arrays["colours"] = encoding.colour_table(encoding.COSINES)
        arrays["signed"] = encoding.colour_table(encoding.SIGNED)
        if self._truth is not None:
            arrays["truth"] = self._truth
        for k, (_, codes) in enumerate(self._overlays):
            arrays[f"overlay{k}"] = codes
        orders = encoding.orders(self._models[0][-1], *self._attributes, self._owner)
        for k, order in enumerate(orders):
            arrays |= {f"rows{k}": order["rows"], f"columns{k}": order["columns"]}
        files = [encoding.picture(image) for image in self._pictures]
        where, places, packed = encoding.pack(arrays, files)
        reach = float(np.abs(self._models[1] - self._models[0]).max()) if len(self._models) > 1 else 0.0
        about = {
            "n": n,
            "m": m,
            "models": self._names,
            "steps": self._steps,
            "stepLabel": self._step_label,
            "captions": self._captions,
            "rowNames": self._rows,
            "low": low,
            "high": high,
            "top": top if high > low else 0,
            "digits": _digits(high - low, top),
            "change": reach,
            "label": self._label,
            "called": self._called,
            "title": self._title,
            "temperature": self._temperature,
            "alt": self._alt(),
            "orders": [
                {"name": o["name"], "rowGroups": o["row_groups"], "columnGroups": o["column_groups"]} for o in orders
            ],
            "overlays": [layer for layer, _ in self._overlays],
            "arrays": where,
            "pictures": [[*place, "image/jpeg"] for place in places],
        }
        return about, packed

    def _about(self, key: str) -> dict:
        live = self.__dict__.get("widget")
        return self._packed[0] | {"key": key, "selected": live.selected if live else None}

    def _alt(self) -> str:
        _, n, m = self.shape
        last = self._models[0][-1]
        rows, columns = (words[count != 1] for words, count in zip(self._called, (n, m), strict=True))
        text = f"Matrix of {n} {rows} by {m} {columns}, {self._label} from {last.min():.2f} to {last.max():.2f}"
        if len(self._steps) > 1:
            text += f" at {self._step_label} {self._steps[-1]}"
        if self._owner is not None and (self._owner >= 0).any() and n > 1:
            has = self._owner >= 0
            own = np.zeros((n, m), bool)
            own[self._owner[has], np.arange(m)[has]] = True
            text += f"; mean of the own pairs {last[own].mean():.2f}, of all others {last[~own].mean():.2f}"
        return text


@cache
def _widget_class() -> type:
    import anywidget
    import traitlets

    class ExplorerWidget(anywidget.AnyWidget):
        """What lives between Python and the page: the selection, and the bytes for those who ask."""

        _esm = source("explorer.js")
        _css = source("explorer.css")
        key = traitlets.Unicode().tag(sync=True)
        data = traitlets.Bytes().tag(sync=True)
        selected = traitlets.Tuple(traitlets.Int(), traitlets.Int(), default_value=None, allow_none=True).tag(sync=True)

        def __init__(self, explorer: Explorer):
            about, packed = explorer._packed
            digest = hashlib.sha256(repr(about).encode() + packed).hexdigest()[:12]
            self._explorer = explorer
            super().__init__(key=f"{digest}-{next(_made)}", data=packed if len(packed) > STORED else b"")
            self.on_msg(self._answer)

        def __repr__(self) -> str:
            return f"{self._explorer!r}.widget"

        @traitlets.validate("selected")
        def _inside(self, proposal):
            return None if proposal["value"] is None else self._explorer._cell(proposal["value"])

        def _answer(self, _, content, buffers):
            if content.get("ask") == "data":
                buffers = [] if self.data else [self._explorer._packed[1]]
                self.send({"about": self._explorer._about(self.key)}, buffers)

    return ExplorerWidget


def _digits(span: float, top: int) -> int:
    """Digits after the point that the quantised values can stand for, three or, for tiny spans, a few more."""
    if span <= 0:
        return 3
    size = int(np.floor(np.log10(span)))
    most = max(0, 3 - size) if size >= 0 else max(3, 2 - size)
    return int(np.clip(np.floor(-np.log10(span / top / 2)), 0, most))


def _plural(word: str) -> str:
    return f"{word[:-1]}ies" if word.endswith("y") and word[-2:-1] not in "aeiou" else f"{word}s"


def _counted(given: Sequence | None, need: int, name: str, of: str) -> list:
    if given is None:
        return list(range(need))
    given = list(given)
    if len(given) != need:
        raise ValueError(f"{name}: expected {need}, as many as {of}, got {len(given)}")
    return given


def _texts(given: Sequence[str] | None, need: int, name: str, of: str, default: str = "") -> list[str]:
    if given is None:
        return [f"{default} {i}" for i in range(need)]
    if isinstance(given, str):
        raise TypeError(f"{name}: expected a list of {need} texts, got one text")
    texts = _counted(given, need, name, of)
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise TypeError(f"{name}: expected texts, got {type(wrong).__name__}")
    return texts


def _attributes(given: Mapping[str, Sequence] | None, need: int, name: str) -> dict[str, list]:
    found = {}
    for key, values in (given or {}).items():
        values = encoding.plain(values).tolist() if hasattr(values, "detach") else list(values)
        found[str(key)] = _counted(values, need, f"{name}[{key!r}]", "rows" if name.startswith("row") else "columns")
    return found


def _pictures(given: Any, need: int) -> Sequence:
    if given is None:
        return []
    if hasattr(given, "shape"):
        given = encoding.plain(given)
        if given.ndim != 4 or given.shape[1] != 3 or given.dtype != np.uint8:
            raise ValueError(f"pictures: expected uint8 (N, 3, H, W), got {given.dtype} {given.shape}")
    if len(given) != need:
        raise ValueError(f"pictures: expected {need}, one for each row, got {len(given)}")
    for image in () if isinstance(given, np.ndarray) else given:
        shape = getattr(image, "shape", None)
        if not hasattr(image, "convert") and (shape is None or len(shape) != 3 or shape[0] != 3):
            raise TypeError(f"pictures: expected PIL pictures or uint8 (N, 3, H, W), got {type(image).__name__}")
    return given


def _owners(given: Any, n: int, m: int) -> np.ndarray | None:
    if given is None:
        return np.arange(n) if n == m else None
    owner = encoding.plain(given)
    if owner.shape != (m,) or owner.dtype.kind not in "iu":
        raise ValueError(f"text_to_image: expected {m} whole numbers, got {owner.dtype} of shape {owner.shape}")
    if owner.min() < -1 or owner.max() >= n:
        raise ValueError(f"text_to_image: expected rows 0 to {n - 1}, or -1, got {owner.min()} to {owner.max()}")
    return owner.astype(np.int64)
