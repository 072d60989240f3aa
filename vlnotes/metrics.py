"""How good are the features? Recall at K, zero-shot, nearest neighbours, linear probe, and baselines to stand
beside.

Every number is a share in [0, 1]. Ties are settled by an imagined coin: a score that several candidates share
counts with the probability that a random order among them gives a hit. So a constant matrix scores exactly
chance, not 100 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from vlnotes.validate import check_temperature

TILE = 2_000_000  # most numbers of the similarity matrix that are held at once


def recall_at_k(
    similarity: torch.Tensor, text_to_image: torch.Tensor | None = None, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Is the right one among the K most similar? Asked of every picture (i2t) and of every text (t2i).

    A picture with several captions is a hit when its best ranked caption is: "hit rate" would be the better
    name, since the share of *all* its captions that were found (recall in other fields) is another number.

    Args:
        similarity: (N, M), pictures are rows and texts are columns; larger is more similar, infinities are
            allowed.
        text_to_image: (M,) integers, the picture that each text describes; None: text i describes picture i.
        ks: each at least 1; a K beyond the number of candidates counts all of them, which always hits.

    Returns:
        {"i2t@1": share, ..., "t2i@1": share, ...}, each in [0, 1], ties as chance would settle them.

    Raises:
        ValueError: no (N, M) matrix, NaN, a picture without text, an index out of range, a K below 1.

    Notebook: 02_contrastive_matrix, section 6.
    """
    similarity = _matrix(similarity, "similarity", "(N, M)")
    owner = _owners(text_to_image, *similarity.shape).to(similarity.device)
    pictures = torch.arange(similarity.shape[0], device=similarity.device)
    i2t = _recall(lambda i: (similarity[i], owner == pictures[i, None]), similarity.shape, ks)
    t2i = _recall(lambda j: (similarity[:, j].T, owner[j, None] == pictures), similarity.T.shape, ks)
    return _named(ks, i2t=i2t, t2i=t2i)


def recall_from_features(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    text_to_image: torch.Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int | None = None,
) -> dict[str, float]:
    """`recall_at_k` of image_features @ text_features.T, which is made and thrown away a few rows at a time.

    100,000 captions and 20,000 pictures would be 8 GB of similarities; here 2 million of them exist at once.

    Args:
        image_features: (N, D) float, L2-normalised.
        text_features: (M, D) float, L2-normalised.
        text_to_image: (M,) integers, the picture that each text describes; None: text i describes picture i.
        ks: as in `recall_at_k`.
        chunk: how many queries at a time; None: as many as fit into 2 million similarities.

    Returns:
        As `recall_at_k`.

    Raises:
        ValueError: features that are no matrices of one width, NaN, and as in `recall_at_k`; a chunk below 1.
    """
    image_features, text_features = _feature_pair(image_features, text_features, ("image_features", "text_features"))
    n, m = len(image_features), len(text_features)
    owner = _owners(text_to_image, n, m).to(image_features.device)
    pictures = torch.arange(n, device=image_features.device)
    i2t = _recall(lambda i: (image_features[i] @ text_features.T, owner == pictures[i, None]), (n, m), ks, chunk)
    t2i = _recall(lambda j: (text_features[j] @ image_features.T, owner[j, None] == pictures), (m, n), ks, chunk)
    return _named(ks, i2t=i2t, t2i=t2i)


