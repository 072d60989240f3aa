"""The loop: it learns, it goes on after a kill with the same numbers, it stops in time, it complains clearly."""

import math
import time

import pytest
import torch
from torch import nn

from vlnotes.train import (
    epoch_indices,
    learning_rate_at,
    pair_batches,
    pick_device,
    pick_precision,
    train,
    trim_padding,
)


class Line(nn.Module):
    """Fits y = 2 x + 1 with dropout, so that the random state matters for a resume."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.drop = nn.Dropout(0.2)
        with torch.no_grad():
            self.layer.weight.fill_(0.0)
            self.layer.bias.fill_(0.0)

    def forward(self, batch):
        error = self.drop(self.layer(batch["x"]) - batch["y"])
        return {"loss": (error**2).mean(), "largest": error.detach().abs().max()}


def line_batches(step):
    x = torch.randn(16, 1, generator=torch.Generator().manual_seed(step))
    return {"x": x, "y": 2 * x + 1}


OPTIONS = dict(learning_rate=0.1, weight_decay=0.0, device="cpu", precision="fp32", progress=False)


def test_it_learns_a_line_and_says_how():
    model = Line()
    history = train(model, line_batches, steps=120, **OPTIONS)
    assert abs(float(model.layer.weight.detach()) - 2) < 0.05 and abs(float(model.layer.bias.detach()) - 1) < 0.05
    assert list(history["step"]) == list(range(120))
    assert {"loss", "largest", "learning_rate", "seconds"} <= set(history.columns)
    assert history.attrs["device"] == "cpu" and history.attrs["precision"] == "fp32"
    assert not model.training


class Killed(Exception):
    pass


def test_a_killed_run_ends_with_the_same_numbers(tmp_path):
    whole = Line()
    expected = train(whole, line_batches, steps=40, **OPTIONS)

    def killed(step):
        if step == 25:
            raise Killed
        return line_batches(step)

    file = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        train(Line(), killed, steps=40, checkpoint=file, checkpoint_seconds=0, **OPTIONS)
    seen = []
    resumed = Line()
    history = train(resumed, lambda s: seen.append(s) or line_batches(s), steps=40, checkpoint=file, **OPTIONS)
    assert seen == list(range(25, 40))
    assert list(history["loss"]) == list(expected["loss"])
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    # and a finished run is not trained again
    again = train(Line(), killed, steps=40, checkpoint=file, **OPTIONS)
    assert list(again["loss"]) == list(expected["loss"])


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    file = tmp_path / "run.safetensors"
    train(Line(), line_batches, steps=3, checkpoint=file, **OPTIONS)
    with pytest.raises(ValueError, match="another run.*'steps': \\(3, 4\\)"):
        train(Line(), line_batches, steps=4, checkpoint=file, **OPTIONS)


def test_batches_made_ahead_come_in_order():
    plain = train(Line(), line_batches, steps=9, **OPTIONS)
    ahead = train(Line(), line_batches, steps=9, workers=3, **OPTIONS)
    assert list(plain["loss"]) == list(ahead["loss"])


def test_a_time_budget_is_kept_and_the_learning_rate_lands():
    def slow(step):
        time.sleep(0.01)
        return line_batches(step)

    start = time.perf_counter()
    history = train(Line(), slow, steps=100_000, minutes=1 / 60, **OPTIONS)
    assert 0.5 < time.perf_counter() - start < 4
    assert 5 < len(history) < 1000
    assert history["learning_rate"].iloc[-1] < 0.1 * history["learning_rate"].max()


def test_evaluation_joins_the_history_in_eval_mode():
    modes = []

    def evaluate(model):
        modes.append(model.training)
        return {"weight": float(model.layer.weight)}

    history = train(Line(), line_batches, steps=10, evaluate=evaluate, evaluate_every=4, **OPTIONS)
    assert list(history["weight"].dropna().index) == [3, 7, 9]
    assert modes == [False] * 3


def test_the_global_random_state_is_left_alone():
    model = Line()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    train(model, line_batches, steps=3, **{**OPTIONS, "precision": None})
    assert torch.equal(before, torch.get_rng_state())


def test_a_loss_that_is_no_number_stops_with_the_step():
    def broken(step):
        batch = line_batches(step)
        return batch if step < 3 else {**batch, "y": batch["y"] * math.nan}

    with pytest.raises(ValueError, match="became nan at step 3"):
        train(Line(), broken, steps=9, **OPTIONS)


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="steps must be at least 1 and minutes positive, not 0"):
        train(Line(), line_batches, steps=0, **OPTIONS)
    with pytest.raises(ValueError, match="'bf16' or 'fp32', not 'int4'"):
        train(Line(), line_batches, steps=1, **{**OPTIONS, "precision": "int4"})
    with pytest.raises(ValueError, match="with 'loss'; it has \\['total'\\]"):
        model = Line()
        model.forward = lambda batch: {"total": model.layer(batch["x"]).sum()}
        train(model, line_batches, steps=1, **OPTIONS)
    with pytest.raises(ValueError, match="not on this machine; it has: .*cpu"):
        pick_device("cuda:77")
    with pytest.raises(ValueError, match="3 samples do not fill one batch of 4"):
        epoch_indices(0, 3, 4)


def test_an_epoch_shows_every_sample_once_and_epochs_differ():
    first = torch.cat([epoch_indices(step, 12, 4, seed=1) for step in range(3)])
    second = torch.cat([epoch_indices(step, 12, 4, seed=1) for step in range(3, 6)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert first.tolist() != second.tolist()
    assert not torch.equal(epoch_indices(0, 12, 4, seed=1), epoch_indices(0, 12, 4, seed=2))


def test_pairs_belong_together_and_every_caption_gets_its_turn():
    owner = torch.tensor([2, 0, 1, 0, 2, 2])
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    tokens = {"input_ids": torch.arange(6).view(6, 1), "attention_mask": torch.ones(6, 1, dtype=torch.long)}
    batch_at = pair_batches(images, tokens, owner, batch_size=3, seed=0)
    seen = set()
    for step in range(40):
        batch = batch_at(step)
        captions = batch["input_ids"][:, 0]
        assert torch.equal(owner[captions], batch["ids"])
        assert torch.equal(batch["image"][:, 0, 0, 0].long(), batch["ids"])
        seen |= set(captions.tolist())
    assert seen == set(range(6))
    with pytest.raises(ValueError, match="owner runs from 0 to 7; expected pictures 0 to 2"):
        pair_batches(images, tokens, owner.clamp(max=1) * 7, 3)
    with pytest.raises(ValueError, match="without one: \\[1\\]"):
        pair_batches(images, tokens, torch.tensor([2, 0, 0, 0, 2, 2]), 3)


def test_neighbours_share_their_batches():
    images = torch.arange(8, dtype=torch.uint8).reshape(8, 1, 1, 1).expand(8, 3, 2, 2)
    ones = torch.ones(8, 2, dtype=torch.long)
    tokens, owner = {"input_ids": ones * torch.arange(8)[:, None], "attention_mask": ones}, torch.arange(8)
    batch_at = pair_batches(images, tokens, owner, batch_size=4, together=2)
    seen = []
    for step in range(2):
        batch = batch_at(step)
        ids = batch["ids"].tolist()
        assert ids[1::2] == [at + 1 for at in ids[::2]] and all(at % 2 == 0 for at in ids[::2])
        assert batch["image"][:, 0, 0, 0].tolist() == ids == batch["input_ids"][:, 0].tolist()
        seen += ids
    assert sorted(seen) == list(range(8))  # an epoch
    with pytest.raises(ValueError, match="together is 3; expected a divisor of 8 pictures and of batches of 4"):
        pair_batches(images, tokens, owner, batch_size=4, together=3)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    assert learning_rate_at(0.05, 1.0, 0.1) == 0.5
    assert learning_rate_at(0.1, 1.0, 0.1) == 1.0
    assert abs(learning_rate_at(0.55, 1.0, 0.1) - 0.5) < 1e-12
    assert learning_rate_at(1.0, 1.0, 0.1) < 1e-12


def test_weights_survive_a_loss_that_is_no_number():
    model = Line()
    with pytest.raises(ValueError, match="became nan"):
        train(model, lambda s: {"x": torch.ones(4, 1), "y": torch.full((4, 1), math.nan)}, steps=3, **OPTIONS)
    assert all(p.isfinite().all() for p in model.parameters())


def test_bfloat16_is_over_when_the_training_is():
    model = Line()
    train(model, line_batches, steps=2, **{**OPTIONS, "precision": "bf16"})
    assert "forward" not in vars(model) and model.layer(torch.ones(1, 1)).dtype == torch.float32


def test_padding_that_all_share_is_cut_and_nothing_else():
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]])
    batch = {"attention_mask": mask, "input_ids": mask * 7, "labels": mask * 3, "image": torch.zeros(2, 3, 4, 4)}
    short = trim_padding(batch)
    assert [short[name].shape[1] for name in ("attention_mask", "input_ids", "labels", "image")] == [3, 3, 3, 3]
    assert short["input_ids"].tolist() == [[7, 7, 0], [7, 0, 7]]
    assert trim_padding({"x": mask}) == {"x": mask}


def test_a_tiny_budget_still_makes_one_step():
    assert len(train(Line(), line_batches, minutes=1e-9, **OPTIONS)) == 1


def test_a_cpu_trains_in_float32_unless_asked(monkeypatch):
    assert pick_precision(torch.device("cpu")) == "fp32"
    assert pick_precision(torch.device("cpu"), measure=True) in ("bf16", "fp32")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert pick_precision(torch.device("cuda")) == "bf16"
    history = train(Line(), line_batches, steps=2, **{**OPTIONS, "precision": "bf16"})
    assert history.attrs["precision"] == "bf16"
