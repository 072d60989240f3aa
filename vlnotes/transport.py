"""Optimal transport between the rows and the columns of a cost matrix: IPOT and Sinkhorn.

Every iterate of both is the kernel of the costs, its rows and columns stretched: T = diag(a) exp(-t D / beta) diag(b).
So the matrix needs one multiplication a step, and the stretching stays in two vectors for as long as the numbers
allow (a matrix walks through the cache in tiles, once a step). Now and then both vectors are folded in, and entries
below a floor are lifted onto it: a part in 10^18 of the product of its marginals in float32, in 10^150 in float64. No
result shows that, but without a floor most of a plan would sink into denormal numbers, which are slow, and then to
zero.

How the numbers are held is chosen by the span of the costs: the largest entry over beta, after the cheapest entry of
each row and then of each column has been subtracted. Up to 12, plain numbers in the dtype of the cost. Up to 300,
float32 keeps the plan it works on in float64, the kernel in float32 (slower by half). Beyond, the same steps are
taken with logarithms in float64: right for any beta, but several times slower. A device without float64 uses plain
numbers up to 40 and float32 logarithms beyond. Besides the cost, two matrices of its size are held, or three.
"""

import math
import numbers
from typing import NamedTuple

import torch
from torch import Tensor

from vlnotes.validate import check_device, check_finite, check_float

FLOOR = {torch.float32: 1e-18, torch.float64: 1e-150}
FADES = {torch.float32: 40.0, torch.float64: 300.0}  # exp(-this) times the floor is still a normal number
NARROW = 12.0  # reduced costs up to this times beta: float32 stays as right as float64


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
    leads to the exact one. Small beta takes longer steps, but one round then solves them less well. A row or column
    without mass ends empty. The gradient is that of the optimum (envelope theorem): the plan, held fixed; nothing
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
    Notebook: 08_optimal_transport, section 4.
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
    Notebook: 08_optimal_transport, section 3.
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
    value = _Value.apply(cost.to(wide.dtype), plan, value.view(batch))
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
    """Few enough that two tiles stay in the cache of a CPU (measured), enough to keep a GPU busy."""
    return 2**18 * torch.get_num_threads() if x.device.type == "cpu" else 2**22


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
    return torch.bmm(vector[:, None], matrix.mT)[:, 0]  # as a row: several times quicker than as a column on a CPU


# --- the walk ---------------------------------------------------------------------------------------------------------


def _scale(cost, mu, nu, beta, outer, inner, tol, plan) -> int | None:
    """All steps with plain numbers; writes the plan, its columns still off by rounding.

    T_ij = mu_i a_i R_ij w_j nu_j. R starts as ones. A step multiplies it by the kernel, then makes the rows right for
    the column weights v, then the columns. v carries b on from the last step: b is the new column factor over the old
    one, so the next guess is new² / old, an extrapolation of the column factors.

    Returns:
        Steps made (rounds, where outer is 1), or None where the kernel fades or a number overflowed.
    """
    parts = _parts(cost)
    shift, span = _reduce(cost, mu, nu, parts, out=plan)
    shift, span = shift / beta, span / beta
    dtype = cost.dtype if span <= NARROW else _wide(cost)
    if span > FADES[dtype]:
        return None
    kernel = plan.to(dtype) if outer == 1 else plan
    roots = 1 if outer == 1 else max(1, math.ceil(span / (2 * FADES[kernel.dtype])))
    kernel.mul_(-1 / (beta * roots)).exp_()
    R = kernel if outer == 1 else torch.ones_like(kernel, dtype=dtype)
    mu, nu, shift = mu.to(dtype), nu.to(dtype), shift.to(dtype)

    fold = max(1, min(outer, int(FADES[dtype] / max(span, 1e-9))))  # so many steps cannot push R into the denormals
    v = (-shift).exp()  # (P, C)
    before = 1 / nu  # T starts as ones, so its column factors w · nu are 1
    a, columns, w = torch.ones_like(mu), torch.ones_like(nu), torch.ones_like(nu)
    tiles = [(R[p, i], kernel[p, i], mu[p, i], a[p, i], v[p], columns[p], p, i) for p, i in parts]  # views, made once
    rounds, done = 0, False
    for step in range(1, outer + 1):
        rows = None  # (P, N), row sums; the check makes them, the next round needs them
        for turn in range(inner):
            columns.zero_()
            for tile, G, mass, left, right, sums, p, i in tiles:
                for _ in range(roots if turn == 0 and outer > 1 else 0):
                    tile.mul_(G)
                torch.reciprocal(_times(tile, right) if rows is None else rows[p, i], out=left)
                sums += _times(tile.mT, mass * left)
            w = columns.reciprocal()
            torch.mul(nu, w, out=v)
            rounds += 1
            if tol is not None and (outer == 1 or turn == inner - 1):
                rows = torch.empty_like(mu)
                for tile, _, _, _, right, _, p, i in tiles:
                    rows[p, i] = _times(tile, right)
                done = bool(((a * rows - 1).abs() * mu).sum(-1).max() <= tol)
                if done:
                    break
        if done or step == outer:
            break
        v.mul_(w / before)
        before = w
        if step % fold == 0:
            for tile, _, _, left, _, _, p, _ in tiles:
                tile.mul_(left[:, :, None]).mul_(w[p, None]).clamp_(FLOOR[dtype], 1 / FLOOR[dtype])
            v.div_(w)
            before = torch.ones_like(w)
    for tile, _, mass, left, right, _, p, i in tiles:  # v is nu · w here
        plan[p, i] = tile.mul_((mass * left)[:, :, None]).mul_(right[:, None])
    if not bool(plan.sum().isfinite()):
        return None
    return rounds if outer == 1 else step


