"""Where does the model look? Grad-CAM on cross-attention, word by word, and on plain activations; and is it the
right place?

A map is raw: a small grid of non-negative numbers, not resized, not stretched to [0, 1]. `upsample` resizes, the
scores compare with the truth, `vlnotes.plots.word_maps` draws. The order of work:

    with recording(fusion.layer[2].crossattention) as seen:      # or take the attentions that the model returns
        score = model(...)                                       # (B,), one number a pair
    maps = word_maps(score, seen, grid, text_mask)[0]            # (B, L, h, w)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlnotes.validate import check_device, check_finite, check_float

THRESHOLDS = tuple(k / 20 for k in range(1, 20))
_LEVEL = 1e-9  # numbers this close, as a share of the largest, are level
_CHUNK = 512  # maps that are resized at once


def attention_gradcam(
    attention: Tensor,
    gradient: Tensor,
    grid: tuple[int, int],
    text_mask: Tensor | None = None,
    *,
    class_token: bool = True,
) -> Tensor:
    """Where each word looks, as far as looking there raised the score.

    map[l] = mean over heads of attention[l, 1:] · relu(gradient[l, 1:]), laid out as the grid

    Attention alone says where information came from, the gradient whether more of it would help. Only the gradient is
    clamped: attention is never negative.

    Args:
        attention: (B, heads, L, 1 + P) float, softmax over the last axis; the picture's class token comes first. For
            a picture tower's own attention give the row of its class token, (B, heads, 1, 1 + P).
        gradient: like attention, the derivative of the score by it.
        grid: (h, w) with h * w = P, row by row.
        text_mask: (B, L), 1 or True on tokens, 0 on padding, whose maps become 0; None: all are tokens.
        class_token: False for pictures without one, attention (B, heads, L, P).

    Returns:
        (B, L, h, w), >= 0, not normalised.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes that differ, a grid that does not fit, a mask of another shape, NaN or infinity.

    Equation: ALBEF (Li et al. 2021), section 6.4 and the official code: Grad-CAM (Selvaraju et al. 2017) on attention.
    Notebook: 06_gradcam, section 2.
    """
    _check_like(attention, gradient, "attention", "(B, heads, L, 1 + P)", (4,))
    h, w = _grid(grid)
    first = 1 if class_token else 0
    if attention.shape[-1] != first + h * w:
        expected = f"1 + {h} * {w} = {1 + h * w}" if class_token else f"{h} * {w} = {h * w}"
        raise ValueError(
            f"attention looks at {attention.shape[-1]} places, shape {tuple(attention.shape)}; grid {(h, w)} needs "
            f"{expected}; class_token says whether a class token comes first"
        )
    check_finite(attention.float().sum() + gradient.float().sum(), "attention_gradcam", **_both(attention, gradient))
    attention, gradient = (t[..., first:].to(_wide(t)) for t in (attention, gradient))
    maps = (attention * gradient.relu()).mean(1)  # (B, L, P)
    if text_mask is not None:
        maps = maps * _mask(text_mask, maps.shape[:2]).to(maps)[:, :, None]
    return maps.unflatten(-1, (h, w))


def gradcam(activation: Tensor, gradient: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """Which places of a layer raised the score: features weighted by how much the score wants them.

    weight_c = mean over places of gradient_c        map = relu(Σ_c weight_c activation_c)

    In the last block of a transformer that is pooled by its class token no gradient reaches the other tokens: the map
    is 0 there. Take the block before, or its input.

    Args:
        activation: (B, C, h, w) float of a conv layer, or tokens (B, P, D) or (B, 1 + P, D) with the class token
            first, which is dropped; tokens need `grid`.
        gradient: like activation, the derivative of the score by it.
        grid: (h, w) with h * w = P, for tokens only.

    Returns:
        (B, h, w), >= 0, not normalised.

    Raises:
        TypeError: not float tensors.
        ValueError: shapes that differ, tokens without a grid or with one that does not fit, NaN or infinity.

    Equation: Grad-CAM (Selvaraju et al. 2017), equations 1 (the weights) and 2 (the map).
    Notebook: 06_gradcam, section 3.
    """
    _check_like(activation, gradient, "activation", "(B, C, h, w) or tokens (B, P, D)", (3, 4))
    if activation.ndim == 4:
        if grid is not None:
            raise ValueError(f"activation {tuple(activation.shape)} has a grid of its own; leave out grid={grid}")
        h, w = activation.shape[2:]
        activation, gradient = (t.flatten(2) for t in (activation, gradient))  # (B, C, P)
    else:
        if grid is None:
            raise ValueError(f"activation {tuple(activation.shape)} are tokens; say how they lie: grid=(h, w)")
        h, w = _grid(grid)
        first = activation.shape[1] - h * w
        if first not in (0, 1):
            raise ValueError(
                f"activation has {activation.shape[1]} tokens, shape {tuple(activation.shape)}; grid {(h, w)} needs "
                f"{h * w}, or {h * w + 1} with a class token"
            )
        activation, gradient = (t[:, first:].mT for t in (activation, gradient))  # (B, D, P)
    weight = gradient.mean(2, dtype=_wide(gradient))  # (B, C)
    maps = torch.einsum("bc,bcp->bp", weight, activation.to(weight.dtype))
    # before the relu: it would turn minus infinity into 0
    check_finite(maps.float().sum(), "gradcam", activation=activation, gradient=gradient)
    return maps.relu().unflatten(1, (h, w))


def gradients(score: Tensor, tensors: Sequence[Tensor], *, keep_graph: bool = False) -> tuple[Tensor, ...]:
    """How the score of each pair changes with tensors inside the model: one backward pass, no deeper than they lie.

    Nothing before the earliest of the tensors is visited, and no parameter gets a gradient.

    Args:
        score: (B,), one number a pair, such as the logit "belongs together". Pair i's must depend on row i alone.
        tensors: attentions or activations that the score was computed from.
        keep_graph: True allows another backward pass through the same score.

    Returns:
        The derivatives, in step with the tensors and of their shapes.

    Raises:
        TypeError: score or a tensor is no float tensor (a model with fused attention returns None).
        ValueError: a score that is not (B,), no tensors, one without a graph, one that the score does not depend on.
    """
    check_float(score, "score")
    if score.ndim != 1 or not score.numel():
        raise ValueError(f"score has shape {tuple(score.shape)}; expected (B,), one number a pair")
    if isinstance(tensors, Tensor) or not len(tensors):
        raise ValueError("tensors: expected a list of tensors to look at, with one at least")
    for at, tensor in enumerate(tensors):
        if tensor is None:
            raise TypeError(f"tensor {at} is None: fused attention keeps no map; use attn_implementation='eager'")
        check_float(tensor, f"tensor {at}")
        if not tensor.requires_grad:
            raise ValueError(
                f"tensor {at} has no graph, so the score cannot be derived by it: run the model with gradients on; "
                "where all its weights are frozen, use `recording`, or give it inputs that require a gradient"
            )
    if not score.requires_grad:
        raise ValueError("score has no graph: compute it with gradients on, outside torch.no_grad()")
    found = torch.autograd.grad(score.sum(), list(tensors), retain_graph=keep_graph, allow_unused=True)
    for at, (tensor, gradient) in enumerate(zip(tensors, found, strict=True)):
        if gradient is None:
            raise ValueError(
                f"tensor {at}, shape {tuple(tensor.shape)}: the score does not depend on it; "
                "is it a copy, or from another forward pass?"
            )
    return found


def word_maps(
    score: Tensor,
    attentions: Sequence[Tensor],
    grid: tuple[int, int],
    text_mask: Tensor | None = None,
    *,
    class_token: bool = True,
    keep_graph: bool = False,
) -> list[Tensor]:
    """`attention_gradcam` of several layers for one backward pass down to the earliest of them.

    Run the model in evaluation mode: dropout would make holes. Picture tokens that carry no graph are enough, so the
    picture tower may run under `torch.no_grad()`.

    Args:
        score: (B,), one number a pair, from the attentions given here.
        attentions: of each layer that is asked for, (B, heads, L, 1 + P).
        grid: (h, w) with h * w = P.
        text_mask: (B, L), 1 on tokens and 0 on padding; None: all are tokens.
        class_token: False for pictures without one.
        keep_graph: True allows another backward pass through the same score.

    Returns:
        One (B, L, h, w) a layer, without graph.

    Raises:
        TypeError, ValueError: as `gradients` and `attention_gradcam`.
    """
    found = gradients(score, attentions, keep_graph=keep_graph)
    return [
        attention_gradcam(attention.detach(), gradient, grid, text_mask, class_token=class_token)
        for attention, gradient in zip(attentions, found, strict=True)
    ]


def word_maps_of(
    forward: Callable[[], tuple[Tensor, Sequence[Tensor]]],
    grid: tuple[int, int],
    text_mask: Tensor | None = None,
    *,
    layers: Sequence[int] | None = None,
    class_token: bool = True,
) -> list[Tensor]:
    """`word_maps` of anything that can be called: one forward pass, one backward pass, the graph is gone afterwards.

    Args:
        forward: called without arguments, gradients on; returns score (B,) and the attentions of all layers. With a
            transformers model: `output_attentions=True`, and `cross_attentions` of what it returns.
        grid: (h, w) with h * w = P.
        text_mask: (B, L), 1 on tokens and 0 on padding; None: all are tokens.
        layers: which of the attentions, negative ones from the end; None: all.
        class_token: False for pictures without one.

    Returns:
        One (B, L, h, w) for each of the layers.

    Raises:
        TypeError, ValueError: as `word_maps`, and a layer that is not there.
    """
    with torch.enable_grad():
        score, attentions = forward()
        layers = range(len(attentions)) if layers is None else layers
        for layer in layers:
            if not -len(attentions) <= layer < len(attentions):
                raise ValueError(f"there is no layer {layer}; forward returned the attentions of {len(attentions)}")
        picked = [attentions[layer] for layer in layers]
        return word_maps(score, picked, grid, text_mask, class_token=class_token)


@contextmanager
def recording(*modules: nn.Module) -> Iterator[list[Tensor]]:
    """Keep what chosen modules return while the block runs, so that a score can be derived by it.

    Of a module that returns (output, attention), as attention modules of transformers do, the attention is kept; of
    any other its output. Where nothing up to the module asks for a gradient, such as a frozen model, its graph starts
    at the module's inputs.

    Args:
        modules: parts of the model, such as a cross-attention or a conv layer.

    Yields:
        A list that fills up in the order in which the modules are called.

    Raises:
        TypeError: a module that returns no attention (fused attention keeps none) or something else than a tensor.
        ValueError: no modules.
    """
    if not modules:
        raise ValueError("recording: name at least one module to look at")
    seen: list[Tensor] = []

    def wake(module: nn.Module, args: tuple, kwargs: dict):
        given = [t for t in (*args, *kwargs.values(), *module.parameters()) if _is_float(t)]
        if not torch.is_grad_enabled() or any(t.requires_grad for t in given):
            return None
        args, kwargs = tuple(map(_leaf, args)), {name: _leaf(value) for name, value in kwargs.items()}
        return args, kwargs

    def keep(module: nn.Module, args: tuple, output):
        kept = output[1] if isinstance(output, tuple) and len(output) > 1 else output
        if not _is_float(kept):
            raise TypeError(
                f"{type(module).__name__} returned {type(kept).__name__} where a tensor was to be kept; an attention "
                "module keeps its map only with attn_implementation='eager'"
            )
        seen.append(kept)

    handles = [module.register_forward_pre_hook(wake, with_kwargs=True) for module in modules]
    handles += [module.register_forward_hook(keep) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def sentence_map(
    maps: Tensor,
    text_mask: Tensor | None = None,
    *,
    tokens: str = "all",
    divide: str = "true",
) -> Tensor:
    """One map for the whole sentence: the mean of the maps of its tokens.

    ALBEF's official code divides by the padded length, so that the same sentence gets a fainter map in a batch with a
    longer one; `divide="padded"` does that.

    Args:
        maps: (B, L, h, w).
        text_mask: (B, L), 1 on tokens and 0 on padding; None: all are tokens.
        tokens: which tokens count: "all" that are no padding, as the official code; "words" leaves out the first and
            the last of them, [CLS] and [SEP].
        divide: by the number of tokens that count, "true", or by L, "padded".

    Returns:
        (B, h, w); 0 where no token counts.

    Raises:
        TypeError: maps are no float tensor.
        ValueError: another shape, another word for `tokens` or `divide`, NaN.
    """
    check_float(maps, "maps")
    if maps.ndim != 4:
        raise ValueError(f"maps has shape {tuple(maps.shape)}; expected (B, L, h, w)")
    if tokens not in ("all", "words") or divide not in ("true", "padded"):
        raise ValueError(f"expected tokens 'all' or 'words' and divide 'true' or 'padded', got {tokens!r}, {divide!r}")
    b, length = maps.shape[:2]
    count = torch.ones(b, length, dtype=torch.bool, device=maps.device)
    if text_mask is not None:
        count = _mask(text_mask, (b, length)).to(maps.device)
    if tokens == "words":
        number = count.cumsum(1)  # 1 for the first true token, then 2, ...
        count = count & (number > 1) & (number < number[:, -1:])
    total = torch.einsum("bl,blhw->bhw", count.to(maps), maps)
    check_finite(total.float().sum(), "sentence_map", maps=maps)
    by = count.sum(1).clamp(min=1) if divide == "true" else torch.full((b,), length, device=maps.device)
    return total / by[:, None, None]


def span_tokens(offsets: Tensor, rows: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """Which tokens belong to a word or a phrase: those that share a character with it.

    Args:
        offsets: (B, L, 2) integers, where each token starts and ends in its text, as a transformers tokenizer gives
            them with `return_offsets_mapping=True`; (0, 0) for [CLS], [SEP] and padding.
        rows: (N,) integers, in which text each span lies.
        spans: N pairs (start, end) of characters.

    Returns:
        (N, L) bool; an empty row where a text was cut before the word.

    Raises:
        ValueError: offsets of another shape, rows and spans that are not as many.
    """
    offsets, rows = torch.as_tensor(offsets), torch.as_tensor(rows)
    if offsets.ndim != 3 or offsets.shape[-1] != 2:
        raise ValueError(f"offsets has shape {tuple(offsets.shape)}; expected (B, L, 2), start and end of each token")
    if rows.shape != (len(spans),):
        raise ValueError(f"rows {tuple(rows.shape)} for {len(spans)} spans; expected one row a span")
    start, end = offsets[rows].unbind(-1)  # (N, L) each
    ends = torch.tensor([tuple(span)[:2] for span in spans], device=offsets.device).view(-1, 2)
    return (start < ends[:, 1:]) & (end > ends[:, :1])


def span_maps(maps: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """One map a word or phrase: the mean of the maps of its tokens.

    Args:
        maps: (B, L, h, w).
        rows: (N,) integers, in which text each word lies.
        tokens: (N, L) bool, from `span_tokens`.

    Returns:
        (N, h, w).

    Raises:
        ValueError: shapes that do not fit, or a word without a token.
    """
    rows = torch.as_tensor(rows, device=maps.device)
    if maps.ndim != 4 or tokens.shape != (len(rows), maps.shape[1]):
        raise ValueError(
            f"maps {tuple(maps.shape)}, rows {tuple(rows.shape)}, tokens {tuple(tokens.shape)}; "
            "expected (B, L, h, w), (N,), (N, L)"
        )
    count = tokens.sum(1)
    if not bool(count.all()):
        missing = (count == 0).nonzero().flatten().tolist()
        raise ValueError(f"{len(missing)} words have no token (was the text cut?), the first: {missing[:5]}")
    share = tokens.to(maps) / count.to(maps)[:, None]
    return torch.einsum("nl,nlhw->nhw", share, maps[rows])


def upsample(maps: Tensor, size: int | tuple[int, int], *, centre: float | None = None) -> Tensor:
    """Resize maps to the pixels of a picture, bilinear.

    Where does the value of a cell stand? A patch of a transformer speaks for its own pixels, so at their middle. In a
    conv net with strides a cell sees pixels around the first of its square (a 3x3 convolution of stride 2, padded by 1,
    looks around input 2k), and training may favour things that sit elsewhere in what it sees.

    Args:
        maps: (..., h, w) float.
        size: pixels a side, or (H, W).
        centre: where in its square a cell's value stands, as a share of the side, down and to the right alike. Beyond
            the outermost values a map fades, reaching 0 a cell further on. None: the plain resize, values in the middle
            of their squares, and beyond the outermost ones the map goes on level.

    Returns:
        (..., H, W).

    Raises:
        TypeError: maps are no float tensor.
        ValueError: fewer than two axes, a size below 1, or a centre outside [0, 1].
    """
    check_float(maps, "maps")
    size = (size, size) if isinstance(size, int) else tuple(size)
    if maps.ndim < 2 or not maps.numel() or len(size) != 2 or min(size) < 1:
        raise ValueError(f"maps {tuple(maps.shape)} and size {size}; expected (..., h, w) and two numbers from 1 on")
    if centre is None:
        flat = maps.reshape(1, -1, *maps.shape[-2:])
        return F.interpolate(flat, size=size, mode="bilinear", align_corners=False).view(*maps.shape[:-2], *size)
    if not 0 <= centre <= 1:
        raise ValueError(f"centre is {centre}; expected a share of a cell's side, in [0, 1]")
    down, along = (_between(n, pixels, centre).to(maps) for n, pixels in zip(maps.shape[-2:], size, strict=True))
    return down @ maps @ along.T


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Does the strongest point of the map, resized to the mask, lie on the object?

    Points that share the maximum count by the share of them that lies inside, as if a coin chose one. So a constant
    map scores the object's share of the picture, which is chance. A coarse grid has a ceiling below 1: the middle of a
    cell may miss a small or hollow object that fills the cell best.

    Args:
        maps: (N, h, w) float, of any resolution.
        masks: (N, H, W) bool, True on the object.

    Returns:
        (N,) float64 in [0, 1]; 1 is a hit.

    Raises:
        TypeError: maps are not float, masks not bool.
        ValueError: shapes that do not fit, an empty mask, NaN or infinity.

    Equation: Zhang et al. 2018 (excitation backprop), the pointing game, without their margin of 15 pixels.
    Notebook: 06_gradcam, section 4.
    """

    def score(part: Tensor, inside: Tensor) -> Tensor:
        level = part >= part.amax((1, 2), keepdim=True) - _slack(part)
        return (level & inside).sum((1, 2)).double() / level.sum((1, 2))

    return _scored(maps, masks, score)


