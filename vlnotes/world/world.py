"""One world: a domain and a seed. Everything else follows from the index of a scene."""

from dataclasses import replace
from itertools import count

import torch

from vlnotes.world.captions import Caption, captions
from vlnotes.world.domains import domain_named
from vlnotes.world.drawing import draw
from vlnotes.world.edits import edits
from vlnotes.world.predicates import holds
from vlnotes.world.scenes import SPLITS, Scene, sample, scene_seed


class World:
    """An endless supply of scenes of one domain, the same ones for the same seed.

    Args:
        domain: a name in `DOMAINS`: "paper", "neon", "chalk", "knit", "garden", "harbour", "pixel",
            "glyphs" or "digits".
        seed: any int >= 0.

    Raises:
        ValueError: an unknown domain or a negative seed.
    """

    def __init__(self, domain: str = "paper", seed: int = 0):
        if seed < 0:
            raise ValueError(f"seed must be an int >= 0, got {seed}")
        self.domain, self.seed = domain_named(domain).name, seed

    def __repr__(self) -> str:
        return f"World(domain={self.domain!r}, seed={self.seed})"

    def scenes(
        self, n: int, split: str = "train", start: int = 0, *, held_out: bool = False, neighbours: bool = True
    ) -> list[Scene]:
        """Scenes `start` to `start + n - 1` of a split; scene i is the same whatever n and start.

        In val and test every fourth scene is a one-edit neighbour of the one before it, so that every gallery
        is hard.

        Args:
            n: how many, at least 1.
            split: "train", "val" or "test".
            start: index of the first.
            held_out: every scene shows one of the colour-shape pairs that training never shows (val and test
                only).
            neighbours: False draws every scene of val and test afresh.

        Returns:
            List of n `Scene`s.

        Raises:
            ValueError: n below 1, start below 0, an unknown split, or held-out pairs asked of train.
        """
        self._check(n, split, start, held_out)
        return [self._scene(split, i, held_out, neighbours) for i in range(start, start + n)]

    def single(self, n: int, split: str = "test", start: int = 0, *, held_out: bool = False) -> list[Scene]:
        """Scenes with one object each, for zero-shot prompts and probes.

        Args:
            n: how many, at least 1.
            split: "train", "val" or "test".
            start: index of the first.
            held_out: only held-out colour-shape pairs (val and test only).

        Returns:
            List of n `Scene`s.

        Raises:
            ValueError: as for `scenes`.
        """
        self._check(n, split, start, held_out)
        return [sample(self.domain, self.seed, split, i, held_out, single=True) for i in range(start, start + n)]

    def _scene(self, split: str, index: int, held_out: bool, neighbours: bool) -> Scene:
        if neighbours and split != "train" and index % 4 == 3:
            base = self._scene(split, index - 1, held_out, False)
            options = list(edits(base).values())
            if held_out:
                options = [s for s in options if s.objects[0] == base.objects[0]]
            if options:
                own = scene_seed(domain_named(self.domain), self.seed, split, index, 1)
                return replace(options[own % len(options)], seed=own)
        return sample(self.domain, self.seed, split, index, held_out)

    def _check(self, n: int, split: str, start: int, held_out: bool) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
        if n < 1 or start < 0:
            raise ValueError(f"expected n >= 1 scenes from start >= 0, got n={n}, start={start}")
        if held_out and split == "train":
            raise ValueError("held-out pairs are never in train; ask for them in val or test")

    def draw(self, scenes: list[Scene], size: int = 64, device: str | torch.device = "cpu") -> torch.Tensor:
        """`vlnotes.world.draw`."""
        return draw(scenes, size, device)

    def captions(self, scene: Scene) -> tuple[Caption, ...]:
        """`vlnotes.world.captions`."""
        return captions(scene)

    def holds(self, scene: Scene, predicate: dict) -> bool | None:
        """`vlnotes.world.holds`."""
        return holds(scene, predicate)


def heroes() -> list[Scene]:
    """The six scenes that run through the whole course, one on each ground of the paper domain.

    A fixed rule, seed 0: for each place, in the order of the domain's table, the first training scene that shows three
    things and no cloud.

    Returns:
        List of 6 `Scene`s.
    """
    paper, found = World("paper"), {}
    places = tuple(domain_named("paper").places)
    for index in count():
        scene = paper.scenes(1, start=index)[0]
        if len(scene.objects) == 3 and scene.cloud is None:
            found.setdefault(scene.place, scene)
        if len(found) == len(places):
            return [found[place] for place in places]
