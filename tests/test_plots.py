"""Figures: they show what they are given, carry their alt text, and refuse an empty one."""

import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection
from PIL import Image

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402

from vlnotes import plots  # noqa: E402


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


IMAGES = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_matrix_shows_its_values_pictures_and_captions():
    values = torch.arange(12.0).reshape(3, 4)
    captions = ["one", "two", "three", "four words are here"]
    figure = plots.matrix(values, images=IMAGES[:3], captions=captions, title="t", outline=values > 10)
    ax = figure.axes[0]
    assert np.array_equal(ax.images[0].get_array(), values.numpy())
    texts = {text.get_text() for text in ax.texts}
    assert {"one", "two", "0.00", "11.00"} <= texts
    assert len(ax.patches) == 2  # one framed cell: the frame and its halo
    assert len(ax.child_axes) == 3 + 1  # three pictures, one colour bar
    figure.canvas.draw()


def test_signed_values_have_white_at_zero():
    figure = plots.matrix(np.array([[-1.0, 0.5], [0.2, 0.1]]), signed=True)
    assert figure.axes[0].images[0].get_clim() == (-1.0, 1.0)


def test_a_tick_never_strikes_the_number_of_its_bar_out():
    figure = plots.bars(
        {"just below": 0.10, "far below": 0.02, "beyond": 0.5},
        marks=dict.fromkeys(("just below", "far below", "beyond"), 0.12),
    )
    starts = [text.get_position()[0] for text in figure.axes[0].texts]
    assert starts == pytest.approx([12, 2, 50])


def test_pictures_curve_and_bars():
    sheet = plots.pictures(IMAGES, ["a long title that wraps around"] * 6, columns=4)
    assert sum(bool(ax.images) for ax in sheet.axes) == 6
    history = pd.DataFrame({"step": [0, 1, 2], "loss": [3.0, 2.0, 1.0]})
    lines = plots.curve(history, levels={"chance": 4.0}).axes[0].lines
    assert list(lines[0].get_ydata()) == [3.0, 2.0, 1.0] and list(lines[1].get_ydata()) == [3.0, 2.5, 2.0]
    ax = plots.bars({"a": 0.25, "b": 0.5}, marks={"b": 0.1}).axes[0]
    assert [bar.get_width() for bar in ax.patches] == [25.0, 50.0]
    assert "25.0 %" in ax.texts[0].get_text() and list(ax.lines[0].get_xdata()) == [10.0, 10.0]


def test_seeds_draw_every_run_and_their_mean():
    figure = plots.seeds({"a": [0.1, 0.3], "b": [0.5, 0.5, 0.8]})
    ax = figure.axes[0]
    assert [len(dots.get_offsets()) for dots in ax.collections] == [2, 1, 3, 1]
    assert [text.get_text() for text in ax.texts] == ["20.0", "60.0"]
    small = plots.seeds({"a": [0.121, 0.125]}, unit="", digits=2).axes[0]
    assert [text.get_text() for text in small.texts] == ["0.12"]
    low, high = small.get_xlim()
    assert low < 0.121 - 0.0003 and high > 0.125 + 0.0003  # room for the number of a mean at the rim
    line = plots.seeds({"16": [0.1, 0.3], "128": [0.5]}, at=[16, 128], label="MoCo").axes[0].lines[0]
    assert line.get_xydata().tolist() == [[16, 20], [128, 50]] and line.get_label() == "MoCo"
    with pytest.raises(ValueError, match="at least one number"):
        plots.seeds({"a": [1.0], "b": []})
    with pytest.raises(ValueError, match="2 places for 1 groups"):
        plots.seeds({"a": [1.0]}, at=[1, 2])


def test_words_stand_on_the_colours_of_their_things():
    text = "a large red ring, a ball on the sea"
    inks = [(2, 7, "#cc2222"), (8, 11, "#cc2222"), (12, 16, "#cc2222"), (20, 24, "#ffffff"), (32, 35, None)]
    figure = plots.described(IMAGES[0], [text, "plain words"], [inks, []], ["full", "none"], width=9)
    written = figure.axes[1].texts
    marked = {piece.get_text(): piece for piece in written if piece.get_bbox_patch() is not None}
    assert list(marked) == ["large red ring", "ball", "sea"]  # one mark a thing, without the comma
    assert marked["ball"].get_color() == plots.INK and marked["large red ring"].get_color() == plots.PAPER
    assert marked["sea"].get_bbox_patch().get_facecolor()[3] == 0  # a frame only
    said = " ".join(piece.get_text() for piece in written).replace(" ,", ",")
    assert said == f"full {text} none plain words"
    figure.canvas.draw()  # no piece runs into the next
    ends = [piece.get_window_extent().x1 for piece in written[1:8]]
    starts = [piece.get_window_extent().x0 for piece in written[2:9]]
    assert all(end <= start + 1 for end, start in zip(ends, starts, strict=True))


