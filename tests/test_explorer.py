"""The explorer, Python's side: what it refuses, how few bytes keep how much, and what stands in its page."""

import base64
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlnotes import plots
from vlnotes.explorer import Explorer, encoding, pages
from vlnotes.world import World, holds, pairs


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def opened(text: str) -> tuple[dict, dict[str, np.ndarray], bytes]:
    """What a page holds: its description, its arrays, all bytes."""
    about = json.loads(re.search(r'id="vx-about">(.*?)</script>', text, re.S)[1])
    raw = zlib.decompress(base64.b64decode(re.search(r'id="vx-bytes">(.*?)</script>', text, re.S)[1]))
    kinds = {"u1": np.uint8, "u2": "<u2"}
    arrays = {name: np.frombuffer(raw, kinds[k], length, at) for name, (k, at, length) in about["arrays"].items()}
    return about, arrays, raw


def saved(explorer: Explorer, tmp_path) -> str:
    return explorer.save(tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("bits", [8, 16])
def test_values_come_back_within_half_a_quantisation_step(bits, tmp_path):
    values = random(3, 7, 5)
    about, arrays, _ = opened(saved(Explorer(values, bits=bits), tmp_path))
    step = (about["high"] - about["low"]) / about["top"]
    back = about["low"] + arrays["model0"].reshape(3, 7, 5) * step
    assert about["top"] == 2**bits - 1 and step == pytest.approx(np.ptp(values) / (2**bits - 1))
    assert np.abs(back - values).max() <= step / 2 + 1e-6
    assert arrays["model0"].min() == 0 and arrays["model0"].max() == 2**bits - 1
    assert 10.0 ** -about["digits"] >= step / 2  # the readout promises no digit that is not kept
    assert about["digits"] == (2 if bits == 8 else 3)


def test_small_matrices_are_kept_fine_and_large_ones_in_a_byte():
    assert Explorer(random(16, 128, 128))._bits == 16
    assert Explorer(random(3, 512, 512))._bits == 8


def test_a_constant_matrix_and_a_single_cell(tmp_path):
    for values in (np.full((3, 4), 0.25), np.array([[0.25]])):
        about, arrays, _ = opened(saved(Explorer(values), tmp_path))
        assert about["low"] == about["high"] == 0.25 and about["top"] == 0 and not arrays["model0"].any()


def test_tensors_lists_and_pil_pictures_are_taken(tmp_path):
    values = torch.rand(4, 4, requires_grad=True)
    images = [Image.new("L", (300, 200), 40 * i) for i in range(4)]
    about, _, raw = opened(saved(Explorer(values.bfloat16(), images, list("abcd")), tmp_path))
    assert about["captions"] == ["a", "b", "c", "d"] and len(about["pictures"]) == 4
    offset, length, _ = about["pictures"][2]
    assert raw[offset : offset + 3] == b"\xff\xd8\xff" and length <= encoding.PICTURE_BYTES
    Explorer([[0.1, 0.2], [0.3, 0.4]])
    Explorer([random(2, 3), random(2, 3)])


def test_a_picture_takes_six_kilobytes_of_the_page_at_most(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (5, 3, 96, 96), dtype=np.uint8)  # the hardest to compress
    values = random(5, 5)
    with_pictures = len(saved(Explorer(values, noise), tmp_path))
    without = len(saved(Explorer(values), tmp_path))
    assert (with_pictures - without) / 5 <= 6144


def test_a_page_of_128_by_128_by_16_steps_is_small(tmp_path):
    explorer = Explorer(random(16, 128, 128), truth=random(128, 128) > 0.9)  # noise: nothing to compress
    assert len(saved(explorer, tmp_path).encode()) < 1.5e6


def test_the_page_names_no_address_and_captions_are_data(tmp_path):
    evil = '</script><script>window.hurt = 1</script> see http://example.org & "<b>"'
    explorer = Explorer(random(3, 3), captions=[evil, "HTTPS too", "plain"], title="http <i>", rows=[evil, "b", "c"])
    text = saved(explorer, tmp_path)
    assert "http" not in text.lower()
    assert text.count("<script") == 3 and text.count("</script>") == 3
    about = re.search(r'id="vx-about">(.*?)</script>', text, re.S)[1]
    assert "<" not in about and "\\u003c/script>" in about
    assert json.loads(about)["captions"][0] == evil
    for fetched in ("src=", "href", "url(", "@import", "import("):
        rest = text.replace('src="data:image/png;base64,', "")
        assert fetched not in rest, fetched


def test_base64_never_spells_an_address():
    assert pages.letters(base64.b64decode("http" * 5)) == "ht tp" * 5
    assert base64.b64decode(pages.letters(base64.b64decode("aHTTPb==")))


def test_scripts_off_leaves_a_still_picture_with_its_alt_text(tmp_path):
    values = np.array([[0.9, 0.1], [0.3, 0.5]])
    text = saved(Explorer(values), tmp_path)
    image = re.search(r"<noscript>(.*?)</noscript>", text, re.S)[1]
    assert "mean of the own pairs 0.70, of all others 0.20" in image
    picture = base64.b64decode(re.search(r"base64,([^\"]+)", image)[1])
    assert picture.startswith(b"\x89PNG") and len(picture) < 20_000


def test_a_notebook_stores_the_page_and_no_widget_state():
    explorer = Explorer(random(3, 3))
    bundle = explorer._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"} and bundle["text/plain"] == "Explorer(3 pictures x 3 captions)"
    assert re.match(r'<div><img alt="[^"]+" [^>]+><iframe [^>]*srcdoc="&lt;!doctype html', bundle["text/html"])
    assert explorer.widget.key in bundle["text/html"]
    assert "http" not in bundle["text/html"].lower()


def test_the_selection_goes_both_ways_and_stays_inside():
    explorer = Explorer(random(3, 5))
    heard = []
    explorer.observe(lambda change: heard.append(change["new"]), names="selected")
    assert explorer.selected is None
    explorer.selected = [2, 4]
    explorer.widget.set_state({"selected": [0, 1]})  # what a click sends
    assert explorer.selected == (0, 1) and heard == [(2, 4), (0, 1)]
    for wrong in ((3, 0), (0, 5), (-1, 0), (1,), "ab"):
        with pytest.raises(ValueError, match="selected: expected"):
            explorer.selected = wrong
    explorer.selected = None
    assert heard[-1] is None


def test_features_are_normalised(tmp_path):
    images, texts = torch.randn(4, 8) * 5, torch.randn(6, 8)
    explorer = Explorer.from_features(images, texts, captions=list("abcdef"))
    expected = torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1)
    assert explorer.shape == (1, 4, 6)
    np.testing.assert_allclose(explorer._models[0][0], expected, atol=1e-6)
    assert Explorer.from_features(random(3, 4, 8), random(3, 6, 8)).shape == (3, 4, 6)
    with pytest.raises(ValueError, match="has length 0"):
        Explorer.from_features(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 4\)"):
        Explorer.from_features(torch.ones(2, 3), torch.ones(2, 4))


