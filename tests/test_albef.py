"""ALBEF: every loss against loops in float64, the sampler at its worst, and the module's promises."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from vlnotes.albef import ALBEF, itc_loss, itm_loss, mlm_loss, rerank, sample_hard_negatives, sinusoids
from vlnotes.clip import CLIP, encode_images, encode_texts
from vlnotes.codis import CODIS
from vlnotes.contrastive import clip_loss, soft_info_nce
from vlnotes.fusion import FusionEncoder
from vlnotes.momentum import FeatureQueue
from vlnotes.text import mask_tokens


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(rows, width=6, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(rows, width, generator=dice(seed), dtype=dtype), dim=1)


def features(rows=5, queue=7):
    """Student pictures and texts, teacher pictures and texts, two queues."""
    return [unit(rows, seed=i) for i in range(4)] + [unit(queue, seed=i) for i in (4, 5)]


def naive_direction(x, keys, teacher_x, queue, t, weight, ids=None, queue_ids=None):
    """The loss of one direction, a loop over rows and columns."""
    columns = [*keys, *queue]
    total = 0.0
    for i in range(len(x)):
        logits = [float(x[i] @ key) / t for key in columns]
        teacher = [math.exp(float(teacher_x[i] @ key) / t) for key in columns]
        right = [j == i for j in range(len(columns))]
        if ids is not None:
            labels = [*ids.tolist(), *queue_ids.tolist()]
            right = [j == i or (labels[j] == labels[i] and labels[i] >= 0) for j in range(len(columns))]
        normaliser = math.log(sum(math.exp(value) for value in logits))
        for j, value in enumerate(logits):
            target = weight * teacher[j] / sum(teacher) + (1 - weight) * right[j] / sum(right)
            total -= target * (value - normaliser)
    return total / len(x)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_itc_is_the_double_loop(weight, tiled):
    v, w, tv, tw, qv, qw = features()
    found = itc_loss(v, w, tv, tw, qv, qw, temperature=0.2, distill_weight=weight, tiled=tiled)
    expected = naive_direction(v, tw, tv, qw, 0.2, weight) / 2 + naive_direction(w, tv, tw, qv, 0.2, weight) / 2
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("tiled", [False, True])
def test_itc_spreads_the_hard_target_over_the_same_picture(tiled):
    v, w, tv, tw, qv, qw = features()
    ids, images = torch.tensor([3, 3, 8, -1, -1]), torch.tensor([8, -1, 3, 9, 8, -1, 3])
    texts = torch.tensor([3, 3, 3, 8, -1, -1, 7])
    settings = {"temperature": 0.2, "distill_weight": 0.3, "ids": ids, "tiled": tiled}
    found = itc_loss(v, w, tv, tw, qv, qw, image_ids=images, text_ids=texts, **settings)
    one = naive_direction(v, tw, tv, qw, 0.2, 0.3, ids, texts)
    other = naive_direction(w, tv, tw, qv, 0.2, 0.3, ids, images)
    assert float(found) == pytest.approx((one + other) / 2, rel=1e-9)


def test_itc_without_teacher_and_queues_is_symmetric_info_nce():
    v, w, tv, tw, _, _ = features(8)
    v, w = v.requires_grad_(), w.requires_grad_()
    found = itc_loss(v, w, tv, tw, temperature=0.1)
    rows = F.cross_entropy(v @ tw.T / 0.1, torch.arange(8)) + F.cross_entropy(w @ tv.T / 0.1, torch.arange(8))
    assert found.item() == pytest.approx(rows.item() / 2, rel=1e-12)
    gradients = [torch.autograd.grad(loss, (v, w)) for loss in (found, rows / 2)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    same = itc_loss(v.detach(), w.detach(), v.detach(), w.detach(), temperature=0.1)
    assert float(same) == pytest.approx(float(clip_loss(v, w, temperature=0.1).detach()), rel=1e-12)


@pytest.mark.parametrize("ids", [None, torch.tensor([1, 1, 2, 0])])
def test_itc_tiled_equals_plain_in_value_and_gradient(ids, monkeypatch):
    from vlnotes import _tiled

    monkeypatch.setattr(_tiled, "tile_entries", lambda x: 300)  # several tiles of 128 rows
    v, w, tv, tw, _, _ = features(4)
    qv, qw, old = unit(500, seed=8), unit(500, seed=9), torch.arange(500) % 7
    results = []
    for tiled in (True, False):
        x, y = v.clone().requires_grad_(), w.clone().requires_grad_()
        t = torch.tensor(0.13, dtype=torch.float64, requires_grad=True)
        more = {} if ids is None else {"ids": ids, "image_ids": old, "text_ids": old}
        loss = itc_loss(x, y, tv, tw, qv, qw, temperature=t, distill_weight=0.4, tiled=tiled, **more)
        results.append([loss, *torch.autograd.grad(loss, (x, y, t))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_itc_gradient_is_the_derivative_and_reaches_the_student_alone():
    v, w, tv, tw, qv, qw = (one.requires_grad_() for one in features(3, 4))
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def loss(v, w):
        return itc_loss(v, w, tv, tw, qv, qw, temperature=0.3, distill_weight=0.4)

    assert torch.autograd.gradcheck(loss, (v, w))
    itc_loss(v, w, tv, tw, qv, qw, temperature=t, distill_weight=0.4).backward()
    assert v.grad is not None and w.grad is not None and t.grad is not None
    assert tv.grad is None and tw.grad is None and qv.grad is None and qw.grad is None


def test_itc_takes_the_large_form_for_a_long_queue():
    v, w, tv, tw = (unit(16, 8, seed=i, dtype=torch.float32) for i in range(4))
    qv, qw = (unit(40_000, 8, seed=i, dtype=torch.float32) for i in (4, 5))
    chosen = itc_loss(v, w, tv, tw, qv, qw, temperature=0.1, distill_weight=0.4)
    plain = itc_loss(v, w, tv, tw, qv, qw, temperature=0.1, distill_weight=0.4, tiled=False)
    torch.testing.assert_close(chosen, plain, rtol=1e-5, atol=1e-5)


def test_itc_names_what_is_wrong():
    v, w, tv, tw, qv, qw = features()
    with pytest.raises(ValueError, match="both or none"):
        itc_loss(v, w, tv, tw, qv, temperature=0.1)
    with pytest.raises(ValueError, match="queue_ids"):
        itc_loss(v, w, tv, tw, qv, qw, temperature=0.1, ids=torch.arange(5))
    with pytest.raises(ValueError, match="distill_weight"):
        itc_loss(v, w, tv, tw, temperature=0.1, distill_weight=1.5)
    with pytest.raises(ValueError, match="batch of one"):
        itc_loss(v[:1], w[:1], tv[:1], tw[:1], temperature=0.1)
    with pytest.raises(ValueError, match="no teacher_queries"):
        soft_info_nce(v, tw, temperature=0.1, distill_weight=0.4)
    bad = tv.clone()
    bad[2, 1] = torch.nan
    for tiled in (False, True):
        with pytest.raises(ValueError, match="NaN"):
            itc_loss(v, w, bad, tw, qv, qw, temperature=0.1, distill_weight=0.4, tiled=tiled)
    bad_queue = qw.clone()
    bad_queue[3, 0] = torch.inf
    for tiled in (False, True):
        with pytest.raises(ValueError, match="infin"):
            itc_loss(v, w, tv, tw, qv, bad_queue, temperature=0.1, distill_weight=0.4, tiled=tiled)


def test_hard_negatives_are_never_the_own_picture():
    generator = dice(1)
    for case in range(10_000):
        size = 2 + case % 6
        ids = torch.randint(0, 3, (size,), generator=generator)
        if len(ids.unique()) < 2:
            ids[0] = 7
        logits = torch.randn(size, size, generator=generator)
        kind = case % 4
        logits = [logits, torch.zeros_like(logits), logits * 1e4, 1e6 * torch.eye(size)][kind]
        drawn = sample_hard_negatives(logits, ids if case % 2 else None, generator=generator)
        own = ids[drawn] == ids if case % 2 else drawn == torch.arange(size)
        assert not own.any(), (case, logits, ids, drawn)


def test_hard_negatives_follow_the_softmax_of_the_others():
    logits = torch.tensor([[9.0, 1.0, 0.0, 2.0]] * 4)
    draws = torch.stack([sample_hard_negatives(logits, generator=dice(seed)) for seed in range(4000)])[:, 0]
    share = torch.bincount(draws, minlength=4) / 4000
    torch.testing.assert_close(share, torch.tensor([0.0, *torch.tensor([1.0, 0.0, 2.0]).softmax(0)]), atol=0.03, rtol=0)


def test_hard_negatives_refuse_what_has_none():
    with pytest.raises(ValueError, match="no column of another id"):
        sample_hard_negatives(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="no column of another id"):
        sample_hard_negatives(torch.zeros(3, 3), torch.tensor([5, 5, 5]))
    with pytest.raises(ValueError, match="square"):
        sample_hard_negatives(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="NaN"):
        sample_hard_negatives(torch.full((2, 2), torch.nan))
    with pytest.raises(TypeError):
        sample_hard_negatives(torch.zeros(2, 2, dtype=torch.long))


def test_itm_is_the_mean_over_all_pairs():
    matched, mismatched = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log(2)) / 3
    assert float(itm_loss(matched, mismatched)) == pytest.approx(expected, rel=1e-6)
    x = torch.randn(3, 2, dtype=torch.float64, generator=dice()).requires_grad_()
    with pytest.raises(ValueError, match="NaN"):
        itm_loss(matched * torch.nan, mismatched)
    assert itm_loss(x, x.detach()).item() > 0


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_mlm_is_the_loop_over_hidden_words(weight):
    logits = torch.randn(2, 4, 5, dtype=torch.float64, generator=dice()).requires_grad_()
    teacher = torch.randn(2, 4, 5, dtype=torch.float64, generator=dice(1)).requires_grad_()
    labels = torch.tensor([[-100, 3, -100, 0], [-100, -100, 1, -100]])
    expected, count = 0.0, 0
    for b in range(2):
        for at in range(4):
            if labels[b, at] != -100:
                log_p = logits[b, at].float().log_softmax(0).double()
                soft = teacher[b, at].detach().softmax(0)
                expected -= (1 - weight) * log_p[labels[b, at]] + weight * (soft * log_p).sum()
                count += 1
    loss = mlm_loss(logits, labels, teacher, distill_weight=weight)
    assert loss.item() == pytest.approx(expected.item() / count, rel=1e-5)
    (by_hand,) = torch.autograd.grad(expected / count, logits, retain_graph=True)
    loss.backward()
    assert teacher.grad is None
    torch.testing.assert_close(logits.grad, by_hand, rtol=1e-5, atol=1e-7)
    assert logits.grad[labels == -100].abs().max() == 0 and logits.grad[labels != -100].abs().min() > 0


def test_mlm_without_a_hidden_word_is_zero_and_attached():
    logits = torch.randn(1, 2, 3, requires_grad=True)
    loss = mlm_loss(logits, torch.full((1, 2), -100))
    assert loss.item() == 0
    loss.backward()
    with pytest.raises(ValueError, match="teacher_logits"):
        mlm_loss(logits, torch.zeros(1, 2, dtype=torch.long), distill_weight=0.4)
    with pytest.raises(ValueError, match="labels"):
        mlm_loss(logits, torch.zeros(1, 3, dtype=torch.long))


# ---------------------------------------------------------------------------------------------- the module


def batch(count=6, length=9, vocab=40, seed=0, size=32):
    generator = dice(seed)
    mask = (torch.arange(length) < torch.randint(4, length + 1, (count, 1), generator=generator)).long()
    ids = torch.randint(5, vocab, (count, length), generator=generator) * mask
    ids[:, 0] = 2
    image = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return {"image": image, "input_ids": ids, "attention_mask": mask, "ids": torch.arange(count)}


def tiny(**options):
    return ALBEF.tiny(40, size=32, layers=2, **{"queue_size": 8, **options})


def stirred(model, amount=0.05):
    """The model with a student that is no longer its teacher, and a head and places that are not near zero."""
    generator = dice(5)
    with torch.no_grad():
        for parameter in [*model.student.parameters(), *model.itm_head.parameters()]:
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return model


def soft_rows(x, keys, target_logits, hard, weight, t):
    """Cross-entropy of each row against its mixed target; gradient of x and t alone."""
    target = weight * (target_logits / t.detach()).softmax(1) + (1 - weight) * hard
    return -(target.detach() * (x @ keys.T / t).log_softmax(1)).sum(1).mean()


def step_by_hand(model, data, drawn, masked, labels, same_ids=False, weight=0.4):
    """The three losses as the paper writes them, pass by pass, on the weights that the model has now; and the teacher's
    features. The random choices are given."""
    teacher = copy.deepcopy(model.teacher)
    for old, new in zip(teacher.parameters(), model.student.parameters(), strict=True):
        old.data = model.momentum * old.data + (1 - model.momentum) * new.data
    student, mask, t, size = model.student, data["attention_mask"], model.temperature, len(data["image"])
    seen, read = student.see(data["image"]), student.read(data["input_ids"], mask)
    v, w = seen.features, read.features
    with torch.no_grad():
        teacher_seen = teacher.see(data["image"])
        tv, tw = teacher_seen.features, teacher.read(data["input_ids"], mask).features
    hard = {"texts": torch.eye(size, size + 8), "images": torch.eye(size, size + 8)}
    if same_ids:
        for name, queue in (("texts", model.text_queue), ("images", model.image_queue)):
            ids = torch.cat([data["ids"], queue.ids])
            hard[name] = (data["ids"][:, None] == ids).float()
            hard[name] /= hard[name].sum(1, keepdim=True)
    texts, images = torch.cat([tw, model.text_queue.features]), torch.cat([tv, model.image_queue.features])
    itc = soft_rows(v, texts, tv @ texts.T, hard["texts"], weight, t) / 2
    itc = itc + soft_rows(w, images, tw @ images.T, hard["images"], weight, t) / 2

    def says_yes(i, j):
        """log softmax over (no, yes) of picture i with text j"""
        fused = student.fusion(read.tokens[j : j + 1], mask[j : j + 1], seen.tokens[i : i + 1]).tokens
        return model.itm_head(fused[:, 0]).log_softmax(1)[0]

    picture, text = drawn
    itm = 0.0
    for i in range(size):
        itm = itm - says_yes(i, i)[1] - says_yes(int(picture[i]), i)[0] - says_yes(i, int(text[i]))[0]

    def guesses(encoders, tokens):
        words = encoders.read(masked, mask).tokens
        return encoders.words(encoders.fusion(words, mask, tokens).tokens)  # (B, L, V)

    said, heard = guesses(student, seen.tokens).log_softmax(2), guesses(teacher, teacher_seen.tokens).softmax(2)
    mlm, hidden = 0.0, (labels != -100).nonzero().tolist()
    for b, at in hidden:
        target = weight * heard[b, at].detach() + (1 - weight) * F.one_hot(labels[b, at], heard.shape[2])
        mlm = mlm - (target * said[b, at]).sum()
    return {"itc": itc, "itm": itm / (3 * size), "mlm": mlm / len(hidden)}, (v, w, tv, tw)


@pytest.fixture
def choices(monkeypatch):
    """What the model asked of the two functions that draw, and what they answered."""
    kept = {"similarity": [], "drawn": [], "masked": None}

    def draw(similarity, ids=None, **more):
        kept["similarity"].append(similarity)
        kept["drawn"].append(sample_hard_negatives(similarity, ids, **more))
        return kept["drawn"][-1]

    def hide(*given, **more):
        kept["masked"] = mask_tokens(*given, **more)
        return kept["masked"]

    monkeypatch.setattr("vlnotes.albef.sample_hard_negatives", draw)
    monkeypatch.setattr("vlnotes.albef.mask_tokens", hide)
    return kept


@pytest.mark.parametrize("same_ids", [False, True])
def test_a_step_is_the_paper_by_hand(choices, same_ids):
    model = stirred(tiny(momentum=0.7, mask_probability=0.4, same_ids=same_ids)).train()
    data = batch()
    data["ids"] = torch.tensor([4, 1, 2, 4, 0, 3])
    model.image_queue.ids[:3], model.text_queue.ids[:3] = torch.tensor([4, 4, 9]), torch.tensor([1, 9, 2])
    before = copy.deepcopy(model)
    found = model(data)
    masked, labels = choices["masked"]
    expected, (v, w, tv, tw) = step_by_hand(before, data, choices["drawn"], masked, labels, same_ids)
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-4, atol=1e-5, msg=name)
    ours = torch.autograd.grad(found["loss"], [p for p in model.parameters() if p.requires_grad])
    theirs = torch.autograd.grad(sum(expected.values()), [p for p in before.parameters() if p.requires_grad])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    t = before.temperature.detach()
    to_image, to_text = choices["similarity"]  # the negative picture of each text comes first
    torch.testing.assert_close(to_image, (w @ tv.T / t).detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(to_text, (v @ tw.T / t).detach(), rtol=1e-4, atol=1e-4)
    for queue, old, pushed in (
        (model.image_queue, before.image_queue, tv),
        (model.text_queue, before.text_queue, tw),
    ):
        torch.testing.assert_close(queue.features, torch.cat([pushed, old.features[6:]]))
        assert queue.ids.tolist() == [4, 1, 2, 4, 0, 3, -1, -1]


def test_the_teacher_has_a_say_only_where_it_is_asked(choices):
    data = batch()
    found = {}
    for distill in ((), ("itc",), ("mlm",), ("itc", "mlm")):
        model = stirred(tiny(mask_probability=0.4, distill=distill)).train()
        before = copy.deepcopy(model)
        found[distill] = model(data)
        masked, labels = choices["masked"]
        drawn = choices["drawn"][-2:]
        without, _ = step_by_hand(before, data, drawn, masked, labels, weight=0.0)
        with_it, _ = step_by_hand(before, data, drawn, masked, labels)
        for name in ("itc", "mlm"):
            expected = with_it if name in distill else without
            torch.testing.assert_close(found[distill][name], expected[name], rtol=1e-4, atol=1e-5)
        assert abs(without["itc"] - with_it["itc"]) > 1e-3 and abs(without["mlm"] - with_it["mlm"]) > 1e-3


def test_even_negatives_ask_for_no_similarity(choices):
    stirred(tiny(hard_negatives=False)).train()(batch())
    assert [float(one.abs().max()) for one in choices["similarity"]] == [0.0, 0.0]


def test_masks_and_negatives_follow_from_seed_and_step_alone(choices):
    def draws(model, state):
        torch.manual_seed(state)
        model(batch())
        return [choices["masked"][0], *choices["drawn"][-2:]]

    model = tiny(mask_probability=0.5).train()
    same, later = draws(copy.deepcopy(model), 0), copy.deepcopy(model)
    assert all(map(torch.equal, same, draws(copy.deepcopy(model), 1)))
    assert not torch.equal(draws(later, 0)[0], draws(later, 0)[0])  # the next step hides other words
    assert not torch.equal(same[0], draws(tiny(mask_probability=0.5, seed=1).train(), 0)[0])
    assert (tiny(mask_probability=0.0).train()(batch())["mlm"]).item() == 0


def test_places_are_sinusoids_of_both_axes():
    code = sinusoids(8, 3, 4, longest=100.0)  # frequencies 1 and 0.1
    assert code.shape == (8, 3, 4)
    for row, column in ((0, 0), (2, 3), (1, 2)):
        angles = [f * at for at in (column, row) for f in (1.0, 0.1)]
        x, y = angles[:2], angles[2:]
        by_hand = [fn(a) for axis in (x, y) for fn in (math.sin, math.cos) for a in axis]
        torch.testing.assert_close(code[:, row, column], 0.7 * torch.tensor(by_hand))
    assert sinusoids(6, 2, 2).shape == (6, 2, 2)
    with pytest.raises(ValueError, match="columns 0"):
        sinusoids(8, 2, 0)


def test_above_is_a_linear_question_to_the_places():
    code = sinusoids(32, 8, 8).flatten(1).T.double()  # (64, 32)
    assert code.pow(2).mean().sqrt() == pytest.approx(0.5, abs=0.02)
    for height in (torch.arange(64) // 8, torch.arange(64) % 8):
        height = height.double() - 3.5
        read = code @ torch.linalg.lstsq(code, height[:, None]).solution
        assert (read[:, 0] - height).abs().max() < 0.2
    near, far = (code[0] - code[9]).norm(), (code[0] - code[36]).norm()
    assert near < 0.8 * far


def test_a_picture_is_a_class_token_and_its_grid_in_reading_order():
    encoders = stirred(tiny()).student
    image = batch(2, size=32)["image"]
    with torch.no_grad():
        tower, found = encoders.image_encoder(image), encoders.see(image)
        first = encoders.door(found.features * 128**0.5)
        torch.testing.assert_close(found.tokens[:, 0], encoders.token_norm(first))
        height, width = tower.grid
        for at in range(height * width):
            place = encoders.places[0, :, at // width, at % width]
            own = tower.tokens[:, at]
            # a picture that is this cell throughout has it as its mean and as its maximum
            feature = F.normalize(encoders.image_projection(torch.cat([own, own], dim=1)), dim=1)
            cell = encoders.token_norm(encoders.grid_tokens(own) + encoders.door(feature * 128**0.5) + place)
            torch.testing.assert_close(found.tokens[:, 1 + at], cell, rtol=1e-4, atol=1e-5)
    assert found.tokens.shape[1] == 1 + height * width


def test_a_text_is_a_first_token_of_what_itc_compares_and_its_words():
    encoders, data = stirred(tiny()).student, batch()
    with torch.no_grad():
        tower = encoders.text_encoder(data["input_ids"], data["attention_mask"])
        found = encoders.read(data["input_ids"], data["attention_mask"])
        features = F.normalize(encoders.text_projection(tower.pooled), dim=1)
    torch.testing.assert_close(found.features, features)
    with torch.no_grad():
        words = F.normalize(encoders.text_projection(tower.tokens), dim=2)
    torch.testing.assert_close(found.tokens[:, 0], encoders.token_norm(encoders.door(features * 128**0.5)))
    expected = encoders.token_norm(tower.tokens + encoders.door(words * 128**0.5))
    torch.testing.assert_close(found.tokens[:, 1:], expected[:, 1:])


def test_a_tower_with_a_class_token_of_its_own_needs_no_places():
    encoders = stirred(ALBEF.tiny(40, image="vit", size=32, layers=1, queue_size=0)).student
    image = batch(2)["image"]
    with torch.no_grad():
        tower, found = encoders.image_encoder(image), encoders.see(image)
        patches = tower.tokens[:, 1:]  # the tower's class token is left out
        features = F.normalize(encoders.image_projection(patches), dim=2)
        cells = encoders.token_norm(encoders.grid_tokens(patches) + encoders.door(features * 128**0.5))
    torch.testing.assert_close(found.tokens[:, 1:], cells)


def test_hidden_words_are_guessed_at_their_places_whatever_the_padding():
    model = stirred(tiny()).eval()
    data = batch()
    ids, mask = data["input_ids"], data["attention_mask"]
    labels = torch.full_like(ids, -100)
    labels[1, 2], labels[1, 3], labels[4, 1] = 7, 8, 9
    with torch.no_grad():
        seen = model.student.see(data["image"]).tokens
        found = model.student.hidden_words(ids, mask, seen, labels)
        for row, (b, at) in enumerate([(1, 2), (1, 3), (4, 1)]):
            used = int(mask[b].sum())
            words = model.student.read(ids[b : b + 1, :used], mask[b : b + 1, :used]).tokens
            fused = model.student.fusion(words, mask[b : b + 1, :used], seen[b : b + 1]).tokens
            torch.testing.assert_close(found[row], model.student.words(fused[0, at]), rtol=1e-4, atol=1e-5)
    assert found.shape == (3, 40)


def test_looking_gives_the_matching_score_and_where_words_looked():
    model = stirred(tiny()).eval()
    data = batch()
    given = data["image"], data["input_ids"], data["attention_mask"]
    scores, fused = model.look(*given)
    seen, read = model.student.see(given[0]), model.student.read(*given[1:])
    torch.testing.assert_close(scores, model.match(seen.tokens, read.tokens, given[2])[:, 1])
    assert [tuple(one.shape) for one in fused.attentions] == [(6, 4, 9, 1 + 16)] * 2
    torch.testing.assert_close(fused.attentions[0].sum(-1), torch.ones(6, 4, 9))
    assert torch.autograd.grad(scores.sum(), fused.attentions[1])[0].abs().sum() > 0


def test_a_step_gives_every_part_a_gradient_and_the_teacher_none():
    model = tiny().train()
    losses = model(batch())
    assert {"loss", "itc", "itm", "mlm"} <= losses.keys()
    assert losses["loss"].item() == pytest.approx(sum(losses[name].item() for name in ("itc", "itm", "mlm")), rel=1e-6)
    losses["loss"].backward()
    student = [(n, p) for n, p in model.named_parameters() if not n.startswith("teacher.")]
    quiet = [n for n, p in student if p.grad is None and not n.endswith("embed_positions.weight")]
    assert not quiet, quiet
    assert all(p.grad is None for p in model.teacher.parameters())
    assert not any(p.requires_grad for p in model.teacher.parameters())
    assert int(model.image_queue.pointer) == 6 and model.image_queue.ids[:6].tolist() == list(range(6))


def test_the_teacher_follows_before_it_looks():
    model = tiny(momentum=0.9).train()
    before = model.teacher.text_projection.weight.clone()
    with torch.no_grad():
        model.student.text_projection.weight.add_(1)
    model(batch())
    torch.testing.assert_close(model.teacher.text_projection.weight, before + 0.1)


def test_the_temperature_stays_in_its_bounds():
    model = tiny().train()
    with torch.no_grad():
        model.temperature.fill_(3.0)
    assert float(model(batch())["temperature"]) == 0.5
    with torch.no_grad():
        model.temperature.fill_(-1.0)
    assert float(model(batch())["temperature"]) == pytest.approx(0.001)


def test_the_share_of_the_teacher_grows_evenly():
    model = tiny(ramp_steps=4, distill_weight=0.4).train()
    seen = [float(model(batch())["distill_weight"]) for _ in range(6)]
    assert seen == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4])


def test_nothing_moves_in_evaluation():
    model = stirred(tiny()).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (model(batch()) for _ in range(2))
    assert first["loss"].item() == second["loss"].item()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_padding_changes_no_score():
    model = tiny().eval()
    data = batch(length=9)
    mask = data["attention_mask"]
    longer = {name: F.pad(data[name], (0, 5)) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        seen, read = model.student.see(data["image"]), model.student.read(data["input_ids"], mask)
        padded = model.student.read(longer["input_ids"], longer["attention_mask"])
        torch.testing.assert_close(read.features, padded.features, rtol=1e-5, atol=1e-6)
        short = model.match(seen.tokens, read.tokens, mask)
        long = model.match(seen.tokens, padded.tokens, longer["attention_mask"])
    torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-6)


def test_a_cross_attention_map_is_the_softmax_by_hand():
    fusion = FusionEncoder(4, layers=1, heads=1).double()
    layer = fusion.layers[0]
    text, picture = torch.randn(1, 2, 4, generator=dice()).double(), torch.randn(1, 3, 4, generator=dice(1)).double()
    with torch.no_grad():
        words = torch.zeros(1, 1, 1, 2).double()
        assert torch.equal(layer.crossattention.self.query.weight, layer.crossattention.self.key.weight)
        layer.crossattention.self.key.weight.normal_()  # so that it matters which is which
        found = fusion(text, torch.ones(1, 2), picture, attentions=True)
        plain = fusion(text, torch.ones(1, 2), picture)
        before = layer.attention(text, words, fusion.angles[:2][None, None])[0]  # (1, 2, 4), words have looked at words
        attend = layer.crossattention.self
        query, key = attend.query(before), attend.key(picture)
        expected = torch.zeros(2, 3).double()
        for i in range(2):
            logits = [float(query[0, i] @ key[0, j]) / 2 for j in range(3)]  # sqrt(4)
            total = sum(math.exp(value) for value in logits)
            expected[i] = torch.tensor([math.exp(value) / total for value in logits])
    torch.testing.assert_close(found.attentions[0][0, 0], expected)
    torch.testing.assert_close(found.tokens, plain.tokens)
    assert plain.attentions == ()


def test_words_see_each_other_by_distance():
    torch.manual_seed(0)
    fusion = FusionEncoder(8, layers=2, heads=2).eval()
    text, picture = torch.randn(1, 4, 8, generator=dice()), torch.randn(1, 2, 8, generator=dice(1))
    later = torch.cat([torch.zeros(1, 3, 8), text], dim=1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    with torch.no_grad():
        found, moved = fusion(text, mask[:, 3:], picture).tokens, fusion(later, mask, picture).tokens[:, 3:]
        turned = fusion(text[:, [0, 2, 1, 3]], mask[:, 3:], picture).tokens[:, [0, 2, 1, 3]]
    torch.testing.assert_close(moved, found)
    assert (turned - found).abs().max() > 1e-4  # without positions the order of words would not count
    with pytest.raises(ValueError, match="513 a text; this encoder has places for 512"):
        fusion(torch.zeros(1, 513, 8), torch.ones(1, 513), picture)


def test_words_see_words_on_both_sides_unless_causal():
    text, picture = torch.randn(1, 3, 8, generator=dice()), torch.randn(1, 2, 8, generator=dice(1))
    changed = text.clone()
    changed[0, 2] += 1
    for causal in (False, True):
        torch.manual_seed(0)
        fusion = FusionEncoder(8, layers=2, heads=2, causal=causal).eval()
        with torch.no_grad():
            one, two = (fusion(x, torch.ones(1, 3), picture).tokens[0, 0] for x in (text, changed))
        assert torch.allclose(one, two) == causal


def test_it_takes_over_a_clip():
    clip = CLIP.tiny(40, seed=3).eval()
    with torch.no_grad():
        clip.logit_scale.fill_(3.0)
    model, data = tiny().start_from(clip).eval(), batch()
    assert float(model.temperature.detach()) == pytest.approx(math.exp(-3))
    torch.testing.assert_close(encode_images(model, data["image"]), encode_images(clip, data["image"]))
    torch.testing.assert_close(encode_texts(model, data, 4), encode_texts(clip, data, 4))
    assert torch.equal(model.teacher.image_projection.weight, clip.image_projection.weight)
    with pytest.raises(ValueError, match="another vocabulary"):
        tiny().start_from(CLIP.tiny(41))


def test_from_an_albef_it_takes_all_but_the_past():
    old = tiny(seed=1, queue_size=8).train()
    for _ in range(2):
        old(batch())
    with torch.no_grad():
        old.temperature.fill_(0.3)
    fresh = tiny(seed=0, queue_size=4)
    before = fresh.image_queue.features.clone()
    fresh.start_from(old)
    assert int(fresh.steps) == 0 and fresh.image_queue.filled == 0 and torch.equal(fresh.image_queue.features, before)
    for name, value in old.state_dict().items():
        if not name.startswith(("image_queue", "text_queue", "steps")):
            assert torch.equal(value, fresh.state_dict()[name]), name
    richer = CODIS.tiny(40, layers=1, size=32, codewords=3)  # a codebook is for those who have one
    plain = tiny().start_from(richer)
    assert torch.equal(plain.student.text_projection.weight, richer.student.text_projection.weight)
    assert torch.equal(
        CODIS.tiny(40, layers=1, size=32, codewords=3, seed=5).start_from(richer).codebook, richer.codebook
    )
    with pytest.raises(ValueError, match="this ALBEF has other towers or another vocabulary"):
        tiny().start_from(ALBEF.tiny(41, layers=1, size=32))


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = tiny(momentum=0.9).train()
    model(batch())
    model.eval().save(tmp_path / "all")
    again = ALBEF.load(tmp_path / "all")
    assert again.built == model.built and again.momentum == 0.9
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_compact_folder_keeps_what_cannot_be_made_again(tmp_path):
    model = tiny(momentum=0.9).train()
    model(batch())
    model.eval().save(tmp_path / "all")
    model.save(tmp_path / "small", compact=True)
    sizes = [(tmp_path / name / "weights.safetensors").stat().st_size for name in ("all", "small")]
    assert sizes[1] < sizes[0] / 3.5
    again = ALBEF.load(tmp_path / "small")
    for name, value in again.student.state_dict().items():
        torch.testing.assert_close(value, model.student.state_dict()[name], rtol=1e-3, atol=1e-4)
        assert torch.equal(value, again.teacher.state_dict()[name]), name
    assert again.itm_head.weight.dtype == torch.float32 and int(again.steps) == 0
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "small" / "weights.safetensors")
    del tensors["student.text_projection.weight"]
    save_file(tensors, tmp_path / "small" / "weights.safetensors")
    with pytest.raises(ValueError, match="text_projection"):
        ALBEF.load(tmp_path / "small")


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no column of another id"):
        tiny().train()(batch(1))
    data = batch()
    with pytest.raises(ValueError, match="another tokenizer"):
        tiny()({**data, "input_ids": data["input_ids"].clamp(min=39) + 2})
    with pytest.raises(ValueError, match="patch"):
        ALBEF.tiny(40, image="vit", size=32)(batch(size=36))
    with pytest.raises(ValueError, match="'ids'"):
        tiny(same_ids=True)({name: data[name] for name in ("image", "input_ids", "attention_mask")})
    with pytest.raises(ValueError, match="objectives"):
        tiny(objectives=("itc", "lm"))
    with pytest.raises(ValueError, match="temperature"):
        tiny(temperature=0.9)
    with pytest.raises(ValueError, match="image tower"):
        ALBEF.tiny(40, image="mlp")


@pytest.mark.parametrize("image", ["vit", "resnet18"])
def test_other_towers_and_other_sizes_run(image):
    model = ALBEF.tiny(40, image=image, size=32, layers=1, queue_size=0).train()
    losses = model(batch(3))
    assert math.isfinite(losses["loss"].item())
    tokens = model.student.see(batch(2, size=64)["image"]).tokens
    assert tokens.shape[1] == 1 + {"vit": 64, "resnet18": 4}[image]


def test_objectives_can_be_left_out():
    model = tiny(objectives=("itm", "mlm"), distill=()).train()
    losses = model(batch())
    assert "itc" not in losses and {"itm", "mlm"} <= losses.keys()
    assert int(model.image_queue.pointer) == 0


def test_same_ids_are_no_negatives():
    data = batch()
    data["ids"] = torch.tensor([1, 1, 1, 1, 1, 2])
    model = tiny(same_ids=True).train()
    drawn = []
    import vlnotes.albef as module

    original = module.sample_hard_negatives
    module.sample_hard_negatives = lambda s, ids=None, **more: drawn.append(original(s, ids, **more)) or drawn[-1]
    try:
        model(data)
    finally:
        module.sample_hard_negatives = original
    assert len(drawn) == 2
    for one in drawn:
        assert one[:5].tolist() == [5] * 5 and int(one[5]) < 5


# ---------------------------------------------------------------------------------------------- two stages


def test_reranking_is_the_loop_over_the_first_k():
    model = tiny().eval()
    data, more = batch(5), batch(7, seed=1)
    tokens = {name: more[name] for name in ("input_ids", "attention_mask")}
    images, texts = encode_images(model, data["image"]), encode_texts(model, tokens)
    cosine = images @ texts.T
    for k in (0, 2, 100):
        for add, by in ((0, "logit"), (True, "logit"), (20.0, "odds")):
            found = rerank(model, data["image"], tokens, k, by=by, add_similarity=add, batch_size=3)
            for by_row, scores in ((True, found.texts), (False, found.images)):
                for i in range(5):
                    for j in range(7):
                        line = cosine[i] if by_row else cosine[:, j]
                        rank = int((line > cosine[i, j]).sum())
                        expected = cosine[i, j] - 100
                        if rank < k:
                            with torch.no_grad():
                                read = model.student.read(
                                    tokens["input_ids"][j : j + 1], tokens["attention_mask"][j : j + 1]
                                )
                                seen = model.student.see(data["image"][i : i + 1])
                                no, yes = model.match(seen.tokens, read.tokens, tokens["attention_mask"][j : j + 1])[0]
                            expected = (yes - no if by == "odds" else yes) + add * cosine[i, j]
                        assert float(scores[i, j]) == pytest.approx(float(expected), abs=2e-4)
    with pytest.raises(ValueError, match="k is -1"):
        rerank(model, data["image"], tokens, -1)
    with pytest.raises(ValueError, match="by is 'probability'; expected 'logit' or 'odds'"):
        rerank(model, data["image"], tokens, 1, by="probability")


def test_reranking_looks_in_eval_mode_and_leaves_the_model_as_it_was(monkeypatch):
    model, data = tiny().train(), batch()
    modes, match = [], model.match
    monkeypatch.setattr(model, "match", lambda *given: modes.append(model.training) or match(*given))
    rerank(model, data["image"], data, 2)
    assert modes and not any(modes) and model.training
    rerank(model.eval(), data["image"], data, 2)
    assert not model.training


def test_queues_are_part_of_the_state():
    model = tiny()
    assert isinstance(model.image_queue, FeatureQueue)
    assert {"image_queue.features", "text_queue.ids", "steps"} <= model.state_dict().keys()
