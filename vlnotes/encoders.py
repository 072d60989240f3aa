"""Image and text towers: pixels or token ids in, one pooled vector and a sequence of tokens out.

Three image towers (a small conv net, a torchvision ResNet, a ViT), one text tower (a BERT), and the same from
a pretrained checkpoint in a local folder. Every tower returns `Encoded`; every image tower normalises its
pictures itself.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

# mean and standard deviation of red, green, blue in [0, 1]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Encoded(NamedTuple):
    """What a tower returns; `width` and `token_width` of the tower are the two feature sizes.

    `pooled` (B, width) sums up the input. `tokens` (B, P, token_width) for conv nets, (B, 1 + P, token_width)
    with the class token first for transformers on pictures, (B, L, token_width) for texts. `grid` is (h, w)
    with h * w = P, row by row, or None for texts.
    """

    pooled: torch.Tensor
    tokens: torch.Tensor
    grid: tuple[int, int] | None = None


class Normalise(nn.Module):
    """Pictures become floats with about zero mean and unit variance: (image - mean) / std.

    Args:
        mean: of red, green, blue, in [0, 1].
        std: standard deviation of red, green, blue, > 0.
    """

    def __init__(self, mean: tuple[float, ...] = HALF[0], std: tuple[float, ...] = HALF[1]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Normalise a batch.

        Args:
            image: (B, 3, H, W), uint8 in 0 to 255 or float in [0, 1]. The range of floats is looked at on the
                CPU only, in the first picture only, and with a margin of half a unit: enough to catch 0 to
                255 and pictures that were normalised before.

        Returns:
            (B, 3, H, W) float.

        Raises:
            TypeError: no tensor, or neither uint8 nor float.
            ValueError: another shape, or a first picture far outside [0, 1].
        """
        if not isinstance(image, torch.Tensor):
            raise TypeError(f"image is {type(image).__name__}; expected a tensor (B, 3, H, W)")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise TypeError(f"image is {image.dtype}; expected uint8 in 0..255 or floats in [0, 1]")
        if image.ndim != 4 or image.shape[1] != 3 or image.numel() == 0:
            raise ValueError(f"image has shape {tuple(image.shape)}; expected (B, 3, H, W) with B >= 1")
        if image.dtype == torch.uint8:
            return (image.to(self.mean.dtype) - 255 * self.mean) / (255 * self.std)
        if image.device.type == "cpu":
            low, high = (float(value) for value in image[0].detach().aminmax())
            if not (low >= -0.5 and high <= 1.5):
                raise ValueError(
                    f"image runs from {low:.3g} to {high:.3g}; expected floats in [0, 1] or uint8 in 0..255, "
                    "which the tower normalises itself"
                )
        return (image - self.mean) / self.std


