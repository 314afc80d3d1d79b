"""What --data and --task mean, and what is offered when they mean nothing."""

import pyarrow.parquet as pq
import pytest

from m2bert.eval.tasks import load as task_sources
from m2bert.eval.tasks.from_hub import LOCOV0_REVISION, LOCOV1_TASKS
from m2bert.eval.tasks.load import load_tasks
from m2bert.eval.tasks.locov1 import load_task


@pytest.fixture
def hub(monkeypatch):
    """The calls that would go to the Hub."""
    calls = []
    monkeypatch.setattr(task_sources, "load_hub_tasks", lambda *arguments: calls.append(arguments))
    return calls


@pytest.fixture
def csv_folder(tmp_path):
    folder = tmp_path / "mine"
    (folder / "documents").mkdir(parents=True)
    (folder / "documents" / "a.txt").write_text("text")
    (folder / "queries.csv").write_text("query,answer\nwhat,a.txt\n")
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
    with pytest.raises(ValueError, match="'documents_long' is no folder in .*; there are documents, documents_short"):
        load_tasks(str(tiny_data), None, "test", documents="documents_long")


def test_a_folder_with_queries_of_ones_own(csv_folder):
    (task,) = load_tasks(str(csv_folder), None, "test")
    assert (task.name, list(task.documents)) == ("mine", ["a.txt"])
    assert load_tasks(str(csv_folder), ["mine"], "test") == [task]


def test_names_for_the_hub(hub):
    load_tasks("locov1", None, "test")
    load_tasks("locov0", ["qmsum"], "test")
    load_tasks("locov0", None, "test", "x,y")
    load_tasks("org/name", None, "train", "main")
    assert hub == [
        ("hazyresearch/LoCoV1", list(LOCOV1_TASKS), "test", None),
        ("hazyresearch/LoCoV1", ["qmsum"], "test", LOCOV0_REVISION),
        ("hazyresearch/LoCoV1", list(LOCOV1_TASKS[:5]), "test", "x,y"),
        ("org/name", None, "train", "main"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("locov0", ["stackoverflow"], "test"), "task 'stackoverflow' is not in locov0; tasks there: summ_screen_fd"),
        (("locov1", ["qmsumm"], "test"), "did you mean 'qmsum'"),
        (("LoCo_v1", None, "test"), "org/name; did you mean 'locov1'"),
        (("./gone/folder", None, "test"), "data='./gone/folder' is no folder"),
        (("mteb", None, "test"), "name some"),
        (("mteb", ["X"], "test", "main"), "revision=main cannot be chosen"),
        (("locov1", None, "test", None, "documents_noquery"), "'documents_noquery' is for local folders"),
    ],
)
def test_what_means_nothing_is_explained(arguments, message, hub):
    with pytest.raises(ValueError, match=message):
        load_tasks(*arguments)
    assert not hub


def test_what_does_not_fit_a_folder_is_explained(csv_folder, tmp_path):
    for settings, message in (
        ({"revision": "main"}, "revision=main is for data on the Hub"),
        ({"split": "validation"}, "is the split 'test' and has no 'validation'"),
        ({"documents": "other"}, "beside queries.csv documents are in"),
        ({"names": ["yours"]}, "tasks there: mine"),
    ):
        with pytest.raises(ValueError, match=message):
            load_tasks(**{"data": str(csv_folder), "names": None, "split": "test"} | settings)
    with pytest.raises(ValueError, match="neither queries/test.parquet nor queries.csv"):
        load_tasks(str(tmp_path), None, "test")
