"""The contrastive matrix: which row belongs to which column, asked as a classification.

Every loss here is "logsumexp of a row minus its positive", averaged. The plain form writes the whole
matrix of logits down and leaves the rest to autograd. The tiled form gives the same value and the same
gradient, but looks at one tile at a time, so that a queue of 65,536 keys or a batch of 16,384 pairs costs
megabytes instead of gigabytes. For a small matrix there is nothing to save and the plain form runs:
`tiled=None` decides by size.
"""

import torch
from torch import Tensor

from vlnotes._tiled import QueueRows, RowsAndColumns, softmax_mean, tile_entries
from vlnotes.validate import (
    check_device,
    check_features,
    check_finite,
    check_float,
    check_fraction,
    check_pairs,
    check_temperature,
    wide_dtype,
)


def similarity(x: Tensor, y: Tensor) -> Tensor:
    """Every row of x against every row of y: one matrix product.

    s[i, j] = x[i] · y[j], the cosine where both are L2-normalised

    Args:
        x: (N, D) float, L2-normalised.
        y: (M, D) float, L2-normalised.

    Returns:
        (N, M), in [-1, 1] for normalised rows.

    Raises:
        TypeError: not float tensors.
        ValueError: not matrices of one width on one device, or NaN or infinity among the numbers.

    Notebook: 02_contrastive_matrix, section 1.
    """
    check_features(x, "x")
    check_features(y, "y", width=x.shape[1])
    check_device(x, y, ("x", "y"))
    check_finite(x.float().sum() + y.float().sum(), "similarity", x=x, y=y)
    return x @ y.T  # (N, M)


