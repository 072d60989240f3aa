"""Graduation: `graduate` sees every kind of disagreement; the stored marks agree with the docstrings."""

import json
from dataclasses import replace
from pathlib import Path

import notebook_tools as tools
import pytest
import torch
from torch.nn.functional import cross_entropy

from vlnotes.checks import __main__ as tables
from vlnotes.checks import graduate, graduation, unit_rows
from vlnotes.checks.graduation import Mark, Taught
from vlnotes.contrastive import clip_loss

CLIP = "vlnotes.contrastive.clip_loss"
INPUTS = {
    "image_features": unit_rows(5, 8),
    "text_features": unit_rows(5, 8),
    "temperature": torch.tensor(0.2),
}


def my_clip_loss(image_features, text_features, temperature):
    logits = image_features @ text_features.T / temperature
    rows, columns = logits.log_softmax(1).diagonal(), logits.log_softmax(0).diagonal()
    return -(rows + columns).mean() / 2


def torch_clip_loss(x, y, t):
    own = torch.arange(len(x))
    return (cross_entropy(x @ y.T / t, own) + cross_entropy(y @ x.T / t, own)) / 2


@pytest.fixture
def taught_as(monkeypatch):
    """Put a function into the module under the name `vlnotes.contrastive.toy`, as if it were taught."""

    def put(function):
        function.__doc__ = "A toy.\n\nNotebook: 02_contrastive_matrix, section 9."
        monkeypatch.setattr("vlnotes.contrastive.toy", function, raising=False)
        return "vlnotes.contrastive.toy"

    return put


# graduate


def test_equal_versions_graduate_with_one_friendly_line(capsys):
    graduate(CLIP, my_clip_loss, INPUTS, reference=torch_clip_loss, reference_name="torch cross_entropy")
    line = capsys.readouterr().out
    assert line.startswith(f"graduated: {CLIP} = yours = torch cross_entropy\non 5 random inputs; largest error")
    assert line.count("\n") == 2


def test_inputs_may_be_one_function_of_a_generator(capsys):
    def draw(generator):
        rows = unit_rows(4, 6)
        return {
            "a": rows(generator),
            "b": rows(generator),
            "temperature": torch.rand((), generator=generator) + 0.1,
        }

    def by_position(a, b, temperature):
        return my_clip_loss(a, b, temperature)

    graduate(CLIP, by_position, draw, module=lambda a, b, temperature: clip_loss(a, b, temperature=temperature))
    assert "graduated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda loss, *_: -loss, "part in the value: off by .* at result 0 on random input 1 of 5"),
        (lambda loss, *_: loss + 1e-7, "part in the value"),
        (lambda loss, *_: loss.detach(), "part in the gradient: .* at input image_features"),
        (
            lambda loss, x, y, t: my_clip_loss(x, y.detach(), t),
            "part in the gradient: .* at input text_features",
        ),
        (
            lambda loss, x, y, t: my_clip_loss(x, y, t.detach()),
            "part in the gradient: .* at input temperature",
        ),
        (lambda loss, x, y, t: loss + 1e-3 * (x - x.detach()).sum(), "gradient: .* at input image_features"),
        (lambda loss, *_: loss.expand(2), r"returns the shapes \[\(2,\)\], .* returns \[\(\)\]"),
        (lambda loss, *_: loss * torch.nan, "NaN or infinity"),
        (lambda loss, *_: None, "returns nothing"),
    ],
)
def test_a_version_that_parts_is_caught(spoil, match):
    def spoilt(image_features, text_features, temperature):
        x, y, t = image_features, text_features, temperature
        return spoil(my_clip_loss(x, y, t), x, y, t)

    with pytest.raises(AssertionError, match=match):
        graduate(CLIP, spoilt, INPUTS)
    with pytest.raises(AssertionError, match=match):  # the reference is held to the same
        graduate(CLIP, my_clip_loss, INPUTS, reference=spoilt, reference_name="spoilt")


def test_a_version_wrong_on_some_inputs_only_is_caught():
    def seldom(image_features, text_features, temperature):
        loss = my_clip_loss(image_features, text_features, temperature)
        return loss if image_features[0, 0] > 0 else loss * 1.01

    with pytest.raises(AssertionError, match="random input"):
        graduate(CLIP, seldom, INPUTS, trials=20)


