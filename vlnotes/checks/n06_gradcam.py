"""Exercises of notebook 06: a word's map, a sentence's map, a map without a gradient, a pointing game with a margin,
where a cell looks."""

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


def _no_gradient() -> Exercise:
    def no_gradient(activation, weight):
        places = activation[0].numel()
        return (weight[:, None, None] / places * activation).sum(0).relu()

    def not_shared_out(activation, weight):
        """the score takes the *mean* over the places, so each place has only its share of the weight: divide by h w."""
        return (weight[:, None, None] * activation).sum(0).relu()

    def mean_of_channels(activation, weight):
        """you average over the channels. The formula has a sum."""
        return no_gradient(activation, weight) / len(weight)

    def negative_weights_cut(activation, weight):
        """you cut off the negative weights. A channel that speaks against the score must pull the map down."""
        return no_gradient(activation, weight.relu())

    def nothing_is_cut(activation, weight):
        """the last step is missing: places below zero spoke against the score, and are cut off."""
        return (weight[:, None, None] * activation).sum(0) / activation[0].numel()

    def cut_channel_by_channel(activation, weight):
        """you cut each channel before the sum. Grad-CAM cuts the finished sum, once."""
        return (weight[:, None, None] * activation).relu().sum(0) / activation[0].numel()

    def one_number(activation, weight):
        """this is the score, a single number. The map keeps the places apart: no mean over them."""
        return (weight * activation.mean((1, 2))).sum()

    def cases(generator: torch.Generator) -> list[tuple]:
        sizes = ((3, 2, 2), (5, 3, 4), (4, 2, 3))
        return [
            (torch.randn(*size, generator=generator), torch.randn(size[0], generator=generator) + 0.2) for size in sizes
        ]

    return Exercise(
        solution=no_gradient,
        wrong=(
            not_shared_out,
            mean_of_channels,
            negative_weights_cut,
            nothing_is_cut,
            cut_channel_by_channel,
            one_number,
        ),
        cases=cases,
        by_hand=(torch.tensor([[[1.0, 0.0]], [[1.0, 2.0]]]), torch.tensor([4.0, -2.0])),
        see_next="By hand: 4 - 2 on the left, -4 on the right; a half of that, cut, is 1 and 0.",
    )


def _near_hit() -> Exercise:
    def near_hit(map, mask, margin):
        points, inside = (map == map.max()).nonzero().double(), mask.nonzero().double()
        nearest = torch.cdist(points, inside).min(1).values  # (ties,), in pixels
        return (nearest <= margin).double().mean()

    def no_margin(map, mask, margin):
        """you ask for a point on the thing itself. Within `margin` pixels of it is enough."""
        return near_hit(map, mask, 0)

    def touching_is_out(map, mask, margin):
        """a point at exactly `margin` pixels still counts: at most, not less than."""
        points, inside = (map == map.max()).nonzero().double(), mask.nonzero().double()
        return (torch.cdist(points, inside).min(1).values < margin).double().mean()

    def first_of_the_ties(map, mask, margin):
        """`argmax` takes the first of several highest points. A constant map would always point at the corner."""
        first = torch.zeros_like(mask).flatten()
        first[map.argmax()] = True
        return near_hit(first.view(mask.shape).double(), mask, margin)

    def any_of_the_ties(map, mask, margin):
        """one of several highest points is enough for you. They count by the share of them that is near."""
        return (near_hit(map, mask, margin) > 0).double()

    def by_a_square(map, mask, margin):
        """you count steps along rows and columns apart, so a point may be `margin` away in both. Take the distance."""
        points, inside = (map == map.max()).nonzero().double(), mask.nonzero().double()
        return (torch.cdist(points, inside, p=torch.inf).min(1).values <= margin).double().mean()

    def to_the_middle(map, mask, margin):
        """you measure to the middle of the thing. Its nearest pixel counts."""
        points, inside = (map == map.max()).nonzero().double(), mask.nonzero().double()
        return (torch.cdist(points, inside.mean(0, keepdim=True)).min(1).values <= margin).double().mean()

    def cases(generator: torch.Generator) -> list[tuple]:
        found = []
        for margin, spots in ((1, ((1, 2), (6, 5))), (2, ((4, 1), (7, 7))), (3, ((0, 0), (5, 3)))):
            mask = torch.zeros(12, 12, dtype=torch.bool)
            mask[3:6, 4:9] = True
            map = torch.randint(0, 3, (12, 12), generator=generator).double()
            for row, column in spots:
                map[row, column] = 9.0
            found.append((map, mask, margin))
        corner, edge = torch.zeros(12, 12).double(), torch.zeros(12, 12).double()
        corner[1, 2] = edge[1, 5] = 1.0
        far_in = torch.zeros(12, 12).double()
        far_in[4, 8] = 1.0
        return [*found, (corner, found[0][1], 2), (edge, found[0][1], 2), (far_in, found[0][1], 1)]

    picture = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    return Exercise(
        solution=near_hit,
        wrong=(no_margin, touching_is_out, first_of_the_ties, any_of_the_ties, by_a_square, to_the_middle),
        cases=cases,
        by_hand=(picture, torch.tensor([[True, False, False], [False] * 3, [False] * 3]), 1),
        see_next="By hand: one of two highest points is near, so half a hit.",
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
no_gradient = _no_gradient()
near_hit = _near_hit()
looks_around = _looks_around()
