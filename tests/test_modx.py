"""Mod-X: the regulariser against loops in float64, what gets a gradient, the teacher chain, saving, clear errors."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from test_albef import dice, unit

from vlnotes.clip import CLIP
from vlnotes.modx import (
    PRESETS,
    Continual,
    ModX,
    SummaryModX,
    off_diagonal_kl,
    right_rows,
    summary_kl,
    summary_projection,
)


def four(rows=6, width=5, seed=10, near=1.2):
    """New and old features; texts lie near their pictures, so that some old rows are right and some are not."""
    v, old_v = unit(rows, width, seed=seed), unit(rows, width, seed=seed + 1)
    w, old_w = (F.normalize(x + near * unit(rows, width, seed=seed + 2 + i), dim=1) for i, x in enumerate((v, old_v)))
    return v, w, old_v, old_w


def softmax(row, t):
    weights = [math.exp(value / t) for value in row]
    return [weight / sum(weights) for weight in weights]


def naive(v, w, old_v, old_w, t=1.0, reduction="sum", diagonal=True, selection=True):
    """The paper's algorithm, row by row: a wrong old row is replaced by the new one."""
    total = 0.0
    for a, b, old_a, old_b in ((v, w, old_v, old_w), (w, v, old_w, old_v)):
        for i in range(len(a)):
            new = [float(a[i] @ b[j]) for j in range(len(b))]
            old = [float(old_a[i] @ old_b[j]) for j in range(len(b))]
            if selection and max(range(len(old)), key=lambda j: old[j]) != i:
                old = new
            if not diagonal:
                new, old = new[:i] + new[i + 1 :], old[:i] + old[i + 1 :]
            p, q = softmax(old, t), softmax(new, t)
            total += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)) / 2
    return total / len(v) if reduction == "mean" else total


def replaced(v, w, old_v, old_w):
    """The author's form: rows of the old matrix overwritten by the new ones, then a KL of everything."""
    total = 0.0
    for new, old in ((v @ w.T, old_v @ old_w.T), (w @ v.T, old_w @ old_v.T)):
        wrong = old.argmax(1) != torch.arange(len(old))
        old = torch.where(wrong[:, None], new, old)
        total = total + F.kl_div(new.log_softmax(1), old.softmax(1), reduction="sum") / 2
    return total


# ---------------------------------------------------------------------------------------------- the regulariser


@pytest.mark.parametrize("selection", [True, False])
@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_the_kl_is_the_loop_over_rows(temperature, reduction, diagonal, selection):
    x = four()
    settings = {"reduction": reduction, "diagonal": diagonal, "selection": selection}
    kept = right_rows(x[2] @ x[3].T), right_rows(x[3] @ x[2].T)
    assert all(0 < int(rows.sum()) < 6 for rows in kept) and not torch.equal(*kept)  # each direction its own
    found = off_diagonal_kl(*x, temperature=temperature, **settings)
    assert float(found) == pytest.approx(naive(*x, temperature, **settings), rel=1e-9)


def test_the_defaults_are_the_codes():
    x = four()
    assert float(off_diagonal_kl(*x)) == pytest.approx(naive(*x, 1.0, "sum", True, True), rel=1e-9)
    t = torch.tensor([0.3], dtype=torch.float64)
    assert off_diagonal_kl(*x, temperature=t).shape == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("diagonal", [True, False])
def test_equal_models_give_exactly_no_loss_and_no_gradient(dtype, diagonal):
    v, w = unit(50, 32, dtype=dtype).requires_grad_(), unit(50, 32, seed=1, dtype=dtype).requires_grad_()
    for selection in (True, False):
        for t in (1.0, 0.07):
            loss = off_diagonal_kl(v, w, v.detach(), w.detach(), temperature=t, diagonal=diagonal, selection=selection)
            assert loss.item() == 0
            assert all(not bool(grad.any()) for grad in torch.autograd.grad(loss, (v, w)))


