"""What two tasks share: equal texts, nearly equal documents, and queries that training documents quote."""

import random

import pytest

from m2bert.eval.tasks.overlap import find_overlap
from m2bert.eval.tasks.schema import load_task, make_task

RANDOM = random.Random(0)
WORDS = [f"w{i}" for i in range(3000)]


def text(words: int) -> str:
    return " ".join(RANDOM.choices(WORDS, k=words))


def task(name, documents, queries):
    """The texts of documents d0, d1, ... and queries q0, q1, ..., which the first document answers."""
    query_rows = [{"qid": f"q{i}", "query": query, "answer_pids": ["d0"]} for i, query in enumerate(queries)]
    document_rows = [{"pid": f"d{i}", "passage": passage} for i, passage in enumerate(documents)]
    return make_task(name, "test", query_rows, document_rows, source=f"folder of {name}")


@pytest.fixture(scope="module")
def pair():
    """Of the test documents one is in train in another spelling, one for 70 %, one for 30 %, one not at all."""
    whole, most, little, other = (text(600).split() for _ in range(4))
    quoted, short = "Is this quoted word for word in a training document of the other task ?", "is it quoted here"
    train = task(
        "train",
        [
            "\n".join(whole).upper(),
            " ".join(most[:420]) + " " + text(300),
            " ".join(little[:180]) + " " + text(400),
            f"{text(50)} {quoted} {short} {text(50)}",
            "",
        ],
        ["the same Query", "another query"],
    )
    documents = [*(" ".join(words) for words in (whole, most, little, other)), ""]
    test = task("test", documents, ["The same  query", quoted, short, "quoted word for word in another way", ""])
    return test, train


def test_what_is_shared_is_counted_and_shown(pair):
    record = find_overlap(*pair)
    assert record["kind"] == "overlap"
    assert record["test"] == {"task": "test", "split": "test", "source": "folder of test"}
    assert record["train"]["task"] == "train"
    assert record["documents"] == {"count": 4, "same": 1, "near": 1}
    assert record["queries"] == {"count": 4, "same": 1, "in_documents": 1}  # four words are too few to count
    shown = [(example["what"], example["test_id"], example["train_id"]) for example in record["examples"]]
    assert shown == [("same document", "d0", "d0"), ("near document", "d1", None), ("same query", "q0", "q0")]
    assert all(len(example["text"]) <= 200 for example in record["examples"])


def test_nothing_shared(pair):
    test, _ = pair
    record = find_overlap(test, task("else", [text(500), "few words"], ["something new"]))
    assert record["documents"] == {"count": 4, "same": 0, "near": 0}
    assert record["queries"]["same"] == record["queries"]["in_documents"] == 0
    assert record["examples"] == []


def test_qmsum(qmsum_data):
    test, train = (load_task(qmsum_data, "qmsum", split) for split in ("test", "train"))
    record = find_overlap(test, train)
    assert record["documents"] == {"count": 35, "same": 0, "near": 0}
    assert record["queries"] == {"count": 272, "same": 1, "in_documents": 0}
    assert record["examples"][0]["text"].startswith("The meeting discussed various topics")
    without_query = load_task(qmsum_data, "qmsum", "test", documents="documents_noquery")
    assert find_overlap(test, without_query)["documents"] == {"count": 35, "same": 0, "near": 35}