def soft_cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy against a whole distribution instead of one right answer.

    H(target, prediction) = -Σ_k target_k log softmax(logits)_k, mean over rows

    Args:
        target: (..., K) probabilities, each row sums to 1; detached here.
        logits: (..., K) float.

    Returns:
        Scalar tensor in nats, mean over all rows.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes differ, a target is negative (are the two swapped?), NaN or infinity.

    Equation: ALBEF (Li et al. 2021), the cross-entropy H of equation 2.
    Notebook: 02_contrastive_matrix, section 7.
    """
    check_float(target, "target")
    check_float(logits, "logits")
    if target.shape != logits.shape or target.ndim == 0 or target.numel() == 0:
        raise ValueError(
            "target and logits: expected two tensors of one shape (..., K), not empty; "
            f"got {tuple(target.shape)} and {tuple(logits.shape)}"
        )
    check_device(target, logits, ("target", "logits"))
    target = target.detach()
    loss = -(target * logits.to(wide_dtype(target, logits)).log_softmax(-1)).sum(-1).mean()
    check_finite(loss, "soft_cross_entropy", target=target, logits=logits)
    sums = target.float().sum(-1)
    if bool((target < 0).any()) or not bool(((sums - 1).abs() < 0.02).all()):
        raise ValueError(
            f"target: expected rows of probabilities, got values down to {float(target.min()):.3g} and row sums "
            f"from {float(sums.min()):.3g} to {float(sums.max()):.3g}; target comes first, logits second"
        )
    return loss


def distillation_targets(teacher_logits: Tensor, distill_weight: float, positives: Tensor | None = None) -> Tensor:
    """Targets between certainty and the teacher's opinion: what the teacher finds similar gets a share.

    distill_weight · softmax(teacher_logits) + (1 - distill_weight) · hard

    `hard` is one-hot on the diagonal: the batch's own teacher features stand first, the queue behind them.
    With `positives` it is spread evenly over the columns marked there.

    Args:
        teacher_logits: (B, K) float with K >= B, cosines already divided by the temperature; detached here.
        distill_weight: in [0, 1]; 0 gives the hard targets, ALBEF ramps it up to 0.4.
        positives: (B, K) bool, where a row has several right answers, such as all captions of one picture.

    Returns:
        (B, K), rows sum to 1, without gradient.

    Raises:
        TypeError: teacher_logits is not float, positives not bool, distill_weight not a number.
        ValueError: fewer columns than rows, positives of another shape or with an empty row, a weight outside
            [0, 1], NaN or infinity.

    Equation: ALBEF (Li et al. 2021), equation 6, both cross-entropies joined in one target.
    Notebook: 04_albef_itc, section 3.
    """
    check_features(teacher_logits, "teacher_logits")
    check_fraction(distill_weight, "distill_weight")
    rows, columns = teacher_logits.shape
    soft = teacher_logits.detach().to(wide_dtype(teacher_logits)).softmax(1)  # (B, K)
    if positives is None:
        if columns < rows:
            raise ValueError(
                f"teacher_logits: the positive of row i is column i, so expected {rows} columns or more, "
                f"got shape {(rows, columns)}"
            )
        hard = torch.eye(rows, columns, dtype=soft.dtype, device=soft.device)  # (B, K)
    else:
        kind = getattr(positives, "dtype", type(positives).__name__)
        if kind != torch.bool:
            raise TypeError(f"positives: expected a bool tensor, got {kind}")
        if positives.shape != soft.shape:
            raise ValueError(
                f"positives: expected the shape of the logits {(rows, columns)}, got {tuple(positives.shape)}"
            )
        count = positives.sum(1, keepdim=True)  # (B, 1)
        if not bool(count.all()):
            raise ValueError(f"positives: row {int((count == 0).nonzero()[0, 0])} marks no column as right")
        hard = positives.to(soft.dtype) / count  # (B, K)
    check_finite(teacher_logits.float().sum(), "distillation_targets", teacher_logits=teacher_logits)
    return distill_weight * soft + (1 - distill_weight) * hard


def info_nce(
    queries: Tensor,
    keys: Tensor,
    queue: Tensor | None = None,
    *,
    temperature: float | Tensor,
    tiled: bool | None = None,
) -> Tensor:
    """Find your own key among all the others: a classification with one right answer a row.

    mean_i -log( exp(q_i·k_i / t) / (exp(q_i·k_i / t) + Σ_n exp(q_i·n / t)) )

    The negatives n are the rows of the queue where one is given, else the keys of the other rows. Gradient
    flows into the queries and, where they ask for it, into the keys (the end-to-end variant); never into
    the queue.

    Args:
        queries: (B, D) float, L2-normalised.
        keys: (B, D) float, L2-normalised; row i is the positive of query i.
        queue: (K, D) float, L2-normalised, or None; detached here.
        temperature: > 0, divides the cosines; a float or a scalar tensor that learns.
        tiled: True never holds the logits (and has one derivative, not two), False does, None goes by size.

    Returns:
        Scalar tensor in nats, mean over the batch; about log(number of candidates) when untrained.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes or devices that do not match, a bad temperature, one row and no queue, NaN or
            infinity.

    Equation: MoCo (He et al. 2020), equation 1.
    Notebook: 02_contrastive_matrix, section 2.
    """
    check_pairs(queries, keys, ("queries", "keys"))
    check_temperature(temperature)
    if queue is not None:
        check_features(queue, "queue", width=queries.shape[1])
        check_device(queries, queue, ("queries", "queue"))
        queue = queue.detach()
    elif len(queries) < 2:
        raise ValueError("info_nce: a batch of one has no negatives; take 2 rows or more, or give a queue")
    others = keys if queue is None else queue
    tiled = _pays(queries, others) if tiled is None else tiled

    with torch.autocast(queries.device.type, enabled=False):
        x, y = _scaled(queries, keys, temperature)
        positive = (x * y).sum(1)  # (B,)
        if queue is None:
            everyone = RowsAndColumns.apply(x, y, False)[0] if tiled else (x @ y.T).logsumexp(1)  # (B,)
        else:
            negatives = QueueRows.apply(x, queue) if tiled else _queue_rows(x, queue)  # (B,)
            everyone = torch.logaddexp(positive, negatives)  # (B,)
        loss = (everyone - positive).mean()
    check_finite(loss, "info_nce", queries=queries, keys=keys, queue=queue)
    return loss


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    temperature: float | Tensor,
    tiled: bool | None = None,
) -> Tensor:
    """Match every picture to its text and every text to its picture: InfoNCE along rows and along columns.

    ½ (mean_i -log softmax_row(s / t)[i, i] + mean_i -log softmax_column(s / t)[i, i])

    Args:
        image_features: (B, D) float, L2-normalised.
        text_features: (B, D) float, L2-normalised; row i belongs to picture i.
        temperature: > 0, divides the cosines; a float or a scalar tensor that learns.
        tiled: True never holds the logits (and has one derivative, not two), False does, None goes by size.

    Returns:
        Scalar tensor in nats, mean over the batch and both directions; about log B when untrained.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes or devices that do not match, a bad temperature, a single pair, NaN or infinity.

    Equation: CLIP (Radford et al. 2021), Figure 3.
    Notebook: 02_contrastive_matrix, section 4.
    """
    names = ("image_features", "text_features")
    check_pairs(image_features, text_features, names)
    check_temperature(temperature)
    if len(image_features) < 2:
        raise ValueError("clip_loss: a batch of one pair has no negatives; take 2 pairs or more")
    tiled = _pays(image_features, text_features) if tiled is None else tiled

    with torch.autocast(image_features.device.type, enabled=False):
        x, y = _scaled(image_features, text_features, temperature)
        if tiled:
            rows, columns = RowsAndColumns.apply(x, y, True)  # (B,), (B,)
            positive = (x * y).sum(1)  # (B,)
        else:
            logits = x @ y.T  # (B, B), read three ways
            rows, columns, positive = logits.logsumexp(1), logits.logsumexp(0), logits.diagonal()
        loss = ((rows + columns) / 2 - positive).mean()
    check_finite(loss, "clip_loss", image_features=image_features, text_features=text_features)
    return loss


def soft_info_nce(
    queries: Tensor,
    keys: Tensor,
    teacher_queries: Tensor | None = None,
    queue: Tensor | None = None,
    *,
    temperature: float | Tensor,
    distill_weight: float = 0.0,
    ids: Tensor | None = None,
    queue_ids: Tensor | None = None,
    tiled: bool | None = None,
) -> Tensor:
    """InfoNCE with the teacher's opinion in the targets: one direction of ALBEF's ITC.

    mean_i H(target_i, softmax(q_i · [keys; queue] / t)),
    target = distill_weight · softmax(teacher_q_i · [keys; queue] / t) + (1 - distill_weight) · hard

    The logits are linear in the keys, so a target over keys acts like one key, the mean under the target:
    loss_i = logsumexp_k(q_i · k / t) - q_i · Σ_k target_ik k / t. That is why the tiled form never needs the targets.

    Args:
        queries: (B, D) float, L2-normalised; the only ones that get a gradient.
        keys: (B, D) float, L2-normalised teacher features; row i is the positive of query i; detached here.
        teacher_queries: (B, D), the teacher's view of the queries; needed where distill_weight > 0; detached here.
        queue: (K, D) float, L2-normalised, or None; detached here.
        temperature: > 0, divides the cosines; a float or a scalar tensor that learns (by the student's side alone).
        distill_weight: in [0, 1].
        ids: (B,) int64, -1 where unknown; the hard target is then spread evenly over all keys of the same id. None:
            key i alone.
        queue_ids: (K,) int64, -1 where unknown; needed where there are ids and a queue.
        tiled: True never holds the logits (and has one derivative, not two), False does, None goes by size.

    Returns:
        Scalar tensor in nats, mean over the batch.

    Raises:
        TypeError: not float tensors, a weight that is no number.
        ValueError: shapes or devices that do not match, a bad temperature or weight, a missing teacher or missing
            queue ids, one row and no queue, NaN or infinity.

    Equation: ALBEF (Li et al. 2021), equation 6, one direction.
    """
    check_pairs(queries, keys, ("queries", "keys"))
    check_temperature(temperature)
    check_fraction(distill_weight, "distill_weight")
    if distill_weight > 0:
        if teacher_queries is None:
            raise ValueError(f"distill_weight is {distill_weight}, but there are no teacher_queries to distil from")
        check_pairs(queries, teacher_queries, ("queries", "teacher_queries"))
    if queue is not None:
        check_features(queue, "queue", width=queries.shape[1])
        check_device(queries, queue, ("queries", "queue"))
        queue = queue.detach()
    elif len(queries) < 2:
        raise ValueError("soft_info_nce: a batch of one has no negatives; take 2 rows or more, or give a queue")
    same, same_queue = _same_ids(ids, queue_ids, len(queries), None if queue is None else len(queue))
    keys = keys.detach()
    if tiled is None:
        tiled = queue is not None and _pays(queries, queue)

    with torch.autocast(queries.device.type, enabled=False):
        x, y = _scaled(queries, keys, temperature)
        teacher = None
        if distill_weight > 0:
            t = temperature.detach() if isinstance(temperature, Tensor) else temperature
            teacher = _scaled(teacher_queries.detach(), keys, t)[0]  # (B, D)
        if tiled and queue is not None:
            loss = _soft_rows(x, y, teacher, queue, distill_weight, same, same_queue).mean()
        else:
            everyone = y if queue is None else torch.cat([y, queue.to(y.dtype)])  # (B + K, D)
            logits = x @ everyone.T  # (B, B + K)
            positives = None
            if same is not None:
                positives = same if queue is None else torch.cat([same, same_queue], dim=1)
            shape = logits if teacher is None else teacher @ everyone.T
            loss = soft_cross_entropy(distillation_targets(shape, distill_weight, positives), logits)
    check_finite(loss, "soft_info_nce", queries=queries, keys=keys, teacher_queries=teacher_queries, queue=queue)
    return loss


def _soft_rows(x, y, teacher, queue, distill_weight, same, same_queue) -> Tensor:
    """The rows of `soft_info_nce`, (B,): logsumexp minus the logit of the mean key under the target."""
    lse = torch.logaddexp((x @ y.T).logsumexp(1), QueueRows.apply(x, queue))  # (B,)
    with torch.no_grad():
        key = y  # (B, D), the mean key
        if same is not None:
            rows, columns = same_queue.nonzero(as_tuple=True)  # few
            key = (same.to(y.dtype) @ y).index_add_(0, rows, queue[columns].to(y.dtype))
            key = key / (same.sum(1) + same_queue.sum(1))[:, None]
        if teacher is not None:
            inside = teacher @ y.T  # (B, B)
            here, there = inside.logsumexp(1), softmax_mean(teacher, queue)
            share = torch.sigmoid(here - there[0])[:, None]  # (B, 1), the batch's part of the teacher's belief
            soft = share * (inside.softmax(1) @ y) + (1 - share) * there[1]
            key = distill_weight * soft + (1 - distill_weight) * key
    return lse - (x * key).sum(1)


def _same_ids(ids, queue_ids, rows: int, queued: int | None) -> tuple[Tensor | None, Tensor | None]:
    """Which keys of the batch (B, B) and of the queue (B, K) have a row's id; None without ids."""
    if ids is None:
        return None, None
    if ids.shape != (rows,):
        raise ValueError(f"ids: expected one a query, shape {(rows,)}, got {tuple(ids.shape)}")
    known = (ids >= 0)[:, None]  # -1 says that nobody knows
    same = ((ids[:, None] == ids) & known).fill_diagonal_(True)
    if queued is None:
        return same, None
    if queue_ids is None or queue_ids.shape != (queued,):
        seen = "none" if queue_ids is None else tuple(queue_ids.shape)
        raise ValueError(f"queue_ids: with ids and a queue, expected one a row of it, shape {(queued,)}, got {seen}")
    return same, (ids[:, None] == queue_ids) & known


def _queue_rows(x: Tensor, queue: Tensor) -> Tensor:
    # A copy, because the queue may move on before backward. The added 0 turns NaN where a key is infinite:
    # such a key can have a logit of -inf, and exp(-inf) = 0 would hide it.
    queue = queue.to(x.dtype, copy=True)
    return (x @ queue.T).logsumexp(1) + 0 * queue.sum()  # (B,)


def _scaled(x: Tensor, y: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Both in one wide dtype, the temperature folded into x, so that autograd derives its gradient by
    itself."""
    dtype = wide_dtype(x, y)
    if isinstance(temperature, Tensor):
        temperature = temperature.reshape(())
    return x.to(dtype) / temperature, y.to(dtype)


def _pays(x: Tensor, y: Tensor) -> bool:
    """Whether the logits outgrow a tile: from there on the tiled form is the quicker one, too."""
    return len(x) * len(y) > tile_entries(x)
