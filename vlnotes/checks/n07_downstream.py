"""Exercises of notebook 07: rank answers, count what two pictures share, soften a label, keep questions in balance."""

import torch
from torch.nn.functional import cross_entropy

from vlnotes.checks.exercises import Exercise


def _rank_answers() -> Exercise:
    def rank_answers(log_probs, ids, known):
        words = log_probs.gather(2, ids[:, 1:, None]).squeeze(2)  # (A, T - 1), each word after those before it
        return (words * known[:, 1:]).sum(1)

    def padding_counts(log_probs, ids, known):
        """the padding of short answers counts as words. Multiply by the mask before you sum."""
        return log_probs.gather(2, ids[:, 1:, None]).squeeze(2).sum(1)

    def first_word_alone(log_probs, ids, known):
        """this is the first word alone, the first stage. Here every word of every answer counts."""
        return log_probs.gather(2, ids[:, 1:, None]).squeeze(2)[:, 0]

    def one_place_off(log_probs, ids, known):
        """you read off the word that was said, not the one that comes next: ids are one place off."""
        return (log_probs.gather(2, ids[:, :-1, None]).squeeze(2) * known[:, 1:]).sum(1)

    def mean_word(log_probs, ids, known):
        """you divide by the number of words. The paper does not: the total is the probability of the answer."""
        return rank_answers(log_probs, ids, known) / known[:, 1:].sum(1)

    def sum_of_probabilities(log_probs, ids, known):
        """you add probabilities. Those of words in a row are multiplied, so their logarithms are added."""
        words = log_probs.gather(2, ids[:, 1:, None]).squeeze(2).exp()
        return (words * known[:, 1:]).sum(1).log()

    def without_the_end(log_probs, ids, known):
        """the end is missing: without it "red" is never worse than "red ring", which begins the same way."""
        said = known[:, 1:].clone()
        said[torch.arange(len(said)), said.sum(1) - 1] = 0
        words = log_probs.gather(2, ids[:, 1:, None]).squeeze(2)
        return (words * said).sum(1)

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for count, length, vocabulary in ((4, 5, 9), (3, 4, 6), (6, 6, 12)):
            log_probs = (2 * torch.randn(count, length - 1, vocabulary, generator=generator)).log_softmax(2)
            ids = torch.randint(1, vocabulary, (count, length), generator=generator)
            known = (torch.arange(length) < torch.randint(3, length + 1, (count, 1), generator=generator)).long()
            known[0, 3:] = 0  # one short answer at least
            found.append((log_probs, ids * known, known))
        return found

    table = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.3, 0.5], [0.7, 0.2, 0.1]]).log()
    return Exercise(
        solution=rank_answers,
        wrong=(padding_counts, first_word_alone, one_place_off, mean_word, sum_of_probabilities, without_the_end),
        cases=cases,
        by_hand=(
            torch.stack([table, table]),
            torch.tensor([[1, 1, 2, 0], [1, 2, 1, 2]]),
            torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
        ),
        see_next="A long answer pays for each of its words, so among equals the short one wins.",
    )


def _shared_parameters() -> Exercise:
    def shared_parameters(block, width, layers):
        return layers * (2 * block - 2 * (width * width + width))

    def two_of_everything(block, width, layers):
        """this is two blocks that share nothing. Keys and values of the cross-attention are there once."""
        return layers * 2 * block

    def queries_too(block, width, layers):
        """you share the queries as well. Only keys and values are shared."""
        return layers * (2 * block - 3 * (width * width + width))

    def all_attention(block, width, layers):
        """you share the whole cross-attention, queries and output, too. Only keys and values are shared."""
        return layers * (2 * block - 4 * (width * width + width))

    def without_biases(block, width, layers):
        """a projection has a bias, too: W * W + W numbers."""
        return layers * (2 * block - 2 * width * width)

    def one_layer(block, width, layers):
        """this is one layer. Every layer of the fusion becomes two blocks."""
        return 2 * block - 2 * (width * width + width)

    def keys_alone(block, width, layers):
        """you share the keys alone. The values are shared, too."""
        return layers * (2 * block - (width * width + width))

    return Exercise(
        solution=shared_parameters,
        wrong=(two_of_everything, queries_too, all_attention, without_biases, one_layer, keys_alone),
        cases=lambda generator: [(198_784, 128, 3), (9_451_776, 768, 6), (3_000, 16, 2)],
        by_hand=(100, 2, 2),
        see_next="Two pictures cost nearly a second fusion encoder; what is shared is the language of the pictures.",
    )


