"""ir_datasets by id. The package's own registry is given a data set that lies here."""

from types import SimpleNamespace

import pytest

from m2bert.eval.tasks.load import load_tasks


class Row(SimpleNamespace):
    def default_text(self):
        return self.text


def test_a_data_set_of_ir_datasets_is_a_task(monkeypatch):
    ir_datasets = pytest.importorskip("ir_datasets")
    dataset = SimpleNamespace(
        docs_iter=lambda: iter([Row(doc_id="d1", text="a b"), Row(doc_id="d2", text="c")]),
        queries_iter=lambda: iter([Row(query_id="q1", text="a"), Row(query_id="unjudged", text="c")]),
        qrels_iter=lambda: iter(
            [Row(query_id="q1", doc_id=pid, relevance=grade) for pid, grade in (("d1", 2), ("d2", -1))]
        ),
    )
    monkeypatch.setattr(ir_datasets, "load", {"mine/test": dataset}.__getitem__)
    [task] = load_tasks("ir_datasets:mine/test", None, "test")
    assert (task.queries, task.documents) == ({"q1": "a"}, {"d1": "a b", "d2": "c"})
    assert task.qrels == {"q1": {"d1": 2, "d2": -1}}
    with pytest.raises(ValueError, match="cannot read 'nothing'"):
        load_tasks("ir_datasets:nothing", None, "test")
