"""Exercises of notebook 09: codewords in use, targets from plans, predict a codeword, negatives of one codeword."""

import torch
from torch.nn.functional import normalize

from vlnotes.checks.exercises import Exercise


def _codes_in_use() -> Exercise:
    def codes_in_use(codes, count):
        share = torch.bincount(codes, minlength=count) / len(codes)  # (C,)
        share = share[share > 0]
        return (-share * share.log()).sum().exp()

    def entropy_itself(codes, count):
        """this is the entropy, in nats. Its exponential is the number of codewords that an even use would need."""
        return codes_in_use(codes, count).log()

    def how_many_used(codes, count):
        """you count every codeword that has a sample, once. One sample in a thousand should hardly count."""
        return (torch.bincount(codes, minlength=count) > 0).sum().float()

    def two_to_the_entropy(codes, count):
        """the entropy is in nats and you raise 2 to it. Nats go with e, bits with 2."""
        return 2 ** codes_in_use(codes, count).log()

    def share_of_all(codes, count):
        """you divided by the number of codewords. The answer is a number of codewords, not a share."""
        return codes_in_use(codes, count) / count

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for total, count in ((40, 8), (30, 5), (50, 12)):
            codes = (torch.rand(total, generator=generator) ** 2 * (count - 1)).long()  # uneven, the last one is dead
            found.append((codes, count))
        return found

    return Exercise(
        solution=codes_in_use,
        wrong=(entropy_itself, how_many_used, two_to_the_entropy, share_of_all),
        cases=cases,
        by_hand=(torch.tensor([0, 0, 1, 1]), 4),
        see_next="Two codewords in even use count as two, however many lie beside them unused.",
    )


def _code_targets() -> Exercise:
    def code_targets(image_plan, text_plan):
        of_image, of_text = (plan / plan.sum(1, keepdim=True) for plan in (image_plan, text_plan))
        return torch.stack([of_text, of_image])  # for the picture's student, for the text's

    def not_crossed(image_plan, text_plan):
        """each modality gets its own plan back. That is the slide's pairing; equation 2 crosses them."""
        return code_targets(image_plan, text_plan).flip(0)

    def left_as_masses(image_plan, text_plan):
        """rows of a plan sum to about 1/N. As they are, the loss is N times too small: divide each row by its sum."""
        return torch.stack([text_plan, image_plan])

    def times_n(image_plan, text_plan):
        """times N is nearly right. But IPOT keeps the columns exactly and the rows nearly: divide each row by its
        own sum."""
        return len(image_plan) * torch.stack([text_plan, image_plan])

    def columns_normalised(image_plan, text_plan):
        """you made the columns sum to 1: shares of a codeword. A student predicts the codewords of one sample: rows."""
        return torch.stack([plan / plan.sum(0, keepdim=True) for plan in (text_plan, image_plan)])

    def softmax_of_masses(image_plan, text_plan):
        """a softmax of masses is nearly even, as masses are small. They are shares already: divide by the sum."""
        return torch.stack([plan.softmax(1) for plan in (text_plan, image_plan)])

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for rows, columns in ((4, 3), (5, 6), (3, 3)):
            plans = torch.rand(2, rows, columns, generator=generator) ** 3 + 0.01
            plans = plans / plans.sum(1, keepdim=True) / columns  # columns exact, rows not
            found.append((plans[0], plans[1]))
        return found

    return Exercise(
        solution=code_targets,
        wrong=(not_crossed, left_as_masses, times_n, columns_normalised, softmax_of_masses),
        cases=cases,
        by_hand=(torch.tensor([[0.4, 0.0], [0.1, 0.5]]), torch.tensor([[0.25, 0.25], [0.25, 0.25]])),
        see_next="Crossed, a caption learns where its picture went, and the other way round.",
    )