def _entailment_loss() -> Exercise:
    def entailment_loss(logits, label, teacher_logits, weight):
        soft = teacher_logits.detach().softmax(1)
        return (1 - weight) * cross_entropy(logits, label) + weight * cross_entropy(logits, soft)

    def roles_swapped(logits, label, teacher_logits, weight):
        """the weight belongs to the teacher. At weight 0 this is the plain cross-entropy with the label."""
        return entailment_loss(logits, label, teacher_logits, 1 - weight)

    def on_top(logits, label, teacher_logits, weight):
        """you add the teacher on top of the whole label: the targets sum to more than 1. The label gets 1 - weight."""
        soft = teacher_logits.detach().softmax(1)
        return cross_entropy(logits, label) + weight * cross_entropy(logits, soft)

    def divergence(logits, label, teacher_logits, weight):
        """you subtract the teacher's entropy: that is the KL divergence. The gradient is the same, the value is not."""
        soft = teacher_logits.detach().softmax(1)
        entropy = -(soft * soft.log()).sum(1).mean()
        return entailment_loss(logits, label, teacher_logits, weight) - weight * entropy

    def turned_round(logits, label, teacher_logits, weight):
        """student and teacher have changed places: the teacher is the target, the student predicts."""
        soft = cross_entropy(teacher_logits.detach(), logits.softmax(1))
        return (1 - weight) * cross_entropy(logits, label) + weight * soft

    def favourite(logits, label, teacher_logits, weight):
        """you take the teacher's favourite alone. Its whole opinion is wanted, the softmax."""
        soft = cross_entropy(logits, teacher_logits.argmax(1))
        return (1 - weight) * cross_entropy(logits, label) + weight * soft

    def summed(logits, label, teacher_logits, weight):
        """you sum over the batch. The mean is wanted, or the loss grows with the batch."""
        return len(label) * entailment_loss(logits, label, teacher_logits, weight)

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for count, weight in ((4, 0.4), (3, 0.25), (6, 0.7)):
            both = 2 * torch.randn(2, count, 3, generator=generator)
            found.append((both[0], torch.randint(0, 3, (count,), generator=generator), both[1], weight))
        return found

    return Exercise(
        solution=entailment_loss,
        wrong=(roles_swapped, on_top, divergence, turned_round, favourite, summed),
        cases=cases,
        by_hand=(
            torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
            torch.tensor([0, 2]),
            torch.tensor([[1.0, 1.0, -1.0], [0.0, 2.0, 0.0]]),
            0.4,
        ),
        see_next="Nothing flows into the teacher, so it can only follow.",
        gradient=True,
    )


def _balanced() -> Exercise:
    def balanced(allowed):
        asked, chosen = torch.zeros(allowed.shape[1]), []
        for row in allowed:
            answer = int(asked.masked_fill(~row, torch.inf).argmin())
            asked[answer] += 1
            chosen.append(answer)
        return torch.tensor(chosen)

    def first_that_fits(allowed):
        """you take the first answer that the picture allows, however often it was asked for."""
        return allowed.long().argmax(1)

    def never_counts(allowed):
        """your tally never changes. Count the answer that you have just asked for."""
        possible = allowed.sum(0).float()
        return torch.stack([possible.masked_fill(~row, torch.inf).argmin() for row in allowed])

    def forgets_the_picture(allowed):
        """you take the rarest answer, whether the picture allows it or not."""
        return torch.arange(len(allowed)) % allowed.shape[1]

    def commonest(allowed):
        """you take the commonest answer so far. The rarest is wanted."""
        asked, chosen = torch.zeros(allowed.shape[1]), []
        for row in allowed:
            answer = int(asked.masked_fill(~row, -torch.inf).argmax())
            asked[answer] += 1
            chosen.append(answer)
        return torch.tensor(chosen)

    def counts_what_was_possible(allowed):
        """you count what could have been asked. Count what was."""
        seen, chosen = torch.zeros(allowed.shape[1]), []
        for row in allowed:
            chosen.append(int(seen.masked_fill(~row, torch.inf).argmin()))
            seen += row
        return torch.tensor(chosen)

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for pictures, answers in ((12, 3), (9, 4), (20, 5)):
            allowed = torch.rand(pictures, answers, generator=generator) < torch.linspace(0.4, 0.8, answers)
            allowed[torch.arange(pictures), torch.randint(answers, (pictures,), generator=generator)] = True
            found.append((allowed,))
        return found

    return Exercise(
        solution=balanced,
        wrong=(first_that_fits, never_counts, forgets_the_picture, commonest, counts_what_was_possible),
        cases=cases,
        by_hand=(torch.tensor([[True, True], [True, True], [True, False], [True, True]]),),
        see_next="What is common in the world need not be common among the answers.",
    )


rank_answers = _rank_answers()
shared_parameters = _shared_parameters()
entailment_loss = _entailment_loss()
balanced = _balanced()