def any_true_recall(similarity: torch.Tensor, truth: torch.Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Is anything true among the K most similar? Fair where a caption fits more pictures than its own.

    With `truth_from_labels` this is recall by concept instead of by picture.

    Args:
        similarity: (N, M), pictures are rows and texts are columns.
        truth: (N, M) bool, True where the text is true of the picture; no row and no column may be empty.
        ks: as in `recall_at_k`.

    Returns:
        {"i2t@1": share, ..., "t2i@1": share, ...}, each in [0, 1], ties as chance would settle them.

    Raises:
        ValueError: shapes that differ, NaN, a truth that is no bool or has an empty row or column, K below 1.
    """
    similarity = _matrix(similarity, "similarity", "(N, M)")
    truth = _truth(truth, tuple(similarity.shape)).to(similarity.device)
    i2t = _recall(lambda i: (similarity[i], truth[i]), similarity.shape, ks)
    t2i = _recall(lambda j: (similarity[:, j].T, truth[:, j].T), similarity.T.shape, ks)
    return _named(ks, i2t=i2t, t2i=t2i)


def chance_recall(
    images: int | None = None,
    text_to_image: torch.Tensor | None = None,
    *,
    truth: torch.Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """What random scores reach on average, in closed form: the number beside which a recall is to be read.

    A row with p true ones among M is missed with probability C(M - p, K) / C(M, K).

    Args:
        images: N, for `recall_at_k`; or give `truth`.
        text_to_image: (M,) integers as in `recall_at_k`; None: one text a picture.
        truth: (N, M) bool as in `any_true_recall`, in place of the other two.
        ks: as in `recall_at_k`.

    Returns:
        As `recall_at_k`.

    Raises:
        ValueError: neither or both of `images` and `truth`, and what `recall_at_k` and `any_true_recall`
            refuse.
    """
    if (images is None) == (truth is None):
        raise ValueError("give either images (with text_to_image) or truth, not both and not neither")
    if truth is not None:
        truth = _truth(truth, tuple(torch.as_tensor(truth).shape))
        per_image, per_text = truth.sum(dim=1).cpu(), truth.sum(dim=0).cpu()
    else:
        owner = _owners(text_to_image, images, images if text_to_image is None else len(text_to_image)).cpu()
        per_image, per_text = (
            torch.bincount(owner, minlength=images),
            torch.ones(len(owner), dtype=torch.long),
        )
    n, m = len(per_image), len(per_text)
    i2t = [(1 - _miss(per_image, m - per_image, k)).mean().item() for k in _ks(ks)]
    t2i = [(1 - _miss(per_text, n - per_text, k)).mean().item() for k in _ks(ks)]
    return _named(ks, i2t=i2t, t2i=t2i)


def winoground_scores(scores: torch.Tensor) -> dict[str, float]:
    """Are two pictures and two nearly equal sentences put together right?

    text: for each picture, its own sentence scores higher than the other one. image: for each sentence, its own picture
    does. group: both. Who answers at random reaches 1/4, 1/4 and 1/6. Here a tie is wrong, against the rule of this
    file: a model that sees no difference should not be paid for it.

    Args:
        scores: (n, 2, 2); scores[i, p, t] says how well picture p fits sentence t of item i, larger is better; picture
            0 belongs to sentence 0, picture 1 to sentence 1.

    Returns:
        {"text": share, "image": share, "group": share} of the n items, each in [0, 1].

    Raises:
        ValueError: another shape, no items, NaN.

    Equation: Winoground (Thrush et al. 2022), text, image and group score.
    """
    scores = torch.as_tensor(scores)
    if scores.ndim != 3 or scores.shape[1:] != (2, 2) or not len(scores):
        raise ValueError(f"scores has shape {tuple(scores.shape)}; expected (n, 2, 2): items, pictures, sentences")
    if bool(scores.isnan().any()):
        raise ValueError(f"scores holds {int(scores.isnan().sum())} NaN of {scores.numel()} numbers")
    own = scores.diagonal(dim1=1, dim2=2)  # (n, 2)
    text = (own > torch.stack((scores[:, 0, 1], scores[:, 1, 0]), 1)).all(dim=1)  # the other sentence, by picture
    image = (own > torch.stack((scores[:, 1, 0], scores[:, 0, 1]), 1)).all(dim=1)  # the other picture, by sentence
    shares = {"text": text, "image": image, "group": text & image}
    return {name: float(hits.double().mean()) for name, hits in shares.items()}


def truth_from_labels(image_labels: Iterable[Hashable], text_labels: Iterable[Hashable]) -> torch.Tensor:
    """A text counts as true of every picture with the same label.

    Args:
        image_labels: N labels, integers or words; a tensor or a list.
        text_labels: M labels of the same kind.

    Returns:
        (N, M) bool, on the CPU.
    """
    rows, columns = (
        labels.tolist() if isinstance(labels, torch.Tensor) else list(labels) for labels in (image_labels, text_labels)
    )
    number = {label: index for index, label in enumerate(dict.fromkeys([*rows, *columns]))}
    left, right = (torch.tensor([number[label] for label in labels], dtype=torch.long) for labels in (rows, columns))
    return left[:, None] == right[None, :]


def zero_shot(
    image_features: torch.Tensor,
    prompt_features: torch.Tensor,
    labels: torch.Tensor,
    ks: Sequence[int] = (1,),
) -> dict[str, float]:
    """Classify pictures by the most similar prompt, without a single labelled picture.

    Args:
        image_features: (N, D) float, L2-normalised.
        prompt_features: (C, D) float, L2-normalised, one prompt a class; or (C, n, D), n prompts a class, of
            which the mean is taken and normalised again.
        labels: (N,) integers, the right class of every picture.
        ks: a picture counts when its class is among the K most similar ones.

    Returns:
        {"top1": share, ...} in [0, 1], ties as chance would settle them.

    Raises:
        ValueError: features that do not fit together, NaN, labels out of range or of another length, a K
            below 1.

    Equation: CLIP (Radford et al. 2021), section 3.1, zero-shot transfer.
    """
    if isinstance(prompt_features, torch.Tensor) and prompt_features.ndim == 3:
        prompt_features = F.normalize(prompt_features.mean(dim=1), dim=-1)  # (C, D)
    image_features, prompt_features = _feature_pair(
        image_features, prompt_features, ("image_features", "prompt_features")
    )
    n, classes = len(image_features), len(prompt_features)
    labels = _labels(labels, n, "labels").to(image_features.device)
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels run from {int(labels.min())} to {int(labels.max())}; expected 0 to {classes - 1}")
    every = torch.arange(classes, device=labels.device)
    shares = _recall(lambda i: (image_features[i] @ prompt_features.T, labels[i, None] == every), (n, classes), ks)
    return {f"top{k}": share for k, share in zip(_ks(ks), shares, strict=True)}


def knn(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    k: int = 20,
    temperature: float = 0.1,
) -> float:
    """Accuracy of a vote among the k nearest training features, each voting with exp(cosine / temperature).

    Args:
        train_features: (N, D) float; normalised inside.
        train_labels: (N,) integers, 0 or larger.
        test_features: (M, D) float; normalised inside.
        test_labels: (M,) integers.
        k: neighbours; more than N counts as N.
        temperature: > 0; small ones let the nearest neighbour decide, large ones make all votes equal.

    Returns:
        Share of test features with the right label, in [0, 1].

    Raises:
        ValueError: shapes that do not fit, NaN, no neighbour, a temperature of 0 or less, negative labels.

    Equation: Wu et al. 2018 (instance discrimination), section 3.4, weighted k-nearest-neighbour classifier.
    """
    train, test, train_labels, test_labels = _splits(train_features, train_labels, test_features, test_labels)
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1 neighbour")
    check_temperature(temperature)
    if int(train_labels.min()) < 0:
        raise ValueError(f"train_labels go down to {int(train_labels.min())}; expected 0 or larger")
    train, test = F.normalize(train, dim=-1), F.normalize(test, dim=-1)
    classes, right = int(train_labels.max()) + 1, 0
    rows = max(1, TILE // len(train))
    for part, answer in zip(test.split(rows), test_labels.split(rows), strict=True):
        cosine, nearest = (part @ train.T).topk(min(k, len(train)), dim=1)  # (rows, k)
        # the nearest votes with weight 1, so nothing can overflow
        weight = ((cosine - cosine[:, :1]) / temperature).exp()  # (rows, k)
        votes = weight.new_zeros(len(part), classes).scatter_add_(1, train_labels[nearest], weight)  # (rows, C)
        right += int((votes.argmax(dim=1) == answer).sum())
    return right / len(test)


def linear_probe(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    C: float = 1.0,
    max_iter: int = 1000,
) -> float:
    """Accuracy of a linear classifier on frozen features: is the answer written there so that a line can read
    it?

    Features are standardised with the training mean and deviation, then logistic regression (scikit-learn,
    L-BFGS).

    Args:
        train_features: (N, D) float.
        train_labels: (N,) integers, at least two different ones.
        test_features: (M, D) float.
        test_labels: (M,) integers.
        C: > 0, inverse strength of the L2 penalty; smaller is stricter.
        max_iter: most steps of the solver.

    Returns:
        Share of test features with the right label, in [0, 1].

    Raises:
        ValueError: shapes that do not fit, NaN, a single class, a C of 0 or less.

    Equation: CLIP (Radford et al. 2021), appendix A.3; MoCo (He et al. 2020), section 4.1, with SGD in place
    of L-BFGS.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test, train_labels, test_labels = _splits(train_features, train_labels, test_features, test_labels)
    if not C > 0:
        raise ValueError(f"C is {C}; expected a number above 0")
    if len(train_labels.unique()) < 2:
        raise ValueError(f"train_labels hold one class only ({int(train_labels[0])}); expected at least two")
    x, x_test = (features.double().cpu().numpy() for features in (train, test))
    y, y_test = (labels.cpu().numpy() for labels in (train_labels, test_labels))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=max_iter))
    return float(model.fit(x, y).score(x_test, y_test))


