"""PSD: targets and loss against loops in float64, what has a gradient and what has none, the module step by step."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_albef import dice, unit
from test_clip import make_batch

from vlnotes.clip import CLIP, encode_images
from vlnotes.contrastive import clip_loss
from vlnotes.momentum import momentum_copy, momentum_update
from vlnotes.psd import (
    PSD,
    SWAPS,
    draw_unaligned,
    label_smoothing_loss,
    psd_loss,
    self_entropy_loss,
    soft_targets,
    unaligned_fraction,
)

SOME = torch.tensor([True, False, True, False, False])
ALL, NONE = torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)


def softmax_rows(x, y, t):
    """Row i: softmax over j of x_i · y_j / t, as lists of floats."""
    found = []
    for one in x:
        powers = [math.exp(float(one @ other) / t) for other in y]
        found.append([value / sum(powers) for value in powers])
    return found


def naive_targets(v, w, t, swap):
    """Of image i over texts and of text i over images, as lists of floats."""
    a_v, a_t, rows = softmax_rows(v, w, t), softmax_rows(w, v, t), range(len(v))
    if swap is None:
        return a_v, a_t
    if swap == "rows":
        return a_t, a_v

    def column(a, i):
        chosen = [a[j][i] for j in rows]
        return [value / sum(chosen) for value in chosen]

    return [column(a_t, i) for i in rows], [column(a_v, i) for i in rows]


def naive_psd(v, w, tv, tw, t, teacher_t, unaligned, swap):
    p_v, p_t = softmax_rows(v, w, t), softmax_rows(w, v, t)
    soft_v, soft_t = naive_targets(tv, tw, teacher_t, swap)
    total = 0.0
    for i in range(len(v)):
        for j in range(len(v)):
            hard = float(i == j)
            target_v, target_t = (soft_v[i][j], soft_t[i][j]) if unaligned[i] else (hard, hard)
            total -= (target_v * math.log(p_v[i][j]) + target_t * math.log(p_t[i][j])) / 2
    return total / len(v)


# ---------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("swap", SWAPS)
def test_soft_targets_are_the_loop(swap):
    v, w = unit(5), unit(5, seed=1)
    found = soft_targets(v, w, temperature=0.3, swap=swap)
    for ours, loop in zip(found, naive_targets(v, w, 0.3, swap), strict=True):
        torch.testing.assert_close(ours, torch.tensor(loop, dtype=torch.float64), rtol=1e-12, atol=1e-14)


def test_the_three_swaps_are_three_targets():
    v, w = unit(5), unit(5, seed=1)
    images = [soft_targets(v, w, temperature=0.3, swap=swap).image for swap in SWAPS]
    assert all(float((a - b).abs().max()) > 0.05 for a, b in zip(images, images[1:] + images[:1], strict=True))


def test_where_text_3_is_of_picture_0_only_the_rows_swap_misleads_picture_3():
    """Text 3 describes picture 0, so no text describes picture 3. By index, picture 3 is told to look like text 0."""
    v = torch.eye(4, dtype=torch.float64)
    w = v[[0, 1, 2, 0]]
    of_rows = soft_targets(v, w, temperature=0.1, swap="rows").image[3]
    of_columns = soft_targets(v, w, temperature=0.1).image[3]
    assert float(of_rows[0]) > 0.99
    torch.testing.assert_close(of_columns, torch.full((4,), 0.25, dtype=torch.float64), rtol=1e-3, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.floats(0.003, 5), st.sampled_from(SWAPS), st.integers(0, 99))
def test_targets_are_distributions_however_sharp(rows, t, swap, seed):
    v, w = unit(rows, seed=seed, dtype=torch.float32), unit(rows, seed=seed + 100, dtype=torch.float32)
    for target in soft_targets(v, w, temperature=t, swap=swap):
        assert target.shape == (rows, rows) and bool((target >= 0).all()) and not target.requires_grad
        torch.testing.assert_close(target.sum(1), torch.ones(rows), rtol=1e-4, atol=1e-4)


def test_a_picture_that_no_text_chooses_still_has_a_target():
    """Its column underflows to 0 in float32; the quotient is taken of the logarithms."""
    v = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.6, 0.8]])
    w = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    found = soft_targets(v, w, temperature=0.005).image[1]
    exact = soft_targets(v.double(), w.double(), temperature=0.005).image[1]
    assert float((w @ v.T / 0.005).softmax(1)[:, 1].sum()) == 0
    torch.testing.assert_close(found, exact.float(), rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("other", [False, True], ids=["own teacher", "another teacher"])
@pytest.mark.parametrize("mask", [NONE, SOME, ALL], ids=["none", "some", "all"])
def test_psd_is_the_double_loop(mask, other, swap):
    v, w, tv, tw = (unit(5, seed=i) for i in range(4))
    teachers = {"teacher_image_features": tv, "teacher_text_features": tw} if other else {}
    found = psd_loss(v, w, temperature=0.2, teacher_temperature=0.13, unaligned=mask, swap=swap, **teachers)
    expected = naive_psd(v, w, tv if other else v, tw if other else w, 0.2, 0.13, mask, swap)
    assert found.shape == () and float(found) == pytest.approx(expected, rel=1e-11)


def test_transposed_is_the_swap_unless_another_is_asked_for():
    v, w = unit(5), unit(5, seed=1)
    shared = {"temperature": 0.2, "teacher_temperature": 0.1, "unaligned": ALL}
    assert psd_loss(v, w, **shared) == psd_loss(v, w, swap="transposed", **shared)
    assert len({float(psd_loss(v, w, swap=swap, **shared)) for swap in SWAPS}) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_without_unaligned_rows_it_is_clip_to_the_last_bit(dtype):
    results = []
    for loss in (
        lambda v, w, t: psd_loss(v, w, temperature=t, teacher_temperature=0.05, unaligned=NONE),
        lambda v, w, t: clip_loss(v, w, temperature=t),
    ):
        v, w = unit(5, dtype=dtype).requires_grad_(), unit(5, seed=1, dtype=dtype).requires_grad_()
        t = torch.tensor(0.07, dtype=dtype, requires_grad=True)
        value = loss(v, w, t)
        results.append([value.detach(), *torch.autograd.grad(value, (v, w, t))])
    assert torch.equal(results[0][0], results[1][0])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=1e-7)


def gradient(mask, dtype=torch.float64, **more):
    """The largest gradient of the features and of the temperature."""
    v, w = unit(5, dtype=dtype).requires_grad_(), unit(5, seed=1, dtype=dtype).requires_grad_()
    t = torch.tensor(0.2, dtype=dtype, requires_grad=True)
    more = {"teacher_temperature": 0.2, "swap": None, **more}
    return [
        float(g.abs().max())
        for g in torch.autograd.grad(psd_loss(v, w, temperature=t, unaligned=mask, **more), (v, w, t))
    ]


def test_its_own_belief_teaches_nothing():
    """The same forward, no swap, one temperature: target and prediction are one, and p - p is 0."""
    assert max(gradient(ALL)) < 1e-14
    assert max(gradient(ALL, torch.float32)[:2]) < 1e-7
    assert min(gradient(SOME)) > 1e-2  # the aligned rows teach


def test_swap_temperature_and_another_forward_each_teach():
    other = {"teacher_image_features": unit(5, seed=2), "teacher_text_features": unit(5, seed=3)}
    for more in ({"swap": "transposed"}, {"swap": "rows"}, {"teacher_temperature": 0.1}, other):
        assert min(gradient(ALL, **more)) > 1e-3, more


def test_an_unaligned_row_pulls_as_prediction_minus_target():
    """The gradient of the logits, by hand: (softmax - target) / B, both directions."""
    v = torch.eye(5, dtype=torch.float64)
    w = unit(5, 5, seed=1).requires_grad_()  # the logits are w.T / t
    loss = psd_loss(v, w, temperature=0.5, teacher_temperature=0.2, unaligned=SOME)
    (ours,) = torch.autograd.grad(loss, w)
    logits, soft = w.detach().T / 0.5, soft_targets(v, w.detach(), temperature=0.2)
    target_v, target_t = (torch.where(SOME[:, None], one, torch.eye(5, dtype=torch.float64)) for one in soft)
    pull = (logits.softmax(1) - target_v + (logits.T.softmax(1) - target_t).T) / 10
    torch.testing.assert_close(ours, pull.T / 0.5, rtol=1e-10, atol=1e-12)


def test_targets_carry_no_gradient():
    v, w, tv, tw = (unit(5, seed=i).requires_grad_() for i in range(4))
    s = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    shared = {"temperature": 0.2, "teacher_temperature": s, "unaligned": SOME}
    psd_loss(v, w, teacher_image_features=tv, teacher_text_features=tw, **shared).backward()
    assert tv.grad is None and tw.grad is None and s.grad is None and bool(v.grad.any())
    v.grad = w.grad = None
    psd_loss(v, w, **shared).backward()  # as its own teacher: the gradient is that with the targets given
    own = v.grad.clone()
    fixed = {"teacher_image_features": v.detach().clone(), "teacher_text_features": w.detach().clone()}
    v.grad = None
    psd_loss(v, w, **fixed, **shared).backward()
    torch.testing.assert_close(own, v.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("swap", SWAPS)
def test_the_gradient_is_the_derivative(swap):
    v, w, tv, tw = (unit(4, seed=i) for i in range(4))
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, False, True, True])

    def loss(v, w, t):
        fixed = {"teacher_image_features": tv, "teacher_text_features": tw}
        return psd_loss(v, w, temperature=t, teacher_temperature=0.2, unaligned=mask, swap=swap, **fixed)

    assert torch.autograd.gradcheck(loss, (v.requires_grad_(), w.requires_grad_(), t))


def test_closed_forms():
    eye = torch.eye(4, dtype=torch.float64)
    same = torch.ones(4, 1, dtype=torch.float64)
    mask = torch.tensor([True, True, False, False])
    for swap in SWAPS:  # all alike: every softmax is even, whatever the target
        found = psd_loss(same, same, temperature=0.1, teacher_temperature=0.1, unaligned=mask, swap=swap)
        assert float(found) == pytest.approx(math.log(4), rel=1e-12)
        # orthogonal pairs: a symmetric matrix, on which all swaps agree; q is the teacher's belief in the diagonal
        found = psd_loss(eye, eye, temperature=0.5, teacher_temperature=0.25, unaligned=mask, swap=swap)
        lse, q = math.log(math.e**2 + 3), math.e**4 / (math.e**4 + 3)
        assert float(found) == pytest.approx(lse - (2 * q + 2) / 2, rel=1e-12)


def test_hard_numbers_and_half_precision():
    v, w = unit(5, dtype=torch.float32), unit(5, seed=1, dtype=torch.float32)
    v[0], w[0], w[1] = v[1], v[1], -v[1]
    for swap in SWAPS:
        x, y = v.clone().requires_grad_(), w.clone().requires_grad_()
        loss = psd_loss(x, y, temperature=0.01, teacher_temperature=0.005, unaligned=SOME, swap=swap)
        gradients = torch.autograd.grad(loss, (x, y))
        assert bool(loss.isfinite()) and all(bool(g.isfinite().all()) for g in gradients)
        exact = psd_loss(v.double(), w.double(), temperature=0.01, teacher_temperature=0.005, unaligned=SOME, swap=swap)
        assert float(loss.detach()) == pytest.approx(float(exact), rel=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            half = psd_loss(v.bfloat16(), w.bfloat16(), temperature=0.1, teacher_temperature=0.05, unaligned=SOME)
        wide = psd_loss(
            v.bfloat16().double(), w.bfloat16().double(), temperature=0.1, teacher_temperature=0.05, unaligned=SOME
        )
        assert half.dtype == torch.float32 and float(half) == pytest.approx(float(wide), rel=1e-5)


def test_the_loss_names_what_is_wrong():
    v, w, tv, tw = (unit(5, seed=i) for i in range(4))
    good = {"temperature": 0.1, "teacher_temperature": 0.05, "unaligned": SOME}
    wrong = [
        ({"swap": "columns"}, "swap is 'columns'; expected one of 'transposed', 'rows', None"),
        ({"temperature": 0.0}, "^temperature: it divides"),
        ({"teacher_temperature": -1.0}, "^teacher_temperature: it divides"),
        ({"unaligned": SOME[:4]}, r"unaligned: expected one a row, shape \(5,\), got \(4,\)"),
        ({"unaligned": SOME[:, None]}, r"unaligned: .* got \(5, 1\)"),
        ({"teacher_image_features": tv}, "give both, or none"),
        ({"teacher_image_features": tv, "teacher_text_features": tw[:4]}, "teacher_image_features and teacher_text"),
        ({"teacher_image_features": tv[:4], "teacher_text_features": tw[:4]}, "expected 5 rows, got shape"),
    ]
    for more, words in wrong:
        with pytest.raises(ValueError, match=words):
            psd_loss(v, w, **{**good, **more})
    for mask, kind in ((SOME.float(), "torch.float32"), (0.5, "float"), (SOME.tolist(), "list")):
        with pytest.raises(TypeError, match=f"unaligned: expected a bool tensor, got {kind}"):
            psd_loss(v, w, **{**good, "unaligned": mask})
    with pytest.raises(ValueError, match="batch of one pair has no negatives"):
        psd_loss(v[:1], w[:1], **{**good, "unaligned": SOME[:1]})
    with pytest.raises(ValueError, match="image_features and text_features: row i"):
        psd_loss(v, w[:4], **good)
    with pytest.raises(TypeError, match="text_features: expected floating"):
        psd_loss(v, w.long(), **good)
    names = ["image_features", "text_features", "teacher_image_features", "teacher_text_features"]
    for mask in (NONE, ALL):  # a bad teacher is named even where no row would show it
        for at, name in enumerate(names):
            four = {key: value.clone() for key, value in zip(names, (v, w, tv, tw), strict=True)}
            four[name][2, 1] = (math.nan, math.inf)[at % 2]
            with pytest.raises(ValueError, match=f"^{name}: expected finite numbers, .* row 2"):
                psd_loss(**four, **{**good, "unaligned": mask})
            if at < 2:
                with pytest.raises(ValueError, match=f"^{name}: expected finite numbers"):
                    psd_loss(four["image_features"], four["text_features"], **{**good, "unaligned": mask})
    with pytest.raises(ValueError, match="swap is 'columns'"):
        soft_targets(v, w, temperature=0.1, swap="columns")


# ---------------------------------------------------------------------------------------------- schedule and partition


def test_the_schedule_is_half_a_cosine():
    assert unaligned_fraction(0, 8, 0.8) == 0
    assert unaligned_fraction(4, 8, 0.8) == pytest.approx(0.4)
    assert unaligned_fraction(2, 8, 0.8) == pytest.approx(0.8 * (1 - math.sqrt(0.5)) / 2)
    assert unaligned_fraction(8, 8, 0.8) == unaligned_fraction(99, 8, 0.8) == 0.8
    assert unaligned_fraction(0, 0, 0.3) == 0.3  # the constant mix
    values = [unaligned_fraction(step, 50, 0.6) for step in range(51)]
    assert all(a < b for a, b in zip(values, values[1:], strict=False))


def test_a_schedule_that_reaches_one_is_refused_with_the_reason():
    for maximum in (1, 1.0, 1.5, math.inf):
        with pytest.raises(ValueError, match="share below 1, got .* no pair is ever said to belong together"):
            unaligned_fraction(3, 10, maximum)
    assert unaligned_fraction(10, 10, 0.99) == 0.99
    for maximum in (-0.1, math.nan):
        with pytest.raises(ValueError, match=r"maximum: expected a number in \[0, 1\]"):
            unaligned_fraction(3, 10, maximum)
    with pytest.raises(ValueError, match="step: expected 0 or more, got -1"):
        unaligned_fraction(-1, 10, 0.5)
    with pytest.raises(ValueError, match="total: expected 0 or more, got -2"):
        unaligned_fraction(1, -2, 0.5)
    for bad in ((1.5, 10, 0.5), (1, True, 0.5), (1, 10, "0.5"), (1, 10, True)):
        with pytest.raises(TypeError, match="expected an? (int|float)"):
            unaligned_fraction(*bad)


def test_the_partition_has_the_asked_share_and_every_row_has_its_turn():
    draws = torch.stack([draw_unaligned(10, 0.3, generator=dice(seed)) for seed in range(500)])
    assert draws.dtype == torch.bool and bool((draws.sum(1) == 3).all())
    torch.testing.assert_close(draws.float().mean(0), torch.full((10,), 0.3), rtol=0, atol=0.1)
    assert torch.equal(draw_unaligned(10, 0.3, generator=dice(4)), draws[4])
    assert int(draw_unaligned(7, 0).sum()) == 0 and int(draw_unaligned(7, 1).sum()) == 7
    assert int(draw_unaligned(7, 0.99).sum()) == 6  # below 1 someone keeps the hard answer
    assert int(draw_unaligned(100, 0.29).sum()) == 29  # 0.29 · 100 is 28.999...
    with pytest.raises(ValueError, match="rows: expected 1 or more, got 0"):
        draw_unaligned(0, 0.5)
    with pytest.raises(ValueError, match="fraction: expected a number in"):
        draw_unaligned(4, 1.5)
    with pytest.raises(TypeError, match="rows: expected an int, got float"):
        draw_unaligned(4.0, 0.5)


# ---------------------------------------------------------------------------------------------- baselines


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_label_smoothing_is_torchs_in_both_directions(smoothing):
    v, w = unit(5).requires_grad_(), unit(5, seed=1).requires_grad_()
    ours = label_smoothing_loss(v, w, temperature=0.2, smoothing=smoothing)
    logits, own = v @ w.T / 0.2, torch.arange(5)
    ways = [F.cross_entropy(one, own, label_smoothing=smoothing) for one in (logits, logits.T)]
    theirs = sum(ways) / 2
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for one, other in zip(torch.autograd.grad(ours, (v, w)), torch.autograd.grad(theirs, (v, w)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="smoothing: expected a number in"):
        label_smoothing_loss(v, w, temperature=0.2, smoothing=1.1)


def test_the_summarys_version_is_the_entropy_of_rows_and_knows_no_pairs():
    v, w = unit(5), unit(5, seed=1)
    found = self_entropy_loss(v, w, temperature=0.2, entropy_weight=0.3, subset=SOME)
    p = softmax_rows(v, w, 0.2)
    expected = [-sum(value * math.log(value) for value in p[i]) for i in range(5) if SOME[i]]
    assert float(found) == pytest.approx(1.3 * sum(expected) / len(expected), rel=1e-12)
    shuffled = self_entropy_loss(v, w[[3, 0, 4, 1, 2]], temperature=0.2, entropy_weight=0.3, subset=SOME)
    torch.testing.assert_close(found, shuffled, rtol=1e-12, atol=0)  # any pairing will do
    assert torch.autograd.gradcheck(lambda a, b: self_entropy_loss(a, b, temperature=0.4), (v.requires_grad_(), w))
    # not detached: a step makes wrong pairs surer, as surely as right ones
    wrong = torch.eye(5, dtype=torch.float64)
    moved = (0.9 * wrong + 0.1).roll(1, 0).requires_grad_()
    (g,) = torch.autograd.grad(self_entropy_loss(moved, wrong, temperature=0.5), moved)
    before, after = (softmax_rows(x, wrong, 0.5) for x in (moved.detach(), (moved - g).detach()))
    assert all(after[i][(i - 1) % 5] > before[i][(i - 1) % 5] > before[i][i] for i in range(5))


def test_baselines_name_what_is_wrong():
    v, w = unit(5), unit(5, seed=1)
    with pytest.raises(ValueError, match="subset: expected at least one row, got none"):
        self_entropy_loss(v, w, temperature=0.2, subset=NONE)
    with pytest.raises(TypeError, match="subset: expected a bool tensor"):
        self_entropy_loss(v, w, temperature=0.2, subset=SOME.long())
    for weight in (-1.0, math.nan):
        with pytest.raises(ValueError, match="entropy_weight: expected a number of 0 or more"):
            self_entropy_loss(v, w, temperature=0.2, entropy_weight=weight)
    for loss in (self_entropy_loss, label_smoothing_loss):
        with pytest.raises(ValueError, match="^text_features: .*NaN"):
            loss(v, w * math.nan, temperature=0.2)


# ---------------------------------------------------------------------------------------------- the module


def tiny(**options):
    return PSD.tiny(50, **{"ramp_steps": 4, **options})


def at(model, steps):
    model.steps.fill_(steps)
    return model


def test_at_the_start_it_is_clip():
    ours, theirs = tiny().train(), CLIP.tiny(50).train()
    found, expected = ours(make_batch()), theirs(make_batch())
    assert torch.equal(found["loss"], expected["loss"]) and float(found["unaligned_fraction"]) == 0
    assert list(found) == ["loss", "temperature", "unaligned_fraction"]


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("momentum", [None, 0.7])
def test_a_step_is_the_paper_by_hand(momentum, swap):
    model = at(tiny(momentum=momentum, swap=swap, teacher_ratio=0.4, maximum=0.6, seed=3), 2).train()
    if momentum is not None:  # a student that is no longer its teacher
        with torch.no_grad():
            model.image_projection.weight.mul_(torch.linspace(0.5, 2, 128)[:, None])
    before, data = copy.deepcopy(model), make_batch()
    found = model(data)
    texts = data["input_ids"], data["attention_mask"]
    v, w = before.image_features(data["image"]), before.text_features(*texts)
    teachers = {}
    if momentum is not None:
        momentum_update(before.teacher, before._taught(), 0.7)
        slow = CLIP.tiny(50).train()
        for name in ("image_encoder", "text_encoder", "image_projection", "text_projection"):
            getattr(slow, name).load_state_dict(before.teacher[name].state_dict())
        with torch.no_grad():
            tv, tw = slow.image_features(data["image"]), slow.text_features(*texts)
        assert float((tv - v.detach()).abs().max()) > 0.01
        teachers = {"teacher_image_features": tv, "teacher_text_features": tw}
    mask = draw_unaligned(6, 0.3, generator=dice(3 * 7_368_787 + 2))
    assert int(mask.sum()) == 2 and torch.equal(mask, before.unaligned(6))
    loss = psd_loss(v, w, temperature=0.07, teacher_temperature=0.028, unaligned=mask, swap=swap, **teachers)
    torch.testing.assert_close(found["loss"], loss, rtol=1e-5, atol=1e-5)
    assert float(found["unaligned_fraction"]) == pytest.approx(0.3)
    assert float(found["temperature"]) == pytest.approx(0.07)
    assert int(model.steps) == 3


def test_every_weight_learns_and_the_teacher_follows():
    model = at(tiny(momentum=0.9), 4).train()
    old = copy.deepcopy(model.teacher)
    with torch.no_grad():
        model.text_projection.weight.add_(1.0)
    model(make_batch())["loss"].backward()
    learning = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("teacher.") for name in learning) and "logit_scale" in learning
    assert [name for name, grad in learning.items() if grad is None or not grad.abs().sum() > 0] == []
    expected = old["text_projection"].weight + 0.1
    torch.testing.assert_close(model.teacher["text_projection"].weight, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(model.teacher["image_projection"].weight, old["image_projection"].weight)


def test_partitions_follow_from_seed_and_step_alone():
    model = at(tiny(maximum=0.5), 4)
    first = model.unaligned(20)
    torch.rand(7)
    assert torch.equal(model.unaligned(20), first) and int(first.sum()) == 10
    assert not torch.equal(at(model, 5).unaligned(20), first)
    assert not torch.equal(at(tiny(maximum=0.5, seed=1), 4).unaligned(20), first)


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_nothing_moves_in_evaluation(momentum):
    model = at(tiny(momentum=momentum), 3).eval()
    with torch.no_grad():
        model.text_projection.weight.add_(0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (model(make_batch()) for _ in range(2))
    assert first["loss"].item() == second["loss"].item()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_saved_and_loaded_it_goes_on_alike(tmp_path, momentum):
    model = tiny(momentum=momentum, swap=None, maximum=0.4, teacher_ratio=0.3, seed=2, dim=16).train()
    model(make_batch())
    again = PSD.load(model.save(tmp_path, note=1))
    assert again.built == model.built and int(again.steps) == 1 and not again.training
    assert (again.swap, again.maximum, again.teacher_ratio, again.momentum, again.seed) == (None, 0.4, 0.3, momentum, 2)
    assert torch.equal(again.train()(make_batch(seed=1))["loss"], model(make_batch(seed=1))["loss"])
    assert encode_images(again, make_batch()["image"]).shape == (6, 16)
    with pytest.raises(ValueError, match="describes a 'psd', not a 'clip'"):
        CLIP.load(tmp_path)


def test_bad_settings_are_named():
    for options, words in (
        ({"maximum": 1.0}, "share below 1"),
        ({"ramp_steps": -1}, "total: expected 0 or more"),
        ({"swap": "index"}, "swap is 'index'"),
        ({"teacher_ratio": 0.0}, "teacher_ratio"),
        ({"momentum": 1.5}, "momentum: expected a number in"),
        ({"temperature": 0.0}, "temperature must be at least 0.01"),
        ({"image": "mlp"}, "image tower"),
    ):
        with pytest.raises(ValueError, match=words):
            tiny(**options)
    with pytest.raises(ValueError, match="this PSD is its own teacher"):
        tiny().teacher_features(None, None, None)
    with pytest.raises(ValueError, match="batch of one pair"):
        tiny()(make_batch(1))
    assert momentum_copy(tiny()).teacher is None
