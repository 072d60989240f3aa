"""Downstream heads against loops, on random weights: what is ranked, what is shared, what the teacher may say."""

import pytest
import torch
import torch.nn.functional as F

from vlnotes.albef import ALBEF
from vlnotes.downstream import Answerer, Judge, PairFusion, PairJudge, Tasks, predictions, softened, text_assignment


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


def albef(**options):
    return ALBEF.tiny(40, size=32, layers=2, queue_size=8, **options).eval()


def batch(count=6, length=7, classes=3, seed=0):
    generator = dice(seed)
    mask = (torch.arange(length) < torch.randint(3, length + 1, (count, 1), generator=generator)).long()
    images = torch.randint(0, 256, (2, count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return {
        "image": images[0],
        "image_other": images[1],
        "input_ids": torch.randint(5, 40, (count, length), generator=generator) * mask,
        "attention_mask": mask,
        "label": torch.arange(count) % classes,
    }


ANSWERS = torch.tensor([[2, 7, 3, 0], [2, 8, 3, 0], [2, 7, 9, 3], [2, 10, 11, 3]])
KNOWN = (ANSWERS != 0).long()


def test_softened_targets_are_the_mix():
    logits = torch.randn(4, 3, dtype=torch.float64, generator=dice()).requires_grad_()
    teacher = torch.randn(4, 3, dtype=torch.float64, generator=dice(1)).requires_grad_()
    label = torch.tensor([0, 2, 1, 1])
    log_p, soft = logits.float().log_softmax(1), teacher.float().softmax(1)
    expected = sum(-0.7 * log_p[i, label[i]] - 0.3 * (soft[i] * log_p[i]).sum() for i in range(4)) / 4
    found = softened(logits, label, teacher, 0.3)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    assert teacher.grad is None
    plain = softened(logits, label, None, 0.3)
    assert plain.item() == pytest.approx(F.cross_entropy(logits.float(), label).item())


def test_a_judge_learns_with_a_teacher_that_follows():
    model = Judge(albef(), 3, momentum=0.5).train()
    before = model.teacher.head[0].weight.clone()
    with torch.no_grad():
        model.student.head[0].weight.add_(1)
    losses = model(batch())
    losses["loss"].backward()
    torch.testing.assert_close(model.teacher.head[0].weight, before + 0.5)
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.student.head.parameters())
    assert 0 <= losses["accuracy"].item() <= 1
    assert Judge(albef(), 3, distill_weight=0.0).teacher is None


def test_the_pretrained_model_is_left_alone():
    first = albef()
    before = {name: value.clone() for name, value in first.state_dict().items()}
    for model in (Judge(first, 3), PairJudge(first), Answerer(first, ANSWERS, KNOWN)):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        model.train()(batch(classes=2))["loss"].backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())


def test_every_block_becomes_two_that_share_keys_and_values():
    fusion = albef().student.fusion
    pair = PairFusion(fusion)
    text, one, other = (torch.randn(2, 5, 128, generator=dice(i)) for i in range(3))
    mask = torch.ones(2, 5)
    with torch.no_grad():
        expected = text
        for layer in fusion.layers:
            expected = fusion.run(layer, fusion.run(layer, expected, mask, one)[0], mask, other)[0]
        found = pair(text, mask, one, other)
        swapped = pair(text, mask, other, one)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, swapped)
    plain = sum(p.numel() for p in fusion.parameters())
    shared = sum(p.numel() for layer in fusion.layers for p in layer.crossattention.self.key.parameters()) * 2
    assert sum(p.numel() for p in pair.parameters()) == 2 * plain - shared
    first, second = (fusion.layers[0].crossattention.self for fusion in (pair.first, pair.second))
    assert first.key is second.key and first.value is second.value and first.query is not second.query


