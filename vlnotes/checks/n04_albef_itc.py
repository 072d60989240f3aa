"""Exercises of notebook 04: logits against a teacher, mixed targets, ids in the targets, one mean key, the ramp."""

import torch
from torch.nn.functional import normalize

from vlnotes.checks.exercises import Exercise


def _rows(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=generator), dim=-1)


def _itc_logits() -> Exercise:
    def itc_logits(queries, teacher_keys, queue, temperature):
        columns = torch.cat([teacher_keys, queue]).detach()  # (B + K, D)
        return queries @ columns.T / temperature

    def queue_first(queries, teacher_keys, queue, temperature):
        """the queue stands first, so the positive of row i is in column K + i. The batch comes first."""
        return queries @ torch.cat([queue, teacher_keys]).detach().T / temperature

    def queue_alone(queries, teacher_keys, queue, temperature):
        """the batch's own keys are missing, and with them every positive."""
        return queries @ queue.detach().T / temperature

    def positive_then_queue(queries, teacher_keys, queue, temperature):
        """this is MoCo's table (B, 1 + K). Here the other keys of the batch are negatives, too."""
        positive = (queries * teacher_keys.detach()).sum(1, keepdim=True)
        return torch.cat([positive, queries @ queue.detach().T], dim=1) / temperature

    def no_temperature(queries, teacher_keys, queue, temperature):
        """the temperature is missing: cosines alone make a softmax that is nearly flat."""
        return queries @ torch.cat([teacher_keys, queue]).detach().T

    def times_the_temperature(queries, teacher_keys, queue, temperature):
        """you multiply by the temperature. It divides: a small one stretches the cosines."""
        return queries @ torch.cat([teacher_keys, queue]).detach().T * temperature

    def cases(generator: torch.Generator) -> list[tuple]:
        sizes = ((4, 3, 0.1), (3, 5, 0.5), (2, 6, 0.2))
        return [(_rows(generator, b, 6), _rows(generator, b, 6), _rows(generator, k, 6), t) for b, k, t in sizes]

    return Exercise(
        solution=itc_logits,
        wrong=(queue_first, queue_alone, positive_then_queue, no_temperature, times_the_temperature),
        cases=cases,
        by_hand=(torch.eye(2), torch.eye(2), torch.tensor([[0.6, 0.8]]), 0.5),
        see_next="The right answer of row i is column i, however long the queue is.",
        gradient=True,
    )


def _mixed_targets() -> Exercise:
    def mixed_targets(teacher_logits, weight):
        B, columns = teacher_logits.shape
        return weight * teacher_logits.detach().softmax(1) + (1 - weight) * torch.eye(B, columns)

    def roles_swapped(teacher_logits, weight):
        """the weight belongs to the teacher. At weight 0 the target is the one-hot."""
        return mixed_targets(teacher_logits, 1 - weight)

    def along_the_columns(teacher_logits, weight):
        """the softmax runs along the wrong axis: every row is a question and must sum to 1."""
        B, columns = teacher_logits.shape
        return weight * teacher_logits.detach().softmax(0) + (1 - weight) * torch.eye(B, columns)

    def logits_as_targets(teacher_logits, weight):
        """you mix in the teacher's logits. A target is made of probabilities: take the softmax first."""
        B, columns = teacher_logits.shape
        return weight * teacher_logits.detach() + (1 - weight) * torch.eye(B, columns)

    def hard_teacher(teacher_logits, weight):
        """you take the teacher's favourite alone. Its whole opinion is wanted, the softmax."""
        B, columns = teacher_logits.shape
        favourite = torch.eye(columns)[teacher_logits.argmax(1)]
        return weight * favourite + (1 - weight) * torch.eye(B, columns)

    def on_top(teacher_logits, weight):
        """you add the teacher to a whole one-hot: the rows sum to more than 1. The one-hot gets 1 - weight."""
        return weight * teacher_logits.detach().softmax(1) + torch.eye(*teacher_logits.shape)

    def softmax_of_the_mix(teacher_logits, weight):
        """you mix first and take the softmax then. Mix two distributions, not their logits."""
        mixed = weight * teacher_logits.detach() + (1 - weight) * torch.eye(*teacher_logits.shape)
        return mixed.softmax(1)

    def cases(generator: torch.Generator) -> list[tuple]:
        sizes = ((4, 7, 0.4), (3, 3, 0.25), (2, 5, 0.0))
        return [(2 * torch.randn(b, k, generator=generator), w) for b, k, w in sizes]

    return Exercise(
        solution=mixed_targets,
        wrong=(roles_swapped, along_the_columns, logits_as_targets, hard_teacher, on_top, softmax_of_the_mix),
        cases=cases,
        by_hand=(torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]]), 0.5),
        see_next="Every row sums to 1, and the own caption keeps at least 1 - weight, be it right or wrong.",
        gradient=True,  # none may flow
    )


