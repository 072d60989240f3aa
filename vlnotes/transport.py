"""Optimal transport between the rows and the columns of a cost matrix: IPOT and Sinkhorn.

Every iterate of both is the kernel of the costs, its rows and columns stretched: T = diag(a) exp(-t D / beta) diag(b).
So the matrix needs one multiplication a step, and the stretching stays in two vectors for as long as the numbers allow
(a matrix walks through the cache in tiles, once a step). Now and then both vectors are folded in, and entries below a
floor are lifted onto it: a part in 10^12 of the product of its marginals in float32, in 10^30 in float64. No result
can show that, but without a floor most of a plan would sink into denormal numbers, which are slow, and then to zero.

Where a row of costs spans more than 40 beta (float32) or 500 beta (float64), after the cheapest entry of each row and
then of each column has been subtracted, the kernel itself would fade away. There the same steps are taken with
logarithms, in float64 where the device has it: right for any beta, and several times slower.
"""

import math
import numbers
from typing import NamedTuple

import torch
from torch import Tensor

from vlnotes.validate import check_device, check_finite, check_float

FLOOR = {torch.float32: 1e-12, torch.float64: 1e-30}
SPAN = {torch.float32: 40.0, torch.float64: 500.0}  # exp(-SPAN) times FLOOR is far from the smallest normal number


class Transport(NamedTuple):
    """What was moved from where to where, and what it cost.

    Attributes:
        plan: (..., N, C), not negative, total 1; without gradient. Columns sum to nu exactly, rows to mu nearly.
        value: (...), the sum of plan · cost; its gradient with respect to the cost is the plan.
        row_error: (...), the sum over rows of |row sum - mu|; without gradient.
        iterations: outer steps made (Sinkhorn: iterations), the same for the whole batch.
    """

    plan: Tensor
    value: Tensor
    row_error: Tensor
    iterations: int


def ipot(
    cost: Tensor,
    mu: Tensor | None = None,
    nu: Tensor | None = None,
    *,
    beta: float = 0.5,
    outer: int = 50,
    inner: int = 1,
    tol: float | None = None,
) -> Transport:
    """Walk to the exact optimal transport plan in steps that are each easy: IPOT, the inexact proximal point method.

    T <- argmin over plans of <T, cost> + beta · KL(T | last T), each step by `inner` rounds of
    a = mu / (Q b), b = nu / (Qᵀ a) with Q = exp(-cost / beta) · last T (entry by entry), b carried on between steps

    With many inner rounds, step t is Sinkhorn's plan at epsilon = beta / t: stopping early smooths the plan, going on
    leads to the exact one. Small beta takes longer steps, but one round then solves them less well. Rows and columns
    without mass take no part. The gradient is that of the optimum (envelope theorem): the plan, held fixed; nothing
    flows back through the steps.

    Args:
        cost: (..., N, C) float; leading dimensions are a batch of problems. float16 and bfloat16 are computed in
            float32.
        mu: (N,) or (..., N), the mass of the rows; not negative, sums to 1 within 1e-5; detached here. None: 1/N each.
        nu: (C,) or (..., C), the mass of the columns, alike. None: 1/C each.
        beta: > 0, in units of the cost, the length of a step: 0.5 leaves a soft plan after 50 steps on cosine costs,
            0.1 is within some 1e-4 of the optimum.
        outer: most steps to make, 1 or more.
        inner: rounds a step, 1 or more.
        tol: stop once row_error is at most this, in every problem of the batch; None makes all the steps. What the
            dtype cannot resolve counts as reached (four of its epsilons).

    Returns:
        Transport(plan, value, row_error, iterations). Not having reached tol is seen in row_error, never raised.

    Raises:
        TypeError: cost, mu or nu is no float tensor; beta or tol is no number; outer or inner is no whole number.
        ValueError: wrong shapes or devices, an empty problem, a mass that is negative or does not sum to 1, beta, tol,
            outer or inner out of range, NaN or infinity.

    Equation: IPOT (Xie et al. 2019), algorithm 1.
    """
    _check_number(beta, "beta", above=True)
    _check_count(outer, "outer")
    _check_count(inner, "inner")
    if tol is not None:
        _check_number(tol, "tol")
    return _solve("ipot", cost, mu, nu, beta, outer, inner, tol)


