"""Any sentence-transformers model as an encoder: loading it, tokenizing once, batches, late chunking."""

import gc
import inspect
import logging
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
from .protocol import Task, TokenizedText, unit_rows

logger = logging.getLogger(__name__)

BATCH_TOKENS = 16_384  # padded tokens a batch: bounds memory whatever the lengths
TEXTS_AT_ONCE = 64  # tokenized together
UNLIMITED = 10**9  # tokenizers without a limit say 10**30
COUNTS_KEPT = 100_000  # texts whose number of tokens is remembered
FEWEST_TOKENS = 32  # of a part under late chunking: a short document gets fewer vectors
POOLS_ONE_TOKEN = ("cls", "lasttoken")
# The names under which sentence-transformers looks for the prompt of a task.
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}


class SentenceTransformerEncoder:
    """Encode with any sentence-transformers model, or a folder that sentence-transformers can read.

    Args:
        model_name_or_path: folder or Hub id; see `load_model` for whose code may run.
        device: as torch names it; by default a GPU, where there is one.
    """

    def __init__(self, model_name_or_path: str | Path, device: str | None = None):
        self.name = str(model_name_or_path)
        self.model = load_model(self.name, device)
        tokenizer = self.model.tokenizer
        longest = (tokenizer.truncation or {}).get("max_length") if self._bare else self.model.max_seq_length
        self.max_tokens = int(longest) if longest and longest < UNLIMITED else None
        self.dimensions = self.model.get_embedding_dimension()
        self._warned: set[tuple[Task, int]] = set()
        self._counts: dict[tuple[str, int, int], int] = {}  # tokens of texts, by `_key`

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
        """See `Encoder.fingerprint`; computed once, from the loaded model."""
        from .fingerprint import model_fingerprint

        return model_fingerprint(self.model)

    def tokenize(self, texts: list[str], task: Task) -> list[TokenizedText]:
        """Return each text with its tokens, nothing truncated. A text that has them already is not tokenized again."""
        return list(self._tokenized(texts, self._prompt(task)))

    def count_tokens(self, texts: list[str], task: Task) -> np.ndarray:
        """See `TokenEncoder.count_tokens`."""
        prompt = self._prompt(task)
        keys = [None if getattr(text, "prompt", None) == prompt else _key(text, prompt) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key and key not in self._counts}
        tokenized = self._tokenized(list(new.values()), prompt)  # the tokens are not kept
        counts = {key: text.tokens for key, text in zip(new, tokenized, strict=True)}
        counts = {key: counts[key] if key in counts else self._counts[key] for key in keys if key}
        found = [counts[key] if key else text.tokens for key, text in zip(keys, texts, strict=True)]
        return np.array(found, dtype=np.int64)

    def token_spans(self, texts: list[str]) -> list[np.ndarray]:
        """See `TokenEncoder.token_spans`."""
        if self._backend is None:
            fix = "use truncate, or save the model with a fast tokenizer"
            raise ValueError(f"the tokenizer of encoder {self.name!r} does not tell where its tokens are; {fix}")
        offsets = (text.encoding.offsets for text in self._tokenized(texts, ""))
        return [np.array(rows, dtype=np.int64).reshape(-1, 2) for rows in offsets]

    def encode(self, texts: list[str], task: Task, max_tokens: int | None = None) -> np.ndarray:
        """See `Encoder.encode`. The first time that texts of a kind are truncated, a warning counts them."""
        import torch

        order, vectors = [], [np.empty((0, self.dimensions), dtype=np.float32)]
        self.model.eval()
        with torch.inference_mode():
            for batch, features in self._batches(texts, task, max_tokens or self.max_tokens):
                vectors.append(self._numbers(self.model(features, task=task)))
                order += batch
        return unit_rows(np.concatenate(vectors)[np.argsort(order)])  # here: the model may compute in bfloat16

    @property
    def parts_problem(self) -> str:
        """Why `encode_parts` cannot work: the model's pooling; empty if it can."""
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
        pooled: list = [[np.empty((0, self.dimensions), dtype=np.float32)] for _ in parts]
        self.model.eval()
        with torch.inference_mode():
            for batch, features in self._batches(texts, "document", self.max_tokens):
                order = np.append(order, batch)
                states = TokenStates(self.model, features)
                for rows, its_counts in zip(pooled, counts, strict=True):
                    rows.append(self._numbers(states.pooled(torch.from_numpy(its_counts[batch]))))
        places = [np.argsort(np.repeat(order, its_counts[order]), kind="stable") for its_counts in counts]
        vectors = [unit_rows(np.concatenate(rows)[its]) for rows, its in zip(pooled, places, strict=True)]
        return list(zip(vectors, counts, strict=True))

    @cached_property
    def _bare(self) -> bool:
        """True for a tokenizer without transformers' shell, as models of static word vectors have it."""
        return isinstance(self.model.tokenizer, tokenizers.Tokenizer)

    @cached_property
    def _backend(self) -> tokenizers.Tokenizer | None:
        """A copy of the tokenizer with truncation and padding off; None if it is not a fast one."""
        fast = self.model.tokenizer if self._bare else getattr(self.model.tokenizer, "backend_tokenizer", None)
        if not isinstance(fast, tokenizers.Tokenizer):
            return None
        copy = tokenizers.Tokenizer.from_str(fast.to_str())
        copy.no_truncation()
        copy.no_padding()
        return copy

    @property
    def _reads_ids(self) -> bool:
        """True if token ids are all that the model's own preprocessing makes of a text."""
        first = self.model[0]
        if self._backend is None or self._bare:
            return self._bare
        special = ("query_length", "document_length", "query_expansion", "can_flatten_inputs")
        settings = (getattr(first, "processing_kwargs", None) or {}).values()
        left_out = not all(getattr(module, "include_prompt", True) for module in self.model)
        return (
            set(getattr(first, "modality_config", {})) == {"text"}
            and getattr(first, "transformer_task", None) == "feature-extraction"
            and first.processor is self.model.tokenizer
            and not any(getattr(first, name, None) for name in special)
            and all(set(its) <= {"padding"} for its in settings)
            and not (left_out and any(self.model.prompts.values()))
        )

    @cached_property
    def _pads_to_maximum(self) -> bool:
        """True if the folder asks for every text to be padded to the longest input (a converted M2-BERT does)."""
        wanted = getattr(self.model[0], "processing_kwargs", None) or {}
        return "max_length" in [wanted.get(kind, {}).get("padding") for kind in ("text", "common")]

    def _prompt(self, task: Task) -> str:
        prompts = self.model.prompts
        names = [name for name in (*PROMPT_NAMES[task], self.model.default_prompt_name) if name in prompts]
        return (prompts[names[0]] or "") if names else ""

    def _tokenized(self, texts: list[str], prompt: str) -> Iterator[TokenizedText]:
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            group = texts[start : start + TEXTS_AT_ONCE]
            new = [prompt + text for text in group if getattr(text, "prompt", None) != prompt]
            if self._backend is not None:
                encodings = iter(self._backend.encode_batch(new, add_special_tokens=False))
                special = 0 if self._bare else self._backend.num_special_tokens_to_add(False)
            else:
                encodings = iter(self.model.tokenizer(new, truncation=False, verbose=False)["input_ids"] if new else [])
                special = 0
            for text in group:
                if getattr(text, "prompt", None) != prompt:
                    encoding = next(encodings)
                    text = TokenizedText(text, prompt, len(encoding) + special, encoding)
                    if len(self._counts) < COUNTS_KEPT:
                        self._counts[_key(text, prompt)] = text.tokens
                yield text

    def _batches(self, texts: list[str], task: Task, limit: int | None) -> Iterator[tuple[list[int], dict]]:
        """Yield batches of texts (see `token_batches`) and the model's features of each, with progress in tokens."""
        from sentence_transformers.util import batch_to_device

        lengths = self.count_tokens(texts, task)
        cut = int((lengths > limit).sum()) if limit else 0
        if cut and (task, limit) not in self._warned:
            self._warned.add((task, limit))
            logger.warning("%s: %d of %d %s texts cut to %d tokens", self.name, cut, len(lengths), task, limit)
        lengths = np.minimum(lengths, limit) if limit else lengths
        if self._pads_to_maximum:  # whatever a text's length, this is what it costs
            lengths = np.full_like(lengths, limit or self.max_tokens)
        with counted(int(lengths.sum()), f"{task} texts", "token", show=len(lengths) >= 100) as count:
            for batch in token_batches(lengths, BATCH_TOKENS):
                features = self._features([texts[i] for i in batch], task, limit)
                yield batch, batch_to_device(features, self.model.device)
                count.add(int(lengths[batch].sum()))

    def _features(self, texts: list[str], task: Task, limit: int | None) -> dict:
        """Return what the model reads of texts, truncated to `limit` tokens: made of their ids, where it can be."""
        import torch

        if not self._reads_ids:
            shorter = {} if limit == self.max_tokens else {"max_length": limit}
            return self.model.preprocess(list(map(str, texts)), prompt=self._prompt(task), task=task, **shorter)
        texts = self.tokenize(texts, task)
        tokenizer = self.model.tokenizer
        if self._bare:
            ids = [text.encoding.ids[:limit] for text in texts]
            offsets = np.cumsum([0, *map(len, ids[:-1])])
            return {
                "input_ids": torch.tensor([each for row in ids for each in row], dtype=torch.long),
                "offsets": torch.from_numpy(offsets),
            }
        if limit:
            self._backend.enable_truncation(limit, direction=tokenizer.truncation_side)
        encodings = [self._backend.post_process(text.encoding) for text in texts]  # special tokens, truncation
        self._backend.no_truncation()
        columns = {
            "input_ids": ("ids", tokenizer.pad_token_id or 0),
            "token_type_ids": ("type_ids", tokenizer.pad_token_type_id),
            "attention_mask": ("attention_mask", 0),
        }
        longest = (limit or self.max_tokens) if self._pads_to_maximum else max(map(len, encodings))
        features: dict = {"modality": "text"}
        for name, (attribute, padding) in columns.items():
            if name in tokenizer.model_input_names or name == "input_ids":
                table = np.full((len(encodings), longest), padding, dtype=np.int64)
                for row, encoding in zip(table, encodings, strict=True):
                    first = longest - len(encoding) if tokenizer.padding_side == "left" else 0
                    row[first : first + len(encoding)] = getattr(encoding, attribute)
                features[name] = torch.from_numpy(table)
        return features

    def _numbers(self, outputs: dict) -> np.ndarray:
        """Return the vectors (n, dimensions) among what the model's modules made."""
        rows = outputs["sentence_embedding"][:, : self.model.truncate_dim] if "sentence_embedding" in outputs else None
        if rows is None or rows.shape[1] != self.dimensions:
            given = "no vectors" if rows is None else f"vectors of {rows.shape[1]} numbers"
            fix = "mend modules.json, or the config.json of its Pooling or Dense"
            raise ValueError(f"encoder {self.name!r} gives {given}, and its settings say {self.dimensions}; {fix}")
        return rows.float().cpu().numpy()


