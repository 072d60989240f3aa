"""The contrastive core: closed forms, double loops, plain against tiled, hard numbers, error messages."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlnotes import _tiled
from vlnotes.contrastive import clip_loss, distillation_targets, info_nce, similarity, soft_cross_entropy


def unit(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


@pytest.fixture(params=[None, 1, 700], ids=["one tile", "thin tiles", "uneven tiles"])
def tiles(request, monkeypatch):
    """Tiles far smaller than in real use, so that small tensors cross many of them."""
    if request.param is not None:

        def parts(x, side):
            step = max(1, request.param // side)
            return [slice(start, min(start + step, len(x))) for start in range(0, len(x), step)]

        monkeypatch.setattr(_tiled, "_parts", parts)
    return request.param


def naive_info_nce(queries, keys, queue, temperature):
    total = 0.0
    for i in range(len(queries)):
        positive = math.exp(float(queries[i] @ keys[i]) / temperature)
        if queue is None:
            negatives = [keys[j] for j in range(len(keys)) if j != i]
        else:
            negatives = list(queue)
        total -= math.log(positive / (positive + sum(math.exp(float(queries[i] @ n) / temperature) for n in negatives)))
    return total / len(queries)


# --- closed forms ---------------------------------------------------------------------------------


def test_similarity_is_the_cosine_of_every_pair():
    x, y = unit(3, 5), unit(4, 5, seed=1)
    expected = torch.stack([F.cosine_similarity(row[None], y) for row in x])
    torch.testing.assert_close(similarity(x, y), expected)


@pytest.mark.parametrize("tiled", [False, True])
def test_equal_features_cost_the_log_of_the_number_of_candidates(tiled):
    same = unit(1, 6).expand(5, 6)
    queue = same[:1].expand(9, 6)
    assert float(info_nce(same, same, temperature=0.1, tiled=tiled)) == pytest.approx(math.log(5))
    assert float(info_nce(same, same, queue, temperature=0.1, tiled=tiled)) == pytest.approx(math.log(10))
    assert float(clip_loss(same, same, temperature=0.1, tiled=tiled)) == pytest.approx(math.log(5))


@pytest.mark.parametrize("tiled", [False, True])
def test_orthogonal_features_have_a_closed_form(tiled):
    eye = torch.eye(4, dtype=torch.float64)
    expected = math.log(math.e**2 + 3) - 2  # cosine 1 against three of 0, at temperature 1/2
    assert float(clip_loss(eye, eye, temperature=0.5, tiled=tiled)) == pytest.approx(expected)
    assert float(info_nce(eye, eye, temperature=0.5, tiled=tiled)) == pytest.approx(expected)


def test_moco_starts_where_the_formula_for_a_random_queue_says():
    size, width, temperature = 20_000, 64, 0.2
    q = unit(64, width)
    loss = float(info_nce(q, q, unit(size, width, seed=1), temperature=temperature))
    expected = math.log(1 + size * math.exp(1 / (2 * width * temperature**2) - 1 / temperature))
    assert loss == pytest.approx(expected, rel=2e-3)


def test_soft_cross_entropy_closed_forms():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    hard = torch.eye(3, dtype=torch.float64)[[0, 2]]
    assert float(soft_cross_entropy(hard, logits)) == pytest.approx(
        float(F.cross_entropy(logits, torch.tensor([0, 2])))
    )
    own = logits.softmax(1)
    entropy = -(own * own.log()).sum(1).mean()
    assert float(soft_cross_entropy(own, logits)) == pytest.approx(float(entropy))  # its minimum: the entropy
    assert float(soft_cross_entropy(own.flip(1), logits)) > float(entropy)


def test_soft_cross_entropy_takes_more_dimensions_and_detaches_the_target():
    target = unit(2, 3, 4).abs().softmax(-1).requires_grad_()
    logits = unit(2, 3, 4, seed=1).requires_grad_()
    loss = soft_cross_entropy(target, logits)
    flat = soft_cross_entropy(target.reshape(6, 4), logits.reshape(6, 4))
    torch.testing.assert_close(loss, flat)
    loss.backward()
    assert target.grad is None
    torch.testing.assert_close(logits.grad, (logits.softmax(-1) - target).detach() / 6)


# --- naive double loops ---------------------------------------------------------------------------


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("length", [None, 1, 3, 17])
def test_info_nce_equals_a_double_loop(length, tiled, tiles):
    q, k = unit(7, 5), unit(7, 5, seed=1)
    queue = None if length is None else unit(length, 5, seed=2)
    ours = float(info_nce(q, k, queue, temperature=0.3, tiled=tiled))
    assert ours == pytest.approx(naive_info_nce(q, k, queue, 0.3), rel=1e-12)


@pytest.mark.parametrize("tiled", [False, True])
def test_clip_loss_equals_a_double_loop_in_both_directions(tiled, tiles):
    x, y = unit(7, 5), unit(7, 5, seed=1)
    expected = (naive_info_nce(x, y, None, 0.3) + naive_info_nce(y, x, None, 0.3)) / 2
    assert naive_info_nce(x, y, None, 0.3) != pytest.approx(naive_info_nce(y, x, None, 0.3), rel=1e-3)
    assert float(clip_loss(x, y, temperature=0.3, tiled=tiled)) == pytest.approx(expected, rel=1e-12)


def test_a_single_query_may_stand_against_a_queue():
    q, k, queue = unit(1, 5), unit(1, 5, seed=1), unit(4, 5, seed=2)
    expected = naive_info_nce(q, k, queue, 0.3)
    for tiled in (False, True):
        assert float(info_nce(q, k, queue, temperature=0.3, tiled=tiled)) == pytest.approx(expected)


# --- plain against tiled --------------------------------------------------------------------------


def value_and_gradients(loss, tensors, temperature, tiled):
    leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
    scale = torch.tensor(temperature, dtype=tensors[0].dtype, requires_grad=True)
    value = loss(*leaves, temperature=scale, tiled=tiled)
    (3 * value).backward()  # a factor, so that the incoming gradient is not 1
    return [value.detach(), scale.grad] + [None if leaf is None else leaf.grad for leaf in leaves]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [1.0, 0.07, 0.01])
@pytest.mark.parametrize("kind", ["clip", "in-batch", "queue"])
def test_plain_and_tiled_agree_in_value_and_every_gradient(kind, temperature, dtype, tiles):
    x, y = unit(37, 8, dtype=dtype), unit(37, 8, seed=1, dtype=dtype)
    loss = clip_loss if kind == "clip" else info_nce
    tensors = (x, y, unit(53, 8, seed=2, dtype=dtype)) if kind == "queue" else (x, y)
    plain = value_and_gradients(loss, tensors, temperature, False)
    tiled = value_and_gradients(loss, tensors, temperature, True)
    if kind == "queue":
        assert plain.pop() is None and tiled.pop() is None  # the queue never gets a gradient
    share = 2e-6 if dtype == torch.float32 else 1e-12
    for expected, got in zip(plain, tiled, strict=True):
        assert expected is not None and got is not None
        error = float((got - expected).abs().max() / expected.abs().max())
        assert error < share


@pytest.mark.parametrize("shape", [(300, 2300), (2, 300_000)])
def test_real_tile_sizes_agree_too(shape):
    rows, length = shape
    x, y, queue = unit(rows, 4), unit(rows, 4, seed=1), unit(length, 4, seed=2)
    plain = value_and_gradients(info_nce, (x, y, queue), 0.05, False)
    tiled = value_and_gradients(info_nce, (x, y, queue), 0.05, True)
    for expected, got in zip(plain[:-1], tiled[:-1], strict=True):
        torch.testing.assert_close(got, expected)


def test_large_batches_are_tiled_by_themselves_and_small_ones_are_not(monkeypatch):
    calls = []
    real = _tiled.RowsAndColumns.apply
    monkeypatch.setattr("vlnotes.contrastive.RowsAndColumns.apply", lambda *a: calls.append(len(a[0])) or real(*a))
    clip_loss(unit(8, 4), unit(8, 4), temperature=0.1)
    assert calls == []
    x, y = unit(1100, 4), unit(1100, 4, seed=1)
    by_size = clip_loss(x, y, temperature=0.1)
    assert calls == [1100]
    torch.testing.assert_close(by_size, clip_loss(x, y, temperature=0.1, tiled=False))


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), length=st.integers(1, 40), temperature=st.floats(0.01, 5), seed=st.integers(0, 99))
def test_any_shape_and_temperature_agrees(rows, length, temperature, seed):
    x, y, queue = unit(rows, 3, seed=seed), unit(rows, 3, seed=seed + 100), unit(length, 3, seed=seed + 200)
    plain = value_and_gradients(info_nce, (x, y, queue), temperature, False)
    tiled = value_and_gradients(info_nce, (x, y, queue), temperature, True)
    for expected, got in zip(plain[:-1], tiled[:-1], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tiled", [False, True])
def test_gradcheck(tiled, tiles):
    x, y = unit(5, 3).requires_grad_(), unit(5, 3, seed=1).requires_grad_()
    queue = unit(6, 3, seed=2)
    t = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y, t: clip_loss(x, y, temperature=t, tiled=tiled), (x, y, t))
    assert torch.autograd.gradcheck(lambda x, y, t: info_nce(x, y, temperature=t, tiled=tiled), (x, y, t))
    assert torch.autograd.gradcheck(lambda x, y, t: info_nce(x, y, queue, temperature=t, tiled=tiled), (x, y, t))


def test_gradcheck_of_the_tiled_sums_row_by_row(tiles):
    """The losses weigh all rows alike; here every row and column has a gradient of its own."""
    x, y = unit(5, 3).requires_grad_(), unit(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: _tiled.RowsAndColumns.apply(x, y, True), (x, y))
    assert torch.autograd.gradcheck(lambda x: _tiled.QueueRows.apply(x, y.detach()), (x,))


def test_gradcheck_soft_cross_entropy():
    target, logits = unit(4, 5).softmax(1), unit(4, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: soft_cross_entropy(target, z), (logits,))


def test_only_asked_for_gradients_are_made():
    x, y = unit(6, 4), unit(6, 4, seed=1)
    for first, second in ((True, False), (False, True)):
        a, b = x.clone().requires_grad_(first), y.clone().requires_grad_(second)
        clip_loss(a, b, temperature=0.1, tiled=True).backward()
        assert (a.grad is not None, b.grad is not None) == (first, second)
        c, d = x.clone().requires_grad_(first), y.clone().requires_grad_(second)
        clip_loss(c, d, temperature=0.1, tiled=False).backward()
        torch.testing.assert_close(a.grad, c.grad) if first else torch.testing.assert_close(b.grad, d.grad)
    with torch.no_grad():
        assert not clip_loss(x.requires_grad_(), y, temperature=0.1, tiled=True).requires_grad
        assert not info_nce(x, y, unit(9, 4), temperature=0.1, tiled=True).requires_grad


def test_the_plain_form_has_a_second_derivative_and_the_tiled_form_refuses_loudly():
    x, y, queue = unit(6, 4).requires_grad_(), unit(6, 4, seed=1), unit(9, 4)
    assert torch.autograd.gradgradcheck(lambda x: clip_loss(x, y, temperature=0.5, tiled=False), (x,))
    for loss in (
        clip_loss(x, y, temperature=0.1, tiled=True),
        info_nce(x, y, temperature=0.1, tiled=True),
        info_nce(x, y, queue, temperature=0.1, tiled=True),
    ):
        with pytest.raises(RuntimeError, match="one derivative, not two.*tiled=False"):
            torch.autograd.grad(loss, x, create_graph=True)


@pytest.mark.parametrize("tiled", [False, True])
def test_the_graph_can_be_walked_twice(tiled):
    x = unit(6, 4).requires_grad_()
    loss = clip_loss(x, unit(6, 4, seed=1), temperature=0.1, tiled=tiled)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("tiled", [False, True])
def test_the_queue_may_move_on_before_backward(tiled):
    queue, y = unit(9, 4), unit(6, 4, seed=1)
    x = unit(6, 4).requires_grad_()
    (expected,) = torch.autograd.grad(info_nce(x, y, queue, temperature=0.1, tiled=tiled), x)
    loss = info_nce(x, y, queue, temperature=0.1, tiled=tiled)
    queue[:6] = y
    (got,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(got, expected)


# --- kinds of numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("tiled", [False, True])
def test_cold_and_extreme_logits_stay_finite(tiled, tiles):
    eye = torch.eye(6, dtype=torch.float32)
    right = clip_loss(eye, eye, temperature=0.01, tiled=tiled)
    wrong = clip_loss(eye, -eye, temperature=0.01, tiled=tiled)
    assert float(right) == pytest.approx(0, abs=1e-6)
    assert float(wrong) == pytest.approx(100 + math.log(5), rel=1e-6)
    far = info_nce(eye, -eye, eye, temperature=0.001, tiled=tiled)  # logits of +-1000
    assert float(far) == pytest.approx(2000, rel=1e-6)


@pytest.mark.parametrize("tiled", [False, True])
def test_half_precision_features_are_summed_in_float32(tiled):
    x, y, queue = (unit(16, 32, seed=s, dtype=torch.bfloat16) for s in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = (
            clip_loss(x, y, temperature=0.01, tiled=tiled),
            info_nce(x, y, queue, temperature=0.01, tiled=tiled),
            info_nce(x.float(), y.float(), queue, temperature=0.01, tiled=tiled),
        )
    exact = (
        clip_loss(x.double(), y.double(), temperature=0.01),
        info_nce(x.double(), y.double(), queue.double(), temperature=0.01),
        info_nce(x.double(), y.double(), queue.double(), temperature=0.01),
    )
    for got, expected in zip(losses, exact, strict=True):
        assert got.dtype == torch.float32
        assert float(got) == pytest.approx(float(expected), rel=1e-5)
    leaf = x.clone().requires_grad_()
    clip_loss(leaf, y, temperature=0.01, tiled=tiled).backward()
    assert leaf.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("tiled", [False, True])
def test_a_learning_temperature_of_any_scalar_shape_gets_its_gradient(tiled):
    x, y = unit(6, 4), unit(6, 4, seed=1)
    flat = torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
    boxed = torch.nn.Parameter(torch.tensor([0.1], dtype=torch.float64))
    for t in (flat, boxed):
        loss = clip_loss(x, y, temperature=t, tiled=tiled)
        assert loss.shape == ()
        loss.backward()
    step = 1e-6
    slope = (clip_loss(x, y, temperature=0.1 + step) - clip_loss(x, y, temperature=0.1 - step)) / (2 * step)
    assert float(flat.grad) == pytest.approx(float(slope), rel=1e-6)
    assert float(boxed.grad) == pytest.approx(float(slope), rel=1e-6)


class LargestTensor(TorchDispatchMode):
    """Watches every operation, forward and backward, for the largest tensor that comes out of one."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.entries = max([self.entries, *sizes])
        return out


