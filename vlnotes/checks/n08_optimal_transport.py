"""Exercises of notebook 08: the cheapest pairing, the slide repaired, logarithms, the gradient, what carries a plan."""

import math
from itertools import permutations

import torch

from vlnotes.checks.exercises import Exercise


def _cheapest_pairing() -> Exercise:
    def cheapest_pairing(cost):
        n = len(cost)
        orders = permutations(range(n))
        return min(sum(cost[i, order[i]] for i in range(n)) for order in orders) / n

    def nearest(cost):
        """every row takes its cheapest column in yours, two of them perhaps the same. Each column is taken once."""
        return cost.amin(1).mean()

    def nearest_by_column(cost):
        """every column takes its cheapest row in yours, and a row may be taken twice. Each row is taken once."""
        return cost.amin(0).mean()

    def first_come(cost):
        """you serve the rows one after the other. An early row may take what a later one needs more: try all orders."""
        free, total = list(range(len(cost))), 0.0
        for row in cost:
            best = min(free, key=lambda j: float(row[j]))
            free.remove(best)
            total = total + row[best]
        return total / len(cost)

    def sum_not_mean(cost):
        """this is the sum. A row holds the mass 1/N, so the cost of a pairing is a mean."""
        return len(cost) * cheapest_pairing(cost)

    def dearest(cost):
        """this is the most expensive pairing; min, not max."""
        return -cheapest_pairing(-cost)

    def cases(generator: torch.Generator) -> list[tuple]:
        return [(torch.rand(n, n, generator=generator),) for n in (4, 5, 4)]

    return Exercise(
        solution=cheapest_pairing,
        wrong=(nearest, nearest_by_column, first_come, sum_not_mean, dearest),
        cases=cases,
        by_hand=(torch.tensor([[1.0, 2.0], [1.0, 5.0]]),),
        see_next="For 4 rows that is 24 sums, for 20 rows 2.4 billion billion: nobody solves it like this.",
    )


def _repaired() -> Exercise:
    def repaired(cost, mu, nu, beta, steps):
        A, T = torch.exp(-cost / beta), torch.ones_like(cost)
        sigma = torch.full_like(nu, 1 / len(nu))
        for _ in range(steps):
            Q = A * T
            delta = mu / (Q @ sigma)
            sigma = nu / (Q.T @ delta)
            T = delta[:, None] * Q * sigma
        return T

    def as_on_the_slide(cost, mu, nu, beta, steps):
        """the factor n is still there: the plan sums to 1/n. It belongs to the version for uniform masses, where mu and
        nu have been written out as 1/n."""
        return repaired(cost, mu, nu, beta, steps) / len(mu)

    def masses_gone(cost, mu, nu, beta, steps):
        """you kept the version for uniform masses. With the given ones it is mu / (Q sigma) and nu / (Qᵀ delta)."""
        return repaired(cost, torch.full_like(mu, 1 / len(mu)), torch.full_like(nu, 1 / len(nu)), beta, steps)

    def last_plan_forgotten(cost, mu, nu, beta, steps):
        """you start each step from A alone. The last plan belongs in, or this stays Sinkhorn at epsilon = beta."""
        A, sigma = torch.exp(-cost / beta), torch.full_like(nu, 1 / len(nu))
        for _ in range(steps):
            delta = mu / (A @ sigma)
            sigma = nu / (A.T @ delta)
        return delta[:, None] * A * sigma

    def columns_first(cost, mu, nu, beta, steps):
        """your last update makes the rows exact. delta comes first, sigma second, so the columns are."""
        return repaired(cost.T, nu, mu, beta, steps).T

    def sigma_forgotten(cost, mu, nu, beta, steps):
        """sigma starts anew in every step of yours. It is carried on: a good first guess makes one round enough."""
        A, T = torch.exp(-cost / beta), torch.ones_like(cost)
        for _ in range(steps):
            Q = A * T
            delta = mu / Q.mean(1)
            sigma = nu / (Q.T @ delta)
            T = delta[:, None] * Q * sigma
        return T

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for n, c, beta, steps in ((5, 4, 0.2, 3), (4, 6, 0.3, 4), (3, 3, 0.25, 2)):
            mu, nu = (torch.rand(k, generator=generator) + 0.1 for k in (n, c))
            found.append((torch.rand(n, c, generator=generator), mu / mu.sum(), nu / nu.sum(), beta, steps))
        return found

    return Exercise(
        solution=repaired,
        wrong=(as_on_the_slide, masses_gone, last_plan_forgotten, columns_first, sigma_forgotten),
        cases=cases,
        by_hand=(
            torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
            torch.tensor([0.5, 0.5]),
            torch.tensor([0.7, 0.3]),
            1.0,
            1,
        ),
        see_next="The wrong factor hides where rows are normalised afterwards. Where not, it divides the loss by n.",
    )