def _key(text: str, prompt: str) -> tuple[str, int, int]:
    return prompt, len(text), hash(text)


def token_batches(lengths: np.ndarray, budget_tokens: int) -> list[list[int]]:
    """Return indices by falling length, cut so that rows times longest row stays within the budget.

    A text longer than the budget makes a batch of its own. Longest first: memory runs out at once or never.
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

    A folder may bring its own code. A Hub id may only with its commit, whose content cannot change. If the Hub does
    not answer within seconds, only the cache is read.
    """
    folder = Path(name)
    is_model = folder.is_dir()
    if is_model:
        check_code_files(folder)
        check_model_files(folder)
    pinned = None if is_model else re.fullmatch("(.+)@([0-9a-f]{40})", name)
    path, revision = pinned.groups() if pinned else (name, None)
    trusted = is_model or pinned is not None
    make = _sentence_transformers()
    with nullcontext("") if is_model else hub_or_cache(path, revision) as silent:  # why the Hub does not answer
        try:
            model = make(path, device=device, revision=revision, trust_remote_code=trusted)
        except Exception as error:  # other people's files, read by other people's code
            reason = f"cannot be loaded ({type(error).__name__}: {one_line(error)}); mend it, or name another"
            if "trust_remote_code" in str(error) and not trusted:
                reason = f"brings code of its own; read it, then name the commit (40 digits), as in {name}@COMMIT"
            elif silent:
                reason = f"is no folder here and not in the cache, and the Hub does not answer ({silent}); go online"
                if Path(name).name == "m2bert-small":
                    reason += ", or give its folder: models/m2bert-small of this package's repository"
            raise ValueError(f"encoder {name!r} {reason}") from error
    if problem := unusable(model, folder):
        raise ValueError(f"encoder {name!r} {problem}")
    return model


