"""Our encoders and rankers as models of mteb, for `mteb.evaluate`."""

from collections.abc import Iterable

import numpy as np

from ..encoders.policies import Policy, Truncate
from ..encoders.protocol import Encoder
from ..search import Run, rerank_order, trec_order
from ..tasks.from_mteb import document_text, query_text
from ..tasks.locov1 import RetrievalTask

ORGANISATION = "m2bert-eval"  # mteb's models are called organisation/name


class EncoderForMteb:
    """An encoder with its policy as mteb's EncoderProtocol.

    Texts that are neither queries nor documents (of classification, clustering and similarity tasks) are embedded as
    queries: that is what models with prompts ask for where both sides are alike.

    Args:
        policy: one that gives a document one vector; truncation by default.

    Raises:
        ValueError: the policy gives several.
    """

    def __init__(self, encoder: Encoder, policy: Policy | None = None):
        self.encoder = encoder
        self.policy = policy or Truncate()
        if self.policy.several:
            raise ValueError(
                f"policy {self.policy.spec!r} gives a document several vectors, and mteb's encoders give one; "
                "use truncate or chunk-average, or search with RankerForMteb"
            )
        self.policy.check(encoder)
        self.mteb_model_meta = _about(f"{encoder.name} ({self.policy.spec})", encoder.fingerprint)

    def encode(self, inputs: Iterable[dict], *, prompt_type=None, **_) -> np.ndarray:
        """Unit rows (n, d) float32 of the texts in batches of `inputs`, whatever the task."""
        texts = [text for batch in inputs for text in batch["text"]]
        if getattr(prompt_type, "value", prompt_type) == "document":
            return self.policy.embed(self.encoder, texts).rows
        return self.encoder.encode(texts, "query")

    def similarity(self, embeddings1, embeddings2):
        """Return cosines of all pairs, a tensor (n, m)."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1, embeddings2):
        """Return cosines of corresponding rows, a tensor (n,)."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


class RankerForMteb:
    """A ranker as mteb's SearchProtocol.

    Args:
        ranker: has `rank(task)`, and `rerank(task, candidates, depth)` where it can do less than rank everything.
        name: for mteb's results.
        revision: what tells its results from those of another state of the ranker.
    """

    def __init__(self, ranker, name: str, revision: str = "1"):
        self.ranker = ranker
        self.documents: dict[str, str] = {}
        self.mteb_model_meta = _about(name, revision)

    def index(self, corpus: Iterable[dict], **_) -> None:
        """Keep the documents; they are indexed with the queries."""
        self.documents = {row["id"]: document_text(row) for row in corpus}

    def search(
        self,
        queries: Iterable[dict],
        *,
        task_metadata,
        hf_split: str,
        top_k: int,
        top_ranked: dict[str, list[str]] | None = None,
        **_,
    ) -> Run:
        """Return the best `top_k` documents of every query; among `top_ranked` only, where a task gives candidates."""
        texts = {row["id"]: query_text(row) for row in queries}
        task = RetrievalTask(task_metadata.name, hf_split, texts, self.documents, {}, fingerprint="")
        run = self.ranker.rank(task) if top_ranked is None else self._rerank(task, top_ranked)
        return {qid: {pid: scores[pid] for pid in trec_order(scores)[:top_k]} for qid, scores in run.items()}

    def _rerank(self, task: RetrievalTask, top_ranked: dict[str, list[str]]) -> Run:
        candidates = {
            qid: {pid: -float(place) for place, pid in enumerate(top_ranked.get(qid, []))} for qid in task.queries
        }
        if hasattr(self.ranker, "rerank"):
            return self.ranker.rerank(task, candidates, max(map(len, candidates.values())))
        run = self.ranker.rank(task)
        among = {qid: {pid: run[qid][pid] for pid in pids if pid in run[qid]} for qid, pids in candidates.items()}
        return rerank_order(candidates, among)


def _about(name: str, revision: str):
    from mteb.models import ModelMeta

    overwrites = {"name": f"{ORGANISATION}/{name.replace('/', '_')}", "revision": revision, "languages": None}
    return ModelMeta.create_empty(overwrites=overwrites)
