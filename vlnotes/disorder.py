"""Has a space turned, or has it changed its shape? What happens to features from one phase of training to the next.

The same pictures and texts are encoded before and after. Angles within one modality say whether its shape is the same
(topology), the angle between a sample's two features says how far it has turned, and the contrastive matrix changes
where picture and text have turned differently. `relative_rotation` fits both turns and compares them.

Angles are only meaningful along one chain of training: two models from two seeds lie at about 90 degrees, and nothing
follows from it. Measure a floor beside every figure: two models of one chain that should agree, or other pictures.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vlnotes.validate import check_features, check_finite, check_pairs

BINS = (5.0, 10.0, 15.0, 20.0)  # degrees: [0, 5], (5, 10], (10, 15], (15, 20], over 20
BIN_NAMES = ("0-5", "5-10", "10-15", "15-20", "over 20")
ROWS_A_FEATURE = 4  # N must be that many times D for a rotation to be fitted


def self_angles(features: Tensor) -> Tensor:
    """The angle between every two samples of one model and modality: the shape of the space, however it is turned.

    angle[a, b] = 2 atan2(|e_a - e_b|, |e_a + e_b|), which is arccos(e_a · e_b), but also right near 0 and 180 degrees

    Args:
        features: (N, D) float; brought to length 1 here.

    Returns:
        (N, N) float64 on the CPU, degrees in [0, 180], symmetric, 0 on the diagonal; without gradient.

    Raises:
        TypeError: not a float tensor.
        ValueError: no matrix, a row of zeros, NaN or infinity.

    Equation: Mod-X (Ni et al. 2023), the self-angle relationship matrix SAM.
    Notebook: 12_spatial_disorder, section 3.
    """
    x = _unit(features, "features")
    plain = "donot_use_mm_for_euclid_dist"  # the quick way loses small distances
    angles = 2 * torch.atan2(torch.cdist(x, x, compute_mode=plain), torch.cdist(x, -x, compute_mode=plain))
    return torch.rad2deg(angles).fill_diagonal_(0)


def rotation_angles(before: Tensor, after: Tensor) -> Tensor:
    """How far every sample has turned between two models.

    angle[a] = 2 atan2(|e_a - e'_a|, |e_a + e'_a|), which is arccos(e_a · e'_a)

    It cannot tell a common turn from noise: both move every sample.

    Args:
        before: (N, D) float, of the one model; brought to length 1 here.
        after: (N, D) float, of the other, the same samples in the same order.

    Returns:
        (N,) float64 on the CPU, degrees in [0, 180]; without gradient.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes that differ, a row of zeros, NaN or infinity.

    Equation: Mod-X (Ni et al. 2023), the rotation angle matrix RAM.
    Notebook: 12_spatial_disorder, section 3.
    """
    _same_shape(before, after, ("before", "after"))
    x, y = _unit(before, "before"), _unit(after, "after")
    return torch.rad2deg(2 * torch.atan2((x - y).norm(dim=1), (x + y).norm(dim=1)))


def angle_shares(degrees: Tensor) -> Tensor:
    """How many angles are how large, in the paper's bins.

    Args:
        degrees: any shape, float, 0 or more.

    Returns:
        (5,) float64 shares of [0, 5], (5, 10], (10, 15], (15, 20] and over 20 degrees; they add up to 1.

    Raises:
        ValueError: no angles, a negative one, NaN.

    Notebook: 12_spatial_disorder, section 3.
    """
    if degrees.numel() == 0 or not bool((degrees >= 0).all()):
        raise ValueError(f"degrees: expected angles of 0 or more, at least one and no NaN; got {degrees.numel()}")
    found = torch.bucketize(degrees.flatten().double(), torch.tensor(BINS, dtype=torch.float64, device=degrees.device))
    return torch.bincount(found, minlength=len(BIN_NAMES)).double() / degrees.numel()


class Disorder(NamedTuple):
    """What changed between two models, on the same N pairs; float64 on the CPU. `summary()` has it in a few numbers."""

    image_topology: Tensor  # (N (N - 1) / 2,) degrees, by how much the angle of every two pictures has changed
    text_topology: Tensor  # (N (N - 1) / 2,) degrees, the same of texts
    image_rotation: Tensor  # (N,) degrees, how far every picture has turned
    text_rotation: Tensor  # (N,) degrees, how far every text has turned
    deviation: Tensor  # (N,) degrees, |image_rotation - text_rotation|
    matrix_change: Tensor  # (N, N) cosines, the contrastive matrix after minus before

    def summary(self) -> dict[str, float]:
        """Means in degrees, the shares of the paper's bins in [0, 1], and changes of cosines.

        Returns:
            {"image_topology": mean, "image_topology 0-5": share, ...} for the five angles, and matrix_change, the mean
            absolute change off the diagonal, and diagonal_change, that of the pairs' own cosines.
        """
        told: dict[str, float] = {}
        for name in self._fields[:-1]:
            angles = getattr(self, name)
            told[name] = float(angles.mean())
            told |= {
                f"{name} {span}": float(share) for span, share in zip(BIN_NAMES, angle_shares(angles), strict=True)
            }
        others = ~torch.eye(len(self.matrix_change), dtype=torch.bool)
        told["matrix_change"] = float(self.matrix_change[others].abs().mean())
        told["diagonal_change"] = float(self.matrix_change.diagonal().abs().mean())
        return told


def spatial_disorder(image_before: Tensor, text_before: Tensor, image_after: Tensor, text_after: Tensor) -> Disorder:
    """Compare two models on the same pairs: shape of each space, how far each turned, and whether they turned alike.

    topology = |self_angles(after) - self_angles(before)| over pairs a < b; rotation = rotation_angles(before, after);
    deviation = |rotation of pictures - rotation of texts|; matrix_change = V' W'ᵀ - V Wᵀ

    One rotation of both spaces leaves topology and matrix as they are. It need not leave `deviation` at 0: how far a
    sample turns depends on where it lies, and picture and text lie at different places. The matrix and
    `relative_rotation` are the better judges.

    Args:
        image_before: (N, D) float, pictures by the model before; brought to length 1 here.
        text_before: (N, D), texts by the model before; row i belongs to picture i.
        image_after: (N, D), the same pictures by the model after.
        text_after: (N, D), the same texts by the model after.

    Returns:
        `Disorder`.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes that differ (old and new width, too), fewer than 2 pairs, a row of zeros, NaN or infinity.

    Equation: Mod-X (Ni et al. 2023), section on spatial disorder: SAM, RAM and the inter-modal deviation.
    """
    v, w, new_v, new_w = _four(image_before, text_before, image_after, text_after)
    if len(v) < 2:
        raise ValueError("spatial_disorder: one pair has no angle to another; take 2 pairs or more")
    rows, columns = torch.triu_indices(len(v), len(v), offset=1)

    def topology(before: Tensor, after: Tensor) -> Tensor:
        return (self_angles(after) - self_angles(before))[rows, columns].abs()

    turned = rotation_angles(v, new_v), rotation_angles(w, new_w)
    return Disorder(
        image_topology=topology(v, new_v),
        text_topology=topology(w, new_w),
        image_rotation=turned[0],
        text_rotation=turned[1],
        deviation=(turned[0] - turned[1]).abs(),
        matrix_change=new_v @ new_w.T - v @ w.T,
    )


def procrustes(before: Tensor, after: Tensor) -> Tensor:
    """The rotation, mirror images allowed, that brings the features before closest to those after.

    argmin_R |before · R - after|² with Rᵀ R = I, from the singular vectors of beforeᵀ · after

    Args:
        before: (N, D) float.
        after: (N, D) float, the same samples.

    Returns:
        (D, D) float64 on the CPU, orthogonal; rows are multiplied from the left: before @ R.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes that differ, NaN or infinity.

    Equation: Schönemann (1966), the orthogonal Procrustes problem.
    Notebook: 12_spatial_disorder, section 4.
    """
    _same_shape(before, after, ("before", "after"))
    x, y = before.detach().cpu().double(), after.detach().cpu().double()
    check_finite(x.sum() + y.sum(), "procrustes", before=x, after=y)
    left, _, right = torch.linalg.svd(x.T @ y)
    return left @ right


class RelativeRotation(NamedTuple):
    """Did both spaces keep their shape, and did they turn alike? Fitted on most rows, judged on the others."""

    image_residual: float  # 0: the pictures have only turned; about 1.4: nothing is left of their shape
    text_residual: float
    relative: float  # |R_V R_Tᵀ - I| / sqrt(d), 0 (both turned alike) to 2; about 1.4 for unrelated turns
    relative_floor: float  # the same of two fits on two halves of the rows, the larger of both modalities
    matrix_turned: float  # |V R_V R_Tᵀ Wᵀ - V Wᵀ| / |V Wᵀ|: what the turns alone do to the matrix; 0: both turned alike
    matrix_floor: float  # the same where both turn alike and deform as much as here
    matrix_changed: float  # |V' W'ᵀ - V Wᵀ| / |V Wᵀ|: all that was done to it
    dimensions: int  # d, of the common principal subspace
    rows: int  # held out


def relative_rotation(
    image_before: Tensor,
    text_before: Tensor,
    image_after: Tensor,
    text_after: Tensor,
    *,
    variance: float = 0.99,
    held_out: float = 0.25,
    seed: int = 0,
) -> RelativeRotation:
    """Tell rotation from deformation: fit an orthogonal map to each modality, look at what it leaves, compare the two.

    R_V = procrustes(V, V'), R_T = procrustes(W, W') inside the common subspace; residual = |V R_V - V'| / |V'| on
    held-out rows; relative = |R_V R_Tᵀ - I| / sqrt(d)

    The common subspace is spanned by the first principal directions of all four sets together, as many as it takes to
    hold `variance` of each of them, counted about the origin, since a rotation keeps the origin. Outside of it there
    is only noise to fit. A direction inside it may still be empty in one modality, and what the fit does there means
    nothing; then `relative` is large whatever happened, and its floor, whose two fits share the modality, may not show
    it. Read `matrix_turned` then. It asks each rotation only about features of its own modality: how would the
    contrastive matrix of the held-out pairs look if the spaces had turned and nothing else? For its floor both old
    spaces are turned by one and the same fitted rotation, get what their own leaves over in random order, and are
    fitted again. A figure that is not clearly above its floor says nothing.

    Args:
        image_before: (N, D) float, brought to length 1 here; N at least 4 D.
        text_before: (N, D), row i belongs to picture i.
        image_after: (N, D).
        text_after: (N, D).
        variance: in (0, 1], share that the subspace holds.
        held_out: in (0, 1), share of the rows that are kept for the residual.
        seed: of the choice of rows.

    Returns:
        `RelativeRotation`.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes that differ, N below 4 D, shares out of range, a row of zeros, NaN or infinity.

    Equation: Mod-X (Ni et al. 2023), its theorem: <A v, B t> = <v, t> for all pairs if and only if A = B.
    """
    four = _four(image_before, text_before, image_after, text_after)
    count, dim = four[0].shape
    if count < ROWS_A_FEATURE * dim:
        raise ValueError(
            f"relative_rotation: {count} rows of width {dim}; fitting a rotation to fewer than {ROWS_A_FEATURE} D = "
            f"{ROWS_A_FEATURE * dim} rows fits noise; encode more pairs"
        )
    if not (0 < variance <= 1 and 0 < held_out < 1):
        raise ValueError(f"expected variance in (0, 1] and held_out in (0, 1); got {variance} and {held_out}")
    axes = _common_axes(four, variance)  # (D, d)
    v, w, new_v, new_w = (one @ axes for one in four)  # (N, d) each
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    away = max(1, round(held_out * count))
    test, known = order[:away], order[away:]
    half = known[::2], known[1::2]

    def apart(one: Tensor, other: Tensor) -> float:
        return float((one @ other.T - torch.eye(len(one), dtype=one.dtype)).norm() / math.sqrt(len(one)))

    def matrix_turned(one: Tensor, other: Tensor) -> float:
        return float((v[test] @ one @ other.T @ w[test].T - matrix).norm() / matrix.norm())

    def residual(before: Tensor, after: Tensor, turn: Tensor) -> float:
        return float((before[test] @ turn - after[test]).norm() / after[test].norm())

    matrix = v[test] @ w[test].T
    pictures, texts = procrustes(v[known], new_v[known]), procrustes(w[known], new_w[known])
    shuffled = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]

    def alike(turn: Tensor) -> float:
        made = []
        for before, after, fitted in ((v, new_v, pictures), (w, new_w, texts)):
            turned = before @ fitted
            share = (turned[known] * after[known]).sum() / turned[known].square().sum()  # by least squares
            left = after - share * turned
            made.append(procrustes(before[known], share * before[known] @ turn + left[shuffled]))
        return matrix_turned(*made)

    halves = [[procrustes(x[rows], y[rows]) for rows in half] for x, y in ((v, new_v), (w, new_w))]
    return RelativeRotation(
        image_residual=residual(v, new_v, pictures),
        text_residual=residual(w, new_w, texts),
        relative=apart(pictures, texts),
        relative_floor=max(apart(*both) for both in halves),
        matrix_turned=matrix_turned(pictures, texts),
        matrix_floor=max(alike(pictures), alike(texts)),
        matrix_changed=float((new_v[test] @ new_w[test].T - matrix).norm() / matrix.norm()),
        dimensions=axes.shape[1],
        rows=away,
    )


def random_rotation(dim: int, *, generator: torch.Generator | None = None) -> Tensor:
    """An orthogonal matrix, all equally likely: the control that must be reported as rotation, not as deformation.

    Args:
        dim: D.
        generator: on the CPU; None takes a fixed seed of its own.

    Returns:
        (D, D) float64; features @ it are turned features.

    Raises:
        ValueError: dim below 1.
    """
    if dim < 1:
        raise ValueError(f"dim is {dim}; expected 1 or more")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    q, r = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator))
    return q * r.diagonal().sign()  # or some would be likelier than others


def _common_axes(four: tuple[Tensor, ...], variance: float) -> Tensor:
    """(D, d) the first principal directions of all sets together, until each set has `variance` of itself inside."""
    moments = sum(one.T @ one / len(one) for one in four)  # (D, D)
    axes = torch.linalg.eigh(moments).eigenvectors.flip(1)  # the largest first
    held = torch.stack([(one @ axes).square().sum(0).cumsum(0) / one.square().sum() for one in four]).amin(0)  # (D,)
    short = int((held < variance - 1e-12).sum())
    return axes[:, : min(short + 1, axes.shape[1])]


def _unit(features: Tensor, name: str) -> Tensor:
    """(N, D) float64 on the CPU, of length 1, without gradient."""
    check_features(features, name)
    x = features.detach().cpu().double()
    check_finite(x.sum(), "angles", **{name: x})
    lengths = x.norm(dim=1)
    if not bool((lengths > 0).all()):
        raise ValueError(f"{name}: row {int((lengths == 0).nonzero()[0])} is all zeros and has no direction")
    return F.normalize(x, dim=1, eps=0.0)


def _same_shape(before: Tensor, after: Tensor, names: tuple[str, str]) -> None:
    check_features(before, names[0])
    check_features(after, names[1])
    if before.shape != after.shape:
        raise ValueError(
            f"{names[0]} and {names[1]}: the same samples by two models of one width, so expected one shape, "
            f"got {tuple(before.shape)} and {tuple(after.shape)}"
        )


def _four(image_before: Tensor, text_before: Tensor, image_after: Tensor, text_after: Tensor) -> tuple[Tensor, ...]:
    check_pairs(image_before, text_before, ("image_before", "text_before"))
    check_pairs(image_after, text_after, ("image_after", "text_after"))
    _same_shape(image_before, image_after, ("image_before", "image_after"))
    given = {
        "image_before": image_before,
        "text_before": text_before,
        "image_after": image_after,
        "text_after": text_after,
    }
    return tuple(_unit(tensor, name) for name, tensor in given.items())
