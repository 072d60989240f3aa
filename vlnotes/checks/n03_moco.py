"""Exercises of notebook 03: the teacher's step, the ring, its ages, shuffling undone, the loss of a collapse."""

import torch

from vlnotes.checks.exercises import Exercise


def _follow_once() -> Exercise:
    def follow_once(teacher, student, momentum):
        return momentum * teacher.detach() + (1 - momentum) * student.detach()

    def roles_swapped(teacher, student, momentum):
        """the momentum belongs to the teacher. At momentum 1 nothing moves, at 0 the teacher is the student."""
        return (1 - momentum) * teacher.detach() + momentum * student.detach()

    def weights_that_do_not_sum_to_one(teacher, student, momentum):
        """you add the whole student. Its share is 1 - momentum, or the teacher grows without end."""
        return momentum * teacher.detach() + student.detach()

    def copies(teacher, student, momentum):
        """this is the student itself. Only a share of 1 - momentum of it arrives in one step."""
        return student.detach().clone()

    def adds_momentum_like_sgd(teacher, student, momentum):
        """this is the momentum of an optimiser, which adds to what it has. Here two weights are averaged."""
        return teacher.detach() + momentum * (student.detach() - teacher.detach()) * (1 - momentum)

    def cases(generator: torch.Generator) -> list[tuple]:
        rows = torch.randn(3, 2, 6, generator=generator)
        return [(old, new, momentum) for (old, new), momentum in zip(rows, (0.9, 0.0, 0.3), strict=True)]

    return Exercise(
        solution=follow_once,
        wrong=(roles_swapped, weights_that_do_not_sum_to_one, copies, adds_momentum_like_sgd),
        cases=cases,
        by_hand=(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0]), 0.9),
        see_next="After n steps a student of n steps ago still has the weight (1 - m) times m to the power n.",
        gradient=True,  # none may flow
    )


def _push_rows() -> Exercise:
    def push_rows(queue, pointer, rows):
        queue = queue.clone()
        queue[(pointer + torch.arange(len(rows))) % len(queue)] = rows
        return queue

    def does_not_wrap(queue, pointer, rows):
        """the pointer does not wrap: what did not fit at the end is lost. After row K - 1 comes row 0."""
        queue = queue.clone()
        fits = len(queue) - pointer
        queue[pointer:] = torch.cat([rows[:fits], queue[pointer + len(rows) :]])
        return queue

    def pushed_back(queue, pointer, rows):
        """the last rows of the queue were overwritten, so the push was moved back to fit. Wrap it to row 0."""
        queue = queue.clone()
        start = min(pointer, len(queue) - len(rows))
        queue[start : start + len(rows)] = rows
        return queue

    def from_the_start(queue, pointer, rows):
        """you write from row 0 on. The oldest row is where the pointer says."""
        return torch.cat([rows, queue[len(rows) :]])

    def shifts(queue, pointer, rows):
        """you move all rows and put the new ones at the end. In a ring only the written rows change."""
        return torch.cat([queue, rows])[-len(queue) :]

    def last_in_first_out(queue, pointer, rows):
        """you write over the rows before the pointer: those are the newest. Go forward from it."""
        queue = queue.clone()
        queue[(pointer - 1 - torch.arange(len(rows))) % len(queue)] = rows
        return queue

    def cases(generator: torch.Generator) -> list[tuple]:
        def numbers(n):
            return torch.randn(n, 3, generator=generator)

        return [(numbers(7), 5, numbers(4)), (numbers(6), 1, numbers(3)), (numbers(5), 3, numbers(5))]

    return Exercise(
        solution=push_rows,
        wrong=(does_not_wrap, pushed_back, from_the_start, shifts, last_in_first_out),
        cases=cases,
        by_hand=(torch.tensor([[1.0], [2.0], [3.0]]), 2, torch.tensor([[8.0], [9.0]])),
        see_next="The next pointer is (pointer + B) % K, and K need not be a multiple of B.",
    )


