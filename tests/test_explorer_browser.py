"""The explorer in a real browser: it paints, answers, keeps inside its column, and needs neither kernel nor network.

Chromium is looked for on the path. Where there is none these tests fail, unless VLNOTES_NO_BROWSER=1 says that there
shall be none.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from readme_picture import stored_page

from vlnotes.explorer import Explorer
from vlnotes.world import World, pairs

ROOT = Path(__file__).parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
N, M, STEPS = 12, 18, (0, 10, 500)  # uneven on purpose


@pytest.fixture(scope="module")
def browser():
    if os.environ.get("VLNOTES_NO_BROWSER") == "1":
        pytest.skip("VLNOTES_NO_BROWSER=1: the explorer is not tried in a browser")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.fail(
            f"none of {', '.join(BROWSERS)} is on the path; install Chromium (apt-get install chromium), or set "
            "VLNOTES_NO_BROWSER=1 to go without these tests"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        opened = tool.chromium.launch(executable_path=found, headless=True, args=FLAGS)
        yield opened
        opened.close()


class Page:
    """A saved page, opened from its file with the network off; complaints of the browser are kept."""

    def __init__(self, browser, file: Path, width: int = 1200, theme: str = "light", scripts: bool = True):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, offline=True, java_script_enabled=scripts
        )
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda r: r.url.startswith(("file:", "blob:", "data:")) or self.said.append(r.url))
        self.page.goto(file.as_uri())
        if scripts:
            self.page.wait_for_selector(".vx[data-ready]")

    def js(self, code: str, *values):
        return self.page.evaluate(
            f"values => {{ const x = document.querySelector('.vx').explorer; {code} }}",
            [value if isinstance(value, str) else int(value) for value in values],
        )

    def at(self, row: int, column: int, panel: int = 0) -> tuple[float, float]:
        x, y = self.js("return x.where(...values)", row, column, panel)
        box = self.page.locator("canvas.vx-matrix").bounding_box()
        return box["x"] + x, box["y"] + y

    def point(self, row: int, column: int, panel: int = 0) -> None:
        self.page.mouse.move(*self.at(row, column, panel))

    def pin(self, row: int, column: int) -> None:
        self.page.mouse.click(*self.at(row, column))

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def number(self, line: str = "vx-value", nth: int = 0) -> float:
        return float(self.page.locator(f".{line} td").nth(nth).inner_text().replace("−", "-"))

    def pixels(self) -> bytes:
        return self.page.locator("canvas.vx-matrix").screenshot()

    def colour(self, row: int, column: int, panel: int = 0) -> list[int]:
        """The colour beside the middle of a cell: no cross, no frame there."""
        self.page.mouse.move(1, 1)
        self.js("x.paint()")
        code = """const [px, py] = x.where(...values), c = document.querySelector('canvas.vx-matrix');
            const copy = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
            const s = devicePixelRatio; copy.drawImage(c, -Math.floor(px * s), -Math.floor(py * s));
            return [...copy.getImageData(0, 0, 1, 1).data]"""
        return self.js(code, row, column, panel)[:3]


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.9, (len(STEPS), N, M)).astype(np.float32)


@pytest.fixture(scope="module")
def some():
    return pairs(World().scenes(N), kinds=("full", "generic"), size=32)


@pytest.fixture(scope="module")
def explorer(values, some) -> Explorer:
    texts = some.texts[:M]
    texts[5] = "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 2'> a ring"
    return Explorer.from_pairs(
        values,
        some._replace(captions=some.captions[:M], text_to_image=some.text_to_image[:M]),
        captions=texts,
        steps=STEPS,
        compare=values[::-1],
        names=("old", "new"),
        overlays={"high": values > 0.5, "plan": np.abs(values[0])},
        row_attributes={"number": np.arange(N)[::-1], "half": ["b", "a"] * (N // 2)},
    )


@pytest.fixture(scope="module")
def file(explorer, tmp_path_factory) -> Path:
    return explorer.save(tmp_path_factory.mktemp("pages") / "page.html")


@pytest.fixture
def page(browser, file):
    opened = Page(browser, file)
    opened.page.select_option(".vx-view select", "0")
    yield opened
    opened.context.close()
    assert opened.said == []  # no errors, no warnings, nothing asked for outside the file


def softmax(x: np.ndarray, at: int, temperature: float) -> float:
    e = np.exp((x - x.max()) / temperature)
    return e[at] / e.sum()


def test_it_paints_and_cells_have_their_own_colours(page, values):
    import matplotlib

    low, high = values.min(), values.max()
    for row, column in ((0, 0), (3, 7), (11, 17)):
        expected = matplotlib.colormaps["magma"](float((values[2, row, column] - low) / (high - low)))
        assert np.abs(np.array(page.colour(row, column)) - 255 * np.array(expected[:3])).max() <= 4


def test_pointing_shows_the_cell(page, values, some, explorer):
    page.point(3, 7)
    assert page.text(".vx-where") == "picture 3 × caption 7" and page.text(".vx-caption") == some.texts[7]
    assert page.number() == pytest.approx(values[2, 3, 7], abs=0.001)
    row = 100 * softmax(values[2, 3], 7, 0.07)
    column = 100 * softmax(values[2, :, 7], 3, 0.07)
    for line, expected in (("vx-row", row), ("vx-column", column)):
        said = page.text(f".{line} td")
        assert said == "< 0.1 %" if expected < 0.05 else float(said.split()[0]) == pytest.approx(expected, abs=0.51)
    place = 1 + (values[2, 3] > values[2, 3, 7]).sum()
    assert page.text(".vx-rowPlace td") == f"{place} of {M}"
    best = np.argsort(-values[2, 3])[:5]
    shown = page.page.locator(".vx-block").nth(0).locator(".vx-number").all_inner_texts()
    assert [float(x.replace("−", "-")) for x in shown] == pytest.approx(values[2, 3, best], abs=0.001)
    assert (
        page.page.locator(".vx-block")
        .nth(1)
        .locator(".vx-text")
        .first.inner_text()
        .endswith(f"picture {values[2, :, 7].argmax()}")
    )
    assert page.js("return document.querySelector('img.vx-picture').naturalWidth") == 32
    page.point(3, 8)
    assert page.text(".vx-where") == "picture 3 × caption 8"


def test_the_verdict_is_the_worlds(page, explorer):
    said = {0: "✗ not true", 1: "✓ true", 2: "? nobody knows"}
    seen = set()
    for code in np.unique(explorer._truth):
        row, column = np.argwhere(explorer._truth == code)[0]
        page.point(row, column)
        assert page.text(".vx-truth").startswith(said[code])
        seen.add(code)
    assert {0, 1} <= seen


def test_the_temperature_moves_the_probabilities(page, values):
    page.point(2, values[2, 2].argmax())
    before = float(page.text(".vx-row td").split()[0])
    page.page.locator(".vx-temperature input").fill("-1.7")
    after = float(page.text(".vx-row td").split()[0])
    assert after > before
    assert after == pytest.approx(100 * softmax(values[2, 2], values[2, 2].argmax(), 10**-1.7), abs=0.51)


def test_a_click_pins_and_arrow_keys_walk(page):
    page.pin(4, 4)
    page.point(9, 9)
    assert page.text(".vx-where") == "picture 4 × caption 4"
    assert page.text(".vx-pointing").startswith("picture 9 × caption 9")
    walk = [("ArrowRight", (4, 5)), ("ArrowDown", (5, 5)), ("ArrowLeft", (5, 4)), ("ArrowUp", (4, 4))]
    walk += [
        ("End", (4, M - 1)),
        ("ArrowRight", (4, M - 1)),
        ("Home", (4, 0)),
        ("PageDown", (7, 0)),
        ("PageUp", (4, 0)),
    ]
    walk += [("Control+End", (N - 1, M - 1)), ("Control+Home", (0, 0))]
    for key, (row, column) in walk:
        page.page.keyboard.press(key)
        assert page.text(".vx-where") == f"picture {row} × caption {column}", key
    page.page.wait_for_timeout(300)
    assert page.text("[aria-live]").startswith("picture 0, caption 0, ")
    page.page.keyboard.press("Escape")
    page.page.mouse.move(1, 1)
    assert page.text(".vx-where") == "no cell yet"


def test_keys_alone_are_enough(page):
    page.page.keyboard.press("Escape")
    page.page.locator("canvas.vx-matrix").focus()
    page.page.keyboard.press("ArrowDown")
    assert page.text(".vx-where") == "picture 0 × caption 0"
    outline = page.js("return getComputedStyle(document.querySelector('canvas.vx-matrix')).outlineWidth")
    assert outline == "3px"  # the focus can be seen


def test_the_slider_changes_the_matrix(page, values):
    page.pin(1, 2)
    before, colour = page.pixels(), page.colour(7, 7)
    slider = page.page.locator(".vx-steps input")
    for step in (0, 1, 2):
        slider.fill(str(step))
        assert page.text(".vx-step") == str(STEPS[step])
        assert page.number() == pytest.approx(values[step, 1, 2], abs=0.001)
        assert slider.get_attribute("aria-valuetext") == f"{STEPS[step]}, {step + 1} of 3"
    slider.fill("0")
    assert page.pixels() != before and page.colour(7, 7) != colour
    page.page.get_by_role("button", name="Play").click()
    page.page.wait_for_function("document.querySelector('.vx').explorer.state.step === 2")
    page.page.get_by_role("button", name="Play").wait_for()  # it stops at the end


@pytest.mark.parametrize(
    "name", ["by cluster", "by number", "by half", "by cosine of the own pair", "by kind of caption"]
)
def test_sorting_moves_cells_with_all_they_hold(page, values, name):
    before = {cell: (page.at(*cell), page.colour(*cell)) for cell in ((0, 0), (3, 7), (10, 16))}
    page.page.select_option(".vx-sort select", label=name)
    assert any(page.at(*cell) != place for cell, (place, _) in before.items())
    for (row, column), (_, colour) in before.items():
        assert page.colour(row, column) == colour
        page.point(row, column)
        assert page.text(".vx-where") == f"picture {row} × caption {column}"
        assert page.number() == pytest.approx(values[2, row, column], abs=0.001)


def test_two_models_side_by_side_and_their_difference(page, values):
    page.page.select_option(".vx-view select", "both")
    first, second = page.colour(3, 7, 0), page.colour(3, 7, 1)
    assert first != second
    page.point(3, 7, 1)
    assert page.number(nth=0) == pytest.approx(values[2, 3, 7], abs=0.001)
    assert page.number(nth=1) == pytest.approx(values[0, 3, 7], abs=0.001)
    assert "(new)" in page.text(".vx-block h2")
    page.page.select_option(".vx-view select", "change")
    page.point(3, 7)
    moved = values[0, 3, 7] - values[2, 3, 7]
    assert page.number("vx-moved", 1) == pytest.approx(moved, abs=0.001)
    red, _, blue = page.colour(3, 7)
    assert (red > blue) == (moved > 0)
    page.page.locator(".vx-steps input").fill("1")  # the same matrix twice: white
    assert min(page.colour(3, 7)) > 240


def test_overlays_are_seen_and_read(page, values):
    page.page.get_by_role("checkbox", name="high").uncheck()
    row, column = np.argwhere(values[2] > 0.5)[0]
    plain, colour = page.pixels(), page.colour(row, column)
    page.page.get_by_role("checkbox", name="high").check()
    assert page.pixels() != plain and page.colour(row, column) == colour  # frames leave the middle alone
    page.point(row, column)
    assert page.text(".vx-laid td") == "yes"
    page.page.get_by_role("checkbox", name="plan").check()
    assert page.colour(row, column) != colour
    page.point(row, column)
    read = float(page.page.locator(".vx-laid td").nth(1).inner_text())
    assert read == pytest.approx(abs(values[0, row, column]), rel=0.05, abs=1e-3)


def test_zoom_and_pan(page):
    whole = page.pixels()
    page.point(6, 9)
    page.page.mouse.move(*[p + 1 for p in page.at(6, 9)])
    for _ in range(3):
        page.page.mouse.wheel(0, -120)
    page.page.wait_for_function("document.querySelector('.vx').explorer.state.zoom > 2")
    assert page.text(".vx-where") == "picture 6 × caption 9"
    left = page.js("return x.state.left")
    x, y = page.at(6, 9)
    page.page.mouse.down()
    page.page.mouse.move(x - 80, y, steps=4)
    page.page.mouse.up()
    assert page.js("return x.state.left") > left and page.js("return x.state.pin") is None  # a drag is no click
    page.page.mouse.dblclick(x, y)
    assert page.js("return x.state.zoom") == 1
    page.page.mouse.move(1, 1)
    page.page.keyboard.press("Escape")
    for key in ("+", "+", "-", "0"):
        page.page.keyboard.press(key)
    page.page.locator("canvas.vx-matrix").blur()
    page.page.wait_for_timeout(100)
    assert page.pixels() == whole
    page.page.get_by_role("button", name="zoom in").click()
    assert page.js("return x.state.zoom") > 1


def test_a_script_in_a_caption_does_nothing(page):
    page.pin(0, 5)
    page.page.wait_for_timeout(200)
    assert "<script>" in page.text(".vx-caption") and page.js("return window.hurt") is None
    assert page.js("return document.querySelectorAll('.vx script, .vx img[src=x]').length") == 0


@pytest.mark.parametrize("width", [600, 1200])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_keeps_inside_its_column_in_both_themes(browser, file, width, theme):
    page = Page(browser, file, width, theme)
    page.pin(3, 7)
    assert page.js("return document.documentElement.scrollWidth") <= width
    assert page.js(OUTSIDE, width) == []
    side = page.page.locator(".vx-readout").bounding_box()
    stage = page.page.locator(".vx-stage").bounding_box()
    beside = side["x"] >= stage["x"] + stage["width"]
    assert beside if width == 1200 else side["y"] >= stage["y"] + stage["height"]
    assert page.js("return document.querySelector('.vx').dataset.theme") == theme
    assert page.js(CONTRAST) == []
    assert page.said == []
    page.context.close()


SHOWN = """[...document.querySelectorAll('.vx *')].filter(
    e => e.getClientRects().length && !e.closest('.vx-live, .vx-hidden'))"""
OUTSIDE = f"""return {SHOWN}
    .map(e => [e.className || e.tagName, e.getBoundingClientRect()])
    .filter(([, box]) => box.left < 0 || box.right > values[0] + 0.5)
    .map(([name, box]) => [name, box.left, box.right])"""
# Text that the eye cannot tell from its ground: WCAG's contrast below 4.5 to 1.
CONTRAST = f"""
const linear = v => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const parse = s => s.match(/[\\d.]+/g).map(Number);
const ground = e => {{
    for (; e; e = e.parentElement) {{
        const c = parse(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3]) return c;
    }}
    return [255, 255, 255];
}};
const written = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
return {SHOWN}.filter(written).map(e => {{
    const both = [parse(getComputedStyle(e).color), ground(e)].map(light).sort((p, q) => q - p);
    return [e.className || e.tagName, (both[0] + 0.05) / (both[1] + 0.05)];
}}).filter(([, contrast]) => contrast < 4.5)
"""


def test_roles_names_and_labels(page):
    """Every control has a name, every picture an alt text, ids are unique, one live region speaks politely."""
    page.pin(2, 2)
    nameless = """return [...document.querySelectorAll('.vx :is(button, select, input, canvas, [role])')].filter(e =>
        !(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim())
        && e.getAttribute('aria-live') === null).map(e => e.outerHTML)"""
    assert page.js(nameless) == []
    assert page.js("return [...document.querySelectorAll('.vx img')].filter(e => !e.hasAttribute('alt')).length") == 0
    ids = page.js("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    canvas = page.page.locator("canvas.vx-matrix")
    assert canvas.get_attribute("role") == "application" and "12 pictures by 18" in canvas.get_attribute("aria-label")
    assert page.js("return document.getElementById(values[0]).textContent", canvas.get_attribute("aria-describedby"))
    assert page.page.locator("[aria-live=polite]").count() == 1
    assert page.page.locator("html[lang=en]").count() == 1 and page.page.locator("main").count() == 1
    assert page.js("return [...document.querySelectorAll('.vx [tabindex]')].every(e => e.tabIndex === 0)")


@pytest.mark.parametrize("width", [600, 1200])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("which", ["plain", "everything", "cut short"])
def test_axe_finds_nothing(browser, file, tmp_path, which, width, theme):
    """The plain matrix before anything was touched; a page with all it can have, in use; a caption cut short."""
    from axe_playwright_python.sync_playwright import Axe

    if which == "everything":
        page = Page(browser, file, width, theme)
        for name in ("own pairs", "high", "plan"):
            page.page.get_by_role("checkbox", name=name).check()
        page.page.select_option(".vx-sort select", label="by half")
        page.pin(3, 7)
        page.point(5, 9, 1)
    else:
        long = [f"caption {j}, which goes on and on until it no longer fits into any column" for j in range(4)]
        plain = Explorer(np.eye(4) / 2, captions=long if which == "cut short" else None)
        page = Page(browser, plain.save(tmp_path / "plain.html"), width, theme)
        if which == "cut short":
            page.pin(1, 2)
    found = Axe().run(page.page).response["violations"]
    assert [(rule["impact"], rule["help"], [node["html"][:120] for node in rule["nodes"]]) for rule in found] == []
    page.context.close()


def test_rows_and_columns_are_called_what_they_are(browser, tmp_path):
    values = np.eye(3)
    explorer = Explorer(values, called=("query", "key"), truth=values)
    assert repr(explorer) == "Explorer(3 queries x 3 keys)"
    page = Page(browser, explorer.save(tmp_path / "called.html"))
    page.pin(1, 2)
    assert page.text(".vx-where") == "query 1 × key 2" and page.text(".vx-caption") == "key 2"
    assert page.page.locator(".vx-block h2").all_inner_texts() == [
        "Best keys for this query",
        "Best queries for this key",
    ]
    assert page.text(".vx-truth").endswith("not true of this query")
    alt = page.page.locator("canvas.vx-matrix").get_attribute("aria-label")
    assert alt.startswith("Matrix of 3 queries by 3 keys")
    assert "picture" not in page.text("main") and "caption" not in page.text("main")
    page.context.close()


def test_without_scripts_a_picture_stands_there(browser, file):
    page = Page(browser, file, scripts=False)
    image = page.page.locator("noscript img")
    assert image.is_visible() and "Matrix of 12 pictures" in image.get_attribute("alt")
    page.context.close()


@pytest.mark.parametrize("shape", [(1, 40), (30, 1), (60, 9), (1, 1), (3, 1024)])
def test_odd_shapes_are_drawn(browser, tmp_path, shape):
    values = np.random.default_rng(1).uniform(-1, 1, shape)
    page = Page(browser, Explorer(values).save(tmp_path / "odd.html"), 600)
    row, column = shape[0] - 1, shape[1] - 1
    page.pin(row, column)
    assert page.number() == pytest.approx(values[row, column], abs=0.001)
    box = page.js("return document.querySelector('canvas.vx-matrix').getBoundingClientRect().height")
    assert 40 <= box <= 850 and page.said == []
    page.context.close()


def test_512_by_512_by_16_steps_are_drawn_each_in_its_own_colours(browser, tmp_path):
    values = np.random.default_rng(2).uniform(-1, 1, (16, 512, 512)).astype(np.float32)
    page = Page(browser, Explorer(values, truth=values[0] > 0.9).save(tmp_path / "large.html"))
    page.page.get_by_role("checkbox", name="true, but").check()
    code = """const drawn = []; for (let k = 0; k < 16; k++) { x.goTo(k); x.paint();
        drawn.push(document.querySelector('canvas.vx-matrix').toDataURL()); } return new Set(drawn).size"""
    assert page.js(code) == 16 and page.said == []
    page.context.close()


@pytest.mark.parametrize("width", [600, 1200])
@pytest.mark.parametrize("name", ["00_start_here", "02_contrastive_matrix", "03_moco"])
def test_the_pages_that_notebooks_store(browser, tmp_path, name, width):
    (tmp_path / "stored.html").write_text(stored_page(ROOT / "notebooks" / f"{name}.ipynb"), encoding="utf-8")
    page = Page(browser, tmp_path / "stored.html", width)
    assert page.page.locator("img.vx-picture").is_visible()  # a cell is chosen, so that there is something to read
    assert page.js(OUTSIDE, width) == [] and page.said == []
    page.context.close()


# ---- a running JupyterLab ------------------------------------------------------------------------------------

CELLS = [
    """