@pytest.mark.parametrize("kind", ["clip", "in-batch", "queue"])
def test_the_tiled_form_never_holds_the_matrix(kind):
    rows = 64 if kind == "queue" else 2100
    x, y = (unit(rows, 2, seed=s).requires_grad_() for s in range(2))
    queue = (unit(70_000, 2, seed=2),) if kind == "queue" else ()
    loss = clip_loss if kind == "clip" else info_nce
    matrix = rows * (len(queue[0]) if queue else rows)
    seen = {}
    for tiled in (True, False):
        with LargestTensor() as largest:
            loss(x, y, *queue, temperature=0.1, tiled=tiled).backward()
        seen[tiled] = largest.entries
    assert seen[False] == matrix > 4_400_000
    assert seen[True] <= 2**19


# --- distillation targets -------------------------------------------------------------------------


def test_targets_mix_certainty_and_teacher_and_sum_to_one():
    logits = unit(3, 7).requires_grad_()
    targets = distillation_targets(logits, 0.4)
    expected = 0.4 * logits.detach().softmax(1) + 0.6 * torch.eye(3, 7, dtype=torch.float64)
    torch.testing.assert_close(targets, expected)
    torch.testing.assert_close(targets.sum(1), torch.ones(3, dtype=torch.float64))
    assert not targets.requires_grad