def _targets_with_ids() -> Exercise:
    def targets_with_ids(ids, queue_ids):
        B = len(ids)
        same = ids[:, None] == torch.cat([ids, queue_ids])  # (B, B + K)
        same &= (ids >= 0)[:, None]  # two unknowns are not the same picture
        same[:, :B] |= torch.eye(B, dtype=torch.bool)
        return same / same.sum(1, keepdim=True)

    def one_hot(ids, queue_ids):
        """the ids are not used: this is the one-hot of pre-training."""
        return torch.eye(len(ids), len(ids) + len(queue_ids))

    def rows_do_not_sum_to_one(ids, queue_ids):
        """the rows do not sum to 1: divide by how many right answers a row has."""
        return (targets_with_ids(ids, queue_ids) > 0).float()

    def forgets_the_queue(ids, queue_ids):
        """a picture that is still in the queue counts as well: its columns have the same id."""
        inside = targets_with_ids(ids, queue_ids[:0])
        return torch.cat([inside, torch.zeros(len(ids), len(queue_ids))], dim=1)

    def unknowns_are_alike(ids, queue_ids):
        """-1 means unknown. Two unknown pictures are not the same picture."""
        same = ids[:, None] == torch.cat([ids, queue_ids])
        return same / same.sum(1, keepdim=True)

    def unknown_owns_nothing(ids, queue_ids):
        """a row with an unknown id has one right answer still, its own column. Yours has none, and divides 0 by 0."""
        same = (ids[:, None] == torch.cat([ids, queue_ids])) & (ids >= 0)[:, None]
        return same / same.sum(1, keepdim=True)

    def along_the_columns(ids, queue_ids):
        """you divide every column by its sum. A row is a question, and its target must sum to 1."""
        same = (targets_with_ids(ids, queue_ids) > 0).float()
        return same / same.sum(0, keepdim=True).clamp(min=1)

    def cases(generator: torch.Generator) -> list[tuple]:
        return [
            (torch.tensor([3, 5, 3, 8]), torch.tensor([5, 9, -1, 3, 5])),
            (torch.tensor([1, -1, 2, -1]), torch.tensor([-1, 2, 2, -1])),
            (torch.tensor([4, 4, 7]), torch.tensor([4, 6])),
        ]

    return Exercise(
        solution=targets_with_ids,
        wrong=(
            one_hot,
            rows_do_not_sum_to_one,
            forgets_the_queue,
            unknowns_are_alike,
            unknown_owns_nothing,
            along_the_columns,
        ),
        cases=cases,
        by_hand=(torch.tensor([7, 2]), torch.tensor([7, -1])),
        see_next="With five captions a picture a long queue holds many right answers that a one-hot calls wrong.",
    )


