"""Exercises of notebook 02: InfoNCE, its gradient, false negatives, the running sum, the lowest loss."""

import math

import torch
from torch.nn.functional import cross_entropy, normalize

from vlnotes.checks.exercises import Exercise


def _info_nce() -> Exercise:
    def info_nce(queries, keys, temperature):
        logits = queries @ keys.T / temperature  # (B, B)
        return cross_entropy(logits, torch.arange(len(queries)))

    def no_temperature(queries, keys, temperature):
        """the temperature is missing. Divide the cosines by it before the softmax."""
        return cross_entropy(queries @ keys.T, torch.arange(len(queries)))

    def multiplies_by_temperature(queries, keys, temperature):
        """you multiply by the temperature. It divides: a small temperature makes the softmax sharper."""
        return cross_entropy(queries @ keys.T * temperature, torch.arange(len(queries)))

    def wrong_axis(queries, keys, temperature):
        """the softmax runs down the columns. Each query (row) chooses among the keys (columns): dim=1."""
        return cross_entropy(keys @ queries.T / temperature, torch.arange(len(queries)))

    def sums_over_rows(queries, keys, temperature):
        """you add up the rows. Take their mean, else the loss grows with the batch."""
        return cross_entropy(queries @ keys.T / temperature, torch.arange(len(queries)), reduction="sum")

    def positive_left_out(queries, keys, temperature):
        """the positive is missing in the denominator. The softmax runs over all keys, the true one
        included."""
        logits = queries @ keys.T / temperature
        negatives = logits.masked_fill(torch.eye(len(logits), dtype=torch.bool), -torch.inf)
        return (negatives.logsumexp(dim=1) - logits.diagonal()).mean()

    def softmax_twice(queries, keys, temperature):
        """there are two softmaxes. cross_entropy takes the logits and does the softmax itself."""
        return cross_entropy((queries @ keys.T / temperature).softmax(dim=1), torch.arange(len(queries)))

    def cases(generator: torch.Generator) -> list[tuple]:
        rows = [normalize(torch.randn(2, n, 8, generator=generator), dim=2) for n in (4, 7, 5)]
        return [(pair[0], pair[1], temperature) for pair, temperature in zip(rows, (0.5, 0.2, 2.0), strict=True)]

    return Exercise(
        solution=info_nce,
        wrong=(
            no_temperature,
            multiplies_by_temperature,
            wrong_axis,
            sums_over_rows,
            positive_left_out,
            softmax_twice,
        ),
        cases=cases,
        by_hand=(torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]]), 0.5),
        see_next="With all cosines equal the loss is ln B: that is where an untrained model starts.",
        gradient=True,
    )


def _gradient_of_logits() -> Exercise:
    def gradient_of_logits(logits):
        return (logits.softmax(dim=1) - torch.eye(len(logits))) / len(logits)

    def forgets_the_mean(logits):
        """the 1/B is missing. The loss is a mean over rows, so each row moves it by a B-th only."""
        return logits.softmax(dim=1) - torch.eye(len(logits))

    def wrong_sign(logits):
        """the sign is turned round. The gradient points uphill: negative at the true pair, positive
        elsewhere."""
        return (torch.eye(len(logits)) - logits.softmax(dim=1)) / len(logits)

    def wrong_axis(logits):
        """your softmax runs down the columns. The loss reads rows, so every row of the gradient sums to
        zero: dim=1."""
        return (logits.softmax(dim=0) - torch.eye(len(logits))) / len(logits)

    def no_identity(logits):
        """the target is missing. This is the push on all pairs; subtract 1 on the diagonal, the pull on
        the true one."""
        return logits.softmax(dim=1) / len(logits)

    def both_directions(logits):
        """this is the gradient of the symmetric loss. Here only the rows choose, so one softmax is enough."""
        return ((logits.softmax(dim=1) + logits.softmax(dim=0)) / 2 - torch.eye(len(logits))) / len(logits)

    return Exercise(
        solution=gradient_of_logits,
        wrong=(forgets_the_mean, wrong_sign, wrong_axis, no_identity, both_directions),
        cases=lambda generator: [(2 * torch.randn(n, n, generator=generator),) for n in (3, 5, 8)],
        by_hand=(torch.tensor([[2.0, 0.0], [1.0, 1.0]]),),
        see_next="Each row sums to zero: what pulls the true pair pushes the others, the nearest hardest.",
    )


