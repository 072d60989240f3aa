"""Exercises of notebook 10: a column as a target, mixed rows, the schedule, no gradient, AUROC, beyond the line."""

import math

import torch

from vlnotes.checks.exercises import Exercise


def _column_targets() -> Exercise:
    def column_targets(logits):
        chosen = logits.softmax(0)  # (B, B), column j: whom text j chooses
        return chosen / chosen.sum(1, keepdim=True)

    def own_belief(logits):
        """these are the pictures' own beliefs: a softmax along the rows. Ask the texts: along the columns."""
        return logits.softmax(1)

    def row_of_the_text(logits):
        """row i is what text i believes about the pictures. Picture i wants to know what *all* texts think of it."""
        return logits.softmax(0).T

    def not_divided(logits):
        """the columns sum to 1, the rows do not. A target is a distribution: divide each row by its sum."""
        return logits.softmax(0)

    def softmax_again(logits):
        """you took a softmax of probabilities. They are between 0 and 1, so it comes out nearly even; just divide."""
        return logits.softmax(0).softmax(1)

    def cases(generator: torch.Generator) -> list[tuple]:
        return [(3 * torch.randn(n, n, generator=generator),) for n in (4, 6, 3)]

    return Exercise(
        solution=column_targets,
        wrong=(own_belief, row_of_the_text, not_divided, softmax_again),
        cases=cases,
        by_hand=(torch.tensor([[2.0, 0.0], [0.0, 0.0]]),),
        see_next="The division hides how much the texts care: a picture nobody prefers has a target as loud as any.",
    )


def _mixed_rows() -> Exercise:
    def mixed_rows(logits, targets, unaligned):
        log_p = logits.log_softmax(1)
        soft = -(targets.detach() * log_p).sum(1)  # (B,)
        return torch.where(unaligned, soft, -log_p.diagonal()).mean()

    def mask_turned_round(logits, targets, unaligned):
        """your mask is turned round: the unaligned rows are those that get soft targets."""
        return mixed_rows(logits, targets, ~unaligned)

    def half_and_half(logits, targets, unaligned):
        """you mixed two means with equal weight. Each row counts once, so a group counts as often as it has rows."""
        log_p = logits.log_softmax(1)
        soft = -(targets.detach() * log_p).sum(1)
        return (soft[unaligned].mean() - log_p.diagonal()[~unaligned].mean()) / 2

    def without_their_columns(logits, targets, unaligned):
        """you took the unaligned columns out of the softmax. Only the target of a row changes; all columns stay."""
        lone = unaligned & ~torch.eye(len(logits), dtype=torch.bool)
        log_p = logits.masked_fill(lone, -1e9).log_softmax(1)
        soft = -(targets.detach() * logits.log_softmax(1)).sum(1)
        return torch.where(unaligned, soft, -log_p.diagonal()).mean()

    def summed(logits, targets, unaligned):
        """this is the sum over the rows, not their mean."""
        return len(logits) * mixed_rows(logits, targets, unaligned)

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for mask in ([True, False, False, True, False], [False, True, True, True], [True, False, False]):
            draw = [2 * torch.randn(len(mask), len(mask), generator=generator) for _ in range(2)]
            found.append((draw[0], draw[1].softmax(1), torch.tensor(mask)))
        return found

    return Exercise(
        solution=mixed_rows,
        wrong=(mask_turned_round, half_and_half, without_their_columns, summed),
        cases=cases,
        by_hand=(torch.zeros(2, 2), torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([True, False])),
        see_next="With no unaligned row this is CLIP's loss in one direction, exactly.",
        gradient=True,
    )


def _soft_share() -> Exercise:
    def soft_share(step, start, total, maximum):
        done = min(1.0, max(0.0, (step - start) / (total - start)))
        return maximum * (1 - math.cos(math.pi * done)) / 2

    def straight(step, start, total, maximum):
        """this is a straight line. Half a cosine is flat at both ends."""
        return maximum * min(1.0, max(0.0, (step - start) / (total - start)))

    def falls(step, start, total, maximum):
        """yours begins at the maximum and falls. Doubt is to grow: 1 minus the cosine."""
        return maximum - soft_share(step, start, total, maximum)

    def comes_back(step, start, total, maximum):
        """beyond `total` yours comes down again. The share stays at its maximum: hold what is done at 1."""
        done = max(0.0, (step - start) / (total - start))
        return maximum * (1 - math.cos(math.pi * done)) / 2

    def before_the_start(step, start, total, maximum):
        """before `start` yours is above 0, for a cosine is even. Hold what is done at 0."""
        done = min(1.0, (step - start) / (total - start))
        return maximum * (1 - math.cos(math.pi * done)) / 2

    def too_slow(step, start, total, maximum):
        """at `total` yours is not there yet. It has only total - start steps to go from 0 to 1."""
        done = min(1.0, max(0.0, (step - start) / total))
        return maximum * (1 - math.cos(math.pi * done)) / 2

    def not_halved(step, start, total, maximum):
        """yours goes up to twice the maximum: 1 minus a cosine runs from 0 to 2."""
        return 2 * soft_share(step, start, total, maximum)

    def cases(generator: torch.Generator) -> list[tuple]:
        return [(1, 4, 10, 0.8), (6, 4, 10, 0.8), (10, 2, 10, 0.5), (14, 4, 10, 0.8), (70, 20, 200, 0.3)]

    return Exercise(
        solution=soft_share,
        wrong=(straight, falls, comes_back, before_the_start, too_slow, not_halved),
        cases=cases,
        by_hand=(6, 2, 10, 0.8),
        see_next="Up to `start` it is CLIP to the letter, and a good while beyond it nearly so.",
    )