def test_functions_without_a_gradient_say_so(taught_as, capsys):
    name = taught_as(lambda similarity: {"b": similarity.argmax(1), "a": similarity.argmax(0)})

    def mine(similarity):
        return {"a": similarity.argmax(0), "b": similarity.argmax(1)}

    inputs = {"similarity": (4, 4)}
    with pytest.raises(ValueError, match=r"no gradient reaches any of \['similarity'\]; pass gradient=False"):
        graduate(name, mine, inputs)
    graduate(name, mine, inputs, gradient=False)
    assert "no gradient" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="part in the value"):
        graduate(name, lambda s: {"a": s.argmax(1), "b": s.argmax(0)}, inputs, gradient=False)


def test_rounded_results_may_part_by_one_step_and_no_more(taught_as, capsys):
    name = taught_as(lambda x: (100 * x.detach()).round())
    options = {"inputs": {"x": (40,)}, "gradient": False, "rounding": 1}
    graduate(name, lambda x: (100 * x.detach()).floor(), **options)
    assert "largest error in value 0e+00 beyond 1, no gradient" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="part in the value"):
        graduate(name, lambda x: (100 * x.detach()).floor() - 1, **options)
    with pytest.raises(ValueError, match="its results are no multiples of that"):
        graduate(taught_as(lambda x: x.detach() + 0), lambda x: x.detach() + 0, **options)
    assert "| 0e+00 beyond 1 | has none |" in graduation.table(
        [taught()], [mark(value_error=0.0, gradient_error=None, rounding=1)]
    )


def test_drawing_the_inputs_may_call_the_function_itself(taught_as, capsys):
    name = taught_as(lambda x: x.sum())
    graduate(name, lambda x: sum(x), lambda generator: {"x": torch.ones(3) * graduation._find(name)(torch.ones(2))})
    assert "graduated" in capsys.readouterr().out


def test_several_results_are_all_compared(taught_as):
    name = taught_as(lambda x: (x.sum(), (x**2).sum()))
    with pytest.raises(AssertionError, match="at result 1"):
        graduate(name, lambda x: (x.sum(), (x**3).sum()), {"x": (3, 2)})


def test_inputs_are_float64_and_fresh_for_each_version(taught_as, capsys):
    def spoils_its_input(x):
        assert x.dtype == torch.float64
        total = x.detach().clone().sum() + (x - x.detach()).sum()
        x.data.zero_()
        return total

    name = taught_as(spoils_its_input)
    graduate(name, lambda x: x.sum(), {"x": torch.ones(3)})
    assert "graduated" in capsys.readouterr().out


def test_a_class_graduates_through_a_function_that_uses_it(taught_as, capsys):
    class Doubler:
        def __init__(self):
            self.factor = 2

        def apply(self, x):
            return (self.factor * x).sum()

    name = taught_as(Doubler)
    graduate(name, lambda x: (x + x).sum(), {"x": (3,)}, module=lambda x: Doubler().apply(x))
    assert f"graduated: {name} = yours" in capsys.readouterr().out


def test_versions_that_are_not_independent_are_refused():
    with pytest.raises(ValueError, match="yours calls vlnotes.contrastive.clip_loss itself"):
        graduate(CLIP, clip_loss, INPUTS)
    with pytest.raises(ValueError, match="theirs calls .* itself, so their agreement proves nothing"):
        kept = {"reference": lambda x, y, t: clip_loss(x, y, temperature=t), "reference_name": "theirs"}
        graduate(CLIP, my_clip_loss, INPUTS, **kept)
    with pytest.raises(ValueError, match="given as module never calls"):
        graduate(CLIP, my_clip_loss, INPUTS, module=torch_clip_loss)


def test_unit_rows_have_length_one():
    rows = unit_rows(2, 3, 4)(torch.Generator().manual_seed(0))
    assert rows.shape == (2, 3, 4)
    assert torch.allclose(rows.norm(dim=-1), torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("vlnotes.contrastive.no_such_loss", "there is no vlnotes.contrastive.no_such_loss"),
        ("vlnotes.no_such_module.f", "there is no vlnotes.no_such_module"),
        ("no_such_package.f", "there is no module for"),
        ("vlnotes.records.mode", "docstring of vlnotes.records.mode needs one line"),
    ],
)
def test_names_that_lead_nowhere_are_refused(name, match):
    with pytest.raises(ValueError, match=match):
        graduate(name, my_clip_loss, INPUTS)


