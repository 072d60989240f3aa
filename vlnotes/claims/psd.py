"""PSD's claims P1 to P7 (Andonian et al. 2022): loose captions, and what soft rows make of them.

Close-ups of single things with one full caption each, of which some speak of another thing. Fifteen hundred pairs are
seen thirteen times, for only who can learn a wrong caption by heart has something to lose.
"""

import math
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from vlnotes import metrics, world
from vlnotes.augment import blur
from vlnotes.claims.clip import Arm
from vlnotes.claims.codis import _data, _truth
from vlnotes.claims.engine import Claim, Study, loss_curves
from vlnotes.clip import CLIP, encode_images, encode_texts
from vlnotes.psd import PSD, label_smoothing_loss, self_entropy_loss
from vlnotes.text import encode
from vlnotes.train import pair_batches, train
from vlnotes.weights import load

TINY = {
    **{"domain": "paper", "pictures": 1500, "size": 32, "length": 24, "batch_size": 64, "steps": 300},
    **{"learning_rate": 3e-3, "mismatch": 0.4, "method": "psd", "maximum": 0.8, "ramp": 1.0, "teacher_ratio": 0.5},
    **{"swap": "transposed", "momentum": None, "smoothing": 0.2},
}
GALLERY = 500  # pictures in which is searched
PROBED = 1000  # close-ups for probes
NAMED = 2000  # close-ups for zero-shot, as they are and under every shift
ASKED = 1500  # pairs of training that are told apart, clean or wrong
KS = (1, 5, 10)
SHIFTS = ("unseen pairs", "noise", "blur", "knit", "garden")  # see `shifted`


@lru_cache(maxsize=8)
def _noisy(domain: str, count: int, size: int, mismatch: float) -> world.Pairs:
    data = _data(domain, count, "train", size, True)
    return world.with_noise(data, mismatch=mismatch) if mismatch else data


@lru_cache(maxsize=8)
def shifted(domain: str, shift: str, size: int, count: int) -> tuple[Tensor, list[world.Scene]]:
    """Close-ups of test that differ from those of training in one way.

    Args:
        domain: that was learnt.
        shift: "": none. "unseen pairs": colours on shapes that never met in training. "noise": grey noise with a
            deviation of 0.1. "blur": Gaussian, 2 pixels. The name of a domain: its things, of those that have the
            shapes and colours of the domain that was learnt.
        size: pixels a side.
        count: how many.

    Returns:
        (count, 3, size, size) uint8, or float in [0, 1]; and the scenes.

    Raises:
        ValueError: a shift that is not known.
    """
    if shift in ("", "noise", "blur"):
        scenes = world.World(domain).single(count, "test")
        pictures = world.close_ups(scenes, size)
        if shift == "noise":
            grains = torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(0))
            pictures = (pictures / 255 + 0.1 * grains).clamp(0, 1)
        elif shift == "blur":
            pictures = blur(pictures / 255, torch.full((count,), 2.0))
        return pictures, scenes
    if shift == "unseen pairs":
        scenes = world.World(domain).single(count, "test", held_out=True)
    elif shift in SHIFTS:
        names, scenes, start = world.prompts(domain), [], 0
        while len(scenes) < count:
            scenes += [s for s in world.World(shift).single(count, "test", start) if _named(s, "colour-shape") in names]
            start += count
        scenes = scenes[:count]
    else:
        raise ValueError(f"shift is {shift!r}; expected one of {', '.join(SHIFTS)}")
    return world.close_ups(scenes, size), scenes


