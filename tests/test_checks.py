"""Exercise checks: every known wrong answer is caught and named, the solution passes, nothing ever raises."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from vlnotes import albef, checks, disorder, gradcam, metrics, world
from vlnotes.checks import exercises

EXERCISES = [e for e in (getattr(checks, name) for name in checks.__all__) if isinstance(e, checks.Exercise)]
KNOWN_WRONG = [(e, wrong) for e in EXERCISES for wrong in e.wrong]


def ids(value):
    return getattr(value, "name", None) or value.__name__


def all_cases(exercise):
    return [*exercise.cases(torch.Generator().manual_seed(0)), exercise.by_hand]


@pytest.mark.parametrize("exercise", EXERCISES, ids=ids)
def test_the_solution_passes(exercise):
    verdict = exercise.judge(exercise.solution)
    assert verdict.kind == "right"
    assert exercise.see_next in verdict.text


@pytest.mark.parametrize(("exercise", "wrong"), KNOWN_WRONG, ids=ids)
def test_every_known_wrong_answer_is_caught_and_named(exercise, wrong):
    verdict = exercise.judge(wrong)
    assert (verdict.kind, verdict.mistake) == ("wrong", wrong.__name__)
    assert " ".join(wrong.__doc__.split()) in verdict.text


@pytest.mark.parametrize("exercise", EXERCISES, ids=ids)
def test_the_known_answers_are_three_to_six_and_told_apart_with_room_to_spare(exercise):
    assert 3 <= len(exercise.wrong) <= 6
    sentences = [wrong.__doc__ for wrong in exercise.wrong]
    assert len(set(sentences)) == len(sentences)
    for one, other in itertools.combinations([exercise.solution, *exercise.wrong], 2):
        gap = 0.0
        for case in all_cases(exercise):
            a, b = (exercises._outcome(f, case, exercise.gradient).value for f in (one, other))
            gap = max(gap, math.inf if a.shape != b.shape else exercises._distance(a, b))
        assert gap > 100 * exercises.CLOSE, f"{one.__name__} and {other.__name__} part by {gap} only"


@pytest.mark.parametrize("exercise", EXERCISES, ids=ids)
def test_the_right_values_are_not_trivial(exercise):
    """A constant answer must not pass: the right one differs from case to case and is finite."""
    values = [exercises._outcome(exercise.solution, case, False).value for case in all_cases(exercise)]
    assert all(value.isfinite().all() for value in values)
    assert len({tuple(value.flatten().tolist()) for value in values}) > 2


@pytest.mark.parametrize("exercise", EXERCISES, ids=ids)
def test_placeholders_are_unsolved_and_nothing_raises(exercise, capsys):
    def with_ellipsis(*_):
        return ...

    def with_nothing(*_):
        """(N, D) -> (N, N)."""
        ...

    unsolved = NotImplementedError("write me")

    def with_error(*_):
        raise unsolved

    for placeholder in (with_ellipsis, with_nothing, with_error):
        exercise(placeholder)
        assert capsys.readouterr().out.startswith(f"{exercise.name}: not solved yet")
    assert exercise.judge(with_nothing).text == "not solved yet."


def test_a_forgotten_return_is_pointed_at():
    def chance(n, k):
        k / n  # noqa: B018

    assert "is the `return` missing" in checks.chance.judge(chance).text


@pytest.mark.parametrize("exercise", EXERCISES, ids=ids)
def test_an_error_in_the_answer_is_told_with_its_line(exercise, capsys):
    def clumsy(*arguments):
        first = arguments[0]
        return first @ "text"

    verdict = exercise.judge(clumsy)
    assert verdict.kind == "broken"
    assert "TypeError" in verdict.text
    assert 'line 3 of clumsy: `return first @ "text"`' in verdict.text
    exercise(lambda: 1)  # takes no arguments
    assert "takes 0 positional arguments" in capsys.readouterr().out


@pytest.mark.parametrize("exercise", EXERCISES, ids=ids)
def test_an_unknown_mistake_shows_the_difference_and_a_case_to_follow_by_hand(exercise):
    verdict = exercise.judge(lambda *a: torch.as_tensor(exercise.solution(*a)) * 1.31)
    assert (verdict.kind, verdict.mistake) == ("wrong", None)
    assert "largest difference" in verdict.text
    assert f"By hand: {exercise.name}(" in verdict.text


@pytest.mark.parametrize("exercise", EXERCISES, ids=ids)
def test_odd_results_are_answered_calmly(exercise):
    assert exercise.judge(3).kind == "broken"
    assert "no number and no tensor" in exercise.judge(lambda *_: "a word").text
    shape = exercise.judge(lambda *_: torch.zeros(2, 3, 4))
    assert "your result has the shape (2, 3, 4), expected" in shape.text
    nan = exercise.judge(lambda *a: torch.as_tensor(exercise.solution(*a)) * math.nan)
    assert nan.kind == "wrong"
    assert "largest difference is inf" in nan.text


def test_a_solution_written_another_way_passes():
    def info_nce(q, k, t):
        losses = []
        for i in range(len(q)):
            logits = torch.stack([q[i] @ k[j] for j in range(len(k))]) / t
            losses.append(-(logits[i].exp() / logits.exp().sum()).log())
        return sum(losses) / len(losses)

    def r_at_1(similarity):
        return sum(int(row.argmax()) == i for i, row in enumerate(similarity)) / len(similarity)

    assert checks.info_nce.judge(info_nce).kind == "right"
    assert checks.r_at_1.judge(r_at_1).kind == "right"
    assert checks.cosine.judge(lambda x, y: torch.cosine_similarity(x[:, None], y[None], dim=2)).kind == "right"
    assert checks.online_logsumexp.judge(lambda tiles: torch.cat(tiles, 1).logsumexp(1)).kind == "right"


def test_a_right_value_without_a_gradient_is_named():
    verdict = checks.info_nce.judge(lambda *a: checks.info_nce.solution(*a).item())
    assert verdict.kind == "wrong"
    assert ".item()" in verdict.text
    half = checks.info_nce.judge(lambda q, k, t: checks.info_nce.solution(q, k.detach(), t))
    assert half.kind == "wrong"
    assert "gradient" in half.text


def test_the_answers_agree_with_what_they_stand_for():
    """Each solution against an independent statement of the same thing."""
    generator = torch.Generator().manual_seed(4)
    q, k = (normalize(torch.randn(6, 5, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    logits = (q @ k.T / 0.3).requires_grad_()
    loss = -logits.log_softmax(1).diagonal().mean()
    assert torch.allclose(checks.info_nce.solution(q, k, 0.3), loss)
    (slope,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(checks.gradient_of_logits.solution(logits.detach()).double(), slope)

    batch = 5  # the simplex: B unit vectors with cosine -1/(B-1), images and texts the same
    points = normalize(torch.eye(batch, dtype=torch.float64) - 1 / batch, dim=1)
    lowest = cross_entropy(points @ points.T / 0.4, torch.arange(batch)).item()
    assert math.isclose(checks.lowest_loss.solution(batch, 0.4), lowest, rel_tol=1e-12)
    assert round(checks.lowest_loss.solution(256, 1.0), 2) == 4.55

    truth = torch.eye(6, dtype=torch.bool)
    truth[0, 3] = truth[4, 1] = True
    row = [logits[0, j] for j in range(6) if j != 3]
    others = [-logits.log_softmax(1)[i, i] for i in (1, 2, 3, 5)]
    fourth = torch.stack([logits[4, j] for j in range(6) if j != 1]).logsumexp(0) - logits[4, 4]
    by_hand = (torch.stack(row).logsumexp(0) - logits[0, 0] + sum(others) + fourth) / 6
    assert torch.allclose(checks.mask_false_negatives.solution(logits, truth), by_hand)

    gallery = torch.rand(20_000, 50, generator=generator)  # a true caption at a random rank
    ranks = gallery[:, 1:].gt(gallery[:, :1]).sum(1)
    assert abs((ranks < 10).double().mean().item() - checks.chance.solution(50, 10)) < 0.01


def test_the_answers_about_the_world_agree_with_the_world():
    """Notebook 01: each solution against what the picture world itself says."""
    scenes = [s for s in world.World("paper").scenes(400) if len(s.objects) == 3 and s.cloud is None][:120]
    told = [c for s in scenes for c in world.captions(s) if c.kind in ("count", "partial")]
    true = world.truth(scenes, told)
    chances = [1 / sum(bool(world.holds(s, c.predicate)) for s in scenes) for c in told]
    assert math.isclose(checks.ceiling.solution(true), sum(chances) / len(chances), rel_tol=1e-12)

    chosen = checks.false_captions.solution(true, torch.rand(120, generator=torch.Generator().manual_seed(3)))
    assert all(world.holds(s, told[j].predicate) is False for s, j in zip(scenes, chosen.tolist(), strict=True))
    assert len(set(chosen.tolist())) > 60  # any false one, not always the same

    code = {name: {value: k for k, value in enumerate(values)} for name, values in _FACTS.items()}
    pictures = torch.tensor([[[code[a][getattr(t, a)] for a in code] for t in s.objects] for s in scenes])
    for scene in scenes[:20]:
        pair = [{a: getattr(t, a) for a in code} for t in scene.objects[:2]]
        terms = torch.tensor([[code[a][term[a]] for a in code] for term in pair])
        right = [world.holds(s, {"things": pair}) for s in scenes]
        assert checks.true_of.solution(pictures, terms).tolist() == right
        one, two = pair
        swapped = [one | {"colour": two["colour"]}, two | {"colour": one["colour"]}]
        pair_only = replace(scene, objects=scene.objects[:2])
        lies = not world.holds(pair_only, {"things": swapped})
        assert checks.swap_lies.solution(terms[None]).item() == lies

    x = torch.linspace(-1.5, 1.5, 61)
    x, y = torch.meshgrid(x, x, indexing="xy")
    body, mouth = torch.hypot(x, y) - 1, torch.hypot(x - 0.5, y) - 0.8
    left = checks.bite.solution(body, mouth) < 0
    assert torch.equal(left, (body < 0) & (mouth > 0)) and left.any()


def test_the_answers_about_fusion_agree_with_the_module():
    """Notebook 05: each solution against the function of the module that stands for it."""
    generator = torch.Generator().manual_seed(5)
    tables = torch.randn(400, 2, 2, generator=generator).round(decimals=1)  # ties among them
    found = checks.group_score.solution(tables)
    assert math.isclose(found.item(), metrics.winoground_scores(tables)["group"], rel_tol=1e-6)

    similarity, ids = torch.randn(4, 4, generator=generator), torch.tensor([0, 1, 0, 2])
    draws = torch.stack([albef.sample_hard_negatives(similarity, ids, generator=generator) for _ in range(4000)])
    share = torch.stack([torch.bincount(column, minlength=4) / 4000 for column in draws.T])
    torch.testing.assert_close(share, checks.hard_negative_weights.solution(similarity, ids), atol=0.04, rtol=0)

    logits, teacher = torch.randn(2, 3, 5, 7, generator=generator)
    labels = torch.tensor([[1, -100, 3, -100, 0], [-100] * 5, [6, 5, -100, -100, 2]])
    expected = albef.mlm_loss(logits, labels, teacher, distill_weight=0.3)
    torch.testing.assert_close(checks.soft_words.solution(logits, labels, teacher, 0.3), expected)

    model = albef.ALBEF.tiny(30, queue_size=0).eval()
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=generator)
    tokens = {"input_ids": torch.randint(5, 30, (7, 6), generator=generator)}
    tokens["attention_mask"] = torch.ones_like(tokens["input_ids"])
    pairs, match = [], model.match
    model.match = lambda image, text, mask: pairs.append(len(image)) or match(image, text, mask)
    ranked, everything = (albef.rerank(model, images, tokens, k).texts for k in (3, 7))
    assert pairs[:2] == [15, 21] and sum(pairs[:2]) == checks.pairs_looked_at.solution(5, 7, 3)
    assert sum(pairs[2:]) == checks.pairs_looked_at.solution(5, 7, 7)
    cosine = albef.rerank(model, images, tokens, 0).texts
    for row, seen, order in zip(cosine, everything, ranked, strict=True):
        assert checks.two_stages.solution(row, seen, 3).tolist() == order.argsort(descending=True).tolist()


def test_the_answers_about_turns_agree_with_the_module():
    """Notebook 12: each solution against `vlnotes.disorder`."""
    dice = torch.Generator().manual_seed(2)
    four = [torch.randn(40, 6, generator=dice).double() for _ in range(4)]
    assert torch.allclose(checks.deviation.solution(*four), disorder.spatial_disorder(*four).deviation)
    before, after = four[0], four[0] @ disorder.random_rotation(6) + 0.3 * four[1]
    turn = disorder.procrustes(before[::2], after[::2])
    left = (before[1::2] @ turn - after[1::2]).norm() / after[1::2].norm()
    assert torch.allclose(checks.left_over.solution(before, after), left)


def test_the_answers_about_maps_agree_with_the_module():
    """Notebook 06: each solution against `vlnotes.gradcam`, or the layers of a network that are written down."""
    dice = torch.Generator().manual_seed(5)
    attention, gradient = torch.rand(2, 3, 7, generator=dice), torch.randn(2, 3, 7, generator=dice)  # 2 words, 3 heads
    maps = gradcam.attention_gradcam(attention.transpose(0, 1)[None], gradient.transpose(0, 1)[None], (2, 3))[0]
    for word in range(2):
        assert torch.allclose(checks.word_map.solution(attention[word], gradient[word]), maps[word].flatten())
    many, mask = torch.rand(2, 4, 2, 3, generator=dice), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    assert torch.allclose(checks.sentence_of.solution(many, mask), gradcam.sentence_map(many, mask))
    activation = torch.randn(5, 2, 3, generator=dice, requires_grad=True)
    weight = torch.randn(5, generator=dice)
    (activation.mean((1, 2)) @ weight).backward()  # the gradient that the answer does without
    expected = gradcam.gradcam(activation.detach()[None], activation.grad[None])[0]
    assert expected.any() and torch.allclose(checks.no_gradient.solution(activation.detach(), weight), expected)
    level = torch.randint(0, 3, (30, 4, 5), generator=dice).double()
    inside = torch.rand(30, 4, 5, generator=dice) < 0.5
    scores = gradcam.pointing_game(level, inside)
    near = [
        torch.stack([checks.near_hit.solution(m, i, margin) for m, i in zip(level, inside, strict=True)])
        for margin in (0, 1, 9)
    ]
    assert torch.allclose(near[0], scores)  # no margin: the module's game
    assert (near[1] >= near[0]).all() and (near[1] > near[0]).any() and (near[2] == 1).all()
    # one cell of a chain, and which inputs it reads: the middle of these is where it looks
    kernels, strides, paddings = [3, 5, 4], [2, 3, 2], [1, 0, 1]
    line = torch.zeros(1, 1, 200, requires_grad=True)
    found = line
    for kernel, stride, padding in zip(kernels, strides, paddings, strict=True):
        found = torch.nn.functional.conv1d(found, torch.ones(1, 1, kernel), stride=stride, padding=padding)
    first, step = checks.looks_around.solution(kernels, strides, paddings).tolist()
    for k in (5, 6, 7):  # away from the rim
        (slope,) = torch.autograd.grad(found[0, 0, k], line, retain_graph=True)
        assert math.isclose(slope[0, 0].nonzero().double().mean(), first + k * step)


_FACTS = {"colour": world.COLOURS, "shape": world.SHAPES}


@pytest.mark.parametrize("exercise", EXERCISES, ids=ids)
def test_the_solution_text_is_code_that_passes(exercise):
    space = {"torch": torch, "math": math, "cross_entropy": cross_entropy, "normalize": normalize}
    space["permutations"] = itertools.permutations
    exec(exercise.solution_text, space)
    assert exercise.solution_text.startswith(f"def {exercise.name}(")
    assert exercise.judge(space[exercise.name]).kind == "right"


def test_an_answer_that_writes_into_its_inputs_is_judged_all_the_same():
    def greedy(similarity):
        best = similarity.max(dim=1).values.mean()
        similarity.zero_()  # on zeros this answer could not be told from another one
        return best

    def greedy_with_tiles(tiles):
        whole = torch.cat([tiles.pop(0) for _ in range(len(tiles))], dim=1)
        return whole.exp().sum(dim=1).log()

    assert checks.r_at_1.judge(greedy).mistake == "averages_the_best"
    assert checks.online_logsumexp.judge(greedy_with_tiles).mistake == "no_maximum"