def test_an_old_model_that_is_wrong_everywhere_gives_nothing_but_keeps_the_graph():
    v, w, old_v, _ = four()
    v.requires_grad_(), w.requires_grad_()
    old_w = old_v.roll(1, 0)  # every picture's best text is the next one's
    assert not right_rows(old_v @ old_w.T).any() and not right_rows(old_w @ old_v.T).any()
    loss = off_diagonal_kl(v, w, old_v, old_w)
    assert loss.item() == 0 and loss.grad_fn is not None
    assert all(not bool(grad.any()) for grad in torch.autograd.grad(loss, (v, w)))
    assert off_diagonal_kl(v, w, old_v, old_w, selection=False) > 0


def test_leaving_rows_out_equals_replacing_them_in_value_and_gradient():
    for seed in range(5):
        v, w, old_v, old_w = four(8, seed=10 * seed + 10)
        results = []
        for form in (off_diagonal_kl, replaced):
            x, y = v.clone().requires_grad_(), w.clone().requires_grad_()
            loss = form(x, y, old_v, old_w)
            results.append([loss, *torch.autograd.grad(loss, (x, y))])
        assert results[0][0].item() > 0
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)


def test_the_gradient_is_the_derivative_and_the_old_model_gets_none():
    v, w, old_v, old_w = (x.requires_grad_() for x in four(4))
    for diagonal in (True, False):
        assert torch.autograd.gradcheck(
            lambda v, w, diagonal=diagonal: off_diagonal_kl(
                v, w, old_v.detach(), old_w.detach(), temperature=0.5, diagonal=diagonal
            ),
            (v, w),
        )
    off_diagonal_kl(v, w, old_v, old_w).backward()
    assert v.grad.any() and w.grad.any() and old_v.grad is None and old_w.grad is None


def test_for_small_changes_a_row_costs_half_the_variance_of_its_changes():
    """To first order, and for rows that are nearly flat."""
    v, w, _, _ = four(200, 40)
    old_v, old_w = (F.normalize(x + 0.02 * unit(200, 40, seed=i), dim=1) for i, x in enumerate((v, w), start=7))
    change = v @ w.T - old_v @ old_w.T
    expected = (change.var(1, correction=0).sum() + change.var(0, correction=0).sum()) / 4
    found = off_diagonal_kl(v, w, old_v, old_w, selection=False)
    assert float(found) == pytest.approx(float(expected), rel=0.05)


def test_one_rotation_of_the_new_space_costs_nothing():
    from vlnotes.disorder import random_rotation

    v, w, _, _ = four()
    turn = random_rotation(5)
    assert float(off_diagonal_kl(v @ turn, w @ turn, v, w)) == pytest.approx(0, abs=1e-12)
    assert float(off_diagonal_kl(v @ turn, w, v, w, selection=False)) > 0.01


def test_the_diagonal_entry_does_not_count_without_the_diagonal():
    v, w, old_v, old_w = (torch.eye(4, dtype=torch.float64) for _ in range(4))
    moved = F.normalize(w + torch.tensor(1.0), dim=1)  # the other entries stay equal to each other
    assert float(off_diagonal_kl(v, moved, old_v, old_w, diagonal=False)) == pytest.approx(0, abs=1e-12)
    assert float(off_diagonal_kl(v, moved, old_v, old_w)) > 0.01


def test_right_rows_are_asked_row_by_row():
    s = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.3, 0.2], [0.1, 0.4, 0.5]])
    assert right_rows(s).tolist() == [True, False, True] and right_rows(s.T).tolist() == [True, False, True]
    assert right_rows(torch.tensor([[0.2, 0.3], [0.1, 0.0]])).tolist() == [False, False]
    with pytest.raises(ValueError, match=r"expected \(B, B\), got \(2, 3\)"):
        right_rows(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="NaN"):
        right_rows(torch.full((2, 2), torch.nan))


def test_half_precision_is_widened():
    x = [one.bfloat16() for one in four(40, 32)]
    with torch.autocast("cpu", torch.bfloat16):
        found = off_diagonal_kl(*x)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(off_diagonal_kl(*(one.double() for one in x))), rel=1e-3)


