"""Sums over a matrix of logits that is never held: one tile at a time, with the gradient.

Two forms, because two things are known at different times. Against a queue only the rows matter, so the
gradient is made in the same pass. Between two batches the columns matter too, and a column is complete
only after the last tile, so each tile is computed a second time for the gradient. Both can be
differentiated once, not twice: the gradient is made by hand and has no graph of its own.
"""

import torch
from torch import Tensor


def tile_entries(x: Tensor) -> int:
    """Logits in one tile: few enough for the cache of a CPU (measured), enough to keep a GPU busy."""
    return 2**19 if x.device.type == "cpu" else 2**24


def _parts(x: Tensor, side: int) -> list[slice]:
    """The rows of x, cut so that each part makes one tile whose other side is that long."""
    step = max(128, tile_entries(x) // side)  # a thinner tile makes a slow product
    return [slice(start, min(start + step, len(x))) for start in range(0, len(x), step)]


def _only_once() -> None:
    """Refuse `create_graph=True`. A second derivative would miss the softmax, and nothing would tell."""
    if torch.is_grad_enabled():
        raise RuntimeError("a tiled loss has one derivative, not two (create_graph=True): pass tiled=False")


def softmax_mean(x: Tensor, queue: Tensor, mean: bool = True) -> tuple[Tensor, Tensor | None]:
    """logsumexp(x @ queue.T, 1) and softmax(x @ queue.T, 1) @ queue, one part of the queue at a time.

    The softmax needs the sum over all keys, known only at the end. But a running sum of exp(logit - peak) · key
    can be rescaled whenever the peak rises, and divided by the total at last. Without gradient.

    Args:
        x: (B, D) float, divided by the temperature.
        queue: (K, D) float.
        mean: False leaves the second out, which saves half of the products.

    Returns:
        (B,), NaN where a key is infinite, and (B, D) or None.
    """
    peak = x.new_full((len(x), 1), -torch.inf)  # the largest logit so far
    total = torch.zeros_like(peak)  # Σ exp(logit - peak)
    pull = torch.zeros_like(x) if mean else None  # (B, D), Σ exp(logit - peak) · key
    for part in _parts(queue, len(x)):
        keys = queue[part].to(x.dtype)
        weight = x @ keys.T  # (B, tile)
        higher = torch.maximum(peak, weight.amax(1, keepdim=True))
        weight.sub_(higher).exp_()
        fade = peak.sub_(higher).exp_()
        total.mul_(fade).add_(weight.sum(1, keepdim=True))
        if pull is not None:
            pull.mul_(fade).addmm_(weight, keys)
        else:
            total += 0 * keys.sum()  # see below
        peak = higher
    rows = (peak + total.log()).squeeze(1)  # (B,)
    if pull is not None:
        pull.div_(total)
        rows = rows + 0 * pull.sum(1)  # NaN where a key is infinite: exp(-inf) = 0 hides it in the total
    return rows, pull


class QueueRows(torch.autograd.Function):
    """logsumexp(x @ queue.T, 1), the gradient for x made on the way: d lse_i / d x_i = Σ_k softmax_ik queue_k."""

    @staticmethod
    def forward(ctx, x: Tensor, queue: Tensor) -> Tensor:
        rows, pull = softmax_mean(x, queue, ctx.needs_input_grad[0])
        if pull is not None:
            ctx.save_for_backward(pull)
        return rows

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        _only_once()
        (pull,) = ctx.saved_tensors
        return grad[:, None] * pull, None


class RowsAndColumns(torch.autograd.Function):
    """logsumexp of x @ y.T along its rows and, where wanted, along its columns (else None)."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, both: bool) -> tuple[Tensor, Tensor | None]:
        rows = x.new_empty(len(x))
        peak = x.new_full((len(y),), -torch.inf)  # the largest logit of each column so far
        total = torch.zeros_like(peak)  # Σ exp(logit - peak) of each column
        for part in _parts(x, len(y)):
            logits = x[part] @ y.T  # (tile, M)
            rows[part] = logits.logsumexp(1)
            if both:
                higher = torch.maximum(peak, logits.amax(0))
                fade = peak.sub_(higher).exp_()
                total.mul_(fade).add_(logits.sub_(higher).exp_().sum(0))
                peak = higher
        columns = peak + total.log() if both else None
        ctx.save_for_backward(x, y, rows, columns)
        return rows, columns

    @staticmethod
    def backward(ctx, grad_rows: Tensor, grad_columns: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        _only_once()
        x, y, rows, columns = ctx.saved_tensors
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_y = torch.zeros_like(y) if ctx.needs_input_grad[1] else None
        for part in _parts(x, len(y)):
            logits = x[part] @ y.T  # (tile, M)
            pull = (logits - rows[part, None]).exp_().mul_(grad_rows[part, None])  # softmax of the rows
            if columns is not None:
                pull.addcmul_(logits.sub_(columns).exp_(), grad_columns)  # and of the columns
            if grad_x is not None:
                torch.mm(pull, y, out=grad_x[part])
            if grad_y is not None:
                grad_y.addmm_(pull.T, x[part])
        return grad_x, grad_y, None
