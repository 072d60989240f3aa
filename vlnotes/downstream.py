"""What ALBEF is fine-tuned for: answering questions, judging sentences, comparing two pictures (Li et al. 2021).

Each head takes over the student of a pre-trained `ALBEF` and trains on, all of it. Where the paper distils, the whole
module has a slow teacher of its own.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlnotes._batches import Batch, epoch_indices, trim_padding
from vlnotes.albef import ALBEF, Encoders, sample_hard_negatives
from vlnotes.contrastive import soft_cross_entropy
from vlnotes.fusion import FusionEncoder
from vlnotes.momentum import momentum_copy, momentum_update
from vlnotes.validate import check_features, check_fraction


def softened(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None, distill_weight: float) -> Tensor:
    """Cross-entropy against the labels and, for its share, against what the teacher says.

    (1 - distill_weight) H(label, p) + distill_weight H(softmax(teacher_logits), p)

    Args:
        logits: (B, classes) float.
        labels: (B,) int64.
        teacher_logits: (B, classes), or None; detached here.
        distill_weight: in [0, 1]; without a teacher it counts as 0.

    Returns:
        Scalar tensor in nats.

    Equation: ALBEF (Li et al. 2021), section 5, visual entailment.
    Notebook: 07_downstream, section 4.
    """
    loss = F.cross_entropy(logits.float(), labels)
    if teacher_logits is None or distill_weight == 0:
        return loss
    soft = teacher_logits.detach().float().softmax(1)
    return (1 - distill_weight) * loss + distill_weight * soft_cross_entropy(soft, logits.float())


class Judge(nn.Module):
    """One picture, one sentence, one of several labels: an MLP on the fused first token.

    Entailment (SNLI-VE) has three labels. With one label an answer it is the simple way to answer questions.

    Args:
        albef: pre-trained; its student is copied.
        classes: number of labels.
        distill_weight: share of the teacher in the targets, from the first step on; 0 for none.
        momentum: m of the teacher.

    Raises:
        ValueError: fewer than two labels, a bad number.

    Equation: ALBEF (Li et al. 2021), section 5, visual entailment.
    """

    def __init__(self, albef: ALBEF, classes: int, *, distill_weight: float = 0.4, momentum: float = 0.995):
        super().__init__()
        check_fraction(distill_weight, "distill_weight")
        check_fraction(momentum, "momentum")
        self.distill_weight, self.momentum, self.classes = distill_weight, momentum, classes
        self.student = _JudgedPair(albef.student, classes)
        self.teacher = momentum_copy(self.student) if distill_weight else None

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one batch; in training mode the teacher takes its step first.

        Args:
            batch: image (B, 3, H, W), input_ids (B, L), attention_mask (B, L), label (B,) int64.

        Returns:
            dict(loss, accuracy), scalars: nats, and a share in [0, 1].

        Raises:
            ValueError: labels out of range.
        """
        label = _labels(batch, self.classes)
        logits = self.logits(batch)
        with torch.no_grad():
            if self.teacher is not None and self.training:
                momentum_update(self.teacher, self.student, self.momentum)
            soft = None if self.teacher is None else self.teacher(batch)
        loss = softened(logits, label, soft, self.distill_weight)
        return {"loss": loss, "accuracy": (logits.argmax(1) == label).float().mean()}

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """What the model says.

        Args:
            batch: image, input_ids, attention_mask.

        Returns:
            (B, classes).
        """
        return self.student(batch)


class _JudgedPair(nn.Module):
    def __init__(self, encoders: Encoders, classes: int):
        super().__init__()
        self.encoders = copy.deepcopy(encoders)
        self.head = _head(encoders.fusion.width, classes)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"]
        read = self.encoders.read(batch["input_ids"], mask)
        fused = self.encoders.fusion(read.tokens, mask, self.encoders.see(batch["image"]).tokens)
        return self.head(fused.tokens[:, 0])


