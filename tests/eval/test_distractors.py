"""Documents added to a task: as many as asked for, new to it, no longer than its own, the same for the same seed."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2bert.eval.tasks.distractors import add_distractors
from m2bert.eval.tasks.locov1 import load_task, make_task


@pytest.fixture
def task(tiny_data):
    return load_task(tiny_data, "tiny", "test")


@pytest.fixture
def texts(tmp_path, task):
    """A folder whose texts repeat documents of the task and one another, are empty, and are far longer."""
    rows = [*task.documents.values(), "", None, *(f"text {i} " * 200 for i in range(30)), "text 3 " * 200]
    folder = tmp_path / "texts"
    folder.mkdir()
    pq.write_table(pa.table({"text": rows}), folder / "train.parquet")
    return folder


def test_the_pool_grows_by_new_texts_only(task, texts):
    harder = add_distractors(task, texts, 30)
    added = {pid: text for pid, text in harder.documents.items() if pid not in task.documents}
    assert harder.name == "tiny +30"
    assert list(added)[:2] == ["distractor_000000", "distractor_000001"]
    assert len(set(added.values())) == len(added) == 30
    assert {text.split(" ")[0] for text in added.values()} == {"text"}
    assert {len(text) for text in added.values()} <= {len(text) for text in task.documents.values()}
    assert (harder.queries, harder.qrels, harder.split) == (task.queries, task.qrels, task.split)
    assert task.documents.items() <= harder.documents.items()


def test_the_seed_decides(task, texts):
    drawn = [add_distractors(task, str(texts), 10, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert len({drawn[0].fingerprint, drawn[2].fingerprint, task.fingerprint}) == 3


def test_another_task_can_lend_its_documents(task, tmp_path, write_task):
    documents = [{"pid": f"x{i}", "passage": f"word {i}", "dataset": "other"} for i in range(4)]
    folder = write_task(tmp_path / "other", [{"qid": "q"}], documents, split="train")
    texts = set(add_distractors(task, folder, 4).documents.values())
    assert {row["passage"] for row in documents} <= texts


def test_lengths_of_empty_documents_are_not_drawn(texts):
    queries = [{"qid": "q", "query": "what", "answer_pids": ["a"]}]
    task = make_task("half", "test", queries, [{"pid": "a", "passage": "some text"}, {"pid": "b", "passage": ""}])
    harder = add_distractors(task, texts, 5)
    assert [len(text) for pid, text in harder.documents.items() if pid.startswith("distractor")] == [9] * 5


def test_what_cannot_be_added_is_refused(task, texts, tmp_path):
    with pytest.raises(ValueError, match="has 30 texts that task 'tiny' lacks, not 31; ask for fewer"):
        add_distractors(task, texts, 31)
    with pytest.raises(ValueError, match="count=0 adds nothing"):
        add_distractors(task, texts, 0)
    with pytest.raises(ValueError, match="already has documents called distractor_"):
        add_distractors(add_distractors(task, texts, 2), texts, 2)
    with pytest.raises(ValueError, match="nowhere"):
        add_distractors(task, tmp_path / "nowhere", 2)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1, 2]), "column 'text' holds 1, which is no text"),
        (pa.array([["a"], ["b"]]), "column 'text' holds list<.*>, not texts"),
        (None, "cannot be read"),
    ],
)
def test_a_column_of_other_things_is_named_with_its_file(task, tmp_path, column, message):
    path = tmp_path / "texts.parquet"
    if column is None:
        path.write_bytes(b"no parquet")
    else:
        pq.write_table(pa.table({"text": column}), path)
    with pytest.raises(ValueError, match=f"texts.parquet.*{message}"):
        add_distractors(task, path, 1)


def test_hidden_files_are_no_source_and_empty_texts_are_counted(task, texts, caplog):
    (texts / "train.parquet").rename(texts / "web.parquet")
    (texts / "._web.parquet").write_bytes(b"what a Mac leaves in archives")
    assert len(add_distractors(task, texts, 30).documents) == len(task.documents) + 30
    assert "2 of 39 texts are empty" in caplog.text