def test_the_kl_names_what_is_wrong():
    v, w, old_v, old_w = four()
    wrong = [
        ((v, w, old_v[:, :3], old_w[:, :3]), "the old model's features have width 3 and the current model's 5"),
        ((v, w, old_v[:4], old_w[:4]), "of the same batch, got 4 and 6 rows"),
        ((v, w[:5], old_v, old_w), "image_features and text_features"),
        ((v, w, old_v, old_w[:5]), "old_image_features and old_text_features"),
        ((v[:1], w[:1], old_v[:1], old_w[:1]), "a batch of one pair has no other entries"),
    ]
    for given, words in wrong:
        with pytest.raises(ValueError, match=words):
            off_diagonal_kl(*given)
    with pytest.raises(ValueError, match="reduction is 'batchmean'; expected one of sum, mean"):
        off_diagonal_kl(v, w, old_v, old_w, reduction="batchmean")
    with pytest.raises(ValueError, match="temperature"):
        off_diagonal_kl(v, w, old_v, old_w, temperature=0.0)
    with pytest.raises(TypeError, match="old_text_features"):
        off_diagonal_kl(v, w, old_v, old_w.long())
    for at, name in enumerate(("image_features", "text_features", "old_image_features", "old_text_features")):
        given = [one.clone() for one in (v, w, old_v, old_w)]
        given[at][2, 1] = torch.nan
        with pytest.raises(ValueError, match=f"^{name}: .*NaN"):
            off_diagonal_kl(*given)


def test_the_presets_are_one_loss_at_three_strengths():
    x, rows = four(), 6
    settings = {name: {**preset, "temperature": 1.0} for name, preset in PRESETS.items()}
    found = {}
    for name, preset in settings.items():
        weight = preset.pop("weight")
        assert preset.pop("kl_temperature") == 1.0
        found[name] = weight * float(off_diagonal_kl(*x, **preset))
    assert found["code"] == pytest.approx(20 * naive(*x))
    assert found["paper"] == pytest.approx(found["code"] / rows)
    assert found["code, any batch"] == pytest.approx(280 * 20 * naive(*x) / rows)
    for preset in PRESETS.values():
        ModX.tiny(40, **preset)


# ---------------------------------------------------------------------------------------------- the summary's


def test_the_summarys_kl_is_its_loop_and_has_no_old_model():
    v, w, _, _ = four()
    total = 0.0
    for i in range(6):
        texts = [0.0 if i == j else float(w[i] @ w[j]) for j in range(6)]
        mixed = [0.0 if i == j else float(v[i] @ w[j]) for j in range(6)]
        p, q = softmax(texts, 0.5), softmax(mixed, 0.5)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(summary_kl(v, w, temperature=0.5)) == pytest.approx(total / 6)
    assert float(summary_kl(w, w)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="a batch of one pair"):
        summary_kl(v[:1], w[:1])


