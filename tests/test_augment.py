"""The views of a picture: each change against torchvision, picture by picture, and what is drawn."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from vlnotes.augment import V1, V2, Augmentation, augment, blur, crop_resize, jitter_colours

STILL = Augmentation(smallest=1.0, flip=0.0, jitter=0.0, grey=0.0, blur=0.0)


def pictures(count=5, size=20, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


def no_change(count):
    return [torch.ones(count), torch.ones(count), torch.ones(count), torch.zeros(count)]


@pytest.mark.parametrize(
    ("place", "values", "theirs"),
    [
        (0, [0.6, 0.9, 1.0, 1.2, 1.4], tv.adjust_brightness),
        (1, [0.6, 0.9, 1.0, 1.2, 1.4], tv.adjust_contrast),
        (2, [0.0, 0.6, 1.0, 1.2, 1.4], tv.adjust_saturation),
        (3, [-0.4, -0.1, 0.0, 0.1, 0.4], tv.adjust_hue),
    ],
)
def test_every_picture_is_shifted_as_torchvision_shifts_one(place, values, theirs):
    image, numbers = pictures(), no_change(5)
    image[0] = image[0, :1]  # a grey one, whose hue is undefined
    numbers[place] = torch.tensor(values)
    expected = torch.stack([theirs(one, value) for one, value in zip(image, values, strict=True)])
    torch.testing.assert_close(jitter_colours(image, *numbers), expected, atol=2e-4, rtol=0)


def test_blur_is_torchvisions_gaussian():
    image, sigma = pictures(), torch.tensor([0.2, 0.5, 1.0, 1.5, 2.0])
    expected = torch.stack([tv.gaussian_blur(one, 13, float(s)) for one, s in zip(image, sigma, strict=True)])
    torch.testing.assert_close(blur(image, sigma), expected, atol=1e-5, rtol=0)


def test_a_crop_is_the_box_and_a_flip_the_mirror():
    image = pictures()
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(5, 1)
    torch.testing.assert_close(crop_resize(image, whole), image, atol=1e-5, rtol=0)
    flip = torch.tensor([True, False, True, False, False])
    expected = torch.where(flip[:, None, None, None], image.flip(3), image)
    torch.testing.assert_close(crop_resize(image, whole, flip), expected, atol=1e-5, rtol=0)
    box = torch.tensor([5, 10, 10, 5]) / 20  # top, left, height, width in pixels
    cut = crop_resize(image, box.repeat(5, 1))
    expected = tv.resize(image[:, :, 5:15, 10:15], [20, 20], antialias=False)
    inner = (slice(None), slice(None), slice(2, -2), slice(3, -3))  # at the rim, ours sees the neighbours outside
    torch.testing.assert_close(cut[inner], expected[inner], atol=1e-5, rtol=0)


def test_nothing_asked_for_changes_nothing():
    image = (pictures() * 255).to(torch.uint8)
    torch.testing.assert_close(augment(image, STILL, generator=dice()), image / 255, atol=1e-5, rtol=0)


def test_views_are_in_range_differ_and_follow_the_seed():
    image = pictures(64)
    before = torch.get_rng_state()
    first, again, other = (augment(image, V2, generator=dice(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == image.shape and first.min() >= 0 and first.max() <= 1
    assert torch.equal(before, torch.get_rng_state())
    same = augment(image[:1].expand(64, -1, -1, -1), V2, generator=dice())
    assert len(same.flatten(1).unique(dim=0)) == 64  # every picture has numbers of its own


def test_the_views_are_made_in_float32_whatever_the_model_runs_in():
    image = pictures(16)
    expected = augment(image, V2, generator=dice())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(image, V2, generator=dice()), expected)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_shares_of_grey_flipped_and_blurred_pictures(share):
    image = pictures(1).expand(2000, -1, -1, -1)
    grey = augment(image, Augmentation(1.0, 0.0, 0.0, grey=share, blur=0.0), generator=dice())
    assert float((grey.std(1).amax((1, 2)) < 1e-5).float().mean()) == pytest.approx(share, abs=0.03)
    flipped = augment(image, Augmentation(1.0, share, 0.0, grey=0.0, blur=0.0), generator=dice())
    found = (flipped - image.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert float(found.float().mean()) == pytest.approx(share, abs=0.03)
    sigma = (100.0, 100.0)  # 9 pixels at this size
    blurred = augment(image, Augmentation(1.0, 0.0, 0.0, grey=0.0, blur=share, sigma=sigma), generator=dice())
    found = blurred.std((1, 2, 3)) < 0.5 * image.std((1, 2, 3))
    assert float(found.float().mean()) == pytest.approx(share, abs=0.03)


def test_crops_keep_the_share_of_the_area_that_they_should():
    ramp = torch.linspace(0, 1, 32).view(1, 1, 1, 32).expand(500, 3, 32, 32)
    view = augment(ramp, Augmentation(0.25, 0.0, 0.0, grey=0.0, blur=0.0), generator=dice())
    width = view[:, 0, 0, -1] - view[:, 0, 0, 0]
    assert float(width.min()) > 0.5 * (3 / 4) ** 0.5 - 0.05  # a quarter of the area, three quarters as wide as high
    assert 0.9 < float(width.max()) <= 1.0 + 1e-5


def test_v1_turns_hues_far_and_never_blurs_v2_the_other_way_round():
    assert V1 == Augmentation(0.2, 0.5, 1.0, (0.4, 0.4, 0.4, 0.4), 0.2, 0.0)
    assert V2 == Augmentation(0.2, 0.5, 0.8, (0.4, 0.4, 0.4, 0.1), 0.2, 0.5, (0.1, 2.0))


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match=r"grey: expected a probability in \[0, 1\], got 2"):
        Augmentation(grey=2)
    with pytest.raises(ValueError, match=r"smallest: expected a share of the area in \(0, 1\], got 0"):
        Augmentation(smallest=0)
    with pytest.raises(ValueError, match="the last at most 0.5"):
        Augmentation(strength=(0.4, 0.4, 0.4, 0.6))
    with pytest.raises(ValueError, match="both above 0, got"):
        Augmentation(sigma=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"expected shape \(B, 3, H, W\) with B >= 1, got \(3, 8, 8\)"):
        augment(torch.zeros(3, 8, 8), generator=dice())
    with pytest.raises(TypeError, match="uint8 in 0..255 or floats"):
        augment(torch.zeros(1, 3, 8, 8, dtype=torch.int64), generator=dice())
    with pytest.raises(TypeError, match="expected a torch.Tensor, got list"):
        augment([1], generator=dice())
    with pytest.raises(ValueError, match=r"one a picture, \(5, 4\).*got \(1, 4\) and None"):
        crop_resize(pictures(), torch.zeros(1, 4))