def _sentence_transformers():
    """Import the class, which is slow: a fifth of the time would go into looking for garbage."""
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


def unusable(model, folder: Path) -> str:
    """Return why a loaded `SentenceTransformer` cannot be used, or is not what its folder holds; empty if it can be.

    transformers fills tensors that safetensors lack at random. A pooler may be missing where sentence-transformers
    pools by itself. A folder of another class than the one that was loaded may hold that class's head. Older folders
    hold tables that are made anew (`position_ids`).
    """
    transformer, dimensions = model[0], model.get_embedding_dimension()
    if getattr(model, "tokenizer", None) is None:
        return f"begins with {type(transformer).__name__}, which reads no text; mend modules.json"
    if len(model) == 1 and hasattr(transformer, "modality_config") and not pools_itself(transformer):
        return "has no module that makes one vector of its tokens'; mend modules.json"
    if not isinstance(dimensions, int):
        return f"has a dimension in a config.json that is no number: {dimensions!r}"
    stored = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, "np") as tensors:
            stored |= set(tensors.keys())
    inner = getattr(transformer, "model", None)
    if not stored or inner is None:
        return ""
    expected = set(inner.state_dict())
    without_prefix = stored | {name.split(".", 1)[-1] for name in stored}  # of a model with a head, `bert.` or `model.`
    missing = {
        name for name in expected - without_prefix if pools_itself(transformer) or not name.startswith("pooler.")
    }
    same_class = type(inner).__name__ in (inner.config.architectures or [])
    unexpected = stored - expected - {name for name, _ in inner.named_buffers()} if same_class else set()
    names = ", ".join(sorted(missing or unexpected))
    return f"{'lacks' if missing else 'has, unexpectedly,'} {names}; save the whole model again" if names else ""


