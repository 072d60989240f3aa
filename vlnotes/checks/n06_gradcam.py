"""Exercises of notebook 06: a word's map, a sentence's map, weights of channels, ties in the pointing game, where a
cell looks."""

import torch

from vlnotes.checks.exercises import Exercise


def _word_map() -> Exercise:
    def word_map(attention, gradient):
        return (attention * gradient.relu())[:, 1:].mean(0)

    def attention_alone(attention, gradient):
        """the gradient is missing: this says where the word looks, not whether looking there raised the score."""
        return attention[:, 1:].mean(0)

    def nothing_is_cut(attention, gradient):
        """the negative part of the gradient is still there: looks that lowered the score count against the others."""
        return (attention * gradient)[:, 1:].mean(0)

    def heads_first(attention, gradient):
        """you average over the heads before you cut: a head that objects now silences one that agrees."""
        return (attention * gradient)[:, 1:].mean(0).relu()

    def means_multiplied(attention, gradient):
        """you average attention and gradient first. Each head's attention belongs to that head's gradient."""
        return attention[:, 1:].mean(0) * gradient.relu()[:, 1:].mean(0)

    def class_token_kept(attention, gradient):
        """the class token is no place in the picture: drop column 0."""
        return (attention * gradient.relu()).mean(0)

    def size_of_the_gradient(attention, gradient):
        """you take the gradient without its sign, so that what lowered the score lights up as well."""
        return (attention * gradient.abs())[:, 1:].mean(0)

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for heads, places in ((2, 4), (4, 9), (3, 6)):
            attention = torch.randn(heads, 1 + places, generator=generator).softmax(1)
            found.append((attention, torch.randn(heads, 1 + places, generator=generator)))
        return found

    return Exercise(
        solution=word_map,
        wrong=(
            attention_alone,
            nothing_is_cut,
            heads_first,
            means_multiplied,
            class_token_kept,
            size_of_the_gradient,
        ),
        cases=cases,
        by_hand=(
            torch.tensor([[0.2, 0.6, 0.2], [0.0, 0.5, 0.5]]),
            torch.tensor([[9.0, 1.0, -2.0], [9.0, -3.0, 4.0]]),
        ),
        see_next="Two heads may want different places, and neither can hide the other's.",
    )


def _sentence_of() -> Exercise:
    def sentence_of(maps, mask):
        count = mask.to(maps)[:, :, None, None]  # (B, L, 1, 1)
        return (maps * count).sum(1) / count.sum(1)

    def padded_length(maps, mask):
        """you divide by the padded length: the same sentence gets a fainter map beside a longer one."""
        return (maps * mask.to(maps)[:, :, None, None]).mean(1)

    def padding_counts(maps, mask):
        """padding is no word: its maps must stay out, from the sum and from the count."""
        return maps.mean(1)

    def sum_of_words(maps, mask):
        """this is the sum: long sentences get the higher maps. Divide by the number of tokens."""
        return (maps * mask.to(maps)[:, :, None, None]).sum(1)

    def strongest_word(maps, mask):
        """this is the maximum over the words. The mean is wanted: many weak words may agree."""
        return (maps * mask.to(maps)[:, :, None, None]).amax(1)

    def first_token(maps, mask):
        """this is the map of [CLS] alone."""
        return maps[:, 0]

    def divided_by_the_batch(maps, mask):
        """you divide by the number of tokens in the whole batch. Each sentence has a length of its own."""
        return (maps * mask.to(maps)[:, :, None, None]).sum(1) / mask.sum()

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for lengths, L in (((5, 3), 5), ((2, 6, 4), 7), ((1, 4), 5)):
            mask = (torch.arange(L) < torch.tensor(lengths)[:, None]).long()
            found.append((torch.rand(len(lengths), L, 2, 3, generator=generator) + 0.1, mask))
        return found

    return Exercise(
        solution=sentence_of,
        wrong=(padded_length, padding_counts, sum_of_words, strongest_word, first_token, divided_by_the_batch),
        cases=cases,
        by_hand=(torch.tensor([[[[4.0, 0.0]], [[2.0, 2.0]], [[7.0, 7.0]]]]), torch.tensor([[1, 1, 0]])),
        see_next="The strongest point does not depend on what you divide by; how high the map is does.",
    )


def _weigh_channels() -> Exercise:
    def weigh_channels(activation, gradient):
        weight = gradient.mean((1, 2))  # (C,)
        return (weight[:, None, None] * activation).sum(0).relu()

    def summed_gradient(activation, gradient):
        """the weight of a channel is the mean of its gradient over the places, not the sum."""
        return (gradient.sum((1, 2))[:, None, None] * activation).sum(0).relu()

    def place_by_place(activation, gradient):
        """you multiply place by place. Grad-CAM gives each channel one weight for the whole picture."""
        return (gradient * activation).sum(0).relu()

    def mean_of_channels(activation, gradient):
        """you average over the channels. The formula has a sum."""
        return (gradient.mean((1, 2))[:, None, None] * activation).mean(0).relu()

    def negative_weights_cut(activation, gradient):
        """you cut off the negative weights. A channel that speaks against the score must pull the map down."""
        return (gradient.mean((1, 2)).relu()[:, None, None] * activation).sum(0)

    def nothing_is_cut(activation, gradient):
        """the last step is missing: places below zero spoke against the score, and are cut off."""
        return (gradient.mean((1, 2))[:, None, None] * activation).sum(0)

    def cases(generator: torch.Generator) -> list[tuple]:
        sizes = ((3, 2, 2), (5, 3, 4), (4, 2, 3))
        return [
            (torch.rand(*size, generator=generator), torch.randn(*size, generator=generator) + 0.2) for size in sizes
        ]

    return Exercise(
        solution=weigh_channels,
        wrong=(
            summed_gradient,
            place_by_place,
            mean_of_channels,
            negative_weights_cut,
            nothing_is_cut,
        ),
        cases=cases,
        by_hand=(
            torch.tensor([[[1.0, 0.0]], [[1.0, 2.0]]]),
            torch.tensor([[[3.0, 1.0]], [[-2.0, 0.0]]]),
        ),
        see_next="By hand: the weights are 2 and -1, so the map is 1 on the left and 0 on the right.",
    )


