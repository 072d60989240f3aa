"""CODIS: both losses against loops in float64, who gets a gradient, and every variant as a setting of one class."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from test_albef import dice, features, naive_direction, unit

from vlnotes.albef import ALBEF, Four, itc_loss, sample_hard_negatives
from vlnotes.augment import Augmentation
from vlnotes.codis import (
    ASSIGNMENTS,
    CODIS,
    GENTLE,
    assign,
    codebook_loss,
    ica_loss,
    prefer_same_code,
)
from vlnotes.contrastive import clip_loss
from vlnotes.momentum import FeatureQueue

# ---------------------------------------------------------------------------------------------- four directions


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_ica_is_the_double_loop_in_four_directions(weight, tiled):
    v, w, tv, tw, qv, qw = features()
    found = ica_loss(v, w, tv, tw, qv, qw, temperature=0.2, distill_weight=weight, tiled=tiled)
    four = [(v, tw, tv, qw), (w, tv, tw, qv), (v, tv, tv, qv), (w, tw, tw, qw)]
    expected = sum(naive_direction(*one, 0.2, weight) for one in four) / 4
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_ica_spreads_the_hard_target_over_the_same_picture():
    v, w, tv, tw, qv, qw = features()
    ids, images = torch.tensor([3, 3, 8, -1, -1]), torch.tensor([8, -1, 3, 9, 8, -1, 3])
    texts = torch.tensor([3, 3, 3, 8, -1, -1, 7])
    more = {"ids": ids, "image_ids": images, "text_ids": texts}
    found = ica_loss(v, w, tv, tw, qv, qw, temperature=0.2, distill_weight=0.3, **more)
    four = [(v, tw, tv, qw, texts), (w, tv, tw, qv, images), (v, tv, tv, qv, images), (w, tw, tw, qw, texts)]
    expected = sum(naive_direction(*one[:4], 0.2, 0.3, ids, one[4]) for one in four) / 4
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_ica_of_one_modality_is_itc_and_clip():
    """Where text and picture features are the same, all four directions ask the same question."""
    v, tv, qv = unit(5), unit(5, seed=1), unit(7, seed=2)
    found = ica_loss(v, v, tv, tv, qv, qv, temperature=0.2, distill_weight=0.4)
    expected = itc_loss(v, v, tv, tv, qv, qv, temperature=0.2, distill_weight=0.4)
    assert float(found) == pytest.approx(float(expected), rel=1e-12)
    assert float(ica_loss(v, v, v, v, temperature=0.1)) == pytest.approx(float(clip_loss(v, v, temperature=0.1)))


def test_ica_tiled_equals_plain_in_value_and_gradient(monkeypatch):
    from vlnotes import _tiled

    monkeypatch.setattr(_tiled, "tile_entries", lambda x: 300)  # several tiles of 128 rows
    v, w, tv, tw, _, _ = features(4)
    qv, qw = unit(500, seed=8), unit(500, seed=9)
    results = []
    for tiled in (True, False):
        x, y = v.clone().requires_grad_(), w.clone().requires_grad_()
        t = torch.tensor(0.13, dtype=torch.float64, requires_grad=True)
        loss = ica_loss(x, y, tv, tw, qv, qw, temperature=t, distill_weight=0.4, tiled=tiled)
        results.append([loss, *torch.autograd.grad(loss, (x, y, t))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_ica_gradient_is_the_derivative_and_reaches_the_student_alone():
    v, w, tv, tw, qv, qw = (one.requires_grad_() for one in features(3, 4))
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def loss(v, w):
        return ica_loss(v, w, tv, tw, qv, qw, temperature=0.3, distill_weight=0.4)

    assert torch.autograd.gradcheck(loss, (v, w))
    ica_loss(v, w, tv, tw, qv, qw, temperature=t, distill_weight=0.4).backward()
    assert all(one.grad is not None for one in (v, w, t))
    assert all(one.grad is None for one in (tv, tw, qv, qw))


def test_ica_names_what_is_wrong():
    v, w, tv, tw, qv, qw = features()
    with pytest.raises(ValueError, match="both or none"):
        ica_loss(v, w, tv, tw, qv, temperature=0.1)
    with pytest.raises(ValueError, match="distill_weight"):
        ica_loss(v, w, tv, tw, temperature=0.1, distill_weight=1.5)
    with pytest.raises(ValueError, match="NaN"):
        ica_loss(v, w * torch.nan, tv, tw, qv, qw, temperature=0.1)


# ---------------------------------------------------------------------------------------------- codebook


def naive_codebook(v, w, tv, tw, codebook, t, plans, cross=True):
    """The three parts, loops over rows and codewords; the plans (2, N, C) are given."""
    words = [word / word.norm() for word in codebook]
    transport = 0.0
    for plan, known in zip(plans, (tv, tw), strict=True):
        for i in range(len(known)):
            for j, word in enumerate(words):
                transport += float(plan[i, j]) * (1 - float(known[i] @ word))

    def predict(x, plan):
        total = 0.0
        for i in range(len(x)):
            logits = [float(x[i] @ word) / t for word in words]
            normaliser = math.log(sum(math.exp(value) for value in logits))
            share = [float(value) / float(plan[i].sum()) for value in plan[i]]
            total -= sum(s * (value - normaliser) for s, value in zip(share, logits, strict=True))
        return total / len(x)

    of_image, of_text = plans if cross else plans.flip(0)
    return transport, predict(w, of_image), predict(v, of_text)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("pairing", ["cross", "same"])
def test_the_codebook_loss_is_the_loop(pairing, assignment):
    v, w, tv, tw, _, _ = features()
    codebook = 3 * torch.randn(4, 6, generator=dice(9), dtype=torch.float64)  # lengths are taken out
    settings = {"temperature": 0.2, "beta": 0.3, "outer": 7, "assignment": assignment, "pairing": pairing}
    found = codebook_loss(v, w, tv, tw, codebook, **settings)
    words = F.normalize(codebook, dim=1)
    plans = torch.stack([assign(1 - one @ words.T, assignment, beta=0.3, outer=7) for one in (tv, tw)])
    expected = naive_codebook(v, w, tv, tw, codebook, 0.2, plans, pairing == "cross")
    assert [float(part) for part in found] == pytest.approx(expected, rel=1e-9)
    assert found._fields == ("transport", "text_to_prototype", "image_to_prototype")


def test_the_queues_join_the_transport_and_nothing_else():
    v, w, tv, tw, qv, qw = features()
    codebook = unit(4, seed=9)
    found = codebook_loss(v, w, tv, tw, codebook, temperature=0.2, image_queue=qv, text_queue=qw)
    known = [torch.cat([tv, qv]), torch.cat([tw, qw])]
    plans = torch.stack([assign(1 - one @ codebook.T) for one in known])  # (2, 5 + 7, 4)
    expected = naive_codebook(v, w, *known, codebook, 0.2, plans)
    assert [float(part) for part in found] == pytest.approx(expected, rel=1e-9)
    alone = codebook_loss(v, w, tv, tw, codebook, temperature=0.2)
    assert all(abs(float(one - other)) > 1e-4 for one, other in zip(found, alone, strict=True))


def test_the_transport_moves_the_codebook_alone_and_the_rest_students_and_codebook():
    v, w, tv, tw, qv, qw = (one.requires_grad_() for one in features())
    codebook = unit(4, seed=9).requires_grad_()
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    parts = codebook_loss(v, w, tv, tw, codebook, temperature=t, image_queue=qv, text_queue=qw)
    everyone = {"v": v, "w": w, "codebook": codebook, "t": t, "tv": tv, "tw": tw, "qv": qv, "qw": qw}
    reached = []
    for part in parts:
        gradients = torch.autograd.grad(part, list(everyone.values()), allow_unused=True, retain_graph=True)
        reached.append({n for n, g in zip(everyone, gradients, strict=True) if g is not None and bool(g.any())})
    assert reached == [{"codebook"}, {"w", "codebook", "t"}, {"v", "codebook", "t"}]


def test_gradients_of_the_codebook_loss_are_derivatives():
    v, w, tv, tw, _, _ = features(3)
    codebook = unit(4, seed=9).requires_grad_()

    def predictions(v, w):
        return sum(codebook_loss(v, w, tv, tw, codebook.detach(), temperature=0.3)[1:])

    assert torch.autograd.gradcheck(predictions, (v.requires_grad_(), w.requires_grad_()))
    # the codebook moves the plan, too, which counts as given: with the plan fixed it is the derivative
    known = torch.stack([tv, tw])
    plan = assign(1 - known @ codebook.detach().T)
    (ours,) = torch.autograd.grad(codebook_loss(v, w, tv, tw, codebook, temperature=0.3).transport, codebook)
    fixed = (plan * (1 - known @ F.normalize(codebook, dim=1).T)).sum()
    (theirs,) = torch.autograd.grad(fixed, codebook)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_pairing_and_the_students_own_plan_change_the_loss():
    v, w, tv, tw, _, _ = features()
    codebook = unit(4, seed=9)
    cross, same, own = (
        codebook_loss(v, w, a, b, codebook, temperature=0.2, pairing=pairing)
        for a, b, pairing in ((tv, tw, "cross"), (tv, tw, "same"), (v, w, "cross"))
    )
    assert cross.transport == same.transport and cross.transport != own.transport
    assert all(abs(float(one - other)) > 1e-4 for one, other in zip(cross[1:], same[1:], strict=True))
    # with the modalities swapped the parts change places
    swapped = codebook_loss(w, v, tw, tv, codebook, temperature=0.2)
    torch.testing.assert_close(swapped.text_to_prototype, cross.image_to_prototype)


def test_a_perfect_codebook_costs_nothing():
    """Each of four orthogonal features is its own codeword: no cost, and the predictions are as sure as t lets them."""
    x = torch.eye(4, dtype=torch.float64)
    found = codebook_loss(x, x, x, x, 5 * x, temperature=0.1, beta=0.1, outer=20)
    assert float(found.transport) == pytest.approx(0, abs=1e-12)
    sure = math.log(1 + 3 * math.exp(-10))
    assert float(found.text_to_prototype) == pytest.approx(sure, rel=1e-6)
    assert float(found.image_to_prototype) == pytest.approx(sure, rel=1e-6)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_a_plan_has_mass_one_and_transport_shares_codewords_out(assignment):
    cost = 1 - unit(60, seed=1) @ F.normalize(unit(5, seed=2) + unit(1, seed=3), dim=1).T
    plan = assign(cost[None].requires_grad_(), assignment, beta=0.05, outer=200)
    assert plan.shape == (1, 60, 5) and not plan.requires_grad
    assert float(plan.sum()) == pytest.approx(1)
    spread = plan.sum(1)[0].max() - plan.sum(1)[0].min()  # of the mass of codewords
    assert (spread < 1e-6) == (assignment in ("ipot", "sinkhorn"))
    if assignment == "kmeans":
        assert torch.equal(plan[0].argmax(1), cost.argmin(1)) and (plan > 0).sum() == 60
    if assignment == "softmax":
        torch.testing.assert_close(plan[0], (-cost / 0.05).softmax(1) / 60)


def test_half_precision_features_are_transported_in_float32():
    four = [one.bfloat16() for one in features()[:4]]
    with torch.autocast("cpu", torch.bfloat16):
        found = codebook_loss(*four, unit(4, seed=9, dtype=torch.float32), temperature=0.1)
    exact = codebook_loss(*(one.double() for one in four), unit(4, seed=9, dtype=torch.float32), temperature=0.1)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32 and float(one) == pytest.approx(float(other), rel=1e-3)


def test_the_codebook_loss_names_what_is_wrong():
    v, w, tv, tw, qv, qw = features()
    codebook = unit(4, seed=9)
    wrong = [
        ({"pairing": "both"}, "pairing is 'both'; expected one of cross, same"),
        ({"assignment": "argmax"}, "assignment is 'argmax'; expected one of ipot, sinkhorn, softmax, kmeans"),
        ({"beta": 0.0}, "beta"),
        ({"temperature": 0.0}, "temperature"),
        ({"image_queue": qv}, "both or none"),
        ({"image_queue": qv, "text_queue": qw[:3]}, "image_queue and text_queue"),
        ({"image_queue": qv[:, :3], "text_queue": qw[:, :3]}, "image_queue: expected 6 features"),
    ]
    for more, words in wrong:
        with pytest.raises(ValueError, match=words):
            codebook_loss(v, w, tv, tw, codebook, **{"temperature": 0.1, **more})
    with pytest.raises(ValueError, match="codebook: expected 6 features"):
        codebook_loss(v, w, tv, tw, codebook[:, :5], temperature=0.1)
    with pytest.raises(ValueError, match="image_features and teacher_image_features"):
        codebook_loss(v[:3], w[:3], tv, tw, codebook, temperature=0.1)
    with pytest.raises(TypeError, match="codebook"):
        codebook_loss(v, w, tv, tw, codebook.long(), temperature=0.1)
    for at, name in enumerate(("image_features", "text_features", "teacher_image_features", "teacher_text_features")):
        given = [v, w, tv, tw]
        given[at] = given[at].clone()
        given[at][2, 1] = torch.nan
        with pytest.raises(ValueError, match=f"^{name}: .*NaN"):
            codebook_loss(*given, codebook, temperature=0.1)
    with pytest.raises(ValueError, match="^codebook: .*infin"):
        codebook_loss(v, w, tv, tw, codebook / 0, temperature=0.1)


# ---------------------------------------------------------------------------------------------- negatives


def test_negatives_come_from_the_own_codeword_where_there_are_any():
    codes, ids = torch.tensor([1, 1, 2, 2, 2, 3]), torch.tensor([0, 1, 2, 2, 4, 5])
    generator = dice(1)
    for case in range(300):
        logits = torch.randn(6, 6, generator=generator) * [1.0, 1e4, 1e6][case % 3]
        plain = sample_hard_negatives(prefer_same_code(logits, codes), generator=generator)
        assert plain[:2].tolist() == [1, 0] and set(plain[2:5].tolist()) <= {2, 3, 4} and int(plain[5]) != 5
        assert not (plain == torch.arange(6)).any()
        known = sample_hard_negatives(prefer_same_code(logits, codes, ids), ids, generator=generator)
        assert known[2:4].tolist() == [4, 4]  # 2 and 3 show one picture
    logits = torch.randn(6, 6, generator=generator)
    kept = prefer_same_code(logits, codes)
    same = codes[:, None] == codes
    assert torch.equal(kept[same], logits[same]) and torch.equal(kept[5], logits[5])
    alone = torch.tensor([0, 1, 2, 2, 2, 2])  # where a picture is the only one of its codeword, nothing changes
    assert torch.equal(prefer_same_code(logits, codes, alone)[2:5], logits[2:5])


def test_same_codes_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"codes \(B,\), got \(3, 3\) and \(2,\)"):
        prefer_same_code(torch.zeros(3, 3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"similarity \(B, B\)"):
        prefer_same_code(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        prefer_same_code(torch.full((2, 2), torch.nan), torch.zeros(2))


# ---------------------------------------------------------------------------------------------- the module


def batch(count=6, length=9, vocab=40, seed=0, size=32):
    generator = dice(seed)
    mask = (torch.arange(length) < torch.randint(4, length + 1, (count, 1), generator=generator)).long()
    ids = torch.randint(5, vocab, (count, length), generator=generator) * mask
    ids[:, 0] = 2
    image = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return {"image": image, "input_ids": ids, "attention_mask": mask, "ids": torch.arange(count)}


def tiny(cls=CODIS, **options):
    return cls.tiny(40, size=32, layers=1, **{"queue_size": 8, **({"codewords": 5} if cls is CODIS else {}), **options})


def stirred(model, amount=0.05):
    """The model with a student that is no longer its teacher, and a head that is not near zero."""
    generator = dice(5)
    with torch.no_grad():
        for parameter in [*model.student.parameters(), *model.itm_head.parameters()]:
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return model


def four_of(model, student_view, teacher_view, data):
    """Features after the teacher's step."""
    teacher = copy.deepcopy(model.teacher)
    for old, new in zip(teacher.parameters(), model.student.parameters(), strict=True):
        old.data = model.momentum * old.data + (1 - model.momentum) * new.data
    texts = data["input_ids"], data["attention_mask"]
    student = model.student.see(student_view).features, model.student.read(*texts).features
    with torch.no_grad():
        return Four(*student, teacher.see(teacher_view).features, teacher.read(*texts).features)


