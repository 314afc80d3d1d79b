"""Where retrieval tasks come from, what is set aside, and what is refused."""

import json
import math
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2bert.eval.tasks.schema import make_task
from m2bert.train.pairs.data import carve, load_data, load_triples, read_negatives, texts_to_hold_out

SETTINGS = {"path": "x", "tasks": None, "triples": None, "triples_config": None, "triples_limit": None,
            "negatives": 1, "negatives_path": None, "development_tasks": None, "development_split": None,
            "development_share": 0.2, "development_documents": 10}  # fmt: skip


def rows(name, count=30):
    """Document i is answered by queries i and i + 1 (both for two documents)."""
    documents = [{"pid": f"{name}_{i}", "passage": f"text {i} of {name}", "dataset": name} for i in range(count)]
    queries = [{"qid": f"q{i}", "query": f"query {i}", "dataset": name,
                "answer_pids": [f"{name}_{i}"] + ([f"{name}_{i - 1}"] if i % 3 == 0 and i else [])}
               for i in range(0, count, 2)]  # fmt: skip
    return queries, documents


def write(folder, splits=("train", "validation", "test"), names=("one", "two")):
    for split in splits:
        for kind, part in (("queries", 0), ("documents", 1)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            table = pa.Table.from_pylist([row for name in names for row in rows(name)[part]])
            pq.write_table(table, folder / kind / f"{split}.parquet")
    return folder


def load(folder, **changes):
    return load_data(SimpleNamespace(**SETTINGS | changes), folder)


def carve_one(task, share, pool_documents):
    return carve(task, texts_to_hold_out(task, share), pool_documents, share)


def check_carved(training, development, whole):
    assert training.queries.keys() | development.queries.keys() == whole.queries.keys()
    assert not training.queries.keys() & development.queries.keys()
    assert training.queries
    assert development.queries
    held = whole.documents.keys() - training.documents.keys()
    assert held
    for qid, answers in whole.qrels.items():
        assert (qid in development.queries) == bool(answers.keys() & held)
    for task in (training, development):
        for qid in task.queries:
            assert task.qrels[qid] == whole.qrels[qid]
            assert task.qrels[qid].keys() <= task.documents.keys()
    assert held <= development.documents.keys()


def test_development_is_carved_by_document_and_training_never_sees_its_queries():
    whole = make_task("one", "train", *rows("one", 400))
    training, development = carve_one(whole, 0.2, pool_documents=200)
    check_carved(training, development, whole)
    assert len(training.documents) / 400 == pytest.approx(0.8, abs=4 * math.sqrt(0.2 * 0.8 / 400))
    assert len(development.documents) == 200


def test_the_part_carved_stays_when_data_are_added():
    small, large = (make_task("one", "train", *rows("one", count)) for count in (100, 200))
    held = [carve_one(task, 0.2, 0)[0].documents.keys() for task in (small, large)]
    assert held[0] == held[1] & small.documents.keys()


def test_at_least_one_query_is_set_aside_and_one_stays():
    whole = make_task("one", "train", *rows("one", 8))
    training, development = carve_one(whole, 1e-9, pool_documents=3)
    check_carved(training, development, whole)
    assert len(development.documents) == 3
    with pytest.raises(ValueError, match="no query left for training once data.development_share=0.9999999"):
        carve_one(whole, 0.9999999, 3)


@pytest.mark.parametrize("share", [0.2, 1e-9])  # a part of every task, and one text of each
def test_no_text_is_on_both_sides_whatever_its_id_and_task(tmp_path, share):
    """Task two holds the texts of task one under other ids, and each of them twice."""
    folder = write(tmp_path, names=("one",))
    queries, documents = rows("one")
    for copy in ("x", "y"):
        documents += [row | {"pid": copy + row["pid"], "dataset": "two"} for row in rows("one")[1]]
    queries += [row | {"dataset": "two", "answer_pids": ["x" + pid for pid in row["answer_pids"][:1]]}
                for row in rows("one")[0][5:]]  # fmt: skip
    for kind, table in (("queries", queries), ("documents", documents)):
        pq.write_table(pa.Table.from_pylist(table), folder / kind / "train.parquet")
    data = load(folder, development_share=share, development_documents=0)
    trained = {text for task in data.training for text in task.documents.values()}
    for task in data.development:
        for answers in task.qrels.values():
            assert any(task.documents[pid] not in trained for pid in answers)


def test_tasks_of_a_folder(tmp_path):
    folder = write(tmp_path)
    data = load(folder)
    assert [task.name for task in data.training] == [task.name for task in data.development] == ["one", "two"]
    data = load(folder, tasks=["two"], development_split="validation")
    assert [(task.name, task.split) for task in data.training + data.development] == [
        ("two", "train"), ("two", "validation")]  # fmt: skip
    assert len(data.training[0].queries) == 15
    other = load(folder, tasks=["two"], development_tasks=["one"], development_split="validation")
    assert [(task.name, task.split) for task in other.training + other.development] == [
        ("two", "train"), ("one", "validation")]  # fmt: skip
    assert set(data.describe()) == {"train/two", "validation/two"}


def test_the_folder_of_ones_own_queries_is_trained_on_whole(tmp_path):
    folder = tmp_path / "mine"
    (folder / "documents").mkdir(parents=True)
    for i in range(30):
        (folder / "documents" / f"{i}.txt").write_text(f"text {i}")
    (folder / "queries.csv").write_text("query,answer\n" + "".join(f"query {i},{i}.txt\n" for i in range(30)))
    data = load(folder, development_split="validation")  # the default; the folder has no splits
    ((train,), (held,)) = data.training, data.development
    assert (train.name, train.split, held.split) == ("mine", "train", "development")
    assert len(train.queries) + len(held.queries) == 30
    assert len(held.queries) < 15
    assert load(folder, tasks=["mine"]).fingerprint() == data.fingerprint()
    with pytest.raises(ValueError, match="'other' is not in .*; tasks there: mine"):
        load(folder, tasks=["other"])


def test_only_answers_that_are_there_are_trained_on(tmp_path):
    """BEIR's grades below 1 are no answers, and may be negatives."""
    (tmp_path / "qrels").mkdir()
    lines = [
        "q0\td0\t1",
        "q0\td1\t0",
        "q0\tgone\t1",
        "q1\tgone\t1",
        "q2\td2\t-1",
        *(f"q{i}\td{i}\t2" for i in range(3, 9)),
    ]
    (tmp_path / "qrels" / "train.tsv").write_text("\n".join(lines))
    for name, letter in (("corpus", "d"), ("queries", "q")):
        rows = [json.dumps({"_id": f"{letter}{i}", "text": f"{letter} {i}"}) for i in range(9)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    data = load(tmp_path)
    qrels = data.training[0].qrels | data.development[0].qrels
    assert qrels == {"q0": {"d0": 1}} | {f"q{i}": {f"d{i}": 2} for i in range(3, 9)}
    assert data.training[0].queries.keys() | data.development[0].queries.keys() == qrels.keys()
    row = {"qid": "q0", "negative_pids": ["d1"], "dataset": tmp_path.name}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "negatives.parquet")
    assert load(tmp_path, negatives_path=str(tmp_path / "negatives.parquet")).negatives[tmp_path.name] == {"q0": ["d1"]}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tasks": ["three"]}, "'three' is not in .*; tasks there: one, two"),
        ({"development_tasks": ["one"]}, "data.development_tasks"),
        ({"negatives": 0, "triples": "short.jsonl"}, "data.negatives=0"),
        ({"development_split": "validation+test"}, "is the test split"),
        ({"triples": "somewhere/test/0000.parquet"}, "is the test split"),
        ({"negatives_path": "test.parquet"}, "is the test split"),
        ({"development_split": "train[:10%]"}, r"development_split=train\[:10%\] is what is trained on"),
    ],
)
def test_bad_settings_are_named(tmp_path, monkeypatch, changes, named):
    write_triples(tmp_path / "short.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=named):
        load(write(tmp_path), **changes)


TRIPLES = [
    {"query": "a", "positive": "about a", "negative_1": "about b", "negative_2": "nothing"},
    {"query": "a", "positive": "more on a", "negative_1": "about a", "negative_2": "about b"},
    {"query": "b", "positive": "about b", "negative_1": None, "negative_2": "nothing"},
]


def write_triples(path):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(TRIPLES), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in TRIPLES))
    return str(path)