def _mean_key_loss() -> Exercise:
    def mean_key_loss(queries, keys, target, temperature):
        mean_key = target @ keys  # (B, D)
        norm = (queries @ keys.T / temperature).logsumexp(1)
        return (norm - (queries * mean_key).sum(1) / temperature).mean()

    def normalised(queries, keys, target, temperature):
        """you gave the mean key the length 1. Its shortness is what says that the target is spread out."""
        mean_key = normalize(target @ keys, dim=1)
        norm = (queries @ keys.T / temperature).logsumexp(1)
        return (norm - (queries * mean_key).sum(1) / temperature).mean()

    def favourite_key(queries, keys, target, temperature):
        """you take the key with the largest target. The mean of all keys under the target is wanted."""
        return mean_key_loss(queries, keys, torch.eye(len(keys))[target.argmax(1)], temperature)

    def plain_mean(queries, keys, target, temperature):
        """this is the mean of all keys, the same for every row. Weigh them by the target."""
        return mean_key_loss(queries, keys, torch.full_like(target, 1 / len(keys)), temperature)

    def half_a_temperature(queries, keys, target, temperature):
        """the logit of the mean key is not divided by the temperature."""
        norm = (queries @ keys.T / temperature).logsumexp(1)
        return (norm - (queries * (target @ keys)).sum(1)).mean()

    def mean_key_among_the_negatives(queries, keys, target, temperature):
        """the mean key went into the logsumexp as well. It is no candidate, the keys are."""
        logits = queries @ keys.T / temperature
        own = (queries * (target @ keys)).sum(1) / temperature
        return (torch.cat([logits, own[:, None]], dim=1).logsumexp(1) - own).mean()

    def no_logsumexp(queries, keys, target, temperature):
        """the logsumexp over all keys is missing: this only pulls, nothing pushes away."""
        return -(queries * (target @ keys)).sum(1).mean() / temperature

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for b, k, t in ((3, 7, 0.2), (4, 9, 0.1), (2, 5, 0.5)):
            soft = (2 * torch.randn(b, k, generator=generator)).softmax(1)
            found.append((_rows(generator, b, 5), _rows(generator, k, 5), soft, t))
        return found

    return Exercise(
        solution=mean_key_loss,
        wrong=(normalised, favourite_key, plain_mean, half_a_temperature, mean_key_among_the_negatives, no_logsumexp),
        cases=cases,
        by_hand=(torch.eye(2), torch.eye(2), torch.tensor([[0.5, 0.5], [0.0, 1.0]]), 1.0),
        see_next="The target of shape (B, K) was used once, to make a mean of shape (B, D).",
    )


def _ramp() -> Exercise:
    def ramp(step, epoch, maximum):
        return maximum * min(1.0, step / epoch)

    def never_stops(step, epoch, maximum):
        """it grows beyond the maximum. After one epoch it stays."""
        return maximum * step / epoch

    def from_the_start(step, epoch, maximum):
        """at step 0 the teacher knows nothing and gets no share. Yours begins with the maximum."""
        return maximum

    def by_whole_epochs(step, epoch, maximum):
        """yours jumps at the end of the epoch. The paper's code raises it with every step."""
        return maximum * min(1, step // epoch)

    def backwards(step, epoch, maximum):
        """yours falls. The teacher gets better with time, so its share grows."""
        return maximum * max(0.0, 1 - step / epoch)

    def up_to_one(step, epoch, maximum):
        """yours ends at 1: nothing would be left of the true pairs. It ends at the maximum."""
        return min(1.0, step / epoch)

    def cut_not_scaled(step, epoch, maximum):
        """yours reaches the maximum too early: it climbs towards 1 and is cut. It should arrive as the epoch ends."""
        return min(maximum, step / epoch)

    return Exercise(
        solution=ramp,
        wrong=(never_stops, from_the_start, by_whole_epochs, backwards, up_to_one, cut_not_scaled),
        cases=lambda generator: [(0, 40, 0.4), (10, 40, 0.4), (25, 40, 0.3), (40, 40, 0.4), (90, 40, 0.4)],
        by_hand=(1, 4, 0.4),
        see_next="With 156 steps an epoch the teacher's share grows by 0.0026 a step.",
    )


itc_logits = _itc_logits()
mixed_targets = _mixed_targets()
targets_with_ids = _targets_with_ids()
mean_key_loss = _mean_key_loss()
ramp = _ramp()