def test_what_the_world_says_is_kept_with_what_nobody_knows(tmp_path):
    some = pairs(World().scenes(6), kinds=("full", "generic"))
    explorer = Explorer.from_pairs(random(6, 12), some)
    about, arrays, _ = opened(saved(explorer, tmp_path))
    code = {True: 1, False: 0, None: 2}
    expected = [[code[holds(s, c.predicate)] for c in some.captions] for s in some.scenes]
    assert arrays["truth"].reshape(6, 12).tolist() == expected
    own = arrays["overlay0"].reshape(6, 12)
    assert np.argwhere(own.T)[:, 1].tolist() == some.text_to_image.tolist()
    names = [layer["name"] for layer in about["overlays"]]
    assert names == ["own pairs", "true, but of another picture"]
    assert "by first colour" in [order["name"] for order in about["orders"]]
    mixed = encoding.truth_codes([[True, None], [False, True]], (2, 2))
    assert mixed.tolist() == [[1, 2], [0, 1]]
    assert encoding.truth_codes(np.array([[1.0, np.nan], [0, -1]]), (2, 2)).tolist() == [[1, 2], [0, 2]]


def test_orders_are_permutations_and_keep_pairs_together(tmp_path):
    values = random(6, 6)
    explorer = Explorer(
        values,
        row_attributes={"colour": ["red", "blue", "red", "blue", None, "red"], "size": [3, 10, 2, 1, 5, 4]},
        column_attributes={"length": [2, 1, 3, 5, 4, 0]},
    )
    about, arrays, _ = opened(saved(explorer, tmp_path))
    names = [order["name"] for order in about["orders"]]
    assert names == ["as given", "by cluster", "by cosine of the own pair", "by colour", "by size", "by length"]
    for k in range(6):
        assert sorted(arrays[f"rows{k}"]) == sorted(arrays[f"columns{k}"]) == list(range(6))
    for k in (0, 1, 2, 3, 4):  # captions follow their own pictures
        assert arrays[f"rows{k}"].tolist() == arrays[f"columns{k}"].tolist()
    assert arrays["rows3"].tolist() == [1, 3, 0, 2, 5, 4]  # None comes last
    assert about["orders"][3]["rowGroups"] == [[0, "blue"], [2, "red"], [5, ""]]
    assert arrays["rows4"].tolist() == [3, 2, 0, 5, 4, 1]  # numbers as numbers
    assert arrays["columns5"].tolist() == [5, 1, 0, 2, 4, 3] and arrays["rows5"].tolist() == list(range(6))
    assert np.all(np.diff(np.diag(values)[arrays["rows2"]]) <= 0)