def pools_itself(transformer) -> bool:
    """Return whether the transformer gives a text's vector, not those of its tokens."""
    return getattr(transformer, "module_output_name", None) == "sentence_embedding"


def late_chunking_problem(model) -> str:
    """Return why a `SentenceTransformer` cannot pool parts of a text: its vector is not some mean over its tokens."""
    transformer, *others = model
    inner, modes = getattr(transformer, "model", None), []
    if pools_itself(transformer):
        pooler = getattr(inner, "pooler", None)
        if pooler is not None and len(inspect.signature(pooler.forward).parameters) == 3:  # takes a mask of tokens
            modes = [getattr(pooler, "pooling", "")]
    elif inner is not None and hasattr(transformer, "modality_config"):
        modes = [mode for module in others for mode in np.atleast_1d(getattr(module, "pooling_mode", []))]
    single = [str(mode) for mode in modes if str(mode).startswith(POOLS_ONE_TOKEN)]
    if modes and not single:
        return ""
    kind = ", ".join(single) or f"of {type(transformer).__name__} is unknown or takes no mask of tokens, so it"
    return f"its pooling {kind} is no mean over tokens; use best-chunk"


class TokenStates:
    """What a model makes of every token of a batch: read once, then pooled in any number of parts.

    Args:
        model: a `SentenceTransformer` in evaluation mode that has no `late_chunking_problem`.
        features: what its `preprocess` returns, on its device.
    """

    def __init__(self, model, features: dict):
        self.transformer, *self.others = model
        self.mask = features["attention_mask"].bool()  # (B, L)
        prompt = features.pop("prompt_length", None)  # else the pooling would drop as many tokens of every part
        if prompt is not None and not all(getattr(module, "include_prompt", True) for module in self.others):
            self.mask = self.mask & (self.mask.cumsum(1) > int(prompt))
        if pools_itself(self.transformer):
            names = ("input_ids", "attention_mask", "token_type_ids")
            outputs = self.transformer.model(**{name: features[name] for name in names if name in features})
            self.features = {**features, "hidden": outputs.last_hidden_state}
        else:
            self.features = self.transformer(features)

    def pooled(self, counts) -> dict:
        """Return the vectors (sum of counts, d) that the model's modules make of all parts, a row's side by side.

        Special tokens belong to the first and the last part, a prompt to the first.

        Args:
            counts: (B,), in how many equal parts each row is divided.
        """
        import torch

        counts = counts.to(self.mask.device)
        total = self.mask.sum(1, keepdim=True).clamp(min=1)
        rank = self.mask.cumsum(1) - 1  # (B, L): of a token among those of its row
        part = rank * counts[:, None] // total  # (B, L): which part it belongs to
        if pools_itself(self.transformer):
            first = -(-part * total // counts[:, None])  # the rank of its part's first token
            return self._finished({"sentence_embedding": self._slices(part, rank - first, counts)})
        numbers = torch.arange(int(counts.max()), device=counts.device)
        masks = [(self.mask & (part == number)).to(self.features["attention_mask"].dtype) for number in numbers]
        parts = [self._finished({**self.features, "attention_mask": mask})["sentence_embedding"] for mask in masks]
        return {"sentence_embedding": torch.stack(parts, 1)[numbers < counts[:, None]]}

    def _finished(self, outputs: dict) -> dict:
        for module in self.others:
            outputs = module(outputs)
        return outputs

    def _slices(self, part, offset, counts):
        """Pool each part as a text of its own: the pooler reads every token once, not once for every part."""
        row = (counts.cumsum(0) - counts)[:, None] + part  # (B, L): of the part among all parts
        places = row[self.mask], offset[self.mask]
        shape = int(counts.sum()), int(places[1].max()) + 1
        slices = []
        for whole in (self.features["hidden"], self.mask, self.features["input_ids"]):
            slices.append(whole.new_zeros(*shape, *whole.shape[2:]).index_put(places, whole[self.mask]))
        return self.transformer.model.pooler(*slices)
