"""The teacher's pages stay true: every notebook has one, what it names exists, minutes add up, answers are right.

`python tests/test_teaching.py` writes the syllabus' tables of needs and of points anew.
"""

import math
import re
import sys
from pathlib import Path

import handout
import notebook_tools as tools
import pytest

FOLDER = tools.NOTEBOOKS / "teaching"
SYLLABUS = FOLDER / "syllabus.md"
HEADINGS = [
    "What it is about",
    "50 minutes",
    "90 minutes",
    "Before class",
    "Questions to ask",
    "Usual misunderstandings",
    "To discuss",
    "Exam questions",
    "If there is time",
]
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("[0-9][0-9]_*.md"))}
NOTEBOOKS = {path.stem: tools.read(path) for path in tools.paths()}
ALL = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
LIST = r"\d+(?:(?:, | and | to )\d+)*"
MENTION = re.compile(rf"(?:[Nn]otebook (\d\d)(?:'s)?,? )?\b([Ss]ection|[Ee]xercise)s? ({LIST})")
CALCULATION = re.compile(r"(-?[\d,]+(?:\.\d+)?)<!--= (.+?)-->")
LINK = re.compile(r"\]\(([^)\s]+)\)")


# What a page is made of


def sections(notebook: dict) -> set[int]:
    return {int(n) for n in re.findall(r"^## (\d+)\.", tools.prose(notebook), re.MULTILINE)}


def exercises(notebook: dict) -> set[int]:
    return {int(n) for n in re.findall(r"^### Exercise (\d+)", tools.prose(notebook), re.MULTILINE)}


def title(notebook: dict) -> str:
    return tools.source(notebook["cells"][0]).splitlines()[0].removeprefix("# ")


def part(page: str, heading: str) -> str:
    """What stands under one heading."""
    return page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def plan(page: str, minutes: int) -> list[list[str]]:
    """The rows of a plan: minutes, section, what to do."""
    lines = [line for line in part(page, f"{minutes} minutes").splitlines() if line.startswith("|")]
    assert lines[0] == "| minutes | section | what to do |"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def numbers(words: str) -> list[int]:
    """Of "1, 2 and 4" or "2 to 5"."""
    found = []
    for one in re.split(r", | and ", words):
        low, _, high = one.partition(" to ")
        found += range(int(low), int(high or low) + 1)
    return found


def strange_mentions(stem: str, page: str) -> list[str]:
    """Sections and exercises that a page names and that no notebook has."""
    by_number = {name[:2]: notebook for name, notebook in NOTEBOOKS.items()}
    said = []
    for number, what, which in MENTION.findall(page):
        notebook = by_number.get(number or stem[:2])
        there = set() if notebook is None else (sections if what.lower() == "section" else exercises)(notebook)
        said += [f"{number or stem[:2]}: {what.lower()} {n}" for n in numbers(which) if n not in there]
    return said


def calculated(expression: str) -> float:
    """What a comment behind a number says, with the functions of `math` and three of our own."""

    def softmax(*logits):
        return [math.exp(x) / sum(map(math.exp, logits)) for x in logits]

    def entropy(*shares):
        return -sum(p * math.log(p) for p in shares)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    def logit(p):
        return math.log(p / (1 - p))

    ours = {"softmax": softmax, "entropy": entropy, "sigmoid": sigmoid, "logit": logit, "round": round}
    return eval(expression, {"__builtins__": {}}, vars(math) | ours)


def wrong_calculations(page: str) -> list[str]:
    said = []
    for printed, expression in CALCULATION.findall(page):
        value, digits = float(printed.replace(",", "")), len(printed.partition(".")[2])
        if abs(calculated(expression) - value) > 0.5 * 10**-digits + 1e-9:
            said.append(f"{printed} stands where {expression} = {calculated(expression):.6g}")
    return said


def broken_links(name: str, page: str) -> list[str]:
    said = []
    for target in LINK.findall(page):
        file, _, anchor = target.partition("#")
        there = (FOLDER / file) if file else FOLDER / name
        if not there.exists():
            said.append(target)
        elif anchor and there.suffix == ".md":
            heads = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            if anchor not in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}:
                said.append(target)
    return said


# The generated tables


def before(notebook: dict) -> str:
    """The row "Before you start", its links as seen from the teacher's folder."""
    row = re.search(r"^\| Before you start \| (.+) \|$", tools.source(notebook["cells"][0]), re.MULTILINE)
    return row[1].replace("](", "](../")


