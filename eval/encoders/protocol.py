"""The protocols of encoders, which turn texts into unit vectors. Evaluation uses every model through them only."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

Task = Literal["query", "document"]  # the kind of a text, which sentence-transformers calls a task


class TokenizedText(str):
    """A text that carries its tokens. It is a str for all other code; an encoder need not tokenize it again."""

    prompt: str  # what stood before the text when it was tokenized
    tokens: int  # number of tokens before truncation, prompt and special tokens included
    encoding: Any  # the encoder's own form of the tokens without the special ones

    def __new__(cls, text: str, prompt: str, tokens: int, encoding: Any = None):
        instance = super().__new__(cls, text)
        instance.prompt, instance.tokens, instance.encoding = prompt, tokens, encoding
        return instance


class Encoder(Protocol):
    """Embed texts; a query and a document may be treated differently."""

    name: str  # what the user called it
    fingerprint: str  # digest of whatever decides its vectors: weights, code, tokenizer, prompts, dtype, versions
    max_tokens: int | None  # its longest input, special tokens and prompt included; None if there is no limit
    dimensions: int  # length of its vectors

    def encode(self, texts: list[str], task: Task, max_tokens: int | None = None) -> np.ndarray:
        """Embed n texts, truncated to `max_tokens`, which is by default and at most the encoder's own maximum.

        Returns:
            (n, dimensions) float32 whose rows have length 1, in the order of `texts`.
        """
        ...


class TokenEncoder(Encoder, Protocol):
    """An encoder that shows its tokens, so that documents can be cut into chunks and truncation be reported.

    Such an encoder may lack `encode_parts`, which only late chunking needs. It may also have `tokenize(texts, task)`,
    which returns each text as a `TokenizedText`.
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
        """Embed documents in one pass, and pool each in equal consecutive parts of its tokens.

        Each number of `parts` asks for one division of every document. A short document gets fewer parts than the
        number says, none of fewer than `fewest_tokens` (by default the encoder decides). With one part the vector is
        that of `encode`.

        If an encoder has this method but its model does not allow it, the attribute `parts_problem` says why.

        Returns:
            A pair for each number: rows (N, dimensions) float32 of length 1, a document's rows consecutive; and the
            number of rows of each document, (n,) int64, at least 1.
        """
        ...


def tokenized(encoder: Encoder, texts: list[str], task: Task) -> list[str]:
    """Return the texts as `TokenizedText`, if the encoder has `tokenize`; otherwise unchanged."""
    return encoder.tokenize(texts, task) if hasattr(encoder, "tokenize") else texts


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return rows (n, d) scaled to length 1, float32; a zero row stays zero."""
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
