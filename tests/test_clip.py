"""CLIP: shapes, the loss it claims, gradients everywhere, saving, clear errors."""

import math

import pytest
import torch

from vlnotes.clip import CLIP, encode_images, encode_texts
from vlnotes.contrastive import clip_loss


def make_batch(count=6, seed=0):
    dice = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 50, (count, 12), generator=dice)
    mask = torch.ones_like(ids)
    mask[:, 8:] = 0
    image = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=dice)
    return {"image": image, "input_ids": ids, "attention_mask": mask, "ids": torch.arange(count)}


def test_the_loss_is_clip_loss_of_its_own_features():
    model, batch = CLIP.tiny(50).eval(), make_batch()
    image, text = (
        model.image_features(batch["image"]),
        model.text_features(batch["input_ids"], batch["attention_mask"]),
    )
    assert torch.allclose(image.norm(dim=1), torch.ones(6)) and torch.allclose(text.norm(dim=1), torch.ones(6))
    expected = clip_loss(image, text, temperature=0.07)
    assert torch.allclose(model(batch)["loss"], expected, atol=1e-6)
    assert torch.allclose(model.temperature, torch.tensor(0.07))


def test_every_weight_learns():
    model = CLIP.tiny(50)
    model(make_batch())["loss"].backward()
    learning = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, grad in learning if grad is None or not grad.abs().sum() > 0] == []
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
        "text_encoder.model.encoder.embed_positions.weight"  # the angles of rotary positions
    ]


def test_padding_changes_nothing():
    model, batch = CLIP.tiny(50).eval(), make_batch()
    other = batch["input_ids"].clone()
    other[:, 8:] = 7
    same = model.text_features(other, batch["attention_mask"])
    assert torch.allclose(same, model.text_features(batch["input_ids"], batch["attention_mask"]), atol=1e-6)


def test_the_temperature_never_falls_below_a_hundredth():
    model = CLIP.tiny(50)
    with torch.no_grad():
        model.logit_scale.fill_(10.0)
    assert math.isclose(float(model(make_batch())["temperature"]), 0.01, rel_tol=1e-5)


def test_tiny_is_the_same_for_the_same_seed_and_leaves_the_global_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b, c = CLIP.tiny(50, seed=1), CLIP.tiny(50, seed=1), CLIP.tiny(50, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.image_projection.weight, c.image_projection.weight)


@pytest.mark.parametrize("image", ["conv", "resnet18", "vit"])
def test_saved_and_loaded_features_are_equal(tmp_path, image):
    model = CLIP.tiny(50, image=image).eval()
    batch = make_batch(2)
    size = 64 if image == "vit" else 32
    pictures = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    again = CLIP.load(model.save(tmp_path, seconds=3))
    assert torch.equal(again.image_features(pictures), model.image_features(pictures))
    assert torch.equal(
        encode_texts(again, batch), model.text_features(batch["input_ids"], batch["attention_mask"]).detach()
    )


def test_encoding_in_parts_gives_the_same_and_keeps_the_mode():
    model, batch = CLIP.tiny(50), make_batch(7)
    model.train()
    parts = encode_images(model, batch["image"], batch_size=3)
    assert model.training and not parts.requires_grad
    assert torch.allclose(parts, model.eval().image_features(batch["image"]).detach(), atol=1e-6)


def test_errors_say_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match="must be one of .*conv.*not 'cnn'"):
        CLIP.tiny(image="cnn")
    with pytest.raises(ValueError, match="temperature must be at least 0.01, not 0"):
        CLIP(torch.nn.Identity(), torch.nn.Identity(), temperature=0)
    with pytest.raises(ValueError, match="no model.json"):
        CLIP.load(tmp_path)
    with pytest.raises(ValueError, match="batch of one pair has no negatives"):
        CLIP.tiny(50)(make_batch(1))


def test_a_damaged_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="save works on models from CLIP.tiny"):
        plain = CLIP.tiny(50)
        del plain.built
        plain.save(tmp_path)
    CLIP.tiny(50).save(tmp_path)
    weights, told = tmp_path / "weights.safetensors", tmp_path / "model.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="does not hold a whole CLIP as CLIP.save wrote it"):
        CLIP.load(tmp_path)
    weights.write_bytes(whole)
    told.write_text(told.read_text().replace('"clip"', '"moco"'))
    with pytest.raises(ValueError, match="describes a 'moco', not a 'clip'"):
        CLIP.load(tmp_path)
    for text in ("{", "[]", ""):
        told.write_text(text)
        with pytest.raises(ValueError, match="model.json is not what CLIP.save wrote"):
            CLIP.load(tmp_path)
