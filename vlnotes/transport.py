"""Interim: optimal transport by IPOT and Sinkhorn, until the real file is here."""

from typing import NamedTuple

import torch
from torch import Tensor


class Transport(NamedTuple):
    plan: Tensor
    value: Tensor
    row_error: Tensor
    iterations: int


def _run(cost, mu, nu, beta, outer, inner, kernel_power):
    n, c = cost.shape[-2:]
    with torch.no_grad():
        d = cost.detach()
        mu = torch.full((n,), 1 / n, dtype=d.dtype, device=d.device) if mu is None else mu
        nu = torch.full((c,), 1 / c, dtype=d.dtype, device=d.device) if nu is None else nu
        g = torch.exp(-(d - d.amin(-1, keepdim=True)) / beta)
        plan, b = torch.ones_like(d), torch.full_like(d[..., 0, :], 1 / c)
        for _ in range(outer):
            q = g * plan if kernel_power else g
            for _ in range(inner):
                a = mu / (q @ b[..., None]).squeeze(-1).clamp_min(1e-30)
                b = nu / (q.mT @ a[..., None]).squeeze(-1).clamp_min(1e-30)
            plan = a[..., None] * q * b[..., None, :]
        error = (plan.sum(-1) - mu).abs().sum(-1)
    return Transport(plan, (plan * cost).sum((-2, -1)), error, outer)


def ipot(cost, mu=None, nu=None, *, beta=0.5, outer=50, inner=1, tol=None) -> Transport:
    return _run(cost, mu, nu, beta, outer, inner, True)


def sinkhorn(cost, mu=None, nu=None, *, epsilon=0.05, iterations=1000, tol=1e-9) -> Transport:
    return _run(cost, mu, nu, epsilon, 1, iterations, False)