def test_row_a_is_albef():
    """With ALBEF's objectives and one plain view every step is ALBEF's own, to the last bit."""
    albef = stirred(tiny(ALBEF, mask_probability=0.4)).train()
    codis = stirred(tiny(objectives=("itc", "itm", "mlm"), views="none", mask_probability=0.4)).train()
    for seed in (0, 1):
        ours, theirs = codis(batch(seed=seed)), albef(batch(seed=seed))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name, value in albef.state_dict().items():
        assert torch.equal(codis.state_dict()[name], value), name


@pytest.mark.parametrize("plan_from", ["teacher", "student"])
@pytest.mark.parametrize("plan_queue", [False, True])
@pytest.mark.parametrize("code_temperature", [0.2, None])
def test_a_step_is_the_paper_by_hand(plan_from, plan_queue, code_temperature):
    settings = {"plan_from": plan_from, "plan_queue": plan_queue, "code_temperature": code_temperature, "beta": 0.1}
    model = tiny(objectives=("ica", "code"), momentum=0.7, code_weight=0.3, ica_weight=2.0, outer=9, **settings)
    model = stirred(model).train()
    data, key = batch(), batch(seed=1)["image"]
    model.image_queue.push(unit(3, 128, seed=1, dtype=torch.float32))
    model.text_queue.push(unit(3, 128, seed=2, dtype=torch.float32))
    before = copy.deepcopy(model)
    found = model({**data, "image_key": key})
    four = four_of(before, data["image"], key, data)
    queues = before.image_queue.features, before.text_queue.features
    t = before.temperature
    expected = {"ica": ica_loss(*four, *queues, temperature=t, distill_weight=0.4)}
    more = {"image_queue": queues[0][:3], "text_queue": queues[1][:3]} if plan_queue else {}
    known = four[2:] if plan_from == "teacher" else four[:2]
    parts = codebook_loss(
        *four[:2], *known, before.codebook, temperature=code_temperature or t, beta=0.1, outer=9, **more
    )
    expected |= parts._asdict()
    assert list(found) == ["loss", *expected, "temperature", "distill_weight"]
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-4, atol=1e-5, msg=name)
    total = 2 * expected["ica"] + 0.3 * sum(parts)
    torch.testing.assert_close(found["loss"], total, rtol=1e-5, atol=1e-5)
    named = dict(before.named_parameters())
    learnt = [name for name, p in named.items() if p.requires_grad and name in ("codebook", "temperature")]
    learnt += ["student.image_projection.weight", "student.text_projection.weight"]
    ours = torch.autograd.grad(found["loss"], [dict(model.named_parameters())[name] for name in learnt])
    theirs = torch.autograd.grad(total, [named[name] for name in learnt])
    for name, one, other in zip(learnt, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)
    torch.testing.assert_close(model.image_queue.features[3:8], four.teacher_image[:5])  # fed last, and it wraps
    torch.testing.assert_close(model.image_queue.features[:1], four.teacher_image[5:])


