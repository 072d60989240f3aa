"""MoCo: the step beside a plain one written from the paper, what moves when, the other dictionaries, batch norms."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vlnotes.contrastive import info_nce
from vlnotes.encoders import Encoded
from vlnotes.metrics import knn, linear_probe
from vlnotes.moco import GroupedBatchNorm2d, MoCo, ProjectedEncoder, group_batch_norm, probe, probe_features
from vlnotes.train import train

SIZE = 16  # pixels a side


class Small(nn.Module):
    """An encoder that costs nothing: one convolution, batch norm, mean."""

    def __init__(self, width=8, norm=True):
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width) if norm else nn.Identity(), nn.ReLU()
        )

    def forward(self, image):
        image = image / 255 if image.dtype == torch.uint8 else image
        map = self.layers(image)
        return Encoded(map.mean((2, 3)), map.flatten(2).transpose(1, 2))


def small(seed=0, norm=True, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MoCo(Small(norm=norm), **{"dim": 6, "queue_size": 12, "momentum": 0.9, "seed": seed, **options})


def pictures(count=4, seed=0):
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def views(count=4, seed=0):
    return {"image": pictures(count, 2 * seed), "image_key": pictures(count, 2 * seed + 1)}


# The step


def test_five_steps_are_those_of_a_plain_version_written_from_the_paper():
    """Queue as columns, logits in one matrix, cross-entropy with the positive in column 0, SGD."""
    model = small(norm=False, temperature=0.2)
    student, teacher = copy.deepcopy(model.student), copy.deepcopy(model.student)
    queue, pointer, losses = model.queue.features.clone().T, 0, []
    ours = torch.optim.SGD(model.student.parameters(), lr=0.5)
    theirs = torch.optim.SGD(student.parameters(), lr=0.5)
    for step in range(5):
        batch = views(4, step)
        result = model(batch)
        ours.zero_grad()
        result["loss"].backward()
        ours.step()

        q = student(batch["image"])
        with torch.no_grad():
            for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                old.copy_(0.9 * old + 0.1 * new)
            k = teacher(batch["image_key"])
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.clone()], dim=1) / 0.2  # (4, 1 + 12)
        loss = F.cross_entropy(logits, torch.zeros(4, dtype=torch.long))
        hits = (logits.argmax(1) == 0).float().mean()
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        queue[:, pointer : pointer + 4] = k.T
        pointer = (pointer + 4) % 12

        torch.testing.assert_close(result["loss"], loss, atol=1e-5, rtol=0)
        assert float(result["accuracy"]) == float(hits)
        torch.testing.assert_close(result["positive"], (q * k).sum(1).mean(), atol=1e-5, rtol=0)
        losses.append(float(loss.detach()))
    torch.testing.assert_close(model.queue.features, queue.T, atol=1e-5, rtol=0)
    for mine, plain in zip(model.student.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-5, rtol=0)
    assert len(set(losses)) == 5


def test_at_the_start_the_loss_is_what_a_random_queue_gives():
    size, dim, temperature = 20_000, 64, 0.2
    model = MoCo(Small(64), dim=dim, queue_size=size, temperature=temperature)
    queries = F.normalize(torch.randn(64, dim, generator=torch.Generator().manual_seed(5)), dim=1)
    result = model.contrast(queries, queries)
    expected = math.log(1 + size * math.exp(1 / (2 * dim * temperature**2) - 1 / temperature))
    assert float(result["loss"]) == pytest.approx(expected, rel=2e-3)
    assert float(result["accuracy"]) == 1 and float(result["positive"]) == pytest.approx(1)


def test_the_teacher_moves_before_its_keys_are_made_and_the_keys_are_kept_after_the_loss():
    model = small(norm=False, temperature=0.1)
    with torch.no_grad():  # teacher and student part, so that the order can be seen
        for parameter in model.student.parameters():
            parameter.add_(0.3)
    old, before = copy.deepcopy(model.teacher), model.queue.features.clone()
    batch = views()
    result = model(batch)
    for moved, was, leads in zip(model.teacher.parameters(), old.parameters(), model.student.parameters(), strict=True):
        torch.testing.assert_close(moved, 0.9 * was + 0.1 * leads)
    keys, queries = model.teacher(batch["image_key"]), model.student(batch["image"])
    torch.testing.assert_close(model.queue.features[:4], keys)
    assert not torch.allclose(keys, old(batch["image_key"]), atol=1e-4)
    torch.testing.assert_close(result["loss"], info_nce(queries, keys, before, temperature=0.1))
    late = info_nce(queries, keys, model.queue.features, temperature=0.1)
    assert (
        float((late - result["loss"]).detach().abs()) > 1e-3
    )  # with its own keys already in the queue it would be larger


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_momentum_zero_copies_and_one_freezes(momentum):
    model = small(momentum=momentum)
    frozen = copy.deepcopy(model.teacher.state_dict())
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    model(views())
    goal = model.student.state_dict() if momentum == 0 else frozen
    for name, value in model.teacher.named_parameters():
        assert torch.equal(value, goal[name])


def test_gradient_reaches_every_weight_of_the_student_and_none_of_the_teacher():
    model = MoCo.tiny(queue_size=32)
    model({"image": pictures(6)})["loss"].backward()
    lazy = [name for name, p in model.student.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert lazy == []
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())


def test_only_parameters_are_averaged_the_teachers_batch_norm_counts_its_own_batches():
    model = small()
    assert model.teacher.training
    with torch.no_grad():
        model.student.encoder.layers[1].running_mean.fill_(7.0)
    batch = views()
    model(batch)
    own = model.teacher.encoder.layers[0](batch["image_key"]).mean((0, 2, 3))
    torch.testing.assert_close(model.teacher.encoder.layers[1].running_mean, 0.1 * own, atol=1e-5, rtol=1e-4)


def test_batches_that_do_not_divide_the_queue_wrap_and_none_of_their_keys_is_lost():
    model, kept = small(norm=False, queue_size=7), []
    for step, count in enumerate([3, 3, 3, 2, 5]):
        batch = {**views(count, step), "ids": torch.arange(count) + 10 * step}
        model(batch)
        kept += batch["ids"].tolist()
    assert sorted(model.queue.ids.tolist()) == sorted(kept[-7:])
    assert model.queue.filled == 7
    torch.testing.assert_close(model.queue.features.norm(dim=1), torch.ones(7))
    small(queue_size=3)(views(5))  # a batch longer than the queue


def test_in_evaluation_mode_nothing_moves():
    for options in ({}, {"mechanism": "bank", "samples": 20}):
        model = small(**options).eval()
        with torch.no_grad():
            model.student.head[-1].weight.add_(torch.eye(6, 8))  # somewhere for a teacher to go
        before = copy.deepcopy(model.state_dict())
        batch = {"image": pictures(), "ids": torch.arange(4)}
        with torch.no_grad():
            first, second = model(batch), model(batch)
        assert torch.equal(first["loss"], second["loss"])
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_views_are_drawn_anew_every_step_the_same_for_the_same_seed():
    seen = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = MoCo(Small(), dim=6, queue_size=12, seed=seed)
        watched = []
        model.student.register_forward_pre_hook(lambda _, given, to=watched: to.append(given[0]))
        model.teacher.register_forward_pre_hook(lambda _, given, to=watched: to.append(given[0]))
        before = torch.get_rng_state()
        for _ in range(2):
            model({"image": pictures()})
        assert torch.equal(before, torch.get_rng_state())
        seen.append(torch.stack(watched))  # query, key, query, key
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    query, key, later, _ = seen[0]
    assert not torch.allclose(query, key, atol=1e-2) and not torch.allclose(query, later, atol=1e-2)


def test_the_accuracy_of_a_long_queue_is_read_from_the_first_rows():
    model = MoCo(Small(), dim=6, queue_size=2**20)  # two rows
    queries = F.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(7)), dim=1)
    keys = torch.cat([queries[:1], -queries[1:]])
    assert float(model.contrast(queries, keys)["accuracy"]) == 0.5
    model = small()
    model.queue.features.copy_(-queries.repeat(3, 1))
    assert float(model.contrast(queries, queries)["accuracy"]) == 1
    assert float(model.contrast(queries, queries)["accuracy"]) == 0  # now its own key is a negative: a tie, no hit


# A run


def batches(step):
    return {"image": pictures(5, step), "ids": 5 * (step % 4) + torch.arange(5)}


@pytest.mark.parametrize("options", [{}, {"mechanism": "bank", "samples": 20}, {"bn_groups": 2}])
def test_a_run_that_was_stopped_goes_on_with_the_same_queue(tmp_path, options):
    """12 steps of 5 keys, stopped in the middle of an epoch of 4 steps and of a lap of the queue."""
    kept = dict(steps=12, device="cpu", progress=False, checkpoint_seconds=0)
    whole = small(**options)
    history = train(whole, batches, **kept)

    def killed(step):
        if step == 7:
            raise KeyboardInterrupt
        return batches(step)

    file = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(small(**options), killed, checkpoint=file, **kept)
    again = small(seed=0, **options)
    resumed = train(again, batches, checkpoint=file, **kept)
    assert resumed["loss"].tolist() == history["loss"].tolist()
    ours, theirs = again.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys() and int(ours["steps"]) == 12
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if "mechanism" not in options:
        assert whole.queue.ids.tolist() != [-1] * 12 and whole.queue.filled == 12


@pytest.mark.parametrize("options", [{}, {"mechanism": "bank", "samples": 20}, {"mechanism": "end-to-end"}])
def test_it_trains_in_bfloat16_and_keeps_float32_keys(options):
    model = small(**options)
    history = train(model, batches, steps=3, device="cpu", precision="bf16", progress=False)
    assert history["loss"].between(0.1, 10).all()
    kept = [value for name, value in model.state_dict().items() if name in ("queue.features", "bank")]
    assert all(value.dtype == torch.float32 for value in kept)


def test_the_accuracy_tells_close_keys_apart_in_bfloat16_too():
    model = small()
    queries = F.normalize(torch.ones(4, 6) + 0.01 * torch.eye(4, 6), dim=1)  # all cosines are above 0.9999
    model.queue.features.copy_(F.normalize(torch.ones(12, 6) - 0.01 * torch.eye(4, 6).repeat(3, 1), dim=1))
    with torch.autocast("cpu", torch.bfloat16):
        assert float(model.contrast(queries, queries)["accuracy"]) == 1


def test_it_learns_to_recognise_pictures():
    colours = torch.rand(24, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    images = (colours + 0.1 * pictures(24)).clamp(0, 1)

    def batch_at(step):
        ids = torch.randperm(24, generator=torch.Generator().manual_seed(step))[:12]
        dice = torch.Generator().manual_seed(1000 + step)
        noise = [0.02 * torch.rand(12, 3, SIZE, SIZE, generator=dice) for _ in range(2)]
        return {"image": images[ids] + noise[0], "image_key": images[ids] + noise[1], "ids": ids}

    history = train(small(queue_size=12, norm=False), batch_at, steps=150, device="cpu", progress=False)
    assert history["accuracy"].iloc[-20:].mean() > history["accuracy"].iloc[:20].mean() + 0.2
    assert history["loss"].iloc[-20:].mean() < history["loss"].iloc[:20].mean() - 0.3


# The other dictionaries


def test_end_to_end_the_keys_of_the_batch_are_the_dictionary_and_have_a_gradient():
    model, batch = small(norm=False, mechanism="end-to-end"), views()
    result = model(batch)
    queries, keys = model.student(batch["image"]), model.student(batch["image_key"])
    expected = F.cross_entropy(queries @ keys.T / 0.2, torch.arange(4))
    torch.testing.assert_close(result["loss"], expected)
    result["loss"].backward()
    weight = model.student.head[-1].weight
    ours = weight.grad.clone()
    weight.grad = None
    expected.backward()
    torch.testing.assert_close(ours, weight.grad, atol=1e-6, rtol=1e-4)
    weight.grad = None
    info_nce(model.student(batch["image"]), keys.detach(), temperature=0.2).backward()
    assert not torch.allclose(ours, weight.grad, atol=1e-4)  # through the queries alone it is another
    assert not hasattr(model, "teacher") and not hasattr(model, "queue")
    hits = (queries @ keys.T).argmax(1) == torch.arange(4)
    assert float(result["accuracy"]) == float(hits.float().mean())
    corners = torch.eye(6)[:4]
    assert float(model.contrast(corners, corners)["accuracy"]) == 1
    assert float(model.contrast(corners, corners.flip(0))["accuracy"]) == 0


def test_a_bank_holds_a_row_a_picture_and_lends_only_those_of_other_pictures():
    model = small(norm=False, mechanism="bank", samples=20, queue_size=15, bank_momentum=0.75)
    before, ids = model.bank.clone(), torch.tensor([3, 0, 19, 7])
    batch = {**views(), "ids": ids}
    lent = model._lent(ids)
    assert len(lent.unique()) == 15 and not set(lent.tolist()) & set(ids.tolist())
    result = model(batch)
    queries = model.student(batch["image"]).detach()
    positive = (queries * before[ids]).sum(1, keepdim=True)
    logits = torch.cat([positive, queries @ before[lent].T], dim=1) / 0.2
    torch.testing.assert_close(result["loss"].detach(), F.cross_entropy(logits, torch.zeros(4, dtype=torch.long)))
    mixed = 0.75 * before[ids] + 0.25 * queries
    torch.testing.assert_close(model.bank[ids], mixed / mixed.norm(dim=1, keepdim=True))
    rest = [row for row in range(20) if row not in ids.tolist()]
    assert torch.equal(model.bank[rest], before[rest])
    assert model._lent(ids).tolist() != lent.tolist()  # other negatives in the next step
    assert not any(name.startswith("teacher") for name in model.state_dict())


# Batch norm in groups


def test_one_group_is_plain_batch_norm_and_several_are_several_devices():
    plain, grouped = nn.BatchNorm2d(6), nn.Sequential(nn.BatchNorm2d(6))
    assert group_batch_norm(grouped, 1) == 1 and isinstance(grouped[0], GroupedBatchNorm2d)
    x = torch.randn(10, 6, 3, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1
    assert torch.equal(grouped(x), plain(x))
    assert all(
        torch.equal(a, b) for a, b in zip(grouped.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    group_batch_norm(grouped, 3)  # parts of 4, 3, 3
    expected = torch.cat([nn.BatchNorm2d(6)(part) for part in (x[:4], x[4:7], x[7:])])
    torch.testing.assert_close(grouped(x), expected)
    assert not torch.allclose(grouped(x), plain(x), atol=1e-2)
    grouped.eval(), plain.eval()
    plain.load_state_dict({name[2:]: value for name, value in grouped.state_dict().items()})
    assert torch.equal(grouped(x), plain(x))


def test_shuffling_is_undone_and_changes_nothing_without_groups():
    model, image = small(), pictures(9)
    dice = torch.Generator().manual_seed(3)
    marks = []

    def encode(view):
        marks.append(view)
        return view.mean((2, 3))

    assert torch.equal(model._shuffled(encode, image, dice), image.mean((2, 3)))
    assert not torch.equal(marks[0], image)  # it did see another order
    torch.testing.assert_close(
        model._shuffled(model.teacher, image, dice), model.teacher(image), atol=1e-5, rtol=0
    )  # one group holds everybody


def test_groups_without_a_shuffle_give_the_answer_away():
    """Views of unrelated pictures: only the statistics of a shared group tell who belongs to whom."""

    def positives(shuffle):
        model = small(bn_groups=4, shuffle=shuffle, queue_size=64, dim=16)
        tint = torch.rand(4, 3, 1, 1, generator=torch.Generator().manual_seed(4)).repeat_interleave(2, 0)
        batch = {"image": pictures(8, 1) * tint, "image_key": pictures(8, 1) * tint}
        with torch.no_grad():
            return float(model(batch)["positive"])

    alone = small(bn_groups=4, queue_size=64, dim=16)
    assert sum(isinstance(m, GroupedBatchNorm2d) for m in alone.teacher.modules()) == 1
    assert positives(shuffle=False) == pytest.approx(1, abs=1e-5)  # same pictures, same groups: same features
    assert positives(shuffle=True) < 0.999


# Judging, saving, errors


def test_probes_read_the_frozen_pooled_features_and_leave_the_model_as_it_was():
    model = MoCo.tiny(queue_size=16)
    images, labels = pictures(40), torch.arange(40) % 2
    images[labels == 1, 0] *= 0.2
    before = copy.deepcopy(model.state_dict())
    features = probe_features(model, images, batch_size=7)
    assert features.shape == (40, 256) and not features.requires_grad
    assert model.training and model.student.encoder.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(features, model.student.encoder.eval()(images).pooled.detach(), atol=1e-5, rtol=1e-4)
    scores = probe(model, images[:30], labels[:30], images[30:], labels[30:], k=3)
    given = (features[:30], labels[:30], features[30:], labels[30:])
    assert scores == {"knn": knn(*given, k=3), "linear": linear_probe(*given)}
    assert scores["linear"] > 0.8


@pytest.mark.parametrize("options", [{}, {"mechanism": "bank", "samples": 40, "head": "linear"}, {"image": "resnet18"}])
def test_saved_and_loaded_models_are_equal(tmp_path, options):
    model = MoCo.tiny(queue_size=16, augmentation="v1", temperature=0.07, **options)
    model({"image": pictures(4), "ids": torch.arange(4)})
    again = MoCo.load(model.save(tmp_path, seconds=3))
    assert not again.training and again.temperature == 0.07 and again.augmentation == model.augmentation
    ours, theirs = again.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_tiny_is_the_same_for_the_same_seed_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    a, b, c = MoCo.tiny(seed=1), MoCo.tiny(seed=1), MoCo.tiny(seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(a.queue.features, c.queue.features)
    assert not torch.equal(a.student.head[0].weight, c.student.head[0].weight)
    assert all(torch.equal(x, y) for x, y in zip(a.teacher.parameters(), a.student.parameters(), strict=True))


def test_the_mlp_head_has_one_hidden_layer_and_the_linear_one_none():
    assert [type(layer).__name__ for layer in ProjectedEncoder(Small(), 6).head] == ["Linear", "ReLU", "Linear"]
    linear = ProjectedEncoder(Small(), 6, "linear")
    assert [type(layer).__name__ for layer in linear.head] == ["Linear"]
    torch.testing.assert_close(linear(pictures()).norm(dim=1), torch.ones(4))


def test_errors_say_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match="mechanism must be one of .*'bank'.*not 'memory'"):
        small(mechanism="memory")
    with pytest.raises(ValueError, match="head must be 'linear' or 'mlp', not 'v2'"):
        small(head="v2")
    with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\], got 1.5"):
        small(momentum=1.5)
    with pytest.raises(ValueError, match="temperature: .* must be positive"):
        small(temperature=0.0)
    with pytest.raises(ValueError, match="mechanism is 'bank', samples None"):
        small(mechanism="bank")
    with pytest.raises(ValueError, match="mechanism is 'momentum', samples 50"):
        small(samples=50)
    with pytest.raises(ValueError, match="a bank of 12 rows cannot lend 12 negatives"):
        small(mechanism="bank", samples=12)
    with pytest.raises(ValueError, match="has no BatchNorm2d to cut into groups"):
        small(norm=False, bn_groups=2)
    with pytest.raises(ValueError, match="groups must be at least 1, not 0"):
        small(bn_groups=0)
    with pytest.raises(ValueError, match="a batch of 4 gives 3 groups less than two pictures each"):
        small(bn_groups=3)(views())
    with pytest.raises(ValueError, match=r"image and image_key: .* got \(4, 3, 16, 16\) and \(3, 3, 16, 16\)"):
        small()({"image": pictures(4), "image_key": pictures(3)})
    bank = small(mechanism="bank", samples=14)
    with pytest.raises(ValueError, match="must say which ones"):
        bank(views())
    with pytest.raises(ValueError, match="numbers from 0 to 13, got shape .* 11 to 14"):
        bank({**views(), "ids": torch.arange(11, 15)})
    with pytest.raises(ValueError, match="stands in the batch twice"):
        bank({**views(), "ids": torch.tensor([1, 2, 1, 3])})
    with pytest.raises(ValueError, match="10 bank rows are left beside a batch of 4, fewer than queue_size 12"):
        bank({**views(), "ids": torch.arange(4)})
    with pytest.raises(ValueError, match="a batch of one has no negatives"):
        small(norm=False, mechanism="end-to-end")(views(1))
    with pytest.raises(ValueError, match="image tower must be one of .*conv.*not 'cnn'"):
        MoCo.tiny(image="cnn")
    with pytest.raises(ValueError, match="augmentation must be 'v1' or 'v2', not 'v3'"):
        MoCo.tiny(augmentation="v3")
    with pytest.raises(ValueError, match="save works on models from MoCo.tiny"):
        small().save(tmp_path)
    with pytest.raises(ValueError, match="no model.json"):
        MoCo.load(tmp_path)
