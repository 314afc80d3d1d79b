"""Retrieval tasks between mteb and this package, in both directions."""

import logging

from .hub_reach import hub_or_cache, plain
from .locov1 import RetrievalTask, fingerprint_of
from .mteb_names import mteb_tasks, ranked_here

logger = logging.getLogger(__name__)

SUBSET = "default"


def from_mteb(names: list[str], split: str = "test") -> list[RetrievalTask]:
    """Load tasks of mteb at its own revisions: one for each split and subset, English ones where there are.

    A document's text is its title, a space and its body, as mteb gives it to encoders; a query's instruction follows
    the query. Queries without a relevant document are left out, as mteb does.

    Args:
        names: of tasks, benchmarks, or the groups of the paper's tables (`table-14`).
        split: taken where a task has it. `test` stands for all evaluation splits of a task that calls them otherwise
            (`dev` of MSMARCO, the eight lengths of LEMBNeedleRetrieval).

    Raises:
        ValueError: a name or the split is unknown, mteb scores a task by itself, or its data cannot be loaded.
    """
    tasks = mteb_tasks(names)
    for task in tasks:
        if not ranked_here(task):
            raise ValueError(
                f"mteb task {task.metadata.name!r} ({task.metadata.type}) is scored by mteb itself; "
                "use m2bert.eval.mteb_adapter.run.run_mteb"
            )
    splits = [_splits_of(task, split) for task in tasks]
    return [loaded for task, wanted in zip(tasks, splits, strict=True) for loaded in _load(task, wanted)]


def _splits_of(task, split: str) -> list[str]:
    known = list(task.eval_splits)
    if split in known:
        return [split]
    if split == "test":
        return known
    raise ValueError(f"mteb task {task.metadata.name!r} has no split {split!r}; it has {', '.join(known)}")


def _load(task, splits: list[str]) -> list[RetrievalTask]:
    name = task.metadata.name
    dataset = task.metadata.dataset
    try:
        with hub_or_cache(dataset["path"], dataset.get("revision"), "dataset") as silent:
            task.load_data()
    except Exception as error:  # no network, data that have moved or need a script: each task has a loader of its own
        raise ValueError(f"the data of mteb task {name!r} cannot be loaded: {reason(error, silent)}") from error
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    loaded = []
    for subset, data in task.dataset.items():
        full_name = name if len(task.dataset) == 1 else f"{name} ({subset})"
        loaded += [_retrieval_task(full_name, split, data[split], task.metadata.dataset) for split in splits]
    task.unload_data()
    return loaded


def reason(error: Exception, silent: str = "") -> str:
    """Return kind and text of an error on one line, and why the Hub does not answer, if it does not."""
    unreachable = f"; the Hub does not answer ({silent}), go online" if silent else ""
    return f"{type(error).__name__}: {plain(error)}{unreachable}"


def _retrieval_task(name: str, split: str, data: dict, dataset: dict) -> RetrievalTask:
    documents = {row["id"]: document_text(row) for row in data["corpus"]}
    texts = {row["id"]: query_text(row) for row in data["queries"]}
    qrels = {}
    for qid in texts:
        judged = {pid: int(grade) for pid, grade in data["relevant_docs"].get(qid, {}).items() if pid in documents}
        if any(grade > 0 for grade in judged.values()):
            qrels[qid] = judged
    if not qrels:
        raise ValueError(f"mteb task {name!r} has no query with a relevant document in the split {split!r}")
    unanswered = sum(bool(data["relevant_docs"].get(qid)) for qid in texts) - len(qrels)
    if unanswered:
        logger.warning("%s: %d queries have no relevant document there; left out, mteb counts 0", name, unanswered)
    queries = {qid: texts[qid] for qid in qrels}
    fingerprint = fingerprint_of(queries, documents, qrels)
    return RetrievalTask(
        name, split, queries, documents, qrels, fingerprint, source=dataset["path"], revision=dataset.get("revision")
    )


def document_text(row: dict) -> str:
    """Return title, a space and text, without space around them."""
    return f"{row['title']} {row['text']}".strip() if row.get("title") else row["text"].strip()


def query_text(row: dict) -> str:
    """Return text and instruction.

    Raises:
        ValueError: the query is a conversation.
    """
    if not isinstance(row["text"], str):
        raise ValueError(f"query {row['id']!r} is a conversation, not a text; such tasks are scored by mteb itself")
    return f"{row['text']} {row['instruction']}" if row.get("instruction") else row["text"]


def to_mteb(task: RetrievalTask, language: str = "eng-Latn"):
    """Return an instance of mteb's task class with this task's data, for `mteb.evaluate(model, [to_mteb(task)])`.

    Args:
        language: of all texts; mteb's BM25 chooses stop words by it.
    """
    from mteb.abstasks import AbsTaskRetrieval

    class Task(AbsTaskRetrieval):
        metadata = metadata_of(task, language)

        def load_data(self, num_proc: int | None = None, **kwargs) -> None:
            self.dataset = {SUBSET: {task.split: split_data(task)}}
            self.data_loaded = True

    return Task()


def metadata_of(task: RetrievalTask, language: str = "eng-Latn"):
    """Return what mteb wants to know of a task; what is not known (license, dates, how it was made) stays empty.

    The fingerprint stands for the revision: results that mteb has stored for other data under the same name are not
    taken for this task's.
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