def test_settings_reach_the_loss(monkeypatch):
    asked = []
    monkeypatch.setattr("vlnotes.codis.codebook_loss", lambda *a, **k: asked.append(k) or codebook_loss(*a, **k))
    for settings in ({"pairing": "same"}, {"assignment": "sinkhorn", "beta": 0.05, "outer": 3}, {"inner": 2}):
        tiny(objectives=("itc", "code"), **settings).train()(batch())
        assert settings.items() <= asked[-1].items()
    assert asked[0]["temperature"] == 0.1 and "image_queue" not in asked[0]
    tiny(objectives=("itc", "code"), plan_queue=True).train()(batch())  # an empty queue is only noise
    assert "image_queue" not in asked[-1]


def test_the_ablation_is_a_matter_of_objectives():
    parts = ["transport", "text_to_prototype", "image_to_prototype"]
    rows = {
        ("itc", "itm", "mlm"): ["itc", "itm", "mlm"],
        ("ica", "itm", "mlm"): ["ica", "itm", "mlm"],
        ("itc", "code", "itm", "mlm"): ["itc", *parts, "itm", "mlm"],
        ("ica", "code", "itm", "mlm"): ["ica", *parts, "itm", "mlm"],
        ("code",): parts,
    }
    for objectives, names in rows.items():
        model = tiny(objectives=objectives, code_weight=0.5).train()
        losses = model(batch())
        assert list(losses) == ["loss", *names, "temperature", "distill_weight"]
        expected = sum((0.5 if name in parts else 1) * losses[name] for name in names)
        assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
        assert model.image_queue.filled == 6