def _own_gradient() -> Exercise:
    def own_gradient(cosines, temperature, teacher_temperature):
        wanted, said = (cosines / teacher_temperature).softmax(1), (cosines / temperature).softmax(1)
        return (said - wanted) / temperature

    def sign(cosines, temperature, teacher_temperature):
        """the sign is turned round. A gradient points uphill: prediction minus target."""
        return -own_gradient(cosines, temperature, teacher_temperature)

    def per_logit(cosines, temperature, teacher_temperature):
        """this is the gradient of the logits. They are cosines over the temperature, so one factor is missing."""
        return temperature * own_gradient(cosines, temperature, teacher_temperature)

    def towards_one_hot(cosines, temperature, teacher_temperature):
        """this is the gradient of a hard row. The target is the model's own softmax at the teacher's temperature."""
        return ((cosines / temperature).softmax(1) - torch.eye(len(cosines))) / temperature

    def not_detached(cosines, temperature, teacher_temperature):
        """you let the target move, too. The teacher is held fixed: only the prediction has a gradient."""
        cosines = cosines.clone().requires_grad_()
        log_p = (cosines / temperature).log_softmax(1)
        loss = -((cosines / teacher_temperature).softmax(1) * log_p).sum()
        return torch.autograd.grad(loss, cosines)[0]

    def roles_exchanged(cosines, temperature, teacher_temperature):
        """the two temperatures have changed places."""
        return own_gradient(cosines, teacher_temperature, temperature)

    def cases(generator: torch.Generator) -> list[tuple]:
        draw = (2 * torch.rand(n, n, generator=generator) - 1 for n in (4, 5, 3))
        return [(next(draw), 0.2, 0.1), (next(draw), 0.3, 0.6), (next(draw), 0.25, 0.25)]

    return Exercise(
        solution=own_gradient,
        wrong=(sign, per_logit, towards_one_hot, not_detached, roles_exchanged),
        cases=cases,
        by_hand=(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 0.5, 0.25),
        see_next="With equal temperatures both softmaxes are one, and the teacher teaches nothing.",
    )


def _auroc() -> Exercise:
    def auroc(own, clean):
        good, bad = own[clean][:, None], own[~clean]
        return ((good > bad).double() + (good == bad).double() / 2).mean()

    def turned_round(own, clean):
        """this is how often a *wrong* caption has the higher cosine."""
        return 1 - auroc(own, clean)

    def ties_are_lost(own, clean):
        """a tie counts as lost in yours. A coin would settle it: one half."""
        return (own[clean][:, None] > own[~clean]).double().mean()

    def share_above_the_mean(own, clean):
        """this is the accuracy of one threshold, the mean. AUROC asks about order and needs no threshold."""
        return ((own > own.mean()) == clean).double().mean()

    def in_the_order_given(own, clean):
        """you compared the k-th good one with the k-th bad one. Compare every good one with every bad one."""
        count = min(int(clean.sum()), int((~clean).sum()))
        good, bad = own[clean][:count], own[~clean][:count]
        return ((good > bad).double() + (good == bad).double() / 2).mean()

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for n in (9, 12, 7):
            own = torch.randint(0, 6, (n,), generator=generator) / 5  # few values, so that there are ties
            clean = torch.rand(n, generator=generator) < 0.6
            clean[:2] = torch.tensor([True, False])
            found.append((own, clean))
        return found

    return Exercise(
        solution=auroc,
        wrong=(turned_round, ties_are_lost, share_above_the_mean, in_the_order_given),
        cases=cases,
        by_hand=(torch.tensor([0.9, 0.2, 0.5]), torch.tensor([True, True, False])),
        see_next="0.5 is a coin, whatever the share of wrong captions.",
    )


def _beyond_the_line() -> Exercise:
    def beyond_the_line(x, y, intercept, slope):
        expected = torch.sigmoid(intercept + slope * torch.logit(x))
        return y - expected

    def plain_axes(x, y, intercept, slope):
        """your line lies on plain axes. Intercept and slope are those of the logits."""
        return y - (intercept + slope * x)

    def left_in_logits(x, y, intercept, slope):
        """your difference is one of logits. Bring the line back to a share before you subtract."""
        return torch.logit(y) - (intercept + slope * torch.logit(x))

    def fall_of_accuracy(x, y, intercept, slope):
        """this is how much accuracy the shift costs. Ordinary models lose, too: compare with the line."""
        return y - x

    def turned_round(x, y, intercept, slope):
        """the sign is turned round: what the model has minus what the line expects."""
        return -beyond_the_line(x, y, intercept, slope)

    def axes_exchanged(x, y, intercept, slope):
        """the two accuracies have changed places: the line goes from the usual test to the shifted one."""
        return x - torch.sigmoid(intercept + slope * torch.logit(y))

    def cases(generator: torch.Generator) -> list[tuple]:
        draw = 0.05 + 0.9 * torch.rand(3, 2, 5, generator=generator)
        return [(*draw[0], -0.5, 0.9), (*draw[1], -1.6, 0.9), (*draw[2], 0.2, 1.3)]

    return Exercise(
        solution=beyond_the_line,
        wrong=(plain_axes, left_in_logits, fall_of_accuracy, turned_round, axes_exchanged),
        cases=cases,
        by_hand=(torch.tensor([0.5, 0.8]), torch.tensor([0.5, 0.5]), 0.0, 1.0),
        see_next="A model can be better under the shift and still lie below the line: better is not more robust.",
    )


column_targets = _column_targets()
mixed_rows = _mixed_rows()
soft_share = _soft_share()
own_gradient = _own_gradient()
auroc = _auroc()
beyond_the_line = _beyond_the_line()