def continual_scores(recalls: torch.Tensor, untrained: torch.Tensor | None = None) -> dict[str, float]:
    """What a stream of T phases has left, cost and given, from one score a phase and domain.

    r[t, k] is the score on domain k after phase t, and phase k is the one that teaches domain k.
    average = mean_k r[T-1, k]; learnt = mean_k r[k, k];
    forgetting = mean_{k < T-1} (max_{k <= t < T-1} r[t, k] - r[T-1, k]);
    backward = mean_{k < T-1} (r[T-1, k] - r[k, k]);
    forward = mean_{k > 0} (r[k-1, k] - untrained[k])

    Forgetting is against the best that was ever known since the domain was learnt, backward transfer against what had
    just been learnt; where a domain only gets worse, one is minus the other.

    Args:
        recalls: (T, T) float, scores in [0, 1]. Above the diagonal, only r[k-1, k] counts, and only for forward.
        untrained: (T,) float, the scores of a model that has learnt nothing, or chance; None leaves forward out.

    Returns:
        dict(average, learnt, forgetting, backward), and forward with `untrained`; the first two in [0, 1], the others
        in [-1, 1]. Forgetting is good when small, the others when large.

    Raises:
        ValueError: no square matrix of 2 phases or more, numbers that count and are NaN or outside [0, 1].

    Equation: GEM (Lopez-Paz & Ranzato 2017), equations 2 to 4; forgetting: Chaudhry et al. (2018), equation 3.
    """
    r = torch.as_tensor(recalls, dtype=torch.float64).cpu()
    phases = len(r) if r.ndim else 0
    if r.shape != (phases, phases) or phases < 2:
        raise ValueError(f"recalls: expected (T, T), a row a phase and 2 or more, got {tuple(r.shape)}")
    counts = torch.ones_like(r, dtype=torch.bool).tril()
    diagonal = r.diagonal()
    if untrained is not None:
        start = torch.as_tensor(untrained, dtype=torch.float64).cpu()
        if start.shape != (phases,) or not bool(((start >= 0) & (start <= 1)).all()):
            raise ValueError(f"untrained: expected ({phases},) numbers in [0, 1], got {tuple(start.shape)}: {start}")
        counts |= torch.ones_like(r, dtype=torch.bool).tril(1)
    bad = counts & ~((r >= 0) & (r <= 1))
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(f"recalls[{row}, {column}] is {float(r[row, column])}; expected a number in [0, 1]")
    known = torch.ones(phases - 1, phases - 1, dtype=torch.bool).tril()
    before_last = r[:-1, :-1].masked_fill(~known, -torch.inf)  # (T - 1, T - 1)
    found = {
        "average": r[-1].mean(),
        "learnt": diagonal.mean(),
        "forgetting": (before_last.amax(0) - r[-1, :-1]).mean(),
        "backward": (r[-1, :-1] - diagonal[:-1]).mean(),
    }
    if untrained is not None:
        found["forward"] = (r.diagonal(1) - start[1:]).mean()
    return {name: float(value) for name, value in found.items()}