def test_the_summarys_projection_is_its_rule():
    v, w, _, _ = four()
    start = torch.eye(5, dtype=torch.float64)
    found = summary_projection(start, v, w, rate=0.1)
    step = torch.zeros(5, 5, dtype=torch.float64)
    for i in range(6):
        for j in range(6):
            if i != j:
                step += (v[i] @ w[j]) * torch.outer(v[i], w[j])
    expected = start + 0.2 * step
    torch.testing.assert_close(found, expected / expected.norm())
    assert torch.equal(start, torch.eye(5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"projection: expected \(D, D\), got \(4, 5\)"):
        summary_projection(start[:4], v, w)


# ---------------------------------------------------------------------------------------------- the modules


def batch(count=6, length=9, seed=0, size=32):
    generator = dice(seed)
    mask = (torch.arange(length) < torch.randint(4, length + 1, (count, 1), generator=generator)).long()
    ids = torch.randint(5, 40, (count, length), generator=generator) * mask
    ids[:, 0] = 2
    image = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return {"image": image, "input_ids": ids, "attention_mask": mask, "ids": torch.arange(count)}


def stirred(model, amount=0.05, seed=5):
    with torch.no_grad():
        for parameter in model.current.parameters():
            if parameter.requires_grad:
                parameter.add_(amount * torch.randn(parameter.shape, generator=dice(seed)))
    return model


def test_the_first_phase_is_clip():
    model, clip = ModX.tiny(40, seed=3).train(), CLIP.tiny(40, seed=3).train()
    ours, theirs = model(batch()), clip(batch())
    assert list(ours) == ["loss", "clip", "temperature"]
    assert torch.equal(ours["loss"], theirs["loss"]) and torch.equal(ours["clip"], theirs["loss"])
    ours["loss"].backward(), theirs["loss"].backward()
    grads = {name: p.grad for name, p in clip.named_parameters()}
    for name, p in model.current.named_parameters():
        assert p.grad is None and grads[name] is None or torch.equal(p.grad, grads[name]), name
    with pytest.raises(ValueError, match="no old model in the first phase"):
        model.old_features(batch())


@pytest.mark.parametrize("kl_temperature", [1.0, 0.3, None])
def test_a_step_is_the_paper_by_hand(kl_temperature):
    model = ModX.tiny(40, weight=3.0, kl_temperature=kl_temperature, reduction="mean", diagonal=False)
    model.start_phase()
    stirred(model).train()
    data = batch()
    before = copy.deepcopy(model)
    losses = model(data)
    v, w = before.current.pair_features(data)
    old = before.old.image_features(data["image"]), before.old.text_features(data["input_ids"], data["attention_mask"])
    t = kl_temperature or before.temperature.item()
    kl = naive(v.detach().double(), w.detach().double(), *(x.double() for x in old), t, "mean", diagonal=False)
    assert losses["off_diagonal"].item() == pytest.approx(kl, rel=1e-2, abs=1e-6) and kl > 1e-5
    clip = before.current(data)["loss"]
    assert losses["clip"].item() == pytest.approx(clip.item(), rel=1e-6)
    assert losses["loss"].item() == pytest.approx(clip.item() + 3 * kl, rel=1e-5)
    s = old[0] @ old[1].T
    assert float(losses["kept"]) == pytest.approx(float((right_rows(s).sum() + right_rows(s.T).sum()) / 12))
    assert list(losses) == ["loss", "clip", "temperature", "off_diagonal", "kept"]
    losses["off_diagonal"].backward()  # a learnt temperature in the regulariser stays out of it
    assert model.current.logit_scale.grad is None


def test_both_directions_are_counted_and_near_rows_are_no_ties_under_autocast(monkeypatch):
    model = ModX.tiny(40).train()
    model.start_phase()
    v = F.normalize(1 + 0.05 * unit(6, 128, dtype=torch.float32), dim=1)  # in bfloat16 all cosines are 1
    monkeypatch.setattr(model, "old_features", lambda data: (v, v))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(batch())["kept"].item() == 1
    w = torch.eye(6, 128)
    shared = w.clone()
    shared[1] = F.normalize(w[0] + 0.5 * w[1], dim=0)  # two pictures like text 0: it still finds its own
    monkeypatch.setattr(model, "old_features", lambda data: (shared, w))
    assert model(batch())["kept"].item() == pytest.approx(11 / 12)
    monkeypatch.setattr(model, "old_features", lambda data: (w, shared))
    assert model(batch())["kept"].item() == pytest.approx(11 / 12)


def test_selection_is_a_setting():
    plain, every = (ModX.tiny(40, selection=selection) for selection in (True, False))
    for model in (plain, every):
        model.start_phase()
        stirred(model).eval()
    ours, theirs = plain(batch()), every(batch())
    assert float(ours["kept"]) < 1 and ours["off_diagonal"] < theirs["off_diagonal"]


def test_a_fresh_copy_gives_exactly_clips_gradient():
    model = ModX.tiny(40, selection=False)
    model.start_phase()
    model.eval()
    losses = model(batch())
    assert losses["off_diagonal"].item() == 0
    losses["off_diagonal"].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.current.parameters())


def test_the_old_model_is_frozen_in_eval_mode_and_never_learns():
    model = ModX.tiny(40, selection=False).train()
    model.start_phase()
    stirred(model)
    for mode in (True, False, True):
        model.train(mode)
        assert model.current.training == mode and not any(part.training for part in model.old.modules())
    frozen = copy.deepcopy(model.old.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in model.old.parameters()} and held == {
        id(p) for p in model.current.parameters() if p.requires_grad
    }
    for seed in range(3):
        optimizer.zero_grad()
        model(batch(seed=seed))["loss"].backward()
        optimizer.step()
    assert all(p.grad is None for p in model.old.parameters())
    assert all(torch.equal(value, frozen[name]) for name, value in model.old.state_dict().items())  # buffers, too
    assert any(not torch.equal(value, frozen[name]) for name, value in model.current.state_dict().items())