def test_every_part_learns_and_the_teacher_does_not():
    model = tiny().train()
    model(batch())["loss"].backward()
    student = [(n, p) for n, p in model.named_parameters() if not n.startswith("teacher.")]
    quiet = [n for n, p in student if p.grad is None and not n.endswith("embed_positions.weight")]
    assert not quiet, quiet
    assert model.codebook.grad.abs().sum() > 0 and all(p.grad is None for p in model.teacher.parameters())


def test_two_views_are_drawn_anew_at_every_step_and_only_one_where_that_is_asked(monkeypatch):
    def seen(model):
        kept = []
        for encoders in (model.student, model.teacher):
            see = encoders.see
            monkeypatch.setattr(encoders, "see", lambda image, see=see: kept.append(image) or see(image))
        model(batch())
        return kept

    one, two = seen(tiny(objectives=("itc",)).train())
    assert one.is_floating_point() and not torch.equal(one, two) and 0 <= float(one.min()) <= float(one.max()) <= 1
    torch.manual_seed(3)
    again = seen(tiny(objectives=("itc",)).train())  # a function of seed and step alone
    assert torch.equal(one, again[0]) and torch.equal(two, again[1])
    other = seen(tiny(objectives=("itc",), seed=1).train())
    assert not torch.equal(one, other[0])
    model = tiny(objectives=("itc",), second_view=False).train()
    assert torch.equal(*seen(model)) and torch.equal(one, seen(tiny(objectives=("itc",), second_view=False).train())[0])
    assert not torch.equal(one, seen(model)[0])  # the next step
    raw = seen(tiny(objectives=("itc",), views="none").train())
    assert all(torch.equal(image, batch()["image"]) for image in raw)
    mirrored = tiny(objectives=("itc",), views=Augmentation(smallest=1.0, flip=1.0, jitter=0.0, grey=0.0, blur=0.0))
    torch.testing.assert_close(seen(mirrored)[0], batch()["image"].flip(3) / 255, atol=0.02, rtol=0)
    assert GENTLE.flip == GENTLE.grey == GENTLE.strength[3] == 0  # captions say left and red


