"""Exercises of notebook 11: agreement both ways, what a code says, ties, how many codes a batch shows, the last
normalisation."""

import math

import torch

from vlnotes.checks.exercises import Exercise


def _agreement() -> Exercise:
    def agreement(image_logits, text_logits):
        log_p, log_q = image_logits.log_softmax(1), text_logits.log_softmax(1)
        return -(log_p.exp() * log_q + log_q.exp() * log_p).sum(1).mean() / 2

    def one_way(image_logits, text_logits):
        """only the text answers in yours. Ask both ways: H(p, q) and H(q, p)."""
        return -(image_logits.softmax(1) * text_logits.log_softmax(1)).sum(1).mean()

    def divergence(image_logits, text_logits):
        """this is the divergence of the two. A cross-entropy also holds the entropy of its target."""
        log_p, log_q = image_logits.log_softmax(1), text_logits.log_softmax(1)
        return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1).mean() / 2

    def log_of_the_product(image_logits, text_logits):
        """you took the logarithm of the sum of products. The logarithm stands inside the sum, at each code."""
        return -(image_logits.softmax(1) * text_logits.softmax(1)).sum(1).log().mean()

    def not_halved(image_logits, text_logits):
        """this is the sum of both directions, not their mean."""
        return 2 * agreement(image_logits, text_logits)

    def summed(image_logits, text_logits):
        """this is the sum over the pairs, not their mean."""
        return len(image_logits) * agreement(image_logits, text_logits)

    def cases(generator: torch.Generator) -> list[tuple]:
        sizes = ((4, 6), (5, 3), (3, 8))
        return [tuple(2 * torch.randn(size, generator=generator) for _ in range(2)) for size in sizes]

    return Exercise(
        solution=agreement,
        wrong=(one_way, divergence, log_of_the_product, not_halved, summed),
        cases=cases,
        by_hand=(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])),
        see_next="Two that agree still pay for being unsure: the same one-hot for both costs nothing.",
        gradient=True,
    )


def _what_a_code_says() -> Exercise:
    def what_a_code_says(logits):
        p = logits.softmax(1)
        whole = torch.special.entr(p.mean(0)).sum()
        return whole - torch.special.entr(p).sum(1).mean()

    def sign(logits):
        """the sign is turned round: the entropy of the mean is the larger one."""
        return -what_a_code_says(logits)

    def mean_of_logits(logits):
        """you averaged logits. Average the distributions: the softmax comes first."""
        p = logits.softmax(1)
        return torch.special.entr(logits.mean(0).softmax(0)).sum() - torch.special.entr(p).sum(1).mean()

    def without_the_samples(logits):
        """this is the entropy of the mean alone. Unsure samples make it large, too: take off their own entropy."""
        return torch.special.entr(logits.softmax(1).mean(0)).sum()

    def down_the_columns(logits):
        """your softmax runs down the columns. Each sample has a distribution over codes, along its row."""
        return what_a_code_says(logits.T)

    def in_bits(logits):
        """these are bits. The course counts in nats: natural logarithms."""
        return what_a_code_says(logits) / math.log(2)

    def cases(generator: torch.Generator) -> list[tuple]:
        return [(3 * torch.randn(size, generator=generator),) for size in ((4, 6), (6, 4), (5, 9))]

    return Exercise(
        solution=what_a_code_says,
        wrong=(sign, mean_of_logits, without_the_samples, down_the_columns, in_bits),
        cases=cases,
        by_hand=(torch.tensor([[20.0, 0.0], [0.0, 20.0]]),),
        see_next="Two sure samples with two codes say ln 2 about each other; with one code they say nothing.",
        gradient=True,
    )


