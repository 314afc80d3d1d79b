"""Our encoders and tasks as mteb's, its evaluation of encoders, and LoCoV1's tasks as its classes.

    import m2bert.eval.mteb_export
    mteb.evaluate(model, [mteb.get_task("LoCoV1QMSum")])

Importing this file imports mteb, and makes the twelve names known to it. A LoCoV1 task is read from the branch `main`
of two data sets, of which no commit is known here; these classes were not yet run on it. mteb keeps descriptive
statistics of its own tasks alone.
"""

import logging
from collections.abc import Iterable

import mteb
import numpy as np
from mteb.abstasks import AbsTaskRetrieval
from mteb.get_tasks import _TASKS_REGISTRY  # what mteb.get_task reads; there is no function that adds to it
from mteb.models import ModelMeta
from mteb.similarity_functions import cos_sim, pairwise_cos_sim

from .analyses.shared import one_vector, provenance
from .encoders.policies import Policy, Truncate
from .encoders.protocol import Encoder
from .from_mteb import SUBSET, metadata_of, reason, split_data
from .report.tables import read_paper
from .tasks.from_hub import LOCOV1, load_hub_tasks
from .tasks.schema import RetrievalTask

logger = logging.getLogger(__name__)

ORGANIZATION = "m2bert-eval"  # mteb's models are called organization/name
# What the paper prints in Tables 20 and 22, and the cosine's average precision; mteb's main scores there are others.
ALSO = ("cosine_pearson", "cosine_accuracy", "cosine_ap", "ndcg_at_10")


class EncoderForMteb:
    """An encoder with its policy as mteb's EncoderProtocol.

    Texts that are neither queries nor documents (of classification, clustering and similarity tasks) are embedded as
    queries: that is what models with prompts ask for where both sides are alike.

    Args:
        policy: one that works with the encoder and gives a document one vector; truncation by default.
    """

    similarity = staticmethod(cos_sim)
    similarity_pairwise = staticmethod(pairwise_cos_sim)

    def __init__(self, encoder: Encoder, policy: Policy | None = None):
        self.encoder = encoder
        self.policy = one_vector(policy or Truncate())
        self.policy.check(encoder)
        name = f"{encoder.name} ({self.policy.spec})".replace("/", "_")
        about = {"name": f"{ORGANIZATION}/{name}", "revision": encoder.fingerprint, "languages": None}
        self.mteb_model_meta = ModelMeta.create_empty(overwrites=about)

    def encode(self, inputs: Iterable[dict], *, prompt_type=None, **_) -> np.ndarray:
        """Return unit rows (n, d) float32 of the texts in batches of `inputs`, whatever the task."""
        texts = [text for batch in inputs for text in batch["text"]]
        if getattr(prompt_type, "value", prompt_type) == "document":
            return self.policy.embed(self.encoder, texts).rows
        return self.encoder.encode(texts, "query")


def run_tasks(encoder: Encoder, policy: Policy, tasks: list, system: str) -> list[dict]:
    """Score an encoder on tasks that mteb scores by itself (classification, clustering, pairs, reranking, ...).

    Encoders give vectors of length 1. For a model that does not, mteb's own wrapper keeps the lengths, which
    classifiers and clusters notice: there the scores differ a little.

    Args:
        policy: for the documents of retrieval and reranking tasks; see `EncoderForMteb`.
        tasks: mteb's task objects.
        system: what tables call it.

    Returns:
        A record of kind "mteb" for each task and split: mteb's main score there (0 to 1), the mean over subsets.
    """
    model = EncoderForMteb(encoder, policy)
    records = []
    for task in tasks:
        about = task.metadata
        logger.info("%s on mteb's %s", encoder.name, about.name)
        try:
            (result,) = mteb.evaluate(model, [task], cache=None, co2_tracker=False).task_results
        except Exception as error:  # of the task's own loader or scoring
            raise ValueError(f"mteb task {about.name!r} failed: {reason(error)}") from error
        for split, scores in result.scores.items():
            others = [name for name in ALSO if name != about.main_score and name in scores[0]]
            names = ("main_score", *others)
            means = {name: float(sum(subset[name] for subset in scores) / len(scores)) for name in names}
            records.append(
                {
                    "kind": "mteb",
                    **provenance(system, encoder.name, policy.spec, encoder.fingerprint),
                    "task": about.name,
                    "split": split,
                    "metric": about.main_score,
                    "value": means.pop("main_score"),
                    "other_scores": means,
                    "group": about.type.lower(),
                    "revision": about.dataset.get("revision"),
                }
            )
    return records


def to_mteb(task: RetrievalTask, language: str = "eng-Latn") -> AbsTaskRetrieval:
    """Return an instance of mteb's task class with this task's data, for `mteb.evaluate(model, [to_mteb(task)])`.

    Args:
        language: of all texts; mteb's BM25 chooses stop words by it.
    """

    class Task(AbsTaskRetrieval):
        metadata = metadata_of(task, language)

        def load_data(self, num_proc: int | None = None, **kwargs) -> None:
            self.dataset = {SUBSET: {task.split: split_data(task)}}
            self.data_loaded = True

    return Task()


BRANCH = "main"  # of the queries, and of the documents unless mteb is told another


class LoCoV1Retrieval(AbsTaskRetrieval):
    """Base of the twelve tasks; `task` is their value of the column `dataset`."""

    task: str

    def load_data(self, num_proc: int | None = None, **kwargs) -> None:
        """Download the pair of data sets on first use, and take this task's rows."""
        if self.data_loaded:
            return
        revisions = f"{BRANCH},{self.metadata.dataset['revision']}"
        self.dataset = {SUBSET: {}}
        for split in self.eval_splits:
            (loaded,) = load_hub_tasks(LOCOV1, [self.task], split, revisions)
            self.dataset[SUBSET][split] = split_data(loaded)
        self.data_loaded = True


def _locov1_class(task: str, about: dict) -> type:
    """Return the class of a task by its entry in paper.json."""
    query, document, source, (first, last) = (about[key] for key in ("query", "document", "source", "years"))
    details = {
        "description": f"From {query} to {document}. From {source}. Of LoCoV1, a benchmark of long documents (2024).",
        "reference": "https://arxiv.org/abs/2402.07440",
        "date": (f"{first}-01-01", f"{last}-12-31"),
        "domains": about["domains"],
        "task_subtypes": ["Question answering" if query.startswith("a question") else "Article retrieval"],
        "dialect": [],
        "license": "apache-2.0",
        "annotations_creators": "derived",
        "sample_creation": "found",
        "bibtex_citation": read_paper()["locov1"]["citation"],
    }
    name = f"LoCoV1{about['name']}"
    empty = RetrievalTask(name, "test", {}, {}, {}, fingerprint=BRANCH, source=f"{LOCOV1}-Documents")
    metadata = metadata_of(empty).model_copy(update=details)
    return type(name, (LoCoV1Retrieval,), {"task": task, "metadata": metadata, "__module__": __name__})


for cls in (_locov1_class(*entry) for entry in read_paper()["locov1"]["tasks"].items()):
    _TASKS_REGISTRY[cls.__name__] = cls