@pytest.mark.parametrize("name", ["short.parquet", "short.jsonl"])
def test_triples_become_a_task_in_which_a_positive_is_no_negative(tmp_path, name):
    task, negatives = load_triples(write_triples(tmp_path / name), None, None)
    assert task.name == "short"
    assert sorted(task.queries.values()) == ["a", "b"]
    assert len(task.documents) == 4
    by_text = {text: {task.documents[pid] for pid in task.qrels[qid]} for qid, text in task.queries.items()}
    assert by_text == {"a": {"about a", "more on a"}, "b": {"about b"}}
    found = {task.queries[qid]: [task.documents[pid] for pid in pids] for qid, pids in negatives.items()}
    assert found == {"a": ["about b", "nothing"], "b": ["nothing"]}
    assert len(load_triples(str(tmp_path / name), None, 1)[0].queries) == 1


def test_triples_and_tasks_are_one_run(tmp_path):
    triples = write_triples(tmp_path / "short.parquet")
    data = load(write(tmp_path), triples=triples, development_split="validation")
    assert [task.name for task in data.training] == ["one", "two", "short"]
    assert [task.name for task in data.development] == ["one", "two", "short"]
    assert set(data.negatives) == {"short"}
    assert [task.name for task in load(None, path=None, triples=triples).training] == ["short"]