class Robustness(NamedTuple):
    """What `effective_robustness` says: the line on logit axes, and what each model has beyond it, (M,) each, in
    [-1, 1], with the ends of its 95 % interval. lines (R, 2): intercept and slope of every resampled test-bed."""

    intercept: float
    slope: float
    gain: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    lines: torch.Tensor


def effective_robustness(
    testbed: torch.Tensor, models: torch.Tensor, *, items: int, resamples: int = 1000, seed: int = 0
) -> Robustness:
    """Is a model better under a shift than ordinary models that are as good without it?

    logit(y) = a + b · logit(x) is fitted to the test-bed by least squares; gain = y - sigmoid(a + b · logit(x))

    A better model moves along the line, which is no robustness. The interval is that of the line: the test-bed's models
    are drawn again with replacement. It leaves out that a model trained with another seed would land elsewhere.

    Args:
        testbed: (N, 2) float, N ordinary models, 3 or more, of different accuracy: x on the usual test, y on the
            shifted one, shares in [0, 1].
        models: (M, 2) float, the same of the models in question.
        items: how many samples each accuracy was counted on; shares are kept 1 / (2 items) away from 0 and 1, where
            logits end.
        resamples: R, how many test-beds are drawn.
        seed: of the draws.

    Returns:
        `Robustness`, in float64.

    Raises:
        ValueError: other shapes, NaN, shares outside [0, 1], fewer than 3 models in the test-bed or all with the same
            x, no items, no resamples.

    Equation: effective robustness (Taori et al. 2020), on logit axes.
    """
    testbed, models = _shares(testbed, "testbed"), _shares(models, "models")
    if len(testbed) < 3 or items < 1 or resamples < 1:
        raise ValueError(f"expected 3 models or more, items and resamples; got {len(testbed)}, {items}, {resamples}")
    x, y = testbed.clamp(0.5 / items, 1 - 0.5 / items).logit().T  # (N,) each
    if float(x.max() - x.min()) < 1e-9:
        raise ValueError(f"testbed: all {len(x)} models have the accuracy {float(testbed[0, 0]):.3g}; no line fits")
    dice = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(x), (resamples, len(x)), generator=dice)
    rows = rows[x[rows].amax(1) - x[rows].amin(1) > 1e-9]  # a draw of one model alone gives no line
    lines = _lines(x[rows], y[rows])  # (R, 2)
    line = _lines(x[None], y[None])  # (1, 2)
    at, seen = models.clamp(0.5 / items, 1 - 0.5 / items).T  # (M,) each
    gains = [seen - (of[:, :1] + of[:, 1:] * at.logit()).sigmoid() for of in (line, lines)]  # (1, M), (R, M)
    low, high = gains[1].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return Robustness(float(line[0, 0]), float(line[0, 1]), gains[0][0], low, high, lines)