def _queue_ages() -> Exercise:
    def queue_ages(step, batch, size):
        last = (step + 1) * batch - 1
        newest = last - (last - torch.arange(size)) % size  # the largest n that lies in this row
        ages = step - torch.div(newest, batch, rounding_mode="floor")
        return torch.where(newest < 0, -1, ages)

    def in_pushes(step, batch, size):
        """you count features, not steps. All features of one batch have the same age."""
        last = (step + 1) * batch - 1
        newest = last - (last - torch.arange(size)) % size
        return torch.where(newest < 0, -1, last - newest)

    def as_if_it_never_wrapped(step, batch, size):
        """you look at the first round only. Once the queue is full, rows are written again and are young."""
        row = torch.arange(size)
        return torch.where(row > (step + 1) * batch - 1, -1, step - torch.div(row, batch, rounding_mode="floor"))

    def born_one(step, batch, size):
        """what was written in this step has age 0, not 1."""
        ages = queue_ages(step, batch, size)
        return torch.where(ages < 0, -1, ages + 1)

    def when_written(step, batch, size):
        """this is the step in which each row was written. Its age is how long ago that is."""
        ages = queue_ages(step, batch, size)
        return torch.where(ages < 0, -1, step - ages)

    def forgets_the_unwritten(step, batch, size):
        """rows that were never written have no age: -1."""
        last = (step + 1) * batch - 1
        newest = last - (last - torch.arange(size)) % size
        return step - torch.div(newest, batch, rounding_mode="floor")

    def cases(generator: torch.Generator) -> list[tuple]:
        return [(6, 5, 12), (1, 3, 8), (9, 4, 8), (3, 7, 5)]

    return Exercise(
        solution=queue_ages,
        wrong=(in_pushes, as_if_it_never_wrapped, born_one, when_written, forgets_the_unwritten),
        cases=cases,
        by_hand=(1, 2, 3),
        see_next="Where B divides K, the oldest age is K/B - 1; the paper's 65,536 and 256 give 255 steps.",
    )


def _back_in_order() -> Exercise:
    def back_in_order(features, order):
        return features[order.argsort()]

    def shuffles_again(features, order):
        """you apply the order a second time. Its inverse brings the rows back."""
        return features[order]

    def as_they_are(features, order):
        """the rows are still shuffled: query i would meet the key of picture order[i]."""
        return features.clone()

    def reverses(features, order):
        """a shuffled order is not undone by reading it backwards."""
        return features[order.flip(0)]

    def sorts_the_features(features, order):
        """you sort the features by their size. What must be sorted is the order."""
        return features[features[:, 0].argsort()]

    def cases(generator: torch.Generator) -> list[tuple]:
        return [(torch.randn(n, 3, generator=generator), torch.randperm(n, generator=generator)) for n in (6, 9, 7)]

    return Exercise(
        solution=back_in_order,
        wrong=(shuffles_again, as_they_are, reverses, sorts_the_features),
        cases=cases,
        by_hand=(torch.tensor([[30.0], [10.0], [20.0]]), torch.tensor([2, 0, 1])),
        see_next="Shuffling BN is this line and its counterpart; the loss never learns of it.",
    )


def _collapsed() -> Exercise:
    def collapsed(K):
        gradient = torch.full((1 + K,), 1 / (1 + K))
        gradient[0] -= 1
        return torch.stack([torch.tensor(float(1 + K)).log(), gradient.norm()])

    def forgets_the_positive(K):
        """the positive is missing in the denominator: there are 1 + K equal logits, not K."""
        return collapsed(K - 1)

    def zero_gradient(K):
        """the gradient on the logits is not zero: the softmax is flat, the target is not."""
        return torch.stack([torch.tensor(float(1 + K)).log(), torch.tensor(0.0)])

    def forgets_the_negatives(K):
        """the positive's entry alone is not the norm: the K negatives have 1/(1+K) each."""
        return torch.stack([torch.tensor(float(1 + K)).log(), torch.tensor(1 - 1 / (1 + K))])

    def sum_of_sizes(K):
        """you add up the sizes of the entries. The Euclidean norm is the root of the sum of their squares."""
        return torch.stack([torch.tensor(float(1 + K)).log(), torch.tensor(2 * K / (1 + K))])

    def in_bits(K):
        """the loss is in bits. Nats use the natural logarithm."""
        return torch.stack([torch.tensor(float(1 + K)).log2(), collapsed(K)[1]])

    return Exercise(
        solution=collapsed,
        wrong=(forgets_the_positive, zero_gradient, forgets_the_negatives, sum_of_sizes, in_bits),
        cases=lambda generator: [(3,), (10,), (1024,)],
        by_hand=(1,),
        see_next="A loss that sits at ln(1 + K) is the sign of a collapse: in section 7 you saw one.",
    )


follow_once = _follow_once()
push_rows = _push_rows()
queue_ages = _queue_ages()
back_in_order = _back_in_order()
collapsed = _collapsed()
