"""Grad-CAM: a toy computed by hand, loops in float64, one backward pass no deeper than asked, and scores by brute
force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vlnotes.gradcam import (
    area_share,
    attention_gradcam,
    best_iou,
    centre_point,
    energy_inside,
    gradcam,
    gradients,
    iou,
    localisation,
    pointing_game,
    recording,
    score_table,
    sentence_map,
    span_maps,
    span_tokens,
    upsample,
    word_maps,
    word_maps_of,
)


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


def some_attention(b=3, heads=2, length=4, places=7, dtype=torch.float64, seed=0):
    attention = torch.randn(b, heads, length, places, generator=dice(seed), dtype=dtype).softmax(-1)
    return attention, torch.randn(b, heads, length, places, generator=dice(seed + 1), dtype=dtype)


# the formulas


def test_two_words_and_two_places_by_hand():
    # two heads; the first column is the class token, which is dropped
    attention = torch.tensor([[[[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]], [[0.0, 0.5, 0.5], [0.2, 0.4, 0.4]]]])
    gradient = torch.tensor([[[[9.0, 4.0, -8.0], [9.0, 2.0, 5.0]], [[-9.0, 2.0, 1.0], [9.0, -1.0, 3.0]]]])
    # word 0: (0.25 * 4 + 0.5 * 2) / 2 = 1 and (0 + 0.5 * 1) / 2 = 0.25
    # word 1: (1 * 2 + 0) / 2 = 1           and (0 + 0.4 * 3) / 2 = 0.6
    expected = torch.tensor([[[[1.0, 0.25]], [[1.0, 0.6]]]])
    assert torch.allclose(attention_gradcam(attention, gradient, (1, 2)), expected)
    assert attention_gradcam(attention, gradient, (2, 1)).shape == (1, 2, 2, 1)
    padded = attention_gradcam(attention, gradient, (1, 2), torch.tensor([[1, 0]]))
    assert torch.allclose(padded, expected * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))


def test_cross_attention_of_a_toy_by_hand():
    """One word, two places, values 3 and -1: score = 3 a + (-1) b, so only the first place raised it."""
    logits = torch.tensor([[[[0.0, 0.0]]]], requires_grad=True)
    attention = logits.softmax(-1)
    score = (attention * torch.tensor([3.0, -1.0])).sum((1, 2, 3))
    (maps,) = word_maps(score, [attention], (1, 2), class_token=False)
    assert maps.tolist() == [[[[1.5, 0.0]]]] and not maps.requires_grad


def test_attention_gradcam_equals_a_loop():
    attention, gradient = some_attention()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    expected = torch.zeros(3, 4, 2, 3, dtype=torch.float64)
    for b in range(3):
        for word in range(4):
            for place in range(6):
                for head in range(2):
                    push = max(0.0, float(gradient[b, head, word, 1 + place]))
                    part = float(attention[b, head, word, 1 + place]) * push / 2
                    expected[b, word, place // 3, place % 3] += part * int(mask[b, word])
    assert torch.allclose(attention_gradcam(attention, gradient, (2, 3), mask), expected, atol=1e-15)
    assert torch.allclose(attention_gradcam(attention, gradient, (2, 3), mask.bool()), expected, atol=1e-15)
    without = attention_gradcam(attention[..., 1:], gradient[..., 1:], (2, 3), mask, class_token=False)
    assert torch.allclose(without, expected, atol=1e-15)


def test_gradcam_equals_a_loop_on_maps_and_on_tokens():
    activation, gradient = torch.randn(2, 2, 5, 2, 3, generator=dice(), dtype=torch.float64)
    expected = torch.zeros(2, 2, 3, dtype=torch.float64)
    for b in range(2):
        weights = [sum(float(g) for g in gradient[b, c].flatten()) / 6 for c in range(5)]
        for y in range(2):
            for x in range(3):
                expected[b, y, x] = max(0.0, sum(weights[c] * float(activation[b, c, y, x]) for c in range(5)))
    assert (expected > 0).any() and (expected == 0).any()
    assert torch.allclose(gradcam(activation, gradient), expected, atol=1e-15)
    tokens = [t.flatten(2).mT for t in (activation, gradient)]
    assert torch.allclose(gradcam(*tokens, grid=(2, 3)), expected, atol=1e-15)
    first = torch.full((2, 1, 5), 100.0, dtype=torch.float64)  # a class token has no say
    assert torch.allclose(gradcam(*(torch.cat([first, t], 1) for t in tokens), grid=(2, 3)), expected, atol=1e-15)


def test_weights_are_the_mean_gradient_by_hand():
    activation = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])  # channel 0 on the left, channel 1 on the right
    gradient = torch.tensor([[[[3.0, 1.0]], [[-1.0, -1.0]]]])  # means 2 and -1
    assert gradcam(activation, gradient).tolist() == [[[2.0, 0.0]]]


def test_half_precision_is_computed_in_single():
    attention, gradient = some_attention(dtype=torch.float32)
    half = attention_gradcam(attention.bfloat16(), gradient.bfloat16(), (2, 3))
    assert half.dtype == torch.float32
    assert torch.allclose(half, attention_gradcam(attention, gradient, (2, 3)), atol=0.02)


# out of a model, in one backward pass


class Layer(nn.Module):
    """Cross-attention as small as it gets; says whether a backward pass came as deep as its input."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, dtype=torch.float64) for _ in range(3))
        self.visited = 0

    def forward(self, text, image):
        if text.requires_grad:
            text.register_hook(self.visit)
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, x in ((self.query, text), (self.key, image), (self.value, image))
        )
        attention = (q @ k.mT).softmax(-1)  # (B, heads, L, 1 + P)
        return text + (attention @ v).transpose(1, 2).flatten(2).tanh(), attention

    def visit(self, gradient):
        self.visited += 1