def test_targets_at_the_ends_of_the_weight():
    logits = unit(3, 7)
    torch.testing.assert_close(distillation_targets(logits, 0), torch.eye(3, 7, dtype=torch.float64))
    torch.testing.assert_close(distillation_targets(logits, 1), logits.softmax(1))


def test_several_positives_share_the_certainty():
    positives = torch.tensor([[True, False, True], [False, True, False]])
    targets = distillation_targets(torch.zeros(2, 3), 0.5, positives)
    expected = 0.5 / 3 + 0.5 * torch.tensor([[0.5, 0, 0.5], [0, 1, 0]])
    torch.testing.assert_close(targets, expected)


def test_without_teacher_or_queue_the_targets_give_clip_loss():
    x, y = unit(6, 4), unit(6, 4, seed=1)
    logits = similarity(x, y) / 0.2
    two = [soft_cross_entropy(distillation_targets(z, 0.0), z) for z in (logits, logits.T)]
    torch.testing.assert_close(sum(two) / 2, clip_loss(x, y, temperature=0.2))


# --- error messages -------------------------------------------------------------------------------

BAD_TEMPERATURES = [
    0,
    0.0,
    -0.1,
    math.nan,
    math.inf,
    torch.tensor(0.0),
    torch.tensor(math.nan),
    torch.ones(2),
]


