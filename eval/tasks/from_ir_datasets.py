"""Retrieval tasks of the package ir_datasets (MacAvaney et al., SIGIR 2021), by its ids, such as beir/scifact/test."""

from m2bert.terminal import one_line

from .schema import RetrievalTask, judged_task

PREFIX = "ir_datasets:"


def load_ir_dataset(identifier: str) -> RetrievalTask:
    """Return the task of an id, with the queries that are judged. The package finds or downloads the files.

    Raises ValueError if the id is unknown, has no documents, queries or judgments, or cannot be read.
    """
    import ir_datasets  # of an extra

    try:
        dataset = ir_datasets.load(identifier)
        documents = {row.doc_id: row.default_text() for row in dataset.docs_iter()}
        qrels: dict[str, dict[str, int]] = {}
        for row in dataset.qrels_iter():
            qrels.setdefault(row.query_id, {})[row.doc_id] = row.relevance
        queries = {row.query_id: row.default_text() for row in dataset.queries_iter() if row.query_id in qrels}
    except Exception as error:  # a missing part is an AttributeError, a failed download anything
        problem = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(
            f"ir_datasets cannot read {identifier!r} ({problem}); choose an id of `ir_datasets list`"
        ) from error
    qrels = {qid: qrels[qid] for qid in queries}
    return judged_task(identifier, "test", queries, documents, qrels, source=PREFIX + identifier)