class Fusion(nn.Module):
    def __init__(self, layers=3):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.head = nn.Linear(8, 1, dtype=torch.float64)

    def forward(self, text, image):
        attentions = []
        for layer in self.layers:
            text, attention = layer(text, image)
            attentions.append(attention)
        return self.head(text[:, 0])[:, 0].tanh(), attentions


def some_pairs(b=2, length=3, places=5):
    return (torch.randn(b, n, 8, generator=dice(n), dtype=torch.float64) for n in (length, places))


def test_gradients_agree_with_differences_and_stay_with_their_pair():
    model, (text, image) = Fusion(1), some_pairs()
    score, attentions = model(text, image)
    (gradient,) = gradients(score, attentions, keep_graph=True)
    assert torch.equal(gradient, torch.autograd.grad(score[0] + score[1], attentions)[0])
    layer, step = model.layers[0], 1e-6

    def with_attention(attention):
        v = layer.value(image).unflatten(-1, (2, -1)).transpose(1, 2)
        return model.head((text + (attention @ v).transpose(1, 2).flatten(2).tanh())[:, 0])[:, 0].tanh()

    for place in [(0, 0, 0, 1), (1, 1, 0, 4), (0, 1, 2, 3)]:
        moved = attentions[0].detach().clone()
        moved[place] += step
        slope = (with_attention(moved) - score).detach() / step
        assert abs(float(slope[place[0]]) - float(gradient[place])) < 1e-5
        assert float(slope[1 - place[0]]) == pytest.approx(0, abs=1e-9)  # the other pair knows nothing of it


def test_the_backward_pass_goes_no_deeper_than_the_asked_layer():
    model, (text, image) = Fusion(3), some_pairs()
    score, attentions = model(text.requires_grad_(), image)
    word_maps(score, attentions[2:], (2, 2))
    assert [layer.visited for layer in model.layers] == [0, 0, 0]
    score, attentions = model(text, image)
    word_maps(score, [attentions[1]], (2, 2))
    assert [layer.visited for layer in model.layers] == [0, 0, 1]  # through the third layer, not into the second
    assert text.grad is None and all(p.grad is None for p in model.parameters())


def test_several_layers_share_one_backward_pass():
    model, (text, image) = Fusion(3), some_pairs()
    score, attentions = model(text, image)
    together = word_maps(score, attentions, (2, 2), keep_graph=True)
    for maps, attention in zip(together, attentions, strict=True):
        (gradient,) = torch.autograd.grad(score.sum(), attention, retain_graph=True)
        assert torch.equal(maps, attention_gradcam(attention.detach(), gradient, (2, 2)))
    picked = word_maps_of(lambda: model(text, image), (2, 2), layers=[2, -3])
    assert torch.equal(picked[0], together[2]) and torch.equal(picked[1], together[0])
    with torch.no_grad():  # it turns gradients on itself
        assert torch.equal(word_maps_of(lambda: model(text, image), (2, 2))[1], together[1])
    with pytest.raises(ValueError, match="no layer 3; forward returned the attentions of 3"):
        word_maps_of(lambda: model(text, image), (2, 2), layers=[3])


