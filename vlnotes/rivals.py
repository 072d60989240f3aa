"""What Mod-X is measured against on a stream: EWC, distilled features, replay. All have the interface of `Continual`.

Plain fine-tuning is `vlnotes.modx.Continual` itself. EWC holds back the weights that the old data leaned on
(Kirkpatrick et al. 2017), distillation holds the features where they were (after Li & Hoiem 2016), replay keeps a few
old pairs. How the paper adapted EWC and LwF to CLIP could not be verified; these are ours.
"""

from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlnotes.clip import CLIP
from vlnotes.modx import NAMES, OLD_NAMES, Continual, WithOld, check_old
from vlnotes.validate import check_finite, check_fraction, check_pairs, check_temperature, check_weight

AT_ONCE = 32  # gradients of single rows that are made side by side


# --- EWC ------------------------------------------------------------------------------------------


def pair_log_likelihood(image_features: Tensor, text_features: Tensor, *, temperature: float | Tensor) -> Tensor:
    """How likely every pair is within its batch, asked from both sides; minus the mean of all is `clip_loss`.

    log p[0, i] = log softmax_row(s / t)[i, i];  log p[1, i] = log softmax_column(s / t)[i, i]

    Args:
        image_features: (B, D) float, L2-normalised.
        text_features: (B, D) float, L2-normalised; row i belongs to picture i.
        temperature: > 0, divides the cosines.

    Returns:
        (2, B) in nats, at most 0: of the texts given the pictures, and of the pictures given the texts.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes or devices that do not match, a single pair, a bad temperature, NaN or infinity.
    """
    check_pairs(image_features, text_features, NAMES)
    check_temperature(temperature)
    if len(image_features) < 2:
        raise ValueError("pair_log_likelihood: a batch of one pair is sure to match; take 2 pairs or more")
    with torch.autocast(image_features.device.type, enabled=False):
        dtype = reduce(torch.promote_types, (image_features.dtype, text_features.dtype), torch.float32)
        logits = image_features.to(dtype) @ text_features.to(dtype).T / temperature  # (B, B)
        found = torch.stack([logits.log_softmax(1).diagonal(), logits.log_softmax(0).diagonal()])
    check_finite(found, "pair_log_likelihood", image_features=image_features, text_features=text_features)
    return found


def fisher(
    model: CLIP, batches: Iterable[dict[str, Tensor]], *, per_row: bool = True, rows: int | None = None
) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher matrix: how much the likelihood of the pairs leans on each weight.

    per row: mean over rows and directions of (∂ log p(pair i | its batch) / ∂θ)²;
    else: mean over batches of (∂ clip_loss / ∂θ)², one backward pass a batch. Opposed rows cancel out in it, so its
    numbers are much smaller, and a weight in front of it must be larger.

    Args:
        model: looked at in eval mode, and put back as it was; its gradients are left alone.
        batches: of the data that must not be forgotten, each image (B, 3, H, W), input_ids and attention_mask (B, L).
        per_row: one gradient a row and direction, 2 B backward passes a batch.
        rows: at most so many rows of each batch are asked, the first ones; None asks all. All stay in the softmax.

    Returns:
        Name -> tensor of the parameter's shape, >= 0, for every parameter that learns.

    Raises:
        ValueError: no batches, rows below 1, a batch of one pair.

    Equation: EWC (Kirkpatrick et al. 2017), the F_i of equation 3.
    """
    if rows is not None and rows < 1:
        raise ValueError(f"rows is {rows}; expected 1 or more, or None for all")
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums, count = {name: torch.zeros_like(p) for name, p in learning.items()}, 0
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        for batch in batches:
            batch = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
            found = pair_log_likelihood(*model.pair_features(batch), temperature=model.temperature)[:, :rows]
            asked = found.flatten() if per_row else -found.mean()[None]  # (2 rows,), or (1,)
            for squares in _squared_gradients(asked, list(learning.values())):
                for name, square in zip(learning, squares, strict=True):
                    sums[name] += square
            count += len(asked)
    finally:
        model.train(was_training)
    if count == 0:
        raise ValueError("fisher: no batches; EWC must see data of the phase that is over: start_phase(batches)")
    return {name: total / count for name, total in sums.items()}


def _squared_gradients(values: Tensor, parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Sums of squared gradients of some values at a time; a parameter that has no part in them gets 0."""
    for part in torch.eye(len(values), dtype=values.dtype, device=values.device).split(AT_ONCE):
        gradients = torch.autograd.grad(
            values, parameters, part, retain_graph=True, is_grads_batched=True, allow_unused=True
        )
        yield [
            torch.zeros_like(p) if g is None else g.square().sum(0) for p, g in zip(parameters, gradients, strict=True)
        ]


