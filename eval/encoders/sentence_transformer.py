"""Use any sentence-transformers model as an encoder. This module loads it, tokenizes, makes batches and late chunks."""

import gc
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from safetensors import safe_open

from m2bert.model_files import check_code_files, check_model_files
from m2bert.terminal import one_line

from ..progress import counted
from ..tasks.from_hub import hub_or_cache
from .parts import TokenStates, late_chunking_problem, pools_itself
from .protocol import Task, TokenizedText, unit_rows
from .tokens import Tokens, WordTokenizer

logger = logging.getLogger(__name__)

BATCH_TOKENS = 16_384  # tokens of a batch, padding included; this bounds the memory for texts of any length
TEXTS_AT_ONCE = 64  # number of texts that are tokenized together
UNLIMITED = 10**9  # a longer maximum stands for none; tokenizers without a maximum give 10**30
LONG_CHARS = 2_000  # a text of so many characters is tokenized by its words, if its tokenizer allows it
COUNTS_KEPT = 100_000  # number of texts whose number of tokens is remembered
FEWEST_TOKENS = 32  # a part of late chunking has at least so many, so that a short document gets fewer vectors
# The names under which sentence-transformers looks for the prompt of a task.
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}


class SentenceTransformerEncoder:
    """Encode with any sentence-transformers model, or a folder that sentence-transformers can read.

    Args:
        model_name_or_path: folder or Hub id. `load_model` says which of them may bring code that is run.
        device: as torch names it. The default is a GPU, if there is one.
    """

    def __init__(self, model_name_or_path: str | Path, device: str | None = None):
        self.name = str(model_name_or_path)
        self.model = load_model(self.name, device)
        if self._is_bare:
            longest = (self.model.tokenizer.truncation or {}).get("max_length")
        else:
            longest = self.model.max_seq_length
        self.max_tokens = int(longest) if longest and longest < UNLIMITED else None
        self.dimensions = self.model.get_embedding_dimension()
        self._warned: set[tuple[Task, int]] = set()
        self._counts: dict[tuple[str, int, int], int] = {}  # {`_count_key` of a text: its number of tokens}

    @property
    def device(self) -> str:
        """The device of the model, as torch names it."""
        return str(self.model.device)

    @property
    def dtype(self) -> str:
        """The dtype of the model's weights."""
        return str(self.model.dtype).removeprefix("torch.")

    @cached_property
    def fingerprint(self) -> str:
        """See `Encoder.fingerprint`. It is computed once, from the loaded model."""
        from .fingerprint import model_fingerprint

        return model_fingerprint(self.model)

    def tokenize(self, texts: list[str], task: Task) -> list[TokenizedText]:
        """Return each text with its tokens, nothing truncated. A text that has them already is not tokenized again."""
        return list(self._tokenized(texts, self._prompt(task)))

    def count_tokens(self, texts: list[str], task: Task) -> np.ndarray:
        """See `TokenEncoder.count_tokens`."""
        prompt = self._prompt(task)
        keys = [None if getattr(text, "prompt", None) == prompt else _count_key(text, prompt) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key and key not in self._counts}
        tokenized = self._tokenized(list(new.values()), prompt)  # an iterator: the tokens are not kept
        counts = {key: text.tokens for key, text in zip(new, tokenized, strict=True)}
        counts = {key: counts[key] if key in counts else self._counts[key] for key in keys if key}
        found = [counts[key] if key else text.tokens for key, text in zip(keys, texts, strict=True)]
        return np.array(found, dtype=np.int64)

    def token_spans(self, texts: list[str]) -> list[np.ndarray]:
        """See `TokenEncoder.token_spans`."""
        if self._backend is None:
            fix = "use truncate, or save the model with a fast tokenizer"
            raise ValueError(f"the tokenizer of encoder {self.name!r} does not tell where its tokens are; {fix}")
        return [text.encoding.spans for text in self._tokenized(texts, "")]

    def encode(self, texts: list[str], task: Task, max_tokens: int | None = None) -> np.ndarray:
        """See `Encoder.encode`. A warning counts the truncated texts, once for each kind of text and maximum."""
        import torch

        order, vectors = [], [np.empty((0, self.dimensions), dtype=np.float32)]
        self.model.eval()
        with torch.inference_mode():
            for batch, features in self._batches(texts, task, max_tokens or self.max_tokens):
                vectors.append(self._vectors(self.model(features, task=task)))
                order += batch
        # The rows of a model that computes in bfloat16 are not exactly of length 1.
        return unit_rows(np.concatenate(vectors)[np.argsort(order)])

    @property
    def parts_problem(self) -> str:
        """Why the model's pooling does not allow `encode_parts`; empty if it does."""
        return late_chunking_problem(self.model)

    def encode_parts(
        self, texts: list[str], parts: Sequence[int], fewest_tokens: int | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """See `TokenEncoder.encode_parts`."""
        import torch

        if self.parts_problem:
            raise ValueError(f"encoder {self.name!r} cannot divide a document after one pass: {self.parts_problem}")
        lengths = np.minimum(self.count_tokens(texts, "document"), self.max_tokens or UNLIMITED)
        counts = [np.clip(lengths // (fewest_tokens or FEWEST_TOKENS), 1, number).astype(np.int64) for number in parts]
        order = np.empty(0, dtype=np.int64)
        pooled: list = [[np.empty((0, self.dimensions), dtype=np.float32)] for _ in parts]  # rows of each batch
        self.model.eval()
        with torch.inference_mode():
            for batch, features in self._batches(texts, "document", self.max_tokens):
                order = np.append(order, batch)
                states = TokenStates(self.model, features)
                for rows, part_counts in zip(pooled, counts, strict=True):
                    rows.append(self._vectors(states.pooled(torch.from_numpy(part_counts[batch]))))
        results = []
        for rows, part_counts in zip(pooled, counts, strict=True):
            documents = np.repeat(order, part_counts[order])  # the document of each row
            results.append((unit_rows(np.concatenate(rows)[np.argsort(documents, kind="stable")]), part_counts))
        return results

    @cached_property
    def _is_bare(self) -> bool:
        """True if the tokenizer is a plain `tokenizers.Tokenizer`, as that of a model of static word vectors is."""
        return isinstance(self.model.tokenizer, tokenizers.Tokenizer)

    @cached_property
    def _backend(self) -> tokenizers.Tokenizer | None:
        """A copy of the tokenizer's `tokenizers.Tokenizer` with truncation and padding off; None if it has none."""
        tokenizer = self.model.tokenizer
        original = tokenizer if self._is_bare else getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(original, tokenizers.Tokenizer):
            return None
        copy = tokenizers.Tokenizer.from_str(original.to_str())
        copy.no_truncation()
        copy.no_padding()
        return copy

    @cached_property
    def _words(self) -> WordTokenizer | None:
        """What tokenizes long texts; None if that would find other tokens than the model's tokenizer."""
        exact = self._backend is not None and WordTokenizer.is_exact(self._backend)
        return WordTokenizer(self._backend) if exact else None

    @cached_property
    def _special(self) -> tuple[np.ndarray, int, np.ndarray]:
        """Return ids and type ids (2, n) of the special tokens before a text, the type id of its own tokens, and the
        ids and type ids of those after it."""
        encoding = self._backend.encode("a A 0 .")  # of which any vocabulary has something
        pairs = np.array([encoding.ids, encoding.type_ids], dtype=np.int64)
        own = np.flatnonzero(np.equal(encoding.special_tokens_mask, 0))
        return pairs[:, : own[0]], pairs[1, own[0]], pairs[:, own[-1] + 1 :]

    @property
    def _reads_ids(self) -> bool:
        """True if token ids, with their masks, are all that the model's own preprocessing would make of a text.

        Then `_features` makes its inputs from the tokens that a text already has.
        """
        if self._is_bare:
            return True
        if self._backend is None:
            return False
        first = self.model[0]
        special = ("query_length", "document_length", "query_expansion", "can_flatten_inputs")
        processing = (getattr(first, "processing_kwargs", None) or {}).values()
        excludes_prompt = not all(getattr(module, "include_prompt", True) for module in self.model)
        return (
            set(getattr(first, "modality_config", {})) == {"text"}
            and getattr(first, "transformer_task", None) == "feature-extraction"
            and first.processor is self.model.tokenizer
            and not any(getattr(first, name, None) for name in special)
            and all(set(settings) <= {"padding"} for settings in processing)
            and not (excludes_prompt and any(self.model.prompts.values()))
        )

    @cached_property
    def _pads_to_maximum(self) -> bool:
        """True if the model's settings ask to pad every text to the maximum length, as a converted M2-BERT does."""
        processing = getattr(self.model[0], "processing_kwargs", None) or {}
        return "max_length" in [processing.get(kind, {}).get("padding") for kind in ("text", "common")]

    def _prompt(self, task: Task) -> str:
        """Return the model's prompt for a kind of text; empty if it has none."""
        prompts = self.model.prompts
        names = [name for name in (*PROMPT_NAMES[task], self.model.default_prompt_name) if name in prompts]
        return (prompts[names[0]] or "") if names else ""

    def _tokenized(self, texts: list[str], prompt: str) -> Iterator[TokenizedText]:
        """Yield each text with its tokens and those of the prompt, and remember their number."""
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            group = texts[start : start + TEXTS_AT_ONCE]
            new = [prompt + text for text in group if getattr(text, "prompt", None) != prompt]
            special = 0
            if self._backend is None:
                found = iter(self.model.tokenizer(new, truncation=False, verbose=False)["input_ids"] if new else [])
            else:
                special = 0 if self._is_bare else self._backend.num_special_tokens_to_add(False)
                by_words = [self._words is not None and len(text) >= LONG_CHARS for text in new]
                others = [text for text, by_word in zip(new, by_words, strict=True) if not by_word]
                encodings = iter(self._backend.encode_batch(others, add_special_tokens=False))
                pairs = zip(new, by_words, strict=True)
                found = (self._words(text) if by_word else Tokens.of(next(encodings)) for text, by_word in pairs)
            for text in group:
                if getattr(text, "prompt", None) == prompt:
                    yield text
                    continue
                tokens = next(found)
                tokenized = TokenizedText(text, prompt, len(tokens) + special, tokens)
                if len(self._counts) < COUNTS_KEPT:
                    self._counts[_count_key(text, prompt)] = tokenized.tokens
                yield tokenized

    def _batches(self, texts: list[str], task: Task, limit: int | None) -> Iterator[tuple[list[int], dict]]:
        """Yield the indices of a batch of texts (see `token_batches`) and the model's inputs for it, for every batch.

        A progress bar counts tokens.
        """
        from sentence_transformers.util import batch_to_device

        lengths = self.count_tokens(texts, task)
        cut = int((lengths > limit).sum()) if limit else 0
        if cut and (task, limit) not in self._warned:
            self._warned.add((task, limit))
            logger.warning("%s: %d of %d %s texts cut to %d tokens", self.name, cut, len(lengths), task, limit)
        lengths = np.minimum(lengths, limit) if limit else lengths
        if self._pads_to_maximum:  # then every text costs as much as the longest
            lengths = np.full_like(lengths, limit or self.max_tokens)
        with counted(int(lengths.sum()), f"{task} texts", "token", show=len(lengths) >= 100) as count:
            for batch in token_batches(lengths, BATCH_TOKENS):
                features = self._features([texts[i] for i in batch], task, limit)
                yield batch, batch_to_device(features, self.model.device)
                count.add(int(lengths[batch].sum()))

    def _features(self, texts: list[str], task: Task, limit: int | None) -> dict:
        """Return the model's inputs for texts that are truncated to `limit` tokens.

        They are made from the token ids if the model `_reads_ids`, and by the model's own preprocessing otherwise.
        """
        import torch

        if not self._reads_ids:
            shorter = {} if limit == self.max_tokens else {"max_length": limit}
            return self.model.preprocess(list(map(str, texts)), prompt=self._prompt(task), task=task, **shorter)
        texts = self.tokenize(texts, task)
        tokenizer = self.model.tokenizer
        rows = [text.encoding.ids for text in texts]
        if self._is_bare:
            rows = [row[:limit] for row in rows]
            offsets = np.cumsum([0, *map(len, rows[:-1])])
            ids = np.concatenate([np.empty(0, dtype=np.int64), *rows])
            return {"input_ids": torch.from_numpy(ids), "offsets": torch.from_numpy(offsets)}
        before, own_type, after = self._special
        special = before.shape[1] + after.shape[1]
        if limit:
            cut = [max(len(row) + special - limit, 0) for row in rows]
            left = tokenizer.truncation_side == "left"
            rows = [row[number:] if left else row[: len(row) - number] for row, number in zip(rows, cut, strict=True)]
        longest = (limit or self.max_tokens) if self._pads_to_maximum else max(map(len, rows)) + special
        paddings = np.array([tokenizer.pad_token_id or 0, tokenizer.pad_token_type_id, 0])
        table = np.tile(paddings[:, None, None], (1, len(rows), longest))  # ids, type ids, mask
        for number, row in enumerate(rows):
            first = longest - len(row) - special if tokenizer.padding_side == "left" else 0
            filled = table[:, number, first : first + len(row) + special]
            filled[:2] = np.hstack([before, [row, np.full_like(row, own_type)], after])
            filled[2] = 1
        names = "input_ids", "token_type_ids", "attention_mask"
        read = {"input_ids", *tokenizer.model_input_names}
        columns = {name: torch.from_numpy(column) for name, column in zip(names, table, strict=True) if name in read}
        return {"modality": "text", **columns}

    def _vectors(self, outputs: dict) -> np.ndarray:
        """Return the vectors (n, dimensions) from the outputs of the model. Raises ValueError for another shape."""
        rows = outputs["sentence_embedding"][:, : self.model.truncate_dim] if "sentence_embedding" in outputs else None
        if rows is None or rows.shape[1] != self.dimensions:
            given = "no vectors" if rows is None else f"vectors of {rows.shape[1]} numbers"
            fix = "mend modules.json, or the config.json of its Pooling or Dense"
            raise ValueError(f"encoder {self.name!r} gives {given}, and its settings say {self.dimensions}; {fix}")
        return rows.float().cpu().numpy()


def _count_key(text: str, prompt: str) -> tuple[str, int, int]:
    """Return a small key for a text, so that a remembered number of tokens need not keep the text in memory."""
    return prompt, len(text), hash(text)


def token_batches(lengths: np.ndarray, budget_tokens: int) -> list[list[int]]:
    """Divide texts of these lengths into batches of indices, the longest texts first.

    A batch padded to its longest text has at most `budget_tokens` tokens. A text longer than the budget makes a batch
    of its own. As the longest come first, memory runs out at once or never.
    """
    batches: list[list[int]] = []
    for i in np.argsort(-lengths, kind="stable"):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget_tokens:
            batches[-1].append(int(i))
        else:
            batches.append([int(i)])
    return batches


def load_model(name: str, device: str | None = None):
    """Load a `SentenceTransformer` from a folder, a Hub id, or a Hub id at a commit (`org/name@` and its 40 digits).

    A folder may bring its own code. A repository on the Hub may do so only if its commit is named, because the
    content of a commit cannot change. If the Hub does not answer within seconds, only the cache is read.
    """
    folder = Path(name)
    is_model = folder.is_dir()
    if is_model:
        check_code_files(folder)
        check_model_files(folder)
    pinned = None if is_model else re.fullmatch("(.+)@([0-9a-f]{40})", name)
    path, revision = pinned.groups() if pinned else (name, None)
    trusted = is_model or pinned is not None
    model_class = _import_sentence_transformer()
    with nullcontext("") if is_model else hub_or_cache(path, revision) as outage:  # empty if the Hub answers
        try:
            model = model_class(path, device=device, revision=revision, trust_remote_code=trusted)
        except Exception as error:  # foreign files and foreign code may raise anything
            reason = f"cannot be loaded ({type(error).__name__}: {one_line(error)}); mend it, or name another"
            if "trust_remote_code" in str(error) and not trusted:
                reason = f"brings code of its own; read it, then name the commit (40 digits), as in {name}@COMMIT"
            elif outage:
                reason = f"is no folder here and not in the cache, and the Hub does not answer ({outage}); go online"
                if Path(name).name == "m2bert-small":
                    reason += ", or give its folder: models/m2bert-small of this package's repository"
            raise ValueError(f"encoder {name!r} {reason}") from error
        if problem := unusable(model, path, revision):
            raise ValueError(f"encoder {name!r} {problem}")
    return model


def _import_sentence_transformer():
    """Return the class `SentenceTransformer`. Garbage collection, a fifth of the slow import, is off meanwhile."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar
    finally:
        if was_enabled:
            gc.enable()
    disable_progress_bar()  # of loading weights, which takes no time
    return SentenceTransformer


def unusable(model, path: str, revision: str | None = None) -> str:
    """Return why a loaded `SentenceTransformer` cannot be used, or differs from its folder; empty if all is well.

    An M2-BERT without modules.json cannot be used unless its pooling is the mean, which sentence-transformers takes.

    The names of the tensors in the folder are compared with those of the model, because transformers fills tensors
    that the folder lacks with random values. Three differences are allowed:

    - The folder may lack a pooler that is not used, because sentence-transformers pools by itself.
    - The folder may have been saved by a class with a head, and hold that head.
    - Older folders may hold buffers, such as `position_ids`, that the model makes itself.
    """
    transformer, dimensions = model[0], model.get_embedding_dimension()
    if getattr(model, "tokenizer", None) is None:
        return f"begins with {type(transformer).__name__}, which reads no text; mend modules.json"
    if len(model) == 1 and hasattr(transformer, "modality_config") and not pools_itself(transformer):
        return "has no module that makes one vector of its tokens'; mend modules.json"
    if not isinstance(dimensions, int):
        return f"has a dimension in a config.json that is no number: {dimensions!r}"
    stored = set()
    for file in Path(path).glob("model*.safetensors"):
        with safe_open(file, "np") as tensors:
            stored |= set(tensors.keys())
    inner = getattr(transformer, "model", None)
    config = getattr(inner, "config", None)
    if getattr(config, "model_type", None) == "m2bert" and config.pooling != "mean" and not pools_itself(transformer):
        from sentence_transformers.util import load_file_path

        home = os.environ.get("SENTENCE_TRANSFORMERS_HOME")  # where sentence-transformers keeps what it loads
        if load_file_path(path, "modules.json", cache_folder=home, revision=revision) is None:
            folder = path if Path(path).is_dir() else "LOCAL_COPY"
            fix = f"write a folder that has it: m2bert export --model {folder} --output FOLDER"
            return f"has no modules.json, and its pooling is {config.pooling!r}; {fix}"
    if not stored or inner is None:
        return ""
    expected = set(inner.state_dict())
    # The names in a model with a head begin with a prefix, such as `bert.` or `model.`.
    missing = expected - stored - {name.split(".", 1)[-1] for name in stored}
    if not pools_itself(transformer):
        missing = {name for name in missing if not name.startswith("pooler.")}
    same_class = type(inner).__name__ in (inner.config.architectures or [])
    unexpected = stored - expected - {name for name, _ in inner.named_buffers()} if same_class else set()
    for fault, names in (("lacks", missing), ("has, unexpectedly,", unexpected)):
        if names:
            return f"{fault} {', '.join(sorted(names))}; save the whole model again"
    return ""
