"""The teacher that follows slowly, and the queue of its features."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vlnotes.contrastive import info_nce
from vlnotes.momentum import FeatureQueue, gather_with_grad, momentum_copy, momentum_update


def small(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def numbered(start, count, dim=2):
    """Rows that say which one they are: row i holds i everywhere."""
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(count, dim)


# --- the teacher ----------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_a_copy_is_equal_apart_and_frozen(training):
    student = small().train(training)
    teacher = momentum_copy(student)
    assert teacher.training is training
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(mine, theirs) and mine.data_ptr() != theirs.data_ptr()
        assert not mine.requires_grad and theirs.requires_grad


def test_update_is_the_average_of_parameters_and_leaves_buffers_alone():
    teacher, student = momentum_copy(small(0)), small(1)
    student(torch.ones(5, 3))  # moves the student's running statistics
    before = copy.deepcopy(teacher)
    momentum_update(teacher, student, 0.9)
    for new, old, other in zip(teacher.parameters(), before.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * other)
    for new, old in zip(teacher.buffers(), before.buffers(), strict=True):
        assert torch.equal(new, old)
    assert not torch.equal(teacher[1].running_mean, student[1].running_mean)


def test_momentum_one_freezes_and_zero_copies_to_the_last_bit():
    teacher, student = momentum_copy(small(0)), small(1)
    before = copy.deepcopy(teacher)
    momentum_update(teacher, student, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), before.parameters(), strict=True))
    momentum_update(teacher, student, 0)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))


def test_many_updates_follow_the_geometric_series():
    teacher, student = nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(teacher.weight)
    nn.init.ones_(student.weight)
    for _ in range(50):
        momentum_update(teacher, student, 0.95)
    assert teacher.weight.item() == pytest.approx(1 - 0.95**50)


def test_the_teacher_never_gets_a_gradient():
    student = small()
    teacher = momentum_copy(student)
    loss = (student(torch.randn(4, 3, generator=torch.Generator().manual_seed(0))) - teacher(torch.ones(4, 3))).pow(2)
    loss.sum().backward()
    momentum_update(teacher, student, 0.5)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_a_student_of_another_precision_is_followed_in_the_teachers_own():
    teacher, student = small(0), small(1).to(torch.bfloat16)
    momentum_update(teacher, student, 0.0)
    assert all(p.dtype == torch.float32 for p in teacher.parameters())
    assert torch.equal(teacher[0].weight, student[0].weight.float())


def test_wrong_teachers_and_momenta_are_refused():
    student = small()
    teacher = momentum_copy(student)
    for momentum in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="momentum: expected a number in"):
            momentum_update(teacher, student, momentum)
    with pytest.raises(TypeError, match="momentum"):
        momentum_update(teacher, student, "0.9")
    with pytest.raises(ValueError, match="one and the same"):
        momentum_update(student, student, 0.9)
    with pytest.raises(ValueError, match=r"only in the teacher \['1.bias', '1.weight', '2.bias'\]"):
        momentum_update(teacher, nn.Sequential(nn.Linear(3, 4)), 0.9)
    with pytest.raises(TypeError, match="module: expected an nn.Module, got Tensor"):
        momentum_copy(torch.ones(2))


def test_a_refused_update_changes_nothing():
    teacher, student = (
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3)),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 4)),
    )
    before = copy.deepcopy(teacher)
    with pytest.raises(ValueError, match=r"1.weight.*\(3, 2\) in the teacher and \(4, 2\)"):
        momentum_update(teacher, student, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), before.parameters(), strict=True))


# --- the queue ------------------------------------------------------------------------------------


def test_a_new_queue_holds_random_unit_rows_and_unknown_ids():
    queue = FeatureQueue(50, 8, generator=torch.Generator().manual_seed(1))
    assert queue.features.shape == (50, 8)
    torch.testing.assert_close(queue.features.norm(dim=1), torch.ones(50))
    assert queue.ids.tolist() == [-1] * 50 and queue.ids.dtype == torch.int64
    assert queue.filled == 0 and type(queue.filled) is int
    again = FeatureQueue(50, 8, generator=torch.Generator().manual_seed(1))
    other = FeatureQueue(50, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(queue.features, again.features) and not torch.equal(queue.features, other.features)


def test_a_new_queue_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    FeatureQueue(50, 8)
    assert torch.equal(before, torch.get_rng_state())


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 12), batches=st.lists(st.integers(1, 30), max_size=8), known=st.booleans())
def test_any_batches_leave_the_last_rows_in_order(size, batches, known):
    queue = FeatureQueue(size, 2)
    pushed = 0
    for count in batches:
        ids = torch.arange(pushed, pushed + count) if known else None
        queue.push(numbered(pushed, count), ids)
        pushed += count
        assert queue.filled == min(size, pushed)
    kept = min(size, pushed)
    last = list(range(pushed - kept, pushed))
    start = int(queue.pointer)  # oldest row first
    order = [(start + i) % size for i in range(size)][size - kept :]
    assert queue.features[order, 0].tolist() == last
    assert queue.ids[order].tolist() == (last if known else [-1] * kept)
    assert queue.features.shape == (size, 2)


def test_rows_not_yet_pushed_stay_random_unit_vectors():
    queue = FeatureQueue(5, 2)
    noise = queue.features.clone()
    queue.push(numbered(7, 3), torch.tensor([1, 2, 3]))
    assert torch.equal(queue.features[3:], noise[3:])
    assert queue.ids.tolist() == [1, 2, 3, -1, -1]


def test_a_push_is_detached_and_copies():
    queue = FeatureQueue(4, 2)
    rows = torch.ones(2, 2, requires_grad=True)
    queue.push(rows)
    with torch.no_grad():
        rows.mul_(5)
    assert not queue.features.requires_grad and queue.features[:2].eq(1).all()


def test_a_resumed_queue_goes_on_where_it_stopped():
    first = FeatureQueue(5, 2)
    first.push(numbered(0, 7), torch.arange(7))
    state = copy.deepcopy(first.state_dict())
    assert set(state) == {"features", "ids", "pointer", "pushed"}
    second = FeatureQueue(5, 2, generator=torch.Generator().manual_seed(3))
    second.load_state_dict(state)
    for queue in (first, second):
        queue.push(numbered(7, 2), torch.arange(7, 9))
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
    assert second.filled == 5


@pytest.mark.parametrize("tiled", [False, True])
def test_a_push_between_loss_and_backward_does_no_harm(tiled):
    queue = FeatureQueue(6, 2)
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8]], requires_grad=True)
    (expected,) = torch.autograd.grad(info_nce(x, x.detach(), queue.features.clone(), temperature=0.2), x)
    loss = info_nce(x, x.detach(), queue.features, temperature=0.2, tiled=tiled)
    queue.push(x)
    loss.backward()
    torch.testing.assert_close(x.grad, expected)


def test_half_precision_rows_are_taken_in():
    queue = FeatureQueue(3, 2)
    queue.push(torch.ones(2, 2, dtype=torch.bfloat16))
    assert queue.features.dtype == torch.float32 and queue.features[:2].eq(1).all()


def test_wrong_pushes_are_refused_and_change_nothing():
    queue = FeatureQueue(4, 2)
    before = copy.deepcopy(queue.state_dict())
    rows = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"features: expected 2 features a row, got shape \(3, 5\)"):
        queue.push(torch.ones(3, 5))
    with pytest.raises(ValueError, match="at least one row"):
        queue.push(rows[:0])
    with pytest.raises(ValueError, match="features: expected finite numbers.*row 1"):
        queue.push(torch.tensor([[1.0, 0.0], [math.nan, 1.0]]))
    with pytest.raises(ValueError, match=r"ids: expected one a row, shape \(3,\), got \(2,\)"):
        queue.push(rows, torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="ids: expected a tensor of whole numbers, got torch.float32"):
        queue.push(rows, torch.ones(3))
    with pytest.raises(TypeError, match="ids: expected a tensor of whole numbers, got list"):
        queue.push(rows, [1, 2, 3])
    with pytest.raises(TypeError, match="features: expected floating point"):
        queue.push(rows.long())
    assert all(torch.equal(value, before[key]) for key, value in queue.state_dict().items())


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="size: expected 1 or more, got 0"):
        FeatureQueue(0, 2)
    with pytest.raises(TypeError, match="dim: expected an int, got float"):
        FeatureQueue(4, 2.0)


# --- alone ----------------------------------------------------------------------------------------


def test_gathering_without_other_processes_is_the_identity():
    x = torch.ones(3, 2, requires_grad=True)
    assert gather_with_grad(x) is x
    with pytest.raises(TypeError, match="tensor: expected"):
        gather_with_grad(torch.ones(3, dtype=torch.int64))