def sinkhorn(
    cost: Tensor,
    mu: Tensor | None = None,
    nu: Tensor | None = None,
    *,
    epsilon: float = 0.05,
    iterations: int = 1000,
    tol: float | None = 1e-9,
) -> Transport:
    """The plan that trades cost against entropy: Sinkhorn's scaling of rows and columns in turn.

    argmin over plans of <T, cost> + epsilon · Σ T log T: K = exp(-cost / epsilon), a = mu / (K b), b = nu / (Kᵀ a)

    The entropy stays: the plan is blurred by about epsilon, however long the scaling goes on. `value` is <T, cost>
    without the entropy, so it lies above the optimum; its gradient holds the plan fixed, as for `ipot`.

    Args:
        cost: (..., N, C) float, as for `ipot`.
        mu: (N,) or (..., N), the mass of the rows, as for `ipot`.
        nu: (C,) or (..., C), the mass of the columns, as for `ipot`.
        epsilon: > 0, in units of the cost, the price of order.
        iterations: most rounds to make, 1 or more.
        tol: stop once row_error is at most this, in every problem of the batch; None makes all the rounds. What the
            dtype cannot resolve counts as reached (four of its epsilons).

    Returns:
        Transport(plan, value, row_error, iterations).

    Raises:
        TypeError: as for `ipot`.
        ValueError: as for `ipot`.

    Equation: Cuturi 2013, algorithm 1.
    """
    _check_number(epsilon, "epsilon", above=True)
    _check_count(iterations, "iterations")
    if tol is not None:
        _check_number(tol, "tol")
    return _solve("sinkhorn", cost, mu, nu, epsilon, 1, iterations, tol)


# --- from arguments to a stack of problems --------------------------------------------------------------------------


def _solve(name, cost, mu, nu, beta, outer, inner, tol) -> Transport:
    """Check, flatten the batch, walk, tidy up: what both methods share. Sinkhorn is one step with many rounds."""
    check_float(cost, "cost")
    if cost.ndim < 2 or cost.numel() == 0:
        raise ValueError(f"cost: expected shape (..., rows, columns), not empty, got {tuple(cost.shape)}")
    check_finite(torch.stack(cost.detach().aminmax()), name, cost=cost)
    with torch.no_grad(), torch.autocast(cost.device.type, enabled=False):
        wide = cost.to(torch.promote_types(cost.dtype, torch.float32))
        flat = wide.detach().reshape(-1, *cost.shape[-2:])  # (P, N, C): P problems
        mu = _mass(mu, "mu", wide, wide.shape[:-1]).flatten(0, -2)  # (P, N)
        nu = _mass(nu, "nu", wide, wide.shape[:-2] + wide.shape[-1:]).flatten(0, -2)  # (P, C)
        if tol is not None:
            tol = max(tol, 4 * torch.finfo(wide.dtype).eps)
        plan = torch.empty_like(flat, memory_format=torch.contiguous_format)
        steps = 0
        for group in _groups(flat, together=tol is not None):
            problem = flat[group], mu[group], nu[group]
            made = _scale(*problem, beta, outer, inner, tol, plan[group])
            if made is None:
                made = _scale_logs(*problem, beta, outer, inner, tol, plan[group])
            steps = max(steps, made)
        value, row_error = _finish(plan, flat, mu, nu)
        batch = cost.shape[:-2]
        plan = plan.view(cost.shape)
    value = _Value.apply(wide if not cost.requires_grad else cost.to(wide.dtype), plan, value.view(batch))
    return Transport(plan, value, row_error.view(batch), steps)


