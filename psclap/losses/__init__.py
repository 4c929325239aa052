"""Losses: tensors in, tensors out. No strings, tokenizers or loggers."""