def test_views_do_not_change_masks_and_negatives(monkeypatch):
    from vlnotes.text import mask_tokens

    hidden = []

    def hide(*given, **more):
        hidden.append(mask_tokens(*given, **more))
        return hidden[-1]

    monkeypatch.setattr("vlnotes.albef.mask_tokens", hide)
    for views in ("gentle", "none"):
        tiny(objectives=("itc", "mlm"), views=views, mask_probability=0.5).train()(batch())
    assert torch.equal(hidden[0][0], hidden[1][0])


def test_negatives_of_the_same_codeword_reach_itm(monkeypatch):
    kept = []
    monkeypatch.setattr(
        "vlnotes.albef.sample_hard_negatives", lambda s, *a, **k: kept.append(s) or sample_hard_negatives(s, *a, **k)
    )
    model = stirred(tiny(objectives=("ica", "code", "itm"), same_code=True, codewords=2, momentum=0.5)).train()
    data = {**batch(), "image_key": batch()["image"]}
    four = four_of(model, data["image"], data["image"], data)
    across = four.teacher_text[0] - four.teacher_text.mean(0)
    along = F.normalize(four.teacher_text.mean(0), dim=0)
    across = across - (across @ along) * along  # at right angles to what all texts share: some lie on either side
    model.codebook.data = torch.stack([across, -across])
    before = copy.deepcopy(model)
    model(data)
    t = before.temperature.detach()
    plain = four.text.detach() @ four.teacher_image.T / t, four.image.detach() @ four.teacher_text.T / t
    for found, logits, known in zip(kept, plain, (four.teacher_image, four.teacher_text), strict=True):
        codes = (known @ F.normalize(before.codebook, dim=1).T).argmax(1)
        torch.testing.assert_close(found, prefer_same_code(logits, codes), rtol=1e-3, atol=1e-2)
    assert any((found < found.max() - 100).any() for found in kept)  # something was left out


