"""The course as a static site: `python tests/build_site.py [--out FOLDER]`.

Nothing is executed. The notebooks are shown with the outputs stored in them, the tables of claims and of graduated
functions are made anew from the records, the API pages come from the docstrings. What is written by hand lies in
`notebooks/site/`. The built pages are checked: every link and anchor leads somewhere, nothing is fetched from
elsewhere, every picture has an alt text, and no page is too heavy.
"""

import argparse
import ast
import base64
import copy
import html
import io
import posixpath
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import notebook_tools as tools

from vlnotes import claims, records
from vlnotes.checks.course import rewrite_table
from vlnotes.checks.graduation import Taught, marks, table, taught_functions

BY_HAND = tools.NOTEBOOKS / "site"
PACKAGE = tools.COURSE / "vlnotes"
DATA = ("DATASET_CARD.md", "sheet.png", "readme_explorer.png")  # what the pages show of data/
MOST_BYTES = 2_000_000  # of one page, its explorer left out
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)(#[^)\s]*)?(?=\))")
SECTION = re.compile(r"^## +\d+\. +", re.MULTILINE)
DISAGREE = "Where the sources disagree"
MARKS = re.compile(r"[|*\\]|(?<=\w)_(?!\w)|(?<=\b\w)\.(?=\s|$)")  # they mean something to reStructuredText
EXPLORER = re.compile(r"<iframe data-vlnotes=.*?</iframe>", re.DOTALL)


class Paper(NamedTuple):
    """What belongs to a paper: a letter for its claims, its modules, the numbers of its notebooks."""

    letter: str
    modules: tuple[str, ...]
    numbers: tuple[str, ...]


PAPERS = {
    "moco": Paper("M", ("moco", "momentum"), ("03",)),
    "albef": Paper("A", ("albef", "fusion", "gradcam", "downstream"), ("04", "05", "06", "07")),
    "codis": Paper("C", ("codis", "transport"), ("08", "09")),
    "psd": Paper("P", ("psd",), ("10",)),
    "xclip": Paper("N", ("xclip",), ("11",)),
    "modx": Paper("X", ("modx", "disorder", "rivals"), ("12", "13")),
}


def main(arguments: list[str] | None = None) -> int:
    """Build the site and check it.

    Args:
        arguments: of the command line; None takes those of the process.

    Returns:
        0, or 1 where the check found something, or the folder holds something else than an earlier site.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=tools.COURSE / "site", help="where it is written")
    out = parser.parse_args(arguments).out
    begun = time.perf_counter()
    if out.exists() and any(out.iterdir()) and not (out / "searchindex.js").exists():
        print(f"{out} holds something else than a site; name another folder", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        written, built = Path(folder) / "sources", Path(folder) / "site"
        write(sources(), written)
        said = build(written, built)
        said += check(built)
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(built, out)
    for sentence in said:
        print(sentence, file=sys.stderr)
    pages = sorted(out.rglob("*.html"))
    heaviest = max(pages, key=weight)
    print(f"{len(pages)} pages in {time.perf_counter() - begun:.0f} s; open {out / 'index.html'}")
    print(f"the heaviest, without its explorer: {heaviest.relative_to(out)}, {weight(heaviest) / 1e6:.2f} MB")
    return int(bool(said))


# What the site is made of: path -> text or bytes. The folders are those of the course, so that links keep their way.


def sources() -> dict[str, str | bytes]:
    """Every source file of the site.

    Returns:
        Path inside the site, such as "notebooks/03_moco.ipynb" -> its content.

    Raises:
        ValueError: a page quotes a record that does not exist, or `references.bib` lacks a title.
    """
    notebooks = {path.stem: tools.read(path) for path in tools.paths()}
    files: dict[str, str | bytes] = {}
    for name, notebook in notebooks.items():
        files[f"notebooks/{name}.ipynb"], figures = notebook_page(name, notebook)
        files |= figures
    for path in sorted(BY_HAND.rglob("*.*")):
        place = path.relative_to(BY_HAND).as_posix()
        files[place] = by_hand(path.read_text(encoding="utf-8"))
    taught, became = taught_functions(), claims.claim_table(claims.CLAIMS, claims.STUDIES)
    files["claims.md"] = claims_page((tools.COURSE / "README.md").read_text(encoding="utf-8"), became)
    for name in PAPERS:
        files[f"papers/{name}.md"] += paper_page(name, notebooks, taught, became)
    files["references.md"] += citations(notebooks, files["references.bib"])
    files |= {f"data/{name}": (tools.COURSE / "data" / name).read_bytes() for name in DATA}
    files["data/graduation.md"] = table(taught, marks(tools.NOTEBOOKS))
    files |= api_pages()
    files |= teaching_pages()
    files["index.md"] += contents(notebooks, files)
    return files


def by_hand(text: str) -> str:
    """A page of `notebooks/site/` with its quoted records and its table of the course filled in.

    Args:
        text: Markdown; the table of the course is asked for on the front page only.

    Returns:
        Markdown.

    Raises:
        ValueError: a quote names a record that does not exist.
    """
    return rewrite_table(records.rewrite_quotes(text), tools.NOTEBOOKS, "notebooks/")


def notebook_page(name: str, notebook: dict) -> tuple[str, dict[str, bytes]]:
    """A notebook for the site: its links lead to pages of the site, its figures are files with their alt text.

    Args:
        name: such as "03_moco".
        notebook: left as it is.

    Returns:
        The notebook as JSON, and path -> PNG of its figures.
    """
    made, figures = copy.deepcopy(notebook), {}
    for cell in made["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = relink(tools.source(cell), "notebooks", "notebooks")
        for number, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            if "image/png" in data:
                place = f"figures/{name}-{cell['id']}-{number}.png"
                figures[f"extra/{place}"] = base64.b64decode("".join(data["image/png"]))
                alt = output["metadata"]["image/png"]["alt"]
                output["data"] = {"text/html": image(f"../{place}", figures[f"extra/{place}"], alt)}
                output["metadata"] = {}
    return tools.json.dumps(made, ensure_ascii=False), figures


def image(address: str, png: bytes, alt: str) -> str:
    """The tag of a picture, which keeps its place free while it loads.

    Args:
        address: of the file.
        png: its content.
        alt: what is to be seen.

    Returns:
        HTML.
    """
    wide, high = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    size = f'width="{wide}" height="{high}"'
    return f'<img class="figure" src="{address}" {size} loading="lazy" alt="{html.escape(alt)}">'


def teaching_pages() -> dict[str, str]:
    """What stands in `notebooks/teaching/`; its README carries the others in the side bar.

    Returns:
        Path inside the site -> Markdown.
    """
    home = "notebooks/teaching"
    pages = {path.stem: path.read_text(encoding="utf-8") for path in sorted((tools.COURSE / home).glob("*.md"))}
    listed = ["syllabus", *(name for name in pages if name not in ("README", "syllabus"))]
    pages["README"] += "\n".join(["", "```{toctree}", ":hidden:", "", *listed, "```", ""])
    return {f"{home}/{name}.md": relink(text, home, home) for name, text in pages.items()}


def relink(text: str, home: str, place: str) -> str:
    """Relative links of a Markdown text, brought to where the text stands on the site.

    Args:
        text: Markdown.
        home: the folder of the course in which the text was written, such as "notebooks".
        place: the folder of the site in which it is shown.

    Returns:
        The text. A link to a file of the package leads to its API page; all others keep their target.
    """

    def led(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(home, link[1]))
        if target.startswith("vlnotes/"):
            target = f"api/{target.split('/')[1].removesuffix('.py')}.md"
        return posixpath.relpath(target, place) + (link[2] or "")

    return LINK.sub(led, text)


def section(notebook: dict, heading: str) -> str:
    """What a notebook says under one of its numbered headings.

    Args:
        notebook: of the course.
        heading: without its number, such as "References".

    Returns:
        Markdown without the heading, "" where there is no such section.
    """
    parts = SECTION.split(tools.prose(notebook))
    found = [part for part in parts if part.partition("\n")[0].strip() == heading]
    return found[0].partition("\n")[2].strip() if found else ""


def title(notebook: dict) -> str:
    """The title of a notebook, from the first line of its first cell."""
    return tools.source(notebook["cells"][0]).splitlines()[0].lstrip("# ").strip()


def paper_page(name: str, notebooks: dict[str, dict], taught: list[Taught], became: str) -> str:
    """What is generated below the hand-written part of a paper's page.

    Args:
        name: of `PAPERS`.
        notebooks: name -> notebook.
        taught: the functions that graduated or will.
        became: the table of all claims.

    Returns:
        Markdown: where the code is, the notebooks, the claims, and where the sources disagree.
    """
    paper = PAPERS[name]
    mine = {stem: notebook for stem, notebook in notebooks.items() if stem[:2] in paper.numbers}
    lines = ["", "## Where the code is", ""]
    for module in paper.modules:
        lines.append(f"- [`vlnotes.{module}`](../api/{module}.md): {first_line(PACKAGE / f'{module}.py')}")
    lines += ["", "| function | built in | equation |", "|---|---|---|"]
    for one in (one for one in taught if one.name.split(".")[1] in paper.modules):
        built = f"notebook {one.notebook[:2]}, section {one.section}"
        if one.notebook in notebooks:
            built = f"[{built}](../notebooks/{one.notebook}.ipynb)"
        lines.append(f"| {{py:obj}}`~{one.name}` | {built} | {one.equation.replace('|', chr(92) + '|')} |")
    lines += ["", "## The notebooks", ""]
    lines += [f"- [{stem[:2]}: {title(notebook)}](../notebooks/{stem}.ipynb)" for stem, notebook in mine.items()]
    lines += ["", "## What became of its claims", "", claims_of(paper.letter, became), "", f"## {DISAGREE}", ""]
    for stem, notebook in mine.items():
        text = section(notebook, DISAGREE)
        if text:
            lines += [f"### In notebook {stem[:2]}: {title(notebook)}", "", relink(text, "notebooks", "papers"), ""]
    return "\n".join(lines) + "\n"


def claims_page(readme: str, became: str) -> str:
    """All claims, under the words with which the README explains its own table.

    Args:
        readme: Markdown.
        became: the table of all claims.

    Returns:
        Markdown.

    Raises:
        ValueError: the README has no such section.
    """
    told = re.search(r"^## (What became of the papers' claims)\n(.*?)<!--claims-->", readme, re.MULTILINE | re.DOTALL)
    if told is None:
        raise ValueError("README.md has no section 'What became of the papers' claims' with its table")
    return f"# {told[1]}\n{relink(records.rewrite_quotes(told[2]), '.', '.')}\n{became}"


def claims_of(letter: str, became: str) -> str:
    """The table of the claims that begin with a letter, or a sentence that there are none yet.

    Args:
        letter: such as "M".
        became: the table of all claims.

    Returns:
        Markdown.
    """
    head, line, *rows = became.splitlines()
    chosen = [row for row in rows if re.match(rf"\| {letter}\d", row)]
    if not chosen:
        return "Not judged yet: the runs over several seeds are still to come."
    return "\n".join(["[How to read this table](../claims.md).", "", head, line, *chosen])


def citations(notebooks: dict[str, dict], bibliography: str) -> str:
    """Which notebook cites what, found by the titles in its own list of references.

    Args:
        notebooks: name -> notebook.
        bibliography: the text of `references.bib`.

    Returns:
        Markdown: a table.

    Raises:
        ValueError: a notebook names a title that the bibliography does not have.
    """
    known = re.findall(r"^@\w+\{(\w+),.*?^ *title *= *\{(.+?)\},?$", bibliography, re.MULTILINE | re.DOTALL)
    lines, lost = ["", "| notebook | cites |", "|---|---|"], []
    for name, notebook in notebooks.items():
        keys = []
        for cited in re.findall(r"^- .*?\*(.+?)\*", section(notebook, "References"), re.MULTILINE):
            found = [key for key, whole in known if plain(whole).startswith(plain(cited))]
            keys += found
            lost += [] if found else [f"{name} cites {cited!r}"]
        lines.append(f"| [{name[:2]}: {title(notebook)}](notebooks/{name}.ipynb) | {{cite}}`{','.join(keys)}` |")
    if lost:
        raise ValueError(f"references.bib lacks a title: {'; '.join(lost)}")
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """A title in small letters and figures alone."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def api_pages() -> dict[str, str]:
    """One page for every public module and package, and one that lists them.

    Returns:
        Path -> Markdown.
    """
    pages, rows = {}, []
    for path in sorted(PACKAGE.iterdir()):
        name = path.stem
        inside = sorted(path.glob("*.py")) if path.is_dir() else []
        if name.startswith("_") or not (path.suffix == ".py" or path / "__init__.py" in inside):
            continue
        public = [part.stem for part in inside if not re.match(r"_|n\d\d_", part.stem)]  # n03_moco: solutions, mistakes
        parts = [f"vlnotes.{name}", *(f"vlnotes.{name}.{part}" for part in public)]
        text = f"# {parts[0]}\n"
        for part in parts:
            text += f"\n## {part}\n" if part != parts[0] else ""
            text += f"\n```{{eval-rst}}\n.. automodule:: {part}\n   :members:\n   :ignore-module-all:\n```\n"
        pages[f"api/{name}.md"] = text
        whole = path if path.is_file() else path / "__init__.py"
        rows.append(f"| [`vlnotes.{name}`](api/{name}.md) | {first_line(whole)} |")
    head = ["# The library", "", "Made from the docstrings. `[source]` beside a name shows its code.", ""]
    pages["api.md"] = "\n".join([*head, "| module | what it is |", "|---|---|", *rows]) + "\n"
    return pages


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def contents(notebooks: dict[str, dict], files: Iterable[str]) -> str:
    """The tables of contents for the side bar.

    Args:
        notebooks: name -> notebook.
        files: paths of all source files.

    Returns:
        Markdown: hidden toctrees.
    """
    api = sorted(path for path in files if path.startswith("api/"))
    parts = {
        "The course": [f"{name[:2]} {title(notebook)} <notebooks/{name}>" for name, notebook in notebooks.items()],
        "The papers": [f"papers/{name}" for name in PAPERS],
        "Look up": ["claims", "data/graduation", "notation", "glossary", "references", "data/DATASET_CARD"],
        "To teach": ["notebooks/teaching/README"],
        "The library": ["api", *api],
    }
    lines = [""]
    for caption, pages in parts.items():
        lines += ["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""]
    return "\n".join(lines)


def write(files: dict[str, str | bytes], folder: Path) -> None:
    """Write files below a folder.

    Args:
        files: path -> content.
        folder: is made where it is missing.
    """
    for place, content in files.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


# The build.

SIGNATURE = re.compile(r"<dl>\n(<dd><em.*</dd>\n)+</dl>")
EMPTY_HEAD = re.compile(r'<thead>\s*<tr class="row-odd">(<th class="head"><p></p></th>\s*)+</tr>\s*</thead>')

SETTINGS = {
    "project": "vlnotes",
    "author": "The vlnotes authors",
    "copyright": "The vlnotes authors, MIT licence",
    "language": "en",
    "extensions": [
        *("myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx.ext.mathjax"),
        *("sphinxcontrib.bibtex", "sphinx-mathjax-offline"),
    ],
    "html_theme": "sphinx_book_theme",
    "html_title": "vlnotes",
    "html_static_path": ["static"],
    "html_css_files": ["site.css"],
    "html_js_files": ["site.js"],
    "html_extra_path": ["extra"],
    "html_copy_source": False,
    "html_show_sphinx": False,
    "html_use_index": False,
    "html_domain_indices": False,
    "html_theme_options": {
        **{"show_toc_level": 2, "use_download_button": False, "use_fullscreen_button": False},
        **{"home_page_in_toc": True, "max_navbar_depth": 1, "search_bar_text": "Search the course"},
    },
    "nb_execution_mode": "off",
    "nb_code_prompt_show": "Show the solution",
    "nb_code_prompt_hide": "Hide the solution",
    "myst_enable_extensions": ["dollarmath", "amsmath"],
    "myst_heading_anchors": 3,
    "suppress_warnings": ["myst.header", "mystnb.unknown_mime_type", "ref.python"],
    "napoleon_use_ivar": True,
    "autodoc_member_order": "bysource",
    "python_maximum_signature_line_length": 80,
    "toc_object_entries_show_parents": "hide",
    "bibtex_bibfiles": ["references.bib"],
    "bibtex_reference_style": "author_year",
}


def build(folder: Path, out: Path) -> list[str]:
    """Run Sphinx on the source files.

    Args:
        folder: holds the sources; its paths are taken out of what is said.
        out: where the pages go; made here.

    Returns:
        Sphinx's warnings, one sentence each.
    """
    from sphinx.application import Sphinx

    heard = io.StringIO()
    app = Sphinx(folder, None, out, folder / ".doctrees", "html", confoverrides=SETTINGS, status=None, warning=heard)
    app.connect("autodoc-process-docstring", tidy_docstring, priority=100)
    app.build()
    for unused in (".buildinfo", "_modules/index.html"):
        (out / unused).unlink(missing_ok=True)
    for path in out.rglob("*.html"):
        path.write_text(polished(path.read_text(encoding="utf-8")), encoding="utf-8")
    coloured = re.sub(r"\x1b\[[0-9;]*m", "", heard.getvalue())
    return [line.replace(f"{folder}/", "") for line in coloured.splitlines() if line.strip()]


def polished(page: str) -> str:
    """A page without what the theme leaves wrong for people who listen to it.

    Args:
        page: HTML.

    Returns:
        HTML: signatures are no broken lists, a table without headings has no row for them, the list of papers has no
        roles that contradict each other, the side bar is a landmark.
    """
    page = SIGNATURE.sub(lambda lines: re.sub("(</?)d[ld]>", r"\1div>", lines[0]), page)
    page = EMPTY_HEAD.sub("", page)
    page = page.replace(' role="doc-biblioentry"', "").replace('<div role="list" class="citation-list">', "<div>")
    bar = 'id="pst-primary-sidebar"'
    return page.replace(f"<div {bar}", f'<div role="complementary" aria-label="Site" {bar}')


def tidy_docstring(app, what: str, name: str, thing, options, lines: list[str]) -> None:
    """Make a docstring, which is plain text with `code` in it, safe for reStructuredText; in place.

    Args:
        app, what, name, thing, options: Sphinx's.
        lines: of the docstring. An indented block between paragraphs is code; what Python says by itself goes.
    """
    made: list[str] = []
    code = False
    for line in lines if not lines[:1] or not lines[0].startswith("Alias for field number") else []:
        indented = line.startswith("    ")
        if indented and made and not made[-1].strip() and not code:
            told = [before for before in made if before.strip()]
            code = not told[-1].startswith(" ")
            made += ["::", ""] if code else []
        code = code and (indented or not line.strip())
        made.append(line if code else rest(line))
    lines[:] = made


def rest(line: str) -> str:
    """A line of plain text with `code` in backticks as reStructuredText.

    Args:
        line: of a docstring.

    Returns:
        Backticks doubled, marks outside of them escaped, and a `Notebook:` line linked to its notebook.
    """
    place = re.fullmatch(r"( *)Notebook: (\w+), section (\d+)\.", line)
    if place and (tools.NOTEBOOKS / f"{place[2]}.ipynb").exists():
        return f"{place[1]}Notebook: :doc:`{place[2]} </notebooks/{place[2]}>`, section {place[3]}."
    said, *pieces = re.split(r"`([^`]+)`", line)
    made = MARKS.sub(r"\\\g<0>", said)
    for code, said in zip(pieces[::2], pieces[1::2], strict=True):
        glued = "\\ " if re.match(r"\w", said) else ""  # `x`s: a backslash parts code from what follows
        made += f"``{code}``{glued}" + MARKS.sub(r"\\\g<0>", said)
    return made


# The check of what was built.


class Tags(HTMLParser):
    """Collects from one page its ids, its links, its fetched addresses and its pictures."""

    def __init__(self):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.pictures: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        has = dict(attributes)
        self.ids.update(value for key in ("id", "name") if (value := has.get(key)) and (key == "id" or tag == "a"))
        if tag in ("a", "area") and has.get("href"):
            self.links.append(has["href"])
        elif tag == "link" and has.get("href") and has.get("rel") not in ("canonical",):
            self.fetched.append(has["href"])
        elif has.get("src"):
            self.fetched.append(has["src"])
        if tag == "img":
            self.pictures.append(has)


def check(out: Path) -> list[str]:
    """Look at every page of a built site.

    Args:
        out: its folder.

    Returns:
        One sentence for each link or anchor that leads nowhere, address that is fetched from elsewhere, picture
        without alt text, and page that is too heavy.
    """
    out = out.absolute()
    pages = {path: tags(path) for path in sorted(out.rglob("*.html")) if "_static" not in path.parts}
    said = []
    for path, seen in pages.items():
        here = path.relative_to(out).as_posix()
        for address in seen.links + seen.fetched:
            said += [f"{here}: {why}" for why in leads(address, path, pages, address in seen.fetched)]
        for picture in seen.pictures:
            if len(picture.get("alt") or "") < 4 and picture.get("role") != "presentation":
                said.append(f"{here}: a picture without alt text, {(picture.get('src') or '')[:60]}")
        if weight(path) > MOST_BYTES:
            said.append(f"{here}: {weight(path) / 1e6:.1f} MB without its explorer, at most {MOST_BYTES / 1e6:.0f}")
    return said


def tags(path: Path) -> Tags:
    """What stands in a page."""
    seen = Tags()
    seen.feed(path.read_text(encoding="utf-8"))
    return seen


def leads(address: str, page: Path, pages: dict[Path, Tags], fetched: bool) -> list[str]:
    """What is wrong with one address.

    Args:
        address: as it stands in the page.
        page: where it stands.
        pages: all of them.
        fetched: whether a browser loads it by itself.

    Returns:
        A sentence, or none.
    """
    parts = urlsplit(address)
    if parts.scheme == "data" or (parts.scheme in ("http", "https", "mailto") and not fetched):
        return []
    if parts.scheme or parts.netloc:
        return [f"{address} is fetched from elsewhere"]
    target = Path(posixpath.normpath(page.parent / unquote(parts.path))) if parts.path else page
    if not target.is_file():
        return [f"{address} leads nowhere"]
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
        return [f"{address}: there is no such anchor"]
    return []


def weight(path: Path) -> int:
    """How many bytes a page has, its explorer left out."""
    return len(EXPLORER.sub("", path.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    sys.exit(main())
