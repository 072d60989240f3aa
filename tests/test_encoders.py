"""Towers: one interface for all, and pretrained ones equal to the forward of their own library."""

import json

import pytest
import torch
from torch.nn import functional as F

from vlnotes.encoders import (
    HALF,
    IMAGENET,
    OPENAI_CLIP,
    ConvTower,
    Encoded,
    Normalise,
    ResNetTower,
    TextTower,
    ViTTower,
    load_clip,
    load_image_encoder,
    load_text_encoder,
    projection,
)


def pictures(count=3, size=64, seed=0):
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def captions(vocab=50, length=9):
    ids = torch.randint(5, vocab, (3, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids * mask, mask


def tiny_vit(size=32):
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    return ViTModel(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=size,
            patch_size=8,
        )
    ).eval()


def tiny_bert():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=12,
        )
    ).eval()  # fmt: skip


def tiny_clip():
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    part = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return CLIPModel(
        CLIPConfig(
            text_config={
                **part,
                "vocab_size": 50,
                "max_position_embeddings": 12,
                "eos_token_id": 3,
                "bos_token_id": 2,
            },
            vision_config={**part, "image_size": 32, "patch_size": 8},
            projection_dim=10,
        )
    ).eval()


@pytest.mark.parametrize(
    ("tower", "tokens", "grid"),
    [
        (lambda: ConvTower(), 64, (8, 8)),
        (lambda: ConvTower(128, norm="group"), 64, (8, 8)),
        (lambda: ResNetTower("resnet18"), 4, (2, 2)),
        (lambda: ViTTower(), 1 + 64, (8, 8)),
        (lambda: ViTTower(size=32, patch=4, width=32, layers=1, heads=2), 1 + 256, (16, 16)),
    ],
    ids=["conv", "conv-group", "resnet", "vit", "vit-stretched"],
)
def test_every_image_tower_has_the_same_interface(tower, tokens, grid):
    torch.manual_seed(0)
    tower = tower().eval()
    image = pictures()
    out = tower(image)
    assert isinstance(out, Encoded) and out.grid == grid
    assert out.pooled.shape == (3, tower.width) and out.tokens.shape == (3, tokens, tower.token_width)
    torch.testing.assert_close(tower(image / 255).pooled, out.pooled, atol=1e-5, rtol=1e-4)  # float or uint8
    torch.testing.assert_close(tower(image[1:2]).pooled[0], out.pooled[1], atol=1e-5, rtol=1e-4)  # alone or not
    out.pooled.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tower.parameters())


@pytest.mark.parametrize("statistics", [HALF, IMAGENET, OPENAI_CLIP])
def test_normalising_is_that_of_torchvision(statistics):
    from torchvision.transforms.functional import normalize

    image = pictures()
    expected = normalize(image / 255, *statistics)
    torch.testing.assert_close(Normalise(*statistics)(image), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(Normalise(*statistics)(image / 255), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("image", "error", "match"),
    [
        (torch.zeros(3, 64, 64), ValueError, r"shape \(3, 64, 64\); expected \(B, 3, H, W\)"),
        (torch.zeros(2, 1, 64, 64), ValueError, "expected"),
        (torch.zeros(0, 3, 64, 64), ValueError, "B >= 1"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.long), TypeError, "torch.int64"),
        ("picture.png", TypeError, "str"),
        (torch.full((2, 3, 64, 64), 200.0), ValueError, "runs from 200 to 200"),
        (torch.full((2, 3, 64, 64), -2.0), ValueError, "normalises itself"),
        (torch.full((2, 3, 64, 64), torch.nan), ValueError, "runs from nan"),
    ],
)
def test_wrong_pictures_are_named(image, error, match):
    with pytest.raises(error, match=match):
        ConvTower(64)(image)


def test_conv_tower_pools_mean_and_maximum():
    tower = ConvTower(64).eval()
    out = tower(pictures())
    assert torch.allclose(out.pooled, torch.cat([out.tokens.mean(dim=1), out.tokens.amax(dim=1)], dim=1), atol=1e-6)


def test_conv_tower_tokens_run_row_by_row():
    """A change in the upper right corner of the picture must not reach tokens of the lower left."""
    tower = ConvTower(64).eval()
    image = pictures(1) // 2
    moved = image.clone()
    moved[:, :, :8, 56:] += 100
    change = (tower(image).tokens - tower(moved).tokens).abs().sum(dim=-1).view(8, 8)
    assert change[0, 7] > 0 and change[7, 0] == 0 and change[4:, :].sum() == 0 and change[:, :4].sum() == 0