def test_the_teacher_is_the_last_phases_end():
    model = ModX.tiny(40)
    ends = []
    for phase in range(3):
        if phase:
            model.start_phase()
            assert int(model.phase) == phase
            assert all(torch.equal(value, ends[-1][name]) for name, value in model.old.state_dict().items())
        stirred(model, seed=phase)
        ends.append(copy.deepcopy(model.current.state_dict()))
    data = batch()
    assert torch.equal(model.image_features(data["image"]), model.current.image_features(data["image"]))


@pytest.mark.parametrize("phases", [0, 2])
def test_saved_and_loaded_it_goes_on_the_same(tmp_path, phases):
    model = ModX.tiny(40, dim=64, weight=2.0, reduction="mean", selection=False)
    for phase in range(phases):
        stirred(model, seed=phase).start_phase()
    stirred(model, seed=9)
    again = ModX.load(model.save(tmp_path, seconds=3))
    assert again.built == model.built and int(again.phase) == phases and (again.old is None) == (phases == 0)
    assert not again.training and again.weight == 2.0 and not again.rows["selection"]
    ours, theirs = again.train()(batch()), model.train()(batch())
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert again.old is None or not any(p.requires_grad for p in again.old.parameters())
    with pytest.raises(ValueError, match="describes a 'modx', not a 'continual'"):
        Continual.load(tmp_path)


def test_it_begins_with_a_trained_clip_too(tmp_path):
    clip = CLIP.tiny(40, dim=64)
    model = ModX(clip, weight=1.0)
    model.start_phase()
    assert model.current is clip and model.built == {**clip.built, **model.built}
    assert ModX.load(model.save(tmp_path)).weight == 1.0
    del clip.built
    with pytest.raises(ValueError, match="save works on models from ModX.tiny"):
        ModX(clip).save(tmp_path)


def test_the_summarys_model_keeps_nothing_and_turns_its_features(tmp_path):
    model = SummaryModX.tiny(40, weight=0.5).train()
    losses = model(batch())
    assert list(losses) == ["loss", "clip", "temperature", "summary"]
    assert losses["loss"].item() == pytest.approx((losses["clip"] + 0.5 * losses["summary"]).item())
    assert float(model.projection.norm()) == pytest.approx(1)
    before = model.projection.clone()
    model.eval()(batch())
    assert torch.equal(model.projection, before)
    v = model.image_features(batch()["image"])
    expected = F.normalize(model.current.image_features(batch()["image"]) @ before.T, dim=1)
    torch.testing.assert_close(v, expected)
    texts = batch()["input_ids"], batch()["attention_mask"]
    expected = F.normalize(model.current.text_features(*texts) @ before.T, dim=1)
    torch.testing.assert_close(model.text_features(*texts), expected)
    assert not any(name.startswith("old.") for name in model.state_dict())
    assert torch.equal(SummaryModX.load(model.save(tmp_path)).projection, before)


def test_the_model_names_what_is_wrong():
    for settings, words in [
        ({"weight": -1.0}, "weight: expected a number of 0 or more, got -1"),
        ({"weight": math.nan}, "weight"),
        ({"kl_temperature": 0.0}, "kl_temperature"),
        ({"reduction": "none"}, "reduction is 'none'"),
    ]:
        with pytest.raises(ValueError, match=words):
            ModX.tiny(40, **settings)
    with pytest.raises(TypeError, match="current: expected a CLIP, got Linear"):
        ModX(torch.nn.Linear(2, 2))
    model = ModX.tiny(40)
    model.start_phase()
    with pytest.raises(ValueError, match="batch of one pair"):
        model(batch(1))
    model.old = CLIP.tiny(40, dim=64)
    with pytest.raises(ValueError, match="the old model's features have width 64 and the current model's 128"):
        model.eval()(batch())
