"""One file that holds an explorer: its data, its code, and a still picture for where scripts are off."""

import base64
import html
import json
import re
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@cache
def source(name: str) -> str:
    """The text of `explorer.js` or `explorer.css`."""
    return (HERE / name).read_text(encoding="utf-8")


def page(about: dict, packed: bytes, still: bytes) -> str:
    """A whole page. Nothing in it is an address, and nothing in it can be taken for one.

    Args:
        about: the description of the explorer, JSON values.
        packed: its deflated bytes.
        still: a PNG file.

    Returns:
        HTML.
    """
    said = json.dumps(about, ensure_ascii=False, separators=(",", ":"))
    said = _unlinked(said.replace("<", "\\u003c"), lambda word: f"\\u{ord(word[0]):04x}{word[1:]}")
    title = _unlinked(html.escape(about["title"]), lambda word: f"&#{ord(word[0])};{word[1:]}")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
html {{ color-scheme: light dark; }}
body {{ margin: 0; background: #fdfcf9; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #1b1d21; }} }}
html[data-framed] {{ color-scheme: normal; }}
html[data-framed] body {{ background: transparent; }}
main {{ max-width: 1200px; margin: 0 auto; }}
h1 {{ margin: 0; padding: 16px 14px 0; font: 600 20px/1.3 system-ui, sans-serif; color: #23272e; }}
@media (prefers-color-scheme: dark) {{ h1 {{ color: #ece9e2; }} }}
html[data-framed] h1 {{ position: absolute; padding: 0; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); }}
{source("explorer.css")}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<noscript>{image(about, still)}</noscript>
<div id="vx-host"></div>
</main>
<script type="application/json" id="vx-about">{said}</script>
<script type="text/plain" id="vx-bytes">{letters(packed)}</script>
<script type="module">
{source("explorer.js")}
openPage(document.getElementById("vx-host"));
</script>
</body>
</html>
"""


def framed(about: dict, packed: bytes, still: bytes) -> str:
    """The page inside a notebook: a still picture, and after it the page in a frame that takes its place.

    A viewer that strips frames, or runs no scripts, keeps the picture; so does a notebook that is not trusted yet.

    Args:
        about: the description of the explorer, JSON values.
        packed: its deflated bytes.
        still: a PNG file.

    Returns:
        HTML.
    """
    inside = html.escape(page(about, packed, still))
    return (
        f'<div>{image(about, still)}<iframe data-vlnotes="{about["key"]}" title="{html.escape(about["title"])}" '
        f'style="width: 100%; height: 0; border: 0; display: block" srcdoc="{inside}"></iframe></div>'
    )


def image(about: dict, still: bytes) -> str:
    """The still picture with its alt text."""
    alt = _unlinked(html.escape(about["alt"]), lambda word: f"&#{ord(word[0])};{word[1:]}")
    return f'<img alt="{alt}" style="max-width: 100%" src="data:image/png;base64,{letters(still)}">'


def letters(raw: bytes) -> str:
    """Base64 in which no four letters spell the beginning of an address: a blank, which decoders skip, parts them."""
    return _unlinked(base64.b64encode(raw).decode(), lambda word: f"{word[:2]} {word[2:]}")


def _unlinked(text: str, change) -> str:
    return re.sub("http", lambda found: change(found[0]), text, flags=re.IGNORECASE)
