"""Exercises of notebook 05: the group score, hard negatives, soft words, the order of two stages and what it costs."""

import torch
from torch.nn.functional import cross_entropy

from vlnotes.checks.exercises import Exercise


def _group_score() -> Exercise:
    def group_score(scores):
        own = scores.diagonal(dim1=1, dim2=2)  # (n, 2)
        other = torch.stack([scores[:, 0, 1], scores[:, 1, 0]], dim=1)
        text = (own > other).all(1)  # each picture prefers its own sentence
        image = (own > other.flip(1)).all(1)  # each sentence prefers its own picture
        return (text & image).float().mean()

    def text_alone(scores):
        """this is the text score: each picture prefers its own sentence. The group score asks the sentences, too."""
        own = scores.diagonal(dim1=1, dim2=2)
        return (own > torch.stack([scores[:, 0, 1], scores[:, 1, 0]], dim=1)).all(1).float().mean()

    def image_alone(scores):
        """this is the image score: each sentence prefers its own picture. The group score asks the pictures, too."""
        own = scores.diagonal(dim1=1, dim2=2)
        return (own > torch.stack([scores[:, 1, 0], scores[:, 0, 1]], dim=1)).all(1).float().mean()

    def sum_of_the_diagonal(scores):
        """you compare sums. The better of two assignments may still hide a picture that prefers the wrong sentence."""
        own = scores[:, 0, 0] + scores[:, 1, 1]
        return (own > scores[:, 0, 1] + scores[:, 1, 0]).float().mean()

    def mean_of_comparisons(scores):
        """you count comparisons that are won. An item counts only if it wins all four."""
        own = scores.diagonal(dim1=1, dim2=2)
        other = torch.stack([scores[:, 0, 1], scores[:, 1, 0]], dim=1)
        return ((own > other).float().mean() + (own > other.flip(1)).float().mean()) / 2

    def ties_are_right(scores):
        """a tie counts as right in yours. A model that sees no difference must not be paid for it: use >."""
        own = scores.diagonal(dim1=1, dim2=2)
        other = torch.stack([scores[:, 0, 1], scores[:, 1, 0]], dim=1)
        return ((own >= other).all(1) & (own >= other.flip(1)).all(1)).float().mean()

    def cases(generator: torch.Generator) -> list[tuple]:
        tied = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[0.4, 0.4], [0.1, 0.9]], [[0.9, 0.1], [0.2, 0.8]]])
        return [(tied,)] + [(torch.randn(n, 2, 2, generator=generator),) for n in (40, 60)]

    return Exercise(
        solution=group_score,
        wrong=(text_alone, image_alone, sum_of_the_diagonal, mean_of_comparisons, ties_are_right),
        cases=cases,
        by_hand=(torch.tensor([[[0.9, 0.8], [0.3, 0.7]], [[0.6, 0.2], [0.1, 0.4]]]),),
        see_next="Of 24 orders of four numbers 4 pass, so chance is one sixth.",
    )