def test_long_texts_are_wrapped_inside_the_figure():
    text = "a chequered golden heart and a small stripy red circle " * 4
    figure = plots.described(IMAGES[0], [text], [[(2, 24, "#112233")]], size=1, width=5)
    figure.canvas.draw()
    pieces = figure.axes[1].texts
    assert len({round(piece.get_position()[1]) for piece in pieces}) > 3
    assert max(piece.get_window_extent().x1 for piece in pieces) <= figure.bbox.x1


def test_lines_on_one_place_can_both_be_seen():
    ax = plots.lines([1, 2], {"a": [1, 2], "b": [1, 2], "chance": [0, 1]}, faint=["chance"], title="t", log=True).axes[
        0
    ]
    one, two, faint = ax.lines
    assert one.get_linestyle() == "-" and two.get_linestyle() == "--" and one.get_color() != two.get_color()
    assert faint.get_color() == plots.FAINT and ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "chance"]


def test_a_diagram_has_its_boxes_and_arrows_that_touch_them():
    boxes = {"a": (0, 0, "in", None), "b": (0, 2, "left", plots.BLUE), "c": (3, 2, "right", plots.RED, 2.5)}
    figure = plots.diagram(boxes, [("a", "b"), ("b", "c", "<"), ("a", "c", ":")], title="t", wide=2, tall=1)
    ax = figure.axes[0]
    assert {text.get_text() for text in ax.texts} == {"in", "left", "right"} and ax.get_title(loc="left") == "t"
    rectangles, rounded, arrows = ax.patches[:1], ax.patches[1:3], ax.patches[3:]
    assert rectangles[0].get_width() == 2 and [box.get_width() for box in rounded] == [2, 2.5] and len(arrows) == 3
    assert plots._facing(rectangles[0], rounded[0]) == ((0.0, 0.5), (0.0, 1.5))  # straight up, from edge to edge
    assert plots._facing(rounded[0], rounded[1]) == ((1.0, 2.0), (1.75, 2.0))  # straight across
    assert plots._facing(rounded[1], rectangles[0]) == ((1.75, 1.5), (1.0, 0.5))  # from corner to corner, downwards
    figure.canvas.draw()
    for wrong in ([("a", "d")], [("a", "b", "?")]):
        with pytest.raises(ValueError, match="arrows between them"):
            plots.diagram(boxes, wrong)
    with pytest.raises(ValueError, match="expected boxes"):
        plots.diagram({}, [])


def test_pictures_are_stored_in_few_colours_and_colour_maps_in_all_of_theirs():
    figures = plots.pictures(IMAGES), plots.matrix(np.eye(6), images=IMAGES), plots.bars({"a": 0.5})
    modes = [Image.open(io.BytesIO(plots._png(figure))).mode for figure in figures]
    assert modes == ["P", "RGB", "RGB"]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="1 labels for 2 texts"):
        plots.described(IMAGES[0], ["a", "b"], labels=["a"])
    with pytest.raises(ValueError, match="expected as many, not 0"):
        plots.described(IMAGES[0], [])
    with pytest.raises(ValueError, match="2,.* heights each, got {'b': \\(3,\\)}"):
        plots.lines([1, 2], {"a": [1, 2], "b": [1, 2, 3]})
    with pytest.raises(ValueError, match="without NaN, got shape \\(2, 2\\) with 1 NaN"):
        plots.matrix([[1.0, float("nan")], [0.0, 1.0]])
    with pytest.raises(ValueError, match="2 captions for a matrix of shape \\(3, 3\\); expected 3"):
        plots.matrix(np.eye(3), captions=["a", "b"])
    with pytest.raises(ValueError, match="no pictures"):
        plots.pictures([])
    with pytest.raises(ValueError, match="no values"):
        plots.bars({})
    plots.matrix(torch.eye(3, requires_grad=True), rows=["a", "b", "c"])


