"""mteb's tasks and models as ours.

Tasks are found by name: of a task, of a benchmark, or of a group of the paper's tables. Only English subsets are taken
where a task has them: the paper scores English alone. Models that embed become encoders; those that search by
themselves (BM25, ColBERT) become rankers.
"""

import hashlib
import json
import logging
import math
from difflib import get_close_matches
from functools import lru_cache

import numpy as np

from m2bert.records import installed_versions
from m2bert.terminal import nearest, one_line

from .encoders.policies import unit_rows
from .encoders.protocol import Task
from .report.tables import paper_columns
from .search import DEPTH, Run, rerank_order, trec_order
from .tasks.from_hub import hub_or_cache
from .tasks.schema import RetrievalTask, judged_task, texts_by_id, where_of

logger = logging.getLogger(__name__)

BATCH_SIZE = 32  # as mteb's own
PACKAGES = ("mteb", "torch", "transformers", "sentence-transformers")  # versions that decide a model's numbers
SUBSET = "default"

# {name of a group: mteb's names of its tasks}; the columns of the paper's tables are called so.
PAPER_GROUPS = {f"table-{table}": tuple(paper_columns(table)) for table in ("14", "18", "19", "20", "21", "22")}
PAPER_GROUPS["table-10"] = ("MultiLongDocRetrieval",)
PAPER_GROUPS["table-9"] = sum((PAPER_GROUPS[f"table-{table}"] for table in range(18, 23)), ())
# Whose subsets of multilingual tasks are taken; the paper leaves some of its tasks out.
PAPER_BENCHMARK = "MTEB(eng, v1)"


def mteb_tasks(names: list[str]) -> list:
    """Return mteb's task objects of task, benchmark and group names, each once, no data loaded."""
    import mteb

    benchmarks = {benchmark.name for benchmark in mteb.get_benchmarks()}
    in_paper = {task.metadata.name: task for task in mteb.get_benchmark(PAPER_BENCHMARK).tasks}
    found = {}
    for name in names:
        if name in benchmarks:
            tasks = mteb.get_benchmark(name).tasks
        else:
            tasks = [in_paper.get(member) or _english_task(member) for member in PAPER_GROUPS.get(name, (name,))]
        found |= {task.metadata.name: task for task in tasks}
    return list(found.values())


def _english_task(name: str):
    """Return a task of mteb with its English subsets, or with all if it has none."""
    import mteb
    from mteb.get_tasks import get_tasks

    try:
        task = mteb.get_task(name)
    except KeyError:
        known = {task.metadata.name for task in get_tasks(exclude_superseded=False)} | set(PAPER_GROUPS)
        known |= {benchmark.name for benchmark in mteb.get_benchmarks()}
        raise ValueError(
            f"mteb has no task, benchmark or group called {name!r}; all: `mteb available-tasks`, "
            f"`mteb available-benchmarks`, and {', '.join(PAPER_GROUPS)}{nearest(name, known)}"
        ) from None
    if task.metadata.is_multilingual and "eng" in task.metadata.languages:
        return mteb.get_task(name, languages=["eng"], exclusive_language_filter=True)
    return task


def ranked_here(task) -> bool:
    """Return whether a task of mteb can become a `RetrievalTask`.

    Tasks other than plain retrieval of texts cannot, nor those whose scoring leaves out each query's own document or
    averages several corpora: mteb scores them (`m2bert.eval.mteb_export.run_tasks`).
    """
    from mteb.abstasks import AbsTaskRetrieval

    return (
        isinstance(task, AbsTaskRetrieval)
        and task.metadata.type == "Retrieval"
        and list(task.metadata.modalities) == ["text"]
        and not (task.ignore_identical_ids or task.skip_first_result)
    )


def from_mteb(names: list[str], split: str = "test") -> list[RetrievalTask]:
    """Load tasks of mteb at its own revisions: one for each split and subset, English ones where there are.

    A document's text is its title, a space and its body, as mteb gives it to encoders; a query's instruction follows
    the query. Queries without a judgment are left out, as mteb does.

    Args:
        names: of tasks, benchmarks, or the groups of the paper's tables (`table-14`).
        split: taken where a task has it. `test` stands for all evaluation splits of a task that calls them otherwise
            (`dev` of MSMARCO, the eight lengths of LEMBNeedleRetrieval).
    """
    tasks = mteb_tasks(names)
    for task in tasks:  # all of them before the first download
        name, known = task.metadata.name, task.eval_splits
        problem = None if split in (*known, "test") else f"has no split {split!r}; it has {', '.join(known)}"
        if not ranked_here(task):
            problem = f"({task.metadata.type}) is scored by mteb itself; use mteb_export.run_tasks"
        if problem:
            raise ValueError(f"mteb task {name!r} {problem}")
    return [loaded for task in tasks for loaded in _load(task, split)]