def _mass(mass, name, cost, shape) -> Tensor:
    """A marginal as (..., n) in the dtype of the cost; uniform where none was given."""
    size = shape[-1]
    if mass is None:
        return cost.new_full((1,) * (len(shape) == 1) + tuple(shape), 1 / size)
    check_float(mass, name)
    check_device(cost, mass, ("cost", name))
    fits = mass.ndim > 0 and mass.shape[-1] == size and mass.ndim <= len(shape)
    if not fits or any(m not in (1, s) for m, s in zip(mass.shape[-2::-1], shape[-2::-1], strict=False)):
        raise ValueError(
            f"{name}: expected shape {(size,)} or {tuple(shape)} for a cost of shape {tuple(cost.shape)}, "
            f"got {tuple(mass.shape)}; mu is the mass of the rows, nu that of the columns"
        )
    mass = mass.detach()
    total = mass.to(_wide(mass)).sum(-1)
    check_finite(total, name, **{name: mass})
    if bool((mass < 0).any()):
        raise ValueError(f"{name}: a mass cannot be negative, got values down to {float(mass.min()):.3g}")
    if bool(((total - 1).abs() > 1e-5).any()):
        worst = float(total.flatten()[(total.flatten() - 1).abs().argmax()])
        raise ValueError(f"{name}: expected masses that sum to 1, got a sum of {worst:.6g}; divide by the sum")
    mass = mass.to(cost.dtype).expand(shape)
    return mass[None] if mass.ndim == 1 else mass


