"""Mod-X: a CLIP that learns domain after domain keeps its old contrastive matrix by distilling it (Ni et al. 2023).

Before a new phase begins, the model is copied and frozen. On every batch of the new phase both make their contrastive
matrix, and each row that the old model got right pulls the new row towards it. Nothing of the old data is needed. The
rivals that Mod-X is measured against are in `vlnotes.rivals`.
"""

from collections.abc import Iterable
from functools import reduce
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlnotes._saving import load_model, save_model
from vlnotes.clip import CLIP
from vlnotes.momentum import momentum_copy
from vlnotes.validate import (
    check_device,
    check_features,
    check_finite,
    check_pairs,
    check_temperature,
    check_weight,
)

REDUCTIONS = ("sum", "mean")
NAMES = ("image_features", "text_features")
OLD_NAMES = ("old_image_features", "old_text_features")
# What the author's code does, what the paper prints, and the code's strength whatever the batch. The code sums over
# the rows of a batch of 280 with weight 20, beside a contrastive loss that is a mean: 5,600 a mean row. The wording of
# the paper's formula, 1/N before the sum and weight 20, could not be verified.
PRESETS = {
    "code": {"weight": 20.0, "kl_temperature": 1.0, "reduction": "sum"},
    "paper": {"weight": 20.0, "kl_temperature": 1.0, "reduction": "mean"},
    "code, any batch": {"weight": 5600.0, "kl_temperature": 1.0, "reduction": "mean"},
}


def right_rows(similarity: Tensor) -> Tensor:
    """Which pictures find their own text in the batch: the rows that Mod-X keeps.

    keep_i = (argmax_j s[i, j] = i); of equal entries the first counts

    Right means right within this batch, so a small batch keeps nearly all rows.

    Args:
        similarity: (B, B) float, row i belongs to column i; its transpose asks the texts.

    Returns:
        (B,) bool.

    Raises:
        TypeError: not a float tensor.
        ValueError: no square matrix, NaN or infinity.

    Equation: Mod-X (Ni et al. 2023), the condition on the rows of the old contrastive matrix.
    Notebook: 13_modx, section 1.
    """
    check_features(similarity, "similarity")
    if similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarity: row i belongs to column i, so expected (B, B), got {tuple(similarity.shape)}")
    check_finite(similarity.float().sum(), "right_rows", similarity=similarity)
    return similarity.argmax(1) == torch.arange(len(similarity), device=similarity.device)


def off_diagonal_kl(
    image_features: Tensor,
    text_features: Tensor,
    old_image_features: Tensor,
    old_text_features: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    reduction: str = "sum",
    diagonal: bool = True,
    selection: bool = True,
) -> Tensor:
    """How far the contrastive matrix has moved from the old model's, in the rows that the old model got right.

    ½ (Σ_i keep_i KL(softmax(s_old[i] / t) ‖ softmax(s[i] / t)) + the same along the columns, with their own keep)

    The old model comes first, it is the target. The paper replaces a row that is not kept by the new model's row; its
    KL is then 0 in value and in gradient, so leaving it out is the same. In spite of the name the whole row counts,
    with its diagonal, in the author's code. At temperature 1 rows of cosines are nearly flat: a row's KL is about half
    the variance of its changes, hence the large weights.

    Args:
        image_features: (B, D) float, L2-normalised, of the current model.
        text_features: (B, D) float, L2-normalised; row i belongs to picture i.
        old_image_features: (B, D), the frozen old model's, of the same pictures; detached here.
        old_text_features: (B, D), the frozen old model's, of the same texts; detached here.
        temperature: > 0, divides the cosines of both models; the author's code has none, which is 1.
        reduction: "sum" over the kept rows, as the code, or "mean": that sum divided by B, kept or not.
        diagonal: False leaves the entry of the pair itself out of both softmaxes.
        selection: False keeps every row.

    Returns:
        Scalar tensor in nats, float32 or wider; exactly 0 where the two models agree or no row is kept, and then the
        gradient is 0, too.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes, widths or devices that do not match, a single pair, an unknown reduction, a bad
            temperature, NaN or infinity.

    Equation: Mod-X (Ni et al. 2023), the off-diagonal regulariser.
    Notebook: 13_modx, section 1.
    """
    check_pairs(image_features, text_features, NAMES)
    check_pairs(old_image_features, old_text_features, OLD_NAMES)
    check_old(image_features, old_image_features, "off_diagonal_kl")
    check_temperature(temperature)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; expected one of {', '.join(REDUCTIONS)}")
    if len(image_features) < 2:
        raise ValueError("off_diagonal_kl: a batch of one pair has no other entries; take 2 pairs or more")
    if isinstance(temperature, Tensor):
        temperature = temperature.reshape(())

    given = dict(
        zip(
            (*NAMES, *OLD_NAMES),
            (image_features, text_features, old_image_features, old_text_features),
            strict=True,
        )
    )
    for name, tensor in given.items():  # before the selection, which would hide what is wrong in a row
        check_finite(tensor.detach().float().sum(), "off_diagonal_kl", **{name: tensor})
    with torch.autocast(image_features.device.type, enabled=False):
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor in given.values()), torch.float32)
        v, w, old_v, old_w = (tensor.to(dtype) for tensor in given.values())
        new, old = v @ w.T, (old_v @ old_w.T).detach()  # (B, B)
        loss = sum(_row_kl(*both, temperature, diagonal, selection).sum() for both in ((old, new), (old.T, new.T))) / 2
    check_finite(loss, "off_diagonal_kl", **given)
    return loss / len(new) if reduction == "mean" else loss


