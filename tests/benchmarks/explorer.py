"""How long the explorer needs to draw 512 x 512 cells of another of its 16 steps, in a headless Chromium."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from measure import Row

CODE = """() => { const x = document.querySelector('.vx').explorer; const times = [];
    for (let k = 0; k < 48; k++) { x.goTo(k % 16); const began = performance.now(); x.paint();
        times.push(performance.now() - began); } return times }"""


def rows() -> list[Row]:
    """One row; without a Chromium on the path its time is missing."""
    what = "explorer redraw, 512 x 512 x 16"
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        return [Row(what, note="no Chromium on the path")]
    from playwright.sync_api import sync_playwright

    from vlnotes.explorer import Explorer

    values = np.random.default_rng(2).uniform(-1, 1, (16, 512, 512)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as tool:
        file = Explorer(values, truth=values[0] > 0.9).save(Path(folder) / "large.html")
        browser = tool.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(Path(file).as_uri())
        page.wait_for_selector(".vx[data-ready]")
        times = page.evaluate(CODE)
        browser.close()
    return [Row(what, float(np.median(times)), note=f"goal: 16 ms; 90 % within {np.quantile(times, 0.9):.1f} ms")]