def test_conv_tower_takes_odd_sizes_and_bf16():
    tower = ConvTower(64)
    assert tower(pictures(2, size=50)).grid == (7, 7)
    with torch.autocast("cpu", torch.bfloat16):
        out = tower(pictures(4))
    out.pooled.float().square().mean().backward()
    assert out.pooled.isfinite().all() and tower.layers[0].weight.grad.isfinite().all()


def test_group_norm_does_not_look_at_other_pictures():
    torch.manual_seed(0)
    group, batch = ConvTower(64, "group").train(), ConvTower(64).train()
    image = pictures(4)
    torch.testing.assert_close(group(image).pooled[:2], group(image[:2]).pooled, atol=1e-5, rtol=1e-4)
    assert (batch(image).pooled[:2] - batch(image[:2]).pooled).abs().max() > 0.01


def test_resnet_equals_torchvision(tmp_path):
    from safetensors.torch import save_file
    from torchvision.models import resnet18

    torch.manual_seed(0)
    original = resnet18(weights=None, num_classes=1000).eval()
    torch.save(original.state_dict(), tmp_path / "w.pth")
    save_file(original.state_dict(), tmp_path / "w.safetensors")
    image = pictures(2)
    original.fc = torch.nn.Identity()
    expected = original(Normalise(*IMAGENET)(image))
    for name in ("w.pth", "w.safetensors"):
        out = ResNetTower("resnet18", tmp_path / name).eval()(image)
        torch.testing.assert_close(out.pooled, expected, atol=1e-4, rtol=1e-4)


def test_resnet_weights_without_classifier_are_enough(tmp_path):
    from torchvision.models import resnet18

    state = {k: v for k, v in resnet18(weights=None).state_dict().items() if not k.startswith("fc.")}
    torch.save(state, tmp_path / "backbone.pth")
    tower = ResNetTower("resnet18", tmp_path / "backbone.pth")
    assert torch.equal(tower.layers[0].weight, state["conv1.weight"])


def test_bad_resnet_requests_are_named(tmp_path):
    with pytest.raises(ValueError, match="resnet18.*resnet50"):
        ResNetTower("vit_b_16")
    with pytest.raises(ValueError, match="no weights file"):
        ResNetTower("resnet18", tmp_path / "missing.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold the weights"):
        ResNetTower("resnet18", tmp_path / "other.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="does not hold the weights"):
        ResNetTower("resnet18", tmp_path / "bad.safetensors")


@pytest.mark.parametrize("positions", ["rotary", "learnt"])
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_text_tower_ignores_padding(pool, positions):
    torch.manual_seed(0)
    tower = TextTower(vocab_size=50, width=32, layers=2, heads=2, length=12, pool=pool, positions=positions).eval()
    ids, mask = captions()
    out = tower(ids, mask)
    assert out.pooled.shape == (3, 32) and out.tokens.shape == (3, 9, 32) and out.grid is None
    other = ids.clone()
    other[1, 5:] = 7  # words behind the end of the caption
    torch.testing.assert_close(tower(other, mask).pooled, out.pooled, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(tower(ids[1:2, :5]).pooled, out.pooled[1:2], atol=1e-6, rtol=1e-5)
    expected = out.tokens[1, :5].mean(dim=0) if pool == "mean" else out.tokens[1, 0]
    torch.testing.assert_close(out.pooled[1], expected)


@pytest.mark.parametrize("positions", ["rotary", "learnt"])
def test_towers_use_every_weight(positions):
    tower = TextTower(vocab_size=50, width=32, heads=2, positions=positions)
    assert ViTTower().model.config._attn_implementation == "sdpa"
    ids, mask = captions()
    tower(ids, mask).pooled.sum().backward()
    assert all(p.grad is not None for p in tower.parameters() if p.requires_grad)
    fixed = [name for name, p in tower.named_parameters() if not p.requires_grad]
    assert fixed == (["model.encoder.embed_positions.weight"] if positions == "rotary" else [])


@pytest.mark.parametrize(("positions", "same"), [("rotary", True), ("learnt", False)])
def test_rotary_positions_see_distances_and_not_places(positions, same):
    torch.manual_seed(0)
    tower = TextTower(vocab_size=50, width=32, layers=2, heads=2, length=12, positions=positions).eval()
    for p in tower.parameters():
        if p.requires_grad and p.ndim == 2:
            p.data.normal_(std=0.5)  # so that attention is far from even
    words = torch.tensor([[5, 9, 7, 22, 31]])
    moved = torch.cat([torch.full((1, 4), 3), words], dim=1)  # the same words, four places later
    mask = torch.tensor([[0] * 4 + [1] * 5])
    apart = (tower(moved, mask).tokens[:, 4:] - tower(words).tokens).abs().max()
    assert (apart < 1e-5) == same
    turned = tower(words[:, [0, 2, 1, 3, 4]]).pooled - tower(words).pooled
    assert turned.abs().max() > 1e-2  # either way the order of words counts


def test_bad_texts_are_named():
    tower = TextTower(vocab_size=50, width=32, heads=2, length=12)
    ids, mask = captions()
    with pytest.raises(ValueError, match="ids below 50"):
        tower(ids + 50, mask)
    with pytest.raises(ValueError, match="13 tokens long; this model has 12 positions"):
        tower(torch.ones(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(3, 9\) and attention_mask \(3, 8\)"):
        tower(ids, mask[:, :8])


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: ConvTower(100), "multiple of 64"),
        (lambda: ConvTower(norm="layer"), "'batch' or 'group'"),
        (lambda: ViTTower(size=60), "patch 8 must divide size 60"),
        (lambda: ViTTower(width=30), "heads 4 must divide width 30"),
        (lambda: TextTower(width=30), "heads 4"),
        (lambda: TextTower(pool="max"), "'mean' or 'cls'"),
        (lambda: TextTower(positions="none"), "'rotary' or 'learnt'"),
        (lambda: ViTTower(layers=1)(pictures(1, size=60)), "multiples of the patch size 8 x 8"),
    ],
)
def test_bad_towers_are_named(build, match):
    with pytest.raises(ValueError, match=match):
        build()


def test_projection_is_a_linear_map():
    layer = projection(7, 3)
    x = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(2 * x), 2 * layer(x)) and layer(x).shape == (2, 3)


