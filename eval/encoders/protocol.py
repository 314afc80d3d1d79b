"""What evaluation asks of a model: texts in, unit vectors out. It knows every model through these protocols only."""

from typing import Literal, Protocol

import numpy as np

Task = Literal["query", "document"]


class Encoder(Protocol):
    """Anything that embeds texts; a query and a document may be treated differently.

    Attributes:
        name: what the user called it.
        fingerprint: hex digest of whatever decides its vectors: weights, code, tokenizer, prompts, dtype, versions.
        max_tokens: its longest input, special tokens and prompt included; None if there is no limit.
        dimensions: length of its vectors.
    """

    name: str
    fingerprint: str
    max_tokens: int | None
    dimensions: int

    def encode(self, texts: list[str], task: Task, max_tokens: int | None = None) -> np.ndarray:
        """Embed n texts: (n, dimensions) float32 whose rows have length 1, in the order of `texts`.

        Args:
            max_tokens: cut texts to so many tokens, rather than to the encoder's own maximum.

        Raises:
            ValueError: max_tokens is more than the encoder takes.
        """
        ...


class TokenEncoder(Encoder, Protocol):
    """An encoder that shows its tokens: what is needed to cut documents into chunks and to say how much was read."""

    def count_tokens(self, texts: list[str], task: Task) -> np.ndarray:
        """Tokens of each text before truncation, prompt and special tokens included: (n,) int."""
        ...

    def token_spans(self, texts: list[str]) -> list[np.ndarray]:
        """Of each text the characters [start, end) of its tokens, no special ones, nothing truncated: (n_i, 2) int.

        Raises:
            ValueError: the tokenizer does not know where its tokens come from.
        """
        ...


class PartEncoder(TokenEncoder, Protocol):
    """An encoder that can pool parts of one pass over a whole document; see `late_chunking`."""

    def encode_parts(self, texts: list[str], parts: int) -> tuple[np.ndarray, np.ndarray]:
        """Embed documents as up to `parts` vectors each, of equal consecutive stretches of tokens.

        Returns:
            rows (N, dimensions) float32 of length 1, a document's rows consecutive; and their number for each
            document, (n,) int64, at least 1.

        Raises:
            ValueError: the model does not pool its tokens by a mean, or not in a way that is known.
        """
        ...
