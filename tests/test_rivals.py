"""Mod-X's rivals: EWC's Fisher row by row, distilled features, a fair reservoir, and one interface for all."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from test_albef import dice, unit
from test_modx import batch, four, stirred

from vlnotes.clip import CLIP
from vlnotes.contrastive import clip_loss
from vlnotes.disorder import random_rotation
from vlnotes.modx import Continual, ModX, SummaryModX
from vlnotes.rivals import (
    EWC,
    LwF,
    Replay,
    Reservoir,
    ewc_penalty,
    feature_distillation,
    fisher,
    pair_log_likelihood,
)


class Small(torch.nn.Module):
    """Two linear towers with a learnt temperature, in float64: what `fisher` needs of a CLIP."""

    def __init__(self):
        super().__init__()
        self.image = torch.nn.Linear(4, 3, bias=False).double()
        self.text = torch.nn.Linear(5, 3).double()
        self.scale = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.unused = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.frozen = torch.nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)

    temperature = property(lambda self: torch.exp(-self.scale))

    def pair_features(self, batch):
        return F.normalize(self.image(batch["image"]), dim=1), F.normalize(self.text(batch["text"]), dim=1)


def small(count=5, batches=2):
    torch.manual_seed(0)
    return Small(), [{"image": unit(count, 4, seed=i), "text": unit(count, 5, seed=i + 9)} for i in range(batches)]


# ---------------------------------------------------------------------------------------------- EWC


def test_the_likelihood_of_a_pair_is_the_softmax_of_its_row_and_of_its_column():
    v, w = unit(5), unit(5, seed=1)
    found = pair_log_likelihood(v, w, temperature=0.3)
    for i in range(5):
        row = [float(v[i] @ w[j]) / 0.3 for j in range(5)]
        column = [float(v[j] @ w[i]) / 0.3 for j in range(5)]
        for at, logits in enumerate((row, column)):
            expected = logits[i] - math.log(sum(math.exp(value) for value in logits))
            assert float(found[at, i]) == pytest.approx(expected, rel=1e-9)
    assert -float(found.mean()) == pytest.approx(float(clip_loss(v, w, temperature=0.3)), rel=1e-9)
    with pytest.raises(ValueError, match="a batch of one pair is sure to match"):
        pair_log_likelihood(v[:1], w[:1], temperature=0.3)


def looped(model, batches, rows):
    """One autograd.grad a row and direction, from logits written out here."""
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums, count = {name: torch.zeros_like(p) for name, p in learning.items()}, 0
    for one in batches:
        v, w = model.pair_features(one)
        s = v @ w.T / model.temperature
        for i in range(rows):
            for logits in (s[i], s[:, i]):
                value = logits[i] - logits.exp().sum().log()
                grads = torch.autograd.grad(value, list(learning.values()), retain_graph=True, allow_unused=True)
                for name, grad in zip(learning, grads, strict=True):
                    sums[name] += 0 if grad is None else grad**2
                count += 1
    return {name: total / count for name, total in sums.items()}


@pytest.mark.parametrize("rows", [None, 2, 50])
def test_the_fisher_of_rows_is_the_loop_of_single_gradients(rows, monkeypatch):
    monkeypatch.setattr("vlnotes.rivals.AT_ONCE", 3)  # several at a time, and a ragged end
    model, batches = small()
    found = fisher(model, batches, rows=rows)
    expected = looped(model, batches, min(rows or 5, 5))
    assert found.keys() == expected.keys() == {"image.weight", "text.weight", "text.bias", "scale", "unused"}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-15, msg=name)
    assert not found["unused"].any() and found["scale"] > 0
    assert all(p.grad is None for p in model.parameters())


def test_the_cheap_fisher_is_the_squared_gradient_of_the_loss():
    model, batches = small()
    found = fisher(model, batches, per_row=False)
    for name in ("image.weight", "text.bias", "scale"):
        squares = []
        for one in batches:
            model.zero_grad()
            clip_loss(*model.pair_features(one), temperature=model.temperature).backward()
            squares.append(dict(model.named_parameters())[name].grad ** 2)
        torch.testing.assert_close(found[name], sum(squares) / 2, rtol=1e-9, atol=1e-15)
    rows = fisher(model, batches)
    assert found["image.weight"].sum() < rows["image.weight"].sum()


def test_the_fisher_of_a_clip_leaves_it_as_it_was():
    model = CLIP.tiny(40, dim=16).train()
    before = copy.deepcopy(model.state_dict())
    found = fisher(model, [batch()], rows=2)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(bool((value >= 0).all()) for value in found.values())
    expected = looped(Eval(model), [batch()], 2)
    for name in ("image_projection.weight", "logit_scale", "text_projection.weight"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-9)


class Eval:
    """A CLIP that is asked in eval mode."""

    def __init__(self, model):
        self.model, self.temperature = copy.deepcopy(model).eval(), None
        self.temperature = self.model.temperature

    def named_parameters(self):
        return self.model.named_parameters()

    def pair_features(self, one):
        return self.model.pair_features(one)


def test_the_penalty_is_springs():
    theta, star, f = (torch.randn(7, generator=dice(i), dtype=torch.float64) for i in range(3))
    theta.requires_grad_(), star.requires_grad_()
    loss = ewc_penalty(theta, star, f.square())
    expected = sum(float(f[k]) ** 2 * (float(theta[k].detach()) - float(star[k].detach())) ** 2 / 2 for k in range(7))
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    torch.testing.assert_close(theta.grad, f.square() * (theta - star).detach())
    assert star.grad is None
    with pytest.raises(ValueError, match="of one shape"):
        ewc_penalty(theta, star[:3], f)


def test_ewc_holds_the_weights_of_the_last_phase(tmp_path):
    model = EWC.tiny(40, dim=16, weight=50.0, rows=2, keep=0.5).train()
    assert list(model(batch())) == ["loss", "clip", "temperature"]
    model.start_phase([batch(), batch(seed=1)])
    first = fisher(model.current, [batch(), batch(seed=1)], rows=2)
    flat = torch.cat([value.flatten() for value in first.values()])
    torch.testing.assert_close(model.importance, flat)
    assert model(batch())["ewc"].item() == 0
    start = {name: p.detach().clone() for name, p in model.current.named_parameters()}
    stirred(model)
    losses = model(batch())
    expected = sum(
        float((first[name] * (p.detach() - start[name]).square()).sum()) / 2
        for name, p in model.current.named_parameters()
        if p.requires_grad
    )
    assert losses["ewc"].item() == pytest.approx(expected, rel=1e-4) and expected > 0
    assert losses["loss"].item() == pytest.approx(losses["clip"].item() + 50 * expected, rel=1e-4)
    model.batches = 1
    model.start_phase([batch(seed=2), batch(seed=3)])
    second = fisher(model.current, [batch(seed=2)], rows=2)
    both = 0.5 * flat + torch.cat([value.flatten() for value in second.values()])
    torch.testing.assert_close(model.importance, both)
    assert model(batch())["ewc"].item() == 0  # the anchor moved along
    again = EWC.load(model.save(tmp_path))
    assert torch.equal(again.importance, model.importance) and again.built["keep"] == 0.5


# ---------------------------------------------------------------------------------------------- distilled features


def test_distillation_is_the_loop_and_reaches_the_current_model_alone():
    x = [one.requires_grad_() for one in four()]
    v, w, old_v, old_w = x
    loss = feature_distillation(*x)
    a, b, c, d = (one.detach() for one in x)
    expected = sum(float(((a[i] - c[i]) ** 2).sum() + ((b[i] - d[i]) ** 2).sum()) / 2 for i in range(6)) / 6
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert loss.item() == pytest.approx(2 - float((a * c).sum(1).mean() + (b * d).sum(1).mean()))
    loss.backward()
    assert v.grad.any() and w.grad.any() and old_v.grad is None and old_w.grad is None
    assert feature_distillation(a, b, a, b).item() == 0
    turn = random_rotation(5)
    assert feature_distillation(a @ turn, b @ turn, a, b) > 0.5  # unlike Mod-X it minds a common turn
    with pytest.raises(ValueError, match="the old model's features have width 3"):
        feature_distillation(a, b, c[:, :3], d[:, :3])


def test_lwf_adds_it_from_the_second_phase_on(tmp_path):
    model = LwF.tiny(40, dim=16, weight=3.0).train()
    assert list(model(batch())) == ["loss", "clip", "temperature"]
    model.start_phase()
    stirred(model).eval()
    losses = model(batch())
    expected = feature_distillation(*model.current.pair_features(batch()), *model.old.pair_features(batch()))
    assert losses["distilled"].item() == pytest.approx(expected.item()) and expected > 0
    assert losses["loss"].item() == pytest.approx(losses["clip"].item() + 3 * expected.item())
    assert LwF.load(model.save(tmp_path)).old is not None


# ---------------------------------------------------------------------------------------------- replay


def numbered(numbers, length=3):
    """Pairs whose picture and caption hold their number."""
    n = torch.tensor(numbers)
    ids = n[:, None].expand(-1, length).contiguous()
    image = n[:, None, None, None].expand(-1, 3, 2, 2).to(torch.uint8)
    return {"image": image, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_every_pair_that_went_by_is_kept_as_often():
    counts, runs = torch.zeros(20), 1500
    for seed in range(runs):
        memory = Reservoir(5, pixels=2, length=4, seed=seed)
        for start in range(0, 20, 4):
            memory.offer(numbered(list(range(start, start + 4))))
        kept = memory.input_ids[:, 0]
        assert len(kept.unique()) == 5 and torch.equal(memory.image[:, 0, 0, 0].long(), kept)
        counts[kept] += 1
    share = counts / runs  # 0.25 each; a standard error of 0.011
    assert float((share - 0.25).abs().max()) < 0.045


def test_the_reservoir_fills_pads_and_draws_each_once():
    memory = Reservoir(5, pixels=2, length=4)
    with pytest.raises(ValueError, match="the memory is empty"):
        memory.draw(2, dice())
    memory.offer(numbered([7, 8, 9]))
    assert memory.filled == 3 and memory.attention_mask[:3].sum(1).tolist() == [3, 3, 3]
    drawn = memory.draw(9, dice())
    assert sorted(drawn["input_ids"][:, 0].tolist()) == [7, 8, 9] and drawn["image"].dtype == torch.uint8
    with pytest.raises(ValueError, match=r"holds uint8 pictures of shape \(3, 2, 2\); got torch.float32"):
        memory.offer({**numbered([1]), "image": torch.zeros(1, 3, 2, 2)})
    with pytest.raises(ValueError, match="holds 4 tokens, got 5"):
        memory.offer(numbered([1], length=5))
    with pytest.raises(ValueError, match="of 1 or more; got 0, 2, 4"):
        Reservoir(0, pixels=2, length=4)


def test_replay_joins_old_pairs_to_the_batch(tmp_path):
    model = Replay.tiny(40, dim=16, memory=5, count=3, pixels=32, length=12).train()
    assert torch.equal(model(batch())["loss"], CLIP.tiny(40, dim=16).train()(batch())["loss"])
    model.start_phase([batch(6, seed=1), batch(6, seed=2)])
    assert model.memory.filled == 5 and int(model.memory.offered) == 12
    before = copy.deepcopy(model)
    found = model(batch())
    old = before.memory.draw(3, torch.Generator().manual_seed(0))
    both = {
        name: torch.cat([F.pad(batch()[name], (0, 3)) if name != "image" else batch()[name], old[name]]) for name in old
    }
    assert found["loss"].item() == pytest.approx(before.current(both)["loss"].item(), rel=1e-5)
    assert int(model.steps) == 1 and model(batch())["loss"] != found["loss"]  # other old pairs
    again = Replay.load(model.save(tmp_path))
    assert torch.equal(again.memory.image, model.memory.image) and int(again.steps) == 2


# ---------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("kind", [Continual, ModX, SummaryModX, EWC, LwF, Replay])
def test_all_have_one_interface(kind, tmp_path):
    options = {"memory": 4, "count": 2, "pixels": 32, "length": 9} if kind is Replay else {}
    options |= {"rows": 1} if kind is EWC else {}
    model, clip = kind.tiny(40, dim=16, seed=1, **options).train(), CLIP.tiny(40, dim=16, seed=1).train()
    assert torch.equal(model(batch())["clip"], clip(batch())["loss"])
    for phase in (1, 2):
        model.start_phase([batch(seed=phase)])
        losses = model(batch(seed=phase + 1))
        losses["loss"].backward()
        assert int(model.phase) == phase and {"loss", "clip", "temperature"} <= losses.keys()
        assert all(value.ndim == 0 for value in losses.values())
    data = batch()
    again = kind.load(model.save(tmp_path))
    assert torch.equal(again.image_features(data["image"]), model.eval().image_features(data["image"]))
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_rivals_name_what_is_wrong():
    for kind in (EWC, Replay):
        with pytest.raises(ValueError, match="no batches"):
            kind.tiny(40, dim=16).start_phase()
    with pytest.raises(ValueError, match="got 0, 8"):
        EWC.tiny(40, dim=16, rows=0)
    with pytest.raises(ValueError, match="keep: expected a number in"):
        EWC.tiny(40, dim=16, keep=2.0)
    with pytest.raises(ValueError, match="count is 0"):
        Replay.tiny(40, dim=16, count=0)
    with pytest.raises(ValueError, match="weight"):
        LwF.tiny(40, dim=16, weight=-1)
    with pytest.raises(ValueError, match="rows is 0"):
        fisher(CLIP.tiny(40, dim=16), [batch()], rows=0)