def _row_kl(old: Tensor, new: Tensor, temperature: float | Tensor, diagonal: bool, selection: bool) -> Tensor:
    """(B,) KL(old row ‖ new row), 0 where the old row is wrong and rows are selected."""
    kept = right_rows(old) if selection else torch.ones(len(old), dtype=torch.bool, device=old.device)
    if not diagonal:
        old, new = _without_diagonal(old), _without_diagonal(new)
    a, b = old / temperature, new / temperature  # (B, B), or (B, B - 1)
    # Written out, so that equal rows give exactly 0: both halves of the gradient are then the same numbers.
    gap = a.logsumexp(1, keepdim=True)
    kl = ((a - gap).exp() * (a - b)).sum(1) + (b.logsumexp(1) - gap.squeeze(1))
    return kl * kept


def _without_diagonal(matrix: Tensor) -> Tensor:
    """(B, B) -> (B, B - 1), in order."""
    rows = len(matrix)
    return matrix.flatten()[1:].view(rows - 1, rows + 1)[:, :-1].reshape(rows, rows - 1)


def check_old(features: Tensor, old_features: Tensor, name: str) -> None:
    """Insist that the old model's features are of the same batch, the same width and on the same device.

    Args:
        features: (B, D) of the current model.
        old_features: (B, D) of the old one.
        name: the function that asks.

    Raises:
        ValueError: they differ.
    """
    if features.shape[1] != old_features.shape[1]:
        raise ValueError(
            f"{name}: the old model's features have width {old_features.shape[1]} and the current model's "
            f"{features.shape[1]}; expected one width, since the old model is a frozen copy of the current one"
        )
    if len(features) != len(old_features):
        raise ValueError(
            f"{name}: expected old and current features of the same batch, got {len(old_features)} and "
            f"{len(features)} rows"
        )
    check_device(features, old_features, ("image_features", "old_image_features"))


# --- what a summary of the paper made of it --------------------------------------------------------


