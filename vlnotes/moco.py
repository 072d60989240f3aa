"""MoCo: a picture should recognise itself among many others (He et al. 2020; v2: Chen et al. 2020).

Two looks at one picture, a query and its key. The query has to find its key in a dictionary of other pictures'
keys. What differs between the three mechanisms here is where that dictionary comes from: from a queue that a slow
teacher fills, from a bank with one row a picture, or from the batch itself.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlnotes._saving import load_model, save_model
from vlnotes.augment import V1, V2, Augmentation, augment
from vlnotes.contrastive import info_nce
from vlnotes.encoders import ConvTower, ResNetTower, ViTTower
from vlnotes.metrics import knn, linear_probe
from vlnotes.momentum import FeatureQueue, momentum_copy, momentum_update
from vlnotes.validate import check_fraction, check_temperature

MECHANISMS = ("momentum", "bank", "end-to-end")
ACCURACY_ENTRIES = 2**21  # logits looked at for the accuracy; with a long queue, those of the first rows only


class ProjectedEncoder(nn.Module):
    """An encoder with a head on top: the head's D features are contrasted, the encoder's are what is kept.

    Args:
        encoder: `encoder(image).pooled` is (B, W); has `.width`.
        dim: D.
        head: "linear" (v1) or "mlp" (v2: one hidden layer of width W).

    Raises:
        ValueError: an unknown head.

    Equation: MoCo (He et al. 2020), section 3.3; v2: Chen et al. 2020, section 3.
    """

    def __init__(self, encoder: nn.Module, dim: int, head: str = "mlp"):
        super().__init__()
        if head not in ("linear", "mlp"):
            raise ValueError(f"head must be 'linear' or 'mlp', not {head!r}")
        self.encoder = encoder
        hidden = [nn.Linear(encoder.width, encoder.width), nn.ReLU()] if head == "mlp" else []
        self.head = nn.Sequential(*hidden, nn.Linear(encoder.width, dim))

    def forward(self, image: Tensor) -> Tensor:
        """Encode pictures.

        Args:
            image: (B, 3, H, W) uint8, or float in [0, 1].

        Returns:
            (B, D) float32, L2-normalised.
        """
        return F.normalize(self.head(self.encoder(image).pooled).float(), dim=1)


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that counts each of G parts of the batch alone, as G devices would; made by `group_batch_norm`.

    In evaluation mode, and with one group, it is plain batch norm. The running statistics see the parts one
    after the other. Parts of a batch that G does not divide differ by one picture.

    Equation: MoCo (He et al. 2020), section 3.3, Shuffling BN.
    """

    groups = 1

    def forward(self, x: Tensor) -> Tensor:
        """Normalise.

        Args:
            x: (B, W, h, w), B at least 2 G in training mode.

        Returns:
            (B, W, h, w).

        Raises:
            ValueError: a group would hold less than two pictures.
        """
        if not self.training or self.groups == 1:
            return super().forward(x)
        if len(x) < 2 * self.groups:
            raise ValueError(f"a batch of {len(x)} gives {self.groups} groups less than two pictures each; take more")
        return torch.cat([nn.BatchNorm2d.forward(self, part) for part in x.tensor_split(self.groups)])  # (B, W, h, w)


def group_batch_norm(module: nn.Module, groups: int) -> int:
    """Let every BatchNorm2d inside a module, in place, count G parts of the batch apart.

    Args:
        module: such as an encoder; its weights and statistics are kept.
        groups: G, 1 or more; 1 is plain batch norm again.

    Returns:
        How many batch norms there are.

    Raises:
        ValueError: groups below 1.

    Equation: MoCo (He et al. 2020), section 3.3, Shuffling BN.
    """
    if groups < 1:
        raise ValueError(f"groups must be at least 1, not {groups}")
    norms = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    for norm in norms:  # the same object with the same weights, statistics and device; only its forward is another
        norm.__class__, norm.groups = GroupedBatchNorm2d, groups
    return len(norms)