def _prototype_loss() -> Exercise:
    def prototype_loss(features, codebook, targets, temperature):
        words = normalize(codebook, dim=1)  # (C, D)
        log_p = (features @ words.T / temperature).log_softmax(1)  # (B, C)
        return -(targets * log_p).sum(1).mean()

    def arguments_swapped(features, codebook, targets, temperature):
        """you wrote H(P, T), as the slides do. The target comes first: sum of T log P, and T may hold zeros."""
        p = (features @ normalize(codebook, dim=1).T / temperature).softmax(1)
        return -(p * targets.clamp(min=1e-8).log()).sum(1).mean()

    def codewords_any_length(features, codebook, targets, temperature):
        """codewords are to have length 1. Without that a long codeword wins everywhere."""
        log_p = (features @ codebook.T / temperature).log_softmax(1)
        return -(targets * log_p).sum(1).mean()

    def no_temperature(features, codebook, targets, temperature):
        """the temperature is missing: cosines lie between -1 and 1, and their softmax is nearly even."""
        return prototype_loss(features, codebook, targets, 1.0)

    def softmax_over_the_batch(features, codebook, targets, temperature):
        """your softmax runs over the batch, dim 0. The question is which *codeword*: dim 1."""
        log_p = (features @ normalize(codebook, dim=1).T / temperature).log_softmax(0)
        return -(targets * log_p).sum(1).mean()

    def mean_of_all_cells(features, codebook, targets, temperature):
        """you took the mean over all cells: C times too small. Sum over codewords, mean over rows."""
        return prototype_loss(features, codebook, targets, temperature) / len(codebook)

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for rows, columns, dim in ((4, 3, 5), (5, 6, 4), (3, 4, 8)):
            features = normalize(torch.randn(rows, dim, generator=generator), dim=1)
            codebook = (1 + torch.rand(columns, 1, generator=generator)) * torch.randn(
                columns, dim, generator=generator
            )
            targets = torch.rand(rows, columns, generator=generator).softmax(1)
            found.append((features, codebook, targets, 0.2))
        return found

    return Exercise(
        solution=prototype_loss,
        wrong=(arguments_swapped, codewords_any_length, no_temperature, softmax_over_the_batch, mean_of_all_cells),
        cases=cases,
        by_hand=(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), 1.0),
        see_next="It is the loss of a classifier whose classes are learnt beside it.",
        gradient=True,
    )


def _same_codeword() -> Exercise:
    def same_codeword(logits, codes):
        own = torch.eye(len(logits), dtype=torch.bool)
        wanted = (codes[:, None] == codes) & ~own  # (B, B): wrong columns of the row's codeword
        some = wanted.any(1, keepdim=True)
        allowed = torch.where(some, wanted, ~own)
        return logits.masked_fill(~allowed, -torch.inf).softmax(1)

    def own_column_in(logits, codes):
        """the own column can be drawn, and it is no negative: its codeword is its own, too."""
        wanted = codes[:, None] == codes
        return logits.masked_fill(~wanted, -torch.inf).softmax(1)

    def rows_alone_are_even(logits, codes):
        """a row that is alone with its codeword falls back to even odds in yours. It should fall back to the softmax
        over all wrong columns."""
        own = torch.eye(len(logits), dtype=torch.bool)
        some = ((codes[:, None] == codes) & ~own).any(1, keepdim=True)
        even = (~own).float() / (len(logits) - 1)
        return torch.where(some, same_codeword(logits, codes), even)

    def zeroed_logits(logits, codes):
        """you set logits to 0. A softmax gives a 0 its share; what must not be drawn is minus infinity."""
        own = torch.eye(len(logits), dtype=torch.bool)
        wanted = (codes[:, None] == codes) & ~own
        allowed = torch.where(wanted.any(1, keepdim=True), wanted, ~own)
        return logits.masked_fill(~allowed, 0.0).softmax(1)

    def other_codewords(logits, codes):
        """these are columns of *other* codewords, the easy ones. Look at == and !=."""
        own = torch.eye(len(logits), dtype=torch.bool)
        wanted = codes[:, None] != codes
        allowed = torch.where(wanted.any(1, keepdim=True), wanted, ~own)
        return logits.masked_fill(~allowed, -torch.inf).softmax(1)

    def cases(generator: torch.Generator) -> list[tuple]:
        codes = (torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 2, 0]), torch.tensor([3, 3, 3, 5]))
        return [(2 * torch.randn(len(some), len(some), generator=generator), some) for some in codes]

    return Exercise(
        solution=same_codeword,
        wrong=(own_column_in, rows_alone_are_even, zeroed_logits, other_codewords),
        cases=cases,
        by_hand=(torch.zeros(3, 3), torch.tensor([0, 0, 1])),
        see_next="Neighbours of a codeword share what it stands for, so they must be told apart by the rest.",
    )


codes_in_use = _codes_in_use()
code_targets = _code_targets()
prototype_loss = _prototype_loss()
same_codeword = _same_codeword()
