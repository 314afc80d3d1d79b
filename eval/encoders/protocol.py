"""What evaluation asks of a model: texts in, unit vectors out. It knows every model through these protocols only."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

Task = Literal["query", "document"]


class TokenizedText(str):
    """A text with its tokens: whatever takes texts takes it, and need not tokenize it again."""

    prompt: str  # before the text when it was tokenized
    tokens: int  # how many, before truncation, prompt and special tokens included
    encoding: Any  # the encoder's own form of the tokens

    def __new__(cls, text: str, prompt: str, tokens: int, encoding: Any = None):
        made = super().__new__(cls, text)
        made.prompt, made.tokens, made.encoding = prompt, tokens, encoding
        return made


class Encoder(Protocol):
    """Embed texts; a query and a document may be treated differently."""

    name: str  # what the user called it
    fingerprint: str  # digest of whatever decides its vectors: weights, code, tokenizer, prompts, dtype, versions
    max_tokens: int | None  # its longest input, special tokens and prompt included; None if there is no limit
    dimensions: int  # length of its vectors

    def encode(self, texts: list[str], task: Task, max_tokens: int | None = None) -> np.ndarray:
        """Embed n texts, truncated to `max_tokens` or to the encoder's own maximum, which is the most it may be.

        Returns:
            (n, dimensions) float32 whose rows have length 1, in the order of `texts`.
        """
        ...


class TokenEncoder(Encoder, Protocol):
    """Show tokens as well: needed to cut documents into chunks and to report how much was read.

    An encoder may also have `tokenize(texts, task)`, which returns each text as a `TokenizedText`; and `encode_parts`,
    for late chunking.
    """

    def count_tokens(self, texts: list[str], task: Task) -> np.ndarray:
        """Count the tokens of each text before truncation, prompt and special tokens included: (n,) int."""
        ...

    def token_spans(self, texts: list[str]) -> list[np.ndarray]:
        """Return the character offsets [start, end) of each text's tokens, (n_i, 2) int, nothing truncated.

        Special tokens and the prompt are left out.
        """
        ...

    def encode_parts(
        self, texts: list[str], parts: Sequence[int], fewest_tokens: int | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Embed documents in one pass, for each number of `parts` as up to so many equal consecutive stretches of
        tokens, fewer where one would have less than `fewest_tokens` (by default the encoder decides). One part is the
        vector that `encode` gives.

        An encoder that has this method and cannot do it for its model says why in the attribute `parts_problem`.

        Returns:
            For each number rows (N, dimensions) float32 of length 1, a document's rows consecutive; and how many they
            are of each document, (n,) int64, at least 1.
        """
        ...


def tokenized(encoder: Encoder, texts: list[str], task: Task) -> list[str]:
    """Return the texts with their tokens, from an encoder that has `tokenize`; else unchanged."""
    return encoder.tokenize(texts, task) if hasattr(encoder, "tokenize") else texts


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return rows (n, d) scaled to length 1, float32; a zero row stays zero."""
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
