"""The README's picture: `python tests/readme_picture.py` takes it of the explorer that notebook 00 stores.

Needs a Chromium on the path. Run it after `make records`.
"""

import html
import io
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

COURSE = Path(__file__).resolve().parents[1]
NOTEBOOK, CELL = COURSE / "notebooks" / "00_start_here.ipynb", "explorer"
PICTURE = COURSE / "data" / "readme_explorer.png"
SORTED, WIDTH = "by place", 1060


def stored_page(notebook: Path = NOTEBOOK, cell: str = CELL) -> str:
    """The page that a cell of a notebook shows in its frame."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    shown = next(c for c in cells if c["id"] == cell)["outputs"][0]["data"]["text/html"]
    return html.unescape(re.search(r'srcdoc="([^"]*)"', "".join(shown))[1])


def main() -> int:
    """Write the picture; 1 where there is no browser."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        print("no Chromium on the path")
        return 1
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as tool:
        file = Path(folder) / "page.html"
        file.write_text(stored_page(), encoding="utf-8")
        browser = tool.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, device_scale_factor=1.5)
        page.goto(file.as_uri())
        page.wait_for_selector(".vx[data-ready]")
        page.select_option(".vx-sort select", label=SORTED)
        page.wait_for_function("[...document.querySelectorAll('.vx img')].every(image => image.naturalWidth)")
        page.wait_for_timeout(300)
        taken = page.locator(".vx").screenshot()
        browser.close()
    Image.open(io.BytesIO(taken)).convert("RGB").save(PICTURE, "png", optimize=True)
    print(f"{PICTURE.relative_to(COURSE)}: {PICTURE.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
