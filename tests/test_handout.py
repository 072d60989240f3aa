"""The student edition and the answer key come from the course's own notebooks, and say so if they cannot."""

import contextlib
import copy
import io

import handout
import nbformat
import notebook_tools as tools
import pytest

from vlnotes import checks

NOTEBOOKS = {path.stem: tools.read(path) for path in tools.paths()}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_student_edition_is_the_notebook_without_its_solutions(name):
    whole, made = NOTEBOOKS[name], handout.student(NOTEBOOKS[name])
    nbformat.validate(nbformat.from_dict(made))
    kept = iter(made["cells"])
    for cell in whole["cells"]:
        if "solution" not in tools.tags(cell):
            mine = copy.deepcopy(next(kept))
            assert ("nbgrader" in mine["metadata"]) == ("exercise" in tools.tags(cell))
            mine["metadata"].pop("nbgrader", None)
            assert mine == cell
    assert next(kept, None) is None
    for unit in tools.exercise_units(whole):
        solved = next(tools.source(cell) for cell in unit if "solution" in tools.tags(cell)).splitlines()
        body = {line.strip() for line in solved[1:-1] if line.strip()}
        for cell in tools.code_cells(made):
            told = {line.strip() for line in tools.source(cell).splitlines()}
            assert not body <= told, f"the cell {cell['id']} is the solution of {solved[0]}"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_answer_key_has_every_exercise_and_its_answers_are_right(name):
    made = handout.answers(NOTEBOOKS[name])
    nbformat.validate(nbformat.from_dict(made))
    asked = handout.exercises(NOTEBOOKS[name])
    assert 3 <= len(asked) == (len(made["cells"]) - 2) / 3
    space, heard = {}, io.StringIO()
    with contextlib.redirect_stdout(heard):
        for cell in made["cells"]:
            if cell["cell_type"] == "code":
                exec(tools.source(cell), space)
    said = heard.getvalue()
    text = tools.prose(made)
    for heading, hard, minutes, check in asked:
        assert f"{check}: right." in said and heading in text and hard in handout.POINTS and int(minutes) > 0
        for wrong in getattr(checks, check).wrong:
            assert " ".join(wrong.__doc__.split()) in text


def test_both_are_written_for_those_that_are_asked_for(tmp_path, capsys):
    assert handout.main(["03", "--out", str(tmp_path)]) == 0
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.ipynb")) == [
        "answers/03_moco.ipynb",
        "student/03_moco.ipynb",
    ]
    assert "5 exercises" in capsys.readouterr().out
    assert handout.main(["99", "--out", str(tmp_path)]) == 1


def test_points_follow_the_difficulty_and_a_heading_without_one_is_refused():
    notebook = copy.deepcopy(NOTEBOOKS["03_moco"])
    graded = [c["metadata"]["nbgrader"] for c in handout.student(notebook)["cells"] if "exercise" in tools.tags(c)]
    expected = [handout.POINTS[hard] for _, hard, _, _ in handout.exercises(notebook)]
    assert [one["points"] for one in graded] == expected and len({one["grade_id"] for one in graded}) == len(graded)
    for cell in notebook["cells"]:
        if "### Exercise 1" in tools.source(cell):
            cell["source"] = tools.source(cell).replace("(easy,", "(trivial,")
    with pytest.raises(ValueError, match="easy, medium, hard"):
        handout.exercises(notebook)