def test_clusters_stand_together():
    rng = np.random.default_rng(0)
    kind = rng.permutation(np.repeat([0, 1, 2], 8))
    values = (kind[:, None] == kind[None]) + 0.1 * rng.normal(size=(24, 24))
    rows = encoding.orders(values, {}, {}, np.arange(24))[1]["rows"]
    assert (np.diff(kind[rows]) != 0).sum() == 2  # three runs


def test_captions_of_one_picture_follow_it(tmp_path):
    owner = torch.tensor([0, 0, 1, 1, 2, -1])
    explorer = Explorer(random(3, 6), text_to_image=owner, row_attributes={"age": [2, 1, 0]})
    _, arrays, _ = opened(saved(explorer, tmp_path))
    assert arrays["rows3"].tolist() == [2, 1, 0] and arrays["columns3"].tolist() == [4, 2, 3, 0, 1, 5]


def test_overlays_of_both_kinds(tmp_path):
    plan = np.array([[0.5, 0.0], [0.125, 0.375]])
    marks = np.zeros((3, 2, 2), bool)
    marks[1, 0, 1] = True
    about, arrays, _ = opened(saved(Explorer(random(3, 2, 2), overlays={"plan": plan, "kept": marks}), tmp_path))
    layers = {layer["name"]: (layer, arrays[f"overlay{k}"]) for k, layer in enumerate(about["overlays"])}
    assert list(layers) == ["own pairs", "plan", "kept"]
    layer, codes = layers["plan"]
    assert layer["kind"] == "real" and not layer["steps"]
    np.testing.assert_allclose(codes.reshape(2, 2) / 65535 * layer["high"], plan, atol=1e-5)
    assert layers["kept"][0]["steps"] and layers["kept"][1].reshape(3, 2, 2).astype(bool).tolist() == marks.tolist()


def test_the_colours_are_matplotlibs(tmp_path):
    import matplotlib

    _, arrays, _ = opened(saved(Explorer(random(2, 2)), tmp_path))
    for name, kind in (("colours", plots.COSINES), ("signed", plots.SIGNED)):
        expected = (matplotlib.colormaps[kind](np.linspace(0, 1, 256))[:, :3] * 255).round()
        assert np.abs(arrays[name].reshape(256, 3) - expected).max() <= 1
    css = pages.source("explorer.css")
    assert plots.PAPER in css and plots.INK in css


