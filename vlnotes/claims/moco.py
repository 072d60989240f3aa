"""MoCo's claims M1 to M8 (He et al. 2020; v2: Chen et al. 2020) on close-ups of single things.

A neon close-up shows one of 14 shapes in one of 9 colours. The probe asks for the shape: it cannot be read off the
colours, as the class of a photograph cannot.
"""

from functools import lru_cache

import torch

from vlnotes import metrics, world
from vlnotes.augment import V1, V2
from vlnotes.claims.engine import Claim, Study, loss_curves
from vlnotes.encoders import ConvTower
from vlnotes.moco import MoCo, probe_features
from vlnotes.train import epoch_indices, pick_device, train

TINY = {
    **{"domain": "neon", "pictures": 8000, "size": 32, "width": 128, "norm": "group", "steps": 600, "batch_size": 128},
    **{"learning_rate": 2e-3, "queue_size": 1024, "momentum": 0.99, "temperature": 0.2, "head": "mlp"},
    **{"augmentation": "v2", "mechanism": "momentum", "bn_groups": 1, "shuffle": True},
}
SMALL = TINY | {"pictures": 20_000, "size": 48, "width": 256, "steps": 10_000}
BATCH = 128  # steps are counted in batches of this size: another size makes as many pictures in more or fewer steps
FEW = {"pictures": 1000, "queue_size": 128, "learning_rate": 5e-4}  # a bank row is renewed every 8 steps or so, not 62


@lru_cache(maxsize=4)
def _pictures(domain: str, count: int, split: str, size: int):
    scenes = world.World(domain, seed=0).single(count, split)
    labels = {factor: world.factor_labels(scenes, factor)[0] for factor in ("shape", "colour")}
    return world.close_ups(scenes, size), labels


