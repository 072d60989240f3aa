"""PSD: a model that doubts part of its captions (Andonian et al. 2022, progressive self-distillation), on top of CLIP.

Captions of the web are loose: the right answer on the diagonal is often not the only one, or wrong. PSD keeps the hard
answer for a part of every batch and asks for the model's own belief in the rest, a part that grows while the model
learns. No code of the authors is public and the paper could not be read in full. What is not verified is a setting, and
its description says so.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlnotes.clip import CLIP, project
from vlnotes.contrastive import clip_loss
from vlnotes.momentum import momentum_copy, momentum_update
from vlnotes.validate import (
    check_device,
    check_finite,
    check_fraction,
    check_pairs,
    check_temperature,
    check_weight,
    wide_dtype,
)

SWAPS = ("transposed", "rows", None)
NAMES = ("image_features", "text_features")
TEACHER_NAMES = ("teacher_image_features", "teacher_text_features")
TAUGHT = ("image_encoder", "text_encoder", "image_projection", "text_projection")  # what a slow teacher copies


class SoftTargets(NamedTuple):
    """What the teacher believes, (B, B) each, rows sum to 1, without gradient: of picture i over the texts, of text i
    over the pictures."""

    image: Tensor
    text: Tensor


def soft_targets(
    image_features: Tensor, text_features: Tensor, *, temperature: float | Tensor, swap: str | None = "transposed"
) -> SoftTargets:
    """Which texts belong to a picture, and which pictures to a text, as the teacher sees it.

    A_v = softmax over rows of (v · w / t), A_t = softmax over rows of (w · v / t).
    swap None: image A_v, text A_t. "rows": image A_t, text A_v. "transposed": image A_tᵀ, text A_vᵀ, each row divided
    by its sum

    "transposed" asks how strongly each text chooses picture i. "rows" takes what text i thinks of picture j for what
    picture i should think of text j; where text i is of another picture, that is a belief about the wrong one. Which of
    the two the paper means is not verified.

    Args:
        image_features: (B, D) float, L2-normalised, of the teacher; detached here.
        text_features: (B, D) float, L2-normalised, of the teacher; row i is paired with picture i; detached here.
        temperature: > 0, the teacher's; divides the cosines. Lower is sharper.
        swap: "transposed", "rows" or None.

    Returns:
        `SoftTargets`, in float32 or wider.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes or devices that do not match, another swap, a bad temperature, NaN or infinity.

    Equation: PSD (Andonian et al. 2022), the soft alignments and the swapped prediction.
    Notebook: 10_self_distillation, section 2.
    """
    check_pairs(image_features, text_features, NAMES)
    check_temperature(temperature)
    _check_swap(swap)
    with torch.no_grad(), torch.autocast(image_features.device.type, enabled=False):
        logits = _logits(image_features, text_features, temperature)  # (B, B), pictures by texts
        of_image, of_text = logits.log_softmax(1), logits.log_softmax(0)  # both (B, B), pictures by texts
        if swap is None:
            found = SoftTargets(of_image.exp(), of_text.T.exp())
        elif swap == "rows":
            found = SoftTargets(of_text.T.exp(), of_image.exp())
        else:  # a row that no one chose has a sum of 0 in float32; its logarithms are still there
            found = SoftTargets(of_text.softmax(1), of_image.T.softmax(1))
    check_finite(logits.sum(), "soft_targets", image_features=image_features, text_features=text_features)
    return found


def psd_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    temperature: float | Tensor,
    teacher_temperature: float | Tensor,
    unaligned: Tensor,
    swap: str | None = "transposed",
    teacher_image_features: Tensor | None = None,
    teacher_text_features: Tensor | None = None,
) -> Tensor:
    """CLIP's loss, in which the unaligned rows are asked for the teacher's belief instead of the diagonal.

    mean_i of ½ (H(target, softmax_row(s / t)_i) + H(target', softmax_column(s / t)_i)), where the targets of an aligned
    row are one-hot at i and those of an unaligned row are row i of both `soft_targets`

    All B columns stay in every softmax; only the target of a row changes. With the model as its own teacher, no swap
    and one temperature, the targets are the predictions and the soft rows have no gradient at all.

    Args:
        image_features: (B, D) float, L2-normalised.
        text_features: (B, D) float, L2-normalised; row i is paired with picture i.
        temperature: > 0, divides the cosines; a float or a scalar tensor that learns.
        teacher_temperature: > 0, divides the cosines of the teacher; detached here.
        unaligned: (B,) bool, True where a row gets soft targets; any mask, see `draw_unaligned`.
        swap: "transposed", "rows" (by index) or None, see `soft_targets`.
        teacher_image_features: (B, D), of another teacher than the model itself; detached here. None: the model.
        teacher_text_features: (B, D), given with teacher_image_features.

    Returns:
        Scalar tensor in nats, mean over the batch and both directions. It holds all B x B logits.

    Raises:
        TypeError: not float tensors, unaligned not bool.
        ValueError: shapes or devices that do not match, one teacher without the other, another swap, a bad temperature,
            a single pair, NaN or infinity.

    Equation: PSD (Andonian et al. 2022), the hard and the soft loss over the partition of a batch.
    Notebook: 10_self_distillation, section 2.
    """
    check_pairs(image_features, text_features, NAMES)
    check_temperature(temperature)
    check_temperature(teacher_temperature, "teacher_temperature")
    _check_swap(swap)
    rows = len(image_features)
    if rows < 2:
        raise ValueError("psd_loss: a batch of one pair has no negatives; take 2 pairs or more")
    _check_mask(unaligned, "unaligned", rows)
    teachers = (teacher_image_features, teacher_text_features)
    if (teachers[0] is None) != (teachers[1] is None):
        raise ValueError("teacher_image_features and teacher_text_features: give both, or none for the model itself")
    if teachers[0] is None:
        teachers = (image_features, text_features)
    else:
        check_pairs(*teachers, TEACHER_NAMES)
        if len(teachers[0]) != rows:
            raise ValueError(f"teacher_image_features: expected {rows} rows, got shape {tuple(teachers[0].shape)}")
        check_device(image_features, teachers[0], (NAMES[0], TEACHER_NAMES[0]))
        for name, tensor in zip(TEACHER_NAMES, teachers, strict=True):  # `soft_targets` would call it the student's
            check_finite(tensor.detach().float().sum(), "psd_loss", **{name: tensor})

    targets = soft_targets(*teachers, temperature=teacher_temperature, swap=swap)
    with torch.autocast(image_features.device.type, enabled=False):
        logits = _logits(image_features, text_features, temperature)  # (B, B)
        soft = ((targets.image * logits).sum(1) + (targets.text * logits.T).sum(1)) / 2  # (B,)
        wanted = torch.where(unaligned.to(logits.device), soft, logits.diagonal())  # the mean logit under the target
        loss = ((logits.logsumexp(1) + logits.logsumexp(0)) / 2 - wanted).mean()
    check_finite(loss, "psd_loss", image_features=image_features, text_features=text_features)
    return loss


def unaligned_fraction(step: int, total: int, maximum: float) -> float:
    """Which share of a batch is unaligned: none at first, then ever more along half a cosine.

    maximum · ½ (1 - cos(π step / total))

    Args:
        step: training steps made, 0 or more.
        total: S, the step at which the maximum is reached; it stays there. 0: from the start, the constant mix.
        maximum: in [0, 1). The paper's value is not verified.

    Returns:
        A share in [0, maximum].

    Raises:
        TypeError: step or total is not an int, maximum not a number.
        ValueError: a negative step or total, a maximum below 0, or of 1 or more.

    Equation: PSD (Andonian et al. 2022), the progressive schedule.
    Notebook: 10_self_distillation, section 4.
    """
    for name, value in (("step", step), ("total", total)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
        if value < 0:
            raise ValueError(f"{name}: expected 0 or more, got {value}")
    if not isinstance(maximum, bool) and isinstance(maximum, int | float) and maximum >= 1:
        raise ValueError(
            f"maximum: expected a share below 1, got {maximum:g}; with every row unaligned no pair is ever said to "
            "belong together, so nothing supervises the model but its own belief"
        )
    check_fraction(maximum, "maximum")
    share = min(1.0, step / total) if total else 1.0
    return maximum * (1 - math.cos(math.pi * share)) / 2


def draw_unaligned(rows: int, fraction: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Split a batch at random into aligned and unaligned rows, whatever the model thinks of them.

    Args:
        rows: B, 1 or more.
        fraction: share of unaligned rows, in [0, 1]; rounded to whole rows. Below 1 one row stays aligned.
        generator: of the draw, which is made on its device.

    Returns:
        (B,) bool, True for unaligned.

    Raises:
        TypeError: rows is not an int, fraction not a number.
        ValueError: no rows, or a fraction outside [0, 1].

    Equation: PSD (Andonian et al. 2022), the random partition of a mini-batch.
    Notebook: 10_self_distillation, section 4.
    """
    if isinstance(rows, bool) or not isinstance(rows, int):
        raise TypeError(f"rows: expected an int, got {type(rows).__name__}")
    if rows < 1:
        raise ValueError(f"rows: expected 1 or more, got {rows}")
    check_fraction(fraction, "fraction")
    count = min(round(fraction * rows), rows if fraction == 1 else rows - 1)
    device = "cpu" if generator is None else generator.device
    return torch.randperm(rows, generator=generator, device=device) < count


def label_smoothing_loss(
    image_features: Tensor, text_features: Tensor, *, temperature: float | Tensor, smoothing: float = 0.1
) -> Tensor:
    """A baseline: doubt spread evenly over all columns, the same in every row, instead of where the model sees it.

    CLIP's loss with the targets (1 - smoothing) · one-hot + smoothing / B

    Args:
        image_features: (B, D) float, L2-normalised.
        text_features: (B, D) float, L2-normalised; row i is paired with picture i.
        temperature: > 0, divides the cosines; a float or a scalar tensor that learns.
        smoothing: in [0, 1]; 0 is CLIP.

    Returns:
        Scalar tensor in nats, mean over the batch and both directions.

    Raises:
        TypeError: not float tensors, smoothing not a number.
        ValueError: what `clip_loss` refuses, a smoothing outside [0, 1].

    Equation: Szegedy et al. 2016, section 7, in both directions.
    """
    check_fraction(smoothing, "smoothing")
    hard = clip_loss(image_features, text_features, temperature=temperature)
    with torch.autocast(image_features.device.type, enabled=False):
        logits = _logits(image_features, text_features, temperature)  # (B, B)
        even = (logits.diagonal().mean() - logits.mean()) * smoothing
    return hard + even


def self_entropy_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    temperature: float | Tensor,
    subset: Tensor | None = None,
    entropy_weight: float = 0.1,
) -> Tensor:
    """NOT the paper: a summary's version of PSD, to show what is wrong with it.

    (1 + entropy_weight) · mean_i H(p_i, p_i), p_i = softmax(v_i · w / t), over the rows of the subset

    The targets are the predictions, and they are not detached. So this is the entropy of the rows: it only gets smaller
    by being surer, of whatever column. Which text is paired with a picture enters nowhere: reorder the texts, and the
    loss is the same. A teacher, the other direction and the hard rows are missing, too.

    Args:
        image_features: (B, D) float, L2-normalised.
        text_features: (B, D) float, L2-normalised.
        temperature: > 0, divides the cosines; a float or a scalar tensor that learns.
        subset: (B,) bool, the rows that count; None: all.
        entropy_weight: of the summary's second term, which is the same entropy again; 0 or more.

    Returns:
        Scalar tensor in nats.

    Raises:
        TypeError: not float tensors, subset not bool.
        ValueError: shapes or devices that do not match, an empty subset, a bad temperature or weight, NaN or infinity.
    """
    check_pairs(image_features, text_features, NAMES)
    check_temperature(temperature)
    check_weight(entropy_weight, "entropy_weight")
    if subset is not None:
        _check_mask(subset, "subset", len(image_features))
        if not bool(subset.any()):
            raise ValueError("subset: expected at least one row, got none")
    with torch.autocast(image_features.device.type, enabled=False):
        log = _logits(image_features, text_features, temperature).log_softmax(1)  # (B, B)
        entropy = -(log.exp() * log).sum(1)  # (B,)
        loss = (1 + entropy_weight) * (entropy if subset is None else entropy[subset.to(log.device)]).mean()
    check_finite(loss, "self_entropy_loss", image_features=image_features, text_features=text_features)
    return loss


class PSD(CLIP):
    """CLIP with a growing share of soft rows: the student becomes its own teacher.

    loss = psd_loss(image_features, text_features, teacher_temperature = teacher_ratio · temperature,
    unaligned = a random share of the rows, which grows with the steps)

    Args:
        image_encoder: see `CLIP`.
        text_encoder: see `CLIP`.
        dim: D.
        temperature: where the learnt temperature starts.
        maximum: the largest share of unaligned rows, in [0, 1). The paper's value is not verified.
        ramp_steps: after how many steps it is reached; 0: from the start.
        teacher_ratio: the teacher's temperature, in times the learnt one. Not verified: 0.5, sharper, is ours.
        swap: "transposed", "rows" or None, see `soft_targets`. Which one is the paper's is not verified.
        momentum: None: the teacher is this forward pass, which costs nothing. A number in [0, 1]: a slow copy of the
            model, at a second forward pass.
        seed: of the partitions.

    Raises:
        ValueError: a maximum of 1 or more, another swap, and what `CLIP` refuses.

    Equation: PSD (Andonian et al. 2022), the total loss.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        *,
        dim: int = 512,
        temperature: float = 0.07,
        maximum: float = 0.8,
        ramp_steps: int = 1000,
        teacher_ratio: float = 0.5,
        swap: str | None = "transposed",
        momentum: float | None = None,
        seed: int = 0,
    ):
        super().__init__(image_encoder, text_encoder, dim=dim, temperature=temperature)
        unaligned_fraction(0, ramp_steps, maximum)  # refuses what cannot be
        check_temperature(teacher_ratio, "teacher_ratio")
        _check_swap(swap)
        if momentum is not None:
            check_fraction(momentum, "momentum")
        self.maximum, self.ramp_steps, self.teacher_ratio, self.swap = maximum, ramp_steps, teacher_ratio, swap
        self.momentum, self.seed = momentum, seed
        self.teacher = None if momentum is None else momentum_copy(self._taught())
        self.register_buffer("steps", torch.tensor(0))  # training steps made; ramp and partitions follow it

    @classmethod
    def tiny(cls, vocab_size: int = 512, *, seed: int = 0, **options) -> "PSD":
        """A PSD that two CPU cores train in a minute.

        Args:
            vocab_size: number of token ids.
            seed: of the initial weights and the partitions; the global random state is left alone.
            options: image and dim, see `CLIP.tiny`, and those of `PSD`.

        Returns:
            A PSD with the random weights of `CLIP.tiny` of that seed; `model.built` remembers the arguments, so that
            `PSD.load` can build it again.

        Raises:
            ValueError: an unknown image tower, and what `PSD` refuses.
        """
        model = super().tiny(vocab_size, seed=seed, **options)
        model.seed = model.built["seed"] = seed
        return model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one batch; in training mode a slow teacher takes its step first, and the step is counted last.

        Args:
            batch: image (B, 3, H, W), input_ids (B, L), attention_mask (B, L).

        Returns:
            dict(loss, temperature, unaligned_fraction), scalars; "loss" in nats.

        Raises:
            ValueError: a batch of one.
        """
        self.limit_scale()
        image, input_ids, mask = batch["image"], batch["input_ids"], batch["attention_mask"]
        image_features, text_features = self.image_features(image), self.text_features(input_ids, mask)
        teachers = {}
        if self.teacher is not None:
            if self.training:
                momentum_update(self.teacher, self._taught(), self.momentum)
            teachers = dict(zip(TEACHER_NAMES, self.teacher_features(image, input_ids, mask), strict=True))
        fraction = self.fraction()
        loss = psd_loss(
            image_features,
            text_features,
            temperature=self.temperature,
            teacher_temperature=self.teacher_ratio * self.temperature.detach(),
            unaligned=self.unaligned(len(image)),
            swap=self.swap,
            **teachers,
        )
        if self.training:
            self.steps += 1
        told = {"temperature": self.temperature.detach(), "unaligned_fraction": torch.tensor(fraction)}
        return {"loss": loss, **told}

    def fraction(self) -> float:
        """The share of unaligned rows at this step.

        Returns:
            In [0, maximum], see `unaligned_fraction`.
        """
        return unaligned_fraction(int(self.steps), self.ramp_steps, self.maximum)

    def unaligned(self, rows: int) -> Tensor:
        """The partition of this step's batch, a function of the seed and the step alone.

        Args:
            rows: B.

        Returns:
            (B,) bool on the CPU.
        """
        dice = torch.Generator().manual_seed(self.seed * 7_368_787 + int(self.steps))
        return draw_unaligned(rows, self.fraction(), generator=dice)

    @torch.no_grad()
    def teacher_features(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """What the slow teacher sees and reads.

        Args:
            image: (B, 3, H, W).
            input_ids: (B, L).
            attention_mask: (B, L).

        Returns:
            Two (B, D) float32, L2-normalised, without gradient.

        Raises:
            ValueError: a model that is its own teacher.
        """
        if self.teacher is None:
            raise ValueError("this PSD is its own teacher; a slow one comes with momentum, such as 0.99")
        seen = self.teacher["image_encoder"](image).pooled
        read = self.teacher["text_encoder"](input_ids, attention_mask).pooled
        return project(seen, self.teacher["image_projection"]), project(read, self.teacher["text_projection"])

    def _taught(self) -> nn.ModuleDict:
        """The student's modules that the teacher has a copy of."""
        return nn.ModuleDict({name: getattr(self, name) for name in TAUGHT})


def _check_swap(swap: str | None) -> None:
    if swap not in SWAPS:
        raise ValueError(f"swap is {swap!r}; expected one of {', '.join(map(repr, SWAPS))}")


def _check_mask(mask: Tensor, name: str, rows: int) -> None:
    kind = getattr(mask, "dtype", type(mask).__name__)
    if kind != torch.bool:
        raise TypeError(f"{name}: expected a bool tensor, got {kind}")
    if mask.shape != (rows,):
        raise ValueError(f"{name}: expected one a row, shape {(rows,)}, got {tuple(mask.shape)}")


def _logits(x: Tensor, y: Tensor, temperature: float | Tensor) -> Tensor:
    """(N, M) in float32 or wider, to the last bit those of `clip_loss`."""
    dtype = wide_dtype(x, y)
    if isinstance(temperature, Tensor):
        temperature = temperature.reshape(())
    return x.to(dtype) / temperature @ y.to(dtype).T