def _mask_false_negatives() -> Exercise:
    def mask_false_negatives(logits, truth):
        own = torch.eye(len(logits), dtype=torch.bool)
        kept = logits.masked_fill(truth & ~own, -torch.inf)  # the other true pairs leave the denominator
        return cross_entropy(kept, torch.arange(len(logits)))

    def changes_nothing(logits, truth):
        """this is plain InfoNCE: the other true pairs still stand in the denominator. Did you keep the
        masked copy?"""
        return cross_entropy(logits, torch.arange(len(logits)))

    def removes_the_positive(logits, truth):
        """you mask the diagonal as well. The row's own pair is true too, but it must stay in the
        denominator."""
        negatives = logits.masked_fill(truth, -torch.inf)
        return (negatives.logsumexp(dim=1) - logits.diagonal()).mean()

    def masks_the_positive_away(logits, truth):
        """the loss is infinite: the row's own pair got -inf as well. Keep the diagonal: truth & ~eye."""
        return cross_entropy(logits.masked_fill(truth, -torch.inf), torch.arange(len(logits)))

    def zero_for_minus_infinity(logits, truth):
        """you set the logits to 0. exp(0) is 1, so they still count; -inf takes them out."""
        own = torch.eye(len(logits), dtype=torch.bool)
        return cross_entropy(logits.masked_fill(truth & ~own, 0.0), torch.arange(len(logits)))

    def masks_the_negatives(logits, truth):
        """you took out the wrong ones: the real negatives are gone and the false ones stay. Mask where
        truth is set."""
        own = torch.eye(len(logits), dtype=torch.bool)
        return cross_entropy(logits.masked_fill(~truth & ~own, -torch.inf), torch.arange(len(logits)))

    def extra_positives(logits, truth):
        """you reward the other true pairs as targets. That is another loss; here they are only taken out."""
        target = truth.float() / truth.float().sum(dim=1, keepdim=True)
        return cross_entropy(logits, target)

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for n in (4, 6, 9):
            others = torch.rand(n, n, generator=generator) < 0.3
            others[0, 1], others[2, 0] = True, False  # at least one false negative and one real negative
            found.append((3 * torch.randn(n, n, generator=generator), others | torch.eye(n, dtype=torch.bool)))
        return found

    return Exercise(
        solution=mask_false_negatives,
        wrong=(
            changes_nothing,
            removes_the_positive,
            masks_the_positive_away,
            zero_for_minus_infinity,
            masks_the_negatives,
            extra_positives,
        ),
        cases=cases,
        by_hand=(
            torch.tensor([[2.0, 2.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
            torch.tensor([[True, True, False], [False, True, False], [False, False, True]]),
        ),
        see_next="The loss is lower than plain InfoNCE: the model is not pushed away from true pairs.",
        gradient=True,
    )


def _online_logsumexp() -> Exercise:
    def online_logsumexp(tiles):
        largest = tiles[0].new_full((len(tiles[0]),), -torch.inf)  # (B,)
        total = torch.zeros_like(largest)  # (B,) sum of exp(logit - largest) so far
        for tile in tiles:
            now = torch.maximum(largest, tile.max(dim=1).values)
            total = total * (largest - now).exp() + (tile - now[:, None]).exp().sum(dim=1)
            largest = now
        return largest + total.log()

    def forgets_to_rescale(tiles):
        """the old sum keeps its old maximum. When the maximum grows, multiply the sum so far by exp(old -
        new)."""
        largest = tiles[0].new_full((len(tiles[0]),), -torch.inf)
        total = torch.zeros_like(largest)
        for tile in tiles:
            largest = torch.maximum(largest, tile.max(dim=1).values)
            total = total + (tile - largest[:, None]).exp().sum(dim=1)
        return largest + total.log()

    def no_maximum(tiles):
        """this is right for small logits and overflows at 1000. Subtract the largest logit so far before
        exp."""
        return sum(tile.exp().sum(dim=1) for tile in tiles).log()

    def restarts_each_tile(tiles):
        """only the last tile counts: maximum and sum start anew with each tile. Make them once, before the
        loop."""
        return tiles[-1].logsumexp(dim=1)

    def largest_tile_only(tiles):
        """you take the largest of the tiles' results. All of them count: the sums add up, the maxima do
        not."""
        return torch.stack([tile.logsumexp(dim=1) for tile in tiles]).max(dim=0).values

    def adds_logarithms(tiles):
        """you add up the tiles' logarithms. That multiplies the sums; add the sums, then take one
        logarithm."""
        return torch.stack([tile.logsumexp(dim=1) for tile in tiles]).sum(dim=0)

    def cases(generator: torch.Generator) -> list[tuple]:
        wide = torch.randn(4, 10, generator=generator) * 3
        rising = torch.arange(12.0).reshape(2, 6) / 3
        huge = torch.tensor([[1000.0, 999.0, 0.0, 998.0], [3.0, -1000.0, 2.0, 3.0]])
        return [
            ([*wide.split(4, dim=1)],),
            ([*rising.split(2, dim=1)],),
            ([*rising.flip(1).split(2, dim=1)],),
        ] + [([*huge.split(2, dim=1)],)]

    return Exercise(
        solution=online_logsumexp,
        wrong=(forgets_to_rescale, no_maximum, restarts_each_tile, largest_tile_only, adds_logarithms),
        cases=cases,
        by_hand=([torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0]])],),
        see_next="Only one tile is in memory at a time: the tiled loss never holds the whole matrix.",
    )