class MoCo(nn.Module):
    """A student that learns by recognising pictures, a teacher that follows it, and a queue of the teacher's keys.

    teacher ← m · teacher + (1 - m) · student;  k = teacher(key view);  loss = info_nce(student(query view), k, queue);
    then k joins the queue

    In evaluation mode nothing moves: neither teacher, nor queue, nor the random numbers of the views.
    A queue longer than the data holds old keys of the query's own picture as negatives; keep K below N.

    Args:
        encoder: `encoder(image).pooled` is (B, W); has `.width`.
        dim: D.
        queue_size: K, how many negatives; unused by "end-to-end", whose dictionary is the batch.
        momentum: m of the teacher.
        temperature: divides the cosines; v1 takes 0.07, v2 0.2.
        head: "linear" (v1) or "mlp" (v2).
        augmentation: of the two views, `vlnotes.augment.V1`, `V2` or your own.
        mechanism: "momentum"; "bank": a row a picture, the student's own past features, no teacher; or "end-to-end":
            the student makes the keys too, with gradient.
        samples: N, the number of pictures; "bank" only, whose `batch["ids"]` lie in 0 to N - 1.
        bank_momentum: share of the old row when a bank row is renewed.
        bn_groups: G, as if G devices counted their batch norms alone.
        shuffle: whether the key side is shuffled before it is cut into these groups (Shuffling BN). Without it a
            query and its key share their group's statistics, and that gives the answer away.
        seed: of the views, the shuffles and the first queue; all are functions of the seed and the step.

    Raises:
        ValueError: an unknown head or mechanism, a bad number, a bank without or with too few samples, groups for
            an encoder without batch norm.

    Equation: MoCo (He et al. 2020), algorithm 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        dim: int = 128,
        queue_size: int = 65_536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        head: str = "mlp",
        augmentation: Augmentation = V2,
        mechanism: str = "momentum",
        samples: int | None = None,
        bank_momentum: float = 0.5,
        bn_groups: int = 1,
        shuffle: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        if mechanism not in MECHANISMS:
            raise ValueError(f"mechanism must be one of {list(MECHANISMS)}, not {mechanism!r}")
        check_fraction(momentum, "momentum")
        check_fraction(bank_momentum, "bank_momentum")
        check_temperature(temperature)
        if (mechanism == "bank") != (samples is not None):
            raise ValueError(f"samples says how many rows a bank has; mechanism is {mechanism!r}, samples {samples}")
        if samples is not None and samples <= queue_size:
            raise ValueError(f"a bank of {samples} rows cannot lend {queue_size} negatives; make queue_size smaller")
        if bn_groups != 1 and group_batch_norm(encoder, bn_groups) == 0:
            raise ValueError(f"bn_groups is {bn_groups}, but the encoder has no BatchNorm2d to cut into groups")
        self.momentum, self.temperature, self.bank_momentum = momentum, temperature, bank_momentum
        self.augmentation, self.mechanism, self.shuffle, self.seed = augmentation, mechanism, shuffle, seed
        self.queue_size = queue_size
        self.student = ProjectedEncoder(encoder, dim, head)
        dice = torch.Generator().manual_seed(seed)
        if mechanism == "momentum":
            self.teacher = momentum_copy(self.student)
            self.queue = FeatureQueue(queue_size, dim, generator=dice)
        if mechanism == "bank":
            self.register_buffer("bank", F.normalize(torch.randn(samples, dim, generator=dice), dim=1))  # (N, D)
        self.register_buffer("steps", torch.tensor(0))  # training steps made; seeds the next one's random numbers

    @classmethod
    def tiny(
        cls,
        *,
        image: str = "conv",
        norm: str = "batch",
        dim: int = 128,
        queue_size: int = 2048,
        momentum: float = 0.99,
        augmentation: str = "v2",
        seed: int = 0,
        **options,
    ) -> "MoCo":
        """A MoCo that two CPU cores train in a minute; a few hundred steps want a quicker teacher than 0.999.

        Args:
            image: the image tower, "conv", "resnet18" or "vit".
            norm: of the conv tower, "batch" or "group".
            dim: D.
            queue_size: K.
            momentum: m of the teacher.
            augmentation: "v1" or "v2".
            seed: of the initial weights, the views and the queue; the global random state is left alone.
            options: the others of `MoCo`: temperature, head, mechanism, samples, bank_momentum, bn_groups, shuffle.

        Returns:
            A MoCo with random weights; `model.built` remembers the arguments, so that `MoCo.load` can build it again.

        Raises:
            ValueError: an unknown image tower or augmentation, or what `MoCo` refuses.
        """
        towers = {"conv": lambda: ConvTower(norm=norm), "resnet18": ResNetTower, "vit": ViTTower}
        if image not in towers:
            raise ValueError(f"image tower must be one of {sorted(towers)}, not {image!r}")
        if augmentation not in ("v1", "v2"):
            raise ValueError(f"augmentation must be 'v1' or 'v2', not {augmentation!r}")
        kept = {"dim": dim, "queue_size": queue_size, "momentum": momentum, "seed": seed, **options}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(towers[image](), augmentation={"v1": V1, "v2": V2}[augmentation], **kept)
        model.built = {"image": image, "norm": norm, "augmentation": augmentation, **kept}
        return model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one batch; in training mode the teacher takes its step first, and the keys are kept last.

        Args:
            batch: image (B, 3, H, W) uint8 or float in [0, 1]. Two views of it are drawn, unless image_key, of the
                same shape, holds the second one: then both are taken as they are. ids (B,) name the pictures; a bank
                needs them.

        Returns:
            dict(loss, accuracy, positive), scalars: see `contrast`.

        Raises:
            ValueError: views of two shapes, ids that a bank cannot use, a batch too small for its groups.
        """
        image, key_view, ids = batch["image"], batch.get("image_key"), batch.get("ids")
        dice = self._dice(0)
        if key_view is None:
            query_view = augment(image, self.augmentation, generator=dice)
            key_view = image if self.mechanism == "bank" else augment(image, self.augmentation, generator=dice)
        else:
            query_view = image
            if key_view.shape != image.shape:
                raise ValueError(
                    f"image and image_key: row i of both shows one picture, so expected one shape, "
                    f"got {tuple(image.shape)} and {tuple(key_view.shape)}"
                )
        queries = self.student(query_view)  # (B, D)
        if self.mechanism == "bank":
            keys = self.bank[self._bank_rows(ids, len(image))]  # (B, D), a copy
        elif self.mechanism == "end-to-end":
            keys = self._shuffled(self.student, key_view, dice)
        else:
            with torch.no_grad():
                if self.training:
                    momentum_update(self.teacher, self.student, self.momentum)
                keys = self._shuffled(self.teacher, key_view, dice)
        losses = self.contrast(queries, keys, ids)
        if self.training:
            self.steps += 1
        return losses

    def contrast(self, queries: Tensor, keys: Tensor, ids: Tensor | None = None) -> dict[str, Tensor]:
        """The step on features: loss and accuracy against the dictionary as it is; then it is renewed, if training.

        Args:
            queries: (B, D) float, L2-normalised, with gradient.
            keys: (B, D) float, L2-normalised; row i is the positive of query i.
            ids: (B,) whole numbers that name the pictures, or None; a bank needs them.

        Returns:
            dict(loss, accuracy, positive): nats; the share of queries that are closer to their own key than to any
            other, by the first rows of the batch where the queue is long; the mean cosine of query and own key.

        Raises:
            ValueError: what `info_nce` refuses, or ids that a bank cannot use.

        Equation: MoCo (He et al. 2020), equation 1.
        """
        negatives = None
        if self.mechanism == "momentum":
            negatives = self.queue.features  # (K, D)
        elif self.mechanism == "bank":
            rows = self._bank_rows(ids, len(queries))
            negatives = self.bank[self._lent(rows)]  # (K, D)
        loss = info_nce(queries, keys, negatives, temperature=self.temperature)
        with torch.no_grad():
            positive = (queries * keys).sum(1)  # (B,)
            result = {"loss": loss, "accuracy": _accuracy(queries, keys, negatives), "positive": positive.mean()}
            if self.training and self.mechanism == "momentum":
                self.queue.push(keys, ids)
            if self.training and self.mechanism == "bank":
                mixed = self.bank_momentum * self.bank[rows] + (1 - self.bank_momentum) * queries
                self.bank[rows] = F.normalize(mixed, dim=1)
        return result

    def _dice(self, stream: int) -> torch.Generator:
        """The random numbers of this step: saved with `steps`, so that a resumed run draws the same views."""
        return torch.Generator().manual_seed(self.seed * 7_368_787 + 2 * int(self.steps) + stream)

    def _shuffled(self, encode: nn.Module, view: Tensor, dice: torch.Generator) -> Tensor:
        """The features of a view in its own order, encoded in another one, so that batch norm groups are mixed."""
        if not self.shuffle:
            return encode(view)
        order = torch.randperm(len(view), generator=dice).to(view.device)
        return encode(view[order])[order.argsort()]  # (B, D)

    def _bank_rows(self, ids: Tensor | None, count: int) -> Tensor:
        if ids is None:
            raise ValueError("a memory bank has a row for every picture: batch['ids'] must say which ones these are")
        if ids.shape != (count,) or not 0 <= int(ids.min()) <= int(ids.max()) < len(self.bank):
            raise ValueError(
                f"ids: expected shape ({count},) with numbers from 0 to {len(self.bank) - 1}, "
                f"got shape {tuple(ids.shape)} with {int(ids.min())} to {int(ids.max())}"
            )
        if len(ids.unique()) < count:
            raise ValueError("ids: a picture stands in the batch twice; a bank row can be renewed once a step")
        return ids.to(self.bank.device)

    def _lent(self, rows: Tensor) -> Tensor:
        """K random rows of the bank, none of a picture in the batch."""
        free = torch.ones(len(self.bank), dtype=torch.bool)
        free[rows.cpu()] = False
        free = free.nonzero().flatten()
        if len(free) < self.queue_size:
            raise ValueError(
                f"{len(free)} bank rows are left beside a batch of {len(rows)}, fewer than queue_size {self.queue_size}"
            )
        return free[torch.randperm(len(free), generator=self._dice(1))[: self.queue_size]].to(rows.device)  # (K,)

    def save(self, folder: str | Path, **record) -> Path:
        """Write weights.safetensors and model.json (how to build it, and whatever `record` says about its making).

        Args:
            folder: made if it is not there.
            record: JSON values to keep beside the weights.

        Returns:
            The folder.

        Raises:
            ValueError: a model that `tiny` did not build, which `load` could not build again.
        """
        return save_model(self, "MoCo", folder, record)

    @classmethod
    def load(cls, folder: str | Path) -> "MoCo":
        """Read back what `save` wrote, in eval mode on the CPU; queue and teacher are there too.

        Args:
            folder: with weights.safetensors and model.json.

        Returns:
            The model.

        Raises:
            ValueError: the folder lacks one of the two files, or they are of another model.
        """
        return load_model(cls, "MoCo", folder)