def test_pretrained_vit_equals_its_own_forward(tmp_path):
    model = tiny_vit()
    model.save_pretrained(tmp_path)
    image = pictures(2, size=32)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    tower = load_image_encoder(tmp_path)
    assert not tower.training and tower.width == 16
    pixels = Normalise(*statistics.values())(image)
    expected = model(pixel_values=pixels).last_hidden_state
    out = tower(image)
    torch.testing.assert_close(out.tokens, expected)
    torch.testing.assert_close(out.pooled, expected[:, 0])
    assert out.grid == (4, 4)


def test_pretrained_vit_is_stretched_to_larger_pictures(tmp_path):
    model = tiny_vit()
    model.save_pretrained(tmp_path)
    image = pictures(2, size=64)[..., :48]
    out = load_image_encoder(tmp_path)(image)
    expected = model(pixel_values=Normalise()(image), interpolate_pos_encoding=True).last_hidden_state
    assert out.grid == (8, 6) and out.tokens.shape == (2, 49, 16)
    torch.testing.assert_close(out.tokens, expected)


def test_extra_tokens_stay_out(tmp_path):
    """DeiT has a distillation token between the class token and the patches."""
    from transformers import DeiTConfig, DeiTModel

    model = DeiTModel(
        DeiTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=32,
            patch_size=8,
        )
    ).eval()
    model.save_pretrained(tmp_path)
    image = pictures(2, size=32)
    hidden = model(pixel_values=Normalise(*IMAGENET)(image)).last_hidden_state
    out = load_image_encoder(tmp_path)(image)
    torch.testing.assert_close(out.tokens, torch.cat([hidden[:, :1], hidden[:, 2:]], dim=1))


def test_pretrained_resnet_of_transformers_gives_a_map(tmp_path):
    from transformers import ResNetConfig, ResNetModel

    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")).eval()
    model.save_pretrained(tmp_path)
    image = pictures(2, size=32)
    expected = model(pixel_values=Normalise(*IMAGENET)(image))
    out = load_image_encoder(tmp_path)(image)
    assert out.grid == tuple(expected.last_hidden_state.shape[2:])
    torch.testing.assert_close(out.pooled, expected.pooler_output.flatten(1))
    torch.testing.assert_close(out.tokens, expected.last_hidden_state.flatten(2).mT)


@pytest.mark.parametrize("pool", ["mean", "cls", "own"])
def test_pretrained_bert_equals_its_own_forward(tmp_path, pool):
    model = tiny_bert()
    model.save_pretrained(tmp_path)
    ids, mask = captions()
    expected = model(input_ids=ids, attention_mask=mask)
    tower = load_text_encoder(tmp_path, pool)
    out = tower(ids, mask)
    torch.testing.assert_close(out.tokens, expected.last_hidden_state)
    row = expected.last_hidden_state[1]
    pooled = {"mean": row[:5].mean(dim=0), "cls": row[0], "own": expected.pooler_output[1]}[pool]
    torch.testing.assert_close(out.pooled[1], pooled)


