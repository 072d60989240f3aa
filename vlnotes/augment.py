"""Two looks at one picture: crops, flips, colours and blur, drawn for every picture of a batch at once.

Every picture gets its own numbers, but the whole batch goes through each operation together, on the device
where it lies. The numbers come from a generator that is passed in, so that the same seed gives the same views.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue look
BLUR_WIDTH = 224  # sigma is given for pictures that many pixels wide


@dataclass(frozen=True)
class Augmentation:
    """How strong the changes are; the defaults are those of MoCo v2, `V1` holds those of v1.

    Args:
        smallest: the least share of the area that a crop keeps; the largest is all of it.
        flip: probability of a mirrored picture.
        jitter: probability that brightness, contrast, saturation and hue change at all.
        strength: of these four; the first three are factors from 1 - s to 1 + s, hue turns by up to s of a circle.
        grey: probability of a picture without colour.
        blur: probability of a blurred picture.
        sigma: smallest and largest width of the blur, in pixels of a picture 224 wide; smaller pictures get less.

    Raises:
        ValueError: a probability or a strength out of its range.

    Equation: MoCo v2 (Chen et al. 2020), section 3.
    """

    smallest: float = 0.2
    flip: float = 0.5
    jitter: float = 0.8
    strength: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    grey: float = 0.2
    blur: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grey", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a probability in [0, 1], got {getattr(self, name)}")
        if not 0 < self.smallest <= 1:
            raise ValueError(f"smallest: expected a share of the area in (0, 1], got {self.smallest}")
        if len(self.strength) != 4 or not all(0 <= s <= 1 for s in self.strength) or self.strength[3] > 0.5:
            raise ValueError(f"strength: expected four numbers in [0, 1], the last at most 0.5, got {self.strength}")
        if len(self.sigma) != 2 or not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"sigma: expected smallest and largest width, both above 0, got {self.sigma}")


V1 = Augmentation(jitter=1.0, strength=(0.4, 0.4, 0.4, 0.4), blur=0.0)
V2 = Augmentation()


@torch.no_grad()
def augment(image: Tensor, how: Augmentation = V2, *, generator: torch.Generator) -> Tensor:
    """Another look at every picture: a random crop, mirrored or not, its colours shifted, perhaps grey or blurred.

    The order is the same for all: crop and flip, jitter, grey, blur. (torchvision shuffles the four steps of the
    jitter; MoCo v1 takes grey before it.)

    Args:
        image: (B, 3, H, W) uint8, or float in [0, 1].
        how: probabilities and strengths.
        generator: of the random numbers; a CPU generator gives the same views on every device.

    Returns:
        (B, 3, H, W) float in [0, 1].

    Raises:
        TypeError: image is no tensor, or neither uint8 nor float.
        ValueError: another shape.

    Equation: MoCo (He et al. 2020), section 3.3; v2: Chen et al. 2020, section 3.
    """
    image = _pixels(image)
    with torch.autocast(image.device.type, enabled=False):  # in bfloat16 a crop would sit on a coarse grid
        return _augmented(image, how, generator)


def crop_resize(image: Tensor, box: Tensor, flip: Tensor | None = None) -> Tensor:
    """Cut a box of its own out of every picture and stretch it to the full size, bilinear.

    Args:
        image: (B, 3, H, W) float.
        box: (B, 4): top, left, height, width, as shares of the picture in [0, 1].
        flip: (B,) bool, which pictures are mirrored; None mirrors none.

    Returns:
        (B, 3, H, W) float.

    Raises:
        ValueError: a box or a flip that is not one a picture.
    """
    if box.shape != (len(image), 4) or (flip is not None and flip.shape != (len(image),)):
        seen = None if flip is None else tuple(flip.shape)
        raise ValueError(
            f"box, flip: expected one a picture, ({len(image)}, 4) and ({len(image)},), "
            f"got {tuple(box.shape)} and {seen}"
        )
    top, left, height, width = box.to(image).unbind(1)
    mirror = 1.0 if flip is None else 1.0 - 2.0 * flip.to(image)
    zero = torch.zeros_like(top)
    # grid_sample counts from -1 to 1: the middle of the box, and half its sides
    across = torch.stack([width * mirror, zero, 2 * left + width - 1], dim=1)
    down = torch.stack([zero, height, 2 * top + height - 1], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), list(image.shape), align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


def jitter_colours(image: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Shift the colours of every picture by numbers of its own, in this order; 1, 1, 1, 0 changes nothing.

    Args:
        image: (B, 3, H, W) float in [0, 1].
        brightness: (B,) factor on the pixels.
        contrast: (B,) factor on the distance from the mean grey of the picture.
        saturation: (B,) factor on the distance from the grey of the pixel.
        hue: (B,) turn of the colour circle, in turns.

    Returns:
        (B, 3, H, W) float in [0, 1].
    """
    brightness, contrast, saturation = (f.to(image)[:, None, None, None] for f in (brightness, contrast, saturation))
    image = (image * brightness).clamp(0, 1)
    image = torch.lerp(_grey(image).mean((2, 3), keepdim=True), image, contrast).clamp(0, 1)
    image = torch.lerp(_grey(image), image, saturation).clamp(0, 1)
    if not bool(hue.any()):
        return image
    high, low = image.amax(1), image.amin(1)  # (B, H, W)
    spread = high - low
    red, green, blue = image.unbind(1)
    safe = spread.clamp(min=1e-8)  # a grey pixel has no hue, and with no spread none is needed
    angle = torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    angle = torch.where(high == red, (green - blue) / safe, angle) + 6 * hue.to(image)[:, None, None]  # in sixths
    # each channel is at its top for a third of the circle, at its bottom for a third, and on a slope between
    start = torch.tensor([5.0, 3.0, 1.0], device=image.device, dtype=image.dtype)[:, None, None]  # (3, 1, 1)
    phase = (start + angle[:, None]) % 6  # (B, 3, H, W)
    return high[:, None] - spread[:, None] * torch.minimum(phase, 4 - phase).clamp(0, 1)


def blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur every picture with a Gaussian of its own width, first along rows, then along columns.

    Args:
        image: (B, 3, H, W) float.
        sigma: (B,), in pixels, above 0.

    Returns:
        (B, 3, H, W) float; the border is mirrored.
    """
    count, channels, height, width = image.shape
    reach = min(max(1, math.ceil(3 * float(sigma.max()))), height - 1, width - 1)
    steps = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    weight = (-0.5 * (steps / sigma.to(image)[:, None]) ** 2).softmax(1)  # (B, taps), sums to 1
    weight = weight.repeat_interleave(channels, 0)[:, None]  # (3 B, 1, taps): each channel is blurred alone
    flat = F.pad(image, (reach, reach, reach, reach), mode="reflect").flatten(0, 1)[None]  # (1, 3 B, H', W')
    flat = F.conv2d(flat, weight[:, :, None, :], groups=count * channels)
    flat = F.conv2d(flat, weight[:, :, :, None], groups=count * channels)
    return flat.view(image.shape)


def _augmented(image: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    dice = torch.rand(len(image), 13, generator=generator, device=generator.device).to(image.device)
    coins, dice = dice[:, :4].unbind(1), dice[:, 4:].unbind(1)  # which changes happen; how large they are

    area = how.smallest + (1 - how.smallest) * dice[0]  # (B,)
    aspect = (math.log(4 / 3) * (2 * dice[1] - 1)).exp()  # width / height, from 3/4 to 4/3
    aspect = aspect.clamp(area, 1 / area)  # or the box would be longer than the picture
    height, width = (area / aspect).sqrt(), (area * aspect).sqrt()  # (B,) each
    box = torch.stack([dice[2] * (1 - height), dice[3] * (1 - width), height, width], dim=1)  # (B, 4)
    view = crop_resize(image, box, coins[0] < how.flip)

    chosen = coins[1] < how.jitter
    if how.jitter and any(how.strength):
        shifts = [s * (2 * number - 1) * chosen for s, number in zip(how.strength, dice[4:8], strict=True)]  # (B,) each
        view = jitter_colours(view, 1 + shifts[0], 1 + shifts[1], 1 + shifts[2], shifts[3])
    if how.grey:
        view = torch.where((coins[2] < how.grey)[:, None, None, None], _grey(view), view)
    if how.blur:
        rows = (coins[3] < how.blur).nonzero().flatten()
        sigma = how.sigma[0] + (how.sigma[1] - how.sigma[0]) * dice[8][rows]
        if len(rows):
            view[rows] = blur(view[rows], sigma * image.shape[-1] / BLUR_WIDTH)
    return view


def _grey(image: Tensor) -> Tensor:
    luma = torch.tensor(LUMA, device=image.device, dtype=image.dtype)[:, None, None]
    return (image * luma).sum(1, keepdim=True)  # (B, 1, H, W)


def _pixels(image: Tensor) -> Tensor:
    if not isinstance(image, Tensor):
        raise TypeError(f"image: expected a torch.Tensor, got {type(image).__name__}")
    if image.ndim != 4 or image.shape[1] != 3 or image.numel() == 0:
        raise ValueError(f"image: expected shape (B, 3, H, W) with B >= 1, got {tuple(image.shape)}")
    if image.dtype == torch.uint8:
        return image.float() / 255
    if not image.is_floating_point():
        raise TypeError(f"image: expected uint8 in 0..255 or floats in [0, 1], got {image.dtype}")
    return image.float()
