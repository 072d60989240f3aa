"""The site: its pages are made of the course itself, its links are rewritten, and its check can fail."""

import contextlib
import importlib.util
import io
import os
import shutil

import build_site
import notebook_tools as tools
import pytest
from test_explorer_browser import BROWSERS, FLAGS

from vlnotes import claims

NOTEBOOKS = {path.stem: tools.read(path) for path in tools.paths()}
SPHINX = ("sphinx", "myst_nb", "sphinx_book_theme", "sphinxcontrib.bibtex", "sphinx-mathjax-offline")
KINDS = (
    *("index", "notebooks/03_moco", "papers/albef", "claims", "data/graduation", "notation", "glossary"),
    *("references", "api", "api/transport", "_modules/vlnotes/momentum", "search"),
)
GOOD = '<h1 id="top">A page</h1><a href="other.html#here">on</a><img src="a.png" alt="A matrix of 4 by 4">'


@pytest.fixture(scope="module")
def sources() -> dict[str, str | bytes]:
    return build_site.sources()


@pytest.fixture
def site(tmp_path):
    """A small site in which all is well."""
    for name, text in {"index.html": GOOD, "other.html": '<p id="here">here</p>', "a.png": "png"}.items():
        (tmp_path / name).write_text(text)
    assert build_site.check(tmp_path) == []
    return tmp_path


def installed(name: str) -> bool:
    return bool(importlib.util.find_spec(name.split(".")[0])) and bool(importlib.util.find_spec(name))


def test_every_notebook_paper_and_module_has_a_page_and_a_place_in_the_contents(sources):
    wanted = [f"notebooks/{name}" for name in NOTEBOOKS] + [f"papers/{name}" for name in build_site.PAPERS]
    wanted += [f"api/{name}" for name in ("moco", "world", "claims", "explorer", "xclip")]
    for page in wanted:
        assert f"{page}.ipynb" in sources or f"{page}.md" in sources
        assert page in sources["index.md"]
    for path in (tools.NOTEBOOKS / "teaching").glob("*.md"):
        assert f"notebooks/teaching/{path.name}" in sources
        assert path.stem == "README" or f"\n{path.stem}\n" in sources["notebooks/teaching/README.md"]
    assert not any(path.startswith("api/_") for path in sources)
    everywhere = {number for paper in build_site.PAPERS.values() for number in paper.numbers}
    assert {name[:2] for name in NOTEBOOKS} - everywhere == {"00", "01", "02"}, "a notebook that no paper's page lists"


@pytest.mark.parametrize("name", build_site.PAPERS)
def test_a_papers_page_says_what_the_notebooks_and_the_claims_say(name, sources):
    page, paper = sources[f"papers/{name}.md"], build_site.PAPERS[name]
    for heading in ("Key equations", "Where the code is", "The notebooks", "What became of its claims"):
        assert f"\n## {heading}\n" in page
    mine = [claim for claim in claims.CLAIMS if claim.id.startswith(paper.letter)]
    assert all(f"| {claim.id} | {claim.statement} |" in page for claim in mine)
    assert bool(mine) != ("still to come" in page)
    assert "**holds**" in page or not mine
    for stem, notebook in NOTEBOOKS.items():
        if stem[:2] in paper.numbers:
            told = build_site.section(notebook, build_site.DISAGREE)
            assert told and told.splitlines()[0] in page, f"{stem} says nothing about where the sources disagree"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_keeps_its_cells_and_its_figures_keep_their_alt_text(name, sources):
    whole, made = NOTEBOOKS[name], tools.json.loads(sources[f"notebooks/{name}.ipynb"])
    assert [cell["id"] for cell in made["cells"]] == [cell["id"] for cell in whole["cells"]]
    text = "".join(tools.output_text(output) for _, output in tools.outputs(made))
    figures = [output for _, output in tools.outputs(whole) if "image/png" in output.get("data", {})]
    assert text.count('<img class="figure"') == len(figures)
    assert len([path for path in sources if path.startswith(f"extra/figures/{name}-")]) == len(figures)
    for output in figures:
        assert build_site.html.escape(output["metadata"]["image/png"]["alt"]) in text
    assert text.count("<iframe") == sum(tools.output_text(o).count("<iframe") for _, o in tools.outputs(whole))
    assert "vlnotes/datasets.py" not in tools.prose(made)


def test_links_follow_the_text_to_its_place():
    text = "[a](03_moco.ipynb#b), [b](../vlnotes/datasets.py), [c](../vlnotes/world/scenes.py), [d](../data/a.png)"
    assert build_site.relink(text, "notebooks", "papers") == (
        "[a](../notebooks/03_moco.ipynb#b), [b](../api/datasets.md), [c](../api/world.md), [d](../data/a.png)"
    )
    for same in ("[a](03_moco.ipynb)", "[a](https://example.org/a.py)", "[a](#here)", "f[0](x) ", "$p(a)$"):
        assert build_site.relink(same, "notebooks", "notebooks") == same


def test_a_section_is_found_by_its_heading_alone():
    texts = ("# T\n## 1. A\na\n### Aa\nb", "## 2. B\nc", "d")
    notebook = {"cells": [{"cell_type": "markdown", "source": text} for text in texts]}
    assert build_site.section(notebook, "A") == "a\n### Aa\nb"
    assert build_site.section(notebook, "B") == "c\n\nd"
    assert build_site.section(notebook, "C") == ""