def test_half_a_reference_is_refused():
    with pytest.raises(ValueError, match="together"):
        graduate(CLIP, my_clip_loss, INPUTS, reference=torch_clip_loss)
    with pytest.raises(ValueError, match="at least one trial"):
        graduate(CLIP, my_clip_loss, INPUTS, trials=0)


def test_results_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match="yours returns str"):
        graduate(CLIP, lambda *_: "a word", INPUTS)


# Docstrings and marks


def taught(**changed):
    return replace(Taught("vlnotes.contrastive.clip_loss", "02_contrastive_matrix", 4, "CLIP, Figure 3"), **changed)


def mark(notebook="02_contrastive_matrix", section=4, **changed):
    payload = {
        "function": "vlnotes.contrastive.clip_loss",
        "reference": "torch cross_entropy",
        "value_error": 2e-16,
        "gradient_error": 3e-16,
        "tolerance": 1e-9,
    }
    return Mark(notebook, section, payload | changed)


HERE = ["02_contrastive_matrix"]


def test_one_mark_in_the_right_place_is_all_that_is_asked():
    assert graduation.complaints([taught()], [mark()], HERE) == []
    assert graduation.complaints([taught()], [mark(gradient_error=None)], HERE) == []
    assert graduation.complaints([taught(notebook="03_moco")], [], HERE) == []  # its notebook is to come


@pytest.mark.parametrize(
    ("found", "match"),
    [
        ([], "has no graduation mark"),
        ([mark(), mark()], "has 2 graduation marks"),
        (
            [mark(notebook="03_moco")],
            "graduates in 03_moco, section 4, its docstring says 02_contrastive_matrix",
        ),
        ([mark(section=5)], "graduates in 02_contrastive_matrix, section 5, its docstring says"),
        ([mark(value_error=1e-3)], "stored value_error 1.0e-03 is above 1e-09"),
        ([mark(gradient_error=1e-3)], "stored gradient_error 1.0e-03 is above"),
        ([mark(value_error=float("nan"))], "stored value_error nan is above"),
        ([mark(tolerance=0.5)], "proves nothing"),
        ([mark(), mark(function="vlnotes.contrastive.other")], "other, whose docstring has no Notebook line"),
    ],
)
def test_every_kind_of_disorder_has_its_sentence(found, match):
    said = graduation.complaints([taught()], found, HERE)
    assert len(said) == 1
    assert match in said[0]


def test_docstrings_are_read_from_the_files(tmp_path):
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "loss.py").write_text(
        """
def f():
    '''One.

    Equation: A paper,
        Figure 3.
    Notebook: 02_matrix, section 4.
    '''
def _g():
    '''Private.

    Notebook: 02_matrix, section 4.
    '''
class Q:
    def push(self):
        '''Three.

        Notebook: 03_moco, section 1.
        '''
def plain():
    '''Teaches nothing.'''
"""
    )
    assert graduation.taught_functions(package) == [
        Taught("pack.loss.f", "02_matrix", 4, "A paper, Figure 3"),
        Taught("pack.loss.Q.push", "03_moco", 1, ""),
    ]
    (package / "bad.py").write_text('def f():\n    """One.\n\n    Notebook: the second one.\n    """\n')
    with pytest.raises(ValueError, match="pack.bad.f needs one line"):
        graduation.taught_functions(package)


