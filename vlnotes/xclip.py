"""nCLIP and xCLIP: pictures and texts that agree on codes, without negatives (Zhou et al. 2023), and CLIP beside it.

nCLIP asks both modalities for a distribution over C codes and makes the two of a pair agree. Nothing in that keeps all
samples from sharing one code. What does is the entropy of the mean distribution, or the last normalisation of the
heads. xCLIP puts this objective beside CLIP's on the same towers. The paper could not be read in full and no code of
the authors is public. What is not verified is a setting, and its description says so.
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlnotes._saving import load_model, save_model
from vlnotes.clip import CLIP, project, tiny_towers
from vlnotes.contrastive import clip_loss
from vlnotes.momentum import gather_with_grad
from vlnotes.validate import (
    check_device,
    check_features,
    check_finite,
    check_float,
    check_fraction,
    check_pairs,
    check_weight,
    wide_dtype,
)

NAMES = ("image_logits", "text_logits")
NORMS = {"none": 1.0, "batch": 1.0, "cosine": 0.1}  # the last normalisation of a head: the temperature it comes with
SCORES = ("cosine", "cross_entropy", "logits")


class NCLIPLoss(NamedTuple):
    """The parts of nCLIP's loss, scalars in nats, each the mean of both modalities: the weighted total; how far the two
    distributions of a pair disagree; how unsure the single ones are, in [0, log C]; how evenly the codes are used."""

    total: Tensor
    cross_entropy: Tensor
    mean_entropy: Tensor
    entropy_of_mean: Tensor


def nclip_loss(
    image_logits: Tensor,
    text_logits: Tensor,
    *,
    eh_weight: float,
    he_weight: float,
    image_mean: Tensor | None = None,
    text_mean: Tensor | None = None,
) -> NCLIPLoss:
    """Two modalities agree on codes: cross-entropy both ways, sure samples, evenly used codes.

    With p_i = softmax(image_logits_i), q_i = softmax(text_logits_i) and their means over the batch p̄, q̄:
    cross_entropy = mean_i ½ (H(p_i, q_i) + H(q_i, p_i)); mean_entropy = mean_i ½ (H(p_i) + H(q_i));
    entropy_of_mean = ½ (H(p̄) + H(q̄)); total = cross_entropy + eh_weight · mean_entropy - he_weight · entropy_of_mean

    Gradient flows into both sides of the cross-entropy. It is the mean entropy plus ½ (KL(p, q) + KL(q, p)), so it
    already makes samples sure, and one code for all would cost nothing. entropy_of_mean stands against that. Of the
    batch it is never below mean_entropy; the difference is what a code says about the sample. With B sure samples it is
    at most log B.

    Args:
        image_logits: (B, C) float.
        text_logits: (B, C) float; row i belongs to picture i.
        eh_weight: of the mean of entropies, which is made small. The paper's value is not verified.
        he_weight: of the entropy of the mean, which is made large. The paper's value is not verified.
        image_mean: (C,) probabilities in place of p̄, with their graph; see `mean_distribution`. None: the batch's.
        text_mean: (C,), in place of q̄; given with image_mean.

    Returns:
        `NCLIPLoss`.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes or devices that do not match, weights that are negative or not finite, one mean without the
            other or one that is no distribution, NaN or infinity.

    Equation: nCLIP (Zhou et al. 2023), the non-contrastive loss with both entropy regularisers.
    Notebook: 11_xclip, section 3.
    """
    check_pairs(image_logits, text_logits, NAMES)
    for name, weight in (("eh_weight", eh_weight), ("he_weight", he_weight)):
        check_weight(weight, name)
    if (image_mean is None) != (text_mean is None):
        raise ValueError("image_mean and text_mean: give both, or none for the means of the batch")
    with torch.autocast(image_logits.device.type, enabled=False):
        log_p, log_q = (
            logits.to(wide_dtype(image_logits, text_logits)).log_softmax(1) for logits in (image_logits, text_logits)
        )
        p, q = log_p.exp(), log_q.exp()  # (B, C)
        cross_entropy = -(p * log_q + q * log_p).sum(1).mean() / 2
        mean_entropy = -(p * log_p + q * log_q).sum(1).mean() / 2
        means = (p.mean(0), q.mean(0))
        if image_mean is not None:
            means = (image_mean, text_mean)
            for name, mean in zip(("image_mean", "text_mean"), means, strict=True):
                _check_distribution(mean, name, image_logits)
        entropy_of_mean = sum(_entropy(mean.to(p.dtype)) for mean in means) / 2
        total = cross_entropy + eh_weight * mean_entropy - he_weight * entropy_of_mean
    check_finite(total + entropy_of_mean, "nclip_loss", image_logits=image_logits, text_logits=text_logits)
    return NCLIPLoss(total, cross_entropy, mean_entropy, entropy_of_mean)


def mean_distribution(
    logits: Tensor, running: Tensor | None = None, *, momentum: float = 0.0, across: bool = True
) -> Tensor:
    """How evenly are the codes used? The mean distribution of a batch, of all processes, or over many steps.

    momentum · running + (1 - momentum) · mean_i softmax(logits_i), over the rows of all processes

    A batch of B can show at most B sure codes. A running mean sees more, but its gradient comes through the part of the
    batch alone, and so is smaller by the factor 1 - momentum.

    Args:
        logits: (B, C) float.
        running: (C,) what the mean was so far; detached here. None: the batch alone counts.
        momentum: in [0, 1], the share of `running`.
        across: take in the rows of all processes where a process group is running. Averaged over the processes, as
            DistributedDataParallel does, the gradient is that of the whole batch on one machine. All must call.

    Returns:
        (C,) float32 or wider, sums to 1, attached to the graph.

    Raises:
        TypeError: logits or running are not float, momentum not a number.
        ValueError: other shapes, a running mean that is no distribution, a momentum outside [0, 1] or without a running
            mean, NaN or infinity.

    Equation: nCLIP (Zhou et al. 2023), the mean in the second regulariser.
    Notebook: 11_xclip, section 3.
    """
    check_features(logits, "logits")
    check_fraction(momentum, "momentum")
    if running is None and momentum > 0:
        raise ValueError(f"momentum is {momentum:g}, but there is no running mean that it could keep")
    if running is not None:
        _check_distribution(running, "running", logits)
    check_finite(logits.detach().float().sum(), "mean_distribution", logits=logits)
    with torch.autocast(logits.device.type, enabled=False):
        p = logits.to(wide_dtype(logits)).softmax(1)
        if across:  # sums and counts, so that unequal batches weigh what they hold
            both = torch.cat([p.sum(0), p.new_tensor([len(p)])])
            both = gather_with_grad(both[None]).sum(0)  # (C + 1,)
            mean = both[:-1] / both[-1]
        else:
            mean = p.mean(0)
        if running is not None:
            mean = momentum * running.detach().to(mean) + (1 - momentum) * mean
    return mean


def uniform_penalty(image_logits: Tensor, text_logits: Tensor) -> Tensor:
    """NOT the paper: a summary's regulariser, which pulls every single sample to the even distribution.

    ½ (mean_ic (p_ic - 1/C)² + mean_ic (q_ic - 1/C)²)

    The paper wants the mean over samples even, and each sample sure. This wants each sample unsure, so it works against
    the cross-entropy; a collapsed batch and one that uses all codes cost the same. Being a mean over codes, it is below
    1 / C.

    Args:
        image_logits: (B, C) float.
        text_logits: (B, C) float.

    Returns:
        Scalar tensor, from 0 (all even) to (C - 1) / C² (all sure).

    Raises:
        TypeError: not float tensors.
        ValueError: shapes or devices that do not match, NaN or infinity.
    """
    check_pairs(image_logits, text_logits, NAMES)
    with torch.autocast(image_logits.device.type, enabled=False):
        p, q = (logits.to(wide_dtype(image_logits, text_logits)).softmax(1) for logits in (image_logits, text_logits))
        loss = ((p - 1 / p.shape[1]).square().mean() + (q - 1 / q.shape[1]).square().mean()) / 2
    check_finite(loss, "uniform_penalty", image_logits=image_logits, text_logits=text_logits)
    return loss


def distribution_scores(image_logits: Tensor, text_logits: Tensor, by: str = "cosine") -> Tensor:
    """How well do pictures and texts, or classes, agree on codes? The scores of zero-shot recognition and retrieval.

    "cosine": p · q / (|p| |q|). "cross_entropy": -H(p, q) = Σ_c p_c log q_c. "logits": the cosine of the logits.
    Which one the paper takes is not verified.

    Args:
        image_logits: (N, C) float.
        text_logits: (M, C) float, or (M, R, C) with R prompts a class, whose distributions are averaged (for "logits"
            the logits are).
        by: "cosine", "cross_entropy" or "logits".

    Returns:
        (N, M) in float32 or wider: in [0, 1], at most 0, or in [-1, 1].

    Raises:
        TypeError: not float tensors.
        ValueError: shapes or devices that do not match, another word, NaN or infinity.

    Equation: nCLIP (Zhou et al. 2023), zero-shot evaluation.
    Notebook: 11_xclip, section 6.
    """
    if by not in SCORES:
        raise ValueError(f"by is {by!r}; expected one of {', '.join(SCORES)}")
    check_features(image_logits, "image_logits")
    check_float(text_logits, "text_logits")
    codes = image_logits.shape[1]
    if text_logits.ndim not in (2, 3) or text_logits.shape[-1] != codes or text_logits.numel() == 0:
        raise ValueError(f"text_logits: expected (M, {codes}) or (M, R, {codes}), got {tuple(text_logits.shape)}")
    check_device(image_logits, text_logits, NAMES)
    with torch.autocast(image_logits.device.type, enabled=False):
        x, y = (logits.to(wide_dtype(image_logits, text_logits)) for logits in (image_logits, text_logits))
        y = y[:, None] if y.ndim == 2 else y  # (M, R, C)
        if by == "logits":
            scores = F.normalize(x, dim=1) @ F.normalize(y.mean(1), dim=1).T
        elif by == "cosine":
            scores = F.normalize(x.softmax(1), dim=1) @ F.normalize(y.softmax(2).mean(1), dim=1).T
        else:
            log_q = y.log_softmax(2).logsumexp(1) - math.log(y.shape[1])  # of the mean over prompts
            scores = x.softmax(1) @ log_q.T
    check_finite(scores.sum(), "distribution_scores", image_logits=image_logits, text_logits=text_logits)
    return scores


class CodeHead(nn.Module):
    """From what a tower pooled to logits over C codes: Linear, BatchNorm, GELU, Linear, and a last normalisation.

    norm "none": as they are. "batch": BatchNorm without scale and shift, so that every code has mean 0 and variance 1
    over the batch; that alone keeps one code from taking all. "cosine": the cosine to C prototypes of length 1

    Args:
        width: W, what comes in.
        codewords: C. The paper's is 32,768.
        hidden: width in the middle. The paper's is not verified.
        norm: "none", "batch" or "cosine". The paper's is not verified; "batch" is what we remember.
        temperature: > 0, divides what the last normalisation gives; None: 1, for "cosine" 0.1. Not verified.

    Raises:
        ValueError: another norm, a size below 1, a temperature that is not positive.

    Equation: nCLIP (Zhou et al. 2023), the projection heads.
    """

    def __init__(
        self,
        width: int,
        codewords: int = 32_768,
        *,
        hidden: int = 4096,
        norm: str = "batch",
        temperature: float | None = None,
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm is {norm!r}; expected one of {', '.join(NORMS)}")
        if codewords < 1 or hidden < 1:
            raise ValueError(f"expected codewords and hidden of 1 or more, got {codewords}, {hidden}")
        self.temperature = NORMS[norm] if temperature is None else temperature
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature of the codes: expected a number above 0, got {self.temperature:g}")
        self.norm, self.codewords = norm, codewords
        self.body = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.GELU())
        self.last = nn.Linear(hidden, codewords, bias=norm == "none")
        self.scale = nn.BatchNorm1d(codewords, affine=False) if norm == "batch" else nn.Identity()

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits over the codes.

        Args:
            pooled: (B, W) float.

        Returns:
            (B, C) float32.

        Raises:
            ValueError: one row in training mode, which has no batch to be normalised in.
        """
        if self.training and len(pooled) < 2:
            raise ValueError("a batch of one cannot be normalised over the batch; take 2 pairs or more, or .eval()")
        middle = self.body(pooled)  # (B, hidden)
        if self.norm == "cosine":
            logits = F.linear(F.normalize(middle.float(), dim=1), F.normalize(self.last.weight.float(), dim=1))
        else:
            logits = self.last(middle)
        return self.scale(logits.float()) / self.temperature


