"""ALBEF: align before you fuse (Li et al. 2021).

Two towers are first pulled into one space by a contrastive loss (ITC). Only then a third encoder lets words look at the
picture; it learns to tell true pairs from hard ones (ITM) and to fill in hidden words (MLM). A slow copy of the model,
the teacher, softens the targets of ITC and MLM, because captions of the web are not to be trusted word by word.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlnotes._saving import load_model, save_model
from vlnotes.contrastive import soft_cross_entropy, soft_info_nce
from vlnotes.encoders import ConvTower, ResNetTower, TextTower, ViTTower
from vlnotes.fusion import Fused, FusionEncoder
from vlnotes.momentum import FeatureQueue, momentum_copy, momentum_update
from vlnotes.text import IGNORE, Vocabulary, mask_tokens
from vlnotes.validate import check_features, check_finite, check_float, check_fraction, check_pairs

OBJECTIVES = ("itc", "itm", "mlm")
COLDEST, HOTTEST = 0.001, 0.5  # the learnt temperature is kept between them
LASTING = ("student.", "itm_head.", "temperature", "codebook")  # what a compact folder keeps; CODIS has a codebook
BEHIND = 100.0  # what was not re-ranked stays that far behind what was


def itc_loss(
    image_features: Tensor,
    text_features: Tensor,
    teacher_image_features: Tensor,
    teacher_text_features: Tensor,
    image_queue: Tensor | None = None,
    text_queue: Tensor | None = None,
    *,
    temperature: float | Tensor,
    distill_weight: float = 0.0,
    ids: Tensor | None = None,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    tiled: bool | None = None,
) -> Tensor:
    """Image-text contrast with momentum distillation: the student's rows against the teacher's columns.

    ½ (H(target, softmax(v · [w'; text_queue] / t)) + H(target, softmax(w · [v'; image_queue] / t))), where v, w are
    the student's features, v', w' the teacher's, and each target mixes the one-hot with the teacher's own softmax.

    Args:
        image_features: (B, D) float, L2-normalised, of the student.
        text_features: (B, D) float, L2-normalised, of the student; row i belongs to picture i.
        teacher_image_features: (B, D), the teacher's; detached here.
        teacher_text_features: (B, D), the teacher's; detached here.
        image_queue: (K, D) earlier teacher features of pictures, or None; detached here.
        text_queue: (K, D) earlier teacher features of texts, or None; detached here.
        temperature: > 0, divides the cosines of student and teacher; learns by the student's side alone.
        distill_weight: in [0, 1], share of the teacher in the targets; the paper ramps it up to 0.4.
        ids: (B,) int64 of the pictures, -1 where unknown: the one-hot is spread over all with the same id, as the
            paper's code does when it fine-tunes for retrieval. None: row i has one right answer.
        image_ids: (K,) ids of image_queue; needed with ids and queues.
        text_ids: (K,) ids of text_queue.
        tiled: True never holds the logits, False does, None goes by size.

    Returns:
        Scalar tensor in nats, mean over the batch and both directions.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes or devices that do not match, one queue without the other, a bad temperature or weight,
            one pair and no queue, NaN or infinity.

    Equation: ALBEF (Li et al. 2021), equations 1, 2 and 6.
    Notebook: 04_albef_itc, section 3.
    """
    check_pairs(image_features, text_features, ("image_features", "text_features"))
    check_pairs(teacher_image_features, teacher_text_features, ("teacher_image_features", "teacher_text_features"))
    if (image_queue is None) != (text_queue is None):
        raise ValueError("image_queue and text_queue: give both or none, each direction needs the other modality's")
    shared = {"temperature": temperature, "distill_weight": distill_weight, "ids": ids, "tiled": tiled}
    to_text = soft_info_nce(
        image_features, teacher_text_features, teacher_image_features, text_queue, queue_ids=text_ids, **shared
    )
    to_image = soft_info_nce(
        text_features, teacher_image_features, teacher_text_features, image_queue, queue_ids=image_ids, **shared
    )
    return (to_text + to_image) / 2


def sample_hard_negatives(
    similarity: Tensor, ids: Tensor | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    """For every row one wrong column, the more likely the more similar it looks.

    row i draws j ~ softmax over the columns whose id is another one

    The own column is taken out of the logits, before the softmax. Taken out afterwards, as zeros, a row that is sure
    of its own column would have nothing left to draw from.

    Args:
        similarity: (B, B) finite logits, row i belongs to column i; detached here.
        ids: (B,) whole numbers; columns of a row's own id are never drawn. None: all differ.
        generator: of the random numbers; draws are made on its device.

    Returns:
        (B,) int64, a column for each row.

    Raises:
        TypeError: similarity is not float.
        ValueError: no square matrix, NaN or infinity, ids of another shape, a row without any column of another id
            (a batch of one, or of one picture only).

    Equation: ALBEF (Li et al. 2021), section 3.2, the negatives of image-text matching.
    Notebook: 05_albef_fusion, section 2.
    """
    check_features(similarity, "similarity")
    rows, columns = similarity.shape
    if rows != columns:
        raise ValueError(f"similarity: expected a square matrix, row i belongs to column i, got {(rows, columns)}")
    similarity = similarity.detach().float()
    check_finite(similarity.sum(), "sample_hard_negatives", similarity=similarity)
    if ids is not None and ids.shape != (rows,):
        raise ValueError(f"ids: expected one a row, shape {(rows,)}, got {tuple(ids.shape)}")
    own = torch.eye(rows, dtype=torch.bool, device=similarity.device)
    if ids is not None:
        ids = ids.to(similarity.device)
        own |= ids[:, None] == ids
    alone = own.all(1)
    if bool(alone.any()):
        raise ValueError(
            f"row {int(alone.nonzero()[0, 0])} of {rows} has no column of another id, so no negative; "
            "take a batch with at least two different pictures"
        )
    weights = similarity.masked_fill(own, -torch.inf).softmax(1)  # (B, B), 0 at own columns
    if generator is not None:
        weights = weights.to(generator.device)
    return weights.multinomial(1, generator=generator).squeeze(1).to(similarity.device)


def itm_loss(matched: Tensor, mismatched: Tensor) -> Tensor:
    """Does this text belong to this picture? Cross-entropy over all pairs, true and wrong.

    -(Σ_i log softmax(matched_i)[1] + Σ_j log softmax(mismatched_j)[0]) / (B + M)

    Args:
        matched: (B, 2) float, logits of true pairs; column 1 says "they belong together".
        mismatched: (M, 2) float, logits of wrong ones; M = 2 B in the paper.

    Returns:
        Scalar tensor in nats, mean over the B + M pairs.

    Raises:
        TypeError: not float tensors.
        ValueError: other shapes, NaN or infinity.

    Equation: ALBEF (Li et al. 2021), equation 4.
    Notebook: 05_albef_fusion, section 2.
    """
    check_features(matched, "matched", width=2)
    check_features(mismatched, "mismatched", width=2)
    labels = torch.tensor([1] * len(matched) + [0] * len(mismatched), device=matched.device)
    loss = F.cross_entropy(torch.cat([matched, mismatched]).float(), labels)
    check_finite(loss, "itm_loss", matched=matched, mismatched=mismatched)
    return loss


def mlm_loss(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None, *, distill_weight: float = 0.0
) -> Tensor:
    """Fill in the hidden words: cross-entropy where one was hidden, softened by what the teacher would say.

    (1 - distill_weight) H(true word, p) + distill_weight H(softmax(teacher_logits), p), mean over hidden words

    Args:
        logits: (B, L, V) or (S, V) float.
        labels: (B, L) or (S,) int64, the true id where a word was hidden, -100 elsewhere, as `mask_tokens` makes them.
        teacher_logits: of the shape of logits; needed where distill_weight > 0; detached here.
        distill_weight: in [0, 1].

    Returns:
        Scalar tensor in nats; 0, still attached to the graph, where no word was hidden.

    Raises:
        TypeError: logits are not float.
        ValueError: shapes that differ, a missing teacher, a weight outside [0, 1], NaN or infinity.

    Equation: ALBEF (Li et al. 2021), equations 3 and 7.
    Notebook: 05_albef_fusion, section 3.
    """
    check_float(logits, "logits")
    check_fraction(distill_weight, "distill_weight")
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: expected (..., V) and (...)")
    if distill_weight > 0 and (teacher_logits is None or teacher_logits.shape != logits.shape):
        seen = "none" if teacher_logits is None else tuple(teacher_logits.shape)
        raise ValueError(f"teacher_logits: expected the shape of logits {tuple(logits.shape)}, got {seen}")
    hidden = labels != IGNORE
    logits = logits[hidden].float()  # (S, V)
    if len(logits) == 0:
        return logits.sum()
    loss = F.cross_entropy(logits, labels[hidden])
    if distill_weight > 0:
        soft = teacher_logits.detach()[hidden].float().softmax(-1)
        loss = (1 - distill_weight) * loss + distill_weight * soft_cross_entropy(soft, logits)
    check_finite(loss, "mlm_loss", logits=logits, teacher_logits=teacher_logits)
    return loss


class Read(NamedTuple):
    """A picture or a text after its tower: `tokens` (B, P or L, W) for the fusion, `features` (B, D) L2-normalised."""

    tokens: Tensor
    features: Tensor


class Four(NamedTuple):
    """Features of one batch, (B, D) each, L2-normalised: the student's pictures and texts, then the teacher's."""

    image: Tensor
    text: Tensor
    teacher_image: Tensor
    teacher_text: Tensor


class Encoders(nn.Module):
    """All that has a momentum copy: two towers, their projections, the fusion encoder and the head for hidden words.

    The picture goes into the fusion as one class token and its grid of P tokens, the text as its tokens. In the paper
    the first token of either tower is what ITC projects and compares, so the fusion meets both already aligned. A tower
    that pools in another way gets such a first token here: its projected feature. The other tokens bring their own,
    too: that of a word, and that of a picture which is one cell throughout. All enter from the shared space by one
    linear map, the door. The grid of a tower without a class token gets a learnt place for each cell, stretched where
    the grid is another.

    Args:
        image_encoder: see `vlnotes.encoders`; `.width`, `.token_width`.
        text_encoder: see `vlnotes.encoders`; tokens of `.token_width` = W.
        fusion: a `FusionEncoder` of width W.
        dim: D, the width of the shared space.
        vocab_size: V.
        grid: (h, w) of the image tower at its usual size.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        fusion: FusionEncoder,
        *,
        dim: int,
        vocab_size: int,
        grid: tuple[int, int],
    ):
        from transformers import BertConfig
        from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

        super().__init__()
        width = fusion.width
        if text_encoder.token_width != width:
            raise ValueError(f"text tokens are {text_encoder.token_width} wide and the fusion {width}; expected one W")
        self.image_encoder, self.text_encoder, self.fusion = image_encoder, text_encoder, fusion
        self.image_projection = nn.Linear(image_encoder.width, dim, bias=False)
        self.text_projection = nn.Linear(text_encoder.width, dim, bias=False)
        self.door = nn.Linear(dim, width)  # from the shared space into the fusion, for both modalities
        nn.init.orthogonal_(self.door.weight)
        self.grid_tokens = nn.Linear(image_encoder.token_width, width)
        self.places = nn.Parameter(sinusoids(width, *grid)[None])  # (1, W, h, w), where learning begins
        self.token_norm = nn.LayerNorm(width)
        self.words = nn.Sequential(
            BertPredictionHeadTransform(BertConfig(hidden_size=width)), nn.Linear(width, vocab_size)
        )

    def see(self, image: Tensor) -> Read:
        """Encode pictures.

        Args:
            image: (B, 3, H, W) uint8, or float in [0, 1].

        Returns:
            `Read`: tokens (B, 1 + P, W), the class token first; features (B, D).
        """
        seen = self.image_encoder(image)
        height, width = seen.grid
        patches = seen.tokens[:, -height * width :]  # (B, P, .), without a class token of the tower's own
        alone = torch.cat([patches] * (self.image_encoder.width // patches.shape[2]), dim=2)  # a picture of one cell
        tokens = self.grid_tokens(patches) + self._enter(self.image_projection(alone))
        if seen.tokens.shape[1] == height * width:  # a conv net's cell knows what it shows, not where it is
            places = self.places
            if places.shape[2:] != (height, width):
                places = F.interpolate(places, (height, width), mode="bicubic", align_corners=False)
            tokens = tokens + places.flatten(2).transpose(1, 2)
        features = F.normalize(self.image_projection(seen.pooled).float(), dim=1)
        first = self._enter(features)[:, None]  # (B, 1, W)
        return Read(self.token_norm(torch.cat([first, tokens], dim=1)), features)

    def read(self, input_ids: Tensor, attention_mask: Tensor) -> Read:
        """Encode captions.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 on tokens, 0 on padding.

        Returns:
            `Read`: tokens (B, L, W), features (B, D).
        """
        said = self.text_encoder(input_ids, attention_mask)
        features = F.normalize(self.text_projection(said.pooled).float(), dim=1)
        tokens = said.tokens + self._enter(self.text_projection(said.tokens))
        first = self._enter(features)[:, None]  # (B, 1, W)
        return Read(self.token_norm(torch.cat([first, tokens[:, 1:]], dim=1)), features)

    def _enter(self, aligned: Tensor) -> Tensor:
        """From the shared space (..., D) into the fusion (..., W), about 1 a coordinate, as a layer norm leaves it."""
        return self.door(F.normalize(aligned.float(), dim=-1) * aligned.shape[-1] ** 0.5)

    def hidden_words(self, input_ids: Tensor, attention_mask: Tensor, image_tokens: Tensor, labels: Tensor) -> Tensor:
        """What the words at the hidden places are, with the picture at hand.

        Args:
            input_ids: (B, L) with words hidden.
            attention_mask: (B, L).
            image_tokens: (B, 1 + P, W).
            labels: (B, L), -100 where no word is asked for.

        Returns:
            (S, V) logits, for the S places with a label, row by row.
        """
        text_tokens = self.read(input_ids, attention_mask).tokens
        fused = self.fusion(text_tokens, attention_mask, image_tokens).tokens  # (B, L, W)
        return self.words(fused[labels != IGNORE])


def sinusoids(width: int, height: int, columns: int, longest: float = 10.0) -> Tensor:
    """A code of places in a grid that changes smoothly from cell to cell, so that "above" is a simple question to it.

    A quarter of the coordinates each for sin and cos of x and of y, at frequencies that fall from 1 to 1 / longest a
    cell, times 0.7. Random vectors would name the places as well, but say nothing of which lies above which.

    Args:
        width: W.
        height: rows of the grid.
        columns: of the grid.
        longest: the longest wavelength, in 2 π cells; Transformers take 10,000 for texts, but over a grid of 8 such a
            wave is flat.

    Returns:
        (W, height, columns) float, about 0.4 large.

    Raises:
        ValueError: a size or wavelength that is not positive.

    Equation: Vaswani et al. 2017, section 3.5, once for each axis.
    """
    if min(width, height, columns, longest) <= 0:
        raise ValueError(f"width {width}, height {height}, columns {columns}, longest {longest}: expected all above 0")
    count = -(-width // 4)
    frequency = longest ** (-torch.arange(count) / count)  # (W / 4,)
    y, x = (torch.arange(size)[None] * frequency[:, None] for size in (height, columns))  # (W / 4, size)
    y, x = y[:, :, None].expand(-1, -1, columns), x[:, None].expand(-1, height, -1)
    return 0.7 * torch.cat([x.sin(), x.cos(), y.sin(), y.cos()])[:width]


class ALBEF(nn.Module):
    """Towers that align, a fusion encoder, and a slow teacher of both.

    teacher ← m · teacher + (1 - m) · student;  loss = itc + itm + mlm

    In evaluation mode nothing moves: neither teacher, nor queues, nor the ramp.

    Args:
        encoders: the student.
        queue_size: K, of each modality; 0 for none.
        momentum: m of the teacher.
        temperature: where the learnt one starts; it is kept in [0.001, 0.5].
        distill_weight: the teacher's share in the targets after the ramp.
        ramp_steps: steps in which that share grows from 0; the paper takes one epoch.
        objectives: which of "itc", "itm", "mlm"; their losses are added.
        distill: in which of "itc" and "mlm" the teacher has a say.
        hard_negatives: draw ITM's negatives by similarity; False draws them evenly.
        same_ids: batch["ids"] say what is no negative and where the hard targets go (fine-tuning for retrieval).
        mask_probability: share of words hidden for MLM.
        vocabulary: ids that masking must know.
        seed: of masks, negatives and first queues; all are functions of the seed and the step.

    Raises:
        ValueError: an unknown objective, a bad number.

    Equation: ALBEF (Li et al. 2021), equations 5 and 6.
    """

    known: tuple[str, ...] = OBJECTIVES
    on_features: tuple[str, ...] = ("itc",)  # which of them `contrast` answers for

    def __init__(
        self,
        encoders: Encoders,
        vocabulary: Vocabulary,
        *,
        queue_size: int = 65_536,
        momentum: float = 0.995,
        temperature: float = 0.07,
        distill_weight: float = 0.4,
        ramp_steps: int = 0,
        objectives: Iterable[str] = OBJECTIVES,
        distill: Iterable[str] = ("itc", "mlm"),
        hard_negatives: bool = True,
        same_ids: bool = False,
        mask_probability: float = 0.15,
        seed: int = 0,
    ):
        super().__init__()
        objectives, distill = tuple(objectives), tuple(distill)
        if not objectives or set(objectives) - set(self.known) or set(distill) - {"itc", "mlm"}:
            raise ValueError(f"objectives {objectives} must be some of {self.known}, distill {distill} of itc, mlm")
        check_fraction(momentum, "momentum")
        check_fraction(distill_weight, "distill_weight")
        check_fraction(mask_probability, "mask_probability")
        if not COLDEST <= temperature <= HOTTEST or ramp_steps < 0 or queue_size < 0:
            raise ValueError(
                f"expected a temperature in [{COLDEST}, {HOTTEST}], ramp_steps and queue_size of 0 or more; "
                f"got {temperature}, {ramp_steps}, {queue_size}"
            )
        self.objectives, self.distill, self.vocabulary = objectives, distill, vocabulary
        self.momentum, self.distill_weight, self.ramp_steps = momentum, distill_weight, ramp_steps
        self.hard_negatives, self.same_ids = hard_negatives, same_ids
        self.mask_probability, self.seed = mask_probability, seed
        self.student = encoders
        self.teacher = momentum_copy(encoders)
        self.itm_head = nn.Linear(encoders.fusion.width, 2)
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))
        dim, dice = encoders.image_projection.out_features, torch.Generator().manual_seed(seed)
        self.image_queue = FeatureQueue(queue_size, dim, generator=dice) if queue_size else None
        self.text_queue = FeatureQueue(queue_size, dim, generator=dice) if queue_size else None
        self.register_buffer("steps", torch.tensor(0))  # training steps made; ramp and random numbers follow it

    @classmethod
    def tiny(
        cls,
        vocab_size: int = 512,
        *,
        image: str = "conv",
        size: int = 64,
        dim: int = 128,
        layers: int = 3,
        queue_size: int = 1024,
        seed: int = 0,
        **options,
    ) -> "ALBEF":
        """An ALBEF that two CPU cores train in minutes, with the towers of `CLIP.tiny`.

        Args:
            vocab_size: number of token ids.
            image: the image tower, "conv", "resnet18" or "vit".
            size: pixels a side of the pictures it will mostly see.
            dim: D.
            layers: blocks of the fusion encoder.
            queue_size: K.
            seed: of the initial weights, masks, negatives and queues; the global random state is left alone.
            options: the others of `ALBEF`.

        Returns:
            An ALBEF with random weights; `model.built` remembers the arguments, so that `ALBEF.load` can build it
            again.

        Raises:
            ValueError: an unknown image tower, or what `ALBEF` refuses.
        """
        towers = {"conv": ConvTower, "resnet18": ResNetTower, "vit": lambda: ViTTower(size)}
        if image not in towers:
            raise ValueError(f"image tower must be one of {sorted(towers)}, not {image!r}")
        stride = {"conv": 8, "resnet18": 32, "vit": 8}[image]
        grid = (-(-size // stride),) * 2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoders = Encoders(
                towers[image](),
                TextTower(vocab_size, layers=1),
                FusionEncoder(128, layers, hidden=256),
                dim=dim,
                vocab_size=vocab_size,
                grid=grid,
            )
            model = cls(encoders, Vocabulary(vocab_size), queue_size=queue_size, seed=seed, **options)
        kept = {"image": image, "size": size, "dim": dim, "layers": layers, "queue_size": queue_size, "seed": seed}
        model.built = {"vocab_size": vocab_size, **kept, **options}
        return model

    def start_from(self, other: nn.Module) -> "ALBEF":
        """Take over what another model has learnt: of a CLIP towers and projections, alignment came before; of an
        ALBEF all but its queues and its count of steps, for other pictures may follow. A codebook goes with it where
        both have one.

        Args:
            other: a trained `CLIP` with the same towers, or an ALBEF with the same encoders.

        Returns:
            This model.

        Raises:
            ValueError: other towers or encoders, or another vocabulary.
        """
        names = ("image_encoder", "text_encoder", "image_projection", "text_projection")
        past = ("image_queue.", "text_queue.", "steps", *(() if hasattr(self, "codebook") else ("codebook",)))
        try:
            if isinstance(other, ALBEF):
                lasting = {name: value for name, value in other.state_dict().items() if not name.startswith(past)}
                self.load_state_dict(self.state_dict() | lasting)
                return self
            for encoders in (self.student, self.teacher):
                for name in names:
                    getattr(encoders, name).load_state_dict(getattr(other, name).state_dict())
        except (RuntimeError, AttributeError) as error:
            raise ValueError(f"this {type(other).__name__} has other towers or another vocabulary: {error}") from error
        with torch.no_grad():
            self.temperature.fill_(float(other.temperature)).clamp_(COLDEST, HOTTEST)
        return self

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of one batch; in training mode the teacher takes its step first, and the queues are fed last.

        Args:
            batch: image (B, 3, H, W), input_ids (B, L), attention_mask (B, L); ids (B,) where `same_ids` is set.

        Returns:
            dict(loss, itc, itm, mlm, temperature, distill_weight), scalars; the objectives that are asked for, in nats.

        Raises:
            ValueError: a batch of one (ITM has no negative), ids that are missing, tokens of another vocabulary.
        """
        image, input_ids, mask = batch["image"], batch["input_ids"], batch["attention_mask"]
        ids = batch.get("ids") if self.same_ids else None
        if self.same_ids and ids is None:
            raise ValueError("same_ids is set, but the batch has no 'ids' of the pictures")
        with torch.no_grad():
            self.temperature.clamp_(COLDEST, HOTTEST)
        weight = self.share()
        dice = torch.Generator().manual_seed(self.seed * 7_368_787 + int(self.steps))

        image, teacher_image = self.views(batch)
        seen, read = self.student.see(image), self.student.read(input_ids, mask)
        mlm_teacher = weight > 0 and "mlm" in self.distill and "mlm" in self.objectives
        contrasted = bool(set(self.objectives) & set(self.on_features))
        with torch.no_grad():
            if self.training:
                momentum_update(self.teacher, self.student, self.momentum)
            if contrasted or mlm_teacher:
                teacher_seen = self.teacher.see(teacher_image)
            if contrasted:
                teacher_read = self.teacher.read(input_ids, mask)

        losses = {}
        if contrasted:
            four = Four(seen.features, read.features, teacher_seen.features, teacher_read.features)
            losses = self.contrast(four, weight if "itc" in self.distill else 0.0, ids)
        if "itm" in self.objectives:
            to_text = to_image = torch.zeros(len(image), len(image), device=image.device)
            if self.hard_negatives and contrasted:
                to_text, to_image = self.likeness(four, ids)
            losses["itm"] = self.matching(seen, read, mask, to_text, to_image, ids, dice)
        if "mlm" in self.objectives:
            masked, labels = mask_tokens(input_ids, self.vocabulary, probability=self.mask_probability, generator=dice)
            logits = self.student.hidden_words(masked, mask, seen.tokens, labels)  # (S, V)
            teacher_logits = None
            if mlm_teacher:
                with torch.no_grad():
                    teacher_logits = self.teacher.hidden_words(masked, mask, teacher_seen.tokens, labels)
            losses["mlm"] = mlm_loss(
                logits, labels[labels != IGNORE], teacher_logits, distill_weight=weight if mlm_teacher else 0.0
            )
        if self.training:
            if contrasted and self.image_queue is not None:
                self.image_queue.push(teacher_seen.features, batch.get("ids"))
                self.text_queue.push(teacher_read.features, batch.get("ids"))
            self.steps += 1
        told = {"temperature": self.temperature.detach(), "distill_weight": torch.tensor(weight)}
        return {"loss": self.total(losses), **losses, **told}

    def views(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the student sees and what the teacher sees: the same, in ALBEF.

        Args:
            batch: see `forward`.

        Returns:
            Two tensors (B, 3, H, W).
        """
        return batch["image"], batch["image"]

    def contrast(self, four: Four, distill_weight: float, ids: Tensor | None) -> dict[str, Tensor]:
        """The losses on features.

        Args:
            four: of the batch.
            distill_weight: the teacher's share in the targets.
            ids: (B,) of the pictures, see `itc_loss`, or None.

        Returns:
            dict(itc), a scalar tensor in nats.
        """
        return {"itc": itc_loss(*four, **self._past(ids), temperature=self.temperature, distill_weight=distill_weight)}

    def _past(self, ids: Tensor | None) -> dict[str, Tensor | None]:
        """The queues, and whose features they hold, as `itc_loss` takes them."""
        if self.image_queue is None:
            return {"ids": ids}
        queues = {"image_queue": self.image_queue.features, "text_queue": self.text_queue.features}
        return {"ids": ids, "image_ids": self.image_queue.ids, "text_ids": self.text_queue.ids, **queues}

    def likeness(self, four: Four, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """By what ITM's negatives are drawn: the student's features against the teacher's.

        Args:
            four: of the batch.
            ids: (B,) of the pictures, or None.

        Returns:
            Two (B, B) logits without gradient: of the texts for every picture, of the pictures for every text.
        """
        t = self.temperature.detach()
        return four.image.detach() @ four.teacher_text.T / t, four.text.detach() @ four.teacher_image.T / t

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The number to make small: the plain sum, in ALBEF.

        Args:
            losses: scalar tensors by name.

        Returns:
            A scalar tensor.
        """
        return sum(losses.values())

    def share(self) -> float:
        """The teacher's share in the targets at this step, in [0, distill_weight].

        Returns:
            It grows evenly from 0 over `ramp_steps`.
        """
        return self.distill_weight * min(1.0, int(self.steps) / self.ramp_steps if self.ramp_steps else 1.0)

    def matching(
        self,
        seen: Read,
        read: Read,
        mask: Tensor,
        to_text: Tensor,
        to_image: Tensor,
        ids: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """ITM's loss: B true pairs, a wrong picture for every text and a wrong text for every picture.

        Args:
            seen: of B pictures.
            read: of their B texts.
            mask: (B, L) of the texts.
            to_text: (B, B) logits, row i says how similar the texts are to picture i.
            to_image: (B, B) logits, row i says how similar the pictures are to text i.
            ids: (B,), see `sample_hard_negatives`.
            generator: of the draws.

        Returns:
            Scalar tensor in nats, mean over 3 B pairs.

        Raises:
            ValueError: a row without a negative.
        """
        picture = sample_hard_negatives(to_image, ids, generator=generator)  # (B,), for each text
        text = sample_hard_negatives(to_text, ids, generator=generator)  # (B,), for each picture
        logits = self.match(
            torch.cat([seen.tokens, seen.tokens[picture], seen.tokens]),
            torch.cat([read.tokens, read.tokens, read.tokens[text]]),
            torch.cat([mask, mask, mask[text]]),
        )
        return itm_loss(logits[: len(mask)], logits[len(mask) :])

    def match(self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """Does text i belong to picture i?

        Args:
            image_tokens: (B, 1 + P, W), from `student.see`.
            text_tokens: (B, L, W), from `student.read`.
            attention_mask: (B, L).

        Returns:
            (B, 2) logits; column 1 says yes.
        """
        return self.itm_head(self.student.fusion(text_tokens, attention_mask, image_tokens).tokens[:, 0])

    def look(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Fused]:
        """The matching score of pairs and where the words looked for it, in the graph: what Grad-CAM needs.

        Args:
            image: (B, 3, H, W).
            input_ids: (B, L).
            attention_mask: (B, L).

        Returns:
            (B,) logits for "they belong together", and `Fused` with attentions.
        """
        seen, read = self.student.see(image), self.student.read(input_ids, attention_mask)
        fused = self.student.fusion(read.tokens, attention_mask, seen.tokens, attentions=True)
        return self.itm_head(fused.tokens[:, 0])[:, 1], fused

    def image_features(self, image: Tensor) -> Tensor:
        """Encode pictures for ITC.

        Args:
            image: (B, 3, H, W) uint8, or float in [0, 1].

        Returns:
            (B, D) float32, L2-normalised.
        """
        return self.student.see(image).features

    def text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode captions for ITC.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 on tokens, 0 on padding.

        Returns:
            (B, D) float32, L2-normalised.
        """
        return self.student.read(input_ids, attention_mask).features

    def save(self, folder: str | Path, *, compact: bool = False, **record) -> Path:
        """Write weights.safetensors and model.json; see `CLIP.save`.

        Args:
            folder: made if it is not there.
            compact: leave out teacher and queues, and keep float16 numbers: a fifth of the size, enough to look and to
                train on from.
            record: JSON values to keep beside the weights.

        Returns:
            The folder.

        Raises:
            ValueError: a model that `tiny` did not build.
        """
        state = self.compact_state() if compact else None
        return save_model(self, type(self).__name__, folder, record, state)

    def compact_state(self) -> dict[str, Tensor]:
        """What cannot be made again from the rest: student, ITM head, temperature (and codebook), in float16.

        Returns:
            Part of the state dict.
        """
        kept = {name: value for name, value in self.state_dict().items() if name.startswith(LASTING)}
        return {name: value.half() if value.is_floating_point() else value for name, value in kept.items()}

    @classmethod
    def load(cls, folder: str | Path) -> "ALBEF":
        """Read back what `save` wrote, in eval mode on the CPU.

        Args:
            folder: with weights.safetensors and model.json.

        Returns:
            The model. From a compact folder its teacher is a copy of the student, and its queues are fresh.

        Raises:
            ValueError: the folder lacks one of the two files, or they are of another model.
        """
        return load_model(cls, cls.__name__, folder, _whole)


def _whole(model: ALBEF, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a compact folder holds, with a teacher that is a copy and the queues as they are."""
    if any(name.startswith("teacher.") for name in tensors):
        return tensors
    fresh = {name: value for name, value in model.state_dict().items() if not name.startswith((*LASTING, "teacher."))}
    taught = {f"teacher.{name[8:]}": value for name, value in tensors.items() if name.startswith("student.")}
    return fresh | tensors | taught


class Reranked(NamedTuple):
    """Scores for two rankings, each (N, M): `texts` ranks the texts of a picture, `images` the pictures of a text."""

    texts: Tensor
    images: Tensor


@torch.no_grad()
def rerank(
    model: ALBEF,
    images: Tensor,
    tokens: dict[str, Tensor],
    k: int = 16,
    *,
    by: str = "logit",
    add_similarity: float = 0.0,
    batch_size: int = 256,
    progress: bool = False,
) -> Reranked:
    """Two stages: ITC ranks everything, ITM looks closely at the first k of every query and ranks these again.

    Args:
        model: trained; used in eval mode, on its own device.
        images: (N, 3, H, W) uint8, or float in [0, 1].
        tokens: input_ids and attention_mask, each (M, L).
        k: how many of each query are looked at; 0 is ITC alone. At most the gallery.
        by: "logit", the one for "they belong together", as ALBEF does; "odds", that minus the one for "they do not",
            which is all that ITM's loss pins down.
        add_similarity: so many times the cosine is added: 0 in ALBEF, 1 (or True) in BLIP. 1 / temperature adds ITC's
            own logit: where wrong pairs were drawn by ITC, ITM learns what ITC does not know, and needs it back.
        batch_size: pairs at a time.
        progress: show a bar.

    Returns:
        `Reranked`: ITM's score where it looked; elsewhere the cosine - 100, so that the rest keeps its order behind
        the first k (the paper's code gives all of them -100: the same recall up to K = k).

    Raises:
        ValueError: a negative k, another `by`, tokens that do not fit.

    Equation: ALBEF (Li et al. 2021), section 5, retrieval.
    Notebook: 05_albef_fusion, section 5.
    """
    if k < 0:
        raise ValueError(f"k is {k}; expected 0 or more pairs a query for ITM to look at")
    if by not in ("logit", "odds"):
        raise ValueError(f"by is {by!r}; expected 'logit' or 'odds'")
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    seen = [model.student.see(part.to(device)) for part in images.split(batch_size)]
    inputs = zip(tokens["input_ids"].split(batch_size), tokens["attention_mask"].split(batch_size), strict=True)
    read = [model.student.read(ids.to(device), mask.to(device)) for ids, mask in inputs]
    image_tokens, image_features = (torch.cat(parts) for parts in zip(*seen, strict=True))
    text_tokens, text_features = (torch.cat(parts) for parts in zip(*read, strict=True))
    mask = tokens["attention_mask"].to(device)
    cosine = image_features @ text_features.T  # (N, M)

    def again(pairs: Tensor) -> Tensor:
        """Scores (N, M) with the pairs (S, 2) of picture and text looked at."""
        scores = (cosine - BEHIND).clone()
        pairs = pairs[mask[pairs[:, 1]].sum(1).argsort()]  # long captions together: padding at the end costs time
        parts = pairs.split(batch_size) if len(pairs) else ()
        if progress:
            import sys

            from tqdm import tqdm

            parts = tqdm(parts, desc="re-ranking", file=sys.stdout, ncols=100, mininterval=0.5)
        for part in parts:
            i, j = part.T
            used = int(mask[j].any(0).nonzero().max()) + 1
            no, yes = model.match(image_tokens[i], text_tokens[j, :used], mask[j, :used]).float().T
            scores[i, j] = (yes - no if by == "odds" else yes) + add_similarity * cosine[i, j]
        return scores.cpu()

    texts = cosine.topk(min(k, cosine.shape[1]), dim=1).indices  # (N, k)
    pictures = cosine.topk(min(k, cosine.shape[0]), dim=0).indices  # (k, M)
    rows = torch.arange(len(cosine), device=device)[:, None].expand_as(texts)
    columns = torch.arange(cosine.shape[1], device=device).expand_as(pictures)
    found = Reranked(
        again(torch.stack([rows.flatten(), texts.flatten()], dim=1)),
        again(torch.stack([pictures.flatten(), columns.flatten()], dim=1)),
    )
    model.train(was_training)
    return found