def test_recording_sees_a_frozen_model():
    model, (text, image) = Fusion(3), some_pairs()
    score, attentions = model(text, image)
    expected = word_maps(score, attentions[1:2], (2, 2))[0]
    model.requires_grad_(False)
    with recording(model.layers[1]) as seen:
        score, attentions = model(text, image)
    assert torch.allclose(word_maps(score, seen, (2, 2))[0], expected)
    assert not attentions[0].requires_grad  # the graph starts at the layer that is looked at
    with recording(model.layers[0]) as seen, torch.no_grad():
        score, _ = model(text, image)
    with pytest.raises(ValueError, match="tensor 0 has no graph"):
        word_maps(score, seen, (2, 2))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.layers)


def test_recording_a_conv_layer_gives_plain_gradcam():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(5 * 16, 2))
    model.requires_grad_(False)
    images = torch.randn(2, 3, 8, 8, generator=dice())
    with recording(model[2]) as seen:
        score = model(images)[:, 1]
    maps = gradcam(seen[0], *gradients(score, seen))
    weight = model[4].weight[1].view(5, 4, 4).mean((1, 2))
    assert torch.allclose(maps, torch.einsum("c,bchw->bhw", weight, seen[0]).relu(), atol=1e-6)
    assert maps.any()


@pytest.fixture(scope="module")
def bert():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        is_decoder=True,
        add_cross_attention=True,
        attn_implementation="eager",
    )
    return BertModel(config, add_pooling_layer=False).eval()


def test_transformers_cross_attention(bert):
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    image = torch.randn(2, 7, 16, generator=dice())

    def forward(ids=ids, mask=mask, image=image):
        output = bert(ids, attention_mask=mask, encoder_hidden_states=image, output_attentions=True)
        last = mask.sum(1) - 1
        return output.last_hidden_state[torch.arange(len(ids)), last, 0], output.cross_attentions

    maps = word_maps_of(forward, (2, 3), mask, layers=[0, 1])
    assert maps[0].shape == (2, 4, 2, 3) and maps[0].any() and not maps[0][1, 3].any()
    with recording(bert.encoder.layer[1].crossattention) as seen:
        score, _ = forward()
    assert torch.equal(word_maps(score, seen, (2, 3), mask)[0], maps[1])
    # padding changes no map, and neither does the other pair
    alone = word_maps_of(lambda: forward(ids[1:, :3], mask[1:, :3], image[1:]), (2, 3), mask[1:, :3])
    assert torch.allclose(alone[1][0], maps[1][1, :3], atol=1e-7)
    assert torch.allclose(sentence_map(alone[1], mask[1:, :3])[0], sentence_map(maps[1], mask)[1], atol=1e-7)


def test_fused_attention_is_refused_with_the_way_out(bert):
    from transformers.models.bert.modeling_bert import BertLayer

    config = type(bert.config).from_dict(bert.config.to_dict() | {"attn_implementation": "sdpa"})
    config._attn_implementation = "sdpa"
    layer = BertLayer(config).eval()
    x = torch.randn(1, 3, 16)
    with pytest.raises(TypeError, match="eager"), recording(layer.crossattention):
        layer(x, None, x, None)
    with pytest.raises(TypeError, match="tensor 0 is None.*eager"):
        gradients(torch.ones(1, requires_grad=True), [None])


# from tokens to words and sentences


def test_a_sentence_is_the_mean_of_its_true_tokens():
    maps = torch.rand(2, 5, 2, 3, generator=dice(), dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]])  # padded on either side
    expected = torch.stack([maps[0, :4].mean(0), maps[1, 1:].mean(0)])
    assert torch.allclose(sentence_map(maps, mask), expected)
    assert torch.allclose(sentence_map(maps, mask, divide="padded"), expected * 4 / 5)
    words = torch.stack([maps[0, 1:3].mean(0), maps[1, 2:4].mean(0)])
    assert torch.allclose(sentence_map(maps, mask, tokens="words"), words)
    assert torch.allclose(sentence_map(maps), maps.mean(1))
    assert not sentence_map(maps[:, :2], tokens="words").any()  # nothing but [CLS] and [SEP]
    with pytest.raises(ValueError, match="'all' or 'words'"):
        sentence_map(maps, tokens="most")