def build(settings: dict, seed: int) -> tuple[nn.Module, CLIP, object]:
    """What is trained, and the model in it.

    Args:
        settings: as `TINY`; "method" is "clip", "psd", "smooth" (label smoothing) or "entropy" (the summary's version);
            "ramp" is the share of the run after which the largest share of soft rows is reached, 0: from the start.
        seed: of the weights and the partitions.

    Returns:
        The module that gives the loss, its model, and the tokenizer of the shipped weights.

    Raises:
        ValueError: another method.
    """
    tokenizer = load("clip-paper")[1]
    if settings["method"] == "psd":
        options = {name: settings[name] for name in ("maximum", "teacher_ratio", "swap", "momentum")}
        ramp_steps = round(settings["ramp"] * settings["steps"])
        model = PSD.tiny(len(tokenizer), seed=seed, ramp_steps=ramp_steps, **options)
        return model, model, tokenizer
    losses = {
        "clip": None,
        "smooth": partial(label_smoothing_loss, smoothing=settings["smoothing"]),
        "entropy": self_entropy_loss,
    }
    if settings["method"] not in losses:
        raise ValueError(f"method is {settings['method']!r}; expected psd, {', '.join(losses)}")
    model = CLIP.tiny(len(tokenizer), seed=seed)
    arm = Arm(model)
    arm.loss = losses[settings["method"]] or arm.loss
    return arm, model, tokenizer


def run(settings: dict, seed: int) -> dict:
    """One training run and its scores.

    Args:
        settings: as `TINY`.
        seed: of the weights, the shuffles and partitions; all runs see the same pictures and captions.

    Returns:
        See `scores`; loss_curve (means of twentieths of the run, nats); device.
    """
    arm, model, tokenizer = build(settings, seed)
    data = _noisy(settings["domain"], settings["pictures"], settings["size"], settings["mismatch"])
    tokens = encode(tokenizer, data.texts, settings["length"])
    batches = pair_batches(data.images, tokens, data.text_to_image, settings["batch_size"], seed)
    steps = settings["steps"]
    history = train(arm, batches, steps=steps, learning_rate=settings["learning_rate"], seed=seed, progress=False)
    told = loss_curves(history, "loss") | {"device": history.attrs["device"]}
    return scores(model, tokenizer, settings) | told


@torch.no_grad()
def scores(model: CLIP, tokenizer, settings: dict) -> dict[str, float]:
    """What `run` says about a trained model.

    Args:
        model: a `CLIP` or a `PSD`.
        tokenizer: of the shipped weights.
        settings: domain, pictures, size, length, mismatch.

    Returns:
        On clean test scenes. i2t@1 ... t2i@10: any-true recall by cosine in a gallery of 500, in [0, 1]; r1 and r10,
        the mean of both directions. zero, zero_shape, zero_colour: zero-shot accuracy among all prompts of colour and
        shape, of shapes, of colours; "zero, SHIFT": the first under each of `SHIFTS`. shape, colour: what a linear
        probe reads from the image tower. auroc: does the own cosine tell clean from wrong pairs among the first 1,500
        of training; where captions are noisy.
    """
    domain, size, length = settings["domain"], settings["size"], settings["length"]
    data, truth = _data(domain, GALLERY, "test", size, True), _truth(domain, GALLERY, size, True)
    images, texts = encode_images(model, data.images), encode_texts(model, encode(tokenizer, data.texts, length))
    found = metrics.any_true_recall(images @ texts.T, truth, ks=KS)
    found |= {f"r{k}": (found[f"i2t@{k}"] + found[f"t2i@{k}"]) / 2 for k in (1, 10)}

    said = {of: world.prompts(domain, of) for of in ("colour-shape", "shape", "colour")}
    words = {of: encode_texts(model, encode(tokenizer, list(said[of].values()), length)) for of in said}
    for shift in ("", *SHIFTS):
        pictures, scenes = shifted(domain, shift, size, NAMED)
        features = encode_images(model, pictures)
        for of, name in {"colour-shape": "zero", "shape": "zero_shape", "colour": "zero_colour"}.items():
            right = torch.tensor([list(said[of]).index(_named(scene, of)) for scene in scenes])
            if not shift or name == "zero":
                found[f"{name}, {shift}" if shift else name] = metrics.zero_shot(features, words[of], right)["top1"]

    known, asked = (_data(domain, PROBED, split, size, True) for split in ("val", "test"))
    fit, test = (pooled(model, some.images) for some in (known, asked))
    for factor in ("shape", "colour"):
        labels, answers = (world.factor_labels(some.scenes, factor)[0] for some in (known, asked))
        found[factor] = metrics.linear_probe(fit, labels, test, answers)
    return found | _told_apart(model, tokenizer, settings)


