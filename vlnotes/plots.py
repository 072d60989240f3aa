"""Figures: they take arrays, never models; each can be read in light and dark pages and says in words what it shows."""

import io
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from PIL import Image

PAPER, INK, FAINT = "#fdfcf9", "#23272e", "#8a8f98"
# Okabe and Ito's palette: eight colours that the colour-blind can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
CYCLE = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY)
COSINES, SIGNED = "magma", "RdBu_r"  # one map for amounts, one for amounts with a sign

STYLE = {
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=CYCLE),
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "font.family": "DejaVu Sans",
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
}


def show(figure: Figure, alt: str) -> None:
    """Show a figure in a notebook together with the sentence that says what is to be seen.

    Args:
        figure: made with any of the functions here, or with matplotlib; it is closed afterwards.
        alt: what is to be seen, with at least one number, for those who cannot see the picture.

    Raises:
        ValueError: an alt text too short to say anything.
    """
    from IPython.display import display

    if len(alt.split()) < 5:
        raise ValueError(f"the alt text must say what is to be seen, not just {alt!r}")
    display({"image/png": _png(figure), "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


@plt.rc_context(STYLE)
def canvas(width: float = 9.0, height: float = 4.0, columns: int = 1, rows: int = 1, **options):
    """An empty figure in the house style.

    Args:
        width: inches.
        height: inches.
        columns: axes side by side.
        rows: axes one below the other.
        options: passed on to `matplotlib.pyplot.subplots`, for instance `width_ratios`.

    Returns:
        (figure, axes), axes as `matplotlib.pyplot.subplots` gives them.
    """
    return plt.subplots(rows, columns, figsize=(width, height), **options)


def as_picture(image) -> np.ndarray:
    """One picture as matplotlib wants it.

    Args:
        image: (3, H, W) uint8 tensor or array, or a PIL picture.

    Returns:
        (H, W, 3) uint8.
    """
    array = _array(image)
    return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] == 3 else array


@plt.rc_context(STYLE)
def pictures(images: Sequence, titles: Sequence[str] | None = None, columns: int = 8, size: float = 1.2) -> Figure:
    """A sheet of pictures, each with a line of text below it.

    Args:
        images: N pictures, (N, 3, H, W) uint8 or a list of PIL pictures.
        titles: N texts; long ones are wrapped.
        columns: pictures in a row.
        size: inches a picture.

    Returns:
        The figure.
    """
    if not len(images):
        raise ValueError("there are no pictures to show")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    text = 0.0 if titles is None else 0.15 * (0.6 + max(_wrap(t, size).count("\n") + 1 for t in titles))
    figure, axes = canvas(columns * size * 1.08, rows * (size * 1.06 + text), columns, rows, squeeze=False)
    for index, ax in enumerate(axes.flat):
        ax.axis("off")
        if index < len(images):
            _look(ax, images[index])
            if titles is not None:
                ax.set_title(
                    _wrap(titles[index], size),
                    y=0,
                    va="top",
                    pad=-4,
                    loc="center",
                    fontsize=7.5,
                    weight="normal",
                )
    return figure


@plt.rc_context(STYLE)
def word_maps(
    image,
    maps,
    words: Sequence[str],
    outlines: Sequence | None = None,
    notes: Sequence[str] | None = None,
    *,
    columns: int = 5,
    size: float = 1.75,
    shared: bool = False,
) -> Figure:
    """One picture, and where each of its words looks: a line at half the height of the map, a dot at its strongest
    point, and a veil over what it leaves out.

    The first panel is the picture itself.

    Args:
        image: one picture of any aspect, (3, H, W) uint8 or a PIL picture.
        maps: (W, h, w) raw maps, one a word; they are stretched to the picture here.
        words: W words, which become the headings.
        outlines: for each word the mask of its object, (H, W) bool, or None; its edge is drawn as a thin line.
        notes: for each word a few words more, set small behind the heading, such as a score.
        columns: panels in a row.
        size: inches of the longer side of a picture.
        shared: True colours all maps on one scale, so that a word which hardly looks stays pale; False gives every
            map its own, from its smallest to its largest value.

    Returns:
        The figure.

    Raises:
        ValueError: maps of another shape, NaN among them, or words, outlines or notes that are not as many.
    """
    maps = _maps(maps, words=words, outlines=outlines, notes=notes)
    low, high = maps.min((1, 2)), maps.max((1, 2))
    if shared:
        low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
    panels = [(image, None, "", None, "", 0, 1)]
    for k, word in enumerate(words):
        outline, note = None if outlines is None else outlines[k], "" if notes is None else notes[k]
        panels.append((image, maps[k], word, outline, note, low[k], high[k]))
    return _mapped(panels, columns, size)


@plt.rc_context(STYLE)
def picture_maps(
    images: Sequence,
    maps: Sequence,
    titles: Sequence[str] | None = None,
    outlines: Sequence | None = None,
    *,
    columns: int = 5,
    size: float = 1.75,
) -> Figure:
    """Several pictures, each with one map over it: of a sentence, or of a conv layer.

    Args:
        images: N pictures of any aspect each, (N, 3, H, W) uint8 or a list of tensors or PIL pictures.
        maps: N raw maps (h, w), which may differ in size; each is coloured from its smallest to its largest value.
        titles: N texts; long ones are wrapped.
        outlines: for each picture the mask of what should have been found, (H, W) bool, or None.
        columns: pictures in a row.
        size: inches of the longer side of a picture.

    Returns:
        The figure.

    Raises:
        ValueError: no maps, one that is no (h, w) or has NaN, or images, titles or outlines that are not as many.
    """
    maps = [_maps(_array(m)[None])[0] for m in maps]
    for name, given in (("images", images), ("titles", titles), ("outlines", outlines)):
        if not maps or (given is not None and len(given) != len(maps)):
            raise ValueError(
                f"{0 if given is None else len(given)} {name} for {len(maps)} maps; expected as many, not 0"
            )
    panels = []
    for k, values in enumerate(maps):
        title, outline = "" if titles is None else titles[k], None if outlines is None else outlines[k]
        panels.append((images[k], values, title, outline, "", values.min(), values.max()))
    return _mapped(panels, columns, size, fontsize=8.5, weight="normal")


@plt.rc_context(STYLE)
def described(
    image,
    texts: Sequence[str],
    inks: Sequence | None = None,
    labels: Sequence[str] | None = None,
    *,
    size: float = 2.4,
    width: float = 9.5,
    fontsize: float = 10,
) -> Figure:
    """A picture with what is said about it beside it, words marked in colours.

    Args:
        image: one picture, (3, H, W) uint8 or a PIL picture.
        texts: M texts; long ones are wrapped.
        inks: for each text its marks (start, end, colour), as `vlnotes.world.inks` gives them; a mark whose colour is
            None gets a thin frame.
        labels: for each text a word that stands before it.
        size: inches the picture takes at least.
        width: inches of the figure.
        fontsize: points.

    Returns:
        The figure.

    Raises:
        ValueError: no texts, or inks or labels that are not as many as the texts.
    """
    for name, given in (("inks", inks), ("labels", labels)):
        if not len(texts) or (given is not None and len(given) != len(texts)):
            raise ValueError(
                f"{0 if given is None else len(given)} {name} for {len(texts)} texts; expected as many, not 0"
            )
    indent = 0.0 if labels is None else 14 + max(_advance(label, fontsize - 1, True) for label in labels)
    room = 72 * (width - size - 0.25) - indent  # points a line of text may take
    rows = [_lines(text, (inks or [()] * len(texts))[k], room, fontsize) for k, text in enumerate(texts)]
    leading, gap = 1.75 * fontsize, 0.6 * fontsize
    tall = sum(leading * len(lines) + gap for lines in rows) - gap
    height = max(size, tall / 72 + 0.1)
    figure = plt.figure(figsize=(width, height), layout="none")
    side = min(size, height)
    shown = figure.add_axes((0.0, 0.5 - side / height / 2, side / width, side / height))
    _look(shown, image)
    shown.axis("off")
    page = figure.add_axes((0.0, 0.0, 1.0, 1.0), zorder=-1)
    page.set(xlim=(0, 72 * width), ylim=(72 * height, 0))  # points, y down
    page.axis("off")
    left, y = 72 * (size + 0.25), 36 * height - tall / 2 + leading / 2
    for k, lines in enumerate(rows):
        if labels is not None:
            page.text(left, y, labels[k], fontsize=fontsize - 1, weight="bold", color=FAINT, va="center_baseline")
        for line in lines:
            for x, piece, mark in line:
                style = {} if mark is None else _marked(mark[2])
                page.text(left + indent + x, y, piece, fontsize=fontsize, va="center_baseline", **style)
            y += leading
        y += gap
    return figure


@plt.rc_context(STYLE)
def diagram(
    boxes: dict[str, tuple],
    arrows: Sequence[tuple],
    ax: Axes | None = None,
    *,
    title: str = "",
    wide: float = 1.7,
    tall: float = 0.62,
) -> Figure:
    """Boxes and arrows: what goes into what. Units are those of the places, alike in both directions.

    Args:
        boxes: name -> (x, y, text, colour) or (x, y, text, colour, width), the middle of the box; y grows upwards. A
            colour of None draws the text alone, for what goes in and comes out.
        arrows: (from, to) or (from, to, style), names of boxes; style "-" is plain, ":" is dashed, "<" has a head at
            both ends.
        ax: where to draw; a new figure if None.
        title: the heading.
        wide: width of a box that gives none.
        tall: height of all boxes.

    Returns:
        The figure.

    Raises:
        ValueError: no boxes, an arrow from or to a box that is not there, or an unknown style.
    """
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

    unknown = [arrow for arrow in arrows if not {*arrow[:2]} <= set(boxes) or (*arrow, "-")[2] not in ("-", ":", "<")]
    if not boxes or unknown:
        raise ValueError(f"expected boxes, and arrows between them with a style of '-', ':' or '<'; got {unknown}")
    shapes = {}
    for name, (x, y, _, colour, *rest) in boxes.items():
        width = rest[0] if rest else wide
        corner = (x - width / 2, y - tall / 2)
        if colour is None:
            shapes[name] = Rectangle(corner, width, tall, facecolor="none", edgecolor="none")
        else:
            fill = tuple(0.84 * p + 0.16 * c for p, c in zip(to_rgb(PAPER), to_rgb(colour), strict=True))
            style = "round,pad=0,rounding_size=0.12"
            shapes[name] = FancyBboxPatch(corner, width, tall, style, facecolor=fill, edgecolor=colour, linewidth=1.6)
    if ax is None:
        across = [s.get_x() for s in shapes.values()] + [s.get_x() + s.get_width() for s in shapes.values()]
        up = [box[1] for box in boxes.values()]
        _, ax = canvas(0.75 * (max(across) - min(across)) + 0.2, 0.75 * (max(up) - min(up) + tall) + 0.5)
    for name, shape in shapes.items():
        ax.add_patch(shape)
        ax.text(*boxes[name][:2], boxes[name][2], ha="center", va="center", fontsize=9, linespacing=1.15)
    for start, end, *style in arrows:
        ends, line = {"-": ("-|>", "-"), ":": ("-|>", (0, (3, 2))), "<": ("<|-|>", "-")}[(style or ["-"])[0]]
        ax.add_patch(
            FancyArrowPatch(
                *_facing(shapes[start], shapes[end]),
                arrowstyle=ends,
                linestyle=line,
                mutation_scale=11,
                linewidth=1.3,
                color=INK,
                shrinkA=2,
                shrinkB=2,
            )
        )
    ax.set_aspect("equal")
    ax.autoscale_view()
    ax.margins(0.03)
    ax.axis("off")
    ax.set_title(title)
    return ax.figure


@plt.rc_context(STYLE)
def matrix(
    values,
    ax: Axes | None = None,
    *,
    title: str = "",
    images: Sequence | None = None,
    captions: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    signed: bool = False,
    limits: tuple[float, float] | None = None,
    numbers: bool | str | None = None,
    outline=None,
    label: str = "",
    bar: bool = True,
) -> Figure:
    """A contrastive matrix: pictures down the side, captions along the top, one cell a pair.

    Args:
        values: (N, M) array.
        ax: where to draw; a new figure if None.
        title: the heading.
        images: N pictures to stand at the rows.
        captions: M texts to stand at the columns.
        rows: N texts to stand at the rows, in place of pictures.
        signed: for values with a sign (gradients, differences): white is zero, red is positive.
        limits: the values at the two ends of the colour bar; those of the matrix if None.
        numbers: write the value into each cell: True, False, a format such as ".2f", or None for small matrices.
        outline: (N, M) bool, cells to frame, for instance the true pairs.
        label: what the colour bar shows.
        bar: draw the colour bar.

    Returns:
        The figure.
    """
    values = _array(values).astype(float)
    if values.ndim != 2 or not values.size or np.isnan(values).any():
        bad = int(np.isnan(values).sum())
        raise ValueError(f"expected an (N, M) matrix without NaN, got shape {values.shape} with {bad} NaN")
    n, m = values.shape
    for name, given, need in (("images", images, n), ("rows", rows, n), ("captions", captions, m)):
        if given is not None and len(given) != need:
            raise ValueError(f"{len(given)} {name} for a matrix of shape {values.shape}; expected {need}")
    if ax is None:
        cell = min(0.56, 6.0 / max(n, m))
        above, right = (
            (_slant(captions, 0.643) + 0.5, _slant(captions, 0.766) - 0.4) if captions is not None else (0.5, 0)
        )
        left = 0.075 * max(map(len, rows)) if rows is not None else 0
        figure, ax = canvas(max(3.6, cell * m + 1.7 + left + max(0, right)), max(2.4, cell * n + 0.4) + above)
    low, high = limits or (values.min(), values.max())
    if signed:
        high = max(abs(low), abs(high), 1e-12)
        low = -high
    drawn = ax.imshow(values, cmap=SIGNED if signed else COSINES, vmin=low, vmax=high, aspect="equal")
    ax.set_title(title)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set(xticks=[], yticks=[])
    if max(n, m) <= 12:  # thin lines between the cells, the colour of the page
        ax.set_xticks(np.arange(0.5, m - 1), minor=True)
        ax.set_yticks(np.arange(0.5, n - 1), minor=True)
        ax.grid(which="minor", color=PAPER, linewidth=1.2)
        ax.tick_params(which="minor", length=0)
    if captions is not None:
        for column, text in enumerate(captions):
            ax.text(
                column - 0.15,
                -0.62,
                _wrap(text, 2.9, lines=2),
                rotation=40,
                ha="left",
                va="bottom",
                rotation_mode="anchor",
                fontsize=8,
                linespacing=1.05,
            )
        ax.set_title(title, pad=72 * _slant(captions, 0.643) + 14)
    if rows is not None:
        ax.set_yticks(range(n), rows)
        ax.tick_params(axis="y", length=0)
    if images is not None:
        for row in range(n):
            place = ax.inset_axes((-0.55 - 0.95, row - 0.45, 0.9, 0.9), transform=ax.transData)
            place.imshow(as_picture(images[row]))
            place.axis("off")
    if numbers or (numbers is None and max(n, m) <= 8):
        form = numbers if isinstance(numbers, str) else ".2f"
        for i in range(n):
            for j in range(m):
                shade = (values[i, j] - low) / max(high - low, 1e-12)
                dark = abs(shade - 0.5) > 0.3 if signed else shade < 0.6
                ax.text(
                    j,
                    i,
                    f"{values[i, j]:{form}}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=PAPER if dark else INK,
                )
    if outline is not None:
        for i, j in np.argwhere(_array(outline)):
            for colour, width in ((PAPER, 3.6), (INK, 1.6)):  # readable on dark and on bright cells, inside of the gaps
                frame = plt.Rectangle((j - 0.42, i - 0.42), 0.84, 0.84, fill=False, edgecolor=colour, linewidth=width)
                ax.add_patch(frame).set_zorder(3)
    if bar:
        place = ax.inset_axes((1 + 0.15 / (m * 0.56), 0.0, 0.16 / (m * 0.56), 0.6))
        colours = ax.figure.colorbar(drawn, cax=place, label=label)
        colours.outline.set_visible(False)
    return ax.figure


@plt.rc_context(STYLE)
def curve(
    history,
    ax: Axes | None = None,
    *,
    column="loss",
    smooth: int = 10,
    levels: dict[str, float] | None = None,
):
    """A number over the steps of a run: faint as it was, strong as a running mean.

    Args:
        history: the table that `vlnotes.train.train` returns.
        ax: where to draw; a new figure if None.
        column: which number.
        smooth: length of the running mean, in steps.
        levels: named horizontal lines, for instance {"chance: ln B": 4.85}.

    Returns:
        The figure.
    """
    if ax is None:
        _, ax = canvas(7.5, 3.2)
    rows = history.dropna(subset=[column])
    line = ax.plot(rows["step"], rows[column], alpha=0.25, linewidth=1)[0]
    ax.plot(rows["step"], rows[column].rolling(smooth, min_periods=1).mean(), color=line.get_color())
    for name, value in (levels or {}).items():
        ax.axhline(value, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        ax.text(ax.get_xlim()[1], value, name, color=FAINT, va="bottom", ha="right", fontsize=9)
    ax.set(xlabel="step", ylabel=column)
    return ax.figure


@plt.rc_context(STYLE)
def lines(
    x: Sequence[float],
    values: dict[str, Sequence[float]],
    ax: Axes | None = None,
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    faint: Sequence[str] = (),
    log: bool = False,
    dots: bool = True,
    legend: bool = True,
) -> Figure:
    """Named lines over one axis; where two lie on each other both can be seen, since every second one is dashed.

    Args:
        x: K places.
        values: name -> K heights.
        ax: where to draw; a new figure if None.
        title: the heading.
        xlabel: what the places are.
        ylabel: what the heights are.
        faint: names to draw thin and grey, such as chance.
        log: places on a logarithmic axis.
        dots: mark the places.
        legend: say which line is which.

    Returns:
        The figure.

    Raises:
        ValueError: no lines, or one that has not K heights.
    """
    x = _array(x)
    heights = {name: _array(row) for name, row in values.items()}
    wrong = {name: row.shape for name, row in heights.items() if row.shape != x.shape}
    if wrong or not values:
        raise ValueError(f"expected lines with {x.shape} heights each, got {wrong or 'none'}")
    if ax is None:
        _, ax = canvas(7.5, 3.2)
    drawn = 0
    for name, row in heights.items():
        if name in faint:
            ax.plot(x, row, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label=name)
            continue
        marker = {"marker": "os"[drawn % 2], "markersize": 4.5} if dots else {}
        ax.plot(x, row, linestyle=("-", (0, (3, 1.6)))[drawn % 2], label=name, **marker)
        drawn += 1
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    if legend:
        ax.legend()
    return ax.figure


@plt.rc_context(STYLE)
def bars(
    values: dict[str, float],
    ax: Axes | None = None,
    *,
    title="",
    unit="%",
    marks: dict[str, float] | None = None,
):
    """Named amounts as horizontal bars with the number at the end, and a thin line for what to compare with.

    Args:
        values: name -> amount.
        ax: where to draw; a new figure if None.
        title: the heading.
        unit: "%" multiplies shares in [0, 1] by 100; anything else is only written.
        marks: name -> amount of chance or of the ceiling, drawn as a tick across the bar of that name.

    Returns:
        The figure.
    """
    if not values:
        raise ValueError("there are no values to show")
    if ax is None:
        _, ax = canvas(7.0, 0.6 + 0.42 * len(values))
    factor = 100.0 if unit == "%" else 1.0
    names = list(values)
    amounts = [factor * values[name] for name in names]
    ticks = {name: factor * mark for name, mark in (marks or {}).items()}
    widest = 1.2 * max([*amounts, *ticks.values()]) or 1  # room for the text
    ax.barh(names, amounts, color=BLUE, height=0.62)
    for at, (name, amount) in enumerate(zip(names, amounts, strict=True)):
        tick = ticks.get(name, -1.0)
        start = tick if amount <= tick < amount + 0.16 * widest else amount  # or the tick would strike the number out
        ax.text(start, at, f" {amount:.1f} {unit}", va="center", fontsize=9)
        if name in ticks:
            ax.plot([tick] * 2, [at - 0.42, at + 0.42], color=RED, linewidth=2)
    ax.invert_yaxis()
    ax.set_xlim(0, widest)
    ax.set_title(title)
    ax.spines["bottom"].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xticks([])
    return ax.figure


@plt.rc_context(STYLE)
def seeds(
    groups: dict[str, Sequence[float]],
    ax: Axes | None = None,
    *,
    at: Sequence[float] | None = None,
    label: str | None = None,
    unit="%",
    digits: int = 1,
):
    """Runs over several seeds: every run is a faint dot, their mean a strong one.

    Args:
        groups: name -> one number a seed.
        ax: where to draw; a new figure if None.
        at: a place on the x axis for every group; their means are then joined by a line. None puts one group below
            the other, with the names on the left.
        label: name of the line in the legend.
        unit: "%" multiplies shares in [0, 1] by 100.
        digits: after the point of the means that are written beside their dots; with `at` none are.

    Returns:
        The figure.

    Raises:
        ValueError: no groups, a group without a number, or another number of places than groups.
    """
    if not groups or not all(len(values) for values in groups.values()):
        raise ValueError(f"every group needs at least one number; got { ({k: len(v) for k, v in groups.items()}) }")
    if at is not None and len(at) != len(groups):
        raise ValueError(f"at gives {len(at)} places for {len(groups)} groups")
    if ax is None:
        _, ax = canvas(7.0, 0.8 + 0.42 * len(groups) if at is None else 3.4)
    factor = 100.0 if unit == "%" else 1.0
    amounts = [[factor * float(value) for value in values] for values in groups.values()]
    means = [sum(values) / len(values) for values in amounts]
    if at is not None:
        colour = ax.plot(at, means, marker="o", markersize=6, label=label)[0].get_color()
        for place, values in zip(at, amounts, strict=True):
            ax.scatter([place] * len(values), values, s=14, color=colour, alpha=0.35, linewidths=0)
        return ax.figure
    rows = list(range(len(groups)))
    for row, values, mean in zip(rows, amounts, means, strict=True):
        ax.scatter(values, [row] * len(values), s=16, color=BLUE, alpha=0.35, linewidths=0)
        ax.scatter([mean], [row], s=52, color=BLUE, zorder=3)
        ax.annotate(f"{mean:.{digits}f}", (mean, row), (0, 8), textcoords="offset points", ha="center", fontsize=8.5)
    ax.set_yticks(rows, list(groups))
    ax.set_ylim(len(rows) - 0.5, -0.7)
    ax.margins(x=0.1)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color=FAINT, alpha=0.25)
    return ax.figure


def _facing(start, end) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where an arrow leaves one box and meets the other: straight up or across where the two overlap that way."""
    spans = []
    for box in (start, end):
        x, y, w, h = box.get_x(), box.get_y(), box.get_width(), box.get_height()
        spans.append(((x, x + w), (y, y + h)))
    points = [[0.0, 0.0], [0.0, 0.0]]
    for axis in (0, 1):
        (a, b), (c, d) = spans[0][axis], spans[1][axis]
        if b < c or d < a:  # apart: from edge to edge
            points[0][axis], points[1][axis] = (b, c) if b < c else (a, d)
        else:  # the middle of what they share, or their own middles where arrows across can be slanted
            points[0][axis] = points[1][axis] = (max(a, c) + min(b, d)) / 2
    return tuple(points[0]), tuple(points[1])


def _array(values) -> np.ndarray:
    """Tensors, with or without gradient and wherever they live, PIL pictures and lists, as an array."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _maps(maps, **given: Sequence | None) -> np.ndarray:
    """(W, h, w) float64 without NaN, and as many of everything that goes with them."""
    maps = _array(maps).astype(float)
    if maps.ndim != 3 or not maps.size or not np.isfinite(maps).all():
        bad = int((~np.isfinite(maps)).sum())
        raise ValueError(f"expected maps (W, h, w) of finite numbers, got shape {maps.shape} with {bad} that are not")
    for name, values in given.items():
        if values is not None and len(values) != len(maps):
            raise ValueError(f"{len(values)} {name} for {len(maps)} maps; expected as many")
    return maps


def _mapped(panels: list[tuple], columns: int, size: float, **heading) -> Figure:
    """Panels in rows, each (image, map, heading, outline, note, low, high)."""
    shapes = [as_picture(panel[0]).shape[:2] for panel in panels]
    wide = max(size * w / max(h, w) for h, w in shapes)
    tall = max(size * h / max(h, w) for h, w in shapes)
    titles = [_wrap(panel[2], wide, lines=3) for panel in panels]
    head = 0.19 * max(title.count("\n") + 1 for title in titles) + 0.03
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = canvas(columns * (wide + 0.12), rows * (tall + head + 0.1), columns, rows, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    panels = zip(axes.flat, panels, titles, shapes, strict=False)
    for ax, (image, values, _, outline, note, low, high), title, shape in panels:
        _look(ax, image)
        if values is not None:
            _overlay(ax, shape, values, low, high)
        if outline is not None:
            _edge(ax, _array(outline).astype(bool), shape)
        ax.set_title(title, pad=4, loc="left" if note else "center", **{"fontsize": 9.5, **heading})
        if note:
            ax.set_title(note, fontsize=8, pad=4, loc="right", weight="normal", color=FAINT)
    return figure


def _overlay(ax: Axes, shape: tuple[int, int], values: np.ndarray, low: float, high: float) -> None:
    """A map over a picture: a veil of up to 40 % where it is low, so that colours stay what they are, a line at half
    its height and a dot at its strongest point. A map without a difference veils everything alike."""
    import torch

    from vlnotes.gradcam import upsample

    height, width = shape
    fine = tuple(max(n, 128) for n in shape)
    veil = np.zeros((*fine, 4))
    veil[..., :3] = to_rgb(INK)
    veil[..., 3] = 0.4
    if high > low:
        smooth = upsample(torch.from_numpy((values - low) / (high - low)), fine).numpy()  # (H, W) in [0, 1]
        veil[..., 3] *= 1 - smooth
    ax.imshow(veil, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="bilinear")
    if not high > low:
        return
    x = (np.arange(fine[1]) + 0.5) * width / fine[1] - 0.5
    y = (np.arange(fine[0]) + 0.5) * height / fine[0] - 0.5
    if smooth.min() < 0.5 < smooth.max():
        ax.contour(x, y, smooth, [0.5], colors=INK, linewidths=2.4, alpha=0.55)
        ax.contour(x, y, smooth, [0.5], colors=PAPER, linewidths=1.2)
    row, column = np.unravel_index(smooth.argmax(), fine)
    ax.plot(x[column], y[row], "o", markersize=4.2, color=PAPER, markeredgecolor=INK, markeredgewidth=0.9)


def _edge(ax: Axes, outline: np.ndarray, shape: tuple[int, int]) -> None:
    """The edge of a mask of any resolution, drawn along its pixels; the frame of the picture counts as outside."""
    if outline.ndim != 2 or not outline.any():
        raise ValueError(f"an outline is a mask (H, W) with something in it; got shape {outline.shape}")
    high, wide = (n / m for n, m in zip(shape, outline.shape, strict=True))
    padded = np.pad(outline, 1)
    lines = []
    for y, x in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]):  # between one row and the next
        lines.append([(x * wide - 0.5, y * high - 0.5), ((x + 1) * wide - 0.5, y * high - 0.5)])
    for y, x in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]):
        lines.append([(x * wide - 0.5, y * high - 0.5), (x * wide - 0.5, (y + 1) * high - 0.5)])
    ax.add_collection(LineCollection(lines, colors=ORANGE, linewidths=1.1, capstyle="round"))