def _hard_negative_weights() -> Exercise:
    def hard_negative_weights(similarity, ids):
        own = ids[:, None] == ids  # (B, B), the diagonal is among them
        return similarity.masked_fill(own, -torch.inf).softmax(1)

    def own_left_in(similarity, ids):
        """the own column may be drawn in yours, and a true pair is called wrong. Take it out."""
        return similarity.softmax(1)

    def diagonal_alone(similarity, ids):
        """you take out the diagonal alone. Another row of the same picture is no negative, either: compare ids."""
        return similarity.masked_fill(torch.eye(len(ids), dtype=torch.bool), -torch.inf).softmax(1)

    def zero_logit(similarity, ids):
        """a logit of 0 does not exclude: its exponential is 1. Use minus infinity."""
        return similarity.masked_fill(ids[:, None] == ids, 0.0).softmax(1)

    def after_the_softmax(similarity, ids):
        """you take the own column out after the softmax. A row that is sure of itself then divides 0 by 0."""
        weights = similarity.softmax(1).masked_fill(ids[:, None] == ids, 0.0)
        return weights / weights.sum(1, keepdim=True)

    def along_the_columns(similarity, ids):
        """the softmax runs along the wrong axis: every row draws its own negative, so every row sums to 1."""
        return similarity.masked_fill(ids[:, None] == ids, -torch.inf).softmax(0)

    def the_easiest(similarity, ids):
        """yours prefers the pairs that look least alike. The more similar, the more likely: no minus sign."""
        return (-similarity).masked_fill(ids[:, None] == ids, -torch.inf).softmax(1)

    def cases(generator: torch.Generator) -> list[tuple]:
        sure = torch.randn(4, 4, generator=generator)
        sure[2, 2] = 500.0
        rows = torch.tensor([3, 5, 3, 8, 5])
        return [
            (2 * torch.randn(5, 5, generator=generator), rows),
            (sure, torch.arange(4)),
            (torch.randn(3, 3, generator=generator), torch.tensor([4, 4, 7])),
        ]

    return Exercise(
        solution=hard_negative_weights,
        wrong=(own_left_in, diagonal_alone, zero_logit, after_the_softmax, along_the_columns, the_easiest),
        cases=cases,
        by_hand=(torch.tensor([[9.0, 1.0, 1.0], [0.0, 5.0, 2.0], [1.0, 1.0, 7.0]]), torch.tensor([1, 2, 2])),
        see_next="A row that is sure of its own caption still has a whole softmax to draw from.",
    )


def _soft_words() -> Exercise:
    def soft_words(logits, labels, teacher_logits, weight):
        hidden = labels != -100
        logits, labels = logits[hidden], labels[hidden]  # (S, V), (S,)
        soft = teacher_logits[hidden].detach().softmax(1)
        return (1 - weight) * cross_entropy(logits, labels) + weight * cross_entropy(logits, soft)

    def over_all_words(logits, labels, teacher_logits, weight):
        """you divide by all words. The mean is over the hidden ones alone, or rare masks make a small loss."""
        return soft_words(logits, labels, teacher_logits, weight) * (labels != -100).float().mean()

    def teacher_everywhere(logits, labels, teacher_logits, weight):
        """the teacher speaks at every place in yours. Where no word is hidden there is nothing to guess."""
        soft = teacher_logits.detach().flatten(0, 1).softmax(1)
        hard = cross_entropy(logits.flatten(0, 1), labels.flatten())
        return (1 - weight) * hard + weight * cross_entropy(logits.flatten(0, 1), soft)

    def roles_swapped(logits, labels, teacher_logits, weight):
        """the weight belongs to the teacher. At weight 0 the written word alone counts."""
        return soft_words(logits, labels, teacher_logits, 1 - weight)

    def own_opinion(logits, labels, teacher_logits, weight):
        """you soften the targets with the student's own softmax. The second opinion is the teacher's."""
        return soft_words(logits, labels, logits, weight)

    def hard_teacher(logits, labels, teacher_logits, weight):
        """you take the teacher's favourite word alone. Its whole opinion is wanted: the synonyms stand in it."""
        hidden = labels != -100
        hard = cross_entropy(logits[hidden], labels[hidden])
        return (1 - weight) * hard + weight * cross_entropy(logits[hidden], teacher_logits[hidden].argmax(1))

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for b, length, words, weight in ((2, 4, 6, 0.4), (3, 5, 4, 0.25), (2, 3, 5, 0.7)):
            labels = torch.randint(words, (b, length), generator=generator)
            labels[torch.rand(b, length, generator=generator) < 0.5] = -100
            labels[0, 0], labels[1, 1] = 1, -100
            shape = (b, length, words)
            logits = 2 * torch.randn(shape, generator=generator)
            found.append((logits, labels, 2 * torch.randn(shape, generator=generator), weight))
        return found

    return Exercise(
        solution=soft_words,
        wrong=(over_all_words, teacher_everywhere, roles_swapped, own_opinion, hard_teacher),
        cases=cases,
        by_hand=(
            torch.tensor([[[0.0, 0.0], [2.0, 0.0]]]),
            torch.tensor([[1, -100]]),
            torch.tensor([[[0.0, 2.0], [0.0, 0.0]]]),
            0.5,
        ),
        see_next="Half of a synonym's probability no longer counts as a mistake.",
        gradient=True,
    )