def summary_kl(image_features: Tensor, text_features: Tensor, *, temperature: float | Tensor = 1.0) -> Tensor:
    """A machine-written summary's regulariser: the picture-text rows against the text-text rows of the same model.

    mean_i KL(softmax(u[i] / t) ‖ softmax(s[i] / t)), s = image · text, u = text · text, both with a diagonal of 0

    It is here to be shown beside Mod-X: there is no old model in it, so it keeps nothing of the past. The summary
    passes raw cosines where probabilities and their logarithms belong, which is NaN for negative cosines; here both
    get their softmax, nothing else is mended. A diagonal of 0 is not left out of a softmax, it is a logit of 0.

    Args:
        image_features: (B, D) float, L2-normalised.
        text_features: (B, D) float, L2-normalised; gets a gradient from both matrices.
        temperature: > 0; the summary has none, which is 1.

    Returns:
        Scalar tensor in nats, mean over rows.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes or devices that do not match, a single pair, a bad temperature, NaN or infinity.
    """
    check_pairs(image_features, text_features, NAMES)
    check_temperature(temperature)
    if len(image_features) < 2:
        raise ValueError("summary_kl: a batch of one pair has no other entries; take 2 pairs or more")
    with torch.autocast(image_features.device.type, enabled=False):
        dtype = reduce(torch.promote_types, (image_features.dtype, text_features.dtype), torch.float32)
        v, w = image_features.to(dtype), text_features.to(dtype)
        hollow = 1 - torch.eye(len(v), dtype=dtype, device=v.device)
        mixed, texts = ((x @ w.T * hollow / temperature).log_softmax(1) for x in (v, w))  # (B, B)
        loss = F.kl_div(mixed, texts, reduction="batchmean", log_target=True)
    check_finite(loss, "summary_kl", image_features=image_features, text_features=text_features)
    return loss


@torch.no_grad()
def summary_projection(projection: Tensor, image_features: Tensor, text_features: Tensor, rate: float = 0.01) -> Tensor:
    """The summary's projection matrix after one update; both modalities are multiplied by it before they are compared.

    projection ← (projection + 2 rate · Vᵀ (s - diag s) W) / norm

    The paper has no such matrix. As the summary writes it, the step is (B, D) and the matrix (D, D); the Vᵀ in front
    is ours, to make it fit. The norm is Frobenius'. Begin with the identity.

    Args:
        projection: (D, D) float.
        image_features: (B, D) float, L2-normalised.
        text_features: (B, D) float, L2-normalised.
        rate: of the step.

    Returns:
        (D, D), a new tensor of Frobenius norm 1.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes or devices that do not match, NaN or infinity.
    """
    check_pairs(image_features, text_features, NAMES)
    check_features(projection, "projection", width=image_features.shape[1])
    if projection.shape[0] != projection.shape[1]:
        raise ValueError(f"projection: expected (D, D), got {tuple(projection.shape)}")
    check_device(projection, image_features, ("projection", NAMES[0]))
    v, w = image_features.to(projection), text_features.to(projection)
    matrix = v @ w.T
    moved = projection + 2 * rate * v.T @ (matrix - matrix.diag().diag()) @ w
    moved = moved / moved.norm()
    check_finite(moved, "summary_projection", projection=projection, image_features=v, text_features=w)
    return moved


# --- models on a stream ---------------------------------------------------------------------------