def test_words_are_found_by_their_characters():
    from vlnotes.text import train_tokenizer

    texts = ["a ring to the left of a hearings heart, on the sea", "a ring"]
    tokenizer = train_tokenizer(["a ring to the left of a heart on the sea"] * 3, kind="wordpiece", vocab_size=60)
    batch = tokenizer(texts, padding=True, return_offsets_mapping=True, return_tensors="pt")
    words = [(0, "ring"), (0, "to the left of"), (0, "hearings"), (0, "heart"), (1, "ring")]
    spans = [(texts[row].index(word), texts[row].index(word) + len(word)) for row, word in words]
    rows = torch.tensor([row for row, _ in words])
    tokens = span_tokens(batch["offset_mapping"], rows, spans)
    for (row, word), hit in zip(words, tokens, strict=True):
        assert tokenizer.decode(batch["input_ids"][row][hit]).replace(" ", "") == word.replace(" ", "")
    assert tokens[1].sum() >= 4 and tokens[2].sum() > 1 and not tokens[:, 0].any()
    maps = torch.rand(2, batch["input_ids"].shape[1], 2, 2, generator=dice())
    found = span_maps(maps, rows, tokens)
    for k, (row, _) in enumerate(words):
        assert torch.allclose(found[k], maps[row][tokens[k]].mean(0))
    cut = span_tokens(batch["offset_mapping"][:, :4], rows, spans)
    with pytest.raises(ValueError, match="words have no token .was the text cut.*: .3"):
        span_maps(maps[:, :4], rows[3:4].repeat(4), torch.cat([cut[:1].repeat(3, 1), cut[3:4]]))


# resizing and scores


def test_upsampling_puts_a_cell_at_the_middle_of_its_pixels():
    maps = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    wide = upsample(maps, (2, 4))
    assert wide.tolist() == [[0.0, 0.25, 0.75, 1.0], [2.0, 2.25, 2.75, 3.0]]
    assert torch.equal(upsample(maps[None, None], 2)[0, 0], maps)
    assert upsample(torch.rand(3, 4, 5, 6), (7, 8)).shape == (3, 4, 7, 8)


def test_values_stand_where_the_tower_says_and_fade_beyond_by_hand():
    # cells of four pixels, their values in the middle of the first of these: at pixels 0 and 4
    wide = upsample(torch.tensor([[8.0, 4.0], [8.0, 4.0]]), 8, centre=1 / 8)
    assert wide[0].tolist() == wide[4].tolist() == [8, 7, 6, 5, 4, 3, 2, 1]
    assert wide[:, 0].tolist() == [8, 8, 8, 8, 8, 6, 4, 2]
    maps = torch.rand(3, 2, 5, 4, generator=dice(), dtype=torch.float64) + 0.1
    middle, plain = upsample(maps, (40, 16), centre=0.5), upsample(maps, (40, 16))
    assert torch.allclose(middle[..., 4:-4, 2:-2], plain[..., 4:-4, 2:-2], atol=1e-12)  # alike between the values
    assert (middle[..., 0, :] < plain[..., 0, :]).all() and (middle[..., -1] < plain[..., -1]).all()
    with pytest.raises(ValueError, match="centre is 1.5"):
        upsample(maps, 8, centre=1.5)


def naive_scores(values, inside, thresholds):
    """Loops over one picture's pixels; the map is already of the mask's size."""
    cells = [(float(v), bool(m)) for v, m in zip(values.flatten(), inside.flatten(), strict=True)]
    top, low = max(v for v, _ in cells), min(v for v, _ in cells)
    best = [m for v, m in cells if v == top]
    total = sum(v for v, _ in cells)
    area = sum(m for _, m in cells) / len(cells)
    fits = []
    for t in thresholds:
        kept = [v >= low + t * (top - low) for v, _ in cells]
        both = sum(k and m for k, (_, m) in zip(kept, cells, strict=True))
        fits.append(both / sum(k or m for k, (_, m) in zip(kept, cells, strict=True)))
    return sum(best) / len(best), fits, sum(v for v, m in cells if m) / total if total else area, area


