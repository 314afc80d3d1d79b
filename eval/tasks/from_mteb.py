"""Retrieval tasks between mteb and this package, in both directions.

mteb's tasks are found by name: of a task, of a benchmark, or of a group of the paper's tables. Only English subsets are
taken where a task has them: the paper scores English alone.
"""

import logging

from m2bert.terminal import nearest, one_line

from .from_hub import hub_or_cache
from .schema import RetrievalTask, fingerprint_of, texts_by_id

logger = logging.getLogger(__name__)

SUBSET = "default"

# As in MTEB(eng, v1), whose subsets of multilingual tasks are taken too; the paper leaves some of its tasks out.
# fmt: off
PAPER_GROUPS = {
    "table-10": ("MultiLongDocRetrieval",),
    "table-14": ("MSMARCO", "TRECCOVID", "NFCorpus", "NQ", "HotpotQA", "FiQA2018", "ArguAna", "Touche2020",
                 "QuoraRetrieval", "DBPedia", "SCIDOCS", "ClimateFEVER", "SciFact"),
    "table-18": ("AmazonCounterfactualClassification", "AmazonPolarityClassification", "AmazonReviewsClassification",
                 "Banking77Classification", "EmotionClassification", "ImdbClassification",
                 "MassiveIntentClassification", "MassiveScenarioClassification", "MTOPDomainClassification",
                 "MTOPIntentClassification", "ToxicConversationsClassification",
                 "TweetSentimentExtractionClassification"),
    "table-19": ("ArxivClusteringP2P", "ArxivClusteringS2S", "BiorxivClusteringP2P", "BiorxivClusteringS2S",
                 "MedrxivClusteringP2P", "MedrxivClusteringS2S", "RedditClustering", "RedditClusteringP2P"),
    "table-20": ("SprintDuplicateQuestions", "TwitterSemEval2015", "TwitterURLCorpus"),
    "table-21": ("AskUbuntuDupQuestions", "MindSmallReranking", "SciDocsRR", "StackOverflowDupQuestions"),
    "table-22": ("BIOSSES", "SICK-R", "STS12", "STS13", "STS14", "STS15", "STS16", "STS17", "STS22", "STSBenchmark"),
}
# fmt: on
PAPER_GROUPS["table-9"] = sum((PAPER_GROUPS[f"table-{number}"] for number in range(18, 23)), ())
PAPER_BENCHMARK = "MTEB(eng, v1)"


def mteb_tasks(names: list[str]) -> list:
    """Return mteb's task objects of task, benchmark and group names, each once, no data loaded.

    A task that averages others (CQADupstackRetrieval) is one object.

    Raises:
        ValueError: a name is unknown.
    """
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
                "use m2bert.eval.mteb_export.run_tasks"
            )
    splits = [_splits_of(task, split) for task in tasks]
    return [loaded for task, wanted in zip(tasks, splits, strict=True) for loaded in _load(task, wanted)]


def _splits_of(task, split: str) -> list[str]:
    known = list(task.eval_splits)
    if split not in known and split != "test":
        raise ValueError(f"mteb task {task.metadata.name!r} has no split {split!r}; it has {', '.join(known)}")
    return [split] if split in known else known


def _load(task, splits: list[str]) -> list[RetrievalTask]:
    name, dataset = task.metadata.name, task.metadata.dataset
    try:
        with hub_or_cache(dataset["path"], dataset.get("revision"), "dataset") as silent:
            task.load_data()
    except Exception as error:  # no network, data that have moved or need a script: each task has a loader of its own
        raise ValueError(f"the data of mteb task {name!r} cannot be loaded: {reason(error, silent)}") from error
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    loaded = []
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
    """Return a split of mteb's data as a task. A negative grade becomes 0, which is how mteb scores it.

    Raises:
        ValueError: an id occurs twice, a text is no text, or no query has a relevant document.
    """
    where = f"mteb task {name!r}, split {split!r}"
    documents = texts_by_id("documents", ((row["id"], document_text(row)) for row in data["corpus"]), where)
    texts = texts_by_id("queries", ((row["id"], query_text(row)) for row in data["queries"]), where)
    qrels, absent = {}, 0
    for qid in texts:
        judged = data["relevant_docs"].get(qid) or {}
        present = {pid: max(int(grade), 0) for pid, grade in judged.items() if pid in documents}
        absent += sum(grade > 0 and pid not in documents for pid, grade in judged.items())
        if any(present.values()):
            qrels[qid] = present
    unanswered = sum(bool(data["relevant_docs"].get(qid)) for qid in texts) - len(qrels)
    if unanswered:
        logger.warning("%s: %d queries have no relevant document there; left out, mteb counts 0", name, unanswered)
    if absent:
        logger.warning("%s: %d relevant documents are not in the corpus; not counted here, mteb does", name, absent)
    queries = texts_by_id("queries with a relevant document", ((qid, texts[qid]) for qid in qrels), where)
    fingerprint = fingerprint_of(queries, documents, qrels)
    source, revision = dataset["path"], dataset.get("revision")
    return RetrievalTask(name, split, queries, documents, qrels, fingerprint, source, revision)


def document_text(row: dict) -> str:
    """Return title, a space and text, without space around them; what is no text is returned as it is."""
    if not isinstance(row["text"], str):
        return row["text"]
    return f"{row['title']} {row['text']}".strip() if row.get("title") else row["text"].strip()


def query_text(row: dict) -> str:
    """Return text and instruction; what is no text, such as a conversation, is returned as it is."""
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
