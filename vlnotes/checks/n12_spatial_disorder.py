"""Exercises of notebook 12: what was forgotten, shape and turn, the turn that fits best, and a loser for every
relative turn."""

import math

import torch
from torch.nn.functional import cosine_similarity, normalize

from vlnotes.checks.exercises import Exercise


def _forgotten() -> Exercise:
    def forgotten(table):
        last = len(table) - 1
        return torch.stack([table[i, i:-1].max() - table[i, -1] for i in range(last)]).mean()

    def from_the_start(table):
        """you took off from the first column. A domain is known best some time after it was learnt: take its best."""
        return (table[:-1, 0] - table[:-1, -1]).mean()

    def from_the_diagonal(table):
        """you took the value just after learning. A later phase may have helped: take the best before the last."""
        return (table.diagonal()[:-1] - table[:-1, -1]).mean()

    def with_the_last(table):
        """the last domain has had no time to be forgotten. Leave it out."""
        last = len(table) - 1
        return forgotten(table) * last / len(table)

    def sign(table):
        """the sign is turned round: what was lost is positive."""
        return -forgotten(table)

    def summed(table):
        """this is the sum over the domains. Take their mean."""
        return (len(table) - 1) * forgotten(table)

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for n in (4, 5, 3):
            table = 0.1 + 0.3 * torch.rand(n, n, generator=generator)
            table += torch.diag(0.3 + 0.2 * torch.rand(n, generator=generator))
            table[1, -2] += 0.9 if n > 3 else 0.0  # a later phase has helped
            found.append((table,))
        return found

    return Exercise(
        solution=forgotten,
        wrong=(from_the_start, from_the_diagonal, with_the_last, sign, summed),
        cases=cases,
        by_hand=(torch.tensor([[0.8, 0.6, 0.5], [0.1, 0.7, 0.4], [0.0, 0.2, 0.9]]),),
        see_next="A model that never learnt a domain forgets nothing of it: read it beside what was learnt.",
    )


def _turned_by() -> Exercise:
    def turned_by(before, after):
        x, y = normalize(before, dim=1), normalize(after, dim=1)
        return torch.rad2deg(2 * torch.atan2((x - y).norm(dim=1), (x + y).norm(dim=1)))

    def not_normalised(before, after):
        """you forgot to bring the features to length 1: a longer feature is not a turned one."""
        return torch.rad2deg(2 * torch.atan2((before - after).norm(dim=1), (before + after).norm(dim=1)))

    def radians(before, after):
        """these are radians. The course counts in degrees: `torch.rad2deg`."""
        return turned_by(before, after) / 180 * math.pi

    def half(before, after):
        """this is half of the angle. The two lengths give its half; double it."""
        return turned_by(before, after) / 2

    def the_cosine(before, after):
        """this is the cosine, not the angle."""
        return cosine_similarity(before, after)

    def between_neighbours(before, after):
        """you compared different samples. Row a before belongs to row a after."""
        return turned_by(before, after.roll(1, 0))

    def cases(generator: torch.Generator) -> list[tuple]:
        return [tuple(torch.randn(n, 4, generator=generator).double() for _ in range(2)) for n in (5, 3, 6)]

    return Exercise(
        solution=turned_by,
        wrong=(not_normalised, radians, half, the_cosine, between_neighbours),
        cases=cases,
        by_hand=(torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 2.0]]).double()),
        see_next="An arc cosine would do, too, but near 0 degrees it loses half of its digits.",
    )


def _best_turn() -> Exercise:
    def best_turn(before, after):
        left, _, right = torch.linalg.svd(before.T @ after)
        return left @ right

    def least_squares(before, after):
        """this is the best *linear* map. It may stretch; a rotation may not. Take the singular vectors alone."""
        return torch.linalg.lstsq(before, after).solution

    def other_way(before, after):
        """this turns what is after back to what was before. You want the other direction: the transpose."""
        return best_turn(after, before)

    def keeps_the_values(before, after):
        """you kept the singular values. Leave them out, or it stretches."""
        return before.T @ after

    def wrong_side(before, after):
        """the two orthogonal matrices are in the wrong order. `torch.linalg.svd` gives U, S and V transposed: U Vᵀ."""
        left, _, right = torch.linalg.svd(before.T @ after)
        return right @ left

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for n, d in ((8, 3), (12, 4), (9, 2)):
            before = torch.randn(n, d, generator=generator).double()
            turn = torch.linalg.qr(torch.randn(d, d, generator=generator).double()).Q
            found.append((before, before @ turn + 0.1 * torch.randn(n, d, generator=generator).double()))
        return found

    by_hand = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double()
    return Exercise(
        solution=best_turn,
        wrong=(least_squares, other_way, keeps_the_values, wrong_side),
        cases=cases,
        by_hand=(by_hand, torch.stack([by_hand[:, 1], -by_hand[:, 0]], 1)),
        see_next="Mirror images count as turns here: a cosine does not mind them.",
    )


def _loser() -> Exercise:
    def who_wins(picture_turn, text_turn, v):
        u = v @ picture_turn @ text_turn.T
        return torch.stack([v, u])

    def not_back(picture_turn, text_turn, v):
        """after *its own* turn the wrong text must stand where the picture stands: turn as A does, back as B does."""
        return torch.stack([v, v @ picture_turn])

    def wrong_order(picture_turn, text_turn, v):
        """you turned back first. The picture's turn comes first: v A, then Bᵀ."""
        return torch.stack([v, v @ text_turn.T @ picture_turn])

    def transposed_first(picture_turn, text_turn, v):
        """you turned the picture backwards."""
        return torch.stack([v, v @ picture_turn.T @ text_turn])

    def same(picture_turn, text_turn, v):
        """both texts are the same one. The second must beat the first after the turns."""
        return torch.stack([v, v])

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for d in (3, 4, 5):
            turns = [torch.linalg.qr(torch.randn(d, d, generator=generator).double()).Q for _ in range(2)]
            found.append((*turns, normalize(torch.randn(d, generator=generator).double(), dim=0)))
        return found

    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()
    return Exercise(
        solution=who_wins,
        wrong=(not_back, wrong_order, transposed_first, same),
        cases=cases,
        by_hand=(quarter, torch.eye(2).double(), torch.tensor([1.0, 0.0]).double()),
        see_next="With A = B the second text is the first: no loser can be built, and every order survives.",
    )


forgotten = _forgotten()
turned_by = _turned_by()
best_turn = _best_turn()
who_wins = _loser()
