"""Pieces that tests of real hosts share: tiny models, tokenizers, data, recording rewards. Not part of the package."""
