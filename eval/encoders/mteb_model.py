"""mteb's models as ours: those that embed become encoders, those that search (BM25, ColBERT) become rankers."""

import hashlib
import json
import logging
import math
from difflib import get_close_matches
from functools import lru_cache
from importlib import metadata

import numpy as np

from ..fusion import rerank_order
from ..search import DEPTH, Run, trec_order
from ..tasks.from_hub import hub_or_cache
from ..tasks.from_mteb import SUBSET, metadata_of, reason, split_data
from ..tasks.schema import RetrievalTask
from .policies import unit_rows
from .protocol import Task

logger = logging.getLogger(__name__)

BATCH_SIZE = 32  # as mteb's own
UNNAMED = RetrievalTask("m2bert-eval", "test", {}, {}, {}, fingerprint="")  # vectors do not depend on the task
PACKAGES = ("mteb", "torch", "transformers", "sentence-transformers")  # versions that decide a model's numbers


@lru_cache(maxsize=1)  # called twice per model
def load_mteb_model(name: str) -> "MtebEncoder | MtebRanker":
    """Load a model by its name in mteb, or by its id on the Hub.

    Raises:
        ValueError: mteb does not know it and the Hub has no such model, a package that it needs is missing, or it is
            a cross-encoder, which neither embeds nor searches.
    """
    import mteb
    from mteb.models import EncoderProtocol, SearchProtocol
    from mteb.models.model_implementations import MODEL_REGISTRY

    try:
        with hub_or_cache(name, None) as silent:
            model = mteb.get_model(name)
    except Exception as error:  # a loader of mteb, of which there are hundreds, or the Hub: anything may be raised
        by_last_part = {known.split("/")[-1].lower(): known for known in MODEL_REGISTRY}
        near = get_close_matches(name, MODEL_REGISTRY) + get_close_matches(name.split("/")[-1].lower(), by_last_part)
        names = dict.fromkeys(by_last_part.get(known, known) for known in near if name not in MODEL_REGISTRY)
        hint = f"; nearest: {', '.join(names)}" if names else ""
        raise ValueError(f"mteb model {name!r} cannot be loaded ({reason(error, silent)}){hint}") from error
    if isinstance(model, SearchProtocol):
        return MtebRanker(name, model)
    if isinstance(model, EncoderProtocol):
        return MtebEncoder(name, model)
    raise ValueError(f"mteb model {name!r} compares pairs of texts; name one that embeds them or that searches")


class MtebEncoder:
    """A model of mteb that embeds texts. It does not show its tokens: the only policy that works is truncate.

    Args:
        name: what the user calls it.
        model: has mteb's EncoderProtocol.
    """

    def __init__(self, name: str, model):
        self.name = name
        self.model = model
        self.fingerprint = fingerprint_of(model.mteb_model_meta)
        self.max_tokens, width = sizes_of(model.mteb_model_meta)
        self.dimensions = width or len(self.encode(["width"], "document")[0])
        scoring = str(getattr(model.mteb_model_meta.similarity_fn_name, "value", "cosine"))
        if scoring != "cosine":
            logger.warning("%s is meant to be compared by %s; here its vectors are compared by cosine", name, scoring)

    def encode(self, texts: list[str], task: Task, max_tokens: int | None = None) -> np.ndarray:
        """See `Encoder.encode`.

        Raises:
            ValueError: max_tokens is given: mteb's models truncate at their own maximum.
        """
        if max_tokens is not None:
            raise ValueError(f"encoder {self.name!r} of mteb cannot cut texts at {max_tokens} tokens; leave tokens out")
        if not texts:
            return np.zeros((0, self.dimensions), dtype=np.float32)
        from mteb.types import PromptType

        vectors = self.model.encode(
            loader_of(texts, task),
            task_metadata=metadata_of(UNNAMED),
            hf_split=UNNAMED.split,
            hf_subset=SUBSET,
            prompt_type=PromptType(task),
            batch_size=BATCH_SIZE,
            show_progress_bar=False,
        )
        if hasattr(vectors, "cpu"):  # a tensor on any device, perhaps in bfloat16
            vectors = vectors.float().cpu().numpy()
        return unit_rows(np.asarray(vectors, dtype=np.float32))


class MtebRanker:
    """A model of mteb that searches by itself.

    Args:
        name: what the user calls it.
        model: has mteb's SearchProtocol.
    """

    def __init__(self, name: str, model):
        self.name = name
        self.model = model
        about = model.mteb_model_meta
        max_tokens, dimensions = sizes_of(about)
        self.is_lexical = about.n_parameters == 0  # BM25: nothing is trained and there are no vectors
        self.report = {
            "vectors_per_document": None,
            "seen_share": None,
            "truncated_documents": None,
            "seconds_per_document": None,  # indexing and searching may share the work
            "seconds_per_query": None,
            "dimensions": dimensions,
            "max_tokens": max_tokens,
            "model_fingerprint": fingerprint_of(about),
        }

    def rank(self, task: RetrievalTask) -> Run:
        """Index the documents and search them for every query."""
        return self._search(task, None)

    def rerank(self, task: RetrievalTask, candidates: Run, depth: int) -> Run:
        """Order the best `depth` candidates of each query anew; the others follow as they were."""
        best = {qid: trec_order(scores)[:depth] for qid, scores in candidates.items()}
        return rerank_order(candidates, self._search(task, best))

    def _search(self, task: RetrievalTask, candidates: dict[str, list[str]] | None) -> Run:
        data = split_data(task)
        settings = {
            "task_metadata": metadata_of(task),
            "hf_split": task.split,
            "hf_subset": SUBSET,
            "encode_kwargs": {"batch_size": BATCH_SIZE},
            "num_proc": None,
        }
        self.model.index(data["corpus"], **settings)
        run = self.model.search(data["queries"], top_k=DEPTH, top_ranked=candidates, **settings)
        return {qid: {pid: float(score) for pid, score in run.get(qid, {}).items()} for qid in task.queries}


def sizes_of(about) -> tuple[int | None, int | None]:
    """Return the longest input in tokens and the width of the vectors, by a model's metadata, None if not stated."""
    longest = about.max_tokens
    max_tokens = int(longest) if longest and math.isfinite(longest) else None
    return max_tokens, about.embed_dim if isinstance(about.embed_dim, int) else None


def fingerprint_of(about) -> str:
    """Return the sha256 of a model's metadata in mteb: name, revision and settings, and the packages that run it."""
    settings = [about.name, about.revision, about.loader_kwargs, about.experiment_kwargs]
    versions = {package: metadata.version(package) for package in PACKAGES}
    return hashlib.sha256(json.dumps([settings, versions], sort_keys=True, default=str).encode()).hexdigest()


def loader_of(texts: list[str], task: Task):
    """Return batches with the columns that mteb gives its models for queries and for documents."""
    from datasets import Dataset
    from torch.utils.data import DataLoader

    columns = {"id": [str(i) for i in range(len(texts))], "text": [text.strip() for text in texts], "body": texts}
    if task == "query":
        columns = {"id": columns["id"], "text": texts, "query": texts}
    return DataLoader(Dataset.from_dict(columns), batch_size=BATCH_SIZE)