@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 7), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_scores_equal_loops(seed, h, w, levels):
    maps = torch.randint(0, levels, (3, h, w), generator=dice(seed)).float()  # small integers: many ties
    masks = torch.rand(3, h, w, generator=dice(seed + 1)) < 0.4
    masks[:, 0, 0] |= ~masks.flatten(1).any(1)
    thresholds = (0.5, 0.0, 1.0, 0.25)  # in any order
    got = localisation(maps, masks, thresholds)
    for k in range(3):
        point, fits, energy, area = naive_scores(maps[k].double(), masks[k], thresholds)
        assert float(got["pointing"][k]) == pytest.approx(point)
        assert iou(maps, masks, thresholds)[k].tolist() == pytest.approx(fits)
        assert float(got["iou"][k]) == pytest.approx(max(fits))
        assert float(got["energy"][k]) == pytest.approx(energy)
        assert float(got["chance"][k]) == pytest.approx(area)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e-20, 3e7])
def test_a_constant_map_scores_the_share_of_the_area(value):
    masks = torch.rand(4, 50, 30, generator=dice()) < 0.2
    maps = torch.full((4, 7, 9), value)
    got = localisation(maps, masks)
    for name in ("pointing", "iou", "energy"):
        assert got[name].tolist() == pytest.approx(area_share(masks).tolist()), name


def test_a_map_at_the_object_scores_high_and_a_map_beside_it_low():
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[:, 8:24, 40:56] = True
    maps = torch.zeros(1, 8, 8)
    maps[:, 1:3, 5:7] = 1.0
    assert float(pointing_game(maps, masks)) == 1 and float(best_iou(maps, masks)) > 0.9
    assert float(energy_inside(maps, masks)) > 0.7
    beside = maps.flip(2)
    assert float(pointing_game(beside, masks)) == 0 and float(energy_inside(beside, masks)) == 0
    assert float(best_iou(beside, masks)) == 0


def test_pointing_game_of_random_maps_is_the_share_of_the_area():
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[:, 3:9, 5:13] = True
    maps = torch.rand(2000, 16, 16, generator=dice())
    share = float(pointing_game(maps, masks.expand(2000, -1, -1)).mean())
    assert abs(share - float(area_share(masks))) < 4 * (0.19 * 0.81 / 2000) ** 0.5


def test_the_centre_point():
    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[0], masks[1, 1, 2], masks[2, 0, 0] = True, True, True
    assert centre_point(masks).tolist() == [1.0, 0.25, 0.0]  # four middle pixels
    odd = torch.zeros(1, 5, 3, dtype=torch.bool)
    odd[0, 2, 1] = True
    assert centre_point(odd).tolist() == [1.0]


def test_scores_in_groups():
    scores = {"pointing": torch.tensor([1.0, 0.0, 1.0, 0.5]), "chance": torch.tensor([0.1, 0.2, 0.3, 0.4])}
    rows = score_table(scores, role=["noun", "colour", "noun", "noun"], layer=torch.tensor([0, 0, 0, 1]))
    assert [(r["role"], r["layer"], r["count"]) for r in rows] == [("noun", 0, 2), ("colour", 0, 1), ("noun", 1, 1)]
    assert rows[0]["pointing"] == 1.0 and rows[0]["chance"] == pytest.approx(0.2)
    assert score_table(scores) == [{"count": 4, "pointing": 0.625, "chance": pytest.approx(0.25)}]
    with pytest.raises(ValueError, match="of one length"):
        score_table(scores, role=["noun"])


# bad input