def _log_sinkhorn() -> Exercise:
    def log_sinkhorn(cost, mu, nu, epsilon, rounds):
        f, g = torch.zeros_like(mu), torch.zeros_like(nu)
        for _ in range(rounds):
            f = epsilon * (mu.log() - ((g - cost) / epsilon).logsumexp(1))
            g = epsilon * (nu.log() - ((f[:, None] - cost) / epsilon).logsumexp(0))
        return ((f[:, None] + g - cost) / epsilon).exp()

    def plain_numbers(cost, mu, nu, epsilon, rounds):
        """exp(-cost / epsilon) is 0 in float32 where cost / epsilon is above 104, and 0 / 0 is NaN. Use logarithms."""
        K, b = torch.exp(-cost / epsilon), torch.ones_like(nu)
        for _ in range(rounds):
            a = mu / (K @ b)
            b = nu / (K.T @ a)
        return a[:, None] * K * b

    def masses_left_out(cost, mu, nu, epsilon, rounds):
        """log mu and log nu are missing: your rows and columns sum to 1 in place of mu and nu."""
        return log_sinkhorn(cost, torch.ones_like(mu), torch.ones_like(nu), epsilon, rounds)

    def costs_wanted(cost, mu, nu, epsilon, rounds):
        """the cost has the wrong sign: yours prefers what is expensive."""
        return log_sinkhorn(-cost, mu, nu, epsilon, rounds)

    def columns_first(cost, mu, nu, epsilon, rounds):
        """your last update makes the rows exact. f comes first, g second, so the columns are."""
        return log_sinkhorn(cost.T, nu, mu, epsilon, rounds).T

    def masses_swapped(cost, mu, nu, epsilon, rounds):
        """mu and nu have changed places: mu is the mass of the rows."""
        return log_sinkhorn(cost, nu, mu, epsilon, rounds)

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for n, epsilon, rounds in ((4, 0.5, 2), (5, 0.2, 3), (4, 0.002, 5)):
            mu, nu = (torch.rand(n, generator=generator) + 0.2 for _ in range(2))
            cost = torch.rand(n, n, generator=generator) + (1.0 if epsilon < 0.1 else 0.0)
            found.append((cost, mu / mu.sum(), nu / nu.sum(), epsilon, rounds))
        return found

    return Exercise(
        solution=log_sinkhorn,
        wrong=(plain_numbers, masses_left_out, costs_wanted, columns_first, masses_swapped),
        cases=cases,
        by_hand=(
            torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
            torch.tensor([0.5, 0.5]),
            torch.tensor([0.7, 0.3]),
            1.0,
            1,
        ),
        see_next="An epsilon of 0.002 is no trouble any more; it only takes many rounds.",
    )


def _codebook_gradient() -> Exercise:
    def codebook_gradient(features, codebook, plan):
        return -plan.T @ features

    def uphill(features, codebook, plan):
        """the sign is wrong: the cost is 1 - cosine, so it falls where the cosine grows."""
        return plan.T @ features

    def of_the_features(features, codebook, plan):
        """this is the gradient for the features. Asked for is the codebook's: one row a codeword."""
        return -plan @ codebook

    def every_pair(features, codebook, plan):
        """every picture pulls every codeword alike in yours. It pulls with the mass that the plan sends."""
        return -features.mean(0).expand_as(codebook) / len(codebook)

    def nearest_alone(features, codebook, plan):
        """each picture pulls only the codeword that gets most of it. The whole row of the plan pulls."""
        hard = torch.nn.functional.one_hot(plan.argmax(1), plan.shape[1]).to(plan.dtype) / len(plan)
        return -hard.T @ features

    def rows_normalised(features, codebook, plan):
        """you normalise the rows of the plan first. The loss is <plan, cost> with the plan as it is, of mass 1."""
        return -(plan / plan.sum(1, keepdim=True)).T @ features

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for n, c, d in ((6, 3, 4), (5, 4, 3), (4, 2, 5)):
            features, codebook = (torch.randn(k, d, generator=generator) for k in (n, c))
            plan = torch.rand(n, c, generator=generator)
            unit = torch.nn.functional.normalize
            found.append((unit(features, dim=1), unit(codebook, dim=1), plan / plan.sum()))
        return found

    return Exercise(
        solution=codebook_gradient,
        wrong=(uphill, of_the_features, every_pair, nearest_alone, rows_normalised),
        cases=cases,
        by_hand=(
            torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
            torch.tensor([[1.0, 0.0], [0.6, 0.8]]),
            torch.tensor([[0.4, 0.1], [0.1, 0.4]]),
        ),
        see_next="One product: a codeword is pulled to the mean of its pictures, weighted by the plan.",
    )


def _carriers() -> Exercise:
    def carriers(plan, share):
        largest_first = plan.flatten().sort(descending=True).values
        held = largest_first.cumsum(0)
        return int((held < share * plan.sum()).sum()) + 1

    def not_zero(plan, share):
        """you count what is not zero. After some steps hardly any entry is exactly zero, and most hold nothing."""
        return int((plan > 0).sum())

    def share_of_entries(plan, share):
        """this is a share of the entries. Asked for is a share of the mass."""
        return math.ceil(share * plan.numel())

    def smallest_first(plan, share):
        """you start with the smallest entries, so you need most of them. Largest first."""
        held = plan.flatten().sort().values.cumsum(0)
        return int((held < share * plan.sum()).sum()) + 1

    def large_ones(plan, share):
        """you count entries above a threshold. How much they hold together is the question."""
        return int((plan > (1 - share) * plan.max()).sum())

    def by_rows(plan, share):
        """you count row by row. The mass of the whole plan is meant: a row may be spread, another not."""
        return sum(carriers(row, share) for row in plan)

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for n, c, sharp, share in ((5, 6, 4.0, 0.9), (8, 4, 2.0, 0.8), (6, 6, 6.0, 0.95)):
            plan = (sharp * torch.rand(n, c, generator=generator) ** 2).exp() - 1
            plan[0] *= 5
            plan[1, 0] = 0
            found.append((plan / plan.sum(), share))
        return found

    return Exercise(
        solution=carriers,
        wrong=(not_zero, share_of_entries, smallest_first, large_ones, by_rows),
        cases=cases,
        by_hand=(torch.tensor([[0.5, 0.0, 0.05], [0.02, 0.33, 0.1]]), 0.8),
        see_next="A plan can be nowhere zero and still rest on a few entries.",
    )


cheapest_pairing = _cheapest_pairing()
repaired = _repaired()
log_sinkhorn = _log_sinkhorn()
codebook_gradient = _codebook_gradient()
carriers = _carriers()