def test_word_maps_show_the_picture_the_maps_and_the_true_objects():
    maps = torch.zeros(2, 4, 4)
    maps[0, 1, 2] = 3.0
    outline = torch.zeros(16, 16, dtype=torch.bool)
    outline[4:8, 8:12] = True
    figure = plots.word_maps(IMAGES[0], maps, ["red", "ring"], [outline, None], ["0.50", ""], columns=2)
    plain, red, ring, empty = figure.axes
    assert np.array_equal(plain.images[0].get_array(), plots.as_picture(IMAGES[0])) and len(plain.images) == 1
    assert red.get_title("left") == "red" and red.get_title("right") == "0.50" and ring.get_title() == "ring"
    assert plt.getp(red.title, "fontweight") == "bold" and not empty.images
    veil = red.images[1].get_array()[..., 3]  # clear where the map is strongest, 40 % where it is 0
    assert veil.min() < 0.02 and veil.max() == pytest.approx(0.4)
    (x,), (y,) = (red.lines[0].get_xdata(), red.lines[0].get_ydata())  # the strongest point, in the picture's pixels
    assert abs(x - 9.5) < 0.6 and abs(y - 5.5) < 0.6
    edges = {
        tuple(map(tuple, line)) for c in red.collections if isinstance(c, LineCollection) for line in c.get_segments()
    }
    assert len(edges) == 16 and {p for line in edges for p in line} == {
        (x - 0.5, y - 0.5) for x in range(8, 13) for y in range(4, 9) if x in (8, 12) or y in (4, 8)
    }
    assert np.all(ring.images[1].get_array()[..., 3] == 0.4) and not ring.lines  # nothing to tell apart
    figure.canvas.draw()
    with matplotlib.rc_context({"savefig.dpi": 50}):
        assert Image.open(io.BytesIO(plots._png(figure))).mode == "P"


def test_word_maps_can_share_a_scale():
    maps = np.array([[[0.0, 4.0]], [[0.0, 1.0]]])
    own, shared = (plots.word_maps(IMAGES[0], maps, ["a", "b"], shared=s).axes[2].images[1] for s in (False, True))
    assert own.get_array()[..., 3].min() < 0.01 and shared.get_array()[..., 3].min() == pytest.approx(0.3)


@pytest.mark.parametrize("size", [(40, 10), (10, 40), (30, 30)])
def test_maps_lie_over_pictures_of_any_aspect(size):
    picture = Image.new("RGB", size, "white")
    figure = plots.picture_maps([picture, IMAGES[1]], [np.eye(3), np.ones((2, 5))], ["one", "two"], columns=1)
    ax = figure.axes[0]
    assert ax.images[0].get_extent() == ax.images[1].get_extent() == [-0.5, size[0] - 0.5, size[1] - 0.5, -0.5]
    assert ax.get_xlim() == (-0.5, size[0] - 0.5) and ax.get_ylim() == (size[1] - 0.5, -0.5)
    assert ax.get_aspect() == 1.0 or ax.get_aspect() == "equal"
    figure.canvas.draw()
    box = ax.get_window_extent()
    assert box.width / box.height == pytest.approx(size[0] / size[1], rel=0.02)


def test_maps_that_cannot_be_drawn_are_named():
    with pytest.raises(ValueError, match="1 words for 2 maps"):
        plots.word_maps(IMAGES[0], np.ones((2, 3, 3)), ["a"])
    with pytest.raises(ValueError, match=r"got shape \(1, 3, 3\) with 1 that are not"):
        plots.word_maps(IMAGES[0], np.where(np.eye(3) > 2, 0, [[[np.nan, 1, 1], [1, 1, 1], [1, 1, 1]]]), ["a"])
    with pytest.raises(ValueError, match=r"a mask \(H, W\) with something in it"):
        plots.word_maps(IMAGES[0], np.ones((1, 3, 3)), ["a"], [np.zeros((4, 4))])
    with pytest.raises(ValueError, match="2 images for 1 maps"):
        plots.picture_maps(IMAGES[:2], [np.ones((2, 2))])
    with pytest.raises(ValueError, match="not 0"):
        plots.picture_maps([], [])


def test_the_global_style_is_left_alone():
    before = dict(matplotlib.rcParams)
    plots.matrix(np.eye(3))
    assert dict(matplotlib.rcParams) == before


def test_show_publishes_the_picture_with_its_alt_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append((data, options)))
    figure = plots.matrix(np.eye(3))
    plots.show(figure, "A 3 x 3 identity matrix: ones on the diagonal.")
    data, options = shown[0]
    assert data["image/png"].startswith(b"\x89PNG")
    assert options["metadata"]["image/png"]["alt"] == "A 3 x 3 identity matrix: ones on the diagonal."
    assert not matplotlib.pyplot.fignum_exists(figure.number)
    with pytest.raises(ValueError, match="must say what is to be seen"):
        plots.show(plots.matrix(np.eye(2)), "matrix")
