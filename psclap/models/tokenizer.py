"""Tokenizers of the text tower: trained on captions, or a pretrained one made to fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def as_text_tokenizer(tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> PreTrainedTokenizerBase:
    """A pretrained tokenizer that gives what our text tower takes: ids and a mask, padded at the end."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, max_tokens)
    tokenizer.model_input_names, tokenizer.padding_side = ["input_ids", "attention_mask"], "right"
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_tokens: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer: every character, then the most frequent words of `texts`.

    Equal texts give equal tokenizers, which the trainers of `tokenizers` do not promise.
    """
    normalizer, pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))
    )
    characters = sorted({character for word in words for character in word})
    pieces = [*_SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    pieces += sorted(words, key=lambda word: (-words[word], word))
    vocabulary = {piece: number for number, piece in enumerate(list(dict.fromkeys(pieces))[:vocab_size])}

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    )