class PairFusion(nn.Module):
    """A fusion encoder for two pictures: every block becomes two, one a picture.

    Both start from the same weights; from then on they part, but for the projections of keys and values, which stay
    one and the same.

    Args:
        fusion: trained on one picture; copied.

    Equation: ALBEF (Li et al. 2021), section 5 and Figure 3, natural language for visual reasoning.
    Notebook: 07_downstream, section 3.
    """

    def __init__(self, fusion: FusionEncoder):
        super().__init__()
        self.first, self.second = copy.deepcopy(fusion), copy.deepcopy(fusion)
        for one, other in zip(self.first.layers, self.second.layers, strict=True):
            for name in ("key", "value"):
                setattr(other.crossattention.self, name, getattr(one.crossattention.self, name))

    def forward(self, text_tokens: Tensor, attention_mask: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Block by block, words look at words and the first picture, then at words and the second.

        Args:
            text_tokens: (B, L, W).
            attention_mask: (B, L).
            first: (B, P, W) tokens of one picture.
            second: (B, P, W) tokens of the other.

        Returns:
            (B, L, W).
        """
        for one, other in zip(self.first.layers, self.second.layers, strict=True):
            text_tokens, _ = self.first.run(one, text_tokens, attention_mask, first)
            text_tokens, _ = self.second.run(other, text_tokens, attention_mask, second)
        return text_tokens


class PairJudge(nn.Module):
    """Two pictures, one sentence, one of several labels: NLVR2 with two, text assignment with three.

    Args:
        albef: pre-trained; its student is copied.
        classes: 2: is the statement true of the pair? 3: does the text belong to the first picture, the second, or
            neither?

    Equation: ALBEF (Li et al. 2021), section 5, natural language for visual reasoning.
    """

    def __init__(self, albef: ALBEF, classes: int = 2):
        super().__init__()
        self.encoders = copy.deepcopy(albef.student)
        self.fusion = PairFusion(self.encoders.fusion)
        self.encoders.fusion = None
        self.width, self.classes = albef.student.fusion.width, classes
        self.head = _head(self.width, classes)

    def with_head(self, classes: int) -> "PairJudge":
        """The same weights below a new head: from text assignment on to NLVR2.

        Args:
            classes: number of labels.

        Returns:
            A copy.
        """
        other = copy.deepcopy(self)
        other.classes, other.head = classes, _head(self.width, classes)
        return other

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one batch.

        Args:
            batch: image and image_other, each (B, 3, H, W), input_ids (B, L), attention_mask (B, L), label (B,).

        Returns:
            dict(loss, accuracy), scalars: nats, and a share in [0, 1].

        Raises:
            ValueError: labels out of range.
        """
        label = _labels(batch, self.classes)
        logits = self.logits(batch)
        return {
            "loss": F.cross_entropy(logits.float(), label),
            "accuracy": (logits.argmax(1) == label).float().mean(),
        }

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """What the model says.

        Args:
            batch: image, image_other, input_ids, attention_mask.

        Returns:
            (B, classes).
        """
        mask, count = batch["attention_mask"], len(batch["image"])
        both = self.encoders.see(torch.cat([batch["image"], batch["image_other"]])).tokens  # (2 B, 1 + P, W)
        words = self.encoders.read(batch["input_ids"], mask).tokens
        return self.head(self.fusion(words, mask, both[:count], both[count:])[:, 0])


def text_assignment(
    image_features: Tensor, *, temperature: float = 0.07, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Which two pictures to show beside every text, so that it belongs to the first, the second or neither.

    The other pictures are drawn by their similarity to the text's own, the more likely the more alike.

    Args:
        image_features: (B, D) float, L2-normalised; picture i belongs to text i. B is at least 3.
        temperature: > 0, divides the cosines.
        generator: of the draws.

    Returns:
        first (B,), second (B,): rows of the batch; label (B,): 0 first, 1 second, 2 neither, a third each.

    Raises:
        ValueError: fewer than three pictures.

    Equation: ALBEF (Li et al. 2021), section 5, text assignment.
    """
    check_features(image_features, "image_features")
    count = len(image_features)
    if count < 3:
        raise ValueError(f"text assignment needs 3 pictures or more, one of the text and two others; got {count}")
    logits = image_features.detach() @ image_features.detach().T / temperature
    one = sample_hard_negatives(logits, generator=generator)  # (B,)
    # a second one, neither the text's own nor the first
    taken = torch.nn.functional.one_hot(one, count).bool()
    weights = logits.masked_fill(taken | torch.eye(count, dtype=torch.bool, device=logits.device), -torch.inf).softmax(
        1
    )
    source = weights if generator is None else weights.to(generator.device)
    other = source.multinomial(1, generator=generator).squeeze(1).to(logits.device)
    label = (torch.arange(count) % 3)[torch.randperm(count, generator=generator)].to(logits.device)  # a third each
    own = torch.arange(count, device=logits.device)
    second = torch.where(label == 1, own, torch.where(label == 0, one, other))
    return torch.where(label == 0, own, one), second, label


class _Writer(nn.Module):
    """Encoders, and a decoder that writes an answer while it looks at the fused question."""

    def __init__(self, encoders: Encoders):
        super().__init__()
        self.encoders = copy.deepcopy(encoders)
        self.embeddings = copy.deepcopy(encoders.text_encoder.model.embeddings)
        self.blocks = copy.deepcopy(encoders.fusion)  # starts from the multimodal encoder
        self.blocks.causal = True
        self.words = copy.deepcopy(encoders.words)

    def question(self, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"]
        read = self.encoders.read(batch["input_ids"], mask)
        return self.encoders.fusion(read.tokens, mask, self.encoders.see(batch["image"]).tokens).tokens  # (B, L, W)

    def forward(self, fused: Tensor, mask: Tensor, answer_ids: Tensor, answer_mask: Tensor) -> Tensor:
        """Logits (B, T - 1, V) for the tokens after the first, each from those before it."""
        said = self.embeddings(answer_ids[:, :-1])
        return self.words(self.blocks(said, answer_mask[:, :-1], fused, mask).tokens)


class Answerer(nn.Module):
    """Questions answered by a decoder that writes the answer word by word, and is only asked to rank candidates.

    Args:
        albef: pre-trained with a `TextTower`; its student is copied, and the decoder starts from its fusion encoder.
        answer_ids: (A, T) int64, the candidates as `encode` makes them: the first token starts, the last one ends.
        answer_mask: (A, T), 1 on tokens, 0 on padding.
        distill_weight: share of the teacher in the targets of the answer's tokens, after the ramp.
        ramp_steps: steps in which that share grows from 0.
        momentum: m of the teacher.

    Raises:
        ValueError: candidates that are no rows of tokens, two that are the same.

    Equation: ALBEF (Li et al. 2021), section 5, visual question answering.
    """

    def __init__(
        self,
        albef: ALBEF,
        answer_ids: Tensor,
        answer_mask: Tensor,
        *,
        distill_weight: float = 0.4,
        ramp_steps: int = 0,
        momentum: float = 0.995,
    ):
        super().__init__()
        check_fraction(distill_weight, "distill_weight")
        check_fraction(momentum, "momentum")
        if answer_ids.ndim != 2 or answer_ids.shape != answer_mask.shape or answer_ids.shape[1] < 2:
            raise ValueError(
                f"answer_ids {tuple(answer_ids.shape)} and answer_mask {tuple(answer_mask.shape)}: expected (A, T) "
                "both, with T of 2 or more"
            )
        if len(torch.unique(answer_ids * answer_mask, dim=0)) < len(answer_ids):
            raise ValueError(f"{len(answer_ids)} candidate answers, but some of them are the same row of tokens")
        self.distill_weight, self.ramp_steps, self.momentum = distill_weight, ramp_steps, momentum
        self.student = _Writer(albef.student)
        self.teacher = momentum_copy(self.student) if distill_weight else None
        self.register_buffer("answer_ids", answer_ids.clone())
        self.register_buffer("answer_mask", answer_mask.clone())
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one batch; in training mode the teacher takes its step first.

        Args:
            batch: image (B, 3, H, W), input_ids (B, L), attention_mask (B, L) of the questions; label (B,) int64, rows
                of the candidates; optionally weight (B,), how sure the answer is, 1 where it is missing.

        Returns:
            dict(loss), a scalar in nats: the negative log-probability of an answer, weighted, mean over questions.

        Raises:
            ValueError: labels out of range.
        """
        label = _labels(batch, len(self.answer_ids))
        ids, known = self.answer_ids[label], self.answer_mask[label]
        mask = batch["attention_mask"]
        logits = self.student(self.student.question(batch), mask, ids, known)  # (B, T - 1, V)
        hard = F.cross_entropy(logits.transpose(1, 2).float(), ids[:, 1:], reduction="none")  # (B, T - 1)
        share = self.distill_weight * min(1.0, int(self.steps) / self.ramp_steps if self.ramp_steps else 1.0)
        if self.teacher is not None:
            with torch.no_grad():
                if self.training:
                    momentum_update(self.teacher, self.student, self.momentum)
                soft = self.teacher(self.teacher.question(batch), mask, ids, known).float().softmax(-1)
            hard = (1 - share) * hard - share * (soft * logits.float().log_softmax(-1)).sum(-1)
        each = (hard * known[:, 1:]).sum(1)  # (B,)
        if "weight" in batch:
            each = each * batch["weight"]
        if self.training:
            self.steps += 1
        return {"loss": each.mean()}

    @torch.no_grad()
    def rank(self, batch: dict[str, Tensor], k: int = 128) -> Tensor:
        """Rank the candidates: first by their first word, then the best k by all of their words.

        Args:
            batch: image, input_ids, attention_mask.
            k: how many candidates are read whole; at most all.

        Returns:
            (B, A) log-probabilities; -inf for candidates that were not read whole.

        Raises:
            ValueError: k below 1.

        Equation: ALBEF (Li et al. 2021), section 5, visual question answering.
        Notebook: 07_downstream, section 2.
        """
        if k < 1:
            raise ValueError(f"k is {k}; expected 1 or more candidates to read whole")
        mask, count = batch["attention_mask"], len(self.answer_ids)
        fused = self.student.question(batch)  # (B, L, W)
        start = self.answer_ids[:1].expand(len(fused), -1)
        first = self.student(fused, mask, start[:, :2], torch.ones_like(start[:, :2]))[:, 0].log_softmax(-1)  # (B, V)
        best = first[:, self.answer_ids[:, 1]].topk(min(k, count), dim=1).indices  # (B, k)
        scores = first.new_full((len(fused), count), -torch.inf)
        for column in best.T:  # one candidate a question at a time
            ids, known = self.answer_ids[column], self.answer_mask[column]
            logits = self.student(fused, mask, ids, known).log_softmax(-1)  # (B, T - 1, V)
            words = logits.gather(2, ids[:, 1:, None]).squeeze(2) * known[:, 1:]
            scores[torch.arange(len(fused), device=fused.device), column] = words.sum(1)
        return scores


@dataclass(frozen=True)
class Tasks:
    """Texts about pictures, with the label of each, in memory: what the heads learn from and are tried on.

    Args:
        images: (N, 3, H, W) uint8.
        tokens: input_ids and attention_mask, each (M, L).
        label: (M,) int64.
        first: (M,) int64, the picture of each text.
        second: (M,) int64, the other picture of each, where there are two; else None.

    Raises:
        ValueError: not one row of tokens, label and picture a text; pictures that are not there.
    """

    images: Tensor
    tokens: dict[str, Tensor]
    label: Tensor
    first: Tensor
    second: Tensor | None = None

    def __post_init__(self):
        columns = [*self.tokens.values(), self.first, *([] if self.second is None else [self.second])]
        counts = [len(column) for column in (self.label, *columns)]
        if len(set(counts)) != 1 or not counts[0]:
            raise ValueError(f"expected one row of everything a text, at least one; got {counts} rows")
        shown = torch.cat([self.first, *([] if self.second is None else [self.second])])
        if not 0 <= int(shown.min()) <= int(shown.max()) < len(self.images):
            raise ValueError(
                f"pictures {int(shown.min())} to {int(shown.max())} are asked for; there are {len(self.images)}"
            )

    def __len__(self) -> int:
        return len(self.label)

    def batch(self, rows: Tensor) -> Batch:
        """Some of the texts as the heads take them.

        Args:
            rows: (B,) int64.

        Returns:
            dict(image, label, input_ids, attention_mask), with image_other where there are two pictures; padding that
            all texts share is cut.
        """
        batch = {"image": self.images[self.first[rows]], "label": self.label[rows]}
        if self.second is not None:
            batch["image_other"] = self.images[self.second[rows]]
        return trim_padding(batch | {name: value[rows] for name, value in self.tokens.items()})

    def batches(self, batch_size: int = 48, seed: int = 0, *, together: int = 1) -> Callable[[int], Batch]:
        """Shuffled batches for `vlnotes.train.train`.

        Args:
            batch_size: B.
            seed: of the shuffles.
            together: so many texts in a row are never parted: 4 for statements, whose four pairs belong together. It
                divides M and B.

        Returns:
            A function step -> batch.

        Raises:
            ValueError: groups that do not fill texts or batches.
        """
        if together < 1 or len(self) % together or batch_size % together:
            raise ValueError(
                f"together is {together}; expected a divisor of {len(self)} texts and of batches of {batch_size}"
            )

        def batch_at(step: int) -> Batch:
            groups = epoch_indices(step, len(self) // together, batch_size // together, seed)
            return self.batch((groups[:, None] * together + torch.arange(together)).flatten())

        return batch_at

    def in_order(self, batch_size: int = 250) -> Iterable[Batch]:
        """All texts once, for `predictions`.

        Args:
            batch_size: B; the last batch may be smaller.

        Returns:
            Batches, one after another.
        """
        return (self.batch(rows) for rows in torch.arange(len(self)).split(batch_size))


@torch.no_grad()
def predictions(model: nn.Module, batches: Iterable[dict[str, Tensor]], k: int = 128) -> tuple[Tensor, Tensor]:
    """What a head says about whole data, in eval mode.

    Args:
        model: a `Judge`, `PairJudge` or `Answerer`.
        batches: as the model takes them.
        k: of `Answerer.rank`.

    Returns:
        said (N,) and label (N,), int64 on the CPU.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    said, label = [], []
    for batch in batches:
        batch = {name: value.to(device) for name, value in batch.items()}
        scores = model.rank(batch, k) if isinstance(model, Answerer) else model.logits(batch)
        said.append(scores.argmax(1).cpu())
        label.append(batch["label"].cpu())
    model.train(was_training)
    return torch.cat(said), torch.cat(label)


def _head(width: int, classes: int) -> nn.Sequential:
    if classes < 2:
        raise ValueError(f"classes is {classes}; expected 2 labels or more")
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))


def _labels(batch: dict[str, Tensor], classes: int) -> Tensor:
    label = batch["label"]
    if label.ndim != 1 or not 0 <= int(label.min()) <= int(label.max()) < classes:
        raise ValueError(
            f"label: expected (B,) numbers from 0 to {classes - 1}, got shape {tuple(label.shape)} with "
            f"{int(label.min())} to {int(label.max())}"
        )
    return label