class ConvTower(nn.Module):
    """The small conv net that learns within a minute on a laptop: four 3x3 convolutions, mean and max pooled.

    A 64 px picture becomes an 8x8 grid (strides 2, 2, 2, 1). The mean says how much of something there is,
    the maximum whether it is there at all. Weights and activations are kept channels-last, which is faster on
    CPUs and GPUs.

    Args:
        width: of the pooled feature, a multiple of 64; a grid cell has half of it, the stem an eighth.
        norm: "batch" (learns faster) or "group" (no statistics of other pictures, so none that drift).

    Raises:
        ValueError: another norm, or a width that is no multiple of 64.
    """

    def __init__(self, width: int = 256, norm: str = "batch"):
        super().__init__()
        if width < 64 or width % 64:
            raise ValueError(f"width is {width}; expected a multiple of 64")
        if norm not in ("batch", "group"):
            raise ValueError(f"norm is {norm!r}; expected 'batch' or 'group'")
        self.width, self.token_width = width, width // 2
        self.normalise = Normalise()
        channels = [3, width // 8, width // 4, width // 2, width // 2]
        layers: list[nn.Module] = []
        for before, after, stride in zip(channels, channels[1:], (2, 2, 2, 1), strict=False):
            layers += [
                nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(after) if norm == "batch" else nn.GroupNorm(8, after),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def forward(self, image: torch.Tensor) -> Encoded:
        """Encode pictures.

        Args:
            image: (B, 3, H, W) uint8, or float in [0, 1].

        Returns:
            Encoded: pooled (B, width), tokens (B, P, width / 2), grid (H / 8, W / 8), rounded up.
        """
        image = self.normalise(image).contiguous(memory_format=torch.channels_last)
        return _encoded_map(self.layers(image), maximum=True)


class ResNetTower(nn.Module):
    """A torchvision ResNet without its classifier.

    Args:
        name: "resnet18", "resnet50", ... any torchvision model of the ResNet family.
        weights_file: a local state dict as torchvision ships it, .safetensors or .pth (of which nothing but
            tensors is read); its classifier is ignored. None: random weights. Nothing is downloaded.

    Raises:
        ValueError: an unknown name; a weights file that is missing, unreadable or of another network.
    """

    def __init__(self, name: str = "resnet18", weights_file: str | Path | None = None):
        from torchvision import models

        super().__init__()
        names = [known for known in models.list_models() if "res" in known and hasattr(models.resnet, known)]
        if name not in names:
            raise ValueError(f"name is {name!r}; expected one of {', '.join(names)}")
        network = models.get_model(name, weights=None)
        if weights_file is not None:
            _load_weights(network, Path(weights_file))
        self.width = self.token_width = network.fc.in_features
        self.normalise = Normalise(*IMAGENET)
        parts = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
        self.layers = nn.Sequential(*[getattr(network, part) for part in parts]).to(memory_format=torch.channels_last)

    def forward(self, image: torch.Tensor) -> Encoded:
        """Encode pictures.

        Args:
            image: (B, 3, H, W) uint8, or float in [0, 1].

        Returns:
            Encoded: pooled (B, width), the mean of tokens (B, P, width); grid (H / 32, W / 32), rounded up.
        """
        image = self.normalise(image).contiguous(memory_format=torch.channels_last)
        return _encoded_map(self.layers(image))


class TransformersImage(nn.Module):
    """Any vision model of transformers behind the interface used here: ViT, DeiT, DINOv2, CLIP's, ResNet ...

    Pictures keep their size: position embeddings are stretched to it where the model can do that.

    Args:
        model: its `last_hidden_state` is tokens (B, 1 + P, W), the class token first, or a map (B, W, h, w).
        mean: of red, green, blue, in [0, 1].
        std: standard deviation of red, green, blue, > 0.
        own_pooling: True takes the model's `pooler_output` (right for CLIP) instead of the class token.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: tuple[float, ...] = HALF[0],
        std: tuple[float, ...] = HALF[1],
        own_pooling: bool = False,
    ):
        super().__init__()
        self.model, self.own_pooling, self.normalise = model, own_pooling, Normalise(mean, std)
        config = model.config
        self.width = self.token_width = getattr(config, "hidden_size", None) or config.hidden_sizes[-1]

    def forward(self, image: torch.Tensor) -> Encoded:
        """Encode pictures.

        Args:
            image: (B, 3, H, W) uint8, or float in [0, 1]; H and W multiples of the patch size.

        Returns:
            Encoded: pooled (B, width), tokens (B, 1 + P, width) with the class token first, grid (h, w).
            A model that gives a map has no class token: tokens (B, P, width), pooled is their mean.
        """
        pixels = self.normalise(image)
        output = self.model(pixel_values=pixels, **_stretch(self.model, pixels))
        hidden = output.last_hidden_state
        if hidden.ndim == 4:
            return _encoded_map(hidden)
        grid = _patch_grid(self.model.config, pixels)
        patches = hidden[:, hidden.shape[1] - grid[0] * grid[1] :]  # (B, P, W); register tokens stay out
        pooled = output.pooler_output if self.own_pooling else hidden[:, 0]
        return Encoded(pooled, torch.cat([hidden[:, :1], patches], dim=1), grid)


class ViTTower(TransformersImage):
    """A small vision transformer with random weights: a picture is cut into patches, a class token sums up.

    The second choice at this size: it needs many more steps than `ConvTower`, but has attention to look at.

    Args:
        size: height and width of the pictures in pixels, a multiple of `patch`.
        patch: side of a patch in pixels.
        width: of every token.
        layers: transformer blocks.
        heads: attention heads; they divide `width`.

    Raises:
        ValueError: a size that is no multiple of the patch, a width that the heads do not divide.
    """

    def __init__(self, size: int = 64, patch: int = 8, width: int = 128, layers: int = 4, heads: int = 4):
        from transformers import ViTConfig, ViTModel

        if size % patch or width % heads:
            raise ValueError(f"patch {patch} must divide size {size}, and heads {heads} must divide width {width}")
        config = ViTConfig(
            image_size=size,
            patch_size=patch,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            attn_implementation="sdpa",
        )
        super().__init__(ViTModel(config, add_pooling_layer=False), *HALF)


class TransformersText(nn.Module):
    """Any text encoder of transformers behind the interface used here: BERT, DistilBERT, CLIP's ...

    Args:
        model: takes input_ids and attention_mask, returns `last_hidden_state` (B, L, W).
        pool: "mean" over the tokens that are no padding, "cls" for the first token, "own" for the model's
            `pooler_output` (right for CLIP: its end-of-text token).

    Raises:
        ValueError: another `pool`.
    """

    def __init__(self, model: nn.Module, pool: str = "mean"):
        super().__init__()
        if pool not in ("mean", "cls", "own"):
            raise ValueError(f"pool is {pool!r}; expected 'mean', 'cls' or 'own'")
        self.model, self.pool = model, pool
        self.width = self.token_width = model.config.hidden_size

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Encoded:
        """Encode captions.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 on tokens and 0 on padding; None: all are tokens.

        Returns:
            Encoded: pooled (B, width), tokens (B, L, width), grid None.

        Raises:
            ValueError: shapes that differ, more tokens than positions, ids outside the vocabulary (CPU only).
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        _check_ids(self.model.config, input_ids, attention_mask)
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        tokens = output.last_hidden_state  # (B, L, W)
        if self.pool == "own":
            return Encoded(output.pooler_output, tokens)
        if self.pool == "cls":
            return Encoded(tokens[:, 0], tokens)
        weight = attention_mask.unsqueeze(-1).to(tokens.dtype)  # (B, L, 1)
        return Encoded((tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1), tokens)


class TextTower(TransformersText):
    """A small BERT with random weights that knows how far apart words are (rotary positions, RoFormer).

    A caption's meaning hangs on neighbours: in "a red ring and a blue heart" red belongs to the next word. With rotary
    positions attention sees distances from the start. With learnt absolute ones, BERT's own, a tower of this size
    reads a caption as a bag of words for thousands of steps, and then no loss can bind colours to shapes.

    Args:
        vocab_size: ids of the tokenizer, `len(tokenizer)`.
        width: of every token.
        layers: transformer blocks.
        heads: attention heads; they divide `width`.
        length: most tokens in a caption.
        pool: "mean" or "cls".
        dropout: share of activations dropped in training; 0 learns fastest in short runs.
        positions: "rotary", or "learnt", a table with one vector a place as in BERT.

    Raises:
        ValueError: a width that the heads do not divide, another `pool` or kind of positions.
    """

    def __init__(
        self,
        vocab_size: int = 2000,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        length: int = 64,
        pool: str = "mean",
        dropout: float = 0.0,
        positions: str = "rotary",
    ):
        from transformers import BertConfig, BertModel, RoFormerConfig, RoFormerModel

        if width % heads:
            raise ValueError(f"width {width} must be a multiple of heads {heads}")
        if pool not in ("mean", "cls"):
            raise ValueError(f"pool is {pool!r}; expected 'mean' or 'cls'")
        if positions not in ("rotary", "learnt"):
            raise ValueError(f"positions is {positions!r}; expected 'rotary' or 'learnt'")
        rotary = positions == "rotary"
        config = (RoFormerConfig if rotary else BertConfig)(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=length,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            pad_token_id=0,
            attn_implementation="eager" if rotary else "sdpa",  # RoFormer knows no other
        )
        super().__init__(RoFormerModel(config) if rotary else BertModel(config, add_pooling_layer=False), pool)


class PretrainedCLIP(nn.Module):
    """A CLIP of transformers whose features come out projected and L2-normalised.

    Args:
        model: a transformers CLIPModel.
        mean: of red, green, blue, in [0, 1].
        std: standard deviation of red, green, blue, > 0.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: tuple[float, ...] = OPENAI_CLIP[0],
        std: tuple[float, ...] = OPENAI_CLIP[1],
    ):
        super().__init__()
        self.model, self.normalise = model, Normalise(mean, std)
        self.width = model.config.projection_dim

    @property
    def logit_scale(self) -> torch.Tensor:
        """Scalar parameter; its exponential multiplies the cosines, so that temperature =
        exp(-logit_scale)."""
        return self.model.logit_scale

    def image_features(self, image: torch.Tensor) -> torch.Tensor:
        """Encode pictures.

        Args:
            image: (B, 3, H, W) uint8, or float in [0, 1]; H and W multiples of the patch size.

        Returns:
            (B, width) float, L2-normalised.
        """
        pixels = self.normalise(image)
        _patch_grid(self.model.config.vision_config, pixels)
        vision = self.model.vision_model
        pooled = vision(pixel_values=pixels, **_stretch(vision, pixels)).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    def text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Encode captions; the end-of-text token speaks for the whole.

        Args:
            input_ids: (B, L) int64, made with the checkpoint's own tokenizer.
            attention_mask: (B, L), 1 on tokens and 0 on padding; None: all are tokens.

        Returns:
            (B, width) float, L2-normalised.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        _check_ids(self.model.config.text_config, input_ids, attention_mask)
        pooled = self.model.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)


def projection(width_in: int, dim: int) -> nn.Linear:
    """The linear map from a tower's width into the space that pictures and texts share, D numbers wide.

    Args:
        width_in: the tower's `width`.
        dim: D.

    Returns:
        A Linear without bias: a bias would move all features of one modality by the same vector.
    """
    return nn.Linear(width_in, dim, bias=False)


def load_image_encoder(folder: str | Path) -> TransformersImage:
    """Read a pretrained vision model from a local folder; nothing is downloaded.

    Args:
        folder: as `save_pretrained` writes it (config.json, model.safetensors, preprocessor_config.json). Of
            a CLIP the vision half is taken. Mean and standard deviation come from preprocessor_config.json
            where it is there, else they are the usual ones of the model's kind.

    Returns:
        The model as an image tower, in evaluation mode.

    Raises:
        ValueError: no such folder, no model in it, weights that are missing, a model without pictures.
    """
    model = _load(folder)
    mean, std = _pixel_statistics(Path(folder), model.config.model_type)
    # CLIP's class token still lacks a norm that its own pooling adds
    own = model.config.model_type.startswith("clip")
    if not hasattr(model, "vision_model"):
        _check_input(model, "pixel_values", folder)
    return TransformersImage(getattr(model, "vision_model", model), mean, std, own_pooling=own).eval()


def load_text_encoder(folder: str | Path, pool: str = "mean") -> TransformersText:
    """Read a pretrained text model from a local folder; nothing is downloaded.

    Args:
        folder: as `save_pretrained` writes it (config.json, model.safetensors); of a CLIP, its text half.
        pool: "mean", "cls" or "own"; a CLIP always pools in its own way, at the end-of-text token.

    Returns:
        The model as a text tower, in evaluation mode.

    Raises:
        ValueError: no such folder, no model in it, weights that are missing, a model without texts.
    """
    model = _load(folder, pooler=pool == "own")
    pool = "own" if model.config.model_type.startswith("clip") else pool
    if not hasattr(model, "text_model"):
        _check_input(model, "input_ids", folder)
    return TransformersText(getattr(model, "text_model", model), pool).eval()


def load_clip(folder: str | Path) -> PretrainedCLIP:
    """Read a pretrained CLIP from a local folder; nothing is downloaded.

    Args:
        folder: as `save_pretrained` writes it (config.json, model.safetensors, preprocessor_config.json).

    Returns:
        PretrainedCLIP in evaluation mode; its tokenizer is read with `vlnotes.text.load_tokenizer(folder)`.

    Raises:
        ValueError: no such folder, no model in it, weights that are missing, a model that is no CLIP.
    """
    model = _load(folder)
    if model.config.model_type != "clip":
        raise ValueError(f"{folder} holds a {type(model).__name__}; expected a CLIPModel")
    return PretrainedCLIP(model, *_pixel_statistics(Path(folder), model.config.model_type)).eval()


def _encoded_map(map: torch.Tensor, maximum: bool = False) -> Encoded:
    pooled = map.mean(dim=(2, 3))  # (B, W)
    if maximum:
        pooled = torch.cat([pooled, map.amax(dim=(2, 3))], dim=1)  # (B, 2 W)
    return Encoded(pooled, map.flatten(2).transpose(1, 2), (map.shape[2], map.shape[3]))


def _patch_grid(config, pixels: torch.Tensor) -> tuple[int, int]:
    patch = config.patch_size
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    height, width = pixels.shape[2:]
    if height % rows or width % columns:
        raise ValueError(
            f"pictures are {height} x {width} pixels; expected multiples of the patch size "
            f"{rows} x {columns} (the model was made for {config.image_size} pixels)"
        )
    return height // rows, width // columns


def _stretch(model: nn.Module, pixels: torch.Tensor) -> dict[str, bool]:
    """The keyword that stretches position embeddings, where the pictures have another size than the model."""
    size = getattr(model.config, "image_size", None)
    size = (size, size) if isinstance(size, int) else size
    if size is None or tuple(size) == tuple(pixels.shape[2:]):
        return {}
    known = inspect.signature(model.forward).parameters
    return {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in known else {}


def _check_ids(config, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
    if input_ids.ndim != 2 or attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"input_ids {tuple(input_ids.shape)} and attention_mask {tuple(attention_mask.shape)}; expected (B, L) both"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and input_ids.shape[1] > positions:
        raise ValueError(f"captions are {input_ids.shape[1]} tokens long; this model has {positions} positions")
    if input_ids.device.type == "cpu" and input_ids.numel() and int(input_ids.max()) >= config.vocab_size:
        raise ValueError(
            f"input_ids go up to {int(input_ids.max())}; this model knows ids below {config.vocab_size}: "
            "was another tokenizer used?"
        )


def _load_weights(network: nn.Module, file: Path) -> None:
    if not file.is_file():
        raise ValueError(f"no weights file {str(file)!r}; nothing is downloaded here: place it and give its path")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
        state = {name: value for name, value in state.items() if not name.startswith("fc.")}
        network.load_state_dict({**state, **{f"fc.{k}": v for k, v in network.fc.state_dict().items()}})
    except Exception as error:  # pickle, safetensors and load_state_dict each raise their own kinds
        raise ValueError(f"{file} does not hold the weights of this network: {error}") from error


def _load(folder: str | Path, pooler: bool = False) -> nn.Module:
    from transformers import AutoModel

    path = Path(folder)
    if not path.is_dir():
        raise ValueError(
            f"no model folder {str(folder)!r}: nothing is downloaded here, a hub name is not enough. "
            "Fetch the files once where there is a network (config.json, model.safetensors, "
            "preprocessor_config.json, the tokenizer's), put them into one folder and give its path"
        )
    if not (path / "config.json").is_file():
        found = sorted(entry.name for entry in path.iterdir())[:8]
        raise ValueError(f"{path} has no config.json, so it holds no transformers model; found {found or 'nothing'}")
    try:
        model, info = AutoModel.from_pretrained(path, local_files_only=True, output_loading_info=True)
    except Exception as error:  # OSError, KeyError, RuntimeError, safetensors' own and more
        raise ValueError(f"{path} holds a model that cannot be read: {error}") from error
    # many checkpoints come without the pooler, which only matters to who asks for it
    missing = sorted(name for name in info["missing_keys"] if pooler or "pooler" not in name)
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} weights of {type(model).__name__}, the first: {missing[:3]}")
    return model


def _check_input(model: nn.Module, expected: str, folder: str | Path) -> None:
    if model.main_input_name != expected:
        raise ValueError(
            f"{folder} holds a {type(model).__name__}, which takes {model.main_input_name}; "
            f"expected a model that takes {expected}"
        )


def _pixel_statistics(folder: Path, model_type: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            try:
                settings = json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{folder / name} is no JSON: {error}") from error
            settings = settings.get("image_processor", settings)
            if settings.get("do_normalize") is False:
                return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
            if "image_mean" in settings and "image_std" in settings:
                return tuple(settings["image_mean"]), tuple(settings["image_std"])
    return {"clip": OPENAI_CLIP, "vit": HALF}.get(model_type, IMAGENET)