@pytest.mark.parametrize("temperature", BAD_TEMPERATURES, ids=str)
def test_bad_temperatures_are_refused(temperature):
    x = unit(3, 4)
    for call in (clip_loss, info_nce):
        with pytest.raises(ValueError, match="^temperature: "):
            call(x, x, temperature=temperature)


@pytest.mark.parametrize("temperature", ["0.1", None, True, torch.tensor(1)], ids=str)
def test_temperatures_of_a_wrong_kind_are_refused(temperature):
    with pytest.raises(TypeError, match="temperature"):
        clip_loss(unit(3, 4), unit(3, 4), temperature=temperature)


def test_shapes_that_do_not_match_are_named():
    x = unit(3, 4)
    with pytest.raises(ValueError, match=r"image_features and text_features.*\(3, 4\) and \(2, 4\)"):
        clip_loss(x, x[:2], temperature=0.1)
    with pytest.raises(ValueError, match=r"queries and keys.*\(3, 4\) and \(3, 3\)"):
        info_nce(x, x[:, :3], temperature=0.1)
    with pytest.raises(ValueError, match=r"queue: expected 4 features.*\(5, 3\)"):
        info_nce(x, x, unit(5, 3), temperature=0.1)
    with pytest.raises(ValueError, match=r"queue: expected at least one row.*\(0, 4\)"):
        info_nce(x, x, x[:0], temperature=0.1)
    with pytest.raises(ValueError, match=r"text_features: expected shape \(rows, features\), got \(4,\)"):
        clip_loss(x, x[0], temperature=0.1)
    with pytest.raises(ValueError, match="y: expected 4 features"):
        similarity(x, unit(2, 5))
    with pytest.raises(ValueError, match=r"one shape.*\(3, 4\) and \(4, 3\)"):
        soft_cross_entropy(x, x.T)
    with pytest.raises(ValueError, match="x is on cpu but y on meta"):
        similarity(x, x.to("meta"))


