"""Spatial disorder: angles right to the last digit, rotation told from deformation, the controls, clear errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_albef import dice, unit

from vlnotes.disorder import (
    BIN_NAMES,
    angle_shares,
    procrustes,
    random_rotation,
    relative_rotation,
    rotation_angles,
    self_angles,
    spatial_disorder,
)
from vlnotes.metrics import recall_at_k


def pairs(rows=80, width=8, seed=0):
    """Texts that lie near their pictures."""
    v = unit(rows, width, seed=seed)
    return v, F.normalize(v + 0.3 * unit(rows, width, seed=seed + 50), dim=1)


def noisy(x, amount, seed=9):
    return F.normalize(x + amount * unit(*x.shape, seed=seed, dtype=x.dtype), dim=1)


# ---------------------------------------------------------------------------------------------- angles


def test_self_angles_are_the_arccos_of_every_pair():
    x = unit(7)
    found = self_angles(x)
    for a in range(7):
        for b in range(7):
            expected = 0.0 if a == b else math.degrees(math.acos(float(x[a] @ x[b])))
            assert float(found[a, b]) == pytest.approx(expected, abs=1e-9)
    assert found.dtype == torch.float64 and torch.equal(found, found.T) and not found.diagonal().any()
    torch.testing.assert_close(self_angles(5 * x), found)  # lengths are taken out


@pytest.mark.parametrize("degrees", [0.0, 1e-7, 1e-3, 45.0, 90.0, 179.999, 180 - 1e-7, 180.0])
def test_small_and_large_angles_keep_their_digits(degrees):
    """arccos in float64 is wrong by 1e-6 degrees here, in float32 by 0.02."""
    x = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    turn = math.radians(degrees)
    y = torch.tensor([[math.cos(turn), math.sin(turn), 0.0]], dtype=torch.float64)
    assert float(rotation_angles(x, y)) == pytest.approx(degrees, abs=1e-12, rel=1e-12)
    assert float(self_angles(torch.cat([x, y]))[0, 1]) == pytest.approx(degrees, abs=1e-12, rel=1e-12)


def test_rotation_angles_are_the_arccos_of_the_same_row():
    x, y = unit(6), unit(6, seed=1)
    expected = [math.degrees(math.acos(float(a @ b))) for a, b in zip(x, y, strict=True)]
    assert rotation_angles(x, y).tolist() == pytest.approx(expected, abs=1e-9)
    assert rotation_angles(x.float(), x.float()).tolist() == [0.0] * 6
    assert rotation_angles(x, -x).tolist() == pytest.approx([180.0] * 6)
    assert not rotation_angles(x.requires_grad_(), y).requires_grad


def test_the_bins_are_the_papers():
    degrees = torch.tensor([0.0, 5.0, 5.001, 10.0, 15.0, 15.001, 20.0, 20.001, 90.0, 180.0])
    assert angle_shares(degrees).tolist() == pytest.approx([0.2, 0.2, 0.1, 0.2, 0.3])
    assert len(BIN_NAMES) == 5
    for bad in (torch.tensor([]), torch.tensor([-1.0]), torch.tensor([torch.nan])):
        with pytest.raises(ValueError, match="degrees: expected angles of 0 or more"):
            angle_shares(bad)


# ---------------------------------------------------------------------------------------------- disorder


def test_disorder_is_the_loop():
    (v, w), (new_v, new_w) = pairs(6), pairs(6, seed=3)
    found = spatial_disorder(v, w, new_v, new_w)

    def angle(x, y):
        return math.degrees(math.acos(float(x @ y)))

    for name, old, new in (("image", v, new_v), ("text", w, new_w)):
        expected = [abs(angle(new[a], new[b]) - angle(old[a], old[b])) for a in range(6) for b in range(a + 1, 6)]
        assert getattr(found, f"{name}_topology").tolist() == pytest.approx(expected, abs=1e-9)
        turned = [angle(a, b) for a, b in zip(old, new, strict=True)]
        assert getattr(found, f"{name}_rotation").tolist() == pytest.approx(turned, abs=1e-9)
    apart = [abs(angle(v[i], new_v[i]) - angle(w[i], new_w[i])) for i in range(6)]
    assert found.deviation.tolist() == pytest.approx(apart, abs=1e-9)
    for i in range(6):
        for j in range(6):
            change = float(new_v[i] @ new_w[j]) - float(v[i] @ w[j])
            assert float(found.matrix_change[i, j]) == pytest.approx(change, abs=1e-12)
    told = found.summary()
    off = [abs(float(found.matrix_change[i, j])) for i in range(6) for j in range(6) if i != j]
    assert told["matrix_change"] == pytest.approx(sum(off) / 30)
    assert told["diagonal_change"] == pytest.approx(float(found.matrix_change.diagonal().abs().mean()))
    assert told["text_rotation"] == pytest.approx(float(found.text_rotation.mean()))
    for name in ("image_topology", "text_topology", "image_rotation", "text_rotation", "deviation"):
        assert sum(told[f"{name} {span}"] for span in BIN_NAMES) == pytest.approx(1)


def test_the_same_model_twice_is_in_order():
    v, w = pairs()
    told = spatial_disorder(v, w, v, w).summary()
    assert told["image_topology 0-5"] == told["deviation 0-5"] == 1.0
    assert all(told[name] == 0 for name in ("image_topology", "text_rotation", "matrix_change", "diagonal_change"))


def test_one_rotation_of_both_changes_no_cross_modal_figure_and_is_the_same_in_both():
    v, w = pairs()
    turn = random_rotation(8)
    found = spatial_disorder(v, w, v @ turn, w @ turn)
    assert float(found.matrix_change.abs().max()) < 1e-12
    assert float(found.image_topology.max()) < 1e-5 and float(found.text_topology.max()) < 1e-5
    assert float(found.image_rotation.mean()) > 60 and float(found.text_rotation.mean()) > 60
    assert recall_at_k(v @ w.T) == recall_at_k((v @ turn) @ (w @ turn).T)
    torch.testing.assert_close(procrustes(v, v @ turn), turn)
    torch.testing.assert_close(procrustes(w, w @ turn), turn)
    both = relative_rotation(v, w, v @ turn, w @ turn)
    assert max(both.image_residual, both.text_residual, both.relative, both.matrix_turned, both.relative_floor) < 1e-9
    assert max(both.matrix_floor, both.matrix_changed) < 1e-9


def test_a_rotation_of_one_modality_is_reported_as_rotation_and_not_as_deformation():
    v, w = pairs()
    found = spatial_disorder(v, w, v @ random_rotation(8), w)
    assert float(found.image_topology.max()) < 1e-5 and float(found.image_rotation.mean()) > 60
    assert float(found.text_rotation.max()) == 0 and float(found.deviation.mean()) > 60
    assert found.summary()["matrix_change"] > 0.2
    both = relative_rotation(v, w, v @ random_rotation(8), w)
    assert max(both.image_residual, both.text_residual, both.relative_floor, both.matrix_floor) < 1e-9
    apart = random_rotation(8) - torch.eye(8, dtype=torch.float64)
    assert both.dimensions == 8 and both.relative == pytest.approx(float(apart.norm()) / math.sqrt(8))
    assert both.relative > 0.8
    # nothing but a turn happened, so the turn explains all of the change
    assert both.matrix_turned == pytest.approx(both.matrix_changed) and both.matrix_turned > 0.8


def test_a_deformation_is_reported_as_one():
    v, w = pairs()
    bent = F.normalize(v.abs() ** 1.5 * v.sign() @ torch.diag(torch.linspace(0.2, 3, 8, dtype=torch.float64)), dim=1)
    both = relative_rotation(v, w, bent, w)
    assert both.image_residual > 0.3 and both.text_residual < 1e-9
    assert spatial_disorder(v, w, bent, w).summary()["image_topology"] > 10


def test_two_seeds_lie_at_90_degrees_and_nothing_is_left_of_the_shape():
    (v, w), (new_v, new_w) = pairs(400, 40), pairs(400, 40, seed=7)
    told = spatial_disorder(v, w, new_v, new_w).summary()
    assert told["image_rotation"] == pytest.approx(90, abs=2)
    both = relative_rotation(v, w, new_v, new_w)
    assert both.image_residual > 1.1 and both.text_residual > 1.1


def test_the_residual_is_of_rows_that_were_not_fitted():
    """Noise after noise: a fit judged on its own rows would look better than it is."""
    (v, w), (new_v, new_w) = pairs(32, 8), pairs(32, 8, seed=7)
    both = relative_rotation(v, w, new_v, new_w, held_out=0.5)
    fitted = float((v @ procrustes(v, new_v) - new_v).norm() / new_v.norm())
    assert both.rows == 16 and both.image_residual > fitted + 0.1
    assert both.image_residual == pytest.approx(math.sqrt(2), abs=0.3)


def test_features_of_low_rank_are_compared_where_they_are():
    """The same model with a little noise: in all 16 dimensions the fit is noise, in the 3 that are used it is not."""
    v, w = (F.normalize(x @ unit(3, 16, seed=4), dim=1) for x in pairs(400, 3))
    after = noisy(v, 1e-3, seed=11), noisy(w, 1e-3, seed=12)
    both = relative_rotation(v, w, *after)
    assert both.dimensions == 3 and both.relative < 0.01 and both.matrix_turned < 0.01 and both.image_residual < 0.01
    whole = relative_rotation(noisy(v, 1e-3, seed=13), w, *after, variance=1.0)
    assert whole.dimensions == 16 and whole.relative > 0.5 and whole.matrix_turned < 0.05
    assert whole.relative_floor > 0.5  # which says so


def test_the_common_subspace_holds_its_share_of_each_set():
    v, w = pairs(200, 8)
    spread = torch.diag(torch.tensor([1, 1, 1, 1, 0.05, 0.05, 0.01, 0.01], dtype=torch.float64))
    v, w = F.normalize(v @ spread, dim=1), F.normalize(w @ spread, dim=1)
    assert relative_rotation(v, w, v, w, variance=0.99).dimensions == 4
    assert relative_rotation(v, w, v, w, variance=0.9999).dimensions >= 6
    # the texts use four directions that the pictures do not: all eight are needed
    other = w.roll(4, dims=1)
    assert relative_rotation(v, other, v, other).dimensions == 8


def test_another_batch_of_the_same_model_gives_the_floor():
    v, w = pairs(400, 8)
    after = noisy(v, 0.05, seed=21), noisy(w, 0.05, seed=22)
    floors = [
        relative_rotation(v[rows], w[rows], after[0][rows], after[1][rows]) for rows in (slice(0, 200), slice(200, 400))
    ]
    assert all(one.relative < 0.05 for one in floors)
    turned = after[0] @ random_rotation(8)
    assert relative_rotation(v, w, turned, after[1]).relative > 10 * max(one.relative for one in floors)


def test_where_the_fits_of_two_halves_differ_the_floors_say_so():
    """Noise after noise: the fits of pictures and texts differ, but so do two fits of the pictures alone."""
    (v, w), (new_v, new_w) = pairs(64, 8), pairs(64, 8, seed=7)
    both = relative_rotation(v, w, new_v, new_w)
    assert both.relative_floor > 0.5 and both.matrix_turned < 1.2 * both.matrix_floor
    assert relative_rotation(v, w, new_v, w).relative_floor > 0.5  # it is that of the worse modality


def test_a_turn_of_both_is_seen_as_one_where_the_modalities_fill_different_directions():
    """What a fit does in directions that its modality leaves empty is arbitrary, and must not count."""
    few = torch.diag(torch.tensor([1.0] * 6 + [0.01] * 10, dtype=torch.float64))
    v, w = (
        F.normalize(x @ few + 0.4 * x.roll(8, dims=1) @ few.roll((8, 8), dims=(0, 1)), dim=1) for x in pairs(400, 16)
    )
    w = w.roll(5, dims=1)
    turn = random_rotation(16)
    both = relative_rotation(v, w, noisy(v @ turn, 0.02, seed=31), noisy(w @ turn, 0.02, seed=32))
    assert both.matrix_turned < 0.03 and both.matrix_floor < 0.03
    apart = relative_rotation(v, w, noisy(v @ turn, 0.02, seed=31), noisy(w, 0.02, seed=32))
    assert apart.matrix_turned > 20 * apart.matrix_floor


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.5])
def test_the_floor_of_the_matrix_is_what_two_equal_turns_show_under_noise(noise):
    v, w = pairs(200, 16)
    turn = random_rotation(16)
    shown, floors = [], []
    for seed in range(8):
        after = (noisy(x @ turn, noise, seed=2 * seed + k) for k, x in enumerate((v, w)))
        both = relative_rotation(v, w, *after, seed=seed)
        shown.append(both.matrix_turned)
        floors.append(both.matrix_floor)
    ratio = sum(floors) / sum(shown)
    assert 0.6 < ratio < 1.8


def test_stretched_spaces_do_not_raise_the_floor_of_the_matrix():
    """What a rotation leaves of a stretched space goes with its features, and would pull the fits apart in order."""
    stretch = torch.diag(torch.linspace(0.2, 2, 8, dtype=torch.float64))
    for seed in range(3):
        v, w = pairs(1200, 8, seed=seed)
        turns = (random_rotation(8, generator=dice(seed + k)) for k in (10, 20))
        after = (F.normalize(x @ stretch @ turn, dim=1) for x, turn in zip((v, w), turns, strict=True))
        found = relative_rotation(v, w, *after, variance=1.0)
        assert found.matrix_turned > 1 and found.image_residual > 0.3
        assert found.matrix_floor < 0.12


def test_a_random_rotation_is_orthogonal_and_has_no_favourites():
    turn = random_rotation(5)
    torch.testing.assert_close(turn @ turn.T, torch.eye(5, dtype=torch.float64))
    assert torch.equal(turn, random_rotation(5)) and not torch.equal(turn, random_rotation(5, generator=dice(3)))
    many = torch.stack([random_rotation(3, generator=dice(seed)) for seed in range(800)])
    assert float(many.mean(0).abs().max()) < 0.08  # without the signs the diagonal would lean to one side
    with pytest.raises(ValueError, match="dim is 0"):
        random_rotation(0)


# ---------------------------------------------------------------------------------------------- errors


def test_disorder_names_what_is_wrong():
    v, w = pairs()
    with pytest.raises(ValueError, match=r"two models of one width.*\(80, 8\) and \(80, 5\)"):
        spatial_disorder(v, w, v[:, :5], w[:, :5])
    with pytest.raises(ValueError, match=r"image_before and text_before.*\(80, 8\) and \(79, 8\)"):
        spatial_disorder(v, w[1:], v, w)
    with pytest.raises(ValueError, match="take 2 pairs or more"):
        spatial_disorder(v[:1], w[:1], v[:1], w[:1])
    with pytest.raises(ValueError, match="text_after: row 4 is all zeros"):
        spatial_disorder(v, w, v, w * (torch.arange(80) != 4)[:, None])
    with pytest.raises(ValueError, match="text_before: .*NaN"):
        spatial_disorder(v, w.index_fill(0, torch.tensor([3]), torch.nan), v, w)
    with pytest.raises(TypeError, match="features: expected floating point"):
        self_angles(torch.ones(3, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="before and after"):
        rotation_angles(v, v[1:])


def test_too_few_rows_for_a_rotation_are_refused():
    v, w = pairs(31, 8)
    with pytest.raises(ValueError, match="31 rows of width 8; .* fewer than 4 D = 32 rows fits noise"):
        relative_rotation(v, w, v, w)
    v, w = pairs(32, 8)
    assert relative_rotation(v, w, v, w).rows == 8
    with pytest.raises(ValueError, match="variance in .*got 0 and 0.25"):
        relative_rotation(v, w, v, w, variance=0)
    with pytest.raises(ValueError, match="held_out in .*got 0.99 and 1"):
        relative_rotation(v, w, v, w, held_out=1)