def best_iou(maps: Tensor, masks: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> Tensor:
    """Cut the map off where it fits the object best: intersection over union at the best of several thresholds.

    The threshold is chosen for every map with the truth in hand, so this is how good the map could be cut, not how
    good it is cut. One threshold for all: `iou(...).mean(0).max()`.

    Args:
        maps: (N, h, w) float, of any resolution.
        masks: (N, H, W) bool, True on the object.
        thresholds: in [0, 1], between the smallest (0) and the largest (1) value of a map.

    Returns:
        (N,) float64 in [0, 1]; a constant map gets the object's share of the picture.

    Raises:
        TypeError, ValueError: as `iou`.
    """
    return iou(maps, masks, thresholds).amax(1)


def iou(maps: Tensor, masks: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> Tensor:
    """Intersection over union of the object and what is left of the resized map at each threshold.

    Args:
        maps: (N, h, w) float, of any resolution.
        masks: (N, H, W) bool, True on the object.
        thresholds: in [0, 1], between the smallest (0) and the largest (1) value of a map.

    Returns:
        (N, thresholds) float64 in [0, 1].

    Raises:
        TypeError: maps are not float, masks not bool.
        ValueError: shapes that do not fit, an empty mask, NaN or infinity, thresholds outside [0, 1] or none.
    """
    if not len(thresholds) or not all(0 <= t <= 1 for t in thresholds):
        raise ValueError(f"thresholds: expected numbers in [0, 1], one at least, got {list(thresholds)}")

    steps, order = torch.tensor([float(t) for t in thresholds], dtype=torch.float64).sort()
    bins = len(steps) + 1

    def score(part: Tensor, inside: Tensor) -> Tensor:
        low, high, slack = part.amin((1, 2), keepdim=True), part.amax((1, 2), keepdim=True), _slack(part)
        height = ((part - low + slack) / (high - low)).nan_to_num(torch.inf)  # 0 / 0: a map of zeros
        # every pixel once: how many thresholds it reaches, counted map by map
        reached = torch.bucketize(height.flatten(1), steps.to(part.device), right=True)
        reached += bins * torch.arange(len(part), device=part.device)[:, None]
        counts = [
            torch.bincount(r, minlength=bins * len(part)) for r in (reached[inside.flatten(1)], reached.flatten())
        ]
        both, kept = (count.view(-1, bins).flip(1).cumsum(1).flip(1)[:, 1:] for count in counts)
        either = kept + inside.sum((1, 2))[:, None] - both
        return torch.empty_like(both, dtype=torch.float64).index_copy_(1, order.to(part.device), both.double() / either)

    return _scored(maps, masks, score)


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """How much of the resized map lies on the object: Σ inside / Σ everywhere.

    Args:
        maps: (N, h, w) float, >= 0, of any resolution.
        masks: (N, H, W) bool, True on the object.

    Returns:
        (N,) float64 in [0, 1]; a constant map, 0 everywhere included, gets the object's share of the picture.

    Raises:
        TypeError: maps are not float, masks not bool.
        ValueError: shapes that do not fit, an empty mask, negative values, NaN or infinity.

    Equation: Wang et al. 2020 (Score-CAM), the energy-based pointing game, with masks in place of boxes.
    """
    if isinstance(maps, Tensor) and maps.numel() and bool((maps < 0).any()):
        raise ValueError(f"maps go down to {float(maps.min()):.3g}; energy is a share of what is never negative")

    def score(part: Tensor, inside: Tensor) -> Tensor:
        empty = part.sum((1, 2), keepdim=True) == 0
        part = torch.where(empty, torch.ones_like(part), part)
        return (part * inside).sum((1, 2)) / part.sum((1, 2))

    return _scored(maps, masks, score)


def area_share(masks: Tensor) -> Tensor:
    """Chance: the object's share of the picture, which a random point hits and a constant map scores.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N,) float64 in (0, 1].

    Raises:
        TypeError: masks are not bool.
        ValueError: another shape, or an empty mask.
    """
    return _masks(masks).double().mean((1, 2))


def centre_point(masks: Tensor) -> Tensor:
    """The pointing game of one who always points at the middle of the picture.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N,) float64 in [0, 1]; an even side has two middle pixels, which count half each.

    Raises:
        TypeError: masks are not bool.
        ValueError: another shape, or an empty mask.
    """
    h, w = _masks(masks).shape[1:]
    return masks[:, (h - 1) // 2 : h // 2 + 1, (w - 1) // 2 : w // 2 + 1].double().mean((1, 2))


def localisation(maps: Tensor, masks: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> dict[str, Tensor]:
    """All scores of some maps, and what to read them beside.

    Args:
        maps: (N, h, w) float, >= 0, of any resolution.
        masks: (N, H, W) bool, True on the object.
        thresholds: for `best_iou`.

    Returns:
        {"pointing", "iou", "energy", "chance", "centre"}, each (N,) float64; chance goes with pointing and energy and
        is what a constant map gets in all three, centre goes with pointing.

    Raises:
        TypeError, ValueError: as the single scores.
    """
    return {
        "pointing": pointing_game(maps, masks),
        "iou": best_iou(maps, masks, thresholds),
        "energy": energy_inside(maps, masks),
        "chance": area_share(masks),
        "centre": centre_point(masks),
    }


def score_table(scores: Mapping[str, Tensor], **groups: Sequence) -> list[dict]:
    """Mean scores of each group of maps: `score_table(localisation(maps, masks), role=roles, layer=layers)`.

    Args:
        scores: name -> (N,).
        groups: name -> N labels; maps with the same labels are one row.

    Returns:
        One dict a row, in order of first appearance: the labels, "count", and the mean of every score.

    Raises:
        ValueError: no scores, or scores and labels that are not as many.
    """
    scores = {name: torch.as_tensor(values).double().tolist() for name, values in scores.items()}
    groups = {name: values.tolist() if isinstance(values, Tensor) else list(values) for name, values in groups.items()}
    sizes = {name: len(values) for name, values in (scores | groups).items()}
    if not scores or len(set(sizes.values())) != 1 or set(scores) & set(groups) or "count" in sizes:
        raise ValueError(f"expected scores and labels of one length under different names (not count), got {sizes}")
    members: dict[tuple, list[int]] = {}
    for at in range(next(iter(sizes.values()))):
        members.setdefault(tuple(values[at] for values in groups.values()), []).append(at)
    return [
        dict(zip(groups, labels, strict=True))
        | {"count": len(rows)}
        | {name: sum(values[k] for k in rows) / len(rows) for name, values in scores.items()}
        for labels, rows in members.items()
    ]


def _between(cells: int, pixels: int, centre: float) -> Tensor:
    """(pixels, cells): how much of each cell a pixel takes, of its two neighbours at most, along one side."""
    at = (torch.arange(pixels, dtype=torch.float64) + 0.5) * cells / pixels - centre
    return (1 - (at[:, None] - torch.arange(cells)).abs()).clamp(min=0)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _both(attention: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    return {"attention": attention, "gradient": gradient}


def _is_float(value) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _leaf(value):
    return value.detach().requires_grad_() if _is_float(value) else value


def _check_like(tensor: Tensor, gradient: Tensor, name: str, shape: str, axes: tuple[int, ...]) -> None:
    check_float(tensor, name)
    check_float(gradient, "gradient")
    if tensor.ndim not in axes or not tensor.numel():
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}, not empty")
    if tensor.shape != gradient.shape:
        raise ValueError(
            f"{name} {tuple(tensor.shape)} and gradient {tuple(gradient.shape)} differ in shape; "
            "expected the derivative of the score by each number"
        )
    check_device(tensor, gradient, (name, "gradient"))


def _grid(grid: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(grid, Sequence) or len(grid) != 2 or not all(isinstance(n, int) and n >= 1 for n in grid):
        raise ValueError(f"grid is {grid!r}; expected (h, w), two whole numbers from 1 on")
    return tuple(grid)


def _mask(text_mask: Tensor, shape: tuple[int, int]) -> Tensor:
    text_mask = torch.as_tensor(text_mask)
    if tuple(text_mask.shape) != tuple(shape):
        raise ValueError(f"text_mask has shape {tuple(text_mask.shape)}; expected (B, L) = {tuple(shape)}")
    return text_mask != 0


def _masks(masks: Tensor) -> Tensor:
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool:
        kind = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(f"masks is {kind}; expected a bool tensor (N, H, W)")
    if masks.ndim != 3 or not masks.numel():
        raise ValueError(f"masks has shape {tuple(masks.shape)}; expected (N, H, W), not empty")
    empty = (~masks.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"{len(empty)} masks are empty, the first: {empty[:5]}; there is nothing to find in them")
    return masks


def _slack(part: Tensor) -> Tensor:
    return _LEVEL * part.abs().amax((1, 2), keepdim=True)


def _scored(maps: Tensor, masks: Tensor, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Check, resize a few maps at a time in float64, score them."""
    check_float(maps, "maps")
    masks = _masks(masks)
    if maps.ndim != 3 or not maps.numel() or len(maps) != len(masks):
        raise ValueError(
            f"maps {tuple(maps.shape)} and masks {tuple(masks.shape)}; expected (N, h, w) and (N, H, W), a mask a map"
        )
    check_device(maps, masks, ("maps", "masks"))
    check_finite(maps.float().sum(), "maps", maps=maps)
    parts = zip(maps.detach().split(_CHUNK), masks.split(_CHUNK), strict=True)
    return torch.cat([score(upsample(part.double(), tuple(masks.shape[1:])), inside) for part, inside in parts])