@torch.no_grad()
def probe_features(model: MoCo, images: Tensor, batch_size: int = 256) -> Tensor:
    """What is judged after training: the frozen student's pooled features, without the head.

    Args:
        model: its student's encoder runs in eval mode, and is put back as it was.
        images: (N, 3, H, W) uint8, or float in [0, 1]; not augmented.
        batch_size: pictures at a time.

    Returns:
        (N, W) float32 on the CPU, not normalised.

    Equation: MoCo (He et al. 2020), section 4.1.
    """
    encoder = model.student.encoder
    device, was_training = next(encoder.parameters()).device, encoder.training
    encoder.eval()
    parts = [encoder(part.to(device)).pooled.float().cpu() for part in images.split(batch_size)]
    encoder.train(was_training)
    return torch.cat(parts)


def probe(
    model: MoCo, images: Tensor, labels: Tensor, test_images: Tensor, test_labels: Tensor, k: int = 20
) -> dict[str, float]:
    """How much of the labels can be read from frozen features: by the nearest neighbours, and by a linear classifier.

    Args:
        model: trained, or not, for a floor to compare with.
        images: (N, 3, H, W), those that the classifiers learn from.
        labels: (N,) integers.
        test_images: (M, 3, H, W).
        test_labels: (M,) integers.
        k: neighbours.

    Returns:
        dict(knn, linear), shares of right answers in [0, 1].

    Raises:
        ValueError: what `metrics.knn` and `metrics.linear_probe` refuse.

    Equation: MoCo (He et al. 2020), section 4.1.
    """
    features, test_features = probe_features(model, images), probe_features(model, test_images)
    return {
        "knn": knn(features, labels, test_features, test_labels, k=k),
        "linear": linear_probe(features, labels, test_features, test_labels),
    }


def _accuracy(queries: Tensor, keys: Tensor, negatives: Tensor | None) -> Tensor:
    """The share of queries whose own key is the closest. A tie, up to rounding, is no hit: collapse is no success."""
    others = keys if negatives is None else negatives
    queries = queries[: max(1, ACCURACY_ENTRIES // len(others))]
    with torch.autocast(queries.device.type, enabled=False):  # cosines near 1 would be ties in bfloat16
        logits = queries @ others.to(queries.dtype).T  # (rows, K), or (rows, B)
    positive = (queries * keys[: len(queries)]).sum(1)
    if negatives is None:
        logits.fill_diagonal_(-torch.inf)
    return (positive > logits.amax(1) + 1e-6).float().mean()