def _hit() -> Exercise:
    def hit(map, mask):
        highest = map == map.max()
        return (highest & mask).sum() / highest.sum()

    def first_of_the_ties(map, mask):
        """`argmax` takes the first of several highest points. A constant map would always point at the corner."""
        return mask.flatten()[map.argmax()].float()

    def any_of_the_ties(map, mask):
        """one of several highest points inside is enough for you. A constant map would then never miss."""
        return ((map == map.max()) & mask).any().float()

    def all_of_the_ties(map, mask):
        """you ask that all of the highest points lie inside. They should count by their share."""
        return mask[map == map.max()].all().float()

    def energy(map, mask):
        """this is the share of the whole map inside. The pointing game asks for the strongest point alone."""
        return map[mask].sum() / map.sum()

    def share_of_the_object(map, mask):
        """you divide by the size of the object. Divide by the number of highest points."""
        return ((map == map.max()) & mask).sum() / mask.sum()

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for size in ((3, 4), (4, 4), (5, 3)):
            map = torch.randint(1, 4, size, generator=generator).float()
            mask = torch.rand(size, generator=generator) < 0.4
            mask[0, 1] = mask[2, 2] = True
            found.append((map, mask))
        one = torch.full((4, 4), 2.0)
        one[1, 2] = 3.0
        inside = torch.zeros(4, 4, dtype=torch.bool)
        inside[1:3, 2:] = True
        return [*found, (one, inside), (one, ~inside)]

    return Exercise(
        solution=hit,
        wrong=(first_of_the_ties, any_of_the_ties, all_of_the_ties, energy, share_of_the_object),
        cases=cases,
        by_hand=(torch.tensor([[3.0, 3.0], [1.0, 3.0]]), torch.tensor([[False, True], [True, True]])),
        see_next="A constant map now scores the share of the picture that the object takes, which is chance.",
    )


def _looks_around() -> Exercise:
    def looks_around(kernels, strides, paddings):
        first, step = 0.0, 1
        for kernel, stride, padding in zip(kernels, strides, paddings, strict=True):
            first += ((kernel - 1) / 2 - padding) * step
            step *= stride
        return torch.tensor([first, float(step)])

    def no_padding(kernels, strides, paddings):
        """you left the padding out: it lets the first cell begin outside of the picture."""
        return looks_around(kernels, strides, [0] * len(paddings))

    def steps_do_not_grow(kernels, strides, paddings):
        """a shift in a later layer counts in that layer's cells: multiply it by the step so far."""
        first = sum((kernel - 1) / 2 - padding for kernel, padding in zip(kernels, paddings, strict=True))
        return torch.tensor([first, float(torch.tensor(strides).prod())])

    def step_first(kernels, strides, paddings):
        """a layer's kernel lies on its inputs: shift by the step before you multiply by its stride."""
        first, step = 0.0, 1
        for kernel, stride, padding in zip(kernels, strides, paddings, strict=True):
            step *= stride
            first += ((kernel - 1) / 2 - padding) * step
        return torch.tensor([first, float(step)])

    def half_a_kernel(kernels, strides, paddings):
        """the middle of a kernel of 3 is at 1, which is (kernel - 1) / 2, not kernel / 2."""
        return looks_around([kernel + 1 for kernel in kernels], strides, paddings)

    def middle_of_the_square(kernels, strides, paddings):
        """this is the middle of the cell's square, what a plain resize assumes. Ask the kernels and the padding."""
        step = float(torch.tensor(strides).prod())
        return torch.tensor([(step - 1) / 2, step])

    def strides_added(kernels, strides, paddings):
        """strides multiply: two layers of stride 2 make steps of 4 pixels, three of 8."""
        first, step = looks_around(kernels, strides, paddings).tolist()
        return torch.tensor([first, float(sum(strides))])

    def cases(generator: torch.Generator) -> list[tuple]:
        return [
            ([3, 3, 3], [2, 2, 2], [1, 1, 1]),
            ([7, 3, 3], [2, 2, 1], [3, 0, 0]),
            ([3, 5], [2, 3], [0, 1]),
            ([16], [16], [0]),
        ]

    return Exercise(
        solution=looks_around,
        wrong=(no_padding, steps_do_not_grow, step_first, half_a_kernel, middle_of_the_square, strides_added),
        cases=cases,
        by_hand=([3, 3], [2, 2], [1, 0]),
        see_next="For our tower the answer is 0 and 8, for patches of 16 pixels 7.5 and 16.",
    )


word_map = _word_map()
sentence_of = _sentence_of()
weigh_channels = _weigh_channels()
hit = _hit()
looks_around = _looks_around()
