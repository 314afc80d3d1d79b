"""Targets that read tasks, models and results of an evaluation."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_models import sentence_vectors
from fuzz_targets import PAIRS, TEXTS, Incomparable, Target, close, m2bert
from tokenizers import Tokenizer

from m2bert.eval.config import load_encoder
from m2bert.eval.tasks.load import load_csv_folder
from m2bert.eval.tasks.schema import load_task, task_names


def query_rows():
    return [
        {"qid": f"q{i}", "query": b, "answer_pids": [f"p{i}"], "dataset": "tiny", "position": 0.5}
        for i, (_, b) in enumerate(PAIRS)
    ]


def document_rows():
    return [{"pid": f"p{i}", "passage": f"{a} {b} " * 3 + a, "dataset": "tiny"} for i, (a, b) in enumerate(PAIRS)]


def write_task(folder: Path):
    for kind, rows in (("queries", query_rows()), ("documents", document_rows())):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / kind / "test.parquet")
    return folder


def table(folder: Path, kind: str) -> list[dict]:
    return pq.read_table(folder / kind / "test.parquet").to_pylist()


def results(path: Path) -> list[dict]:
    return json.loads(path.read_text())["results"]


class EvalData(Target):
    """Judged by what was read: texts and answers."""

    def run(self, folder, scratch):
        m2bert("eval", "--encoder", "bm25", "--data", folder, "--output", scratch / "r.json", "--no-cache")
        task = self.load(folder)
        return task.queries, task.documents, {qid: sorted(found) for qid, found in task.qrels.items()}


class Tables(EvalData):
    @staticmethod
    def load(folder):
        [name] = task_names(folder, "test")
        return load_task(folder, name, "test")

    def reference(self, folder, scratch):
        queries, documents = table(folder, "queries"), table(folder, "documents")
        texts = {row["pid"]: row["passage"] for row in documents if row["passage"] is not None}
        [name] = {row["dataset"] for row in documents}
        null = {row["pid"] for row in documents} - texts.keys()
        queries = [row for row in queries if set(row["answer_pids"]) - null and row["dataset"] == name]
        return (
            {row["qid"]: row["query"] or "" for row in queries},
            texts,
            {row["qid"]: sorted(set(row["answer_pids"]) - null) for row in queries},
        )


class Csv(EvalData):
    load = staticmethod(load_csv_folder)

    def reference(self, folder, scratch):
        def rows(path):
            text = path.read_text("utf-8-sig")
            read = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            read.fieldnames = [name.strip().lower() for name in read.fieldnames]
            return [row for row in read if any(isinstance(v, str) and v.strip() for v in row.values())]

        if (folder / "documents.csv").exists():
            documents = {row["id"].strip(): row["text"] or "" for row in rows(folder / "documents.csv")}
        else:
            documents = {p.name: p.read_text("utf-8-sig") for p in (folder / "documents").iterdir() if p.is_file()}
        answers = {}
        for row in rows(folder / "queries.csv"):
            found = {answer.strip() for answer in row["answer"].split(";") if answer.strip()}
            answers[row["query"].strip()] = answers.get(row["query"].strip(), set()) | found
        numbered = [(f"q{i}", query, sorted(found)) for i, (query, found) in enumerate(answers.items(), 1)]
        return {qid: query for qid, query, _ in numbered}, documents, {qid: found for qid, _, found in numbered}


class EvalModel(Target):
    """Any sentence-transformers model."""

    def run(self, folder, scratch):
        arguments = ["--encoder", folder / "model", "--data", folder / "data"]
        m2bert("eval", *arguments, "--output", scratch / "r.json", "--no-cache")
        encoder = load_encoder(str(folder / "model"))
        return {kind: np.asarray(encoder.encode(TEXTS, kind)) for kind in ("query", "document")}

    def reference(self, folder, scratch):
        return sentence_vectors(folder / "model")

    def same(self, one, other):
        def unit(rows):
            return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)

        return all(close(unit(one[kind]), unit(other[kind])) for kind in one)


class EvalCache(Target):
    def run(self, folder, scratch):
        arguments = ["--encoder", self.model, "--data", self.data, "--cache", folder]
        m2bert("eval", *arguments, "--output", scratch / "r.json")
        names = "task", "query_scores", "ndcg_at_10", "interval_95"
        return [[record[name] for name in names] for record in results(scratch / "r.json")]


class EvalYaml(Target):
    def run(self, folder, scratch):
        m2bert("eval", "--config", folder / "config.yaml", "--output", scratch / "r.json", "--no-cache")
        lexical = [r for r in results(scratch / "r.json") if r["hybrid"] is None and r["encoder"] == "bm25"]
        return {(r["task"], tuple(sorted(r["query_scores"].items()))) for r in lexical}

    def same(self, one, other):
        return one <= other  # fewer systems are another run


class Compare(Target):
    def run(self, folder, scratch):
        return m2bert("compare", folder / "a.json", folder / "b.json")

    def reference(self, folder, scratch):
        """Every difference that is shown is that of the means of the scores by query."""
        groups = {}
        for name in ("a.json", "b.json"):
            for record in results(folder / name):
                if record["kind"] == "retrieval":
                    scores = record["query_scores"]
                    assert all(0 <= score <= 1 for score in scores.values()), "a score beyond 0 and 1 was compared"
                    mean = sum(scores.values()) / len(scores)
                    assert abs(mean - record["ndcg_at_10"]) < 1e-6, "a mean that is not that of its scores was compared"
                    groups.setdefault((record["task"], record["split"], record["data_fingerprint"]), []).append(mean)
        wanted = {f"{100 * (a - b):+.1f}" for means in groups.values() for a in means for b in means}
        printed = m2bert("compare", folder / "a.json", folder / "b.json")
        shown = [line for line in printed.splitlines() if " to " in line]
        assert all(any(w in line.split() for w in wanted) for line in shown), "other differences"
        raise Incomparable("the differences of other scores")


class Report(Target):
    def run(self, folder, scratch):
        output = ["--output", scratch / "r.md", "--output", scratch / "r.html"]
        m2bert("report", folder / "all.json", folder / "b.json", *output)
        text = (scratch / "r.md").read_text() + (scratch / "r.html").read_text()
        assert "\x1b" not in text
        assert "nan" not in text.replace("NaN is no finite number", "").lower().split()
        return True


class Analyse(Target):
    def run(self, folder, scratch):
        for kind, *options in (("lengths", "--tokenizer", folder / "tokenizer.json"), ("spans",),
                               ("overlap", "--train-split", "test")):  # fmt: skip
            m2bert("analyse", kind, "--data", folder / "data", *options, "--output", scratch / f"{kind}.json")
        [record] = results(scratch / "lengths.json")
        return record["documents"]["mean_tokens"], record["documents"]["count"], record["queries"]["mean_tokens"]

    def reference(self, folder, scratch):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        found = []
        for kind, column in (("documents", "passage"), ("queries", "query")):
            rows = [row for row in table(folder / "data", kind) if kind == "queries" or row[column] is not None]
            found.append([len(tokenizer.encode(row[column] or "", add_special_tokens=False).ids) for row in rows])
        return np.mean(found[0]), len(found[0]), np.mean(found[1])

    same = staticmethod(np.allclose)