import numpy as np
from pathlib import Path
from vlnotes.explorer import Explorer
values = np.random.default_rng(0).uniform(-1, 1, (3, 6, 6))
explorer = Explorer(values, steps=["one", "two", "three"])
def heard(change):
    Path("heard.txt").write_text(repr(change["new"]))
    if change["new"] == (1, 2):
        explorer.selected = (3, 0)
explorer.observe(heard, names="selected")
explorer
""",
    "explorer.widget",
    """
large = np.random.default_rng(0).uniform(-1, 1, (16, 512, 512))  # noise: more than a notebook keeps
Explorer(large, steps=range(16))
""",
]


PATIENCE = 180_000  # milliseconds, for each thing that is waited for: a loaded machine is slow, not broken
# The notebook in front can run: its kernel is there, connected, and has nothing to do.
READY = """() => {
    const context = window.jupyterapp?.shell.currentWidget?.sessionContext, kernel = context?.session?.kernel;
    return !!context?.isReady && kernel?.connectionStatus === 'connected' && kernel.status === 'idle';
}"""


class Lab:
    """A JupyterLab with folders of its own, so that no setting, workspace or kernel of this machine is met."""

    def __init__(self, browser, folder: Path):
        from ipykernel.kernelspec import write_kernel_spec

        self.books, self.log = folder / "books", folder / "log.txt"
        self.books.mkdir()
        own = {
            name: str(folder / name.lower())
            for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
            + ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
        }
        write_kernel_spec(str(Path(own["JUPYTER_PATH"]) / "kernels" / "python3"))
        news = Path(own["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
        news.parent.mkdir(parents=True)
        news.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # no question in front of the notebook
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
        command += ["--ServerApp.token=", "--ServerApp.password=", "--ServerApp.port_retries=0"]
        command += ["--expose-app-in-browser", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
        with self.log.open("w") as log:
            self.server = subprocess.Popen(command, cwd=self.books, env=os.environ | own, stdout=log, stderr=log)
        self.address = f"http://127.0.0.1:{port}"
        self.said: list[str] = []
        self.page = browser.new_page(viewport={"width": 1200, "height": 900})
        self.page.set_default_timeout(PATIENCE)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("console", lambda m: m.type == "error" and self.said.append(m.text))

    def wait(self, done) -> None:
        """Until something holds that happens outside the browser."""
        until = time.monotonic() + PATIENCE / 1000
        while not done():
            assert time.monotonic() < until, "waited in vain"
            assert self.server.poll() is None, "the server has stopped"
            time.sleep(0.3)

    def answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.address}/api", timeout=5).status == 200
        except OSError:
            return False

    def open(self, name: str) -> None:
        self.page.goto(f"{self.address}/lab/tree/{name}?reset")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")

    def run_all(self) -> None:
        self.page.wait_for_function(READY)
        self.page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")  # returns when all have run

    def heard(self, cell: tuple[int, int]) -> None:
        """Until Python's observer has got this cell."""
        file = self.books / "heard.txt"
        self.wait(lambda: file.exists() and file.read_text() == repr(cell))

    def report(self) -> str:
        """What is to be known of a failure; a picture of the screen lies beside the log."""
        try:
            self.page.screenshot(path=self.log.with_name("screen.png"))
            context = "jupyterapp.shell.currentWidget?.sessionContext"
            state = self.page.evaluate(
                f"() => [{context}?.session?.kernel?.status, {context}?.session?.kernel?.connectionStatus, "
                "document.querySelector('.jp-Dialog')?.innerText, "
                "[...document.querySelectorAll('.jp-InputPrompt')].map(e => e.innerText).join(' ')]"
            )
        except Exception as error:
            state = error
        screen = self.log.with_name("screen.png")
        return (
            f"kernel, dialog, prompts: {state}\nconsole: {self.said}\n{self.log.read_text()[-2000:]}\nscreen: {screen}"
        )

    def close(self) -> None:
        self.page.close()
        self.server.terminate()
        try:
            self.server.wait(10)
        except subprocess.TimeoutExpired:  # it waits for a kernel that is still starting
            self.server.kill()
            self.server.wait()


