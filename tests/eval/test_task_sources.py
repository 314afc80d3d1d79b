"""What --data, --task and --distractors mean, and what is offered when they mean nothing."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2bert.eval.tasks import load as task_sources
from m2bert.eval.tasks.from_hub import LOCOV0_REVISION, LOCOV1_TASKS
from m2bert.eval.tasks.load import add_distractors, load_tasks
from m2bert.eval.tasks.schema import load_task, make_task


@pytest.fixture
def hub(monkeypatch):
    """The calls that would go to the Hub."""
    calls = []
    monkeypatch.setattr(task_sources, "load_hub_tasks", lambda *arguments: calls.append(arguments))
    return calls


@pytest.fixture
def csv_folder(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "documents.csv").write_text("id,text\na,text\n")
    (folder / "queries.csv").write_text("query,answer\nwhat,a\n")
    return folder


def test_a_folder_of_tables(tmp_path, write_task, tiny_rows):
    queries, documents = tiny_rows
    more = [[{**row, "dataset": "also"} for row in rows] for rows in tiny_rows]
    folder = write_task(tmp_path, queries + more[0], documents + more[1])
    assert load_tasks(str(folder), ["tiny"], "test") == [load_task(folder, "tiny", "test")]
    assert [task.name for task in load_tasks(str(folder), None, "test")] == ["also", "tiny"]
    with pytest.raises(ValueError, match=r"'tinny' is not in .*; tasks there: also, tiny; did you mean 'tiny'\?"):
        load_tasks(str(folder), ["tinny"], "test")


def test_a_variant_of_the_documents(tiny_data):
    path = tiny_data / "documents_short" / "test.parquet"
    path.parent.mkdir()
    pq.write_table(pq.read_table(tiny_data / "documents" / "test.parquet"), path)
    (task,) = load_tasks(str(tiny_data), None, "test", documents="documents_short")
    assert task.name == "tiny (documents_short)"
    with pytest.raises(ValueError, match="documents_long has no test.parquet"):
        load_tasks(str(tiny_data), None, "test", documents="documents_long")


def test_names_for_the_hub(hub, csv_folder):
    load_tasks("locov1", None, "test")
    load_tasks("locov0", ["qmsum"], "test")
    load_tasks("locov0", None, "test", "x,y")
    load_tasks("org/name", None, "train", "main")
    assert [task.name for task in load_tasks(str(csv_folder), ["mine"], "test")] == ["mine"]  # not from there
    assert hub == [
        ("hazyresearch/LoCoV1", list(LOCOV1_TASKS), "test", None),
        ("hazyresearch/LoCoV1", ["qmsum"], "test", LOCOV0_REVISION),
        ("hazyresearch/LoCoV1", list(LOCOV1_TASKS[:5]), "test", "x,y"),
        ("org/name", None, "train", "main"),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "locov0", "names": ["stackoverflow"]}, "'stackoverflow' is not in locov0; tasks there: summ_screen"),
        ({"data": "locov1", "names": ["qmsumm"]}, "did you mean 'qmsum'"),
        ({"data": "LoCo_v1"}, "org/name; did you mean 'locov1'"),
        ({"data": "./gone/folder"}, "data='./gone/folder' is no folder"),
        ({"data": "mteb"}, "name some"),
        ({"data": "mteb", "names": ["X"], "revision": "main"}, "revision='main' does not apply to data='mteb'"),
        ({"data": "locov1", "documents": "other"}, "documents='other' does not apply to data='locov1'"),
        ({"revision": "main"}, "revision='main' does not apply"),
        ({"split": "train"}, "split='train' is not in .* all of it is 'test'; name that"),
        ({"documents": "other"}, "documents='other' does not apply"),
        ({"names": ["yours"]}, "'yours' is not in .*tasks there: mine"),
    ],
)
def test_what_means_nothing_is_explained(csv_folder, hub, settings, message):
    with pytest.raises(ValueError, match=message):
        load_tasks(**{"data": str(csv_folder), "names": None, "split": "test"} | settings)
    assert not hub


@pytest.mark.parametrize("name", ["org/name", "locov1"])
def test_an_empty_folder_is_no_hub_id(tmp_path, monkeypatch, hub, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="no folder with queries/test.parquet, queries.csv or corpus.jsonl"):
        load_tasks(name, None, "test")
    assert not hub


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


def test_distractors_are_new_texts_no_longer_than_documents(task, texts, caplog):
    (texts / "train.parquet").rename(texts / "web.parquet")
    (texts / "._web.parquet").write_bytes(b"what a Mac leaves in archives")
    harder = add_distractors(task, texts, 30)
    added = {pid: text for pid, text in harder.documents.items() if pid not in task.documents}
    assert harder.name == "tiny +30"
    assert list(added)[:2] == ["distractor_000000", "distractor_000001"]
    assert len(set(added.values())) == len(added) == 30
    assert {text.split(" ")[0] for text in added.values()} == {"text"}
    assert {len(text) for text in added.values()} <= {len(text) for text in task.documents.values()}
    assert (harder.queries, harder.qrels, harder.split) == (task.queries, task.qrels, task.split)
    assert task.documents.items() <= harder.documents.items()
    assert "2 of 39 texts are empty" in caplog.text


def test_the_seed_decides_and_distractors_add_up(task, texts):
    drawn = [add_distractors(task, str(texts), 10, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert len({drawn[0].fingerprint, drawn[2].fingerprint, task.fingerprint}) == 3
    more = add_distractors(drawn[0], texts, 5, seed=2)
    assert (len(more.documents), more.base_name) == (len(task.documents) + 15, "tiny")


def test_another_task_can_lend_its_documents_and_lengths_of_empty_ones_are_not_drawn(tmp_path, write_task):
    documents = [{"pid": f"x{i}", "passage": f"word {i} and more", "dataset": "other"} for i in range(4)]
    folder = write_task(tmp_path / "other", [{"qid": "q"}], documents, split="train")
    queries = [{"qid": "q", "query": "what", "answer_pids": ["a"]}]
    task = make_task("half", "test", queries, [{"pid": "a", "passage": "six   "}, {"pid": "b", "passage": ""}])
    added = list(add_distractors(task, folder, 4).documents.values())[2:]
    assert sorted(added) == [f"word {i}" for i in range(4)]


def test_texts_that_cannot_be_added_are_refused(task, texts, tmp_path):
    path = tmp_path / "texts.parquet"
    with pytest.raises(ValueError, match="has 30 texts that 'tiny' lacks, not 31; ask for fewer"):
        add_distractors(task, texts, 31)
    with pytest.raises(ValueError, match="nowhere"):
        add_distractors(task, tmp_path / "nowhere", 2)
    pq.write_table(pa.table({"text": [["a"], ["b"]]}), path)
    with pytest.raises(ValueError, match="texts.parquet.*'text'"):
        add_distractors(task, path, 1)
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="texts.parquet cannot be read"):
        add_distractors(task, path, 1)