class Continual(nn.Module):
    """A CLIP on a stream of phases that keeps nothing: plain fine-tuning, and the interface of all that keep something.

    for every phase but the first: `model.start_phase(seen)`, then train on its batches as usual

    Args:
        current: the CLIP that learns, fresh or trained. A model that begins with trained weights has its first phase
            behind it: call `start_phase` before training.
        settings: what the class was built with, JSON values; `save` writes them down.

    Raises:
        TypeError: current is no CLIP.
    """

    def __init__(self, current: CLIP, **settings):
        super().__init__()
        if not isinstance(current, CLIP):
            raise TypeError(f"current: expected a CLIP, got {type(current).__name__}")
        self.current = current
        self.register_buffer("phase", torch.tensor(0))
        if hasattr(current, "built"):
            self.built = {**current.built, **settings}

    @classmethod
    def tiny(cls, vocab_size: int = 512, *, image: str = "conv", dim: int = 128, seed: int = 0, **options):
        """The method on `CLIP.tiny`.

        Args:
            vocab_size: number of token ids.
            image: the image tower, see `CLIP.tiny`.
            dim: D.
            seed: of the initial weights.
            options: those of the class.

        Returns:
            A model with random weights that `load` can build again.

        Raises:
            ValueError: what `CLIP.tiny` and the class refuse.
        """
        return cls(CLIP.tiny(vocab_size, image=image, dim=dim, seed=seed), **options)

    @property
    def temperature(self) -> Tensor:
        """The current model's learnt temperature, a scalar tensor that divides the cosines."""
        return self.current.temperature

    def image_features(self, image: Tensor) -> Tensor:
        """Of the current model, see `CLIP.image_features`."""
        return self.current.image_features(image)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Of the current model, see `CLIP.text_features`."""
        return self.current.text_features(input_ids, attention_mask)

    def start_phase(self, seen: Iterable[dict[str, Tensor]] = ()) -> None:
        """One phase is over and the next begins: what is to be kept is made ready here.

        Args:
            seen: batches of the phase that is over, for methods that look at its data once more; the others ignore it.
        """
        self.phase += 1

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one batch of the current phase.

        Args:
            batch: image (B, 3, H, W), input_ids (B, L), attention_mask (B, L).

        Returns:
            dict(loss, clip, temperature), scalars in nats; what keeps the past adds its own.
        """
        return self.with_clip(*self.current.pair_features(batch))

    def with_clip(self, image_features: Tensor, text_features: Tensor) -> dict[str, Tensor]:
        """CLIP's own loss on features, under the names of `forward`.

        Args:
            image_features: (B, D) float, L2-normalised.
            text_features: (B, D) float, L2-normalised.

        Returns:
            dict(loss, clip, temperature).
        """
        losses = self.current.contrast(image_features, text_features)
        return {"loss": losses["loss"], "clip": losses["loss"], "temperature": losses["temperature"]}

    def save(self, folder: str | Path, **record) -> Path:
        """Write weights.safetensors and model.json, with all that is kept of the past; see `CLIP.save`.

        Args:
            folder: made if it is not there.
            record: JSON values to keep beside the weights.

        Returns:
            The folder.

        Raises:
            ValueError: a model around a CLIP that `tiny` did not build.
        """
        return save_model(self, type(self).__name__, folder, record)

    @classmethod
    def load(cls, folder: str | Path):
        """Read back what `save` wrote, in eval mode on the CPU; training may go on, in the same phase or the next.

        Args:
            folder: with weights.safetensors and model.json.

        Returns:
            The model.

        Raises:
            ValueError: the folder lacks one of the two files, or they are of another model.
        """
        return load_model(cls, cls.__name__, folder, complete=cls._made_ready)

    def _made_ready(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Before weights are loaded: build what they have and a fresh model has not."""
        return tensors


class WithOld(Continual):
    """A `Continual` with a frozen copy of itself, made at the start of every phase: the teacher chain.

    The copy is the model as it was at the end of the last phase, no average and not the first one. It stays in
    eval mode, gets no gradient and is no parameter that learns. So with batch norm the old model uses its running
    statistics while the current one, in training, uses those of the batch, as in the author's code.
    """

    def __init__(self, current: CLIP, **settings):
        super().__init__(current, **settings)
        self.old: CLIP | None = None

    def start_phase(self, seen: Iterable[dict[str, Tensor]] = ()) -> None:
        """The current model is copied and frozen; see `Continual.start_phase`."""
        super().start_phase(seen)
        self.old = momentum_copy(self.current).eval()

    def train(self, mode: bool = True):
        """As of every module, but the old model stays in eval mode."""
        super().train(mode)
        if self.old is not None:
            self.old.eval()
        return self

    @torch.no_grad()
    def old_features(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the old model makes of a batch, without gradient.

        Args:
            batch: see `forward`.

        Returns:
            old_image_features and old_text_features, each (B, D).

        Raises:
            ValueError: there is no old model, in the first phase.
        """
        if self.old is None:
            raise ValueError("there is no old model in the first phase; start_phase makes it")
        return self.old.pair_features(batch)

    def _made_ready(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if any(name.startswith("old.") for name in tensors):
            self.old = momentum_copy(self.current).eval()
        return tensors


class ModX(WithOld):
    """CLIP on a stream of phases, with its old contrastive matrix as a teacher.

    loss = clip + weight · off_diagonal_kl(current ‖ old model); in the first phase there is no old model: loss = clip

    The settings are those of the author's code; `ModX(clip, **PRESETS["paper"])` takes others by name.

    Args:
        current: see `Continual`.
        weight: >= 0, of the regulariser.
        kl_temperature: divides the cosines in the regulariser; None takes the learnt temperature, without gradient.
        reduction: "sum" or "mean", see `off_diagonal_kl`. A sum grows with the batch.
        diagonal: see `off_diagonal_kl`.
        selection: see `off_diagonal_kl`.

    Raises:
        TypeError: current is no CLIP.
        ValueError: a negative weight, a bad temperature, an unknown reduction.

    Equation: Mod-X (Ni et al. 2023), the total loss.
    """

    def __init__(
        self,
        current: CLIP,
        *,
        weight: float = 20.0,
        kl_temperature: float | None = 1.0,
        reduction: str = "sum",
        diagonal: bool = True,
        selection: bool = True,
    ):
        check_weight(weight)
        if kl_temperature is not None:
            check_temperature(kl_temperature, "kl_temperature")
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction is {reduction!r}; expected one of {', '.join(REDUCTIONS)}")
        rows = {"reduction": reduction, "diagonal": diagonal, "selection": selection}
        super().__init__(current, weight=weight, kl_temperature=kl_temperature, **rows)
        self.weight, self.kl_temperature, self.rows = weight, kl_temperature, rows

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of one batch of the current phase.

        Args:
            batch: image (B, 3, H, W), input_ids (B, L), attention_mask (B, L).

        Returns:
            dict(loss, clip, temperature), and from the second phase on off_diagonal (nats, without its weight) and kept
            (the share of rows, of both directions, that the old model gets right); scalars.
        """
        old = None if self.old is None else self.old_features(batch)  # first, while no graph fills the memory
        image_features, text_features = self.current.pair_features(batch)
        losses = self.with_clip(image_features, text_features)
        if old is None:
            return losses
        t = self.temperature.detach() if self.kl_temperature is None else self.kl_temperature
        kl = off_diagonal_kl(image_features, text_features, *old, temperature=t, **self.rows)
        with torch.autocast(image_features.device.type, enabled=False):  # or near rows would be ties
            matrix = old[0] @ old[1].T
        kept = torch.cat([right_rows(matrix), right_rows(matrix.T)]).float().mean()
        return {**losses, "loss": losses["clip"] + self.weight * kl, "off_diagonal": kl, "kept": kept}


class SummaryModX(Continual):
    """CLIP with a machine-written summary's regulariser and projection matrix, to be shown beside Mod-X.

    loss = clip + weight · summary_kl;  at evaluation both features are multiplied by the projection matrix

    No part of it knows an old model, so nothing of the past is kept. See `summary_kl` and `summary_projection`.

    Args:
        current: see `Continual`.
        weight: >= 0, the summary's two factors times the batch size in one; it names no value.
        rate: of the projection matrix.

    Raises:
        TypeError: current is no CLIP.
        ValueError: a negative weight or rate.
    """

    def __init__(self, current: CLIP, *, weight: float = 1.0, rate: float = 0.01):
        check_weight(weight)
        check_weight(rate, "rate")
        super().__init__(current, weight=weight, rate=rate)
        self.weight, self.rate = weight, rate
        self.register_buffer("projection", torch.eye(current.image_projection.out_features))  # (D, D)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of one batch; in training mode the projection matrix takes a step.

        Args:
            batch: image (B, 3, H, W), input_ids (B, L), attention_mask (B, L).

        Returns:
            dict(loss, clip, temperature, summary), scalars; summary without its weight.
        """
        image_features, text_features = self.current.pair_features(batch)
        losses = self.with_clip(image_features, text_features)
        kl = summary_kl(image_features, text_features)
        if self.training:
            moved = summary_projection(self.projection, image_features.detach(), text_features.detach(), self.rate)
            self.projection.copy_(moved)
        return {**losses, "loss": losses["clip"] + self.weight * kl, "summary": kl}

    def image_features(self, image: Tensor) -> Tensor:
        """Of the current model, multiplied by the projection matrix; (B, D), L2-normalised."""
        return F.normalize(super().image_features(image) @ self.projection.T, dim=1)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Of the current model, multiplied by the projection matrix; (B, D), L2-normalised."""
        return F.normalize(super().text_features(input_ids, attention_mask) @ self.projection.T, dim=1)
