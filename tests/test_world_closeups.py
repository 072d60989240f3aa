"""Close-ups: the right window of the right picture, and labels that fit it."""

import pytest
import torch

from vlnotes import world


@pytest.mark.parametrize("domain", ["paper", "neon", "digits"])
def test_a_close_up_is_a_window_of_the_drawing_around_its_thing(domain):
    scenes = world.World(domain).single(12)
    pictures = world.draw(scenes, 64)
    for scene, near, whole in zip(scenes, world.close_ups(scenes, 32), pictures, strict=True):
        thing = scene.objects[0]
        top, left = (min(max(round(at - 16), 0), 32) for at in (thing.y, thing.x))
        shifted = [whole[:, t : t + 32, left_ : left_ + 32]
                   for t in (top, max(top - 1, 0), min(top + 1, 32))
                   for left_ in (left, max(left - 1, 0), min(left + 1, 32))]  # fmt: skip
        assert any(torch.equal(near, window) for window in shifted)  # a half may be rounded either way


def test_the_thing_is_whole_inside_the_window():
    scenes = world.World("paper").single(50)
    for scene in scenes:
        thing, (left, top, right, bottom) = scene.objects[0], world.boxes(scene, 64)[0].tolist()
        x, y = (min(max(round(at - 16), 0), 32) for at in (thing.x, thing.y))
        assert x - 1 <= left and right <= x + 33 and y - 1 <= top and bottom <= y + 33


def test_a_close_up_is_the_same_alone_and_in_a_batch():
    scenes = world.World("garden").single(5)
    together = world.close_ups(scenes, 24)
    assert together.shape == (5, 3, 24, 24) and together.dtype == torch.uint8
    alone = torch.cat([world.close_ups([scene], 24) for scene in scenes])
    assert (together.int() - alone.int()).abs().max() <= 1


@pytest.mark.parametrize("factor", world.FACTORS)
def test_labels_name_what_is_shown(factor):
    scenes = world.World("harbour").single(40)
    labels, names = world.factor_labels(scenes, factor)
    assert [names[label] for label in labels] == [getattr(scene.objects[0], factor) for scene in scenes]


def test_bad_calls_are_refused():
    paper, neon = world.World("paper").single(1), world.World("neon").single(1)
    with pytest.raises(ValueError, match="factor must be one of"):
        world.factor_labels(paper, "place")
    with pytest.raises(ValueError, match="one domain"):
        world.factor_labels(paper + neon, "shape")
    with pytest.raises(ValueError, match="8 to 256"):
        world.close_ups(paper, 4)
    with pytest.raises(ValueError, match="at least one scene"):
        world.close_ups([], 32)