class CodeHeads(nn.Module):
    """nCLIP's two heads, their loss, and the running means where these are asked for.

    Args:
        image_width: W of the image tower.
        text_width: W of the text tower.
        codewords: C.
        hidden: see `CodeHead`.
        norm: see `CodeHead`.
        code_temperature: see `CodeHead`.
        eh_weight: see `nclip_loss`. Not verified: 0.5 is what we remember.
        he_weight: see `nclip_loss`. Not verified: 1 is what we remember; without a last BatchNorm it takes about 2.
        mean_momentum: 0: the means of the batch. Above: running means that keep this share of what they were.
        uniform_weight: of `uniform_penalty`, a summary's regulariser; 0 in the paper.

    Raises:
        ValueError: negative weights, a momentum outside [0, 1], and what `CodeHead` refuses.
    """

    def __init__(
        self,
        image_width: int,
        text_width: int,
        *,
        codewords: int = 32_768,
        hidden: int = 4096,
        norm: str = "batch",
        code_temperature: float | None = None,
        eh_weight: float = 0.5,
        he_weight: float = 1.0,
        mean_momentum: float = 0.0,
        uniform_weight: float = 0.0,
    ):
        super().__init__()
        for name, weight in (("eh_weight", eh_weight), ("he_weight", he_weight), ("uniform_weight", uniform_weight)):
            check_weight(weight, name)
        check_fraction(mean_momentum, "mean_momentum")
        settings = {"hidden": hidden, "norm": norm, "temperature": code_temperature}
        self.image_head = CodeHead(image_width, codewords, **settings)
        self.text_head = CodeHead(text_width, codewords, **settings)
        self.eh_weight, self.he_weight, self.uniform_weight = eh_weight, he_weight, uniform_weight
        self.mean_momentum = mean_momentum
        self.register_buffer("image_mean", torch.full((codewords,), 1 / codewords))
        self.register_buffer("text_mean", torch.full((codewords,), 1 / codewords))
        self.register_buffer("steps", torch.tensor(0))  # training steps made; the first one starts the running means

    def forward(self, image_pooled: Tensor, text_pooled: Tensor) -> dict[str, Tensor]:
        """The losses of one batch; in training mode the running means move, and all processes share theirs.

        Args:
            image_pooled: (B, W) of the image tower.
            text_pooled: (B, W') of the text tower.

        Returns:
            dict(loss, cross_entropy, mean_entropy, entropy_of_mean), scalars in nats, and uniform_penalty where it has
            a weight; "loss" is the weighted sum.

        Raises:
            ValueError: a batch of one in training mode.
        """
        image_logits, text_logits = self.image_head(image_pooled), self.text_head(text_pooled)
        momentum = self.mean_momentum if int(self.steps) else 0.0
        means = [
            mean_distribution(logits, running, momentum=momentum, across=self.training)
            for logits, running in ((image_logits, self.image_mean), (text_logits, self.text_mean))
        ]
        parts = nclip_loss(
            image_logits,
            text_logits,
            eh_weight=self.eh_weight,
            he_weight=self.he_weight,
            image_mean=means[0],
            text_mean=means[1],
        )
        losses = parts._asdict()
        losses = {"loss": losses.pop("total"), **losses}
        if self.uniform_weight > 0:
            losses["uniform_penalty"] = uniform_penalty(image_logits, text_logits)
            losses["loss"] = losses["loss"] + self.uniform_weight * losses["uniform_penalty"]
        if self.training:
            self.image_mean.copy_(means[0].detach())
            self.text_mean.copy_(means[1].detach())
            self.steps += 1
        return losses


