"""Scores: equal to slow and obvious versions, honest about ties, and never above chance for nothing."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vlnotes import metrics
from vlnotes.metrics import (
    alignment,
    any_true_recall,
    chance_recall,
    cluster_agreement,
    code_usage,
    colour_histogram,
    continual_scores,
    effective_robustness,
    histogram_baseline,
    knn,
    linear_probe,
    recall_at_k,
    recall_from_features,
    truth_from_labels,
    uniformity,
    winoground_scores,
    zero_shot,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0):
    return F.normalize(random(*shape, seed=seed), dim=-1)


def slow_recall(similarity, owner, ks):
    """Sort every row and column with Python and look (scores must differ)."""
    n, m = len(similarity), len(owner)
    result = {}
    for k in ks:
        hits = 0
        for i in range(n):
            ranked = sorted(range(m), key=lambda j: -similarity[i][j])
            hits += any(owner[j] == i for j in ranked[:k])
        result[f"i2t@{k}"] = hits / n
    for k in ks:
        hits = 0
        for j in range(m):
            ranked = sorted(range(n), key=lambda i: -similarity[i][j])
            hits += owner[j] in ranked[:k]
        result[f"t2i@{k}"] = hits / m
    return result


def slow_hit(scores, truth, k):
    """Average over every order that respects the scores: what a coin would do with ties."""
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    return sum(any(truth[j] for j in order[:k]) for order in orders) / len(orders)


@pytest.mark.parametrize("captions", [1, 5])
@pytest.mark.parametrize("shuffled", [False, True])
def test_recall_is_what_a_sorted_list_says(captions, shuffled):
    n, ks = 12, (1, 3, 5, 10)
    owner = torch.arange(n).repeat_interleave(captions)
    if shuffled:
        owner = owner[torch.randperm(len(owner), generator=torch.Generator().manual_seed(1))]
    similarity = random(n, len(owner)) + 1.5 * (owner == torch.arange(n)[:, None])
    expected = slow_recall(similarity.tolist(), owner.tolist(), ks)
    result = recall_at_k(similarity, owner, ks)
    assert list(result) == list(expected)
    assert result == pytest.approx(expected, abs=1e-12)
    assert 0.2 < result["i2t@1"] < 1


def test_recall_without_owners_is_the_diagonal():
    similarity = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 4.0], [0.0, 1.0, 2.0]])
    result = recall_at_k(similarity, ks=(1, 2))
    # rows: hit, rank 3, hit. columns: 0 tied with row 1, 1 tied with row 0, row 1 ahead of row 2.
    assert result == pytest.approx({"i2t@1": 2 / 3, "i2t@2": 2 / 3, "t2i@1": 1 / 3, "t2i@2": 1.0})


def test_uneven_numbers_of_captions():
    owner = torch.tensor([0, 0, 0, 1])
    similarity = torch.tensor([[0.1, 0.9, 0.0, 0.5], [0.8, 0.2, 0.3, 0.7]])
    assert recall_at_k(similarity, owner, (1, 2)) == pytest.approx(
        {"i2t@1": 0.5, "i2t@2": 1.0, "t2i@1": 0.5, "t2i@2": 1.0}
    )


def test_a_constant_matrix_scores_chance_and_not_one():
    owner = torch.arange(60) // 3
    result = recall_at_k(torch.zeros(20, 60), owner)
    assert result == pytest.approx(chance_recall(20, owner), abs=1e-12)
    assert result["t2i@1"] == pytest.approx(1 / 20, abs=1e-12)
    assert result["i2t@1"] == pytest.approx(3 / 60, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=2, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.integers(1, 7),
)
def test_ties_count_as_the_average_over_all_orders(scores, flags, k):
    truth = flags[: len(scores)]
    truth[0] = True
    ours = metrics._recall(
        lambda rows: (torch.tensor([scores]).float()[rows], torch.tensor([truth])[rows]),
        (1, len(scores)),
        [k],
    )
    assert ours[0] == pytest.approx(slow_hit(scores, truth, k), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 3), st.integers(0, 10_000), st.booleans())
def test_recall_is_a_share_that_grows_with_k(n, captions, seed, coarse):
    similarity = random(n, n * captions, seed=seed)
    similarity = similarity.round() if coarse else similarity
    owner = torch.arange(n).repeat_interleave(captions)
    ks = (1, 2, 3, 5, 8, 24, 100)
    result = recall_at_k(similarity, owner, ks)
    for way in ("i2t", "t2i"):
        values = [result[f"{way}@{k}"] for k in ks]
        assert all(0 <= value <= 1 for value in values)
        assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(values))
        assert values[-1] == 1  # a K beyond the gallery takes everything


def test_recall_does_not_change_with_scale_or_order():
    owner = torch.arange(10).repeat_interleave(2)
    similarity = random(10, 20) + (owner == torch.arange(10)[:, None])
    expected = recall_at_k(similarity, owner)
    assert recall_at_k(similarity * 100 - 7, owner) == expected
    rows = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    assert recall_at_k(similarity[rows], rows.argsort()[owner]) == pytest.approx(expected)
    assert recall_at_k(similarity.numpy(), owner.numpy()) == expected
    assert recall_at_k(similarity.double(), owner.tolist()) == expected


def test_infinite_scores_are_ranks_too():
    similarity = torch.full((3, 3), -torch.inf)
    similarity[0, 0] = torch.inf
    similarity[1, 1] = -100
    result = recall_at_k(similarity, ks=(1,))
    assert result["i2t@1"] == pytest.approx((1 + 1 + 1 / 3) / 3)


@pytest.mark.parametrize("chunk", [None, 1, 3, 7, 1000])
def test_chunked_recall_equals_the_whole_matrix(chunk):
    owner = torch.arange(40).repeat_interleave(5)
    images, texts = unit(40, 16), unit(200, 16, seed=1)
    texts = F.normalize(texts + images[owner], dim=-1)
    expected = recall_at_k(images @ texts.T, owner)
    assert recall_from_features(images, texts, owner, chunk=chunk) == pytest.approx(expected, abs=1e-12)
    assert 0.1 < expected["t2i@1"] < 1


def test_chunked_recall_never_holds_much(monkeypatch):
    seen = []
    original = metrics._recall

    def watched(block, *args, **kwargs):
        def noted(rows):
            scores, truth = block(rows)
            seen.append(max(scores.numel(), truth.numel()))
            return scores, truth

        return original(noted, *args, **kwargs)

    monkeypatch.setattr(metrics, "_recall", watched)
    monkeypatch.setattr(metrics, "TILE", 1000)
    owner = torch.arange(50).repeat_interleave(5)
    recall_from_features(unit(50, 8), unit(250, 8), owner)
    assert max(seen) <= 1000 and sum(seen) == 2 * 50 * 250


def test_chunked_recall_stays_small_in_memory():
    """The whole matrix would be 144 MB, and its masks 36 MB each; tiles here are of 2 MB."""
    script = """
