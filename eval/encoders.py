"""Encoders: texts in, unit vectors out. Evaluation knows every model through this protocol only."""

import logging
import math
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import scipy.sparse
import tokenizers
from safetensors import safe_open
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from tqdm import tqdm

logger = logging.getLogger(__name__)

Task = Literal["query", "document"]

BATCH_TOKENS = 16_384  # padded tokens a batch: bounds memory whatever the lengths
# The names under which sentence-transformers looks for the prompt of a task.
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}


class Encoder(Protocol):
    """Anything that embeds texts; a query and a document may be treated differently."""

    name: str

    def encode(self, texts: list[str], task: Task) -> np.ndarray:
        """Embed n texts: (n, d) float32 whose rows have length 1, in the order of `texts`."""
        ...


class SentenceTransformerEncoder:
    """Any sentence-transformers model, or a folder that sentence-transformers can read.

    A local folder may bring its own code (`trust_remote_code`); a Hub id may not. Texts longer than
    `max_tokens` are truncated, and a warning counts them.

    Args:
        model_name_or_path: folder or Hub id.
        max_tokens: the longest input; by default the model's own maximum.

    Raises:
        ValueError: the model cannot be loaded, or max_tokens < 1.
    """

    def __init__(self, model_name_or_path: str | Path, max_tokens: int | None = None):
        from sentence_transformers import SentenceTransformer  # slow, and no baseline needs it
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # of loading weights, which takes no time
        self.name = str(model_name_or_path)
        is_folder = Path(model_name_or_path).is_dir()
        try:
            self.model = SentenceTransformer(self.name, trust_remote_code=is_folder)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"encoder {self.name!r} is no model folder and no Hub model that can be loaded: {reason}"
            ) from error
        if is_folder:
            check_tensors(Path(model_name_or_path), self.model[0])
        if max_tokens is not None:
            if max_tokens < 1:
                raise ValueError(f"max_tokens={max_tokens} leaves no input; it must be at least 1")
            self.model.max_seq_length = max_tokens
        longest = self.model.max_seq_length
        self.max_tokens = int(longest) if longest and math.isfinite(longest) else None

    def count_tokens(self, texts: list[str], task: Task) -> np.ndarray:
        """Tokens of each text before truncation, prompt and special tokens included: (n,) int."""
        prompts = self.model.prompts
        prompt = next((prompts[name] for name in PROMPT_NAMES[task] if name in prompts), "")
        prompted = [prompt + text for text in texts]
        tokenizer = self.model.tokenizer
        if isinstance(tokenizer, tokenizers.Tokenizer):  # models of static word vectors have a bare one
            return np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(prompted)])
        return np.array([len(ids) for ids in tokenizer(prompted, truncation=False, verbose=False)["input_ids"]])

    def count_truncated(self, texts: list[str], task: Task) -> int:
        """How many of the texts are longer than `max_tokens`."""
        return int((self.count_tokens(texts, task) > self.max_tokens).sum()) if self.max_tokens else 0

    def encode(self, texts: list[str], task: Task) -> np.ndarray:
        """See `Encoder.encode`."""
        if not texts:
            return np.zeros((0, self.model.get_embedding_dimension()), dtype=np.float32)
        lengths = self.count_tokens(texts, task)
        if self.max_tokens:
            truncated = int((lengths > self.max_tokens).sum())
            if truncated:
                share = f"{truncated} of {len(texts)}"
                logger.warning("%s: %s %s texts cut to %d tokens", self.name, share, task, self.max_tokens)
            lengths = np.minimum(lengths, self.max_tokens)
        encode = self.model.encode_query if task == "query" else self.model.encode_document
        vectors: list = [None] * len(texts)
        with tqdm(total=len(texts), desc=f"{task} texts", unit="text", disable=len(texts) < 100) as progress:
            for batch in token_batches(lengths, BATCH_TOKENS):
                rows = encode([texts[i] for i in batch], batch_size=len(batch), show_progress_bar=False)
                for i, row in zip(batch, rows, strict=True):
                    vectors[i] = row
                progress.update(len(batch))
        stacked = np.stack(vectors).astype(np.float32)  # (n, d)
        norms = np.linalg.norm(stacked, axis=1, keepdims=True)  # here: the model may compute in bfloat16
        return stacked / np.maximum(norms, np.finfo(np.float32).tiny)


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


def check_tensors(folder: Path, transformer) -> None:
    """Refuse a folder whose safetensors do not hold what its model reads: transformers would fill the gap at random.

    A pooler may be missing where sentence-transformers pools by itself, and a folder of another class than the one
    that was loaded may hold that class's head.

    Args:
        transformer: the first module of the sentence-transformers model.

    Raises:
        ValueError: tensors are missing or unexpected.
    """
    stored = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, "np") as tensors:
            stored |= set(tensors.keys())
    model = getattr(transformer, "model", None)
    if not stored or model is None:
        return
    expected = set(model.state_dict())
    without_prefix = stored | {name.split(".", 1)[-1] for name in stored}  # of a model with a head, `bert.` or `model.`
    missing = {
        name for name in expected - without_prefix if pools_itself(transformer) or not name.startswith("pooler.")
    }
    same_class = type(model).__name__ in (model.config.architectures or [])
    unexpected = stored - expected if same_class else set()
    for what, names in (("lacks", missing), ("has, unexpectedly,", unexpected)):
        if names:
            raise ValueError(f"encoder {str(folder)!r} {what} {', '.join(sorted(names))}; save the whole model again")


def pools_itself(transformer) -> bool:
    """Whether the transformer gives a text's vector, not those of its tokens."""
    return getattr(transformer, "module_output_name", None) == "sentence_embedding"


class TfidfProjection:
    """TF-IDF times a Gaussian random matrix: how far bare word counts get in `width` dimensions.

    Call `fit` with the documents of the task first.
    """

    def __init__(self, width: int, seed: int = 0):
        if width < 1:
            raise ValueError(f"width={width} is no embedding size; it must be at least 1")
        self.width = width
        self.seed = seed
        self.name = f"tfidf-rp:{width}"
        self._vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english")

    def fit(self, documents: list[str]) -> Self:
        """Learn vocabulary and document frequencies."""
        self._vectorizer.fit(documents)
        return self

    def tfidf(self, texts: list[str]) -> scipy.sparse.csr_matrix:
        """TF-IDF rows (n, vocabulary) before the projection."""
        return self._vectorizer.transform(texts)

    def encode(self, texts: list[str], task: Task) -> np.ndarray:
        """See `Encoder.encode`; a text without a known word becomes the zero vector."""
        return project(self.tfidf(texts), self.width, self.seed)


def project(rows: scipy.sparse.csr_matrix, width: int, seed: int) -> np.ndarray:
    """Unit rows (n, width) of `rows` (n, vocabulary) times a matrix of N(0, 1) / sqrt(width)."""
    matrix = np.random.default_rng(seed).standard_normal((rows.shape[1], width), dtype=np.float32)
    return normalize(rows.astype(np.float32) @ matrix / np.float32(width**0.5)).astype(np.float32)