def test_bad_input_is_named():
    attention, gradient = some_attention()
    with pytest.raises(ValueError, match=r"7 places.*grid \(2, 2\) needs 1 \+ 2 \* 2 = 5"):
        attention_gradcam(attention, gradient, (2, 2))
    with pytest.raises(ValueError, match=r"needs 2 \* 3 = 6; class_token"):
        attention_gradcam(attention, gradient, (2, 3), class_token=False)
    with pytest.raises(ValueError, match="differ in shape"):
        attention_gradcam(attention, gradient[:, :1], (2, 3))
    with pytest.raises(ValueError, match=r"text_mask has shape \(3, 5\); expected \(B, L\) = \(3, 4\)"):
        attention_gradcam(attention, gradient, (2, 3), torch.ones(3, 5))
    with pytest.raises(TypeError, match="gradient: expected a torch.Tensor"):
        attention_gradcam(attention, None, (2, 3))
    with pytest.raises(ValueError, match="grid is 6"):
        attention_gradcam(attention, gradient, 6)
    for bad in (float("nan"), float("inf"), -float("inf")):
        worse = gradient.clone()
        worse[1, 0, 2, 3] = bad
        with pytest.raises(ValueError, match="gradient: expected finite numbers, got 1 NaN or infinite of 168 .*row 1"):
            attention_gradcam(attention, worse, (2, 3))
        with pytest.raises(ValueError, match="expected finite numbers, got 1 NaN"):
            gradcam(torch.ones(3, 2, 4, 7, dtype=torch.float64), worse)
        with pytest.raises(ValueError, match="maps: expected finite numbers"):
            pointing_game(worse[:, 0], torch.ones(3, 4, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="has a grid of its own"):
        gradcam(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), grid=(3, 4))
    with pytest.raises(ValueError, match="are tokens; say how they lie"):
        gradcam(torch.ones(1, 5, 3), torch.ones(1, 5, 3))
    with pytest.raises(ValueError, match=r"has 5 tokens.*needs 6, or 7 with a class token"):
        gradcam(torch.ones(1, 5, 3), torch.ones(1, 5, 3), grid=(2, 3))


def test_a_score_that_cannot_be_derived_is_named():
    model, (text, image) = Fusion(1), some_pairs()
    score, attentions = model(text, image)
    with pytest.raises(ValueError, match=r"score has shape \(\); expected \(B,\)"):
        gradients(score.sum(), attentions)
    with pytest.raises(ValueError, match="expected a list of tensors"):
        gradients(score, attentions[0])
    with pytest.raises(ValueError, match="score has no graph"):
        gradients(score.detach(), attentions)
    with pytest.raises(ValueError, match="does not depend on it; is it a copy"):
        gradients(score, [attentions[0] * 1])
    with pytest.raises(ValueError, match="name at least one module"), recording():
        pass


def test_bad_masks_are_named():
    maps, masks = torch.rand(2, 3, 3), torch.ones(2, 6, 6, dtype=torch.bool)
    with pytest.raises(TypeError, match="masks is torch.float32; expected a bool"):
        pointing_game(maps, masks.float())
    with pytest.raises(ValueError, match="1 masks are empty, the first: .1."):
        pointing_game(maps, masks & torch.tensor([True, False]).view(2, 1, 1))
    with pytest.raises(ValueError, match="a mask a map"):
        best_iou(maps[:1], masks)
    with pytest.raises(ValueError, match="energy is a share of what is never negative"):
        energy_inside(-maps, masks)
    with pytest.raises(ValueError, match=r"thresholds: expected numbers in \[0, 1\]"):
        iou(maps, masks, [2.0])
    with pytest.raises(ValueError, match="two numbers from 1 on"):
        upsample(maps, 0)


# the whole way, from captions to a table


def test_a_model_that_looked_right_would_score_high_for_every_role():
    from vlnotes.text import train_tokenizer
    from vlnotes.world import ROLES, World, captions, grounded_words, word_regions

    scenes = World("paper").scenes(40, "test")
    said = [captions(scene)[k % 2] for k, scene in enumerate(scenes)]  # full, rel, full, ...
    tokenizer = train_tokenizer([c.text for c in said])
    batch = tokenizer([c.text for c in said], padding=True, return_offsets_mapping=True, return_tensors="pt")
    words = [grounded_words(scene, caption) for scene, caption in zip(scenes, said, strict=True)]
    regions, rows = word_regions(scenes, words)
    flat = [word for of_scene in words for word in of_scene]
    tokens = span_tokens(batch["offset_mapping"], rows, [word[:2] for word in flat])
    maps = torch.zeros(*batch["input_ids"].shape, 16, 16)  # (B, L, h, w)
    for region, row, which in zip(regions, rows, tokens, strict=True):
        maps[row, which] = nn.functional.avg_pool2d(region[None].float(), 4)
    right = localisation(span_maps(maps, rows, tokens), regions)
    table = {row["role"]: row for row in score_table(right, role=[word.role for word in flat])}
    assert set(table) == set(ROLES) and sum(row["count"] for row in table.values()) == len(flat)
    for row in table.values():
        assert row["pointing"] > 0.9 and row["iou"] > 0.7 and row["energy"] > 0.5 > 0.2 > row["chance"]
    wrong = localisation(span_maps(maps.roll(1, 0), rows, tokens), regions)
    assert float(wrong["pointing"].mean()) < 0.4
