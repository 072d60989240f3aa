"""CODIS: pictures and texts meet at codewords (Duan et al. 2022), on top of ALBEF.

Two additions. Alignment runs in four directions instead of two: a picture should also find its own second view, and a
text itself as the teacher reads it. And both modalities share a codebook: optimal transport spreads a batch evenly over
the codewords, then each student predicts the codewords of the *other* modality.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlnotes.albef import ALBEF, Encoders, Four, itc_loss
from vlnotes.augment import Augmentation, augment
from vlnotes.contrastive import soft_cross_entropy, soft_info_nce
from vlnotes.text import Vocabulary
from vlnotes.transport import ipot, sinkhorn
from vlnotes.validate import check_device, check_features, check_finite, check_pairs, check_temperature, wide_dtype

OBJECTIVES = ("ica", "code", "itm", "mlm")
PAIRINGS = ("cross", "same")
ASSIGNMENTS = ("ipot", "sinkhorn", "softmax", "kmeans")
# Captions name colours, sides and counts, so a view must leave them as they are.
GENTLE = Augmentation(smallest=0.7, flip=0.0, jitter=1.0, strength=(0.2, 0.2, 0.2, 0.0), grey=0.0, blur=0.0)
VIEWS = {"gentle": GENTLE, "none": None}
NAMES = ("image_features", "text_features")
TEACHER_NAMES = ("teacher_image_features", "teacher_text_features")
QUEUE_NAMES = ("image_queue", "text_queue")


def ica_loss(
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
    """Intra- and cross-modal alignment: ITC, and the same question within each modality.

    ¼ (i2t + t2i + i2i + t2t), each H(target, softmax(q · [k'; queue] / t)) with q a student's feature and k' the
    teacher's features of the modality that is searched; every target mixes the one-hot with the teacher's own softmax

    Within a modality the positive is the same picture or text as the teacher sees it, so the question is nearly trivial
    unless the teacher has a second view. The mean of four is what we take the paper to do; `CODIS` has a weight for it.

    Args:
        image_features: (B, D) float, L2-normalised, of the student.
        text_features: (B, D) float, L2-normalised, of the student; row i belongs to picture i.
        teacher_image_features: (B, D), the teacher's; detached here.
        teacher_text_features: (B, D), the teacher's; detached here.
        image_queue: (K, D) earlier teacher features of pictures, or None; detached here.
        text_queue: (K, D) earlier teacher features of texts, or None; detached here.
        temperature: > 0, divides the cosines of student and teacher; learns by the student's side alone.
        distill_weight: in [0, 1], share of the teacher in the targets of all four.
        ids: (B,) int64 of the pictures, see `itc_loss`.
        image_ids: (K,) ids of image_queue; needed with ids and queues.
        text_ids: (K,) ids of text_queue.
        tiled: True never holds the logits, False does, None goes by size.

    Returns:
        Scalar tensor in nats, mean over the batch and the four directions.

    Raises:
        TypeError: not float tensors.
        ValueError: what `itc_loss` refuses.

    Equation: CODIS (Duan et al. 2022), the intra-cross alignment loss.
    Notebook: 09_codis, section 1.
    """
    v, w, tv, tw = image_features, text_features, teacher_image_features, teacher_text_features
    shared = {"temperature": temperature, "distill_weight": distill_weight, "ids": ids, "tiled": tiled}
    cross = itc_loss(v, w, tv, tw, image_queue, text_queue, image_ids=image_ids, text_ids=text_ids, **shared)
    to_image = soft_info_nce(v, tv, tv, image_queue, queue_ids=image_ids, **shared)
    to_text = soft_info_nce(w, tw, tw, text_queue, queue_ids=text_ids, **shared)
    return cross / 2 + (to_image + to_text) / 4


def assign(cost: Tensor, assignment: str = "ipot", *, beta: float = 0.5, outer: int = 50, inner: int = 1) -> Tensor:
    """Which codewords does every sample take? A plan whose rows are the samples' shares.

    "ipot" and "sinkhorn" know that every codeword must get the same mass. "softmax" and "kmeans" let every row choose
    alone, so nothing keeps codewords from dying.

    Args:
        cost: (..., N, C) finite, 1 - cosine.
        assignment: "ipot", the paper's; "sinkhorn", entropic transport with beta as epsilon (SwAV takes 0.05) and
            `outer` iterations (SwAV: 3); "softmax", of -cost / beta by row; "kmeans", all of a row to the cheapest.
        beta: > 0.
        outer: steps of IPOT or Sinkhorn.
        inner: Sinkhorn steps inside a step of IPOT.

    Returns:
        (..., N, C) shares of mass 1 in all, without gradient; of about 1 / N a row (IPOT keeps the columns exactly and
        the rows nearly).

    Raises:
        ValueError: another assignment, and what `vlnotes.transport` refuses.

    Equation: CODIS (Duan et al. 2022), algorithm 2; SwAV (Caron et al. 2020), equation 4.
    Notebook: 09_codis, section 2.
    """
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"assignment is {assignment!r}; expected one of {', '.join(ASSIGNMENTS)}")
    if not beta > 0:
        raise ValueError(f"beta is {beta}; expected a number above 0")
    cost = cost.detach()
    if assignment == "ipot":
        return ipot(cost, beta=beta, outer=outer, inner=inner).plan
    if assignment == "sinkhorn":
        return sinkhorn(cost, epsilon=beta, iterations=outer).plan
    if assignment == "softmax":
        return (-cost / beta).softmax(-1) / cost.shape[-2]
    return F.one_hot(cost.argmin(-1), cost.shape[-1]).to(cost.dtype) / cost.shape[-2]


class CodebookLoss(NamedTuple):
    """The three parts of the codebook loss, scalars: how far the codewords are from what the teacher sees (it moves the
    codebook alone), and how well text and image students predict codewords (nats)."""

    transport: Tensor
    text_to_prototype: Tensor
    image_to_prototype: Tensor


def codebook_loss(
    image_features: Tensor,
    text_features: Tensor,
    teacher_image_features: Tensor,
    teacher_text_features: Tensor,
    codebook: Tensor,
    *,
    temperature: float | Tensor,
    beta: float = 0.5,
    outer: int = 50,
    inner: int = 1,
    pairing: str = "cross",
    assignment: str = "ipot",
    image_queue: Tensor | None = None,
    text_queue: Tensor | None = None,
) -> CodebookLoss:
    """The teacher's features are transported to the codewords; each student predicts where the other modality went.

    plan_i = assign(1 - v' · c), plan_t = assign(1 - w' · c);  transport = <plan_i, 1 - v' · c> + <plan_t, 1 - w' · c>;
    text_to_prototype = H(rows of plan_i, softmax(w · c / t));
    image_to_prototype = H(rows of plan_t, softmax(v · c / t))

    The rows of a plan sum to about 1 / N, so as targets they are divided by their sum. `transport` treats plan and
    features as given: it moves the codebook and nothing else. The other two reach the students and the codebook.

    Args:
        image_features: (B, D) float, L2-normalised, of the student.
        text_features: (B, D) float, L2-normalised, of the student; row i belongs to picture i.
        teacher_image_features: (B, D), from which the plans are made; detached here. The paper's "student feature"
            variant passes the student's own features here.
        teacher_text_features: (B, D), detached here.
        codebook: (C, D) float, a codeword a row; L2-normalised here.
        temperature: > 0, divides the cosines of the students' predictions.
        beta: > 0, IPOT's step.
        outer: steps of IPOT.
        inner: Sinkhorn steps inside each.
        pairing: "cross", equation 2: text predicts the picture's codewords, the picture the text's; "same", as one
            summary of the paper has it: each predicts those of its own modality, as SwAV does.
        assignment: see `assign`.
        image_queue: (K, D) earlier teacher features of pictures, or None; they join the transport, not the predictions.
        text_queue: (K, D) earlier teacher features of texts, or None.

    Returns:
        `CodebookLoss`: transport, the sum over both modalities; the two predictions, each a mean over rows.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes or devices that do not match, one queue without the other, an unknown pairing or assignment,
            a bad temperature or beta, NaN or infinity.

    Equation: CODIS (Duan et al. 2022), equation 2 and the codebook loss.
    Notebook: 09_codis, section 2.
    """
    check_pairs(image_features, text_features, NAMES)
    check_pairs(teacher_image_features, teacher_text_features, TEACHER_NAMES)
    check_pairs(image_features, teacher_image_features, (NAMES[0], TEACHER_NAMES[0]))
    check_features(codebook, "codebook", width=image_features.shape[1])
    check_device(image_features, codebook, (NAMES[0], "codebook"))
    check_temperature(temperature)
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing is {pairing!r}; expected one of {', '.join(PAIRINGS)}")
    if (image_queue is None) != (text_queue is None):
        raise ValueError("image_queue and text_queue: give both or none, both modalities are transported")
    batch, known = len(image_features), [teacher_image_features, teacher_text_features]
    given = dict(zip((*NAMES, *TEACHER_NAMES), (image_features, text_features, *known), strict=True))
    if image_queue is not None:
        check_pairs(image_queue, text_queue, QUEUE_NAMES)
        check_features(image_queue, "image_queue", width=image_features.shape[1])
        check_device(image_features, image_queue, (NAMES[0], "image_queue"))
        known = [torch.cat(both) for both in zip(known, (image_queue, text_queue), strict=True)]
        given |= {"image_queue": image_queue, "text_queue": text_queue}
    for name, tensor in {**given, "codebook": codebook}.items():  # before the transport, which would name its cost
        check_finite(tensor.detach().float().sum(), "codebook_loss", **{name: tensor})

    with torch.autocast(image_features.device.type, enabled=False):
        dtype = wide_dtype(image_features, *known, codebook)
        words = F.normalize(codebook.to(dtype), dim=1)  # (C, D)
        cost = 1 - torch.stack(known).detach().to(dtype) @ words.T  # (2, N, C): pictures, texts
        plan = assign(cost, assignment, beta=beta, outer=outer, inner=inner)  # (2, N, C)
        transport = (plan * cost).sum()
        targets = plan[:, :batch] / plan[:, :batch].sum(-1, keepdim=True)  # (2, B, C)
        if pairing == "cross":
            targets = targets.flip(0)
        if isinstance(temperature, Tensor):
            temperature = temperature.reshape(())
        logits = torch.stack([image_features, text_features]).to(dtype) @ words.T / temperature  # (2, B, C)
        from_image, from_text = (soft_cross_entropy(*both) for both in zip(targets, logits, strict=True))
    return CodebookLoss(transport, from_text, from_image)


def prefer_same_code(similarity: Tensor, codes: Tensor, ids: Tensor | None = None) -> Tensor:
    """Logits that leave only columns of the row's own codeword, where there are any: harder negatives for ITM.

    Args:
        similarity: (B, B) finite logits, row i belongs to column i, as `sample_hard_negatives` takes them.
        codes: (B,) whole numbers, the codeword of each column.
        ids: (B,) whole numbers; columns of a row's own id are no negatives, so they do not count. None: all differ.

    Returns:
        (B, B) finite logits: a row with a wrong column of its own codeword has all others so far below that they are
        never drawn; the other rows are as they were.

    Raises:
        TypeError: similarity is not float.
        ValueError: no square matrix, codes or ids of another shape, NaN or infinity.
    """
    check_features(similarity, "similarity")
    rows, columns = similarity.shape
    for name, numbers in {"codes": codes, "ids": torch.arange(rows) if ids is None else ids}.items():
        if rows != columns or numbers.shape != (rows,):
            raise ValueError(
                f"expected similarity (B, B) and {name} (B,), got {(rows, columns)} and {tuple(numbers.shape)}"
            )
    check_finite(similarity.float().sum(), "prefer_same_code", similarity=similarity)
    same = (codes[:, None] == codes).to(similarity.device)
    own = torch.eye(rows, dtype=torch.bool, device=similarity.device)
    if ids is not None:
        own |= (ids[:, None] == ids).to(similarity.device)
    some = (same & ~own).any(1, keepdim=True)  # (B, 1)
    low = similarity.min() - similarity.abs().max() - 200  # exp(-200) is 0 in float32
    return torch.where(some & ~same, low, similarity)


class CODIS(ALBEF):
    """ALBEF with alignment in four directions, a second view for the teacher and a codebook for both modalities.

    loss = ica_weight · ica + code_weight · (transport + text_to_prototype + image_to_prototype) + itm + mlm

    The rows of the paper's ablation are `objectives`: a is ("itc", "itm", "mlm"), b has "ica" in place of "itc", and
    "code" joins either. The paper gives every loss the weight 1 and the codewords the learnt temperature. `tiny` has a
    small weight and a temperature of the codewords' own; `vlnotes.claims.codis` has an arm for either way.

    Args:
        encoders: the student.
        vocabulary: ids that masking must know.
        codewords: C.
        objectives: which of "itc" or "ica", "code", "itm", "mlm".
        ica_weight: of the mean of the four directions; 2 makes it the sum of two means, as some code has it.
        code_weight: of all three parts of the codebook loss.
        code_temperature: of the predictions of codewords; None: the learnt one.
        pairing: "cross" or "same", see `codebook_loss`.
        assignment: see `assign`.
        plan_from: "teacher", or "student": whose features the plan is made from.
        plan_queue: the transport takes the queues in, too, as far as they are filled.
        beta: of IPOT, as well as outer and inner.
        outer: see `assign`.
        inner: see `assign`.
        views: how the pictures are changed before either looks: "gentle", "none", or an `Augmentation`.
        second_view: the teacher gets another view than the student.
        same_code: ITM's negatives come from the codeword of the true one, where the batch has any.
        early: names of a layer in the image tower and one in the text tower, such as ("layers.8",
            "model.embeddings"), whose means over places and words are aligned, too, in the batch; None for none.
        early_weight: of that alignment.
        options: those of `ALBEF`; in `distill`, "itc" stands for ITC or ICA.

    Raises:
        ValueError: an unknown word, "itc" and "ica" together, a layer that is not there, what `ALBEF` refuses.

    Equation: CODIS (Duan et al. 2022), the total loss.
    """

    known = ("itc", *OBJECTIVES)
    on_features = ("itc", "ica", "code")

    def __init__(
        self,
        encoders: Encoders,
        vocabulary: Vocabulary,
        *,
        codewords: int = 4000,
        objectives: Iterable[str] = OBJECTIVES,
        ica_weight: float = 1.0,
        code_weight: float = 1.0,
        code_temperature: float | None = None,
        pairing: str = "cross",
        assignment: str = "ipot",
        plan_from: str = "teacher",
        plan_queue: bool = False,
        beta: float = 0.5,
        outer: int = 50,
        inner: int = 1,
        views: str | Augmentation = "gentle",
        second_view: bool = True,
        same_code: bool = False,
        early: tuple[str, str] | None = None,
        early_weight: float = 1.0,
        **options,
    ):
        objectives = tuple(objectives)
        if {"itc", "ica"} <= set(objectives):
            raise ValueError("objectives has both 'itc' and 'ica'; ica contains itc, so take one of them")
        words = {
            "pairing": (pairing, PAIRINGS),
            "assignment": (assignment, ASSIGNMENTS),
            "plan_from": (plan_from, ("teacher", "student")),
            "views": (views, (*VIEWS, *([views] if isinstance(views, Augmentation) else []))),
        }
        for name, (word, some) in words.items():
            if word not in some:
                raise ValueError(f"{name} is {word!r}; expected one of {', '.join(map(str, some))}")
        if codewords < 1 or not beta > 0 or outer < 1 or inner < 1:
            raise ValueError(
                "expected codewords, outer and inner of 1 or more and a beta above 0; "
                f"got {codewords}, {outer}, {inner}, {beta}"
            )
        if not min(ica_weight, code_weight, early_weight) >= 0:
            raise ValueError(f"a weight is negative: ica {ica_weight}, code {code_weight}, early {early_weight}")
        if code_temperature is not None:
            check_temperature(code_temperature, "code_temperature")
        if early is not None:
            if not set(objectives) & {"itc", "ica"}:
                raise ValueError(f"early aligns as 'itc' or 'ica' does; objectives is {objectives}")
            _add_early(encoders, tuple(early))
        super().__init__(encoders, vocabulary, objectives=objectives, **options)
        self.ica_weight, self.code_weight, self.code_temperature = ica_weight, code_weight, code_temperature
        self.pairing, self.assignment, self.plan_from, self.plan_queue = pairing, assignment, plan_from, plan_queue
        self.solver = {"beta": beta, "outer": outer, "inner": inner}
        self.augmentation = views if isinstance(views, Augmentation) else VIEWS[views]
        self.second_view, self.same_code = second_view, same_code
        self.early, self.early_weight = None if early is None else tuple(early), early_weight
        dim = encoders.image_projection.out_features
        self.codebook = nn.Parameter(F.normalize(torch.randn(codewords, dim), dim=1))  # (C, D)

    @classmethod
    def tiny(
        cls,
        vocab_size: int = 512,
        *,
        codewords: int = 64,
        code_weight: float = 0.1,
        code_temperature: float | None = 0.1,
        **options,
    ) -> "CODIS":
        """A CODIS that two CPU cores train in minutes, with the towers of `ALBEF.tiny`.

        Args:
            vocab_size: number of token ids.
            codewords: C; of the order of the batch, or transport must spread every sample over many.
            code_weight: see `CODIS`.
            code_temperature: see `CODIS`.
            options: those of `ALBEF.tiny` and the others of `CODIS`.

        Returns:
            A CODIS with random weights; `model.built` remembers the arguments, so that `CODIS.load` can build it again.

        Raises:
            ValueError: what `ALBEF.tiny` and `CODIS` refuse.
        """
        own = {"codewords": codewords, "code_weight": code_weight, "code_temperature": code_temperature}
        return super().tiny(vocab_size, **own, **options)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of one batch; see `ALBEF.forward`.

        Args:
            batch: as of `ALBEF`. Views of its pictures are drawn, unless image_key, of the shape of image, holds the
                teacher's: then both are taken as they are.

        Returns:
            dict(loss, itc or ica, transport, text_to_prototype, image_to_prototype, itm, mlm, early, temperature,
            distill_weight), scalars; of the objectives those that are asked for, "code" by its three parts, without
            their weights; loss is the weighted sum.

        Raises:
            ValueError: views of two shapes, and what `ALBEF.forward` refuses.
        """
        if self.early is None:
            return super().forward(batch)
        with _overheard(self.student, self.early) as said, _overheard(self.teacher, self.early) as taught:
            losses = super().forward(batch)
        mask = batch["attention_mask"]
        four = Four(*_early_features(self.student, said, mask), *_early_features(self.teacher, taught, mask))
        align = ica_loss if "ica" in self.objectives else itc_loss
        weight = float(losses["distill_weight"]) if "itc" in self.distill else 0.0
        ids = batch["ids"] if self.same_ids else None
        early = align(*four, temperature=self.temperature, distill_weight=weight, ids=ids)
        return {**losses, "loss": losses["loss"] + self.early_weight * early, "early": early}

    def views(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the student sees and what the teacher sees: two looks at the same pictures.

        Args:
            batch: see `forward`.

        Returns:
            Two tensors (B, 3, H, W); the random numbers are a function of the seed and the step.

        Raises:
            ValueError: views of two shapes.
        """
        image, second = batch["image"], batch.get("image_key")
        if second is not None:
            if second.shape != image.shape:
                raise ValueError(
                    "image and image_key: row i of both shows one picture, so expected one shape, "
                    f"got {tuple(image.shape)} and {tuple(second.shape)}"
                )
            return image, second
        if self.augmentation is None:
            return image, image
        dice = torch.Generator().manual_seed(2**32 + self.seed * 7_368_787 + int(self.steps))
        first = augment(image, self.augmentation, generator=dice)
        return first, augment(image, self.augmentation, generator=dice) if self.second_view else first

    def contrast(self, four: Four, distill_weight: float, ids: Tensor | None) -> dict[str, Tensor]:
        """The losses on features: of ITC or ICA, and the three of the codebook.

        Args:
            four: of the batch.
            distill_weight: the teacher's share in the targets.
            ids: (B,) of the pictures, see `itc_loss`, or None.

        Returns:
            dict(itc or ica, transport, text_to_prototype, image_to_prototype), as far as they are objectives.
        """
        losses = super().contrast(four, distill_weight, ids) if "itc" in self.objectives else {}
        if "ica" in self.objectives:
            past = self._past(ids)
            losses["ica"] = ica_loss(*four, **past, temperature=self.temperature, distill_weight=distill_weight)
        if "code" not in self.objectives:
            return losses
        queues = {}
        if self.plan_queue and self.image_queue is not None and (filled := self.image_queue.filled):
            queues = {
                "image_queue": self.image_queue.features[:filled],
                "text_queue": self.text_queue.features[:filled],
            }
        parts = codebook_loss(
            *four[:2],
            *(four[2:] if self.plan_from == "teacher" else four[:2]),
            self.codebook,
            temperature=self.temperature if self.code_temperature is None else self.code_temperature,
            pairing=self.pairing,
            assignment=self.assignment,
            **self.solver,
            **queues,
        )
        return losses | parts._asdict()

    def likeness(self, four: Four, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """By what ITM's negatives are drawn; with `same_code` others than of the true one's codeword are left out.

        Args:
            four: of the batch.
            ids: (B,) of the pictures, or None.

        Returns:
            Two (B, B) logits without gradient: of the texts for every picture, of the pictures for every text.
        """
        to_text, to_image = super().likeness(four, ids)
        if not self.same_code:
            return to_text, to_image
        return (
            prefer_same_code(to_text, self.codes(four.teacher_text), ids),
            prefer_same_code(to_image, self.codes(four.teacher_image), ids),
        )

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The number to make small: the weighted sum.

        Args:
            losses: scalar tensors by name.

        Returns:
            A scalar tensor.
        """
        weights = {"ica": self.ica_weight, **dict.fromkeys(CodebookLoss._fields, self.code_weight)}
        return sum(weights.get(name, 1.0) * loss for name, loss in losses.items())

    @torch.no_grad()
    def codes(self, features: Tensor) -> Tensor:
        """The codeword that is nearest.

        Args:
            features: (N, D) of either modality, on any device.

        Returns:
            (N,) int64 in [0, C), on the device of the features.
        """
        return (features.float() @ F.normalize(self.codebook.float(), dim=1).to(features.device).T).argmax(1)


@contextmanager
def _overheard(encoders: Encoders, layers: tuple[str, str]) -> Iterator[tuple[list, list]]:
    """What one layer of the image tower and one of the text tower say while the block runs, an entry a call."""
    towers, kept, found = (encoders.image_encoder, encoders.text_encoder), ([], []), []
    for tower, name in zip(towers, layers, strict=True):
        try:
            found.append(tower.get_submodule(name))
        except AttributeError as error:
            raise ValueError(f"early: {type(tower).__name__} has no layer {name!r}: {error}") from error
    handles = [
        layer.register_forward_hook(lambda _, given, out, said=said: said.append(out))
        for layer, said in zip(found, kept, strict=True)
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _early_means(said: tuple[list, list], mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B, W) of pictures, the mean over places; (B, W') of texts, the mean over words."""
    picture, text = (one[0][0] if isinstance(one[0], tuple) else one[0] for one in said)  # of the first call
    picture = picture.flatten(2).mean(2) if picture.ndim == 4 else picture.mean(1)
    share = mask[..., None].to(text.dtype)  # (B, L, 1)
    return picture, (text * share).sum(1) / share.sum(1).clamp(min=1)


def _early_features(encoders: Encoders, said: tuple[list, list], mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B, D) each, L2-normalised."""
    means = zip(encoders.early, _early_means(said, mask), strict=True)
    image, text = (F.normalize(project(mean).float(), dim=1) for project, mean in means)
    return image, text


@torch.no_grad()
def _add_early(encoders: Encoders, layers: tuple[str, str]) -> None:
    """Projections for the two layers, as wide as these turn out to be; among the encoders, so the teacher has them."""
    was_training, ones = encoders.training, torch.ones(1, 2, dtype=torch.long)
    encoders.eval()
    with _overheard(encoders, layers) as said:
        encoders.image_encoder(torch.zeros(1, 3, 64, 64))
        encoders.text_encoder(0 * ones, ones)
    encoders.train(was_training)
    dim = encoders.image_projection.out_features
    encoders.early = nn.ModuleList(nn.Linear(mean.shape[1], dim, bias=False) for mean in _early_means(said, ones))
