"""Exercises of notebook 01: cutting shapes, whose attribute is whose, swaps, false captions, the ceiling."""

from itertools import permutations, product

import torch

from vlnotes.checks.exercises import Exercise


def _bite() -> Exercise:
    def bite(body, mouth):
        return torch.maximum(body, -mouth)  # inside the body and outside the mouth

    def glues_them_together(body, mouth):
        """this is the union: the minimum is inside where either of the two is. A bite takes away."""
        return torch.minimum(body, mouth)

    def keeps_what_they_share(body, mouth):
        """this is the intersection: you keep what both cover, the part that was to be bitten off. Turn the mouth
        inside out first."""
        return torch.maximum(body, mouth)

    def bites_the_mouth(body, mouth):
        """you bit the body out of the mouth: what is left is the mouth's. The minus sign belongs to the mouth."""
        return torch.maximum(-body, mouth)

    def subtracts(body, mouth):
        """a difference of distances is no distance: it is 0 wherever the two edges are equally far. Use the
        larger of two distances."""
        return body - mouth

    def everything_outside_the_mouth(body, mouth):
        """you join the body with all that lies outside the mouth, and the whole page is inside. It takes the
        larger of the two, not the smaller."""
        return torch.minimum(body, -mouth)

    def cases(generator: torch.Generator) -> list[tuple]:
        return [tuple(3 * torch.randn(2, n, n, generator=generator)) for n in (3, 5, 8)]

    return Exercise(
        solution=bite,
        wrong=(
            glues_them_together,
            keeps_what_they_share,
            bites_the_mouth,
            subtracts,
            everything_outside_the_mouth,
        ),
        cases=cases,
        by_hand=(torch.tensor([-2.0, -2.0, 1.0]), torch.tensor([-1.0, 3.0, -1.0])),
        see_next="The module's moon is a disc with a disc bitten out, and its house has its door from the same line.",
        gradient=True,
    )


def _true_of() -> Exercise:
    def true_of(pictures, terms):
        places = range(pictures.shape[1])
        found = torch.zeros(len(pictures), dtype=torch.bool)
        for chosen in permutations(places, len(terms)):  # each term gets a thing of its own
            found |= (pictures[:, list(chosen)] == terms).all(dim=2).all(dim=1)
        return found

    def bag_of_words(pictures, terms):
        """you look for the words one by one: the colour may come from one thing and the shape from another. That is
        a bag of words; colour and shape must meet in the same thing."""
        present = (pictures[:, :, None] == terms).any(dim=1)  # (N, m, 2)
        return present.all(dim=2).all(dim=1)

    def shares_a_thing(pictures, terms):
        """two terms are content with the same thing. "A red ring and a red ring" needs two red rings: a thing of its
        own for each term."""
        fits = (pictures[:, :, None] == terms).all(dim=3)  # (N, n, m)
        return fits.any(dim=1).all(dim=1)

    def one_is_enough(pictures, terms):
        """you are content when one of the terms is found. The statement says all of them."""
        fits = (pictures[:, :, None] == terms).all(dim=3)
        return fits.any(dim=1).any(dim=1)

    def in_this_order(pictures, terms):
        """you compare term k with thing k. The caption may name the things in any order."""
        return (pictures[:, : len(terms)] == terms).all(dim=2).all(dim=1)

    def nothing_else(pictures, terms):
        """you also ask that nothing else is there. A caption that leaves a thing out is still true."""
        return true_of(pictures, terms) & (pictures.shape[1] == len(terms))

    def cases(generator: torch.Generator) -> list[tuple]:
        def drawn(*shape):
            return torch.randint(2, shape, generator=generator)

        return [(drawn(40, n, 2), drawn(m, 2)) for n, m in ((3, 2), (3, 2), (2, 2), (4, 2), (3, 1))]

    return Exercise(
        solution=true_of,
        wrong=(bag_of_words, shares_a_thing, one_is_enough, in_this_order, nothing_else),
        cases=cases,
        by_hand=(
            torch.tensor([[[0, 0], [1, 1], [1, 0]], [[0, 1], [1, 0], [1, 0]]]),
            torch.tensor([[0, 0], [1, 1]]),
        ),
        see_next="A bag of words would have said yes more often: that gap is what binding means.",
    )