def _lowest_loss() -> Exercise:
    def lowest_loss(batch, temperature):
        others = -1 / (batch - 1)  # B unit vectors cannot all be opposite: the simplex is the best they can do
        return math.log(1 + (batch - 1) * math.exp((others - 1) / temperature))

    def no_temperature(batch, temperature):
        """the temperature is missing. It divides both cosines, so it divides their difference."""
        return math.log(1 + (batch - 1) * math.exp(-1 / (batch - 1) - 1))

    def multiplies_by_temperature(batch, temperature):
        """you multiply by the temperature. It divides: a small temperature brings the floor down."""
        return math.log(1 + (batch - 1) * math.exp((-1 / (batch - 1) - 1) * temperature))

    def log_batch(batch, temperature):
        """ln B is the loss when all cosines are equal. A trained model can do better than that."""
        return math.log(batch)

    def all_opposite(batch, temperature):
        """you put all negatives at cosine -1. Two vectors can be opposite, B cannot all be: the best is
        -1/(B-1)."""
        return math.log(1 + (batch - 1) * math.exp(-2 / temperature))

    def all_orthogonal(batch, temperature):
        """you put the negatives at cosine 0. They can go a little below: B unit vectors reach -1/(B-1)
        each."""
        return math.log(1 + (batch - 1) * math.exp(-1 / temperature))

    def forgets_the_positive(batch, temperature):
        """the positive is missing in the denominator: the 1 + in front, that is its own term divided by
        itself."""
        return math.log((batch - 1) * math.exp((-1 / (batch - 1) - 1) / temperature))

    return Exercise(
        solution=lowest_loss,
        wrong=(
            no_temperature,
            multiplies_by_temperature,
            log_batch,
            all_opposite,
            all_orthogonal,
            forgets_the_positive,
        ),
        cases=lambda generator: [(batch, t) for batch in (3, 4, 16, 256) for t in (1.0, 0.3)],
        by_hand=(2, 0.5),
        see_next="At B = 256 the floor is 4.55 nats at temperature 1, close to ln 256 = 5.55, and almost 0 at 0.07.",
    )


info_nce, gradient_of_logits, mask_false_negatives = (
    _info_nce(),
    _gradient_of_logits(),
    _mask_false_negatives(),
)
online_logsumexp, lowest_loss = _online_logsumexp(), _lowest_loss()