def _load(task, split: str) -> list[RetrievalTask]:
    name, dataset = task.metadata.name, task.metadata.dataset
    try:
        with hub_or_cache(dataset["path"], dataset.get("revision"), "dataset") as silent:
            task.load_data()
    except Exception as error:  # no network, data that have moved or need a script: each task has a loader of its own
        raise ValueError(f"the data of mteb task {name!r} cannot be loaded: {reason(error, silent)}") from error
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    loaded = []
    splits = [split] if split in task.eval_splits else task.eval_splits
    for subset, data in task.dataset.items():
        full_name = name if len(task.dataset) == 1 else f"{name} ({subset})"
        loaded += [_retrieval_task(full_name, split, data[split], dataset) for split in splits]
    task.unload_data()
    return loaded


def reason(error: Exception, silent: str = "") -> str:
    """Return kind and text of an error on one line, and why the Hub does not answer, if it does not."""
    unreachable = f"; the Hub does not answer ({silent}), go online" if silent else ""
    return f"{type(error).__name__}: {one_line(error)}{unreachable}"


def _retrieval_task(name: str, split: str, data: dict, dataset: dict) -> RetrievalTask:
    """Return a split of mteb's data as a task, with the queries that it judges, as mteb."""
    where = where_of(name, split, "mteb")
    documents = texts_by_id("documents", ((row["id"], document_text(row)) for row in data["corpus"]), where)
    texts = texts_by_id("queries", ((row["id"], query_text(row)) for row in data["queries"]), where)
    judged = {qid: its for qid in texts if (its := data["relevant_docs"].get(qid))}
    qrels = {qid: {pid: int(grade) if grade == int(grade) else grade for pid, grade in its.items()}
             for qid, its in judged.items()}  # fmt: skip
    queries = texts_by_id("judged queries", ((qid, texts[qid]) for qid in qrels), where)
    return judged_task(name, split, queries, documents, qrels, dataset["path"], dataset.get("revision"))


def document_text(row: dict) -> str:
    """Return title, a space and text, without space around them; what is not text is returned as it is."""
    if not isinstance(row["text"], str):
        return row["text"]
    return f"{row['title']} {row['text']}".strip() if row.get("title") else row["text"].strip()


def query_text(row: dict) -> str:
    """Return text and instruction; what is not text, such as a conversation, is returned as it is."""
    return f"{row['text']} {row['instruction']}" if row.get("instruction") else row["text"]


def metadata_of(task: RetrievalTask, language: str = "eng-Latn"):
    """Return mteb's metadata of a task; what is not known (license, dates, how it was made) stays empty.

    The fingerprint is given as the revision, so that mteb does not take stored results of other data of the same name.
    """
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    return TaskMetadata(
        name=task.name,
        description=f"{task.name}, {task.split}: {len(task.queries)} queries, {len(task.documents)} documents.",
        dataset={"path": task.source or task.name, "revision": task.fingerprint},
        prompt={"query": AbsTaskRetrieval.abstask_prompt},  # models that are given instructions look for one
        type="Retrieval",
        category="t2t",
        eval_splits=[task.split],
        eval_langs=[language],
        main_score="ndcg_at_10",
    )


def split_data(task: RetrievalTask) -> dict:
    """Return the data of a task as mteb keeps those of a split."""
    from datasets import Dataset

    ids, texts = list(task.documents), list(task.documents.values())
    return {
        "corpus": Dataset.from_dict({"id": ids, "title": [""] * len(ids), "text": texts}),
        "queries": Dataset.from_dict({"id": list(task.queries), "text": list(task.queries.values())}),
        "relevant_docs": {qid: dict(judged) for qid, judged in task.qrels.items()},
        "top_ranked": None,
    }


@lru_cache(maxsize=1)  # called twice per model
def load_mteb_model(name: str) -> "MtebEncoder | MtebRanker":
    """Load a model by its name in mteb, or by its id on the Hub; not a cross-encoder, which only compares pairs."""
    import mteb
    from mteb.models import EncoderProtocol, SearchProtocol
    from mteb.models.model_implementations import MODEL_REGISTRY

    try:
        with hub_or_cache(name, None) as silent:
            model = mteb.get_model(name)
    except Exception as error:  # a loader of mteb, of which there are hundreds, or the Hub: anything may be raised
        by_last_part = {known.split("/")[-1].lower(): known for known in MODEL_REGISTRY}
        near = [] if name in MODEL_REGISTRY else get_close_matches(name.split("/")[-1].lower(), by_last_part)
        hint = f"; nearest: {', '.join(by_last_part[known] for known in near)}" if near else ""
        raise ValueError(f"mteb model {name!r} cannot be loaded ({reason(error, silent)}){hint}") from error
    if isinstance(model, SearchProtocol):
        return MtebRanker(name, model)
    if isinstance(model, EncoderProtocol):
        return MtebEncoder(name, model)
    raise ValueError(f"mteb model {name!r} compares pairs of texts; name one that embeds them or that searches")