def test_a_second_layer_is_aligned_by_projections_of_its_own():
    early = ("layers.8", "model.embeddings")
    model = stirred(tiny(objectives=("ica", "code"), early=early, early_weight=0.5, momentum=0.7)).train()
    data = {**batch(), "image_key": batch(seed=1)["image"]}
    before = copy.deepcopy(model)
    found = model(data)
    teacher = copy.deepcopy(before.teacher)
    for old, new in zip(teacher.parameters(), before.student.parameters(), strict=True):
        old.data = 0.7 * old.data + 0.3 * new.data
    mask = data["attention_mask"]

    def means(encoders, image):
        tower = encoders.image_encoder
        cells = tower.layers[:9](tower.normalise(image))  # (B, W, h, w)
        words = encoders.text_encoder.model.embeddings(data["input_ids"])
        words = torch.stack([row[: int(own.sum())].mean(0) for row, own in zip(words, mask, strict=True)])
        return [
            F.normalize(project(x), dim=1)
            for project, x in zip(encoders.early, (cells.mean((2, 3)), words), strict=True)
        ]

    four = Four(*means(before.student, data["image"]), *means(teacher, data["image_key"]))
    expected = ica_loss(*four, temperature=before.temperature, distill_weight=0.4)
    torch.testing.assert_close(found["early"], expected, rtol=1e-4, atol=1e-5)
    rest = model.total({name: found[name] for name in ("ica", "transport", "text_to_prototype", "image_to_prototype")})
    torch.testing.assert_close(found["loss"], rest + 0.5 * found["early"])
    found["loss"].backward()
    assert all(project.weight.grad.abs().sum() > 0 for project in model.student.early)
    assert not any(p.requires_grad for p in model.teacher.early.parameters())
    names = [name for tower in (model.student, model.teacher) for name, m in tower.named_modules() if m._forward_hooks]
    assert names == []  # nothing listens on
    crossed = tiny(objectives=("itc",), early=early).train()(batch())
    assert {"itc", "early"} <= crossed.keys() and "ica" not in crossed
    model = copy.deepcopy(before)
    model.distill = ()  # the teacher has a say in both alignments or in none
    expected = ica_loss(*four, temperature=before.temperature)
    torch.testing.assert_close(model(data)["early"], expected, rtol=1e-4, atol=1e-5)