def test_a_pair_judge_reads_both_pictures():
    model = PairJudge(albef()).eval()
    data = batch(classes=2)
    with torch.no_grad():
        both = model.logits(data)
        one = model.logits({**data, "image_other": data["image_other"].flip(0)})
        other = model.logits({**data, "image": data["image"].flip(0)})
    assert not torch.allclose(both, one) and not torch.allclose(both, other)
    third = PairJudge(albef(), 3)
    two = third.with_head(2)
    assert two.head[-1].out_features == 2 and third.head[-1].out_features == 3
    assert torch.equal(
        two.fusion.first.layers[0].attention.self.query.weight, third.fusion.first.layers[0].attention.self.query.weight
    )
    two.train()(data)["loss"].backward()
    assert all(p.grad is not None for p in two.fusion.parameters())


def test_text_assignment_is_right_by_construction():
    features = F.normalize(torch.randn(9, 4, generator=dice()), dim=1)
    counts = torch.zeros(3)
    for seed in range(300):
        first, second, label = text_assignment(features, generator=dice(seed))
        own = torch.arange(9)
        assert torch.equal(first == own, label == 0) and torch.equal(second == own, label == 1)
        assert (first != second).all()
        counts += torch.bincount(label, minlength=3)
    assert counts.tolist() == [900.0] * 3
    with pytest.raises(ValueError, match="3 pictures"):
        text_assignment(features[:2])


def test_text_assignment_prefers_pictures_alike():
    features = torch.tensor([[1.0, 0.0], [0.9, 0.436], [-1.0, 0.0], [0.0, 1.0]])
    features = F.normalize(features, dim=1)
    drawn = [text_assignment(features, temperature=0.2, generator=dice(seed)) for seed in range(400)]
    others = torch.cat([torch.stack([f[0], s[0]])[torch.stack([f[0], s[0]]) != 0] for f, s, _ in drawn])
    share = torch.bincount(others, minlength=4) / len(others)
    assert share[1] > share[3] > share[2]


def _log_probabilities(model, data):
    """Every candidate, token by token, by growing the answer one token at a time."""
    total = torch.zeros(len(data["image"]), len(ANSWERS))
    with torch.no_grad():
        fused = model.student.question(data)
        for b in range(len(fused)):
            for a, answer in enumerate(ANSWERS):
                for at in range(1, int(KNOWN[a].sum())):
                    said = answer[None, : at + 1]
                    logits = model.student(
                        fused[b : b + 1], data["attention_mask"][b : b + 1], said, torch.ones_like(said)
                    )
                    total[b, a] += logits[0, -1].log_softmax(0)[answer[at]]
    return total


def test_answers_are_ranked_by_all_their_words():
    model = Answerer(albef(), ANSWERS, KNOWN).eval()
    data = batch(classes=4)
    expected = _log_probabilities(model, data)
    torch.testing.assert_close(model.rank(data), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        loss = Answerer.forward(model, data)["loss"]
    soft = model.student(
        model.student.question(data), data["attention_mask"], ANSWERS[data["label"]], KNOWN[data["label"]]
    )
    entropy = -(soft.softmax(-1) * soft.log_softmax(-1)).sum(-1) * KNOWN[data["label"]][:, 1:]
    hard = -expected[torch.arange(6), data["label"]]  # teacher = student here
    assert loss.item() == pytest.approx((0.6 * hard + 0.4 * entropy.sum(1)).mean().item(), rel=1e-4)


def test_only_the_best_first_words_are_read_whole():
    model = Answerer(albef(), ANSWERS, KNOWN).eval()
    data = batch(classes=4)
    with torch.no_grad():
        fused = model.student.question(data)
        start = torch.tensor([[2, 0]]).expand(6, -1)
        first = model.student(fused, data["attention_mask"], start, torch.ones_like(start))[:, 0].log_softmax(-1)
    best = first[:, ANSWERS[:, 1]].topk(2, dim=1).indices
    scores = model.rank(data, k=2)
    for row, columns in zip(scores, best, strict=True):
        assert row.isfinite().nonzero().flatten().tolist() == sorted(columns.tolist())
    with pytest.raises(ValueError, match="k is 0"):
        model.rank(data, k=0)


def test_an_answer_counts_by_its_weight():
    model = Answerer(albef(), ANSWERS, KNOWN, distill_weight=0.0).eval()
    data = batch(count=4, classes=4)
    with torch.no_grad():
        hard = -model.rank(data)[torch.arange(4), data["label"]]
        weight = torch.tensor([1.0, 0.5, 0.0, 2.0])
        found = model({**data, "weight": weight})["loss"]
    assert found.item() == pytest.approx((hard * weight).mean().item(), rel=1e-4)


def test_predictions_come_in_order_and_leave_the_mode():
    model = Judge(albef(), 3).train()
    data = batch()
    parts = [{name: value[at : at + 2] for name, value in data.items()} for at in range(0, 6, 2)]
    said, label = predictions(model, parts)
    assert model.training and label.tolist() == data["label"].tolist()
    with torch.no_grad():
        assert said.tolist() == model.eval().logits(data).argmax(1).tolist()
    said, _ = predictions(Answerer(albef(), ANSWERS, KNOWN), [batch(classes=4)])
    assert said.shape == (6,)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="0 to 1"):
        Judge(albef(), 2)(batch(classes=3))
    with pytest.raises(ValueError, match="2 labels"):
        Judge(albef(), 1)
    with pytest.raises(ValueError, match="same row"):
        Answerer(albef(), ANSWERS[[0, 0]], KNOWN[[0, 0]])
    with pytest.raises(ValueError, match="answer_ids"):
        Answerer(albef(), ANSWERS[:, :1], KNOWN[:, :1])