def ewc_penalty(weights: Tensor, anchor: Tensor, importance: Tensor) -> Tensor:
    """Springs that hold every weight where it was, each as stiff as its weight was important.

    ½ Σ_k F_k (θ_k - θ*_k)²

    Args:
        weights: any shape, with gradient.
        anchor: the same shape, the weights at the end of the last phase; detached here.
        importance: the same shape, >= 0, from `fisher`; detached here.

    Returns:
        Scalar tensor.

    Raises:
        ValueError: shapes that differ, NaN or infinity.

    Equation: EWC (Kirkpatrick et al. 2017), equation 3, without its λ.
    """
    if not weights.shape == anchor.shape == importance.shape:
        shapes = ", ".join(str(tuple(one.shape)) for one in (weights, anchor, importance))
        raise ValueError(f"ewc_penalty: expected weights, anchor and importance of one shape, got {shapes}")
    penalty = (importance.detach() * (weights - anchor.detach()).square()).sum() / 2
    check_finite(penalty, "ewc_penalty", weights=weights, anchor=anchor, importance=importance)
    return penalty


class EWC(Continual):
    """CLIP on a stream, whose important weights are held back.

    loss = clip + weight · ½ Σ F (θ - θ*)²

    Over several phases there is one anchor, the last phase's end, and F is `keep` · F of before + F of the phase that
    is over. The running statistics of batch norm are no weights and are not held.

    Args:
        current: see `Continual`.
        weight: >= 0, the paper's λ.
        per_row: see `fisher`.
        rows: see `fisher`; the row gradients are its cost.
        batches: how many batches of the phase that is over are looked at, at most.
        keep: in [0, 1], of the importance of earlier phases; 1 forgets none of it.

    Raises:
        TypeError: current is no CLIP.
        ValueError: a negative weight, keep outside [0, 1], rows or batches below 1.

    Equation: EWC (Kirkpatrick et al. 2017), equation 3.
    """

    def __init__(
        self,
        current: CLIP,
        *,
        weight: float = 100.0,
        per_row: bool = True,
        rows: int | None = 16,
        batches: int = 8,
        keep: float = 1.0,
    ):
        check_weight(weight)
        check_fraction(keep, "keep")
        if batches < 1 or (rows is not None and rows < 1):
            raise ValueError(f"expected rows and batches of 1 or more (rows may be None, all); got {rows}, {batches}")
        super().__init__(current, weight=weight, per_row=per_row, rows=rows, batches=batches, keep=keep)
        self.weight, self.per_row, self.asked, self.batches, self.keep = weight, per_row, rows, batches, keep
        count = len(self._weights())
        self.register_buffer("anchor", torch.zeros(count))
        self.register_buffer("importance", torch.zeros(count))

    def start_phase(self, seen: Iterable[dict[str, Tensor]] = ()) -> None:
        """The weights are the new anchor, and `seen` says how important each is.

        Args:
            seen: batches of the phase that is over; the first few are taken.

        Raises:
            ValueError: no batches.
        """
        found = fisher(self.current, islice(seen, self.batches), per_row=self.per_row, rows=self.asked)
        super().start_phase()
        self.importance.mul_(self.keep).add_(torch.cat([one.flatten() for one in found.values()]))
        self.anchor.copy_(self._weights().detach())

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of one batch of the current phase.

        Args:
            batch: image (B, 3, H, W), input_ids (B, L), attention_mask (B, L).

        Returns:
            dict(loss, clip, temperature), and from the second phase on ewc, without its weight; scalars.
        """
        losses = super().forward(batch)
        if int(self.phase) == 0:
            return losses
        penalty = ewc_penalty(self._weights(), self.anchor, self.importance)
        return {**losses, "loss": losses["clip"] + self.weight * penalty, "ewc": penalty}

    def _weights(self) -> Tensor:
        """All weights that learn, in one row, in the order of `fisher`."""
        return torch.cat([p.flatten() for p in self.current.parameters() if p.requires_grad])


# --- distilled features ---------------------------------------------------------------------------


def feature_distillation(
    image_features: Tensor, text_features: Tensor, old_image_features: Tensor, old_text_features: Tensor
) -> Tensor:
    """How far every picture and every text has moved from where the old model put it.

    ½ mean_i (|v_i - v_old,i|² + |w_i - w_old,i|²), which for features of length 1 is 2 minus both mean cosines

    It holds each modality in its place. A turn that both make together changes no similarity, but costs here.

    Args:
        image_features: (B, D) float, L2-normalised, of the current model.
        text_features: (B, D) float, L2-normalised.
        old_image_features: (B, D), the frozen old model's; detached here.
        old_text_features: (B, D), the frozen old model's; detached here.

    Returns:
        Scalar tensor, mean over the batch and sum of both halves, in [0, 4] for normalised features.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes, widths or devices that do not match, NaN or infinity.
    """
    check_pairs(image_features, text_features, NAMES)
    check_pairs(old_image_features, old_text_features, OLD_NAMES)
    check_old(image_features, old_image_features, "feature_distillation")
    four = (image_features, text_features, old_image_features, old_text_features)
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in four), torch.float32)
    v, w, old_v, old_w = (tensor.to(dtype) for tensor in four)
    loss = ((v - old_v.detach()).square() + (w - old_w.detach()).square()).sum(1).mean() / 2
    given = dict(zip((*NAMES, *OLD_NAMES), four, strict=True))
    check_finite(loss, "feature_distillation", **given)
    return loss


class LwF(WithOld):
    """CLIP on a stream, whose features stay near those of the frozen old model, in the manner of LwF.

    loss = clip + weight · feature_distillation

    Args:
        current: see `Continual`.
        weight: >= 0.

    Raises:
        TypeError: current is no CLIP.
        ValueError: a negative weight.
    """

    def __init__(self, current: CLIP, *, weight: float = 1.0):
        check_weight(weight)
        super().__init__(current, weight=weight)
        self.weight = weight

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of one batch of the current phase.

        Args:
            batch: image (B, 3, H, W), input_ids (B, L), attention_mask (B, L).

        Returns:
            dict(loss, clip, temperature), and from the second phase on distilled, without its weight; scalars.
        """
        features = self.current.pair_features(batch)
        losses = self.with_clip(*features)
        if self.old is None:
            return losses
        distilled = feature_distillation(*features, *self.old_features(batch))
        return {**losses, "loss": losses["clip"] + self.weight * distilled, "distilled": distilled}