def _slant(captions: Sequence[str], share: float) -> float:
    """Inches that the longest slanted caption takes, upwards (share = sin 40) or to the right (share = cos 40)."""
    longest = max((len(line) for text in captions for line in _wrap(text, 2.9, lines=2).splitlines()), default=0)
    return share * 0.062 * longest


def _wrap(text: str, inches: float, lines: int = 6) -> str:
    """Break a text to a width; what does not fit the lines is cut with an ellipsis."""
    from textwrap import wrap

    parts = wrap(text, max(8, int(inches * 13)))
    if len(parts) > lines:
        parts = [*parts[: lines - 1], parts[lines - 1][:-1] + "…"]
    return "\n".join(parts)


def _lines(text: str, marks: Sequence, room: float, fontsize: float) -> list[list[tuple]]:
    """Break a text into lines of pieces (x, piece, mark); neighbouring words of one colour share a mark."""
    joined: list[tuple] = []
    for start, end, colour in sorted(marks, key=lambda mark: mark[0]):
        if joined and colour is not None and joined[-1][2] == colour and text[joined[-1][1] : start] == " ":
            joined[-1] = (joined[-1][0], end, colour)
        else:
            joined.append((start, end, colour))
    space, pad = _advance(" ", fontsize), 0.2 * fontsize
    lines, x, at = [[]], 0.0, 0
    for word in text.split():
        at = text.index(word, at)
        mark = next((m for m in joined if m[0] <= at < m[1]), None)
        tail = word[mark[1] - at :] if mark and mark[1] < at + len(word) else ""  # a comma is not part of the mark
        head = word[: len(word) - len(tail)]
        line, wide = lines[-1], _advance(word, fontsize)
        if line and x + wide + 2 * pad > room:
            lines.append(line := [])
            x = 0.0
        last = line[-1] if line else (0.0, "", None)
        if mark is not None and last[2] == mark:
            line[-1] = (last[0], f"{last[1]} {head}", mark)
            x = last[0] + _advance(line[-1][1], fontsize)
        elif mark is not None:
            x += pad if line else 0.0
            line.append((x, head, mark))
            x += _advance(head, fontsize)
        else:
            line.append((x, word, None))
            x += wide
        if mark is not None:
            x += pad
            if tail:
                line.append((x, tail, None))
                x += _advance(tail, fontsize)
        x += space
        at += len(word)
    return lines