def _wide(x: Tensor) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _check_number(value, name: str, above: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a plain number, got {type(value).__name__}")
    if not (math.isfinite(value) and (value > 0 if above else value >= 0)):
        raise ValueError(f"{name}: expected a finite number {'above 0' if above else 'of 0 or more'}, got {value:g}")


def _check_count(value, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected 1 or more, got {value}")


# --- tiles ------------------------------------------------------------------------------------------------------------


def _tile_entries(x: Tensor) -> int:
    """Few enough that two tiles stay in the cache of a core, enough to keep a GPU busy."""
    return 2**16 * torch.get_num_threads() if x.device.type == "cpu" else 2**22


def _groups(cost: Tensor, together: bool) -> list[slice]:
    """Problems that walk side by side: all where they stop together or a GPU wants work, else as many as fit a tile."""
    if together or cost.device.type != "cpu":
        return [slice(0, len(cost))]
    size = max(1, _tile_entries(cost) // cost[0].numel())
    return [slice(start, start + size) for start in range(0, len(cost), size)]


def _parts(cost: Tensor) -> list[tuple[slice, slice]]:
    """(problems, rows) of every tile: several whole problems where they are small, else some rows of one."""
    problems, rows, columns = cost.shape
    entries = _tile_entries(cost)
    if rows * columns <= entries:
        size = max(1, entries // (rows * columns))
        return [(slice(start, start + size), slice(0, rows)) for start in range(0, problems, size)]
    size = max(1, entries // columns)
    return [(slice(p, p + 1), slice(i, i + size)) for p in range(problems) for i in range(0, rows, size)]


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """(p, n, c) times (p, c) -> (p, n). One problem alone takes the quicker road."""
    if len(matrix) == 1:
        return torch.mv(matrix[0], vector[0])[None]
    return torch.bmm(matrix, vector[:, :, None])[:, :, 0]


# --- the walk ---------------------------------------------------------------------------------------------------------


def _scale(cost, mu, nu, beta, outer, inner, tol, plan) -> int | None:
    """All steps with plain numbers; writes the plan, its columns still off by rounding.

    T_ij = mu_i a_i R_ij w_j nu_j, where R is held in `plan` and starts as ones. A step multiplies R by the kernel,
    then makes the rows right for the column weights v, then the columns. v carries b on from the last step: with
    b_new = (new column factor) / (old one), the next guess is new² / old, an extrapolation of the column factors.

    Returns:
        Steps made (rounds, where outer is 1), or None where the kernel fades or a number overflowed.
    """
    parts = _parts(cost)
    kernel, shift, span = _kernel(cost, mu, nu, beta, parts, out=plan if outer == 1 else torch.empty_like(plan))
    if not span <= SPAN[cost.dtype]:
        return None
    fold = max(
        1, min(outer, int(SPAN[cost.dtype] / max(span, 1e-9)))
    )  # this many steps keep R above the floor's square
    floor = FLOOR[cost.dtype]
    if outer > 1:
        plan.fill_(1)
    tiles = [(plan[p, i], kernel[p, i], mu[p, i], p, i) for p, i in parts]
    v = torch.where(nu > 0, (-shift).exp(), 0)  # (P, C)
    before = 1 / nu  # T starts as ones, so its column factors are 1 = nu · before
    a, w = torch.ones_like(mu), torch.ones_like(nu)
    rounds, error = 0, None
    for step in range(1, outer + 1):
        ready = None  # row sums, where the last check has made them already
        for turn in range(inner):
            columns = torch.zeros_like(nu)
            for R, G, mass, p, i in tiles:
                if turn == 0 and outer > 1:
                    R.mul_(G)
                rows = _times(R, v[p]) if ready is None else ready[p, i]
                a[p, i] = rows.reciprocal_()
                columns[p] += _times(R.mT, mass * a[p, i])
            w = columns.reciprocal_()
            v = nu * w
            rounds += 1
            if tol is not None and (outer == 1 or turn == inner - 1):
                ready = torch.empty_like(mu)
                for R, _, _, p, i in tiles:
                    ready[p, i] = _times(R, v[p])
                error = ((a * ready - 1).abs() * mu).sum(-1).max()
                if error <= tol:
                    break
        if error is not None and error <= tol:
            break
        if step == outer:
            break
        v = v * (w / before)
        before = w
        if step % fold == 0:
            for R, _, _, p, i in tiles:
                R.mul_(a[p, i, None]).mul_(w[p, None]).clamp_(min=floor)
            v, before = v / w, torch.ones_like(w)
    left, right = mu * a, nu * w
    for R, _, _, p, i in tiles:
        R.mul_(left[p, i, None]).mul_(right[p, None])
    if not bool(plan.sum().isfinite()):
        return None
    return rounds if outer == 1 else step


def _kernel(cost, mu, nu, beta, parts, out) -> tuple[Tensor, Tensor, float]:
    """exp(-(cost - cheapest of its row - cheapest of its column) / beta), the second shift / beta, and how far it spans.

    A shift of a row changes no iterate: the next row factor undoes it. A shift of a column would, as the first b is
    flat; the caller puts it into the first v. Rows and columns without mass are not asked.
    """
    full = bool((mu > 0).all()) and bool((nu > 0).all())
    shift = cost.new_full(nu.shape, torch.inf)
    lowest = torch.empty_like(mu)
    for p, i in parts:
        tile = cost[p, i] if full else cost[p, i].masked_fill((nu[p] == 0)[:, None], torch.inf)
        lowest[p, i] = tile.amin(-1)
        tile = tile - lowest[p, i, None]
        if not full:
            tile.masked_fill_((mu[p, i] == 0)[:, :, None], torch.inf)
        torch.minimum(shift[p], tile.amin(-2), out=shift[p])
    shift[nu == 0] = 0
    span = 0.0
    for p, i in parts:
        tile = torch.sub(cost[p, i], lowest[p, i, None], out=out[p, i]).sub_(shift[p, None]).clamp_(min=0)
        if not full:
            tile.mul_((mu[p, i] > 0)[:, :, None]).mul_((nu[p] > 0)[:, None])
        span = max(span, float(tile.max()) / beta)
        tile.mul_(-1 / beta).exp_()
    return out, shift / beta, span


def _scale_logs(cost, mu, nu, beta, outer, inner, tol, plan) -> int:
    """The same steps with logarithms: T_ij = exp(f_i + g_j - t cost_ij / beta), f and g in float64.

    One exponential an entry: the sum of a column is taken from the rows just made. Only where nearly nothing is left of
    a column is it summed again on its own.
    """
    wide, tiny = _wide(cost), 1e-20
    parts = _parts(cost)
    log_mu, log_nu = mu.to(wide).log(), nu.to(wide).log()  # -inf where there is no mass
    empty, absent = log_mu.isneginf(), log_nu.isneginf()
    v = torch.zeros_like(log_nu).masked_fill_(absent, -torch.inf)
    g, g_before = torch.zeros_like(log_nu), torch.zeros_like(log_nu)
    f = torch.zeros_like(log_mu)
    rounds = 0

    def exponent(p, i, time, columns):  # (p, n, C) float64
        return cost[p, i].to(wide).mul_(-time / beta).add_(columns[p, None])

    def rows_off(time):
        error = torch.zeros_like(f[:, 0])
        for p, i in parts:
            rows = exponent(p, i, time, g).add_(f[p, i, None]).logsumexp(-1)
            error[p] += (rows.exp() - mu[p, i]).abs().masked_fill(empty[p, i], 0).sum(-1)
        return error.max()

    done = False
    for step in range(1, outer + 1):
        for turn in range(inner):
            columns = torch.zeros_like(nu)
            for p, i in parts:
                tile = exponent(p, i, step, v)
                peak = tile.amax(-1, keepdim=True)
                share = tile.sub_(peak).to(cost.dtype).exp_()
                rows = share.sum(-1)
                f[p, i] = log_mu[p, i] - peak[..., 0] - rows.log()
                columns[p] += _times(share.mT, mu[p, i] / rows)
            g = v + log_nu - columns.to(wide).log()
            faint = (columns < tiny) & ~absent
            if bool(faint.any()):
                for q, j in faint.nonzero().tolist():
                    g[q, j] = log_nu[q, j] - (f[q] - step / beta * cost[q, :, j].to(wide)).logsumexp(0)
            g = g.masked_fill_(absent, -torch.inf)
            v = g
            rounds += 1
            if tol is not None and (outer == 1 or turn == inner - 1):
                done = bool(rows_off(step) <= tol)
                if done:
                    break
        if done or step == outer:
            break
        v = (2 * g - g_before).masked_fill_(absent, -torch.inf)
        g_before = g
    for p, i in parts:
        plan[p, i] = exponent(p, i, step, g).add_(f[p, i, None]).exp_().to(plan.dtype)
    return rounds if outer == 1 else step


# --- afterwards -------------------------------------------------------------------------------------------------------


def _finish(plan, cost, mu, nu) -> tuple[Tensor, Tensor]:
    """Columns made exact, then value and row error, summed in float64 tile by tile."""
    wide = _wide(plan)
    parts = _parts(plan)
    columns = torch.zeros_like(nu, dtype=wide)
    for p, i in parts:
        columns[p] += plan[p, i].sum(-2, dtype=wide)
    right = torch.where(columns > 0, nu / columns, 0).to(plan.dtype)
    value, error = torch.zeros_like(columns[:, 0]), torch.zeros_like(columns[:, 0])
    for p, i in parts:
        tile = plan[p, i].mul_(right[p, None])
        error[p] += (tile.sum(-1, dtype=wide) - mu[p, i]).abs().sum(-1)
        value[p] += (tile.to(wide) * cost[p, i].to(wide)).sum((-2, -1))
    return value.to(plan.dtype), error.to(plan.dtype)


class _Value(torch.autograd.Function):
    """<plan, cost>, already summed; the gradient for the cost is the plan."""

    @staticmethod
    def forward(ctx, cost: Tensor, plan: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(plan)
        return value.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (plan,) = ctx.saved_tensors
        return grad[..., None, None] * plan, None, None