def all_before(stem: str) -> list[str]:
    found = set()
    for needed in re.findall(r"\]\(\.\./(\w+)\.ipynb\)", before(NOTEBOOKS[stem])):
        found |= {needed, *all_before(needed)}
    return sorted(found)


def needs_table() -> str:
    rows = ["| notebook | before you start | all that comes before |", "|---|---|---|"]
    for stem, notebook in NOTEBOOKS.items():
        whole = ", ".join(name[:2] for name in all_before(stem)) or "nothing"
        rows.append(f"| [{stem}](../{stem}.ipynb) | {before(notebook)} | {whole} |")
    return "\n".join(rows)


def points_table() -> str:
    rows = ["| notebook | easy | medium | hard | minutes | points |", "|---|---|---|---|---|---|"]
    whole = [0, 0]
    for stem, notebook in NOTEBOOKS.items():
        asked = handout.exercises(notebook)
        counts = [sum(hard == level for _, hard, _, _ in asked) for level in handout.POINTS]
        sums = [sum(int(minutes) for _, _, minutes, _ in asked), sum(handout.POINTS[hard] for _, hard, _, _ in asked)]
        whole = [a + b for a, b in zip(whole, sums, strict=True)]
        rows.append(f"| {stem} | {' | '.join(map(str, counts))} | {sums[0]} | {sums[1]} |")
    return "\n".join([*rows, f"| all | | | | {whole[0]} | {whole[1]} |"])


def with_tables(text: str) -> str:
    for name, table in (("needs", needs_table()), ("points", points_table())):
        text = re.sub(rf"(<!--{name}-->\n).*?(<!--/{name}-->)", rf"\g<1>{table}\n\g<2>", text, flags=re.DOTALL)
    return text


# The pages


def test_every_notebook_has_its_page_and_no_page_is_left_over():
    assert set(PAGES) == set(NOTEBOOKS)


@pytest.mark.parametrize("stem", PAGES)
def test_a_page_has_its_title_and_all_headings_in_order(stem):
    lines = PAGES[stem].splitlines()
    assert lines[0] == f"# {stem[:2]} {title(NOTEBOOKS[stem])}: for the teacher"
    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == HEADINGS
    assert f"](../{stem}.ipynb)" in PAGES[stem]


@pytest.mark.parametrize("stem", PAGES)
@pytest.mark.parametrize("minutes", [50, 90])
def test_the_minutes_of_a_plan_add_up_and_each_row_says_where(stem, minutes):
    rows = plan(PAGES[stem], minutes)
    assert sum(int(row[0]) for row in rows) == minutes
    assert all(len(row) == 3 and MENTION.fullmatch(row[1]) and row[2] for row in rows)


@pytest.mark.parametrize("stem", PAGES)
def test_sections_and_exercises_that_a_page_names_exist(stem):
    assert strange_mentions(stem, PAGES[stem]) == []
    assert MENTION.search(part(PAGES[stem], "Usual misunderstandings"))


@pytest.mark.parametrize("stem", PAGES)
def test_a_page_asks_and_answers_enough(stem):
    page = PAGES[stem]
    counts = {name: len(re.findall(r"^\d\. ", part(page, name), re.MULTILINE)) for name in HEADINGS[4:6]}
    assert 5 <= counts["Questions to ask"] <= 8 and 4 <= counts["Usual misunderstandings"] <= 6
    assert 3 <= len(re.findall(r"^- ", part(page, "To discuss"), re.MULTILINE)) <= 4
    assert 1 <= len(re.findall(r"^- ", part(page, "If there is time"), re.MULTILINE)) <= 2
    exam = part(page, "Exam questions")
    asked = len(re.findall(r"^\*\*\d\. ", exam, re.MULTILINE))
    folded = re.findall(r"<details><summary>Answer</summary>\n\n(.+?)\n</details>\n", exam, re.DOTALL)
    assert 5 <= asked <= 6 and len(folded) == asked == exam.count("<details>") == exam.count("</details>")
    assert all(len(answer.split()) > 15 for answer in folded)


@pytest.mark.parametrize("name", ALL)
def test_the_numbers_of_answers_are_right(name):
    assert wrong_calculations(ALL[name]) == []


def test_many_answers_are_calculated():
    assert all(len(CALCULATION.findall(page)) >= 3 for page in PAGES.values())


@pytest.mark.parametrize("name", ALL)
def test_links_resolve(name):
    assert broken_links(name, ALL[name]) == []