def test_measuring_an_early_layer_leaves_the_towers_as_they_were():
    plain, early = tiny(objectives=("itc",)), tiny(objectives=("itc",), early=("layers.8", "model.embeddings"))
    for name, value in plain.student.state_dict().items():
        assert torch.equal(early.student.state_dict()[name], value), name
    assert all(module.training for module in early.modules())


@pytest.mark.parametrize(
    ("image", "layer"), [("resnet18", "layers.5"), ("vit", "model.layers.1"), ("vit", "model.embeddings")]
)
def test_an_early_layer_of_other_towers(image, layer):
    model = CODIS.tiny(
        40,
        image=image,
        size=32,
        layers=1,
        queue_size=0,
        objectives=("itc",),
        early=(layer,) * 1 + ("model.encoder.layer.0",),
    )
    assert math.isfinite(model.train()(batch(3))["early"].item())


def test_without_a_momentum_teacher_everything_moves_at_once():
    model = stirred(tiny(objectives=("ica", "code"), momentum=0.0)).train()
    model(batch())
    for old, new in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
        assert torch.equal(old, new)


def test_nothing_moves_in_evaluation():
    model = stirred(tiny()).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (model(batch()) for _ in range(2))
    assert first["loss"].item() == second["loss"].item()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_codes_are_the_nearest_codewords():
    model = tiny()
    with torch.no_grad():
        model.codebook.mul_(torch.arange(1.0, 6.0)[:, None])  # lengths do not count
    words = F.normalize(model.codebook.detach(), dim=1)
    assert model.codes(words[[3, 0, 4]] + 0.01).tolist() == [3, 0, 4]
    assert model.codes((0.6 * words[0] + 0.4 * words[4])[None]).tolist() == [0]