def _reduce(cost, mu, nu, parts, out) -> tuple[Tensor, float]:
    """Writes cost - cheapest of its row - cheapest of its column; returns the second, (P, C), and the largest left.

    Subtracting from a row changes no iterate: its next row factor undoes it. Subtracting from a column would, as the
    first b is flat, so the first v must make up for it.
    """
    lowest = torch.empty_like(mu)
    shift = torch.full_like(nu, torch.inf)
    for p, i in parts:
        lowest[p, i] = cost[p, i].amin(-1)
        tile = torch.sub(cost[p, i], lowest[p, i, None], out=out[p, i])
        shift[p] = torch.minimum(shift[p], tile.amin(-2))
    span = 0.0
    for p, i in parts:
        span = max(span, float(out[p, i].sub_(shift[p, None]).max()))
    return shift, span


def _scale_logs(cost, mu, nu, beta, outer, inner, tol, plan) -> int:
    """The same steps with logarithms: T_ij = exp(f_i + g_j - t cost_ij / beta), f and g in float64.

    One exponential an entry: the sum of a column is taken from the rows just made. Only where nearly nothing is left of
    a column is it summed again on its own.
    """
    wide, tiny = _wide(cost), 1e-20
    parts = _parts(cost)
    log_mu, log_nu = mu.to(wide).log(), nu.to(wide).log()  # -inf where there is no mass
    empty, absent = log_mu.isneginf(), log_nu.isneginf()
    v = torch.zeros_like(log_nu)
    g, g_before = torch.zeros_like(log_nu), torch.zeros_like(log_nu)
    f = torch.zeros_like(log_mu)
    rounds = 0

    def exponent(p, i, time, columns):  # (p, n, C) float64
        return torch.mul(cost[p, i].to(wide), -time / beta).add_(columns[p, None])

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
            for q in faint.any(-1).nonzero()[:, 0].tolist():
                for j in faint[q].nonzero()[:, 0].split(max(1, _tile_entries(cost) // cost.shape[1])):
                    column = torch.mul(cost[q][:, j].to(wide), -step / beta).add_(f[q, :, None])
                    g[q, j] = log_nu[q, j] - column.logsumexp(0)
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
    """Columns made exact, then value and row error; tiles are summed in their own dtype, their sums in float64."""
    wide = _wide(plan)
    parts = _parts(plan)
    ones = torch.ones_like(mu)
    columns = torch.zeros_like(nu, dtype=wide)
    for p, i in parts:
        columns[p] += _times(plan[p, i].mT, ones[p, i])
    right = torch.where(columns > 0, nu / columns, 0).to(plan.dtype)
    value, error = torch.zeros_like(columns[:, 0]), torch.zeros_like(columns[:, 0])
    for p, i in parts:
        tile = plan[p, i].mul_(right[p, None])
        error[p] += (tile.sum(-1) - mu[p, i]).abs().sum(-1, dtype=wide)
        value[p] += (tile * cost[p, i]).sum(-1).sum(-1, dtype=wide)
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
