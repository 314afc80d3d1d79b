"""Cutting long texts into chunks that a model takes whole."""

import numpy as np

from .protocol import TokenEncoder

SHARE_DROPPED = 16  # a chunk that turns out too long gives up at least this part of its tokens at either end


def chunk_texts(encoder: TokenEncoder, texts: list[str], tokens: int, stride: int | None = None) -> list[list[str]]:
    """Return the chunks of every document, none longer than the model was asked to take.

    Args:
        tokens: the longest chunk, with special tokens and prompt, as the encoder counts it.
        stride: see `cut`.
    """
    content = tokens - overhead_tokens(encoder)
    spans = encoder.token_spans(texts)
    chunked = [cut(text, its_spans, content, stride) for text, its_spans in zip(texts, spans, strict=True)]
    counts = iter(encoder.count_tokens([chunk for chunks in chunked for chunk in chunks], "document").tolist())
    return [[part for chunk in chunks for part in _fitting(encoder, chunk, tokens, next(counts))] for chunks in chunked]


def overhead_tokens(encoder: TokenEncoder) -> int:
    """Return tokens that every document costs: special tokens and prompt."""
    return int(encoder.count_tokens([""], "document")[0])


def cut(text: str, spans: np.ndarray, tokens: int, stride: int | None = None) -> list[str]:
    """Return consecutive chunks of `tokens` tokens, the last of what is left.

    Every token is in some chunk. A last chunk that would only repeat the end of the one before is left out.

    Args:
        spans: (n, 2), characters [start, end) of the text's tokens.
        tokens: content tokens of a chunk.
        stride: content tokens from one chunk's start to the next; by default a chunk begins where the last one ended.

    Returns:
        At least one chunk; the empty text for a text without tokens.
    """
    if not len(spans):
        return [""]
    starts = range(0, max(1, len(spans) - tokens + (stride or tokens)), stride or tokens)
    return [text[spans[start, 0] : spans[min(start + tokens, len(spans)) - 1, 1]] for start in starts]


def _fitting(encoder: TokenEncoder, chunk: str, tokens: int, count: int) -> list[str]:
    """Return the chunk; or, if it is longer than `tokens`, two that overlap and together hold all of it.

    A chunk that begins or ends inside a word is tokenized otherwise than inside its text, and may grow by a token or
    two. Overlapping chunks differ little from what was asked for, where halves would be chunks of another length. One
    that does not get shorter in this way stays as it is.

    Args:
        count: tokens of the chunk.
    """
    spans = encoder.token_spans([chunk])[0] if count > tokens else []
    if len(spans) < 2:
        return [chunk]
    dropped = min(max(count - tokens, len(spans) // SHARE_DROPPED, 1), len(spans) // 2)
    parts = [chunk[: spans[-dropped - 1, 1]], chunk[spans[dropped, 0] :]]
    if chunk in parts:  # a few characters of several tokens each: there is nothing to give up
        return [chunk]
    counts = encoder.count_tokens(parts, "document").tolist()
    return [fit for part, its in zip(parts, counts, strict=True) for fit in _fitting(encoder, part, tokens, its)]