def test_the_share_of_the_answerers_teacher_grows_evenly():
    data, found = batch(count=4, classes=4), []
    for steps in (0, 2, 4, 9):
        model = Answerer(albef(), ANSWERS, KNOWN, distill_weight=0.4, ramp_steps=4).eval()
        model.steps.fill_(steps)
        with torch.no_grad():
            model.teacher.words[-1].bias.add_(torch.randn(40, generator=dice()))  # a teacher of another opinion
            found.append(model(data)["loss"].item())
    assert found[1] - found[0] == pytest.approx((found[2] - found[0]) / 2, rel=1e-3)
    assert found[3] == pytest.approx(found[2]) and abs(found[2] - found[0]) > 1e-3


def test_tasks_keep_texts_pictures_and_labels_together():
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 2, 2)
    length = torch.tensor([3, 1, 2, 1, 2])
    mask = (torch.arange(5) < length[:, None]).long()
    tokens = {"input_ids": (torch.arange(5)[:, None] + 10) * mask, "attention_mask": mask}
    first, second, label = torch.tensor([3, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 3, 0]), torch.arange(5)
    tasks = Tasks(images, tokens, label, first, second)
    seen = []
    for step in range(2):
        batch = tasks.batches(2, seed=1)(step)
        rows = batch["label"]
        seen += rows.tolist()
        assert batch["image"][:, 0, 0, 0].tolist() == first[rows].tolist()
        assert batch["image_other"][:, 0, 0, 0].tolist() == second[rows].tolist()
        assert batch["input_ids"][:, 0].tolist() == (rows + 10).tolist()
        assert batch["input_ids"].shape[1] == length[rows].max()
    assert len(set(seen)) == 4
    assert torch.cat([batch["label"] for batch in tasks.in_order(2)]).tolist() == [0, 1, 2, 3, 4]
    assert len(tasks) == 5 and "image_other" not in Tasks(images, tokens, label, first).batch(label)
    even = Tasks(images, {name: value[:4] for name, value in tokens.items()}, label[:4], first[:4])
    twos = [even.batches(2, together=2)(step)["label"].tolist() for step in range(2)]
    assert sorted(twos) == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="together is 2"):
        tasks.batches(2, together=2)
    with pytest.raises(ValueError, match="rows"):
        Tasks(images, tokens, label[:4], first)
    with pytest.raises(ValueError, match="there are 3"):
        Tasks(images[:3], tokens, label, first)
