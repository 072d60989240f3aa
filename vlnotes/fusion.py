"""The encoder where words look at pictures: transformers' BERT blocks with cross-attention, every word sees every word.

Text tokens go in and come out; in each block they first look at each other, then at the image tokens. The attention
that they paid can be had, in the graph, for `vlnotes.gradcam`. The blocks are RoFormer's, a BERT with rotary positions,
so that a word can tell its neighbours from words far off.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Fused(NamedTuple):
    """What a fusion encoder returns.

    `tokens` (B, L, W), the first one sums up the pair. `attentions`: for each block (B, heads, L, image tokens), the
    attention of words to the picture, rows sum to 1; empty unless asked for.
    """

    tokens: Tensor
    attentions: tuple[Tensor, ...] = ()


class FusionEncoder(nn.Module):
    """BERT blocks with cross-attention in each, on text tokens that have been embedded before.

    Words look at words by distance (rotary positions). For looking at the picture, keys begin as a copy of the queries:
    where words and picture are aligned, a word first looks at what is like itself, and need not find that out.

    Args:
        width: W of the text tokens and the image tokens.
        layers: blocks.
        heads: attention heads; they divide `width`.
        hidden: width of the feed-forward part; None for 4 W.
        dropout: share of activations dropped in training; 0 learns fastest in short runs.
        causal: a word sees only the words before it, as a decoder that writes answers needs.

    Raises:
        ValueError: a width that the heads do not divide, an odd number of coordinates a head, no layers.

    Equation: ALBEF (Li et al. 2021), section 3.1, the multimodal encoder.
    """

    def __init__(
        self,
        width: int = 128,
        layers: int = 3,
        heads: int = 4,
        hidden: int | None = None,
        dropout: float = 0.0,
        causal: bool = False,
    ):
        from transformers import RoFormerConfig
        from transformers.models.roformer.modeling_roformer import RoFormerLayer, RoFormerSinusoidalPositionalEmbedding

        super().__init__()
        if width % heads or layers < 1:
            raise ValueError(f"width {width} must be a multiple of heads {heads}, and layers {layers} at least 1")
        self.width, self.causal = width, causal
        self.config = RoFormerConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=hidden or 4 * width,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            is_decoder=True,  # or transformers builds no cross-attention; the mask below decides who sees whom
            add_cross_attention=True,
        )
        self.layers = nn.ModuleList(RoFormerLayer(self.config, layer_idx=index) for index in range(layers))
        angles = RoFormerSinusoidalPositionalEmbedding(512, width // heads).create_weight()
        self.register_buffer("angles", angles, persistent=False)  # (most tokens, W / heads)
        for layer in self.layers:
            look = layer.crossattention.self
            nn.init.normal_(look.query.weight, std=width**-0.5)
            look.key.load_state_dict(look.query.state_dict())

    def forward(
        self,
        text_tokens: Tensor,
        attention_mask: Tensor,
        image_tokens: Tensor,
        image_mask: Tensor | None = None,
        attentions: bool = False,
    ) -> Fused:
        """Let words look at words, then at the picture, block by block.

        Args:
            text_tokens: (B, L, W) float.
            attention_mask: (B, L), 1 on tokens and 0 on padding.
            image_tokens: (B, P, W) float, one row of them a text; anything that words may look at.
            image_mask: (B, P), 1 on what may be looked at; None: all.
            attentions: also return what each block paid attention to, in the graph.

        Returns:
            `Fused`.

        Raises:
            ValueError: shapes that do not fit.
        """
        batch, length, width = text_tokens.shape
        if attention_mask.shape != (batch, length):
            raise ValueError(
                f"attention_mask: expected one number a text token, shape {(batch, length)}, "
                f"got {tuple(attention_mask.shape)}"
            )
        if length > len(self.angles):
            raise ValueError(f"text_tokens: {length} a text; this encoder has places for {len(self.angles)}")
        if len(image_tokens) != batch or image_tokens.shape[-1] != width or image_tokens.ndim != 3:
            raise ValueError(
                f"text_tokens {tuple(text_tokens.shape)} and image_tokens {tuple(image_tokens.shape)}: "
                "expected (B, L, W) and (B, P, W) with one B and one W"
            )
        kept = []
        for layer in self.layers:
            text_tokens, looked = self.run(layer, text_tokens, attention_mask, image_tokens, image_mask)
            kept.append(looked)
        return Fused(text_tokens, tuple(kept) if attentions else ())

    def run(
        self,
        layer: nn.Module,
        text_tokens: Tensor,
        attention_mask: Tensor,
        image_tokens: Tensor,
        image_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One block: words look at words, then at the picture.

        Args:
            layer: one of `layers`.
            text_tokens: (B, L, W).
            attention_mask: (B, L).
            image_tokens: (B, P, W).
            image_mask: (B, P), or None.

        Returns:
            (B, L, W), and the attention of words to the picture (B, heads, L, P).
        """
        words = _open(attention_mask, text_tokens.dtype)  # (B, 1, 1, L)
        if self.causal:
            length = text_tokens.shape[1]
            later = torch.ones(length, length, dtype=torch.bool, device=text_tokens.device).triu(1)
            words = words.masked_fill(later, torch.finfo(text_tokens.dtype).min)  # (B, 1, L, L)
        picture = None if image_mask is None else _open(image_mask, text_tokens.dtype)
        places = self.angles[: text_tokens.shape[1]][None, None]  # (1, 1, L, W / heads)
        tokens, _, looked = layer(
            text_tokens, words, places, encoder_hidden_states=image_tokens, encoder_attention_mask=picture
        )
        return tokens, looked


def _open(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where one may look and a huge negative number elsewhere, to be added to logits, (B, 1, 1, L)."""
    return (1 - mask[:, None, None].to(dtype)) * torch.finfo(dtype).min