def _named(scene: world.Scene, of: str) -> str:
    thing = scene.objects[0]
    return " ".join(getattr(thing, part) for part in of.split("-"))


def pooled(model: CLIP, images: Tensor) -> Tensor:
    """What the image tower pools, for probes.

    Args:
        model: anything with an `image_encoder`; used as it is, in training or in eval mode.
        images: (N, 3, H, W).

    Returns:
        (N, W) on the CPU.
    """
    device = next(model.parameters()).device
    return torch.cat([model.image_encoder(part.to(device)).pooled.cpu() for part in images.split(256)])


def _told_apart(model: CLIP, tokenizer, settings: dict) -> dict[str, float]:
    """How well the own cosine of a pair tells whether its caption is wrong."""
    if not settings["mismatch"]:
        return {}
    from sklearn.metrics import roc_auc_score

    data = _noisy(settings["domain"], settings["pictures"], settings["size"], settings["mismatch"])
    count = min(ASKED, len(data.images))
    tokens = encode(tokenizer, data.texts[:count], settings["length"])
    own = (encode_images(model, data.images[:count]) * encode_texts(model, tokens)).sum(1)
    clean = [caption.noise is None for caption in data.captions[:count]]
    return {"auroc": float(roc_auc_score(clean, own))}


_CLIP = {"method": "clip"}
STUDY = Study(
    name="10.psd",
    run=run,
    common={"tiny": TINY},
    arms={
        "CLIP": _CLIP,
        "CLIP, half the steps": _CLIP | {"steps": 150},
        "CLIP, labels smoothed": {"method": "smooth"},
        "PSD": {},
        "PSD, rows of the same number": {"swap": "rows"},
        "PSD, no swap": {"swap": None},
        "PSD, no swap, one temperature": {"swap": None, "teacher_ratio": 1.0},
        "PSD, half from the start": {"ramp": 0.0, "maximum": 0.4},
        "PSD, slow teacher": {"momentum": 0.99},
        "the summary's version": {"method": "entropy"},
        **{
            f"{name}, {share:.0%} wrong": changes | {"mismatch": share}
            for share in (0.0, 0.2, 0.6)
            for name, changes in (("CLIP", _CLIP), ("PSD", {}))
        },
        **{
            f"{name}, {count:,} pictures": changes | {"pictures": count}
            for count in (400, 3200, 12800)
            for name, changes in (("CLIP", _CLIP), ("PSD", {}))
        },
        **{
            f"CLIP, {count:,} pictures, {steps} steps": _CLIP | {"pictures": count, "steps": steps}
            for count, steps in ((1500, 40), (1500, 80), (3200, 150), (12800, 600))
        },
    },
)
TEST_BED = tuple(arm for arm, changes in STUDY.arms.items() if changes.get("method") == "clip")  # good and bad ones
_BOTH = {"study": STUDY.name, "contrast": {"PSD": 1, "CLIP": -1}}
_SIZES = {400: ", 400 pictures", TINY["pictures"]: "", 3200: ", 3,200 pictures", 12800: ", 12,800 pictures"}


def _slope() -> dict[str, float]:
    """The weights whose sum is the slope of a least-squares line through the gains, over the logarithm of the size."""
    at = [math.log2(size) for size in _SIZES]
    middle = sum(at) / len(at)
    weight = [(place - middle) / sum((other - middle) ** 2 for other in at) for place in at]
    both = zip(_SIZES.values(), weight, strict=True)
    return {f"{name}{words}": sign * w for words, w in both for name, sign in (("PSD", 1), ("CLIP", -1))}