@pytest.mark.parametrize("name", ["short.parquet", "short.jsonl"])
@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"query": None, "positive": "a"}, "query is None"),
        ({"query": "a", "positive": "b", "negatives": ["c"]}, r"negatives.negatives is \['c'\]"),
        ({"query": "a"}, "positive is (missing|None)"),
        ("nonsense", "no valid JSON"),
        ('["a", "b"]', "the value is"),
    ],
)
def test_a_bad_row_is_named_by_its_number(tmp_path, name, row, named):
    path, first = tmp_path / name, {"query": "x", "positive": "y", "negatives": None}
    if isinstance(row, str):
        path = tmp_path / "short.jsonl"
        path.write_text(f"{json.dumps(first)}\n{row}\n")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row | first, row]), path)
    else:
        path.write_text(f"{json.dumps(first)}\n{json.dumps(row)}\n")
    with pytest.raises(ValueError, match=f"{path.name}, (row|line) 2.*{named}"):
        load_triples(str(path), None, None)


def test_a_source_without_rows_is_named(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="'empty'.* has no documents"):
        load_triples(str(tmp_path / "empty.jsonl"), None, None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"qid": "q0", "negative_pids": ["one_0"], "dataset": "one"}, "query 'q0'.*'one_0'"),
        ({"qid": "q0", "negative_pids": ["one_99"], "dataset": "one"}, "'one_99'"),
        ({"qid": "q1", "negative_pids": ["one_5"], "dataset": "one"}, "query 'q1'"),
        ({"qid": "q0", "negative_pids": None, "dataset": "one"}, "row 1: negative_pids is None"),
    ],
)
def test_given_negatives_are_checked(tmp_path, row, message):
    task = make_task("one", "train", *rows("one"))
    good = {"qid": "q0", "negative_pids": ["one_7", "one_3"], "dataset": "one"}
    path = str(tmp_path / "negatives.parquet")
    pq.write_table(pa.Table.from_pylist([good, good | {"qid": "x", "dataset": "other"}]), path)
    assert read_negatives(path, [task]) == {"one": {"q0": ["one_7", "one_3"]}}
    pq.write_table(pa.Table.from_pylist([row, good]), path)
    with pytest.raises(ValueError, match=message):
        read_negatives(path, [task])


def test_tasks_and_triples_from_the_hub(monkeypatch):
    """`datasets.load_dataset` reads tables in memory."""
    import datasets

    calls, queries, documents = [], *([row for name in ("one", "two") for row in rows(name)[i]] for i in (0, 1))
    tables = {"org/set-Queries": queries, "org/set-Documents": documents, "org/triples": TRIPLES}

    def load_dataset(path, name=None, *, split, revision=None):
        calls.append((path, name, split))
        limit = int(split.split(":")[1][:-1]) if ":" in split else None
        return datasets.Dataset.from_list(tables[path][:limit])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    changes = {"path": "org/set", "triples": "org/triples", "triples_config": "hard", "triples_limit": 3}
    data = load(None, **changes, development_share=0.1)
    assert [task.name for task in data.training] == ["one", "two", "triples"]
    assert {("org/set-Queries", None, "train"), ("org/triples", "hard", "train[:3]")} <= {*calls}
    assert data.training[0].fingerprint == make_task("one", "train", *rows("one")).fingerprint
    assert data.negatives["triples"]
    assert [task.name for task in load(None, path="org/set", tasks=["two"]).training] == ["two"]
