"""Grad-CAM of a batch beside one forward and one backward pass to the layer, and beside pytorch-grad-cam.

Both make the maps of 32 pictures of 64 px. pytorch-grad-cam also resizes them, and its maps are checked against ours.
"""

import torch
from measure import Row, installed, interleaved_ms
from torch import nn
from torchvision.models import resnet18

from vlnotes.gradcam import gradcam, gradients, recording, upsample, word_maps_of

BATCH, SIZE, CLASSES = 32, 64, 1000
GRID, LENGTH, WIDTH, LAYERS = (8, 8), 24, 128, 3


def conv():
    torch.manual_seed(0)
    model = resnet18(num_classes=CLASSES).eval()
    pictures = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return model, pictures, (torch.arange(BATCH), torch.arange(BATCH) % CLASSES)


def conv_maps(model, pictures, target):
    with recording(model.layer4) as seen:
        score = model(pictures)[target]
    return gradcam(seen[0].detach(), *gradients(score, seen))


def conv_floor(model, pictures, target):
    """What cannot be saved: forward, and backward to the layer."""
    kept = []
    handle = model.layer4.register_forward_hook(lambda module, args, output: kept.append(output))
    score = model(pictures)[target]
    handle.remove()
    return torch.autograd.grad(score.sum(), kept)


def peer_maps(model, pictures, target):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    aims = [ClassifierOutputTarget(int(label)) for label in target[1]]
    with GradCAM(model=model, target_layers=[model.layer4]) as cam:
        return cam(input_tensor=pictures, targets=aims)


def farthest(maps, theirs):
    """The largest difference after their order of work: stretch to [0, 1], then resize."""
    low = maps.amin((1, 2), keepdim=True)
    ours = upsample((maps - low) / (maps - low).amax((1, 2), keepdim=True).clamp(min=1e-7), SIZE)
    return float((ours - torch.from_numpy(theirs)).abs().max())


class Fusion(nn.Module):
    """A small BERT with cross-attention, and the logit "belongs together"."""

    def __init__(self):
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(
            vocab_size=200,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            intermediate_size=4 * WIDTH,
            is_decoder=True,
            add_cross_attention=True,
            attn_implementation="eager",
        )
        self.bert, self.head = BertModel(config, add_pooling_layer=False), nn.Linear(WIDTH, 1)

    def forward(self, ids, mask, image):
        output = self.bert(
            ids, attention_mask=mask, encoder_hidden_states=image, output_attentions=True, use_cache=False
        )
        return self.head(output.last_hidden_state[:, -1])[:, 0], output.cross_attentions


def fusion():
    torch.manual_seed(0)
    dice = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 200, (BATCH, LENGTH), generator=dice)
    image = torch.randn(BATCH, 1 + GRID[0] * GRID[1], WIDTH, generator=dice)
    return Fusion().eval(), (ids, torch.ones_like(ids), image)


def fusion_floor(model, inputs, layer):
    score, attentions = model(*inputs)
    return torch.autograd.grad(score.sum(), attentions[layer])


def rows():
    inputs = conv()
    what, floor, goal = (
        f"Grad-CAM, resnet18 layer4, {BATCH} at {SIZE} px",
        "forward + backward to it",
        "goal: ratio 1.15",
    )
    ours, least = interleaved_ms(lambda: conv_maps(*inputs), lambda: conv_floor(*inputs), repeat=15)
    yield Row(what, ours, floor, least, note=goal)
    if installed("pytorch_grad_cam"):
        away = farthest(conv_maps(*inputs), peer_maps(*inputs))
        ours, theirs = interleaved_ms(lambda: conv_maps(*inputs), lambda: peer_maps(*inputs), repeat=7)
        yield Row(what, ours, "pytorch-grad-cam", theirs, note=f"goal: ratio 0.5; maps differ by {away:.0e} at most")
    else:
        yield Row(what, ours, "pytorch-grad-cam", note="grad-cam not installed")
    model, given = fusion()
    what = f"Grad-CAM on cross-attention, {BATCH} pairs, {LENGTH} tokens, {GRID[0]} x {GRID[1]}"
    for layer in (0, LAYERS - 1):
        ours, least = interleaved_ms(
            lambda k=layer: word_maps_of(lambda: model(*given), GRID, given[1], layers=[k]),
            lambda k=layer: fusion_floor(model, given, k),
            repeat=25,
        )
        yield Row(f"{what}, layer {layer}", ours, floor, least, note=goal)