def small_notebook(*cells):
    return {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def markdown(text):
    return {"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)}


def marked(payload):
    output = {"output_type": "display_data", "metadata": {}, "data": {graduation.MIME: payload}}
    return {"cell_type": "code", "metadata": {}, "source": ["graduate()"], "outputs": [output]}


def test_marks_are_collected_with_the_section_they_stand_in(tmp_path):
    cells = [markdown("# Title"), marked({"function": "a"}), markdown("## 3. Three\ntext\n### 3.1 More")]
    cells += [marked({"function": "b"}), markdown("## Summary"), marked({"function": "c"})]
    (tmp_path / "02_matrix.ipynb").write_text(json.dumps(small_notebook(*cells)))
    found = [(m.notebook, m.section, m.name) for m in graduation.marks(tmp_path)]
    assert found == [("02_matrix", 0, "a"), ("02_matrix", 3, "b"), ("02_matrix", 3, "c")]


def test_the_table_shows_marks_and_what_is_to_come():
    page = graduation.table([taught(), taught(name="vlnotes.moco.MoCo", notebook="03_moco")], [mark()])
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `vlnotes.contrastive.clip_loss` "
        "| [02_contrastive_matrix, 4](../notebooks/02_contrastive_matrix.ipynb) "
        "| CLIP, Figure 3 | torch cross_entropy | 2e-16 | 3e-16 |",
        "| `vlnotes.moco.MoCo` | 03_moco, 4 | CLIP, Figure 3 | to come |  |  |",
    ]
    assert page.endswith("|\n")
    assert "has none" in graduation.table([taught()], [mark(gradient_error=None)])


# The command that writes the tables


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A small course with one record, quoted once in the README and once in a notebook, both stale."""
    stored = {"a": {"any": {"value": 61.34, "unit": "%", "digits": 1}}}
    (tmp_path / "records.json").write_text(json.dumps(stored))
    monkeypatch.setenv("VLNOTES_RECORDS_FILE", str(tmp_path / "records.json"))
    (tmp_path / "notebooks").mkdir()
    text = "# Ü: <!--record:a-->50 %<!--/-->\nmore"
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    (tmp_path / "notebooks" / "00_a.ipynb").write_text(json.dumps(small_notebook(markdown(text))), encoding="utf-8")
    return tmp_path


def test_the_command_writes_what_is_stale_and_check_fails_before_and_passes_after(course, capsys):
    assert tables.main(["--check", "--course", str(course)]) == 1
    assert not (course / "data").exists()
    assert tables.main(["--course", str(course)]) == 0
    assert "written: README.md" in capsys.readouterr().out
    assert (course / "README.md").read_text(encoding="utf-8") == "# Ü: <!--record:a-->61.3 %<!--/-->\nmore"
    cell = json.loads((course / "notebooks" / "00_a.ipynb").read_text(encoding="utf-8"))["cells"][0]
    assert cell["source"] == ["# Ü: <!--record:a-->61.3 %<!--/-->\n", "more"]
    assert tables.main(["--check", "--course", str(course)]) == 0
    (course / "data" / "graduation.md").write_text("by hand")
    assert tables.main(["--check", "--course", str(course)]) == 1


def test_the_command_names_a_quote_that_leads_nowhere(course, capsys):
    (course / "README.md").write_text("<!--record:b-->1<!--/-->", encoding="utf-8")
    assert tables.main(["--course", str(course)]) == 1
    assert "no record named 'b'" in capsys.readouterr().out


def test_the_table_of_claims_goes_between_its_marks():
    text = tables.rewrite_claims("a\n<!--claims:M-->\nyesterday\n<!--/claims-->\nb")
    assert text.startswith("a\n<!--claims:M-->\n| claim |") and text.endswith("<!--/claims-->\nb")
    assert "| M1 |" in text and "yesterday" not in text
    assert tables.rewrite_claims(text) == text
    with pytest.raises(ValueError, match="no claim begins with 'Q'"):
        tables.rewrite_claims("<!--claims:Q-->\n<!--/claims-->")


# The course itself


def test_every_taught_function_graduates_once_and_where_its_docstring_says():
    found = graduation.marks(tools.NOTEBOOKS)
    said = graduation.complaints(graduation.taught_functions(), found, [p.stem for p in tools.paths()])
    assert not said, "\n".join(said)


def test_the_generated_files_are_up_to_date():
    stale = [
        path.relative_to(tools.COURSE).as_posix()
        for path, content in tables.generated(tools.COURSE).items()
        if not path.exists() or path.read_bytes() != content
    ]
    assert not stale, f"`make tables` writes these anew: {', '.join(stale)}"


def test_the_module_and_the_files_agree_on_what_is_taught():
    """The names read from the files can be imported, and their docstrings say the same at run time."""
    for function in graduation.taught_functions():
        docstring = graduation._find(function.name).__doc__
        assert f"Notebook: {function.notebook}, section {function.section}." in docstring
    assert Path(graduation.__file__).parents[1].name == "vlnotes"