@pytest.fixture
def lab(browser, tmp_path):
    import nbformat

    opened = Lab(browser, tmp_path)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, opened.books / "try.ipynb")
    try:
        opened.wait(opened.answers)
        yield opened
    finally:
        opened.close()


@pytest.mark.timeout(1500)
def test_in_jupyterlab_the_selection_goes_both_ways(lab):
    try:
        _in_jupyterlab(lab, lab.page)
    except Exception:
        print(lab.report())
        raise


def _in_jupyterlab(lab: Lab, page) -> None:
    import nbformat

    lab.open("try.ipynb")
    lab.run_all()
    frame = page.frame_locator(".jp-OutputArea iframe >> nth=0")
    frame.locator(".vx[data-ready]").wait_for()
    canvas = frame.locator("canvas.vx-matrix")
    state = "(c, [row, column]) => c.closest('.vx').explorer.where(row, column)"

    def spot(row: int, column: int) -> dict:
        x, y = canvas.evaluate(state, [row, column])
        return {"x": x, "y": y}

    # it paints: each cell in its own colour
    code = """c => new Set(Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.reduce(
        (words, v, i, all) => (i % 4 ? words : words.add(all.slice(i, i + 3).join())), new Set()))).size"""
    assert canvas.evaluate(code) > 30
    # pointing, a click, an answer from Python, arrow keys
    canvas.hover(position=spot(1, 2))
    frame.get_by_text("picture 1 × caption 2", exact=True).wait_for()
    canvas.click(position=spot(1, 2))
    frame.get_by_text("picture 3 × caption 0", exact=True).wait_for()  # the observer has set it
    lab.heard((3, 0))
    canvas.press("ArrowRight")
    lab.heard((3, 1))
    frame.get_by_text("picture 3 × caption 1", exact=True).wait_for()
    # the slider
    values = np.random.default_rng(0).uniform(-1, 1, (3, 6, 6))
    pixels = "c => (c.closest('.vx').explorer.paint(), c.toDataURL())"
    before = canvas.evaluate(pixels)
    for step, name in enumerate(("one", "two", "three")):
        frame.locator(".vx-steps input").fill(str(step))
        assert frame.locator(".vx-step").inner_text() == name
        read = frame.locator(".vx-value td").inner_text().replace("−", "-")
        assert float(read) == pytest.approx(values[step, 3, 1], abs=0.002)
        assert (canvas.evaluate(pixels) == before) == (step == 2)
    # the same among other widgets, without a frame, and in step with the page
    widget = page.locator(".jp-OutputArea .vx[data-ready]")
    widget.get_by_text("picture 3 × caption 1", exact=True).wait_for()
    x, y = widget.evaluate("(w) => w.explorer.where(5, 5)")
    widget.locator("canvas.vx-matrix").click(position={"x": x, "y": y})
    frame.get_by_text("picture 5 × caption 5", exact=True).wait_for()
    lab.heard((5, 5))
    # the theme of JupyterLab, and the column of the notebook, wide and narrow
    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    frame.locator(".vx[data-theme=dark]").wait_for()
    page.locator(".jp-OutputArea .vx[data-theme=dark]").wait_for()
    page.evaluate("jupyterapp.shell.collapseLeft()")
    for width in (600, 1200):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(FITS)
        outside = OUTSIDE.replace("values[0]", "document.documentElement.clientWidth")
        assert canvas.evaluate(f"() => {{ {outside} }}") == []
    assert not page.locator(".jp-OutputArea img").first.is_visible()
    # one that is too large to be kept gets its bytes from the kernel
    page.locator(".jp-Notebook .jp-Cell >> nth=2").scroll_into_view_if_needed()
    large = page.frame_locator(".jp-OutputArea iframe >> nth=1")
    large.locator(".vx[data-ready]").wait_for()
    large.locator("canvas.vx-matrix").press("ArrowDown")
    large.get_by_text("picture 0 × caption 0", exact=True).wait_for()
    # what is stored
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    stored = lab.books / "try.ipynb"
    lab.wait(lambda: "srcdoc" in stored.read_text())
    assert stored.stat().st_size < 1_000_000
    assert "widget-view" not in nbformat.read(stored, 4).cells[0].outputs[0].data
    assert lab.said == []
    lab.open("try.ipynb")  # opened again, the page is there before anything has run
    frame.locator(".vx[data-ready]").wait_for()
    # opened by somebody else, it is not trusted: no frame runs, and the still picture stands there
    elsewhere = lab.books / "other.ipynb"
    elsewhere.write_text(stored.read_text().replace("Contrastive matrix", "Contrastive  matrix"))
    lab.open("other.ipynb")
    still = page.locator(".jp-OutputArea img[alt^='Matrix of 6 pictures by 6 captions']")
    still.wait_for()
    assert still.evaluate("(i) => i.naturalWidth") > 100


# The frame stands inside its output area and is as high as the page in it; so does the widget.
FITS = """() => {
    const inside = (e) => {
        const box = e.getBoundingClientRect(), column = e.closest('.jp-OutputArea').getBoundingClientRect();
        return box.width > 200 && box.left >= column.left && box.right <= column.right + 0.5
            && box.right <= window.innerWidth;
    };
    const frame = document.querySelector('.jp-OutputArea iframe'), vx = document.querySelector('.jp-OutputArea .vx');
    return inside(frame) && inside(vx)
        && Math.abs(frame.getBoundingClientRect().height - frame.contentDocument.body.scrollHeight) <= 2;
}"""