def _marked(colour: str | None) -> dict:
    """How a marked word is drawn: on its colour, in whichever of light and dark can be read there."""
    box = {"boxstyle": "round,pad=0.16,rounding_size=0.3", "linewidth": 0.7}
    if colour is None:
        return {"bbox": box | {"facecolor": "none", "edgecolor": FAINT}}
    red, green, blue = to_rgb(colour)
    bright = 0.299 * red + 0.587 * green + 0.114 * blue
    edge = FAINT if bright > 0.9 else colour
    return {"color": INK if bright > 0.55 else PAPER, "bbox": box | {"facecolor": colour, "edgecolor": edge}}


@lru_cache(4096)
def _advance(text: str, fontsize: float, bold: bool = False) -> float:
    """Points that a text takes along its line, blanks at its ends included."""
    font = FontProperties(family=STYLE["font.family"], size=fontsize, weight="bold" if bold else "normal")
    page = RendererAgg(1, 1, STYLE["figure.dpi"])
    wide, bars = (page.get_text_width_height_descent(s, font, False)[0] for s in (f"|{text}|", "||"))
    return (wide - bars) * 72 / STYLE["figure.dpi"]


def _png(figure: Figure) -> bytes:
    """The figure as a PNG; where it shows pictures alone, in its best 256 colours: a third of the bytes, hardly a
    difference. Colour maps keep all of theirs."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=figure.dpi)
    page = Image.open(drawn).convert("RGB")
    shown = [image.get_array().ndim for image in figure.findobj(AxesImage)]
    if shown and min(shown) == 3:
        page = page.quantize(256, kmeans=2)
    page.save(small, "png", optimize=True)
    return small.getvalue()


def _look(ax: Axes, image) -> None:
    """Put a picture into axes: what networks see in hard pixels, what is larger softly."""
    picture = as_picture(image)
    ax.imshow(picture, interpolation="nearest" if max(picture.shape[:2]) <= 96 else "auto")
