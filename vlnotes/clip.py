"""CLIP: two encoders, one shared space, one contrastive matrix (Radford et al. 2021)."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlnotes._saving import load_model, save_model
from vlnotes.contrastive import clip_loss
from vlnotes.encoders import ConvTower, ResNetTower, TextTower, ViTTower

LARGEST_SCALE = 100.0  # CLIP keeps the factor on the cosines at or below 100, a temperature of 0.01


class CLIP(nn.Module):
    """An image tower and a text tower, each projected into the same D dimensions and L2-normalised.

    loss = clip_loss(image_features, text_features, temperature = exp(-logit_scale))

    Args:
        image_encoder: `image_encoder(image).pooled` is (B, W); has `.width`.
        text_encoder: `text_encoder(input_ids, attention_mask).pooled` is (B, W'); has `.width`.
        dim: D, the width of the shared space.
        temperature: where the learnt temperature starts; CLIP starts at 0.07.

    Raises:
        ValueError: a temperature that is not positive, or below 0.01.

    Equation: CLIP (Radford et al. 2021), Figure 3.
    """

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, *, dim: int = 512, temperature: float = 0.07):
        super().__init__()
        if not 1 / LARGEST_SCALE <= temperature < math.inf:
            raise ValueError(f"temperature must be at least {1 / LARGEST_SCALE}, not {temperature}")
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.image_projection = nn.Linear(image_encoder.width, dim, bias=False)
        self.text_projection = nn.Linear(text_encoder.width, dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @classmethod
    def tiny(cls, vocab_size: int = 512, *, image: str = "conv", dim: int = 128, seed: int = 0, **options) -> "CLIP":
        """A CLIP that two CPU cores train in a minute.

        Args:
            vocab_size: number of token ids.
            image: the image tower, "conv", "resnet18" or "vit".
            dim: D.
            seed: of the initial weights; the global random state is left alone.
            options: more of the class, JSON values.

        Returns:
            A CLIP with random weights; `model.built` remembers the arguments, so that `CLIP.load` can build it again.

        Raises:
            ValueError: an unknown image tower.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(*tiny_towers(vocab_size, image), dim=dim, **options)
        model.built = {"vocab_size": vocab_size, "image": image, "dim": dim, **options}
        return model

    @property
    def temperature(self) -> Tensor:
        """The learnt temperature, a scalar tensor that divides the cosines."""
        return torch.exp(-self.logit_scale)

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Bring the learnt temperature back to 0.01 where it fell below."""
        self.logit_scale.clamp_(max=math.log(LARGEST_SCALE))

    def image_features(self, image: Tensor) -> Tensor:
        """Encode pictures.

        Args:
            image: (B, 3, H, W) uint8, or float in [0, 1].

        Returns:
            (B, D) float32, L2-normalised.
        """
        return project(self.image_encoder(image).pooled, self.image_projection)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode captions.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 on tokens, 0 on padding.

        Returns:
            (B, D) float32, L2-normalised.
        """
        return project(self.text_encoder(input_ids, attention_mask).pooled, self.text_projection)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one batch.

        Args:
            batch: image (B, 3, H, W), input_ids (B, L), attention_mask (B, L).

        Returns:
            dict(loss, temperature), scalars; "loss" in nats.
        """
        return self.contrast(*self.pair_features(batch))

    def pair_features(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Both sides of a batch, encoded.

        Args:
            batch: image (B, 3, H, W), input_ids (B, L), attention_mask (B, L).

        Returns:
            image_features and text_features, each (B, D) float32, L2-normalised.
        """
        return self.image_features(batch["image"]), self.text_features(batch["input_ids"], batch["attention_mask"])

    def contrast(self, image_features: Tensor, text_features: Tensor) -> dict[str, Tensor]:
        """The loss on features, with the temperature kept at 0.01 or more.

        Args:
            image_features: (B, D) float, L2-normalised.
            text_features: (B, D) float, L2-normalised; row i belongs to picture i.

        Returns:
            dict(loss, temperature), scalars; "loss" in nats.
        """
        self.limit_scale()
        loss = clip_loss(image_features, text_features, temperature=self.temperature)
        return {"loss": loss, "temperature": self.temperature.detach()}

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
        return save_model(self, type(self).__name__, folder, record)

    @classmethod
    def load(cls, folder: str | Path) -> "CLIP":
        """Read back what `save` wrote, in eval mode on the CPU.

        Args:
            folder: with weights.safetensors and model.json.

        Returns:
            The model.

        Raises:
            ValueError: the folder lacks one of the two files, or they are of another model.
        """
        return load_model(cls, cls.__name__, folder)


def tiny_towers(vocab_size: int, image: str = "conv") -> tuple[nn.Module, nn.Module]:
    """The small towers of every `tiny` that stands on CLIP, with random weights from the global state.

    Args:
        vocab_size: number of token ids.
        image: "conv", "resnet18" or "vit".

    Returns:
        The image tower and the text tower.

    Raises:
        ValueError: an unknown image tower.
    """
    towers = {"conv": ConvTower, "resnet18": ResNetTower, "vit": ViTTower}
    if image not in towers:
        raise ValueError(f"image tower must be one of {sorted(towers)}, not {image!r}")
    return towers[image](), TextTower(vocab_size, layers=1)


def project(pooled: Tensor, projection: nn.Module) -> Tensor:
    """From what a tower pooled into the shared space.

    Args:
        pooled: (B, W) float.
        projection: from W to D.

    Returns:
        (B, D) float32, L2-normalised.
    """
    return F.normalize(projection(pooled).float(), dim=1)


@torch.no_grad()
def encode_images(model: nn.Module, images: Tensor, batch_size: int = 256, way: str = "image_features") -> Tensor:
    """All pictures through the image tower, batch by batch, without gradient and in eval mode.

    Args:
        model: has `image_features(image)`.
        images: (N, 3, H, W) uint8 or float in [0, 1].
        batch_size: pictures at a time.
        way: the model's method that encodes; "image_logits" for the codes of `vlnotes.xclip`.

    Returns:
        (N, D) float32 on the CPU, L2-normalised; (N, C) for logits, which are not.
    """
    return _encode(model, lambda part, device: getattr(model, way)(part.to(device)), images.split(batch_size))


@torch.no_grad()
def encode_texts(
    model: nn.Module, tokens: dict[str, Tensor], batch_size: int = 512, way: str = "text_features"
) -> Tensor:
    """All captions through the text tower, batch by batch, without gradient and in eval mode.

    Args:
        model: has `text_features(input_ids, attention_mask)`.
        tokens: input_ids and attention_mask, each (M, L).
        batch_size: captions at a time.
        way: the model's method that encodes; "text_logits" for the codes of `vlnotes.xclip`.

    Returns:
        (M, D) float32 on the CPU, L2-normalised; (M, C) for logits, which are not.
    """
    parts = zip(tokens["input_ids"].split(batch_size), tokens["attention_mask"].split(batch_size), strict=True)
    return _encode(model, lambda part, device: getattr(model, way)(part[0].to(device), part[1].to(device)), parts)


def _encode(model: nn.Module, features, parts) -> Tensor:
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    out = torch.cat([features(part, device).float().cpu() for part in parts])
    model.train(was_training)
    return out
