"""Exercises of notebook 13: which batch keeps a row, what pulls at a cosine, the same strength in another batch, and
springs on weights."""

import math

import torch

from vlnotes.checks.exercises import Exercise


def _chance_kept() -> Exercise:
    def chance_kept(rank, total, batch):
        better, others = rank - 1, total - 1
        return math.comb(others - better, batch - 1) / math.comb(others, batch - 1)

    def by_guessing(rank, total, batch):
        """this is what a guess gets. The old model ranks the own text: use its rank."""
        return 1 / batch

    def drawn_again(rank, total, batch):
        """you let a text be drawn twice. A batch holds `batch` different ones."""
        return (1 - (rank - 1) / (total - 1)) ** (batch - 1)

    def own_drawn_too(rank, total, batch):
        """the own text is always in the batch. Only the other `batch - 1` are drawn, from `total - 1`."""
        return math.comb(total - rank + 1, batch) / math.comb(total, batch)

    def one_too_many(rank, total, batch):
        """the own text takes one place of the batch: `batch - 1` others are drawn."""
        return math.comb(total - rank, batch) / math.comb(total - 1, batch)

    def one_is_better(rank, total, batch):
        """rank 1 is the best: `rank - 1` texts are better than the own one, not `rank`."""
        return math.comb(total - 1 - rank, batch - 1) / math.comb(total - 1, batch - 1)

    def lost(rank, total, batch):
        """this is the chance that the row is *not* kept."""
        return 1 - chance_kept(rank, total, batch)

    def cases(generator: torch.Generator) -> list[tuple]:
        return [(3, 12, 4), (2, 30, 8), (5, 20, 3)]

    return Exercise(
        solution=chance_kept,
        wrong=(by_guessing, drawn_again, own_drawn_too, one_too_many, one_is_better, lost),
        cases=cases,
        by_hand=(3, 5, 3),
        see_next="By hand: 1 of the 6 pairs of others holds neither of the two better texts.",
    )


def _term_gradient() -> Exercise:
    def term_gradient(old, new, temperature):
        kept = old.argmax(1) == torch.arange(len(old))
        wanted, said = (old / temperature).softmax(1), (new / temperature).softmax(1)
        return kept[:, None] * (said - wanted) / temperature

    def pull(old, new, temperature):
        return ((new / temperature).softmax(1) - (old / temperature).softmax(1)) / temperature

    def turned_round(old, new, temperature):
        """the sign is turned round: what the current model says, minus what the old one wants."""
        return -term_gradient(old, new, temperature)

    def no_temperature(old, new, temperature):
        """the cosines stand over the temperature, so its inverse comes down as a factor."""
        return term_gradient(old, new, temperature) * temperature

    def all_rows(old, new, temperature):
        """you let all rows pull, also those that the old model has wrong."""
        return pull(old, new, temperature)

    def of_the_new(old, new, temperature):
        """you keep the rows in which the *current* model is right. The old one is asked."""
        return (new.argmax(1) == torch.arange(len(new)))[:, None] * pull(old, new, temperature)

    def by_text(old, new, temperature):
        """you selected by columns. A row is kept where the picture finds its text: the argmax of the row."""
        return (old.argmax(0) == torch.arange(len(old)))[:, None] * pull(old, new, temperature)

    def averaged(old, new, temperature):
        """this is the gradient of the mean over the rows. They are summed."""
        return term_gradient(old, new, temperature) / len(old)

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for n, t in ((6, 0.5), (5, 0.4), (7, 0.7)):
            old, new = torch.randn(2, n, n, generator=generator) + torch.eye(n)
            found.append((old, new, t))
        return found

    return Exercise(
        solution=term_gradient,
        wrong=(turned_round, no_temperature, all_rows, of_the_new, by_text, averaged),
        cases=cases,
        by_hand=(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]), 0.5),
        see_next="Each row of it sums to 0: what one text gains, others lose. A row that is not kept pulls at nothing.",
    )


def _same_strength() -> Exercise:
    def same_strength(weight, batch, other):
        return weight * batch / other

    def turned_round(weight, batch, other):
        """the other way round: a larger batch has more rows in its sum, so it takes a smaller weight."""
        return weight * other / batch

    def unchanged(weight, batch, other):
        """the sum grows with the batch, and CLIP's loss, a mean, does not. So the weight must change."""
        return float(weight)

    def of_a_mean(weight, batch, other):
        """this is the weight of a *mean* over the rows. The other batch is summed as well."""
        return float(weight * batch)

    def squared(weight, batch, other):
        """a batch has B² cells, but B rows: the sum is over rows, and a row's divergence is one distribution's."""
        return weight * (batch / other) ** 2

    def cases(generator: torch.Generator) -> list[tuple]:
        return [(20.0, 280, 128), (2.0, 64, 256), (1.0, 100, 40)]

    return Exercise(
        solution=same_strength,
        wrong=(turned_round, unchanged, of_a_mean, squared),
        cases=cases,
        by_hand=(20.0, 280, 140),
        see_next="So a weight of a summed loss is no number to be carried from one batch size to another.",
    )


def _pulled_back() -> Exercise:
    def pulled_back(weights, anchor, importance):
        return (importance * (weights - anchor).square()).sum() / 2

    def no_importance(weights, anchor, importance):
        """every weight is held alike. EWC holds each by its importance."""
        return (weights - anchor).square().sum() / 2

    def not_halved(weights, anchor, importance):
        """the half is missing: with it, importance is the curvature of the penalty."""
        return 2 * pulled_back(weights, anchor, importance)

    def to_zero(weights, anchor, importance):
        """you pull towards zero, as weight decay does. EWC pulls towards what the weights were: the anchor."""
        return (importance * weights.square()).sum() / 2

    def importance_inside(weights, anchor, importance):
        """you squared the importance, too. It stands outside of the square."""
        return (importance * (weights - anchor)).square().sum() / 2

    def mean(weights, anchor, importance):
        """this is the mean over the weights. It is their sum: more weights, more pull."""
        return (importance * (weights - anchor).square()).mean() / 2

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for n in (4, 6, 5):
            two = [torch.randn(n, generator=generator) for _ in range(2)]
            found.append((*two, 3 * torch.rand(n, generator=generator) + 0.2))
        return found

    return Exercise(
        solution=pulled_back,
        wrong=(no_importance, not_halved, to_zero, importance_inside, mean),
        cases=cases,
        by_hand=(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0]), torch.tensor([4.0, 9.0])),
        see_next="EWC looks at weights one by one. It cannot know that two of them may turn together without harm.",
        gradient=True,
    )


chance_kept = _chance_kept()
term_gradient = _term_gradient()
same_strength = _same_strength()
pulled_back = _pulled_back()