def code_usage(codes: torch.Tensor, codewords: int) -> dict[str, float]:
    """How evenly is a codebook used? Perplexity is the number of codewords that an even use would need.

    Args:
        codes: (N,) integers in [0, codewords), the codeword of each sample.
        codewords: C.

    Returns:
        {"perplexity": exp of the entropy of the use, in [1, C], "used": how many codewords have a sample}.

    Raises:
        ValueError: no codes, or some out of range.
    """
    codes = _labels(codes, len(codes), "codes")
    if not len(codes) or not 0 <= int(codes.min()) <= int(codes.max()) < codewords:
        seen = f"{int(codes.min())} to {int(codes.max())}" if len(codes) else "none"
        raise ValueError(f"codes: expected numbers from 0 to {codewords - 1}, got {seen}")
    share = torch.bincount(codes, minlength=codewords).double() / len(codes)  # (C,)
    return {"perplexity": float(torch.special.entr(share).sum().exp()), "used": float((share > 0).sum())}


def cluster_agreement(codes: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Do samples of one codeword belong together?

    Purity is right when every codeword is called after its commonest label; one codeword a sample reaches 1. Normalised
    mutual information asks in both directions, so it also pays for few codewords a label, but chance is above 0 for
    both where codewords are many: stand them beside a control.

    Args:
        codes: (N,) integers, the codeword of each sample.
        labels: (N,) integers.

    Returns:
        {"purity": share, "nmi": I(codes; labels) over the mean of both entropies}, each in [0, 1].

    Raises:
        ValueError: codes and labels of two lengths, none, or no integers.
    """
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    if not len(codes):
        raise ValueError("codes: expected at least one sample")
    codes = _labels(codes, len(codes), "codes").cpu().numpy()
    labels = _labels(labels, len(codes), "labels").cpu().numpy()
    commonest = contingency_matrix(labels, codes).max(axis=0).sum()
    return {"purity": float(commonest / len(codes)), "nmi": float(normalized_mutual_info_score(labels, codes))}


def alignment(x: torch.Tensor, y: torch.Tensor, power: float = 2.0) -> float:
    """How close do pairs lie? The mean of their distance to a power; 0 is best, 4 the worst for power 2.

    Args:
        x: (N, D) float, L2-normalised.
        y: (N, D) float, L2-normalised; row i belongs to row i of x.
        power: > 0.

    Returns:
        0 or more.

    Raises:
        ValueError: matrices of two shapes, NaN or infinity, a power of 0 or less.

    Equation: Wang and Isola 2020, section 4.1, alignment.
    """
    x, y = _feature_pair(x, y, ("x", "y"))
    if len(x) != len(y) or not power > 0:
        raise ValueError(f"expected as many rows and a power above 0; got {len(x)} and {len(y)} rows, power {power}")
    return float((x - y).double().norm(dim=1).pow(power).mean())


def uniformity(x: torch.Tensor, scale: float = 2.0) -> float:
    """How evenly do features cover the sphere? Less is more even; all in one place gives 0.

    log mean_{i≠j} exp(-scale · |x_i - x_j|²)

    Args:
        x: (N, D) float, L2-normalised, two rows or more.
        scale: > 0.

    Returns:
        0 or less; near -2 · scale where all are at right angles.

    Raises:
        ValueError: fewer than two rows, NaN or infinity, a scale of 0 or less.

    Equation: Wang and Isola 2020, section 4.2, uniformity.
    """
    x, _ = _feature_pair(x, x, ("x", "x"))
    if len(x) < 2 or not scale > 0:
        raise ValueError(f"expected two rows or more and a scale above 0; got {len(x)} rows, scale {scale}")
    closeness = -scale * torch.pdist(x.double()).square()  # (N (N - 1) / 2,)
    return float(closeness.logsumexp(0) - math.log(len(closeness)))


def colour_histogram(images: torch.Tensor, bins: int = 8) -> torch.Tensor:
    """Count colours: the share of a picture's pixels in each cell of a coarse colour cube.

    Args:
        images: (N, 3, H, W) uint8.
        bins: steps a channel, 1 to 32.

    Returns:
        (N, bins ** 3) float32, rows sum to 1; red is the slowest index, blue the fastest.

    Raises:
        TypeError: pictures that are not uint8.
        ValueError: another shape, a number of bins outside 1 to 32.
    """
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8:
        kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(f"images is {kind}; expected a uint8 tensor (N, 3, H, W)")
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ValueError(f"images has shape {tuple(images.shape)}; expected (N, 3, H, W) with N >= 1")
    if not 1 <= bins <= 32:
        raise ValueError(f"bins is {bins}; expected 1 to 32")
    cells, parts = bins**3, []
    for part in images.split(256):
        step = part.long() * bins // 256  # (n, 3, H, W)
        cell = ((step[:, 0] * bins + step[:, 1]) * bins + step[:, 2]).flatten(1)  # (n, H W)
        count = torch.zeros(len(part), cells, device=images.device)
        parts.append(count.scatter_add_(1, cell, torch.ones_like(cell, dtype=count.dtype)) / cell.shape[1])
    return torch.cat(parts)


def histogram_baseline(
    train_images: torch.Tensor,
    train_captions: Sequence[str],
    train_text_to_image: torch.Tensor | None,
    test_images: torch.Tensor,
    test_captions: Sequence[str],
    *,
    bins: int = 8,
    penalty: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Retrieval without any learned picture features: which words go with which colours?

    Ridge regression maps the words of a caption (present or not, no order) to the colour histogram of its
    picture. A test caption is compared with a test picture by the cosine of predicted and true histogram,
    both as square roots less the training mean. What a trained model adds is what it reaches beyond this.

    Args:
        train_images: (N, 3, H, W) uint8.
        train_captions: M texts.
        train_text_to_image: (M,) integers, the picture that each text describes; None: text i, picture i.
        test_images: (n, 3, H, W) uint8; may differ in size from the training pictures.
        test_captions: m texts.
        bins: steps a colour channel.
        penalty: > 0, strength of the ridge.

    Returns:
        image_features (n, bins ** 3) and text_features (m, bins ** 3), L2-normalised, for
        `recall_from_features`. A caption without a single known word gets zeros, so it ties with everything
        and scores as chance.

    Raises:
        TypeError: pictures that are not uint8, captions that are not texts.
        ValueError: numbers that do not fit, no word in the training captions, a penalty of 0 or less.
    """
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer

    for name, captions in (("train_captions", train_captions), ("test_captions", test_captions)):
        if isinstance(captions, str) or not captions or not all(isinstance(text, str) for text in captions):
            raise TypeError(f"{name} is no list of texts; expected at least one str in it")
    if not penalty > 0:
        raise ValueError(f"penalty is {penalty}; expected a number above 0")
    train = colour_histogram(train_images, bins).sqrt().cpu().double()
    test = colour_histogram(test_images, bins).sqrt().cpu().double()
    owner = _owners(train_text_to_image, len(train), len(train_captions), every_image=False).cpu()
    mean = train.mean(dim=0)
    words = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b", max_features=5000)
    try:
        told = words.fit_transform(train_captions).astype(float)  # (M, words)
    except ValueError as error:  # scikit-learn's "empty vocabulary"
        raise ValueError("train_captions hold no word, so there is nothing to relate to colours") from error
    # Ridge by its normal equations. Captions are summed up by picture first: no histogram for each of them.
    m = len(train_captions)
    summed = csr_matrix((torch.ones(m).numpy(), (owner.numpy(), range(m))), shape=(len(train), m)) @ told
    gram = torch.from_numpy((told.T @ told).toarray())
    target = torch.from_numpy(summed.T @ (train - mean).numpy())  # (words, bins ** 3)
    weight = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), target)
    predicted = torch.from_numpy(words.transform(test_captions).astype(float) @ weight.numpy())
    return F.normalize(test - mean, dim=-1).float(), F.normalize(predicted, dim=-1).float()


