"""Any sentence-transformers model as an encoder."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers

from ..progress import counted
from .model_loading import load_model
from .protocol import Task

logger = logging.getLogger(__name__)

BATCH_TOKENS = 16_384  # padded tokens a batch: bounds memory whatever the lengths
TEXTS_AT_ONCE = 64  # tokenized together where only counts or offsets are wanted
UNLIMITED = 10**9  # tokenizers without a limit say 10**30
# The names under which sentence-transformers looks for the prompt of a task.
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}


class SentenceTransformerEncoder:
    """Any sentence-transformers model, or a folder that sentence-transformers can read.

    Args:
        model_name_or_path: folder or Hub id; see `load_model` for whose code may run.
        max_tokens: the longest input; by default the model's own maximum.
        device: as torch names it; by default a GPU, where there is one.

    Raises:
        ValueError: the model cannot be loaded, or max_tokens < 1 or more than its positions.
    """

    def __init__(self, model_name_or_path: str | Path, max_tokens: int | None = None, device: str | None = None):
        self.name = str(model_name_or_path)
        self.model = load_model(self.name, device)
        if max_tokens is not None:
            if max_tokens < 1:
                raise ValueError(f"max_tokens={max_tokens} leaves no input; it must be at least 1")
            positions = getattr(getattr(self.model[0], "config", None), "max_position_embeddings", None)
            if positions and max_tokens > positions:
                raise ValueError(f"max_tokens={max_tokens} is more than the {positions} positions of {self.name!r}")
            self._set_limit(max_tokens)
        self.max_tokens = self._limit()
        self.dimensions = int(self.model.get_embedding_dimension())
        self._warned: set[tuple[Task, int]] = set()

    @property
    def device(self) -> str:
        """Where it computes."""
        return str(self.model.device)

    @property
    def dtype(self) -> str:
        """In what it computes."""
        return str(self.model.dtype).removeprefix("torch.")

    @cached_property
    def fingerprint(self) -> str:
        """See `Encoder.fingerprint`; read once, from what is loaded."""
        from .fingerprint import model_fingerprint

        return model_fingerprint(self.model)

    def count_tokens(self, texts: list[str], task: Task) -> np.ndarray:
        """See `TokenEncoder.count_tokens`."""
        prompt = self._prompt(task)
        counts: list[int] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            prompted = [prompt + text for text in texts[start : start + TEXTS_AT_ONCE]]
            if self._bare is not None:  # models of static word vectors add no special tokens
                counts += [
                    len(encoding.ids) for encoding in self._bare.encode_batch(prompted, add_special_tokens=False)
                ]
            else:
                rows = self.model.tokenizer(prompted, truncation=False, verbose=False)["input_ids"]
                counts += [len(ids) for ids in rows]
        return np.array(counts, dtype=np.int64)

    def token_spans(self, texts: list[str]) -> list[np.ndarray]:
        """See `TokenEncoder.token_spans`."""
        if self._bare is None and not getattr(self.model.tokenizer, "is_fast", False):
            raise ValueError(
                f"the tokenizer of encoder {self.name!r} does not tell where in the text its tokens are, so no policy "
                "can cut there; use truncate, or save the model with a fast tokenizer"
            )
        spans: list = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            batch = texts[start : start + TEXTS_AT_ONCE]
            if self._bare is not None:
                spans += [encoding.offsets for encoding in self._bare.encode_batch(batch, add_special_tokens=False)]
            else:
                options = {"add_special_tokens": False, "return_offsets_mapping": True, "truncation": False}
                spans += self.model.tokenizer(batch, verbose=False, **options)["offset_mapping"]
            spans[start:] = [np.array(rows, dtype=np.int64).reshape(-1, 2) for rows in spans[start:]]
        return spans

    def encode(self, texts: list[str], task: Task, max_tokens: int | None = None) -> np.ndarray:
        """See `Encoder.encode`. The first time that texts of a kind are cut, a warning counts them."""
        if max_tokens and self.max_tokens and max_tokens > self.max_tokens:
            raise ValueError(f"max_tokens={max_tokens} is more than the {self.max_tokens} of encoder {self.name!r}")
        if not texts:
            return np.zeros((0, self.dimensions), dtype=np.float32)
        limit = max_tokens or self.max_tokens
        lengths = self.count_tokens(texts, task)
        self._tell_what_is_cut(lengths, limit, task)
        encode = self.model.encode_query if task == "query" else self.model.encode_document
        vectors = np.empty((len(texts), 0), dtype=np.float32)
        with self._limited_to(max_tokens):
            for batch in self._batches(lengths, limit, f"{task} texts"):
                rows = encode([texts[i] for i in batch], batch_size=len(batch), show_progress_bar=False)
                if rows.shape[1] != self.dimensions:
                    raise ValueError(
                        f"encoder {self.name!r} gives vectors of {rows.shape[1]} numbers, and its settings say "
                        f"{self.dimensions}; mend the config.json of its Pooling or Dense"
                    )
                if not vectors.size:  # not before it is known that the settings do not ask for any width
                    vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
                vectors[batch] = rows
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # here: the model may compute in bfloat16
        return vectors / np.maximum(norms, np.finfo(np.float32).tiny)

    def encode_parts(self, texts: list[str], parts: int) -> tuple[np.ndarray, np.ndarray]:
        """See `PartEncoder.encode_parts`."""
        import torch
        from sentence_transformers.util import batch_to_device

        from .late_chunking import check_late_chunking, part_counts, pool_parts
        from .policies import unit_rows

        check_late_chunking(self.model, self.name)
        self.model.eval()
        if not texts:
            return np.zeros((0, self.dimensions), dtype=np.float32), np.zeros(0, dtype=np.int64)
        lengths = self.count_tokens(texts, "document")
        self._tell_what_is_cut(lengths, self.max_tokens, "document")
        lengths = np.minimum(lengths, self.max_tokens) if self.max_tokens else lengths
        counts = part_counts(lengths, parts)
        vectors: list[np.ndarray] = [np.empty(0)] * len(texts)
        for batch in self._batches(lengths, None, "documents"):
            features = self.model.preprocess(
                [texts[i] for i in batch], prompt=self._prompt("document"), task="document"
            )
            features = batch_to_device(features, self.model.device)
            pooled = pool_parts(self.model, features, torch.from_numpy(counts[batch]).to(self.model.device))
            for i, rows in zip(batch, pooled, strict=True):
                vectors[i] = rows.float().cpu().numpy()
        return unit_rows(np.concatenate(vectors)), counts

    @cached_property
    def _bare(self) -> tokenizers.Tokenizer | None:
        """The tokenizer with truncation and padding off, if it comes without transformers' shell; else None."""
        if not isinstance(self.model.tokenizer, tokenizers.Tokenizer):
            return None
        bare = tokenizers.Tokenizer.from_str(self.model.tokenizer.to_str())
        bare.no_truncation()
        bare.no_padding()
        return bare

    @cached_property
    def _pads_to_maximum(self) -> bool:
        """Whether the folder asks for every text to be padded to the longest input (a converted M2-BERT does)."""
        wanted = getattr(self.model[0], "processing_kwargs", None) or {}
        return "max_length" in [wanted.get(kind, {}).get("padding") for kind in ("text", "common")]

    def _prompt(self, task: Task) -> str:
        prompts = self.model.prompts
        return next((prompts[name] for name in PROMPT_NAMES[task] if name in prompts), "")

    def _tell_what_is_cut(self, lengths: np.ndarray, limit: int | None, task: Task) -> None:
        """Warn the first time that texts of a kind are longer than what is read."""
        cut = int((lengths > limit).sum()) if limit else 0
        if cut and (task, limit) not in self._warned:
            self._warned.add((task, limit))
            logger.warning("%s: %d of %d %s texts cut to %d tokens", self.name, cut, len(lengths), task, limit)

    def _batches(self, lengths: np.ndarray, limit: int | None, what: str) -> Iterator[list[int]]:
        """Batches of texts (see `token_batches`), with their progress in tokens."""
        lengths = np.minimum(lengths, limit) if limit else lengths
        if self._pads_to_maximum:  # whatever a text's length, this is what it costs
            lengths = np.full_like(lengths, limit or self.max_tokens)
        with counted(int(lengths.sum()), what, "token", show=len(lengths) >= 100) as count:
            for batch in token_batches(lengths, BATCH_TOKENS):
                yield batch
                count.add(int(lengths[batch].sum()))

    def _limit(self) -> int | None:
        if self._bare is not None:
            return (self.model.tokenizer.truncation or {}).get("max_length")
        longest = self.model.max_seq_length
        return int(longest) if longest and math.isfinite(longest) and longest < UNLIMITED else None

    def _set_limit(self, max_tokens: int | None) -> None:
        if self._bare is None:
            self.model.max_seq_length = max_tokens
        elif max_tokens is None:
            self.model.tokenizer.no_truncation()
        else:
            self.model.tokenizer.enable_truncation(max_tokens)

    @contextmanager
    def _limited_to(self, max_tokens: int | None):
        """Within it the model cuts texts to `max_tokens`; None leaves its own maximum."""
        if max_tokens is None:
            yield
            return
        before = self._limit() if self._bare is not None else self.model.max_seq_length
        self._set_limit(max_tokens)
        try:
            yield
        finally:
            self._set_limit(before)


def token_batches(lengths: np.ndarray, budget_tokens: int) -> list[list[int]]:
    """Indices by falling length, cut so that rows times longest row stays within the budget.

    A text longer than the budget makes a batch of its own. Longest first: memory runs out at once or never.
    """
    batches: list[list[int]] = []
    for i in np.argsort(-lengths, kind="stable"):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget_tokens:
            batches[-1].append(int(i))
        else:
            batches.append([int(i)])
    return batches