def _swap_lies() -> Exercise:
    def swap_lies(things):
        return (things[:, 0] != things[:, 1]).all(dim=1)  # colours differ and shapes differ

    def only_colours(things):
        """you ask only whether the colours differ. "A red ring and a blue ring" is the same statement after the swap:
        the shapes must differ, too."""
        return things[:, 0, 0] != things[:, 1, 0]

    def only_shapes(things):
        """you ask only whether the shapes differ. If both things are red, exchanging the colours changes nothing."""
        return things[:, 0, 1] != things[:, 1, 1]

    def either(things):
        """you are content when either differs. With one shared colour or one shared shape the swapped caption says
        what was said before."""
        return (things[:, 0] != things[:, 1]).any(dim=1)

    def says_when_true(things):
        """it is the other way round: you mark the pictures of which the swapped caption is still true."""
        return ~swap_lies(things)

    def all_four(things):
        """you compare the colour of one thing with the shape of the other. Colours with colours, shapes with
        shapes."""
        return (things[:, 0] != things[:, 1].flip(1)).all(dim=1)

    every = torch.tensor(list(product(range(3), repeat=4))).view(-1, 2, 2)

    return Exercise(
        solution=swap_lies,
        wrong=(only_colours, only_shapes, either, says_when_true, all_four),
        cases=lambda generator: [(every,), (every[::2],), (every[5:44],)],
        by_hand=(torch.tensor([[[0, 0], [1, 1]], [[0, 0], [0, 1]], [[0, 1], [1, 1]]]),),
        see_next="That is why `edits` leaves a swap out where it would change nothing: it holds each scene against the "
        "other's description.",
    )


def _false_captions() -> Exercise:
    def false_captions(truth, u):
        false = ~truth
        rank = (u * false.sum(dim=1)).long()  # which of the false ones, counted from 0
        return ((false.cumsum(dim=1) == rank[:, None] + 1) & false).int().argmax(dim=1)

    def anybody_elses(truth, u):
        """you only leave out the picture's own caption. Another picture's caption may be true as well, and then the
        pair is no noise."""
        own = torch.eye(len(truth), dtype=torch.bool)
        return false_captions(own, u)

    def anything(truth, u):
        """you choose among all captions. Then some pictures keep a true one, even their own: the dial promises more
        noise than there is."""
        return (u * truth.shape[1]).long()

    def true_ones(truth, u):
        """you choose among the true captions. Mismatched means false: turn the mask round."""
        return false_captions(~truth, u)

    def columns(truth, u):
        """you read the matrix along the columns. Rows are pictures: row i says which captions are true of picture
        i."""
        return false_captions(truth.T, u)

    def always_the_first(truth, u):
        """you always take the first false caption. A few captions would then stand under most pictures; u says which
        one."""
        return (~truth).int().argmax(dim=1)

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for n in (6, 9, 20):
            truth = torch.rand(n, n, generator=generator) < 0.3
            truth |= torch.eye(n, dtype=torch.bool)
            rows = torch.arange(n)
            truth[rows, (rows + 2) % n] = truth[(rows + 3) % n, rows] = False
            found.append((truth, torch.rand(n, generator=generator)))
        return found

    small = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 0, 1]]).bool()
    return Exercise(
        solution=false_captions,
        wrong=(anybody_elses, anything, true_ones, columns, always_the_first),
        cases=cases,
        by_hand=(small, torch.tensor([0.9, 0.1, 0.5, 0.6])),
        see_next="Real data has no such matrix: who shuffles captions there makes less noise than the dial says.",
    )


def _ceiling() -> Exercise:
    def ceiling(truth):
        return (1 / truth.sum(dim=0).double()).mean()  # each caption guesses among its true pictures

    def along_the_rows(truth):
        """you count the captions of each picture. The captions ask here: each column counts its true pictures,
        dim=0."""
        return (1 / truth.sum(dim=1).double()).mean()

    def one_over_the_mean(truth):
        """you take the mean first and turn it round afterwards. Each caption has a chance of its own: 1/n first, then
        the mean."""
        return 1 / truth.sum(dim=0).double().mean()

    def only_the_unique(truth):
        """you count the captions that are true of one picture only. The others are found too, by luck: one time
        in n."""
        return (truth.sum(dim=0) == 1).double().mean()

    def share_of_true(truth):
        """this is the share of true cells. It is what a guess among all pictures would find, any true one counted."""
        return truth.double().mean()

    def in_percent(truth):
        """this is in percent. The function should return a share between 0 and 1."""
        return 100 * ceiling(truth)

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for n, m in ((6, 6), (9, 15), (30, 12)):
            truth = torch.rand(n, m, generator=generator) < 0.15 * torch.arange(1, m + 1) / 4
            truth[torch.arange(m) % n, torch.arange(m)] = True  # every caption is true of its own picture,
            truth[torch.arange(n), torch.arange(n) % m] = True  # and every picture has one
            found.append((truth,))
        return found

    return Exercise(
        solution=ceiling,
        wrong=(along_the_rows, one_over_the_mean, only_the_unique, share_of_true, in_percent),
        cases=cases,
        by_hand=(torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 1]]).bool(),),
        see_next="Hold every strict recall against this number: what is missing above it, no model can reach.",
    )


bite, true_of, swap_lies = _bite(), _true_of(), _swap_lies()
false_captions, ceiling = _false_captions(), _ceiling()