def _miss(true: torch.Tensor, false: torch.Tensor, slots: torch.Tensor | int) -> torch.Tensor:
    """Probability that `slots` draws without replacement from true + false candidates take no true one."""
    true, false, slots = (torch.as_tensor(value, dtype=torch.float64) for value in (true, false, slots))
    free, total = (true + false - slots.clamp(min=0)), true + false
    miss = torch.ones_like(total)
    for index in range(int(true.max())):  # one true candidate after the other lands outside the slots
        factor = (free - index).clamp(min=0) / (total - index).clamp(min=1)
        miss = torch.where(index < true, miss * factor, miss)
    return miss


def _recall(
    block: Callable[[slice], tuple[torch.Tensor, torch.Tensor]],
    shape: tuple[int, ...],
    ks: Sequence[int],
    chunk: int | None = None,
) -> list[float]:
    """Mean hit probability at each K; block(rows) gives scores and truth, both (len(rows), candidates)."""
    ks, (queries, candidates) = _ks(ks), shape
    chunk = max(1, TILE // candidates) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1 query at a time")
    total = torch.zeros(len(ks), dtype=torch.float64)
    for start in range(0, queries, chunk):
        ahead, true, false = _counts(*block(slice(start, start + chunk)))
        total += torch.stack([(1 - _miss(true, false, k - ahead)).sum() for k in ks])
    return (total / queries).tolist()


def _counts(scores: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For every row: how many are ahead of the best true one, how many true and how many false are level."""
    best = scores.where(truth, -torch.inf).amax(dim=1, keepdim=True)
    ahead = (scores > best).sum(dim=1)
    level = scores == best
    true = (level & truth).sum(dim=1)
    return ahead.cpu(), true.cpu(), (level.sum(dim=1) - true).cpu()


def _named(ks: Sequence[int], **shares: list[float]) -> dict[str, float]:
    return {f"{way}@{k}": share for way, values in shares.items() for k, share in zip(_ks(ks), values, strict=True)}


def _ks(ks: Sequence[int]) -> list[int]:
    ks = [ks] if isinstance(ks, int) else list(ks)
    if not ks or any(int(k) != k or k < 1 for k in ks):
        raise ValueError(f"ks is {ks}; expected whole numbers of at least 1, such as (1, 5, 10)")
    return [int(k) for k in ks]


def _matrix(values: torch.Tensor, name: str, shape: str) -> torch.Tensor:
    values = torch.as_tensor(values)
    if values.ndim != 2 or values.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; expected {shape}, not empty")
    if not values.is_floating_point():
        values = values.float()
    if bool(values.isnan().any()):
        raise ValueError(f"{name} holds {int(values.isnan().sum())} NaN of {values.numel()} numbers")
    return values.detach()


def _feature_pair(left: torch.Tensor, right: torch.Tensor, names: tuple[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
    left, right = _matrix(left, names[0], "(N, D)"), _matrix(right, names[1], "(M, D)")
    if left.shape[1] != right.shape[1]:
        raise ValueError(
            f"{names[0]} {tuple(left.shape)} and {names[1]} {tuple(right.shape)} differ in width; "
            "expected (N, D) and (M, D)"
        )
    for features, name in zip((left, right), names, strict=True):
        if bool(features.isinf().any()):
            raise ValueError(f"{name} holds {int(features.isinf().sum())} infinite numbers of {features.numel()}")
    return left, right.to(left)


def _owners(text_to_image: torch.Tensor | None, n: int, m: int, every_image: bool = True) -> torch.Tensor:
    if text_to_image is None:
        if n != m:
            raise ValueError(
                f"{n} pictures and {m} texts: with several captions a picture, say which picture each text "
                "describes: text_to_image (M,)"
            )
        return torch.arange(n)
    owner = torch.as_tensor(text_to_image)
    if owner.shape != (m,) or owner.is_floating_point() or owner.dtype == torch.bool:
        raise ValueError(f"text_to_image is {tuple(owner.shape)} {owner.dtype}; expected ({m},) integers, one a text")
    if m and (int(owner.min()) < 0 or int(owner.max()) >= n):
        raise ValueError(f"text_to_image runs from {int(owner.min())} to {int(owner.max())}; expected 0 to {n - 1}")
    without = (torch.bincount(owner.long().cpu(), minlength=n) == 0).nonzero().flatten().tolist()
    if every_image and without:
        raise ValueError(f"{len(without)} of {n} pictures have no text in text_to_image, the first: {without[:5]}")
    return owner.long()


def _truth(truth: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    truth = torch.as_tensor(truth)
    if truth.dtype != torch.bool or truth.ndim != 2 or tuple(truth.shape) != shape:
        raise ValueError(f"truth is {tuple(truth.shape)} {truth.dtype}; expected bool (N, M) like similarity {shape}")
    for way, dim in (("pictures have no true text", 1), ("texts have no true picture", 0)):
        without = (~truth.any(dim=dim)).nonzero().flatten().tolist()
        if without:
            raise ValueError(f"{len(without)} {way}, the first: {without[:5]}; leave them out before scoring")
    return truth


def _shares(values: torch.Tensor, name: str) -> torch.Tensor:
    values = torch.as_tensor(values, dtype=torch.float64).cpu()
    if values.ndim != 2 or values.shape[1] != 2 or not len(values):
        raise ValueError(
            f"{name}: expected (models, 2), accuracy without and with the shift, got {tuple(values.shape)}"
        )
    bad = ~((values >= 0) & (values <= 1))
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(f"{name}[{row}, {column}] is {float(values[row, column])}; expected a share in [0, 1]")
    return values


def _lines(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Intercept and slope (R, 2) of the least-squares line through each row of points, (R, N) each."""
    x_mean, y_mean = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    slope = ((x - x_mean) * (y - y_mean)).sum(1) / (x - x_mean).square().sum(1)
    return torch.stack([y_mean[:, 0] - slope * x_mean[:, 0], slope], 1)


def _labels(labels: torch.Tensor, count: int, name: str) -> torch.Tensor:
    labels = torch.as_tensor(labels)
    if labels.shape != (count,) or labels.is_floating_point():
        raise ValueError(f"{name} is {tuple(labels.shape)} {labels.dtype}; expected ({count},) integers")
    return labels.long()


def _splits(train, train_labels, test, test_labels):
    train, test = _feature_pair(train, test, ("train_features", "test_features"))
    train_labels = _labels(train_labels, len(train), "train_labels").to(train.device)
    return train, test, train_labels, _labels(test_labels, len(test), "test_labels").to(train.device)
