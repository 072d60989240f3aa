"""Which samples a training step sees, and the batches of data that lies in memory."""

from collections.abc import Callable

import torch
from torch import Tensor

Batch = dict[str, Tensor]


def epoch_indices(step: int, count: int, batch_size: int, seed: int = 0) -> Tensor:
    """Which samples step `step` sees, when every epoch is a fresh shuffle and its ragged end is dropped.

    Args:
        step: number of the training step, from 0.
        count: number of samples; at least `batch_size`.
        batch_size: B.
        seed: of the shuffles.

    Returns:
        (B,) int64 indices, a pure function of the arguments.

    Raises:
        ValueError: fewer samples than one batch holds.
    """
    if count < batch_size:
        raise ValueError(f"{count} samples do not fill one batch of {batch_size}; ask for a smaller batch_size")
    per_epoch = count // batch_size
    epoch, at = divmod(step, per_epoch)
    shuffle = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return shuffle[at * batch_size : (at + 1) * batch_size]


def pair_batches(
    images: Tensor,
    tokens: dict[str, Tensor],
    owner: Tensor,
    batch_size: int = 128,
    seed: int = 0,
    *,
    together: int = 1,
) -> Callable[[int], Batch]:
    """Batches of pictures with one random caption each, from tensors in memory.

    Args:
        images: (N, 3, H, W) uint8.
        tokens: input_ids and attention_mask, each (M, L), of all captions.
        owner: (M,) int64, the picture that each caption belongs to; every picture has at least one.
        batch_size: B.
        seed: of the shuffles and of the choice among a picture's captions.
        together: so many pictures in a row are never parted: 2 for a scene and its neighbour, see
            `world.beside_neighbours`. It divides N and B.

    Returns:
        A function step -> dict(image (B, 3, H, W), input_ids (B, L'), attention_mask (B, L'), ids (B,)), with L'
        the length of the longest caption in the batch.

    Raises:
        ValueError: a picture without a caption, shapes that do not fit, groups that do not fill pictures or batches.
    """
    if together < 1 or len(images) % together or batch_size % together:
        raise ValueError(
            f"together is {together}; expected a divisor of {len(images)} pictures and of batches of {batch_size}"
        )
    if tokens["input_ids"].shape[0] != owner.shape[0]:
        raise ValueError(f"{tokens['input_ids'].shape[0]} tokenised captions but {owner.shape[0]} owners")
    if owner.numel() and not 0 <= int(owner.min()) <= int(owner.max()) < len(images):
        raise ValueError(
            f"owner runs from {int(owner.min())} to {int(owner.max())}; expected pictures 0 to {len(images) - 1}"
        )
    order = torch.argsort(owner, stable=True)
    counts = torch.bincount(owner, minlength=len(images))
    if len(counts) != len(images) or counts.min() == 0:
        lonely = (counts[: len(images)] == 0).nonzero().flatten()[:5].tolist()
        raise ValueError(f"every one of the {len(images)} pictures needs a caption; without one: {lonely}")
    first = counts.cumsum(0) - counts

    def batch_at(step: int) -> Batch:
        groups = epoch_indices(step, len(images) // together, batch_size // together, seed)
        ids = (groups[:, None] * together + torch.arange(together)).flatten()  # (B,)
        dice = torch.Generator().manual_seed(seed * 7_368_787 + step)
        which = (torch.rand(batch_size, generator=dice) * counts[ids]).long()
        caption = order[first[ids] + which]  # (B,)
        return trim_padding({"image": images[ids], "ids": ids, **{name: t[caption] for name, t in tokens.items()}})

    return batch_at


def trim_padding(batch: Batch) -> Batch:
    """Cut the padding at the end that all captions of a batch share: it costs time and says nothing.

    Args:
        batch: with attention_mask (B, L), and other tensors of the same shape; without a mask nothing happens.

    Returns:
        The batch with all of these cut after the last column that holds a token, (B, L').
    """
    mask = batch.get("attention_mask")
    if mask is None or not bool(mask.any()):
        return batch
    used = int(mask.any(0).nonzero().max()) + 1
    same = {name for name, value in batch.items() if isinstance(value, Tensor) and value.shape == mask.shape}
    return {name: value[:, :used] if name in same else value for name, value in batch.items()}
