"""Exercises of notebook 12: what was forgotten, how far both spaces turned, what a turn leaves over, and a loser for
every relative turn."""

import math

import torch
from torch.nn.functional import normalize

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


def _deviation() -> Exercise:
    def deviation(image_before, text_before, image_after, text_after):
        def turned(before, after):
            x, y = normalize(before, dim=1), normalize(after, dim=1)
            return 2 * torch.atan2((x - y).norm(dim=1), (x + y).norm(dim=1))

        apart = turned(image_before, image_after) - turned(text_before, text_after)
        return torch.rad2deg(apart.abs())

    def signed(image_before, text_before, image_after, text_after):
        """the sign is still there. Who turned further does not matter: take the size of the difference."""
        return angles(image_before, image_after) - angles(text_before, text_after)

    def radians(image_before, text_before, image_after, text_after):
        """these are radians. The course counts in degrees: `torch.rad2deg`."""
        return deviation(image_before, text_before, image_after, text_after) / 180 * math.pi

    def of_the_pair(image_before, text_before, image_after, text_after):
        """this is the change of the angle *between* picture and text. Ask how far each of them has turned itself."""
        return (angles(image_after, text_after) - angles(image_before, text_before)).abs()

    def not_normalised(image_before, text_before, image_after, text_after):
        """you forgot to bring the features to length 1: a longer feature is not a turned one."""

        def turned(x, y):
            return torch.rad2deg(2 * torch.atan2((x - y).norm(dim=1), (x + y).norm(dim=1)))

        return (turned(image_before, image_after) - turned(text_before, text_after)).abs()

    def averaged(image_before, text_before, image_after, text_after):
        """this is the mean over the samples. One number a sample is asked for."""
        return deviation(image_before, text_before, image_after, text_after).mean()

    def angles(x, y):
        return torch.rad2deg(torch.arccos((normalize(x, dim=1) * normalize(y, dim=1)).sum(1).clamp(-1, 1)))

    def cases(generator: torch.Generator) -> list[tuple]:
        return [tuple(torch.randn(n, 4, generator=generator).double() for _ in range(4)) for n in (5, 3, 6)]

    one = torch.tensor([[1.0, 0.0]]).double()
    left, right = torch.tensor([[0.0, 1.0]]).double(), torch.tensor([[0.0, -1.0]]).double()
    return Exercise(
        solution=deviation,
        wrong=(signed, radians, of_the_pair, not_normalised, averaged),
        cases=cases,
        by_hand=(one, one, left, right),
        see_next="By hand it is 0, though one went left and the other one right: how far is not where to.",
    )


def _left_over() -> Exercise:
    def left_over(before, after):
        u, _, vh = torch.linalg.svd(before[::2].T @ after[::2])
        turned = before[1::2] @ (u @ vh)
        return (turned - after[1::2]).norm() / after[1::2].norm()

    def rotation(before, after):
        u, _, vh = torch.linalg.svd(before.T @ after)
        return u @ vh

    def share(turned, after):
        return (turned - after).norm() / after.norm()

    def same_rows(before, after):
        """you look at the rows of the fit. They may not judge themselves: look at rows 1, 3, 5, ..."""
        return share(before[::2] @ rotation(before[::2], after[::2]), after[::2])

    def all_rows(before, after):
        """you fit and look at all rows. Fit on rows 0, 2, 4, ... and look at the others."""
        return share(before @ rotation(before, after), after)

    def other_half(before, after):
        """you took the halves the other way round: fit on rows 0, 2, 4, ..., look at rows 1, 3, 5, ..."""
        return share(before[::2] @ rotation(before[1::2], after[1::2]), after[::2])

    def linear_map(before, after):
        """this is the best *linear* map. It may stretch, and a rotation may not."""
        return share(before[1::2] @ torch.linalg.lstsq(before[::2], after[::2]).solution, after[1::2])

    def backwards(before, after):
        """your rotation goes back from after to before. `torch.linalg.svd` gives U, S and V transposed: U Vᵀ."""
        return share(before[1::2] @ rotation(before[::2], after[::2]).T, after[1::2])

    def not_a_share(before, after):
        """divide by the size of what came after: a share is asked for."""
        return left_over(before, after) * after[1::2].norm()

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for n, d in ((16, 3), (24, 4), (17, 2)):
            before = torch.randn(n, d, generator=generator).double()
            turn = torch.linalg.qr(torch.randn(d, d, generator=generator).double()).Q
            found.append((before, before @ turn + 0.4 * torch.randn(n, d, generator=generator).double()))
        return found

    by_hand = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 2.0]]).double()
    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()
    return Exercise(
        solution=left_over,
        wrong=(
            same_rows,
            all_rows,
            other_half,
            linear_map,
            backwards,
            not_a_share,
        ),
        cases=cases,
        by_hand=(by_hand, by_hand @ quarter + torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.5, 0.0]]).double()),
        see_next="A turn alone would leave 0. What is left is noise, or a change of shape.",
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
deviation = _deviation()
left_over = _left_over()
who_wins = _loser()