class MtebEncoder:
    """A model of mteb's EncoderProtocol. It does not show its tokens: the only policy that works is truncate."""

    def __init__(self, name: str, model):
        self.name = name
        self.model = model
        self.fingerprint = model_fingerprint(model.mteb_model_meta)
        self.max_tokens, width = sizes_of(model.mteb_model_meta)
        self.dimensions = width or len(self.encode(["width"], "document")[0])
        scoring = str(getattr(model.mteb_model_meta.similarity_fn_name, "value", "cosine"))
        if scoring != "cosine":
            logger.warning("%s is meant to be compared by %s; here its vectors are compared by cosine", name, scoring)

    def encode(self, texts: list[str], task: Task, max_tokens: int | None = None) -> np.ndarray:
        """See `Encoder.encode`. mteb's models truncate at their own maximum: `max_tokens` raises ValueError."""
        if max_tokens is not None:
            raise ValueError(f"encoder {self.name!r} of mteb cannot cut texts at {max_tokens} tokens; leave tokens out")
        if not texts:
            return np.zeros((0, self.dimensions), dtype=np.float32)
        from mteb.types import PromptType

        unnamed = RetrievalTask("m2bert-eval", "test", {}, {}, {}, fingerprint="")  # vectors do not depend on the task
        vectors = self.model.encode(
            loader_of(texts, task),
            task_metadata=metadata_of(unnamed),
            hf_split=unnamed.split,
            hf_subset=SUBSET,
            prompt_type=PromptType(task),
            batch_size=BATCH_SIZE,
            show_progress_bar=False,
        )
        if hasattr(vectors, "cpu"):  # a tensor on any device, perhaps in bfloat16
            vectors = vectors.float().cpu().numpy()
        return unit_rows(np.asarray(vectors, dtype=np.float32))


class MtebRanker:
    """A model of mteb's SearchProtocol, which searches by itself."""

    def __init__(self, name: str, model):
        self.name = name
        self.model = model
        about = model.mteb_model_meta
        max_tokens, dimensions = sizes_of(about)
        self.is_lexical = about.n_parameters == 0  # BM25: nothing is trained and there are no vectors
        unknown = ("vectors_per_document", "seen_share", "truncated_documents")
        unknown += ("seconds_per_document", "seconds_per_query")
        known = {"dimensions": dimensions, "max_tokens": max_tokens, "model_fingerprint": model_fingerprint(about)}
        self.report = dict.fromkeys(unknown) | known

    def rank(self, task: RetrievalTask) -> Run:
        """Index the documents and search them for every query."""
        return self._search(task, None)

    def rerank(self, task: RetrievalTask, candidates: Run, depth: int) -> Run:
        """Order the best `depth` candidates of each query anew; the others follow as they were."""
        best = {qid: trec_order(scores)[:depth] for qid, scores in candidates.items()}
        return rerank_order(candidates, self._search(task, best))

    def _search(self, task: RetrievalTask, candidates: dict[str, list[str]] | None) -> Run:
        data = split_data(task)
        settings = {"task_metadata": metadata_of(task), "hf_split": task.split, "hf_subset": SUBSET}
        settings |= {"encode_kwargs": {"batch_size": BATCH_SIZE}, "num_proc": None}
        self.model.index(data["corpus"], **settings)
        run = self.model.search(data["queries"], top_k=DEPTH, top_ranked=candidates, **settings)
        return {qid: {pid: float(score) for pid, score in run.get(qid, {}).items()} for qid in task.queries}


def sizes_of(about) -> tuple[int | None, int | None]:
    """Return the longest input in tokens and the width of the vectors, by a model's metadata, None if not stated."""
    longest = about.max_tokens
    max_tokens = int(longest) if longest and math.isfinite(longest) else None
    return max_tokens, about.embed_dim if isinstance(about.embed_dim, int) else None


def model_fingerprint(about) -> str:
    """Return the sha256 of a model's metadata in mteb: name, revision and settings, and the packages that run it."""
    settings = [about.name, about.revision, about.loader_kwargs, about.experiment_kwargs]
    versions = installed_versions(PACKAGES)
    return hashlib.sha256(json.dumps([settings, versions], sort_keys=True, default=str).encode()).hexdigest()


def loader_of(texts: list[str], task: Task):
    """Return batches with the columns that mteb gives its models for queries and for documents."""
    from datasets import Dataset
    from torch.utils.data import DataLoader

    columns = {"id": [str(i) for i in range(len(texts))], "text": [text.strip() for text in texts], "body": texts}
    if task == "query":
        columns = {"id": columns["id"], "text": texts, "query": texts}
    return DataLoader(Dataset.from_dict(columns), batch_size=BATCH_SIZE)
