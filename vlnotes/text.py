"""Captions become rows of token ids: train a tokenizer on captions, encode, count unknown words, mask for
MLM.

The tokenizer is a plain transformers fast tokenizer, so everything here also works with one from a pretrained
model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4, in this order
IGNORE = -100  # the label that `torch.nn.functional.cross_entropy` leaves out
AT_ONCE = 8192  # captions; a tokenizer remembers far more of a caption than its ids


@dataclass(frozen=True)
class Vocabulary:
    """What `mask_tokens` must know of a tokenizer, for a model that masks and keeps no tokenizer.

    Args:
        size: number of ids, V; also the `len`.
        pad_token_id: of padding.
        cls_token_id: of the first token.
        mask_token_id: of what stands for a hidden word.

    Raises:
        ValueError: an id outside 0 to V - 1.
    """

    size: int
    pad_token_id: int = SPECIAL_TOKENS.index("[PAD]")
    cls_token_id: int = SPECIAL_TOKENS.index("[CLS]")
    mask_token_id: int = SPECIAL_TOKENS.index("[MASK]")

    def __post_init__(self):
        ids = (self.pad_token_id, self.cls_token_id, self.mask_token_id)
        if not all(0 <= one < self.size for one in ids):
            raise ValueError(f"special ids {ids}; expected all of them within a vocabulary of {self.size}")

    def __len__(self) -> int:
        return self.size


def train_tokenizer(captions: Iterable[str], vocab_size: int = 2000, kind: str = "word") -> PreTrainedTokenizerFast:
    """Learn a vocabulary from captions: lower case, split at spaces and punctuation, most frequent first.

    The same captions give the same ids in whatever order they come; equal counts are settled by the alphabet.

    Args:
        captions: texts to count; each non-empty.
        vocab_size: upper bound on the number of ids, the five special tokens included.
        kind: "word": one id a word, a word outside the vocabulary becomes [UNK]. "wordpiece": such a word
            falls apart into known pieces ("turquoises" -> "turquoise", "##s"); only a word with a never seen
            character is [UNK].

    Returns:
        A transformers fast tokenizer with [PAD] [UNK] [CLS] [SEP] [MASK] as ids 0 to 4. Each text stands
        between [CLS] and [SEP].

    Raises:
        TypeError: a caption is no str, or `captions` is one single str.
        ValueError: no captions, an empty one, an unknown kind, a vocabulary too small for its kind.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    captions = _checked(captions)
    if kind not in ("word", "wordpiece"):
        raise ValueError(f"kind is {kind!r}; expected 'word' or 'wordpiece'")
    lower = normalizers.Lowercase().normalize_str
    alphabet = sorted({letter for caption in captions for letter in lower(caption) if not letter.isspace()})
    pieces = alphabet + ["##" + letter for letter in alphabet] if kind == "wordpiece" else []
    needed = len(SPECIAL_TOKENS) + max(len(pieces), 1)
    if vocab_size < needed:
        what = f"{len(alphabet)} letters twice, as a start and as a continuation" if pieces else "one word"
        raise ValueError(
            f"vocab_size is {vocab_size}; kind {kind!r} needs at least {needed} for these captions: "
            f"{len(SPECIAL_TOKENS)} special tokens and {what}"
        )

    def blank(model: models.Model) -> Tokenizer:
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # a punctuation mark stands alone
        return tokenizer

    if kind == "word":
        model, trainer = models.WordLevel, trainers.WordLevelTrainer
    else:
        model, trainer = models.WordPiece, trainers.WordPieceTrainer
    # The wordpiece trainer numbers letters as it happens to meet them, and equal merges are settled by those
    # numbers. Naming the letters as special tokens fixes their numbers, hence the vocabulary. They are
    # special only in this draft.
    fixed = [*SPECIAL_TOKENS, *pieces]
    draft = blank(model(unk_token="[UNK]"))
    draft.train_from_iterator(captions, trainer(vocab_size=vocab_size, special_tokens=fixed, show_progress=False))
    tokenizer = blank(model(draft.get_vocab(with_added_tokens=True), unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    if kind == "wordpiece":
        tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        padding_side="right",
        truncation_side="right",
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> Path:
    """Write the tokenizer into a folder that `load_tokenizer` and transformers' `AutoTokenizer` both read.

    Args:
        tokenizer: any transformers fast tokenizer.
        folder: made if it is not there.

    Returns:
        The folder as a Path.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    return folder


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Read a fast tokenizer from a local folder; nothing is ever downloaded.

    Args:
        folder: written by `save_tokenizer`, or the folder of a pretrained model.

    Returns:
        A transformers fast tokenizer.

    Raises:
        ValueError: the folder is not there, or holds no tokenizer that transformers can read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"no tokenizer folder {str(folder)!r}: nothing is downloaded. Write one with save_tokenizer, "
            "or put the files of a pretrained one (tokenizer.json, tokenizer_config.json) into a folder"
        )
    found = sorted(entry.name for entry in folder.iterdir())
    if not {"tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json"} & set(found):
        raise ValueError(f"{folder} holds no tokenizer: expected tokenizer.json, found {found[:8] or 'nothing'}")
    try:
        if "tokenizer.json" in found:  # says everything, so it needs no class named after a model
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise many kinds, plain Exception among them
        raise ValueError(f"{folder} holds a tokenizer that cannot be read: {error}") from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"{folder} holds a slow tokenizer ({type(tokenizer).__name__}); expected one with tokenizer.json"
        )
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, captions: list[str], length: int = 40) -> dict[str, torch.Tensor]:
    """Turn captions into rows of ids of one fixed length, padded or cut at the end.

    A caption that is too long loses its last words, never its closing token: "[CLS] ... [SEP]" stays whole. How many
    were too long is said in one warning.

    Args:
        tokenizer: from `train_tokenizer` or `load_tokenizer`; needs a padding token.
        captions: B texts, each non-empty.
        length: L, at least 3 (room for [CLS], one word and [SEP]). No caption of the picture world is longer than 40.

    Returns:
        dict of `input_ids` (B, L) int64 and `attention_mask` (B, L) int64, 1 on tokens and 0 on padding.

    Raises:
        TypeError: a caption is no str, or `captions` is one single str.
        ValueError: no captions, an empty one, a length below 3, a tokenizer without padding token.
    """
    captions = _checked(captions)
    if length < 3:
        raise ValueError(f"length is {length}; expected at least 3: [CLS], one word, [SEP]")
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token (often to its end token) first")
    asked = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
    parts, cut = [], 0
    for at in range(0, len(captions), AT_ONCE):
        rows = tokenizer(captions[at : at + AT_ONCE], return_token_type_ids=False, **asked)
        cut += sum(bool(row.overflowing) for row in rows.encodings or ())  # what did not fit is kept there
        parts.append(rows)
    if cut:
        verbs = ("is", "was") if cut == 1 else ("are", "were")
        words = f"{cut} of {len(captions)} captions {verbs[0]} longer than {length} tokens and {verbs[1]} cut"
        warnings.warn(words, stacklevel=2)
    return {
        name: torch.cat([part[name] for part in parts]).long() for name in ("input_ids", "attention_mask")
    }  # (B, L)


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, size: int) -> None:
    """Refuse a tokenizer that a model was not trained with, before its ids point at other words or at none.

    Args:
        tokenizer: anything with a `len`, its number of ids.
        size: V, the number of ids that the model knows, such as `model.built["vocab_size"]`.

    Raises:
        ValueError: the two numbers differ.
    """
    if len(tokenizer) != size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} ids and the model knows {size}, so they do not belong together; take "
            "the tokenizer that was saved beside the weights, or train a model with this one"
        )


def unknown_rate(tokenizer: PreTrainedTokenizerFast, captions: Iterable[str]) -> float:
    """Share of tokens that the tokenizer does not know.

    A high rate says that the vocabulary was made for other captions: [UNK] carries no meaning to learn from.

    Args:
        tokenizer: any transformers fast tokenizer.
        captions: texts, each non-empty.

    Returns:
        Unknown tokens / all tokens, special ones not counted, in [0, 1]; 0 for a tokenizer that has no
        unknown token.
    """
    rows = tokenizer(_checked(captions), add_special_tokens=False)["input_ids"]
    tokens = [token for row in rows for token in row]
    return tokens.count(tokenizer.unk_token_id) / max(len(tokens), 1)


def mask_tokens(
    input_ids: torch.Tensor,
    tokenizer: PreTrainedTokenizerFast | Vocabulary,
    *,
    probability: float = 0.15,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hide some tokens, so that a model can learn to fill them in.

    Each token is chosen with `probability`, [PAD] and [CLS] never ([SEP] may be). Of the chosen ones 80 %
    become [MASK], 10 % a random id of the whole vocabulary and 10 % stay: the model cannot trust even a token
    that it sees.

    Args:
        input_ids: (B, L) int64.
        tokenizer: the one that made them, or its `Vocabulary`; it needs a mask token.
        probability: in [0, 1].
        generator: where the randomness comes from; draws are made on its device.

    Returns:
        masked_ids (B, L), and labels (B, L): the true id where a token was chosen and -100 elsewhere, which
        `cross_entropy` ignores. In a tiny batch it can be that no token is chosen, and a mean over no label
        is NaN: look before you average.

    Raises:
        TypeError: `input_ids` is no integer tensor, `generator` is no torch.Generator.
        ValueError: a probability outside [0, 1], ids outside the vocabulary, a tokenizer without mask token.

    Equation: ALBEF (Li et al. 2021), section 3.2, masked language modelling, with the 80/10/10 rule of BERT.
    Notebook: 05_albef_fusion, section 3.
    """
    if not isinstance(input_ids, torch.Tensor) or input_ids.dtype != torch.long:
        kind = input_ids.dtype if isinstance(input_ids, torch.Tensor) else type(input_ids).__name__
        raise TypeError(f"input_ids is {kind}; expected an int64 tensor (B, L), as encode returns it")
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator is {type(generator).__name__}; expected a torch.Generator")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability}; expected a share in [0, 1]")
    if tokenizer.mask_token_id is None:
        raise ValueError("the tokenizer has no mask token, so nothing can be masked with it")
    if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < len(tokenizer):
        raise ValueError(
            f"input_ids run from {int(input_ids.min())} to {int(input_ids.max())}; this tokenizer has 0 to "
            f"{len(tokenizer) - 1}: were they made with another one?"
        )
    source = {"generator": generator, "device": generator.device}
    draw = torch.rand(2, *input_ids.shape, **source).to(input_ids.device)  # (2, B, L)
    random_ids = torch.randint(len(tokenizer), input_ids.shape, **source).to(input_ids.device)
    keep = [token for token in (tokenizer.pad_token_id, tokenizer.cls_token_id) if token is not None]
    never = torch.isin(input_ids, torch.tensor(keep, dtype=torch.long, device=input_ids.device))
    chosen = (draw[0] < probability) & ~never
    labels = input_ids.masked_fill(~chosen, IGNORE)
    masked = input_ids.masked_fill(chosen & (draw[1] < 0.8), tokenizer.mask_token_id)
    masked = torch.where(chosen & (draw[1] >= 0.9), random_ids, masked)
    return masked, labels


def _checked(captions: Iterable[str]) -> list[str]:
    if isinstance(captions, str):
        raise TypeError(f"captions is one str ({captions[:40]!r}); expected a list of them: [caption]")
    captions = list(captions)
    if not captions:
        raise ValueError("captions is empty; expected at least one text")
    for index, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise TypeError(f"captions[{index}] is {type(caption).__name__} ({caption!r:.60}); expected a str")
        if not caption.strip():
            raise ValueError(f"captions[{index}] is empty ({caption!r}); expected at least one word")
    return captions