def build(settings: dict, seed: int) -> MoCo:
    """The MoCo of a run, untrained.

    Args:
        settings: as `TINY`.
        seed: of the weights, the views and the queue.

    Returns:
        A `MoCo` on a `ConvTower`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MoCo(
            ConvTower(settings["width"], settings["norm"]),
            queue_size=settings["queue_size"],
            momentum=settings["momentum"],
            temperature=settings["temperature"],
            head=settings["head"],
            augmentation={"v1": V1, "v2": V2}[settings["augmentation"]],
            mechanism=settings["mechanism"],
            samples=settings["pictures"] if settings["mechanism"] == "bank" else None,
            bn_groups=settings["bn_groups"],
            shuffle=settings["shuffle"],
            seed=seed,
        )


def probes(model: MoCo, settings: dict) -> dict[str, float]:
    """What can be read from the frozen student: shape and colour, linearly and by neighbours.

    Args:
        model: trained or not.
        settings: domain and size.

    Returns:
        Shares of right answers in [0, 1] on 2,000 test pictures, of classifiers that saw 2,000 others: shape,
        colour (linear), shape_knn, colour_knn (20 neighbours).
    """
    fit, fit_labels = _pictures(settings["domain"], 2000, "val", settings["size"])
    test, test_labels = _pictures(settings["domain"], 2000, "test", settings["size"])
    features, test_features = probe_features(model, fit), probe_features(model, test)
    found = {}
    for factor in ("shape", "colour"):
        labelled = features, fit_labels[factor], test_features, test_labels[factor]
        found[factor] = metrics.linear_probe(*labelled)
        found[f"{factor}_knn"] = metrics.knn(*labelled, k=20)
    return found


def run(settings: dict, seed: int) -> dict:
    """One training run and its scores.

    Args:
        settings: as `TINY`; steps are those of a batch of 128, other sizes see as many pictures.
        seed: of the weights, the shuffles and the views; all runs see the same pictures. 0 steps give the untrained
            encoder.

    Returns:
        The `probes`; accuracy and loss of the pretext task (mean of the last 50 steps; nats); loss_curve and
        accuracy_curve (means of twentieths of the run); device.
    """
    model = build(settings, seed)
    if settings["steps"] == 0:
        return probes(model, settings) | {"device": "cpu"}
    pictures, _ = _pictures(settings["domain"], settings["pictures"], "train", settings["size"])
    device = pick_device()
    pictures = pictures.to(device)

    def batches(step: int) -> dict[str, torch.Tensor]:
        ids = epoch_indices(step, len(pictures), settings["batch_size"], seed)
        return {"image": pictures[ids.to(device)], "ids": ids}

    rate, steps = settings["learning_rate"], settings["steps"] * BATCH // settings["batch_size"]
    history = train(model, batches, steps=steps, learning_rate=rate, seed=seed, device=device, progress=False)
    last = {name: float(history[name].iloc[-50:].mean()) for name in ("loss", "accuracy")}
    curves = loss_curves(history, *last)
    return probes(model, settings) | last | curves | {"device": device.type}


STUDY = Study(
    name="03.moco",
    run=run,
    common={"tiny": TINY, "small": SMALL},
    arms={
        "MoCo": {},
        "untrained": {"steps": 0},
        "K = 16": {"queue_size": 16},
        "K = 128": {"queue_size": 128},
        "K = 4096": {"queue_size": 4096},
        "m = 0": {"momentum": 0.0},
        "m = 0.9": {"momentum": 0.9},
        "m = 0.999": {"momentum": 0.999},
        "m = 0.9999": {"momentum": 0.9999},
        "bank, K = 128": {"mechanism": "bank", "queue_size": 128},
        "bank, K = 1024": {"mechanism": "bank"},
        "bank, K = 4096": {"mechanism": "bank", "queue_size": 4096},
        "bank, slow learning": {"mechanism": "bank", "learning_rate": 5e-4},
        "bank, 1,000 pictures": {"mechanism": "bank", **FEW},
        "MoCo, 1,000 pictures": FEW,
        "end-to-end, batch 64": {"mechanism": "end-to-end", "batch_size": 64},
        "end-to-end, batch 128": {"mechanism": "end-to-end"},
        "end-to-end, batch 512": {"mechanism": "end-to-end", "batch_size": 512},
        "v1: linear head, v1 views": {"head": "linear", "augmentation": "v1"},
        "MLP head, v1 views": {"augmentation": "v1"},
        "linear head, v2 views": {"head": "linear"},
        "16 groups, shuffled": {"norm": "batch", "bn_groups": 16},
        "16 groups, not shuffled": {"norm": "batch", "bn_groups": 16, "shuffle": False},
        "linear, T = 0.07": {"head": "linear", "temperature": 0.07},
        "linear, T = 0.5": {"head": "linear", "temperature": 0.5},
        "MLP, T = 0.07": {"temperature": 0.07},
        "MLP, T = 0.5": {"temperature": 0.5},
    },
)
_SHAPE = {"study": STUDY.name, "score": "shape"}
CLAIMS = [
    Claim(
        "M1",
        "A longer queue helps: K = 4,096 against 16 (the paper starts at 256)",
        "54.9 at K = 256, 60.6 at 65,536",
        why="thanks to the step from 16 to 128",
        contrast={"K = 4096": 1, "K = 16": -1},
        **_SHAPE,
    ),
    Claim(
        "M1b",
        "with diminishing returns: the gain from 16 to 128 against that from 128 to 4,096",
        "a curve that flattens",
        why="the second gain is a loss, M1c",
        contrast={"K = 128": 2, "K = 16": -1, "K = 4096": -1},
        **_SHAPE,
    ),
    Claim(
        "M1c",
        "and still from 128 to 4,096",
        "non-decreasing",
        contrast={"K = 4096": 1, "K = 128": -1},
        **_SHAPE,
    ),
    Claim(
        "M2",
        "A teacher that is the student fails: m = 0.99 against 0",
        "m = 0 does not converge",
        contrast={"MoCo": 1, "m = 0": -1},
        **_SHAPE,
    ),
    Claim(
        "M2b",
        "A slow teacher beats a quick one: m = 0.99 against 0.9",
        "57.8 against 55.2",
        why="m = 0.9 collapses here",
        contrast={"MoCo": 1, "m = 0.9": -1},
        **_SHAPE,
    ),
    Claim(
        "M2c",
        "Too slow is slightly worse: m = 0.999 against 0.9999",
        "59.0 against 58.9",
        contrast={"m = 0.999": 1, "m = 0.9999": -1},
        **_SHAPE,
    ),
    Claim(
        "M3",
        "MoCo beats the memory bank at equal K (1,024)",
        "+2.6 at K = 65,536",
        why="the bank collapses here",
        contrast={"MoCo": 1, "bank, K = 1024": -1},
        **_SHAPE,
    ),
    Claim(
        "M3b",
        "also where a bank row is renewed about every 8 steps (1,000 pictures, K = 128)",
        "no such run",
        contrast={"MoCo, 1,000 pictures": 1, "bank, 1,000 pictures": -1},
        **_SHAPE,
    ),
    Claim(
        "M4",
        "MoCo is as good as end-to-end at equal K (128 keys, batch 128)",
        "about equal up to K = 1,024",
        contrast={"K = 128": 1, "end-to-end, batch 128": -1},
        direction="=",
        **_SHAPE,
    ),
    Claim(
        "M5",
        "v2's head and views together beat v1's (all at temperature 0.2)",
        "67.3 against 60.6 (v1 at 0.07)",
        contrast={"MoCo": 1, "v1: linear head, v1 views": -1},
        **_SHAPE,
    ),
    Claim(
        "M5b",
        "The MLP head alone helps (v1 views)",
        "66.2 against 59.0 at 0.2",
        contrast={"MLP head, v1 views": 1, "v1: linear head, v1 views": -1},
        **_SHAPE,
    ),
    Claim(
        "M5c",
        "The v2 views alone help (linear head)",
        "63.4 against 60.6 (at 0.07)",
        contrast={"linear head, v2 views": 1, "v1: linear head, v1 views": -1},
        **_SHAPE,
    ),
    Claim(
        "M6",
        "Without shuffling, batch norm in groups leaks: the pretext accuracy rises",
        "rises above 99.9 %",
        study=STUDY.name,
        score="accuracy",
        contrast={"16 groups, not shuffled": 1, "16 groups, shuffled": -1},
    ),
    Claim(
        "M6b",
        "and the probe drops",
        "a clear drop",
        contrast={"16 groups, shuffled": 1, "16 groups, not shuffled": -1},
        **_SHAPE,
    ),
    Claim(
        "M7",
        "With an MLP head the best temperature is higher: gain from 0.07 to 0.2, MLP against linear head (v2 views)",
        "MLP 62.9 to 66.2; linear 60.6 to 59.0 (v1 views)",
        contrast={"MoCo": 1, "MLP, T = 0.07": -1, "linear head, v2 views": -1, "linear, T = 0.07": 1},
        **_SHAPE,
    ),
    Claim(
        "M8",
        "Gains of the linear probe do not track gains in detection",
        "MLP head: probe 66.2, AP50 82.0; v2 views: 63.4, 82.2",
        why="no detector is trained in this course",
    ),
]