def _tied_recall() -> Exercise:
    def tied_recall(image_codes, text_codes):
        same = image_codes[:, None] == text_codes  # (N, N)
        count = same.sum(1)
        hit = same.diagonal().double() / count.clamp(min=1)
        return torch.where(count > 0, hit, torch.full_like(hit, 1 / len(text_codes))).mean()

    def whoever_agrees(image_codes, text_codes):
        """you count a pair that names one code as found. All texts of that code tie, and only one is the own."""
        return (image_codes == text_codes).double().mean()

    def bound(image_codes, text_codes):
        """this is the bound, codes over texts. It is reached only if all pairs agree."""
        return torch.tensor(len(text_codes.unique()) / len(text_codes))

    def nobody_is_lost(image_codes, text_codes):
        """where no text has the picture's code, all of them tie: one in N is found by chance."""
        same = image_codes[:, None] == text_codes
        return (same.diagonal().double() / same.sum(1).clamp(min=1)).mean()

    def pictures_of_the_code(image_codes, text_codes):
        """you divide by the pictures of that code. A picture chooses among texts."""
        same = image_codes[:, None] == image_codes
        hit = (image_codes == text_codes).double() / same.sum(1)
        none = ~(image_codes[:, None] == text_codes).any(1)
        return torch.where(none, torch.full_like(hit, 1 / len(text_codes)), hit).mean()

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for count, codes in ((8, 4), (10, 6), (6, 3)):
            texts = torch.randint(codes, (count,), generator=generator)
            images = torch.where(torch.rand(count, generator=generator) < 0.6, texts, torch.full_like(texts, codes))
            images[0] = (texts[0] + 1) % codes
            found.append((images, texts))
        return found

    return Exercise(
        solution=tied_recall,
        wrong=(whoever_agrees, bound, nobody_is_lost, pictures_of_the_code),
        cases=cases,
        by_hand=(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 2])),
        see_next="With one code for all it is one in N, however well the pairs agree.",
    )


def _most_entropy() -> Exercise:
    def most_entropy(batch, codes):
        return math.log(min(batch, codes))

    def of_the_codes(batch, codes):
        """this is the limit of the codes. A batch of B sure samples shows B of them at most."""
        return math.log(codes)

    def of_the_batch(batch, codes):
        """this is the limit of the batch. There are only C codes to be shown."""
        return math.log(batch)

    def no_logarithm(batch, codes):
        """this is the number of codes. The entropy of an even use is its logarithm."""
        return float(min(batch, codes))

    def largest(batch, codes):
        """you took the larger of the two. Both are limits, so the smaller one counts."""
        return math.log(max(batch, codes))

    def cases(generator: torch.Generator) -> list[tuple]:
        return [(64, 1024), (512, 32), (128, 128)]

    return Exercise(
        solution=most_entropy,
        wrong=(of_the_codes, of_the_batch, no_logarithm, largest),
        cases=cases,
        by_hand=(4096, 32768),
        see_next="For the paper's sizes that is 8.3 of 10.4 nats: there a running mean sees more than a batch.",
    )


def _last_norm() -> Exercise:
    def last_norm(logits):
        mean, variance = logits.mean(0), logits.var(0, unbiased=False)
        return (logits - mean) / (variance + 1e-5).sqrt()

    def along_the_rows(logits):
        """you normalised every row. That is a layer norm; a batch norm takes each code over the batch."""
        return ((logits.T - logits.mean(1)) / (logits.var(1, unbiased=False) + 1e-5).sqrt()).T

    def only_centred(logits):
        """the mean is gone, the spread is still there. Divide by the deviation."""
        return logits - logits.mean(0)

    def unbiased(logits):
        """your variance divides by B - 1. In training a batch norm divides by B."""
        return (logits - logits.mean(0)) / (logits.var(0) + 1e-5).sqrt()

    def one_scale(logits):
        """one mean and one deviation for all codes. Each code has its own."""
        return (logits - logits.mean()) / (logits.var(unbiased=False) + 1e-5).sqrt()

    def cases(generator: torch.Generator) -> list[tuple]:
        scale = 1 + 3 * torch.rand(5, generator=generator)
        return [(scale * torch.randn(n, 5, generator=generator) + 2 * scale,) for n in (4, 6, 3)]

    return Exercise(
        solution=last_norm,
        wrong=(along_the_rows, only_centred, unbiased, one_scale),
        cases=cases,
        by_hand=(torch.tensor([[1.0, 0.0], [3.0, 2.0]]),),
        see_next="A code that all would choose has a mean of 0 like any other: collapse is forbidden by arithmetic.",
        gradient=True,
    )


agreement = _agreement()
what_a_code_says = _what_a_code_says()
tied_recall = _tied_recall()
most_entropy = _most_entropy()
last_norm = _last_norm()