def robustness(arms: dict[str, dict], shift: str, models: tuple[str, ...] = ("PSD", "CLIP")) -> metrics.Robustness:
    """Zero-shot accuracy under a shift, beyond what ordinary CLIPs of the same accuracy have.

    Args:
        arms: arm -> its scores, of one seed, `TEST_BED` and the models among them.
        shift: one of `SHIFTS`.
        models: the arms in question.

    Returns:
        See `vlnotes.metrics.effective_robustness`.
    """
    beds = ([[arms[arm]["zero"], arms[arm][f"zero, {shift}"]] for arm in some] for some in (TEST_BED, models))
    testbed, models = (torch.tensor(bed, dtype=torch.float64) for bed in beds)
    return metrics.effective_robustness(testbed, models, items=NAMED)


def _gain(arms: dict[str, dict], model: str) -> float:
    return sum(float(robustness(arms, shift, (model,)).gain) for shift in SHIFTS) / len(SHIFTS)


_BED = {"study": STUDY.name, "contrast": dict.fromkeys((*TEST_BED, "PSD"), 1), "score": "zero, " + SHIFTS[-1]}
CLAIMS = [
    Claim(
        "P1",
        "PSD beats CLIP in zero-shot accuracy at the same steps (colour and shape)",
        "no digits known",
        score="zero",
        **_BOTH,
    ),
    Claim("P2", "and in the linear probe (shape)", "no digits known", score="shape", **_BOTH),
    Claim("P3", "and in retrieval", "no digits known", score="r1", **_BOTH),
    Claim(
        "P3b",
        "also where CLIP stops early, after half the steps",
        "not in the abstract",
        study=STUDY.name,
        contrast={"PSD": 1, "CLIP, half the steps": -1},
        score="r1",
    ),
    Claim(
        "P4",
        "The gain grows with the data: slope of the gain in R@1 over four sizes, 400 to 12,800, a factor of 2",
        "over two orders of magnitude; no digits known",
        study=STUDY.name,
        contrast=_slope(),
        score="r1",
        margin=0.2,
    ),
    Claim(
        "P5",
        "The gain grows with the noise: gain in R@1 with 60 % wrong against 0 %",
        "the motivation; no digits known",
        study=STUDY.name,
        contrast={"PSD, 60% wrong": 1, "CLIP, 60% wrong": -1, "PSD, 0% wrong": -1, "CLIP, 0% wrong": 1},
        score="r1",
    ),
    Claim(
        "P5b",
        "and PSD tells clean from wrong pairs better than CLIP does (AUROC of the own cosine)",
        "not in the abstract",
        score="auroc",
        **_BOTH,
    ),
    Claim(
        "P6",
        "A growing share beats a constant one",
        "progressive",
        study=STUDY.name,
        contrast={"PSD": 1, "PSD, half from the start": -1},
        score="r1",
    ),
    Claim(
        "P6b",
        "and the swap (transposed) beats none",
        "swapped prediction",
        study=STUDY.name,
        contrast={"PSD": 1, "PSD, no swap": -1},
        score="r1",
    ),
    Claim(
        "P6c",
        "Transposed beats rows of the same number",
        "which one is the paper's is not known",
        study=STUDY.name,
        contrast={"PSD": 1, "PSD, rows of the same number": -1},
        score="r1",
    ),
    Claim(
        "P7",
        "Effective robustness, mean of five shifts: PSD has more of it than CLIP",
        "more robust on ImageNet's shifts; no digits known",
        effect=lambda arms: _gain(arms, "PSD") - _gain(arms, "CLIP"),
        **_BED,
    ),
    Claim(
        "P7b",
        "and more than none: beyond ordinary CLIPs of the same accuracy",
        "above zero; no digits known",
        effect=lambda arms: _gain(arms, "PSD"),
        **_BED,
    ),
]