import resource, torch
from vlnotes import metrics
torch.set_num_threads(1)
metrics.TILE = 500_000
generator = torch.Generator().manual_seed(0)
owner = torch.arange(12_000) // 4
images, texts = torch.randn(3_000, 8, generator=generator), torch.randn(12_000, 8, generator=generator)
metrics.recall_from_features(images[:50], texts[:200], owner[:200])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = metrics.recall_from_features(images, texts, owner)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, result["t2i@10"])
"""
    pytest.importorskip("resource", reason="peak memory is read through a module that Windows lacks")
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    megabytes, recall = (float(word) for word in run.stdout.split())
    assert megabytes < 80 * (1 if sys.platform == "linux" else 1024)  # macOS counts bytes
    assert recall == pytest.approx(10 / 3000, abs=0.002)


def test_any_true_recall_is_what_a_sorted_list_says():
    similarity, truth = random(9, 14), random(9, 14, seed=1) > 1
    truth[torch.arange(9), torch.arange(9)] = True
    truth[0, 9:] = True
    result = any_true_recall(similarity, truth, (1, 3))
    for k in (1, 3):
        rows = [any(truth[i, j] for j in similarity[i].argsort(descending=True)[:k]) for i in range(9)]
        columns = [any(truth[i, j] for i in similarity[:, j].argsort(descending=True)[:k]) for j in range(14)]
        assert result[f"i2t@{k}"] == pytest.approx(sum(rows) / 9)
        assert result[f"t2i@{k}"] == pytest.approx(sum(columns) / 14)


def test_recall_is_any_true_recall_of_the_own_captions():
    owner = torch.arange(30) % 6
    similarity = random(6, 30)
    truth = truth_from_labels(range(6), owner)
    assert any_true_recall(similarity, truth) == recall_at_k(similarity, owner)
    assert chance_recall(truth=truth) == pytest.approx(chance_recall(6, owner))


def test_truth_from_labels_takes_words_and_numbers():
    expected = torch.tensor([[True, False, True], [False, True, False]])
    assert torch.equal(truth_from_labels(["cat", "dog"], ["cat", "dog", "cat"]), expected)
    assert torch.equal(truth_from_labels(torch.tensor([4, 7]), [4, 7, 4]), expected)


def test_chance_is_a_count_of_combinations():
    truth = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 1, 1, 1]]).bool()
    result = chance_recall(truth=truth, ks=(1, 2, 4, 9))
    for k in (1, 2, 4, 9):
        missed = [
            math.comb(3, k) / math.comb(5, k) if k <= 5 else 0.0,
            math.comb(1, k) / math.comb(5, k) if k <= 5 else 0.0,
        ]
        assert result[f"i2t@{k}"] == pytest.approx(1 - sum(missed) / 2, abs=1e-12)
    assert result["t2i@1"] == pytest.approx((1 + 0.5 * 4) / 5) and result["t2i@2"] == 1


def test_random_scores_score_chance():
    owner = torch.arange(100).repeat_interleave(5)
    runs = [recall_at_k(random(100, 500, seed=seed), owner) for seed in range(20)]
    chance = chance_recall(100, owner)
    for key, expected in chance.items():
        queries = 20 * (100 if key.startswith("i2t") else 500)
        deviation = (expected * (1 - expected) / queries) ** 0.5
        assert sum(run[key] for run in runs) / 20 == pytest.approx(expected, abs=4 * deviation)


def test_zero_shot_takes_the_most_similar_prompt():
    images, prompts = unit(30, 8), unit(6, 8, seed=1)
    labels = torch.arange(30) % 6
    scores = images @ prompts.T
    result = zero_shot(images, prompts, labels, (1, 3, 6))
    assert result["top1"] == pytest.approx((scores.argmax(dim=1) == labels).float().mean().item())
    assert result["top3"] == pytest.approx((scores.topk(3).indices == labels[:, None]).any(dim=1).float().mean().item())
    assert result["top6"] == 1
    assert zero_shot(prompts, prompts, torch.arange(6)) == {"top1": 1.0}
    exact = torch.eye(8)[torch.arange(30) % 8]  # products of 0 and 1, so that six equal prompts tie on every machine
    assert zero_shot(exact, torch.eye(8)[:1].repeat(6, 1), labels)["top1"] == pytest.approx(1 / 6)


def test_several_prompts_a_class_are_averaged_and_normalised():
    images, prompts = unit(30, 8), unit(6, 4, 8, seed=1)
    labels = torch.arange(30) % 6
    mean = torch.stack([(p.sum(dim=0) / 4) / (p.sum(dim=0) / 4).norm() for p in prompts])
    assert zero_shot(images, prompts, labels, (1, 2)) == pytest.approx(zero_shot(images, mean, labels, (1, 2)))
    long = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.6, 0.8], [0.6, -0.8]]])  # a short mean must not lose
    assert zero_shot(torch.tensor([[0.9, 0.1]]), long, [0], (1,))["top1"] == pytest.approx(0.5)


@pytest.mark.parametrize("k", [1, 5, 20, 500])
def test_knn_is_that_of_scikit_learn(k):
    import numpy as np
    from sklearn.neighbors import KNeighborsClassifier

    labels, test_labels = torch.arange(120) % 4, torch.arange(60) % 4
    centres = random(4, 6, seed=3)
    train, test = random(120, 6) + 0.5 * centres[labels], random(60, 6, seed=1) + 0.5 * centres[test_labels]
    reference = KNeighborsClassifier(
        min(k, 120), metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.1)
    ).fit(train.double().numpy(), labels.numpy())
    expected = reference.score(test.double().numpy(), test_labels.numpy())
    assert knn(train.double(), labels, test.double(), test_labels, k=k) == pytest.approx(expected)
    assert 0.3 < expected < 1


def test_knn_votes_with_similarity():
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels, test = torch.tensor([0, 1, 1]), torch.tensor([[0.9, 0.45]])
    assert knn(train, labels, test, torch.tensor([0]), k=3, temperature=0.1) == 1  # the near one outvotes two far ones
    assert knn(train, labels, test, torch.tensor([1]), k=3, temperature=100.0) == 1  # the majority does
    assert knn(train, 1 - labels, test, torch.tensor([1]), k=3, temperature=1e-6) == 1  # and nothing overflows


def test_linear_probe_reads_what_a_line_can_read():
    labels, test_labels = torch.arange(90) % 3, torch.arange(45) % 3
    centres = 4 * random(3, 5, seed=3)
    train, test = random(90, 5) + centres[labels], random(45, 5, seed=1) + centres[test_labels]
    score = linear_probe(train, labels, test, test_labels)
    assert score > 0.9
    rescaled = torch.tensor([1e3, 1e-3, 1.0, 50.0, 7.0])
    assert linear_probe(train * rescaled + 5, labels, test * rescaled + 5, test_labels) == pytest.approx(score)
    assert linear_probe(random(90, 5), labels, random(45, 5, seed=1), test_labels) < 0.6


def test_linear_probe_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    train, test, labels, test_labels = (
        random(90, 5),
        random(45, 5, seed=1),
        torch.arange(90) % 3,
        torch.arange(45) % 3,
    )
    mean, deviation = train.mean(dim=0), train.std(dim=0, correction=0)
    model = LogisticRegression(C=0.01).fit(((train - mean) / deviation).double().numpy(), labels.numpy())
    expected = model.score(((test - mean) / deviation).double().numpy(), test_labels.numpy())
    assert linear_probe(train, labels, test, test_labels, C=0.01) == pytest.approx(expected)


def test_linear_probe_weighs_small_features_like_large_ones():
    labels, test_labels = torch.arange(90) % 2, torch.arange(60) % 2
    train, test = 1000 * random(90, 4), 1000 * random(60, 4, seed=1)
    train[:, 0], test[:, 0] = 0.001 * (labels + train[:, 0] / 5000), 0.001 * (test_labels + test[:, 0] / 5000)
    assert linear_probe(train, labels, test, test_labels) > 0.9


def test_a_strict_linear_probe_only_counts_classes():
    labels = (torch.arange(90) % 3 == 0).long()
    features = random(90, 4) + 2 * labels[:, None]
    assert linear_probe(features, labels, features, labels) > 0.9
    assert linear_probe(features, labels, features, labels, C=1e-7) == pytest.approx(2 / 3)


def test_colour_histogram_counts_pixels():
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, 0, 0, 0] = 255  # one red pixel, three black ones
    image[0, 2, 1, 1] = 127  # one of those half blue
    histogram = colour_histogram(image, bins=4)
    assert histogram.shape == (1, 64) and histogram.sum() == 1
    assert histogram[0, 3 * 16] == 0.25 and histogram[0, 1] == 0.25 and histogram[0, 0] == 0.5
    many = torch.randint(0, 256, (300, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(colour_histogram(many).sum(dim=1), torch.ones(300))
    torch.testing.assert_close(colour_histogram(many)[299:], colour_histogram(many[299:]))
    assert colour_histogram(many, bins=1).shape == (300, 1)


def coloured(count, seed):
    """Pictures of one flat colour with noise, and captions that name it."""
    generator = torch.Generator().manual_seed(seed)
    names = ["black", "red", "green", "yellow", "blue", "purple", "cyan", "white"]
    which = torch.randint(8, (count,), generator=generator)
    channels = torch.stack([which & 1, which >> 1 & 1, which >> 2 & 1], dim=1) * 200 + 20
    noise = torch.randint(0, 30, (count, 3, 6, 6), generator=generator)
    return (channels[:, :, None, None] + noise).to(torch.uint8), [f"a {names[i]} thing" for i in which], which


def test_histogram_baseline_finds_colours_from_words():
    train_images, train_captions, _ = coloured(200, 0)
    images, texts, which = coloured(60, 1)
    features = histogram_baseline(train_images, train_captions, None, images, texts)
    assert features[0].shape == features[1].shape == (60, 512)
    truth = truth_from_labels(which, which)
    assert any_true_recall(features[0] @ features[1].T, truth, (1,)) == {"i2t@1": 1.0, "t2i@1": 1.0}
    shuffled = histogram_baseline(train_images, train_captions[::-1], None, images, texts)
    assert any_true_recall(shuffled[0] @ shuffled[1].T, truth, (1,))["t2i@1"] < 0.6


def test_histogram_baseline_is_the_ridge_of_scikit_learn():
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import Ridge

    train_images, _, _ = coloured(30, 0)
    images, _, _ = coloured(5, 1)
    owner = torch.randint(30, (80,), generator=torch.Generator().manual_seed(2))
    captions = [f"word{i % 7} word{i % 5} a word{i % 3}" for i in range(80)]
    histograms = colour_histogram(train_images, 3).sqrt().double()
    words = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b")
    model = Ridge(alpha=2.0, fit_intercept=False)
    model.fit(words.fit_transform(captions).toarray(), (histograms - histograms.mean(dim=0))[owner].numpy())
    expected = torch.from_numpy(model.predict(words.transform(captions[:9]).toarray()))
    _, ours = histogram_baseline(train_images, captions, owner, images, captions[:9], bins=3, penalty=2.0)
    torch.testing.assert_close(ours, F.normalize(expected, dim=1).float(), atol=1e-5, rtol=1e-4)


def test_histogram_baseline_with_several_captions_and_unknown_words():
    train_images, train_captions, _ = coloured(50, 0)
    images, texts, _ = coloured(10, 1)
    double = [text for caption in train_captions for text in (caption, caption.replace("thing", "picture"))]
    _, text_features = histogram_baseline(
        train_images, double, torch.arange(100) // 2, images, [*texts, "utterly different words"]
    )
    assert text_features[-1].abs().sum() == 0
    torch.testing.assert_close(text_features[:-1].norm(dim=1), torch.ones(10))


def test_bad_matrices_are_named():
    with pytest.raises(ValueError, match=r"shape \(3,\); expected \(N, M\)"):
        recall_at_k(torch.zeros(3))
    with pytest.raises(ValueError, match="1 NaN of 9"):
        recall_at_k(torch.eye(3).index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(torch.nan)))
    with pytest.raises(ValueError, match="2 pictures and 10 texts.*text_to_image"):
        recall_at_k(torch.zeros(2, 10))
    with pytest.raises(ValueError, match=r"expected \(10,\) integers"):
        recall_at_k(torch.zeros(2, 10), torch.zeros(9, dtype=torch.long))
    with pytest.raises(ValueError, match="integers"):
        recall_at_k(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="runs from 0 to 2; expected 0 to 1"):
        recall_at_k(torch.zeros(2, 3), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="runs from -1"):
        recall_at_k(torch.zeros(2, 3), torch.tensor([0, 1, -1]))
    with pytest.raises(ValueError, match=r"1 of 2 pictures have no text.*\[1\]"):
        recall_at_k(torch.zeros(2, 3), torch.tensor([0, 0, 0]))
    for ks in ((0,), (), (1.5,)):
        with pytest.raises(ValueError, match="whole numbers of at least 1"):
            recall_at_k(torch.eye(3), ks=ks)


def test_bad_features_and_truths_are_named():
    with pytest.raises(ValueError, match=r"\(4, 3\) and text_features \(4, 5\) differ in width"):
        recall_from_features(unit(4, 3), unit(4, 5))
    with pytest.raises(ValueError, match="text_features holds 4 NaN"):
        recall_from_features(unit(4, 4), torch.full((1, 4), torch.nan))
    with pytest.raises(ValueError, match="image_features holds 4 infinite numbers"):
        recall_from_features(torch.full((1, 4), torch.inf), unit(1, 4))
    with pytest.raises(ValueError, match="chunk is 0"):
        recall_from_features(unit(4, 3), unit(4, 3), chunk=0)
    with pytest.raises(ValueError, match="expected bool"):
        any_true_recall(torch.zeros(2, 2), torch.eye(2))
    with pytest.raises(ValueError, match=r"like similarity \(2, 2\)"):
        any_true_recall(torch.zeros(2, 2), torch.ones(2, 3).bool())
    with pytest.raises(ValueError, match=r"1 texts have no true picture, the first: \[1\]"):
        any_true_recall(torch.zeros(2, 2), torch.tensor([[True, False], [True, False]]))
    with pytest.raises(ValueError, match="either images"):
        chance_recall()
    with pytest.raises(ValueError, match="either images"):
        chance_recall(3, truth=torch.ones(2, 2).bool())


@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([2, 4, 1000]))
@settings(max_examples=60, deadline=None)
def test_winoground_scores_are_those_of_a_loop(seed, n, levels):
    """Few levels make many ties, which are wrong."""
    scores = torch.randint(levels, (n, 2, 2), generator=torch.Generator().manual_seed(seed))
    text = image = group = 0
    for (a0, b0), (a1, b1) in scores.tolist():  # pictures 0 and 1, sentences a and b
        right_text, right_image = a0 > b0 and b1 > a1, a0 > a1 and b1 > b0
        text, image, group = text + right_text, image + right_image, group + (right_text and right_image)
    assert winoground_scores(scores) == {"text": text / n, "image": image / n, "group": group / n}
    assert winoground_scores(scores.float()) == winoground_scores(scores)


def test_winoground_scores_of_chance_of_ties_and_of_a_bag_of_words():
    found = winoground_scores(random(100_000, 2, 2))
    assert found == pytest.approx({"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}, abs=0.006)
    assert winoground_scores(torch.ones(3, 2, 2)) == {"text": 0, "image": 0, "group": 0}
    assert winoground_scores(torch.eye(2)[None]) == {"text": 1, "image": 1, "group": 1}
    likes_one_text = torch.tensor([[[3.0, 2.0], [1.0, 0.0]]])
    assert winoground_scores(likes_one_text) == {"text": 0, "image": 0, "group": 0}
    only_text = torch.tensor([[[3.0, 2.0], [4.0, 5.0]]])  # picture 1 fits every sentence better
    assert winoground_scores(only_text) == {"text": 1, "image": 0, "group": 0}


def test_bad_winoground_scores_are_named():
    for shape in ((0, 2, 2), (2, 2), (5, 2, 3)):
        with pytest.raises(ValueError, match="expected .n, 2, 2.: items, pictures, sentences"):
            winoground_scores(torch.zeros(*shape))
    with pytest.raises(ValueError, match="holds 1 NaN of 4"):
        winoground_scores(torch.tensor([[[0.0, 1.0], [float("nan"), 0.0]]]))


def test_bad_classes_are_named():
    with pytest.raises(ValueError, match="labels run from 0 to 4; expected 0 to 2"):
        zero_shot(unit(5, 4), unit(3, 4), torch.arange(5))
    with pytest.raises(ValueError, match=r"expected \(5,\) integers"):
        zero_shot(unit(5, 4), unit(3, 4), torch.arange(4))
    four = (unit(4, 3), torch.arange(4), unit(4, 3), torch.arange(4))
    with pytest.raises(ValueError, match="k is 0"):
        knn(*four, k=0)
    with pytest.raises(ValueError, match="temperature.*got 0"):
        knn(*four, temperature=0)
    with pytest.raises(ValueError, match="go down to -1"):
        knn(four[0], torch.arange(4) - 1, *four[2:])
    with pytest.raises(ValueError, match="one class only"):
        linear_probe(four[0], torch.zeros(4, dtype=torch.long), *four[2:])
    with pytest.raises(ValueError, match="C is -1"):
        linear_probe(*four, C=-1)
    with pytest.raises(ValueError, match="test_labels is"):
        linear_probe(*four[:3], torch.arange(3))


def test_bad_pictures_and_captions_are_named():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(TypeError, match="float32"):
        colour_histogram(images.float())
    with pytest.raises(ValueError, match=r"\(3, 4, 4\)"):
        colour_histogram(images[0])
    with pytest.raises(ValueError, match="bins is 0"):
        colour_histogram(images, 0)
    with pytest.raises(TypeError, match="test_captions is no list of texts"):
        histogram_baseline(images, ["a", "b"], None, images, [1, 2])
    with pytest.raises(ValueError, match="2 pictures and 3 texts"):
        histogram_baseline(images, ["a", "b", "c"], None, images, ["a"])
    with pytest.raises(ValueError, match="penalty is 0"):
        histogram_baseline(images, ["a", "b"], None, images, ["a"], penalty=0)


def test_code_usage_counts_what_an_even_use_would_need():
    even = code_usage(torch.arange(12) % 4, 6)
    assert even["perplexity"] == pytest.approx(4) and even["used"] == 4
    assert code_usage(torch.zeros(5, dtype=torch.long), 3) == {"perplexity": pytest.approx(1), "used": 1}
    skewed = code_usage(torch.tensor([0, 0, 0, 1]), 2)
    assert skewed["perplexity"] == pytest.approx(2 ** (0.75 * math.log2(4 / 3) + 0.25 * 2))
    with pytest.raises(ValueError, match="codes: expected numbers from 0 to 2, got 0 to 3"):
        code_usage(torch.arange(4), 3)
    with pytest.raises(ValueError, match="got none"):
        code_usage(torch.zeros(0, dtype=torch.long), 3)


def test_purity_and_nmi_by_hand():
    codes, labels = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([5, 5, 7, 7, 7, 7])
    found = cluster_agreement(codes, labels)
    assert found["purity"] == pytest.approx(5 / 6)
    p = {(0, 5): 2 / 6, (0, 7): 1 / 6, (1, 7): 3 / 6}
    code, label = {0: 0.5, 1: 0.5}, {5: 2 / 6, 7: 4 / 6}
    shared = sum(share * math.log(share / code[c] / label[k]) for (c, k), share in p.items())
    entropy = [-sum(share * math.log(share) for share in one.values()) for one in (code, label)]
    assert found["nmi"] == pytest.approx(shared / (sum(entropy) / 2))
    assert cluster_agreement(labels, labels) == {"purity": 1, "nmi": pytest.approx(1)}
    every = cluster_agreement(torch.arange(6), labels)
    assert every["purity"] == 1 and every["nmi"] < 1
    with pytest.raises(ValueError, match="labels"):
        cluster_agreement(codes, labels[:3])
    with pytest.raises(ValueError, match="at least one sample"):
        cluster_agreement(codes[:0], labels[:0])


def test_alignment_and_uniformity_by_hand():
    x = F.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    y = F.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    for power in (1.0, 2.0):
        expected = sum(math.dist(a, b) ** power for a, b in zip(x.tolist(), y.tolist(), strict=True)) / 5
        assert alignment(x, y, power) == pytest.approx(expected, rel=1e-6)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    mean = sum(math.exp(-3 * math.dist(x[i].tolist(), x[j].tolist()) ** 2) for i, j in pairs) / 20
    assert uniformity(x, 3.0) == pytest.approx(math.log(mean), rel=1e-5)
    assert alignment(x, x) == 0 and uniformity(x[:1].expand(4, 3)) == pytest.approx(0, abs=1e-5)
    assert uniformity(torch.eye(4)) == pytest.approx(-4)
    with pytest.raises(ValueError, match="5 and 4 rows"):
        alignment(x, y[:4])
    with pytest.raises(ValueError, match="1 rows"):
        uniformity(x[:1])
    with pytest.raises(ValueError, match="scale 0"):
        uniformity(x, 0.0)


# ---------------------------------------------------------------------------------------------- streams


def naive_continual(r, start):
    last, phases = r[-1], len(r)
    lost = [max(r[t][k] for t in range(k, phases - 1)) - last[k] for k in range(phases - 1)]
    back = [last[k] - r[k][k] for k in range(phases - 1)]
    ahead = [r[k - 1][k] - start[k] for k in range(1, phases)]
    return {
        "average": sum(last) / phases,
        "learnt": sum(r[k][k] for k in range(phases)) / phases,
        "forgetting": sum(lost) / (phases - 1),
        "backward": sum(back) / (phases - 1),
        "forward": sum(ahead) / (phases - 1),
    }


@pytest.mark.parametrize("phases", [2, 3, 6])
def test_continual_scores_are_the_loop(phases):
    dice = torch.Generator().manual_seed(phases)
    r, start = (torch.rand(shape, generator=dice, dtype=torch.float64) for shape in ((phases, phases), (phases,)))
    found = continual_scores(r, start)
    assert found == pytest.approx(naive_continual(r.tolist(), start.tolist()))
    without = continual_scores(r)
    assert "forward" not in without and without.items() <= found.items()


def test_forgetting_is_against_the_best_and_backward_against_the_first():
    r = [[0.5, 0.9], [0.2, 0.8]]
    found = continual_scores(torch.tensor(r))
    assert found == pytest.approx({"average": 0.5, "learnt": 0.65, "forgetting": 0.3, "backward": -0.3})
    # the second phase helps the first domain, the third takes it away again
    found = continual_scores(torch.tensor([[0.5, 0, 0], [0.7, 0.6, 0], [0.4, 0.6, 0.9]]))
    assert found["forgetting"] == pytest.approx((0.3 + 0) / 2) and found["backward"] == pytest.approx((-0.1 + 0) / 2)


def test_only_what_counts_must_be_there():
    r = torch.tensor([[0.5, 0.1, torch.nan], [0.7, 0.6, 0.2], [0.4, 0.6, 0.9]])
    assert continual_scores(r, torch.zeros(3))["forward"] == pytest.approx(0.15)
    r[0, 1] = torch.nan
    assert continual_scores(r)["average"] == pytest.approx(1.9 / 3)
    with pytest.raises(ValueError, match=r"recalls\[0, 1\] is nan"):
        continual_scores(r, torch.zeros(3))


def test_continual_scores_name_what_is_wrong():
    for bad in (torch.zeros(2, 3), torch.zeros(1, 1), torch.zeros(3), torch.tensor(0.5)):
        with pytest.raises(ValueError, match=r"recalls: expected \(T, T\)"):
            continual_scores(bad)
    with pytest.raises(ValueError, match=r"recalls\[1, 0\] is 55.0; expected a number in \[0, 1\]"):
        continual_scores(torch.tensor([[0.5, 0.0], [55.0, 0.2]]))
    with pytest.raises(ValueError, match=r"untrained: expected \(2,\)"):
        continual_scores(torch.zeros(2, 2), torch.zeros(3))


# Effective robustness


def on_a_line(x, intercept=-0.7, slope=0.9):
    return torch.stack([x, (intercept + slope * x.logit()).sigmoid()], 1)


def test_a_model_on_the_line_of_the_testbed_has_no_effective_robustness():
    line = on_a_line(torch.linspace(0.1, 0.9, 12, dtype=torch.float64))
    better = on_a_line(torch.tensor([0.55, 0.95], dtype=torch.float64))  # also beyond the test-bed
    found = effective_robustness(line, better + torch.tensor([0.0, 0.04]), items=1000)
    assert (found.intercept, found.slope) == pytest.approx((-0.7, 0.9))
    assert found.gain.tolist() == pytest.approx([0.04, 0.04])
    assert found.low.tolist() == pytest.approx([0.04, 0.04]) and found.high.tolist() == pytest.approx([0.04, 0.04])


def test_effective_robustness_is_a_straight_fit_of_logits_and_its_interval_that_of_drawn_testbeds():
    dice = torch.Generator().manual_seed(3)
    testbed, models = torch.rand(9, 2, generator=dice), torch.tensor([[0.5, 0.5], [0.2, 0.9]])
    found = effective_robustness(testbed, models, items=10**6, resamples=400, seed=5)
    logit = np.log(testbed.double() / (1 - testbed.double())).numpy()
    slope, intercept = np.polyfit(*logit.T, 1)
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept))
    assert float(found.gain[0]) == pytest.approx(0.5 - 1 / (1 + np.exp(-intercept)))
    gains = []
    for a, b in found.lines.tolist():
        gains.append([y - 1 / (1 + math.exp(-a - b * math.log(x / (1 - x)))) for x, y in models.tolist()])
    assert len(gains) == 400
    assert found.low.tolist() == pytest.approx(np.quantile(gains, 0.025, axis=0))
    assert found.high.tolist() == pytest.approx(np.quantile(gains, 0.975, axis=0))
    assert bool((found.low < found.gain).all()) and bool((found.gain < found.high).all())
    rows = torch.randint(9, (400, 9), generator=torch.Generator().manual_seed(5))
    assert found.lines[7].flip(0).tolist() == pytest.approx(np.polyfit(*logit[rows[7].numpy()].T, 1))


def test_accuracies_of_all_or_nothing_stay_finite_by_half_a_sample():
    testbed = torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]])
    found = effective_robustness(testbed, torch.tensor([[1.0, 1.0], [0.0, 0.5]]), items=100)
    assert found.slope == pytest.approx(1) and found.intercept == pytest.approx(0)
    assert found.gain.tolist() == pytest.approx([0.0, 0.495]) and len(found.lines) < 1000


@pytest.mark.parametrize(
    ("testbed", "options", "said"),
    [
        (torch.rand(2, 2), {}, "3 models or more"),
        (torch.full((4, 2), 0.3), {}, "no line fits"),
        (torch.rand(4, 3), {}, r"expected \(models, 2\)"),
        (torch.tensor([[0.1, 0.2], [0.3, math.nan], [0.5, 0.6]]), {}, r"testbed\[1, 1\] is nan"),
        (100 * torch.rand(4, 2) + 2, {}, "a share in"),
        (torch.rand(4, 2), {"items": 0}, "items"),
        (torch.rand(4, 2), {"resamples": 0}, "resamples"),
    ],
)
def test_effective_robustness_says_what_is_wrong(testbed, options, said):
    with pytest.raises(ValueError, match=said):
        effective_robustness(testbed, torch.rand(1, 2), **{"items": 100} | options)