def _two_stages() -> Exercise:
    def two_stages(cosine, logit, k):
        first = cosine.argsort(descending=True)
        near, far = first[:k], first[k:]
        return torch.cat([near[logit[near].argsort(descending=True)], far])

    def cosine_alone(cosine, logit, k):
        """the logit is not used: this is the first stage alone."""
        return cosine.argsort(descending=True)

    def logit_alone(cosine, logit, k):
        """ITM ranks everything in yours. Only the first k by cosine are looked at, that is the point."""
        return logit.argsort(descending=True)

    def mixed_scales(cosine, logit, k):
        """logits of the first k stand among cosines of the rest. The first k stay in front, however low they are."""
        scores, near = cosine.clone(), cosine.topk(k).indices
        scores[near] = logit[near]
        return scores.argsort(descending=True)

    def rest_by_logit(cosine, logit, k):
        """the rest is ordered by its logits, which nobody worked out. It keeps the order of the cosines."""
        first = cosine.argsort(descending=True)
        near, far = first[:k], first[k:]
        order = [part[logit[part].argsort(descending=True)] for part in (near, far)]
        return torch.cat(order)

    def best_k_logits(cosine, logit, k):
        """you choose the k by the logit. The cheap cosine chooses, the logit sorts what was chosen."""
        near = logit.topk(k).indices
        first = cosine.argsort(descending=True)
        return torch.cat([near, first[~torch.isin(first, near)]])

    def cases(generator: torch.Generator) -> list[tuple]:
        return [
            (torch.rand(m, generator=generator), 3 * torch.randn(m, generator=generator), k)
            for m, k in ((9, 4), (12, 5), (7, 3))
        ]

    return Exercise(
        solution=two_stages,
        wrong=(cosine_alone, logit_alone, mixed_scales, rest_by_logit, best_k_logits),
        cases=cases,
        by_hand=(torch.tensor([0.9, 0.8, 0.1, 0.2]), torch.tensor([-3.0, 1.0, 5.0, 4.0]), 2),
        see_next="What the cosine leaves out of its first k no logit can bring back.",
    )


def _pairs_looked_at() -> Exercise:
    def pairs_looked_at(pictures, captions, k):
        return pictures * min(k, captions) + captions * min(k, pictures)

    def one_direction(pictures, captions, k):
        """captions ask for pictures, too: they bring k pairs each."""
        return pictures * min(k, captions)

    def every_pair(pictures, captions, k):
        """this is the price without a first stage: every picture with every caption."""
        return pictures * captions

    def no_limit(pictures, captions, k):
        """a gallery smaller than k has no k entries: cut k at its size."""
        return k * (pictures + captions)

    def a_block(pictures, captions, k):
        """you count a block of k times k. Each query has k candidates of its own."""
        return min(k, pictures) * min(k, captions)

    return Exercise(
        solution=pairs_looked_at,
        wrong=(one_direction, every_pair, no_limit, a_block),
        cases=lambda generator: [(1000, 5000, 128), (5000, 25_000, 256), (40, 200, 64), (300, 20, 64)],
        by_hand=(2, 3, 1),
        see_next="On Flickr30K's test set that is 0.8 million pairs in place of 5 million.",
    )


group_score = _group_score()
hard_negative_weights = _hard_negative_weights()
soft_words = _soft_words()
two_stages = _two_stages()
pairs_looked_at = _pairs_looked_at()
