"""What a model of pictures and words gets right on the picture world, where every word's truth and place is known.

Three questions: can it tell a sentence from its one-edit neighbour (binding), can it say a hidden word with the picture
at hand, and does it look at the thing that a word speaks of.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlnotes import gradcam
from vlnotes.albef import ALBEF
from vlnotes.metrics import winoground_scores
from vlnotes.text import IGNORE, encode
from vlnotes.world import (
    EDITS,
    Caption,
    Grounded,
    Scene,
    captions,
    draw,
    grounded_words,
    masks,
    winoground,
    word_regions,
)
from vlnotes.world.captions import article
from vlnotes.world.domains import CONCEPTS, FILLERS, domain_named

ROLES = ("noun", "colour", "texture", "size", "relation")
ATTRIBUTE = {"noun": "shape", "colour": "colour", "texture": "texture", "size": "size"}


@torch.no_grad()
def binding_scores(
    model: nn.Module,
    tokenizer,
    scenes: Sequence[Scene],
    kinds: Sequence[str] = EDITS,
    *,
    size: int = 64,
    length: int = 40,
    most: int = 200,
) -> dict[str, dict[str, dict[str, float]]]:
    """Can it tell two pictures and two sentences apart that differ in one edit?

    Args:
        model: a `CLIP` or an `ALBEF`, used in eval mode.
        tokenizer: the one that it learnt with.
        scenes: where to look for neighbours, `World.scenes(..., neighbours=False)`.
        kinds: of edits.
        size: pixels a side.
        length: L, most tokens a caption.
        most: items a kind.

    Returns:
        "itc" (cosine), and for an ALBEF "itm" (logit) -> kind -> {"choice", "text", "image", "group"}: shares in
        [0, 1]. choice: a picture prefers its own sentence (chance 1/2); the others as `winoground_scores` (1/4, 1/4,
        1/6). Kinds that none of the scenes has are missing.
    """
    was_training = model.training
    model.eval()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind in kinds:
        items = winoground(scenes, kind)[:most]
        if not items:
            continue
        pictures = [draw([item[2 * p] for item in items], size) for p in (0, 1)]
        texts = [encode(tokenizer, [item[2 * t + 1].text for item in items], length) for t in (0, 1)]
        for way, score in _ways(model).items():
            table = torch.stack(
                [torch.stack([score(pictures[p], texts[t]) for t in (0, 1)], 1) for p in (0, 1)], 1
            )  # (n, 2, 2): item, picture, sentence
            own, other = table.diagonal(dim1=1, dim2=2), table.flip(2).diagonal(dim1=1, dim2=2)  # (n, 2)
            choice = ((own > other).double() + (own == other).double() / 2).mean()
            found.setdefault(way, {})[kind] = {"choice": float(choice), **winoground_scores(table)}
    model.train(was_training)
    return found


def _ways(model: nn.Module) -> dict:
    """Ways to score picture i with text i, (B,)."""
    device = next(model.parameters()).device

    def cosine(image: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        ids, mask = tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
        return (model.image_features(image.to(device)) * model.text_features(ids, mask)).sum(1).cpu()

    def logit(image: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        ids, mask = tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
        seen, read = model.student.see(image.to(device)), model.student.read(ids, mask)
        return model.match(seen.tokens, read.tokens, mask)[:, 1].cpu()

    return {"itc": cosine} | ({"itm": logit} if isinstance(model, ALBEF) else {})


@torch.no_grad()
def word_scores(
    model: ALBEF,
    tokenizer,
    scenes: Sequence[Scene],
    roles: Sequence[str] = ("colour", "noun", "texture", "size"),
    *,
    kind: str = "full",
    size: int = 64,
    length: int = 40,
) -> dict[str, dict[str, float]]:
    """Hide one word of a caption at a time: can it be said with the picture, and with another one's?

    Any synonym counts, since the picture does not tell which word was written.

    Args:
        model: an `ALBEF`, used in eval mode.
        tokenizer: the one that it learnt with.
        scenes: N scenes, at least two.
        roles: of the words to hide; the first word of each role in each caption is. Of a "relation" that word is
            hidden which tells ("left" of "to the left of"); captions of kind "rel" have one.
        kind: of captions.
        size: pixels a side.
        length: L, most tokens a caption.

    Returns:
        role -> {"true": share right with the own picture, "shuffled": with the next scene's, "words": how many}.

    Raises:
        ValueError: less than two scenes.
    """
    if len(scenes) < 2:
        raise ValueError(f"{len(scenes)} scenes; expected 2 or more, one picture is to be swapped for another")
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    said = [_said(scene, kind) for scene in scenes]
    tokens = encode(tokenizer, [caption.text for caption in said], length)
    offsets = _offsets(tokenizer, said, length)
    image_tokens = model.student.see(draw(list(scenes), size).to(device)).tokens
    found = {}
    for role in roles:
        ids, labels, right = tokens["input_ids"].clone(), torch.full_like(tokens["input_ids"], IGNORE), []
        for row, (scene, caption) in enumerate(zip(scenes, said, strict=True)):
            word = next(iter(grounded_words(scene, caption, (role,))), None)
            if word is None:
                continue
            place, as_good = _telling(scene, word)
            at = gradcam.span_tokens(offsets[row : row + 1], torch.zeros(1, dtype=torch.long), [place])[0].nonzero()
            if len(at) != 1:  # cut off, or not one token
                continue
            at = int(at[0, 0])
            labels[row, at], ids[row, at] = ids[row, at], tokenizer.mask_token_id
            right.append(set(tokenizer.convert_tokens_to_ids(as_good)))
        if not right:
            continue
        shares = {}
        for name, order in (("true", torch.arange(len(scenes))), ("shuffled", torch.arange(len(scenes)).roll(1))):
            logits = model.student.hidden_words(
                ids.to(device), tokens["attention_mask"].to(device), image_tokens[order.to(device)], labels.to(device)
            )
            guesses = logits.argmax(1).tolist()
            shares[name] = sum(guess in words for guess, words in zip(guesses, right, strict=True)) / len(right)
        found[role] = {**shares, "words": len(right)}
    model.train(was_training)
    return found


def pointing_scores(
    model: ALBEF,
    tokenizer,
    scenes: Sequence[Scene],
    roles: Sequence[str] = ROLES,
    *,
    kind: str = "full",
    size: int = 64,
    length: int = 40,
    batch_size: int = 64,
) -> list[dict]:
    """Does a word look at the thing that it speaks of? Grad-CAM of every fusion block, scored against the masks.

    Args:
        model: an `ALBEF`, used in eval mode.
        tokenizer: the one that it learnt with.
        scenes: N scenes.
        roles: of the words.
        kind: of captions.
        size: pixels a side.
        length: L, most tokens a caption.
        batch_size: scenes at a time.

    Returns:
        One dict a role and layer: role, layer, count, and the means of `vlnotes.gradcam.localisation` (pointing, iou,
        energy, and beside them chance and centre), in [0, 1].
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    parts: list[dict[str, Tensor]] = []
    role_of: list[str] = []
    layer_of: list[int] = []
    for at in range(0, len(scenes), batch_size):
        some = list(scenes[at : at + batch_size])
        said = [_said(scene, kind) for scene in some]
        words = [grounded_words(scene, caption, tuple(roles)) for scene, caption in zip(some, said, strict=True)]
        regions, rows = word_regions(some, words, size)
        if not len(rows):
            continue
        flat = [word for row in words for word in row]
        tokens = encode(tokenizer, [caption.text for caption in said], length)
        spans = gradcam.span_tokens(_offsets(tokenizer, said, length), rows, [word[:2] for word in flat])
        kept = spans.any(1) & regions.flatten(1).any(1)
        mask = tokens["attention_mask"].to(device)
        grid = model.student.image_encoder(draw(some[:1], size).to(device)).grid
        score, fused = model.look(draw(some, size).to(device), tokens["input_ids"].to(device), mask)
        for layer, maps in enumerate(gradcam.word_maps(score, fused.attentions, grid, mask)):
            mine = gradcam.span_maps(maps.cpu(), rows[kept], spans[kept])
            parts.append(gradcam.localisation(mine, regions[kept]))
            role_of += [word.role for word, keep in zip(flat, kept.tolist(), strict=True) if keep]
            layer_of += [layer] * int(kept.sum())
    model.train(was_training)
    scores = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return gradcam.score_table(scores, role=role_of, layer=layer_of)


def expression_scores(
    model: ALBEF,
    tokenizer,
    scenes: Sequence[Scene],
    *,
    image_map: nn.Module | None = None,
    size: int = 64,
    length: int = 40,
    batch_size: int = 64,
) -> list[dict]:
    """Where is "a red star"? Sentence maps of ITM, one a fusion block, beside the map of ITC's cosine.

    The expressions name colour and shape of one thing, as `vlnotes.world.prompts` does, and fit one thing of the
    picture alone.

    Args:
        model: an `ALBEF`, used in eval mode.
        tokenizer: the one that it learnt with.
        scenes: N scenes.
        image_map: the part of the image tower whose output (B, C, h, w) ITC's Grad-CAM looks at; None takes
            `image_encoder.layers`, the last map of a conv tower.
        size: pixels a side.
        length: L, most tokens a text.
        batch_size: expressions at a time.

    Returns:
        One dict a row: way ("itc", "itm 0", "itm 1", ...), count, and the means of `vlnotes.gradcam.localisation`.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    image_map = model.student.image_encoder.layers if image_map is None else image_map
    asked = [(scene, thing) for scene in scenes for thing in _unique(scene)]
    parts: list[dict[str, Tensor]] = []
    ways: list[str] = []
    for at in range(0, len(asked), batch_size):
        some = asked[at : at + batch_size]
        texts = [_expression(scene, thing) for scene, thing in some]
        shown = [scene for scene, _ in some]
        region = masks(shown, size)[torch.arange(len(some)), torch.tensor([thing for _, thing in some])]  # (B, H, W)
        image = draw(shown, size).to(device)
        tokens = {name: value.to(device) for name, value in encode(tokenizer, texts, length).items()}
        score, fused = model.look(image, **tokens)
        grid = model.student.image_encoder(image[:1]).grid
        mask = tokens["attention_mask"]
        found = {
            f"itm {layer}": gradcam.sentence_map(maps, mask)
            for layer, maps in enumerate(gradcam.word_maps(score, fused.attentions, grid, mask))
        }
        with gradcam.recording(image_map) as kept:
            cosine = (model.image_features(image) * model.text_features(**tokens)).sum(1)
        found = {"itc": gradcam.gradcam(kept[0].detach(), *gradcam.gradients(cosine, kept))} | found
        for way, maps in found.items():
            parts.append(gradcam.localisation(maps.cpu(), region))
            ways += [way] * len(some)
    model.train(was_training)
    scores = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return gradcam.score_table(scores, way=ways)


def _unique(scene: Scene) -> list[int]:
    """The things of a scene that can be seen, and whose colour and shape nothing else in it has."""
    seen = [(scene.objects[k].colour, scene.objects[k].shape) for k in scene.visible]
    return [k for k, both in zip(scene.visible, seen, strict=True) if seen.count(both) == 1]


def _expression(scene: Scene, thing: int) -> str:
    words, it = domain_named(scene.domain).words, scene.objects[thing]
    said = f"{words['colour'][it.colour][0]} {words['noun'][it.shape][0]}"
    return f"{article(said)} {said}"


def _telling(scene: Scene, word: Grounded) -> tuple[tuple[int, int], list[str]]:
    """Where the word stands that tells, "left" of "to the left of", and all words that would be as true there."""
    words = domain_named(scene.domain).words[word.role]
    if word.role != "relation":
        return (word.start, word.end), list(words[getattr(scene.objects[word.objects[0]], ATTRIBUTE[word.role])])
    said = next(part for part in word.word.split() if part not in FILLERS)
    start = word.start + word.word.index(said)
    parts = {part for phrase in words[CONCEPTS[said][1]] for part in phrase.split()}
    return (start, start + len(said)), sorted(parts - set(FILLERS))


def _said(scene: Scene, kind: str) -> Caption:
    return next(caption for caption in captions(scene) if caption.kind == kind)


def _offsets(tokenizer, said: Sequence[Caption], length: int) -> Tensor:
    """(B, L, 2), where each token stands in its caption."""
    rows = tokenizer(
        [caption.text for caption in said],
        padding="max_length",
        truncation=True,
        max_length=length,
        return_offsets_mapping=True,
    )
    return torch.tensor(rows["offset_mapping"])