def test_wrong_kinds_are_named():
    x = unit(3, 4)
    with pytest.raises(TypeError, match="image_features: expected floating point.*int64"):
        clip_loss(torch.ones(3, 4, dtype=torch.int64), x, temperature=0.1)
    with pytest.raises(TypeError, match="keys: expected a torch.Tensor, got list"):
        info_nce(x, x.tolist(), temperature=0.1)
    with pytest.raises(TypeError, match="target: expected floating point"):
        soft_cross_entropy(torch.ones(3, 4, dtype=torch.int64), x)
    with pytest.raises(TypeError, match="positives: expected a bool tensor, got torch.float64"):
        distillation_targets(x, 0.4, x)
    with pytest.raises(TypeError, match="distill_weight"):
        distillation_targets(x, "0.4")


def test_one_row_without_a_queue_has_no_negatives():
    x = unit(1, 4)
    with pytest.raises(ValueError, match="clip_loss: a batch of one"):
        clip_loss(x, x, temperature=0.1)
    with pytest.raises(ValueError, match="info_nce: a batch of one.*queue"):
        info_nce(x, x, temperature=0.1)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_input_with_bad_numbers_is_blamed(bad, tiled, grad):
    good = unit(3, 4).abs()
    spoilt = good.clone()
    spoilt[2, 1] = bad
    good.requires_grad_(grad)
    options = {"temperature": 0.1, "tiled": tiled}
    with pytest.raises(ValueError, match=r"text_features: expected finite numbers.*row 2"):
        clip_loss(good, spoilt, **options)
    with pytest.raises(ValueError, match="image_features: expected finite"):
        clip_loss(spoilt, good, **options)
    with pytest.raises(ValueError, match="queries: expected finite"):
        info_nce(spoilt, good, **options)
    with pytest.raises(ValueError, match="keys: expected finite"):
        info_nce(good, spoilt, good, **options)
    with pytest.raises(ValueError, match="queue: expected finite"):
        info_nce(good, good, spoilt, **options)
    with pytest.raises(ValueError, match="y: expected finite"):
        similarity(good, spoilt)
    with pytest.raises(ValueError, match="logits: expected finite"):
        soft_cross_entropy(good.softmax(1), spoilt)
    with pytest.raises(ValueError, match="teacher_logits: expected finite"):
        distillation_targets(spoilt, 0.4)


def test_numbers_too_large_are_told_apart_from_bad_input():
    huge = torch.full((3, 4), 1e30)
    with pytest.raises(ValueError, match="every input is finite.*L2-normalised"):
        clip_loss(huge, huge, temperature=0.1)


def test_swapped_arguments_of_soft_cross_entropy_are_noticed():
    logits = torch.tensor([[2.0, -1.0]])
    with pytest.raises(ValueError, match="target: expected rows of probabilities, got values down to -1"):
        soft_cross_entropy(logits, logits.softmax(1))


def test_targets_refuse_what_has_no_right_answer():
    with pytest.raises(ValueError, match=r"expected 3 columns or more, got shape \(3, 2\)"):
        distillation_targets(torch.zeros(3, 2), 0.4)
    with pytest.raises(ValueError, match="row 1 marks no column"):
        distillation_targets(torch.zeros(2, 2), 0.4, torch.tensor([[True, False], [False, False]]))
    with pytest.raises(ValueError, match="positives: expected the shape"):
        distillation_targets(torch.zeros(2, 2), 0.4, torch.ones(2, 3, dtype=torch.bool))
    for weight in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="distill_weight"):
            distillation_targets(torch.zeros(2, 2), weight)
