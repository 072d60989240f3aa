"""The explorer in a headless Chromium: how long it draws another of 16 steps of 512 x 512 cells, and its memory.

Three counts of the page's process, after all steps were drawn. Private: what it alone has written; browsers call it
the footprint of a page. Proportional: private, and its share of what several processes have mapped, the browser's
program for the most part; this one stands in the table. Resident: all of it, as if nobody shared. An empty page is
measured beside it.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from measure import Row

CODE = """() => { const x = document.querySelector('.vx').explorer; const times = [];
    for (let k = 0; k < 48; k++) { x.goTo(k % 16); const began = performance.now(); x.paint();
        times.push(performance.now() - began); } return times }"""
SIZE = "512 x 512 x 16"


def rows() -> list[Row]:
    """Two rows, time and memory; without a Chromium on the path both are empty, and memory needs Linux."""
    redraw, memory = f"explorer redraw, {SIZE}", f"explorer page, {SIZE}"
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        return [Row(what, note="no Chromium on the path") for what in (redraw, memory)]
    from playwright.sync_api import sync_playwright

    from vlnotes.explorer import Explorer

    values = np.random.default_rng(2).uniform(-1, 1, (16, 512, 512)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as tool:
        file = Explorer(values, truth=values[0] > 0.9).save(Path(folder) / "large.html")
        measured = []
        for address in ("about:blank", Path(file).as_uri()):
            browser = tool.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            page.goto(address)
            if len(measured) == 1:
                page.wait_for_selector(".vx[data-ready]")
                times = page.evaluate(CODE)
            page.wait_for_timeout(1000)
            measured.append(_largest(browser.new_browser_cdp_session()))
            browser.close()
    note = f"goal: 16 ms; 90 % within {np.quantile(times, 0.9):.1f} ms"
    lines = [Row(redraw, float(np.median(times)), note=note)]
    if not all(measured):
        return [*lines, Row(memory, note="no /proc here to measure it")]
    empty, ours = measured
    note = f"goal: 150 MB; private {ours[0]:.0f} / {empty[0]:.0f}, resident {ours[2]:.0f} / {empty[2]:.0f}"
    return [*lines, Row(memory, peer="empty page", ours_mb=ours[1], peer_mb=empty[1], note=note)]


def _largest(browser) -> tuple[float, float, float] | None:
    """(private, proportional, resident) MB of the page's renderer; Chromium keeps a spare one beside it."""
    found = []
    for process in browser.send("SystemInfo.getProcessInfo")["processInfo"]:
        folder = Path("/proc") / str(process["id"])
        if process["type"] == "renderer" and (folder / "smaps_rollup").exists():
            text = (folder / "status").read_text() + (folder / "smaps_rollup").read_text().split("\n", 1)[1]
            lines = dict(line.split(":", 1) for line in text.splitlines())
            mb = {key: int(lines[key].split()[0]) / 1024 for key in ("RssAnon", "VmSwap", "Pss", "VmRSS")}
            found.append((mb["RssAnon"] + mb["VmSwap"], mb["Pss"], mb["VmRSS"]))
    return max(found, key=lambda counts: counts[1], default=None)