# --- replay ---------------------------------------------------------------------------------------


class Reservoir(nn.Module):
    """A few pairs of all that went by: after n pairs, each of them is here with the same probability, size / n.

    Args:
        size: how many pairs it holds.
        pixels: side of the pictures.
        length: L, tokens a caption; longer ones are refused, shorter ones padded.
        seed: of the choice, a function of the seed and of how many went by.

    Raises:
        ValueError: a size, side or length below 1.
    """

    def __init__(self, size: int, *, pixels: int, length: int, seed: int = 0):
        super().__init__()
        if min(size, pixels, length) < 1:
            raise ValueError(f"expected size, pixels and length of 1 or more; got {size}, {pixels}, {length}")
        self.seed = seed
        self.register_buffer("image", torch.zeros(size, 3, pixels, pixels, dtype=torch.uint8))
        self.register_buffer("input_ids", torch.zeros(size, length, dtype=torch.int64))
        self.register_buffer("attention_mask", torch.zeros(size, length, dtype=torch.int64))
        self.register_buffer("offered", torch.tensor(0))

    @property
    def filled(self) -> int:
        """How many pairs it holds."""
        return min(int(self.offered), len(self.image))

    @torch.no_grad()
    def offer(self, batch: dict[str, Tensor]) -> None:
        """Let a batch go by; some of its pairs stay, in the place of others.

        Args:
            batch: image (B, 3, H, W) uint8, input_ids and attention_mask (B, L).

        Raises:
            ValueError: pictures that are not uint8 or of another size, captions longer than L.
        """
        image, tokens = batch["image"], {name: batch[name] for name in ("input_ids", "attention_mask")}
        if image.dtype != torch.uint8 or image.shape[1:] != self.image.shape[1:]:
            raise ValueError(
                f"image: the memory holds uint8 pictures of shape {tuple(self.image.shape[1:])}; "
                f"got {image.dtype} of {tuple(image.shape[1:])}"
            )
        length = self.input_ids.shape[1]
        if tokens["input_ids"].shape[1] > length:
            raise ValueError(f"input_ids: the memory holds {length} tokens, got {tokens['input_ids'].shape[1]}")
        tokens = {name: F.pad(rows, (0, length - rows.shape[1])) for name, rows in tokens.items()}
        dice = torch.Generator().manual_seed(self.seed * 7_368_787 + int(self.offered))
        for row in range(len(image)):
            many = int(self.offered)
            place = many if many < len(self.image) else int(torch.randint(many + 1, (1,), generator=dice))
            if place < len(self.image):
                self.image[place] = image[row]
                self.input_ids[place], self.attention_mask[place] = (
                    tokens["input_ids"][row],
                    tokens["attention_mask"][row],
                )
            self.offered += 1

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Some of the pairs, each at most once.

        Args:
            count: how many; fewer come where it holds fewer.
            generator: on the CPU.

        Returns:
            dict(image, input_ids, attention_mask).

        Raises:
            ValueError: it is empty.
        """
        if not self.filled:
            raise ValueError("the memory is empty; offer it batches of the phase that is over")
        rows = torch.randperm(self.filled, generator=generator)[:count].to(self.image.device)
        return {name: getattr(self, name)[rows] for name in ("image", "input_ids", "attention_mask")}


class Replay(Continual):
    """CLIP on a stream, with a small memory of old pairs in every batch.

    loss = clip_loss of the batch and `count` old pairs as one batch, so that old and new are told apart, too

    Args:
        current: see `Continual`.
        memory: pairs that are kept, drawn evenly from all that `start_phase` was shown; the memory is uint8 pictures.
        count: R, old pairs that join each batch.
        pixels: side of the pictures.
        length: L, tokens a caption.
        memory_seed: of the memory and of what is drawn from it.

    Raises:
        TypeError: current is no CLIP.
        ValueError: a number below 1.
    """

    def __init__(
        self,
        current: CLIP,
        *,
        memory: int = 200,
        count: int = 32,
        pixels: int = 64,
        length: int = 40,
        memory_seed: int = 0,
    ):
        if count < 1:
            raise ValueError(f"count is {count}; expected 1 or more old pairs in a batch")
        own = {"memory": memory, "count": count, "pixels": pixels, "length": length, "memory_seed": memory_seed}
        super().__init__(current, **own)
        self.count, self.memory_seed = count, memory_seed
        self.memory = Reservoir(memory, pixels=pixels, length=length, seed=memory_seed)
        self.register_buffer("steps", torch.tensor(0))  # training steps made; seeds what is drawn next

    def start_phase(self, seen: Iterable[dict[str, Tensor]] = ()) -> None:
        """All of `seen` goes by the memory.

        Args:
            seen: batches of the phase that is over; every picture once, so that all have the same chance.

        Raises:
            ValueError: no batches, or what `Reservoir.offer` refuses.
        """
        before = int(self.memory.offered)
        for batch in seen:
            self.memory.offer(batch)
        if int(self.memory.offered) == before:
            raise ValueError("Replay: no batches; it must see the phase that is over: start_phase(batches)")
        super().start_phase()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of one batch of the current phase, with old pairs from the second phase on.

        Args:
            batch: image (B, 3, H, W) uint8, input_ids (B, L), attention_mask (B, L).

        Returns:
            dict(loss, clip, temperature), scalars; clip is over B + R pairs and therefore about log(B + R) at first.
        """
        if not self.memory.filled:
            return super().forward(batch)
        dice = torch.Generator().manual_seed(self.memory_seed * 7_368_787 + int(self.steps))
        old = self.memory.draw(self.count, dice)
        if self.training:
            self.steps += 1
        length = max(batch["input_ids"].shape[1], int(old["attention_mask"].sum(1).max()))
        both = {"image": torch.cat([batch["image"], old["image"]])}
        for name in ("input_ids", "attention_mask"):
            padded = F.pad(batch[name], (0, length - batch[name].shape[1]))
            both[name] = torch.cat([padded, old[name][:, :length]])
        return super().forward(both)