@pytest.mark.parametrize("name", ALL)
def test_no_measured_number_is_quoted(name):
    """Records belong into notebooks, where a cell holds them; here they would go stale."""
    assert "<!--record:" not in ALL[name] and "<!--claims" not in ALL[name]


# Syllabus and first page


def test_the_syllabus_tables_are_those_of_the_notebooks():
    assert ALL["syllabus.md"] == with_tables(ALL["syllabus.md"]), "`python tests/test_teaching.py` writes them anew"
    for notebook in NOTEBOOKS.values():
        assert before(notebook) in part(ALL["syllabus.md"], "What needs what")


def test_both_courses_hold_every_notebook_after_what_it_needs():
    for heading in ("Three days", "Ten weeks"):
        table = "\n".join(line for line in part(ALL["syllabus.md"], heading).splitlines() if line.startswith("|"))
        order = re.findall(r"\bnotebook (\d\d)\b", table)
        assert sorted(order) == [stem[:2] for stem in NOTEBOOKS]
        for stem in NOTEBOOKS:
            assert all(order.index(name[:2]) < order.index(stem[:2]) for name in all_before(stem))


def test_short_ways_have_all_that_they_need():
    ways = re.findall(rf"\*([^*]+)\* ({LIST})", part(ALL["syllabus.md"], "What needs what").replace("\n", " "))
    assert len(ways) == 3
    for name, way in ways:
        missing = {need[:2] for stem in NOTEBOOKS if stem[:2] in way.split(", ") for need in all_before(stem)}
        assert missing <= set(way.split(", ")), name


def test_exercises_to_hand_in_exist():
    by_number = {stem[:2]: exercises(notebook) for stem, notebook in NOTEBOOKS.items()}
    weeks = part(ALL["syllabus.md"], "Ten weeks").split("**What is graded.**")[0]
    for number, which in re.findall(rf"(\d\d): ({LIST})", weeks):
        assert set(numbers(which)) <= by_number[number]
    for number, *given in re.findall(rf"notebook (\d\d) \| [^|]+\| ({LIST})? ?\| ({LIST})? ?\|", ALL["syllabus.md"]):
        assert set(numbers(", ".join(filter(None, given)))) <= by_number[number]


def test_exercises_in_class_are_those_of_the_plan():
    days = part(ALL["syllabus.md"], "Three days")
    rows = re.findall(rf"notebook (\d\d) \| (\d\d) minutes \| ({LIST})? ?\|", days)
    assert len(rows) == len(PAGES)
    for (number, minutes, given), (stem, page) in zip(rows, PAGES.items(), strict=True):
        assert number == stem[:2]
        named = [MENTION.fullmatch(row[1]) for row in plan(page, int(minutes))]
        planned = sorted(n for found in named if found[2].lower() == "exercise" for n in numbers(found[3]))
        assert planned == (numbers(given) if given else [])


def test_the_first_page_lists_every_page_and_every_explorer():
    for stem, notebook in NOTEBOOKS.items():
        row = next(line for line in ALL["README.md"].splitlines() if f"]({stem}.md)" in line)
        assert title(notebook) in row
        where, now = set(), 0
        for cell in notebook["cells"]:
            found = re.findall(r"^## (\d+)\.", tools.source(cell), re.MULTILINE)
            if cell["cell_type"] == "markdown" and found:
                now = int(found[-1])
            if cell["cell_type"] == "code" and re.search(r"\bExplorer(\.from_\w+)?\(", tools.source(cell)):
                where.add(now)
        assert {int(n) for n in re.findall(r"section (\d+) \|$", row)} == where


# Each rule can speak


def test_a_spoilt_page_is_heard():
    page = PAGES["02_contrastive_matrix"]
    assert strange_mentions("02", page + " See section 99, exercise 9, and notebook 04, sections 3 and 77.") == [
        "02: section 99",
        "02: exercise 9",
        "04: section 77",
    ]
    assert wrong_calculations("0.7<!--= softmax(1,0)[0]--> and 0.74<!--= softmax(1,0)[0]-->") == [
        "0.74 stands where softmax(1,0)[0] = 0.731059"
    ]
    assert broken_links("a.md", "[a](README.md) [b](nowhere.md) [c](syllabus.md#nothing)") == [
        "nowhere.md",
        "syllabus.md#nothing",
    ]
    assert numbers("1, 3 and 5") == [1, 3, 5] and numbers("2 to 4") == [2, 3, 4]


def main() -> int:
    """Write the tables of the syllabus anew."""
    SYLLABUS.write_text(with_tables(Path(SYLLABUS).read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