BAD = [
    (
        lambda x: dict(similarity=np.where(x > 2, x, np.nan)),
        "16 of 16 numbers are NaN or infinite, the first at step 0, row 0",
    ),
    (lambda x: dict(similarity=np.where(x == x.max(), np.inf, x)), "1 of 16 numbers are NaN or infinite"),
    (lambda x: dict(similarity=x[0]), r"expected shape \(N, M\) or \(steps, N, M\)"),
    (lambda x: dict(similarity=x[:0]), "not empty"),
    (lambda x: dict(similarity=np.zeros((1025, 2))), "at most 1,024 rows and columns"),
    (lambda x: dict(similarity=[x, x[:3], x[:, :2]]), "must have one shape"),
    (lambda x: dict(similarity=[[1.0, 2.0], [3.0]]), "unequal length"),
    (lambda x: dict(similarity=np.zeros((40, 1024, 1024), np.float32)), "show fewer steps"),
    (lambda x: dict(similarity=x, captions=["a"]), "captions: expected 4, as many as columns, got 1"),
    (lambda x: dict(similarity=x, rows=["a"]), "rows: expected 4"),
    (lambda x: dict(similarity=x, steps=["a", "b"]), "steps: expected 1"),
    (lambda x: dict(similarity=x, pictures=np.zeros((3, 3, 8, 8), np.uint8)), "pictures: expected 4, one for each row"),
    (lambda x: dict(similarity=x, pictures=np.zeros((4, 3, 8, 8))), "pictures: expected uint8"),
    (lambda x: dict(similarity=x, compare=x[:3]), r"compare: expected \(steps, N, M\) = \(1, 4, 4\)"),
    (lambda x: dict(similarity=x, compare=x * np.nan), "compare: 16 of 16"),
    (lambda x: dict(similarity=x, compare=x, names=("a",)), "names: expected two names"),
    (lambda x: dict(similarity=x, called=("query",)), "called: expected two words"),
    (lambda x: dict(similarity=x, overlays={"o": x[:2]}), r"overlay 'o': expected shape \(4, 4\)"),
    (lambda x: dict(similarity=x, overlays={"o": x * np.nan}), "overlay 'o': 16 of 16"),
    (lambda x: dict(similarity=x, truth=x[:2] > 0), r"truth: expected shape \(4, 4\)"),
    (lambda x: dict(similarity=x, truth=x), "truth: expected True, False, and None"),
    (lambda x: dict(similarity=x, text_to_image=[0, 1, 2, 4]), "expected rows 0 to 3, or -1"),
    (lambda x: dict(similarity=x, text_to_image=[0, 1]), "expected 4 whole numbers"),
    (lambda x: dict(similarity=x, row_attributes={"a": [1]}), r"row_attributes\['a'\]: expected 4"),
    (lambda x: dict(similarity=x, temperature=0), "temperature: expected a number from 0.005 to 2"),
    (lambda x: dict(similarity=x, bits=12), "bits: expected 8, 16 or None"),
]


@pytest.mark.parametrize("given, said", BAD, ids=[said[:40] for _, said in BAD])
def test_bad_input_is_refused_in_words(given, said):
    with pytest.raises(ValueError, match=said):
        Explorer(**given(random(4, 4)))


def test_wrong_kinds_are_refused():
    for options, said in (
        (dict(captions="abcd"), "got one text"),
        (dict(captions=[1, 2, 3, 4]), "expected texts, got int"),
        (dict(pictures=["a.png"] * 4), "got str"),
        (dict(temperature="warm"), "got str"),
    ):
        with pytest.raises(TypeError, match=said):
            Explorer(random(4, 4), **options)
    with pytest.raises(TypeError, match="expected numbers"):
        Explorer(np.array([["a", "b"]]))


def test_the_readmes_picture_is_there_small_and_described():
    root = Path(__file__).parent.parent
    [(alt, file)] = re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", (root / "README.md").read_text(encoding="utf-8"))
    assert re.search(r"\d", alt) and len(alt.split()) > 8
    assert (root / file).stat().st_size < 400_000 and min(Image.open(root / file).size) >= 800


def test_saving_needs_no_widget_library(tmp_path):
    script = f"""
import sys
from vlnotes.explorer import Explorer
Explorer([[0.1, 0.2], [0.3, 0.4]]).save({str(tmp_path / "page.html")!r})
assert not {{"anywidget", "ipywidgets"}} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