@pytest.mark.parametrize("compact", [False, True])
def test_saved_and_loaded_it_is_the_same(tmp_path, compact):
    model = tiny(momentum=0.9, early=("layers.8", "model.embeddings")).train()
    model(batch())
    model.eval().save(tmp_path, compact=compact)
    again = CODIS.load(tmp_path)
    assert (
        again.built == {**model.built, "early": list(model.early)}
        and again.early == model.early
        and isinstance(again.image_queue, FeatureQueue)
    )
    kept = ("student.", "codebook", "itm_head.") if compact else ("",)
    close = {"rtol": 1e-3, "atol": 1e-4} if compact else {"rtol": 0, "atol": 0}
    for name, value in model.state_dict().items():
        if name.startswith(kept):
            torch.testing.assert_close(again.state_dict()[name], value, msg=name, **close)
    with pytest.raises(ValueError, match="describes a 'codis', not a 'albef'"):
        ALBEF.load(tmp_path)


def test_tiny_has_the_small_settings_and_the_class_the_papers():
    model = CODIS.tiny(40, size=32, layers=1)
    assert (len(model.codebook), model.code_weight, model.code_temperature) == (64, 0.1, 0.1)
    paper = CODIS(model.student, model.vocabulary, queue_size=0)
    assert (len(paper.codebook), paper.code_weight, paper.code_temperature) == (4000, 1.0, None)
    torch.testing.assert_close(paper.codebook.norm(dim=1), torch.ones(4000))


def test_bad_settings_are_named():
    wrong = [
        ({"objectives": ("itc", "ica")}, "both 'itc' and 'ica'"),
        ({"objectives": ("ica", "codes")}, "objectives .* must be some of .*'ica', 'code'"),
        ({"pairing": "both"}, "pairing is 'both'"),
        ({"assignment": "argmax"}, "assignment is 'argmax'"),
        ({"plan_from": "queue"}, "plan_from is 'queue'; expected one of teacher, student"),
        ({"views": "v3"}, "views is 'v3'; expected one of gentle, none"),
        ({"codewords": 0}, "got 0, 50, 1, 0.5"),
        ({"beta": 0.0}, "got 5, 50, 1, 0.0"),
        ({"code_weight": -1.0}, "a weight is negative: ica 1.0, code -1.0"),
        ({"code_temperature": 0.0}, "code_temperature"),
        ({"early": ("layers.99", "model.embeddings")}, "ConvTower has no layer 'layers.99'"),
        ({"early": ("layers.8", "model.embeddings"), "objectives": ("code",)}, "early aligns as"),
        ({"image": "mlp"}, "image tower"),
    ]
    for options, words in wrong:
        with pytest.raises(ValueError, match=words):
            tiny(**options)
    with pytest.raises(ValueError, match="image and image_key"):
        tiny().train()({**batch(), "image_key": batch(size=16)["image"]})
