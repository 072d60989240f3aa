"""CODIS's claims C1 to C7 (Duan et al. 2022) and its ablation, on captioned close-ups of single things. C6 asks for the
whole of CODIS beside the whole of ALBEF: see `vlnotes.claims.against`.

Nearly all of CODIS happens on features: ITC or ICA, two views, the codebook. These arms need no fusion encoder, so they
learn from random weights in a minute. Two arms about ITM's negatives take whole pictures of two things instead, and
start from albef-paper, whose fusion encoder has learnt already.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vlnotes import metrics, world
from vlnotes.albef import rerank
from vlnotes.augment import augment
from vlnotes.claims.albef import _scenes
from vlnotes.claims.engine import Claim, Study, loss_curves
from vlnotes.clip import encode_images, encode_texts
from vlnotes.codis import CODIS, GENTLE, assign
from vlnotes.text import encode
from vlnotes.train import pair_batches, train
from vlnotes.weights import load

TINY = {
    **{
        "domain": "paper",
        "pictures": 5000,
        "close_ups": True,
        "size": 32,
        "length": 24,
        "batch_size": 64,
        "steps": 600,
    },
    **{"learning_rate": 1e-3, "layers": 1, "queue_size": 1024, "momentum": 0.99, "distill_weight": 0.4, "start": ""},
    **{"objectives": ["ica", "code"], "second_view": True, "codewords": 64, "code_weight": 0.1},
    **{"code_temperature": 0.1, "pairing": "cross", "assignment": "ipot", "plan_from": "teacher", "plan_queue": False},
    **{"beta": 0.5, "outer": 50, "early": None, "same_code": False},
}
OPTIONS = (  # of `CODIS.tiny` among the settings
    *("size", "layers", "queue_size", "momentum", "distill_weight", "objectives", "second_view", "codewords"),
    *("code_weight", "code_temperature", "pairing", "assignment", "plan_from", "plan_queue", "beta", "outer", "early"),
    "same_code",
)
GALLERY = 500  # pictures in which is searched
LOOKED = 120  # pictures among which ITM looks, too; every second one is a neighbour of the one before
PROBED = 1000  # close-ups for probes and codewords
KS = (1, 5, 10)


@lru_cache(maxsize=8)
def _data(domain: str, count: int, split: str, size: int, close_ups: bool) -> world.Pairs:
    """Close-ups of single things, or scenes with two, with a full caption each."""
    if not close_ups:
        return world.pairs(_scenes(domain, count, split, 2), ("full",), size)
    data = world.pairs(world.World(domain).single(count, split), ("full",), 32)
    return data._replace(images=world.close_ups(data.scenes, size))


@lru_cache(maxsize=4)
def _truth(domain: str, count: int, size: int, close_ups: bool) -> Tensor:
    data = _data(domain, count, "test", size, close_ups)
    return world.truth(data.scenes, data.captions)


def _labels(scenes: list) -> dict[str, Tensor]:
    """Shape and colour of single things, and both as one number."""
    labels = {factor: world.factor_labels(scenes, factor)[0] for factor in ("shape", "colour")}
    return labels | {"both": labels["colour"] * 1000 + labels["shape"]}


def build(settings: dict, seed: int) -> tuple[CODIS, object]:
    """The model of a run before it learns, and its tokenizer.

    Args:
        settings: as `TINY`; "start" names weights that are taken over, "" none.
        seed: of the weights, views, negatives and queues.

    Returns:
        A `CODIS`, and the tokenizer of the shipped weights.
    """
    trained, tokenizer = load(settings["start"] or "clip-paper")
    epoch = settings["pictures"] // settings["batch_size"]
    model = CODIS.tiny(len(tokenizer), seed=seed, ramp_steps=epoch, **{name: settings[name] for name in OPTIONS})
    return (model.start_from(trained) if settings["start"] else model), tokenizer


def run(settings: dict, seed: int) -> dict:
    """One training run and its scores.

    Args:
        settings: as `TINY`.
        seed: of the weights, the shuffles, views and negatives; all runs see the same pictures and captions.

    Returns:
        See `scores`; curves of every loss and of the temperature (means of twentieths of the run); device.
    """
    model, tokenizer = build(settings, seed)
    data = _data(settings["domain"], settings["pictures"], "train", settings["size"], settings["close_ups"])
    tokens = encode(tokenizer, data.texts, settings["length"])
    batches = pair_batches(data.images, tokens, data.text_to_image, settings["batch_size"], seed)
    steps = settings["steps"]
    history = train(model, batches, steps=steps, learning_rate=settings["learning_rate"], seed=seed, progress=False)
    others = ("step", "distill_weight", "learning_rate", "seconds")
    curves = loss_curves(history, *(name for name in history if name not in others))
    return scores(model, tokenizer, settings, seed) | curves | {"device": history.attrs["device"]}


@torch.no_grad()
def scores(model: CODIS, tokenizer, settings: dict, seed: int = 0) -> dict[str, float]:
    """What `run` says about a trained model.

    Args:
        model: a `CODIS`.
        tokenizer: of the shipped weights.
        settings: domain, close_ups, size, length, objectives.
        seed: of k-means.

    Returns:
        On test scenes. i2t@1 ... t2i@10: any-true recall by cosine in a gallery of 500, in [0, 1]; r1, the mean of both
        at 1; r10, the mean of both at 5 and 10. shape, colour: what a linear probe reads from the image tower,
        close-ups. alignment: of pictures with their texts; alignment_views: of two views of a picture (both in
        [0, 4], small is good); uniformity_images, uniformity_texts (0 is collapse, small is even). With a codebook:
        perplexity, mean of pictures and texts; spread, that as a share of C; above_half, spread - 1/2; agreement, the
        share of pictures nearest to the codeword of their text; purity, nmi: codewords of close-ups against colour and
        shape in one, each close-up at its nearest codeword; nmi_kmeans: k-means of as many clusters on the same
        features; nmi_gain, the difference; nmi_plan, plan_gain: the same two where the 1,000 close-ups are shared out
        by IPOT, as a batch is in training, and each takes the codeword to which most of it goes.
        With ITM: rerank16, r1 where ITM ranks the first 16 again in a gallery of 120 where every picture stands beside
        a one-edit neighbour; itc_hard, r1 there without ITM.
    """
    size, length = settings["size"], settings["length"]
    domain, close_ups = settings["domain"], settings["close_ups"]
    data, truth = _data(domain, GALLERY, "test", size, close_ups), _truth(domain, GALLERY, size, close_ups)
    tokens = encode(tokenizer, data.texts, length)
    images, texts = encode_images(model, data.images), encode_texts(model, tokens)  # (N, D) each: one caption a picture
    found = metrics.any_true_recall(images @ texts.T, truth, ks=KS)
    found |= {"r1": _mean(found, 1), "r10": (_mean(found, 5) + _mean(found, 10)) / 2}

    dice = torch.Generator().manual_seed(0)
    first, second = (encode_images(model, augment(data.images, GENTLE, generator=dice)) for _ in range(2))
    found |= {"alignment": metrics.alignment(images, texts), "alignment_views": metrics.alignment(first, second)}
    found |= {"uniformity_images": metrics.uniformity(images), "uniformity_texts": metrics.uniformity(texts)}

    known, asked = (_data(domain, PROBED, split, size, True) for split in ("val", "test"))
    labels, answers, tower = _labels(known.scenes), _labels(asked.scenes), model.student.image_encoder
    device = model.codebook.device
    fit, test = (
        torch.cat([tower(part.to(device)).pooled.cpu() for part in some.images.split(256)]) for some in (known, asked)
    )
    for factor in ("shape", "colour"):
        found[factor] = metrics.linear_probe(fit, labels[factor], test, answers[factor])
    if "code" in settings["objectives"]:
        found |= _codes(model, images, texts, encode_images(model, asked.images), answers["both"], seed)
    if "itm" in settings["objectives"]:
        scenes = world.beside_neighbours(_scenes(domain, LOOKED // 2, "test", 2))
        hard = world.pairs(scenes, ("full",), size)
        fits, words = world.truth(hard.scenes, hard.captions), encode(tokenizer, hard.texts, length)
        for name, k in (("itc_hard", 0), ("rerank16", 16)):
            ranked = rerank(model, hard.images, words, k)
            by = [metrics.any_true_recall(table, fits, ks=(1,)) for table in (ranked.texts, ranked.images)]
            found[name] = (by[0]["i2t@1"] + by[1]["t2i@1"]) / 2
    return found


def _mean(recall: dict[str, float], k: int) -> float:
    return (recall[f"i2t@{k}"] + recall[f"t2i@{k}"]) / 2


def _codes(model: CODIS, images: Tensor, texts: Tensor, singles: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
    """The scores of the codebook."""
    from sklearn.cluster import KMeans

    count, of_images, of_texts = len(model.codebook), model.codes(images), model.codes(texts)
    perplexity = sum(metrics.code_usage(codes, count)["perplexity"] for codes in (of_images, of_texts)) / 2
    told = metrics.cluster_agreement(model.codes(singles), labels)
    codebook = F.normalize(model.codebook.float(), dim=1).cpu()
    shared_out = assign(1 - singles @ codebook.T).argmax(1)
    planned = metrics.cluster_agreement(shared_out, labels)["nmi"]
    other = torch.from_numpy(KMeans(count, n_init=3, random_state=seed).fit_predict(singles.numpy()))
    nmi = metrics.cluster_agreement(other, labels)["nmi"]
    return {
        **{"perplexity": perplexity, "spread": perplexity / count, "above_half": perplexity / count - 0.5},
        **{"agreement": float((of_images == of_texts).float().mean()), **told},
        **{"nmi_kmeans": nmi, "nmi_gain": told["nmi"] - nmi, "nmi_plan": planned, "plan_gain": planned - nmi},
    }


_A = {"objectives": ["itc", "code"]}
_ITM = {
    **{
        "objectives": ["ica", "code", "itm"],
        "start": "albef-paper",
        "close_ups": False,
        "size": 64,
        "batch_size": 32,
        "steps": 200,
    },
    "layers": 3,
}
STUDY = Study(
    name="09.codis",
    run=run,
    common={"tiny": TINY},
    arms={
        "a: ITC (ALBEF)": {"objectives": ["itc"], "second_view": False},
        "a, two views": {"objectives": ["itc"]},
        "b: ICA": {"objectives": ["ica"]},
        "b, one view": {"objectives": ["ica"], "second_view": False},
        "a + codebook": _A,
        "b + codebook (student)": {"plan_from": "student"},
        "b + codebook (teacher)": {},
        "a + codebook, same pairing": _A | {"pairing": "same"},
        "b + codebook, same pairing": {"pairing": "same"},
        "a + codebook, 8 codewords": _A | {"codewords": 8},
        "a + codebook, 256 codewords": _A | {"codewords": 256},
        "a + codebook, weight x 0.5": _A | {"code_weight": 0.05},
        "a + codebook, weight x 2": _A | {"code_weight": 0.2},
        "a + codebook, as the paper weighs it": _A | {"code_weight": 1.0, "code_temperature": None},
        "a + codebook, softmax": _A | {"assignment": "softmax", "beta": 0.1},
        "a + codebook, k-means": _A | {"assignment": "kmeans"},
        "a + codebook, Sinkhorn as SwAV": _A | {"assignment": "sinkhorn", "beta": 0.05, "outer": 3},
        "a + codebook, plan with the queue": _A | {"plan_queue": True},
        "b + codebook, no momentum": {"momentum": 0.0},
        "b + codebook, two layers": {"early": ["layers.8", "model.embeddings"]},
        "ITM, hard negatives": _ITM,
        "ITM, negatives of the same codeword": _ITM | {"same_code": True},
    },
    seeds=12,  # fixed before the seventh was run
)
PLANS = Study(  # the same runs, asked once more; the scores of plans came later than those of `STUDY`
    name="09.plans",
    run=run,
    common={"tiny": TINY},
    arms={arm: STUDY.arms[arm] for arm in ("a + codebook", "b + codebook (teacher)")},
    seeds=5,
)
_FIRST = {"study": STUDY.name, "score": "r1"}
_BOOK = "COCO, smaller pre-training set: TR R@1 "
CLAIMS = [
    Claim(
        "C1",
        "Alignment within each modality helps: ICA with its second view against ITC as ALBEF has it",
        "COCO TR/IR R@1 69.9/50.5 against 68.6/50.1",
        contrast={"b: ICA": 1, "a: ITC (ALBEF)": -1},
        **_FIRST,
    ),
    Claim(
        "C1b",
        "also where ITC's teacher gets the second view, too",
        "no such row",
        contrast={"b: ICA": 1, "a, two views": -1},
        **_FIRST,
    ),
    Claim(
        "C1c",
        "and it is the second view that makes ICA worth it: gain of ICA with two views against its gain with one",
        "no such row",
        contrast={"b: ICA": 1, "a, two views": -1, "b, one view": -1, "a: ITC (ALBEF)": 1},
        **_FIRST,
    ),
    Claim(
        "C2",
        "A codebook helps on top of ITC",
        "70.7/51.4 against 68.6/50.1",
        contrast={"a + codebook": 1, "a, two views": -1},
        **_FIRST,
    ),
    Claim(
        "C2b",
        "and on top of ICA",
        "71.1/52.1 against 69.9/50.5",
        contrast={"b + codebook (teacher)": 1, "b: ICA": -1},
        **_FIRST,
    ),
    Claim(
        "C2c",
        "because codewords cross modalities: cross pairing against same pairing, on ITC",
        "equation 2; no such row",
        contrast={"a + codebook": 1, "a + codebook, same pairing": -1},
        **_FIRST,
    ),
    Claim(
        "C3",
        "The plan is better made from the teacher's features than from the student's: pictures for a text",
        "IR R@1 52.1 against 51.4",
        contrast={"b + codebook (teacher)": 1, "b + codebook (student)": -1},
        study=STUDY.name,
        score="t2i@1",
    ),
    Claim(
        "C4",
        "Too few codewords take the benefit away: 64 against 8 (on ITC)",
        _BOOK + "59.4 (4,000 codewords) against 55.5 (500)",
        contrast={"a + codebook": 1, "a + codebook, 8 codewords": -1},
        **_FIRST,
    ),
    Claim(
        "C4b",
        "and from there on more hardly matter: 256 against 64 (on ITC)",
        _BOOK + "59.0 (3,000) against 59.4 (4,000)",
        contrast={"a + codebook, 256 codewords": 1, "a + codebook": -1},
        direction="=",
        **_FIRST,
    ),
    Claim(
        "C5",
        "The weight of the codebook loss hardly matters: half of it (on ITC)",
        _BOOK + "58.7 against 59.4",
        contrast={"a + codebook, weight x 0.5": 1, "a + codebook": -1},
        direction="=",
        **_FIRST,
    ),
    Claim(
        "C5b",
        "nor twice of it",
        _BOOK + "59.0 against 59.4",
        contrast={"a + codebook, weight x 2": 1, "a + codebook": -1},
        direction="=",
        **_FIRST,
    ),
    Claim(
        "C5c",
        "and it can be 1, with the learnt temperature for codewords, against 0.1 and a temperature of their own",
        "weight 1, one temperature",
        contrast={"a + codebook, as the paper weighs it": 1, "a + codebook": -1},
        direction="=",
        **_FIRST,
    ),
    Claim(
        "C7",
        "The codebook stays in use: the perplexity of its use is more than half of C",
        "uniform marginals; no number",
        contrast={"b + codebook (teacher)": 1},
        study=STUDY.name,
        score="above_half",
    ),
    Claim(
        "C7b",
        "thanks to transport: share of C in use, IPOT against k-means assignment (on ITC)",
        "no number",
        contrast={"a + codebook": 1, "a + codebook, k-means": -1},
        study=STUDY.name,
        score="spread",
    ),
    Claim(
        "C7c",
        "and codewords tell colours and shapes apart better than k-means on the same features does (NMI)",
        "example pictures",
        contrast={"b + codebook (teacher)": 1},
        study=STUDY.name,
        score="nmi_gain",
    ),
    Claim(
        "C7d",
        "or where transport shares 1,000 close-ups out among them, as it does with a batch in training (NMI)",
        "example pictures",
        contrast={"b + codebook (teacher)": 1},
        study=PLANS.name,
        score="plan_gain",
    ),
    Claim(
        "C8",
        "Why transport: IPOT against softmax assignment (on ITC)",
        "no such row",
        contrast={"a + codebook": 1, "a + codebook, softmax": -1},
        **_FIRST,
    ),
    Claim(
        "C8b",
        "against k-means assignment",
        "no such row",
        contrast={"a + codebook": 1, "a + codebook, k-means": -1},
        **_FIRST,
    ),
    Claim(
        "C8c",
        "and Sinkhorn as SwAV takes it does as well as IPOT",
        "no such row",
        contrast={"a + codebook": 1, "a + codebook, Sinkhorn as SwAV": -1},
        direction="=",
        **_FIRST,
    ),
    Claim(
        "C9",
        "A slow teacher steadies a target that moves: momentum 0.99 against 0",
        "named as a weakness",
        contrast={"b + codebook (teacher)": 1, "b + codebook, no momentum": -1},
        **_FIRST,
    ),
    Claim(
        "C10",
        "Future work: alignment at a second, earlier layer helps",
        "not tried there",
        contrast={"b + codebook, two layers": 1, "b + codebook (teacher)": -1},
        **_FIRST,
    ),
    Claim(
        "C11",
        "Future work: negatives of the same codeword help ITM (16 re-ranked)",
        "not tried there",
        contrast={"ITM, negatives of the same codeword": 1, "ITM, hard negatives": -1},
        study=STUDY.name,
        score="rerank16",
    ),
    Claim(
        "C12",
        "What the tables leave open: ICA leaves recall at 5 and 10 as it is",
        "COCO TR 89.5/94.4 against 89.5/94.7: no gain, though the text says significant",
        contrast={"b: ICA": 1, "a: ITC (ALBEF)": -1},
        direction="=",
        study=STUDY.name,
        score="r10",
    ),
    Claim(
        "C12b",
        "teacher and student plan tie for texts of a picture",
        "COCO TR R@1 71.10 against 71.12",
        contrast={"b + codebook (teacher)": 1, "b + codebook (student)": -1},
        direction="=",
        study=STUDY.name,
        score="i2t@1",
    ),
    Claim(
        "C12c",
        "and with few codewords nothing is gained over ALBEF: 8 codewords against ITC (two views)",
        _BOOK + "55.5 (500) against 55.7",
        contrast={"a + codebook, 8 codewords": 1, "a, two views": -1},
        direction="=",
        **_FIRST,
    ),
    Claim(
        "C12d",
        "The best row of the ablation is the method of the main table",
        "71.1/52.1 there, 71.5/53.9 here; row a's COCO cells are ALBEF's published ones, not a run",
        why="a matter of the paper's own tables; notebook 09",
    ),
]