def test_a_reference_that_the_bibliography_lacks_is_refused(sources):
    bibliography = sources["references.bib"]
    assert "he2020moco" in build_site.citations(NOTEBOOKS, bibliography)
    with pytest.raises(ValueError, match="03_moco cites 'Momentum Contrast"):
        build_site.citations(NOTEBOOKS, bibliography.replace("Momentum Contrast for", "A Contrast for"))


def test_the_page_of_claims_explains_them_as_the_readme_does(sources):
    page = sources["claims.md"]
    assert page.startswith("# What became of the papers' claims\n\nA claim is a comparison")
    assert all(f"\n| {claim.id} | {claim.statement} |" in page for claim in claims.CLAIMS)
    with pytest.raises(ValueError, match=r"README\.md has no section"):
        build_site.claims_page("# vlnotes", "")


def test_docstrings_become_safe_text():
    assert build_site.rest("|x| of *args, foo_ and `foo_`s") == r"\|x\| of \*args, foo\_ and ``foo_``\ s"
    assert build_site.rest("`a` then `b`, `c`") == "``a`` then ``b``, ``c``"
    assert build_site.rest("dim: D.") == r"dim: D\."
    assert build_site.rest("Notebook: 03_moco, section 4.").startswith("Notebook: :doc:`03_moco </notebooks/03_moco>`")
    assert build_site.rest("Notebook: 99_none, section 4.") == r"Notebook: 99_none, section 4\."
    lines = ["So:", "", "    a = b * c", "", "Args:", "    x: a *", "", "    y: b"]
    build_site.tidy_docstring(None, "", "", None, None, lines)
    assert lines == ["So:", "", "::", "", "    a = b * c", "", "Args:", r"    x: a \*", "", "    y: b"]
    alias = ["Alias for field number 0"]
    build_site.tidy_docstring(None, "", "", None, None, alias)
    assert alias == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("other.html#here", "lost.html", "lost.html leads nowhere"),
        ("other.html#here", "other.html#there", "other.html#there: there is no such anchor"),
        ("other.html#here", "#bottom", "#bottom: there is no such anchor"),
        ('src="a.png"', 'src="b.png"', "b.png leads nowhere"),
        ('src="a.png"', 'src="https://example.org/a.png"', "https://example.org/a.png is fetched from elsewhere"),
        ('alt="A matrix of 4 by 4"', 'alt=""', "a picture without alt text"),
        ("<h1", '<script src="//example.org/a.js"></script><h1', "//example.org/a.js is fetched from elsewhere"),
        ("<h1", f"{'x' * 2_000_001}<h1", "2.0 MB without its explorer"),
    ],
)
def test_the_check_says_what_is_wrong(site, old, new, said):
    (site / "index.html").write_text(GOOD.replace(old, new))
    found = build_site.check(site)
    assert len(found) == 1 and found[0].startswith("index.html: ") and said in found[0]


def test_the_check_lets_pass_what_is_right(site):
    explorer = f"<iframe data-vlnotes='x' srcdoc='{'x' * 2_000_001}'></iframe>"
    more = '<a href="https://example.org">elsewhere</a><a href="#top">up</a>'
    (site / "index.html").write_text(GOOD + explorer + more)
    assert build_site.check(site) == []


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert build_site.main(["--out", str(tmp_path)]) == 1
    assert "something else than a site" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_pages_are_polished_for_those_who_listen():
    signature = '<dl>\n<dd><em class="sig-param">a</em>,</dd>\n<dd><em class="sig-param">b</em>,</dd>\n</dl>'
    assert build_site.polished(signature).count("<div>") == 3
    fields = "<dl>\n<dt>a</dt>\n<dd>b</dd>\n</dl>"
    assert build_site.polished(fields) == fields
    empty = '<th class="head"><p></p></th>\n'
    head = f'<thead>\n<tr class="row-odd">{empty}{empty.replace("<p>", "<p>{}")}</tr>\n</thead>'
    assert build_site.polished(head.format("")) == ""
    assert build_site.polished(head.format("a")) == head.format("a")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    if not all(map(installed, SPHINX)):
        pytest.skip("the extra 'site' is not installed; `make site` brings it")
    out, said = tmp_path_factory.mktemp("course") / "site", io.StringIO()
    with contextlib.redirect_stderr(said):
        code = build_site.main(["--out", str(out)])
    assert code == 0, said.getvalue()
    return out


def test_the_built_site_has_explorers_folded_solutions_and_a_search(built):
    for name, notebook in NOTEBOOKS.items():
        page = (built / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
        explorers = sum(tools.output_text(output).count("data-vlnotes=") for _, output in tools.outputs(notebook))
        assert page.count("data-vlnotes=") == explorers
        assert page.count("Show the solution") == len(tools.exercise_units(notebook))
    assert (built / "searchindex.js").exists()
    assert not list(built.rglob("*.ipynb"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(built, theme):
    """One page of each kind, in a browser without a network."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if os.environ.get("VLNOTES_NO_BROWSER") == "1" or found is None:
        pytest.skip("no Chromium here, or VLNOTES_NO_BROWSER=1")
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    said = []
    with sync_playwright() as tool:
        opened = tool.chromium.launch(executable_path=found, headless=True, args=FLAGS)
        context = opened.new_context(viewport={"width": 1200, "height": 900}, color_scheme=theme, offline=True)
        page = context.new_page()
        page.on("request", lambda r: r.url.startswith(("file:", "blob:", "data:")) or said.append(r.url))
        for name in KINDS:
            page.goto((built / f"{name}.html").as_uri())
            page.wait_for_load_state("load")
            problems = Axe().run(page).response["violations"]
            said += [f"{name}: {one['id']}" for one in problems if one["impact"] in ("serious", "critical")]
        opened.close()
    assert said == []
