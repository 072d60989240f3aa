"""Figures: they show what they are given, carry their alt text, and refuse an empty one."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")

from vlnotes import plots  # noqa: E402

IMAGES = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_matrix_shows_its_values_pictures_and_captions():
    values = torch.arange(12.0).reshape(3, 4)
    captions = ["one", "two", "three", "four words are here"]
    figure = plots.matrix(values, images=IMAGES[:3], captions=captions, title="t", outline=values > 10)
    ax = figure.axes[0]
    assert np.array_equal(ax.images[0].get_array(), values.numpy())
    texts = {text.get_text() for text in ax.texts}
    assert {"one", "two", "0.00", "11.00"} <= texts
    assert len(ax.patches) == 1  # one framed cell
    assert len(ax.child_axes) == 3 + 1  # three pictures, one colour bar
    figure.canvas.draw()


def test_signed_values_have_white_at_zero():
    figure = plots.matrix(np.array([[-1.0, 0.5], [0.2, 0.1]]), signed=True)
    assert figure.axes[0].images[0].get_clim() == (-1.0, 1.0)


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
    line = plots.seeds({"16": [0.1, 0.3], "128": [0.5]}, at=[16, 128], label="MoCo").axes[0].lines[0]
    assert line.get_xydata().tolist() == [[16, 20], [128, 50]] and line.get_label() == "MoCo"
    with pytest.raises(ValueError, match="at least one number"):
        plots.seeds({"a": [1.0], "b": []})
    with pytest.raises(ValueError, match="2 places for 1 groups"):
        plots.seeds({"a": [1.0]}, at=[1, 2])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="without NaN, got shape \\(2, 2\\) with 1 NaN"):
        plots.matrix([[1.0, float("nan")], [0.0, 1.0]])
    with pytest.raises(ValueError, match="2 captions for a matrix of shape \\(3, 3\\); expected 3"):
        plots.matrix(np.eye(3), captions=["a", "b"])
    with pytest.raises(ValueError, match="no pictures"):
        plots.pictures([])
    with pytest.raises(ValueError, match="no values"):
        plots.bars({})
    plots.matrix(torch.eye(3, requires_grad=True), rows=["a", "b", "c"])


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
