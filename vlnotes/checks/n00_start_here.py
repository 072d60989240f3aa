"""Exercises of notebook 00: chance level, R@1 and cosine similarity."""

import torch
from torch.nn.functional import normalize

from vlnotes.checks.exercises import Exercise


def _chance() -> Exercise:
    def chance(n, k):
        return k / n

    def forgets_k(n, k):
        """this is the chance of the first place only. A hit counts anywhere among the first k: k chances, not
        one."""
        return 1 / n

    def draws_with_replacement(n, k):
        """you draw k times and put each caption back. A ranked list shows k different captions, so it is
        simpler."""
        return 1 - (1 - 1 / n) ** k

    def leaves_out_the_true_one(n, k):
        """you divide by n - 1. The true caption stands in the gallery too, so all n places count."""
        return k / (n - 1)

    def in_percent(n, k):
        """this is in percent. The function should return a share between 0 and 1."""
        return 100 * k / n

    def upside_down(n, k):
        """your fraction is upside down: a larger gallery must make chance smaller."""
        return n / k

    return Exercise(
        solution=chance,
        wrong=(forgets_k, draws_with_replacement, leaves_out_the_true_one, in_percent, upside_down),
        cases=lambda generator: [(1000, 1), (1000, 10), (100, 5), (20, 10), (7, 7)],
        by_hand=(4, 2),
        see_next="In a gallery of 1,000 that is 0.1 % at R@1 and 1 % at R@10; hold every recall against it.",
    )


def _r_at_1() -> Exercise:
    def r_at_1(similarity):
        best = similarity.argmax(dim=1)  # (N,) the caption that each picture likes best
        return (best == torch.arange(len(similarity))).float().mean()

    def wrong_axis(similarity):
        """you look down the columns: that is caption to image. For image to text, each row picks its best
        column."""
        return (similarity.argmax(dim=0) == torch.arange(len(similarity))).float().mean()

    def counts(similarity):
        """this is how many pictures hit, not which share of them. Take the mean, or divide by their
        number."""
        return (similarity.argmax(dim=1) == torch.arange(len(similarity))).float().sum()

    def misses(similarity):
        """this is the share of pictures that miss. You want those whose best caption is their own."""
        return (similarity.argmax(dim=1) != torch.arange(len(similarity))).float().mean()

    def averages_the_diagonal(similarity):
        """you average how similar the true pairs are. Recall only asks whether the true one is ranked
        first."""
        return similarity.diagonal().mean()

    def averages_the_best(similarity):
        """you average the largest value of each row. Recall asks where it stands, not how large it is: use
        argmax."""
        return similarity.max(dim=1).values.mean()

    def in_percent(similarity):
        """this is in percent. The function should return a share between 0 and 1."""
        return 100 * (similarity.argmax(dim=1) == torch.arange(len(similarity))).float().mean()

    def cases(generator: torch.Generator) -> list[tuple]:
        noise = [torch.randn(n, n, generator=generator) for n in (6, 9, 40)]
        return [(n + torch.eye(len(n)),) for n in noise] + [(torch.tensor([[1.0, 0.9], [0.2, 0.1]]),)]

    return Exercise(
        solution=r_at_1,
        wrong=(wrong_axis, counts, misses, averages_the_diagonal, averages_the_best, in_percent),
        cases=cases,
        by_hand=(torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.3, 0.1], [0.7, 0.2, 0.6]]),),
        see_next="Transpose the matrix and you have caption to image: the two directions need not agree.",
    )


def _cosine() -> Exercise:
    def cosine(x, y):
        return normalize(x, dim=1) @ normalize(y, dim=1).T  # (N, D) @ (D, M) -> (N, M)

    def not_normalised(x, y):
        """these are plain dot products. A long vector then wins everywhere: bring the rows to length 1
        first."""
        return x @ y.T

    def normalised_over_columns(x, y):
        """you normalise down the columns (dim 0). Each row is one sample: its own D numbers get length 1,
        dim=1."""
        return normalize(x, dim=0) @ normalize(y, dim=0).T

    def only_x(x, y):
        """only x is normalised. Both sides need length 1, else the length of y still decides."""
        return normalize(x, dim=1) @ y.T

    def only_y(x, y):
        """only y is normalised. Both sides need length 1, else the length of x still decides."""
        return x @ normalize(y, dim=1).T

    def one_length_for_all(x, y):
        """you divide by the length of the whole matrix. Every row has a length of its own: dim=1,
        keepdim=True."""
        return (x / x.norm()) @ (y / y.norm()).T

    def squared_lengths(x, y):
        """you divide by the squared length. Take the square root of the sum of squares first."""
        return (x / (x * x).sum(1, keepdim=True)) @ (y / (y * y).sum(1, keepdim=True)).T

    def cases(generator: torch.Generator) -> list[tuple]:
        sizes = ((3, 4, 5), (6, 6, 8), (5, 2, 3))
        return [
            (3 * torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator)) for n, m, d in sizes
        ]

    return Exercise(
        solution=cosine,
        wrong=(not_normalised, normalised_over_columns, only_x, only_y, one_length_for_all, squared_lengths),
        cases=cases,
        by_hand=(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])),
        see_next="Every number now lies between -1 and 1: this matrix is what the whole course looks at.",
    )


chance, r_at_1, cosine = _chance(), _r_at_1(), _cosine()