class NCLIP(nn.Module):
    """Two towers and two heads that agree on codes; no negatives, no shared space, no teacher.

    loss = nclip_loss(image_logits, text_logits)

    Args:
        image_encoder: `image_encoder(image).pooled` is (B, W); has `.width`.
        text_encoder: `text_encoder(input_ids, attention_mask).pooled` is (B, W'); has `.width`.
        options: those of `CodeHeads`.

    Raises:
        ValueError: what `CodeHeads` refuses.

    Equation: nCLIP (Zhou et al. 2023), the total loss.
    """

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, **options):
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.heads = CodeHeads(image_encoder.width, text_encoder.width, **options)

    @classmethod
    def tiny(
        cls,
        vocab_size: int = 512,
        *,
        image: str = "conv",
        codewords: int = 64,
        hidden: int = 256,
        seed: int = 0,
        **options,
    ) -> "NCLIP":
        """An nCLIP that two CPU cores train in a minute.

        Args:
            vocab_size: number of token ids.
            image: the image tower, "conv", "resnet18" or "vit".
            codewords: C; of the order of the batch, which can show no more sure codes than it has rows.
            hidden: see `CodeHead`.
            seed: of the initial weights; the global random state is left alone.
            options: the others of `CodeHeads`.

        Returns:
            An NCLIP with random weights; `model.built` remembers the arguments, so that `NCLIP.load` can build it
            again.

        Raises:
            ValueError: an unknown image tower, and what `CodeHeads` refuses.
        """
        options = {"codewords": codewords, "hidden": hidden, **options}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(*tiny_towers(vocab_size, image), **options)
        model.built = {"vocab_size": vocab_size, "image": image, **options}
        return model

    def image_logits(self, image: Tensor) -> Tensor:
        """Which codes for pictures?

        Args:
            image: (B, 3, H, W) uint8, or float in [0, 1].

        Returns:
            (B, C) float32.
        """
        return self.heads.image_head(self.image_encoder(image).pooled)

    def text_logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Which codes for captions?

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 on tokens, 0 on padding.

        Returns:
            (B, C) float32.
        """
        return self.heads.text_head(self.text_encoder(input_ids, attention_mask).pooled)

    def image_features(self, image: Tensor) -> Tensor:
        """Encode pictures as distributions over codes, whose product with those of captions is the cosine of the two.

        Args:
            image: (B, 3, H, W) uint8, or float in [0, 1].

        Returns:
            (B, C) float32, not negative, L2-normalised.
        """
        return F.normalize(self.image_logits(image).softmax(1), dim=1)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode captions as distributions over codes.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 on tokens, 0 on padding.

        Returns:
            (B, C) float32, not negative, L2-normalised.
        """
        return F.normalize(self.text_logits(input_ids, attention_mask).softmax(1), dim=1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of one batch.

        Args:
            batch: image (B, 3, H, W), input_ids (B, L), attention_mask (B, L).

        Returns:
            dict(loss, cross_entropy, mean_entropy, entropy_of_mean), see `CodeHeads.forward`.

        Raises:
            ValueError: a batch of one in training mode.
        """
        seen = self.image_encoder(batch["image"]).pooled
        return self.heads(seen, self.text_encoder(batch["input_ids"], batch["attention_mask"]).pooled)

    def save(self, folder: str | Path, **record) -> Path:
        """Write weights.safetensors and model.json; see `CLIP.save`.

        Args:
            folder: made if it is not there.
            record: JSON values to keep beside the weights.

        Returns:
            The folder.

        Raises:
            ValueError: a model that `tiny` did not build.
        """
        return save_model(self, type(self).__name__, folder, record)

    @classmethod
    def load(cls, folder: str | Path) -> "NCLIP":
        """Read back what `save` wrote, in eval mode on the CPU.

        Args:
            folder: with weights.safetensors and model.json.

        Returns:
            The model.

        Raises:
            ValueError: the folder lacks one of the two files, or they are of another model.
        """
        return load_model(cls, cls.__name__, folder)


class XCLIP(CLIP):
    """CLIP and nCLIP on the same towers, each with heads of its own.

    loss = clip + weight · nclip

    `image_features` and `text_features` are CLIP's, for zero-shot and retrieval; `image_logits` and `text_logits` are
    over nCLIP's codes; a linear probe takes what the towers pool.

    Args:
        image_encoder: see `CLIP`.
        text_encoder: see `CLIP`.
        dim: D.
        temperature: where CLIP's learnt temperature starts.
        weight: of nCLIP's loss, 0 or more. Not verified; 1 / log C makes its parts at most about 1.
        options: those of `CodeHeads`.

    Raises:
        ValueError: a negative weight, and what `CLIP` and `CodeHeads` refuse.

    Equation: xCLIP (Zhou et al. 2023), the total loss.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        *,
        dim: int = 512,
        temperature: float = 0.07,
        weight: float = 1.0,
        **options,
    ):
        super().__init__(image_encoder, text_encoder, dim=dim, temperature=temperature)
        check_weight(weight, "weight")
        self.weight = weight
        self.heads = CodeHeads(image_encoder.width, text_encoder.width, **options)

    @classmethod
    def tiny(
        cls, vocab_size: int = 512, *, codewords: int = 64, hidden: int = 256, weight: float = 0.3, **options
    ) -> "XCLIP":
        """An xCLIP that two CPU cores train in a minute.

        Args:
            vocab_size: number of token ids.
            codewords: C; of the order of the batch, see `NCLIP.tiny`.
            hidden: see `CodeHead`.
            weight: of nCLIP's loss.
            options: image, dim and seed, see `CLIP.tiny`, and the others of `CodeHeads`.

        Returns:
            An XCLIP with random weights, where CLIP has them those of `CLIP.tiny` with the same seed; `model.built`
            remembers the arguments, so that `XCLIP.load` can build it again.

        Raises:
            ValueError: an unknown image tower, and what `XCLIP` refuses.
        """
        return super().tiny(vocab_size, codewords=codewords, hidden=hidden, weight=weight, **options)

    image_logits = NCLIP.image_logits
    text_logits = NCLIP.text_logits

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of one batch; each tower runs once.

        Args:
            batch: image (B, 3, H, W), input_ids (B, L), attention_mask (B, L).

        Returns:
            dict(loss, clip, nclip, cross_entropy, mean_entropy, entropy_of_mean, temperature), scalars, see
            `CodeHeads.forward`; clip and nclip without the weight.

        Raises:
            ValueError: a batch of one.
        """
        self.limit_scale()
        seen = self.image_encoder(batch["image"]).pooled
        read = self.text_encoder(batch["input_ids"], batch["attention_mask"]).pooled
        image_features, text_features = project(seen, self.image_projection), project(read, self.text_projection)
        clip = clip_loss(image_features, text_features, temperature=self.temperature)
        parts = self.heads(seen, read)
        nclip = parts.pop("loss")
        told = {"clip": clip, "nclip": nclip, **parts, "temperature": self.temperature.detach()}
        return {"loss": clip + self.weight * nclip, **told}


def _entropy(p: Tensor) -> Tensor:
    """H(p) of (C,), with a finite gradient where p is 0."""
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum()


def _check_distribution(mean: Tensor, name: str, logits: Tensor) -> None:
    check_float(mean, name)
    if mean.shape != logits.shape[1:]:
        raise ValueError(
            f"{name}: expected one number a code, shape {tuple(logits.shape[1:])}, got {tuple(mean.shape)}"
        )
    check_device(mean, logits, (name, "the logits"))
    given = mean.detach().float()
    check_finite(given.sum(), name, **{name: mean})
    if bool((given < 0).any()) or not abs(float(given.sum()) - 1) < 0.02:
        raise ValueError(
            f"{name}: expected probabilities, got values down to {float(given.min()):.3g} and a sum of "
            f"{float(given.sum()):.3g}; give the mean of the softmax, not of the logits"
        )