def test_pretrained_clip_equals_its_own_forward(tmp_path):
    from transformers import CLIPImageProcessor

    model = tiny_clip()
    model.save_pretrained(tmp_path)
    CLIPImageProcessor(image_mean=[0.3, 0.4, 0.5]).save_pretrained(tmp_path)
    image, (ids, mask) = pictures(3, size=32), captions()
    ids[:, 4] = 3  # the end-of-text token, not at the end of the row
    pixels = Normalise((0.3, 0.4, 0.5), OPENAI_CLIP[1])(image)
    expected = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
    clip = load_clip(tmp_path)
    assert clip.width == 10 and not clip.training
    torch.testing.assert_close(clip.image_features(image), expected.image_embeds)
    torch.testing.assert_close(clip.text_features(ids, mask), expected.text_embeds)
    logits = clip.logit_scale.exp() * clip.image_features(image) @ clip.text_features(ids, mask).T
    torch.testing.assert_close(logits, expected.logits_per_image)


def test_the_halves_of_a_clip_are_towers(tmp_path):
    model = tiny_clip()
    model.save_pretrained(tmp_path)
    image, (ids, mask) = pictures(3, size=32), captions()
    clip = load_clip(tmp_path)
    images, texts = load_image_encoder(tmp_path)(image), load_text_encoder(tmp_path)(ids, mask)
    assert images.grid == (4, 4) and images.tokens.shape == (3, 17, 16) and texts.tokens.shape == (3, 9, 16)
    torch.testing.assert_close(F.normalize(model.visual_projection(images.pooled), dim=-1), clip.image_features(image))
    torch.testing.assert_close(F.normalize(model.text_projection(texts.pooled), dim=-1), clip.text_features(ids, mask))


def test_a_pretrained_tower_can_be_trained(tmp_path):
    tiny_vit().save_pretrained(tmp_path)
    tower = load_image_encoder(tmp_path).train()
    tower(pictures(2, size=32)).pooled.sum().backward()
    assert all(p.grad is not None for name, p in tower.named_parameters() if "pooler" not in name)


@pytest.mark.parametrize("load", [load_image_encoder, load_text_encoder, load_clip])
def test_bad_folders_are_named(tmp_path, load):
    with pytest.raises(
        ValueError, match="no model folder 'openai/clip-vit-base-patch32'.*nothing is downloaded.*into one"
    ):
        load("openai/clip-vit-base-patch32")
    with pytest.raises(ValueError, match="no config.json.*nothing"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "unheard"}')
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path)


def test_wrong_kinds_of_models_are_named(tmp_path):
    tiny_vit().save_pretrained(tmp_path / "vit")
    tiny_bert().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="BertModel, which takes input_ids"):
        load_image_encoder(tmp_path / "bert")
    with pytest.raises(ValueError, match="ViTModel, which takes pixel_values"):
        load_text_encoder(tmp_path / "vit")
    with pytest.raises(ValueError, match="ViTModel; expected a CLIPModel"):
        load_clip(tmp_path / "vit")


def test_missing_weights_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_vit().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = {name: value.clone() for name, value in load_file(file).items() if "layernorm.weight" not in name}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights of ViTModel.*layernorm.weight"):
        load_image_encoder(tmp_path)


def test_a_missing_pooler_matters_only_to_who_asks_for_it(tmp_path):
    from transformers import BertModel

    model = tiny_bert()
    BertModel(model.config, add_pooling_layer=False).save_pretrained(tmp_path)
    assert load_text_encoder(tmp_path).pool == "mean"
    with pytest.raises(ValueError, match="lacks 2 weights of BertModel.*pooler"):
        load_text_encoder(tmp_path, "own")


def test_broken_preprocessor_is_named(tmp_path):
    tiny_vit().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="preprocessor_config.json is no JSON"):
        load_image_encoder(tmp_path)


@pytest.mark.parametrize(
    ("settings", "mean"),
    [
        ({"do_normalize": False, "image_mean": [0.1] * 3, "image_std": [1] * 3}, 0.0),
        ({"image_processor": {"image_mean": [0.1] * 3, "image_std": [1] * 3}}, 0.1),
        ({}, 0.5),
    ],
)
def test_where_mean_and_deviation_come_from(tmp_path, settings, mean):
    tiny_vit().save_pretrained(tmp_path)
    name = "processor_config.json" if "image_processor" in settings else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps(settings))
    assert load_image_encoder(tmp_path).normalise.mean.flatten().tolist() == pytest.approx([mean] * 3)
