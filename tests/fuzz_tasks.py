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


def query_rows():
    return [
        {"qid": f"q{i}", "query": b, "answer_pids": [f"p{i}"], "dataset": "tiny", "position": 0.5}
        for i, (_, b) in enumerate(PAIRS)
    ]


def document_rows():
    return [{"pid": f"p{i}", "passage": f"{a} {b} " * 3 + a, "dataset": "tiny"} for i, (a, b) in enumerate(PAIRS)]


def write_task(folder: Path, splits=("test",)):
    for split in splits:
        for kind, rows in (("queries", query_rows()), ("documents", document_rows())):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), folder / kind / f"{split}.parquet")
    return folder


def scores(path: Path):
    return [
        [r["task"], r["query_scores"], r["ndcg_at_10"], r["interval_95"]]
        for r in json.loads(path.read_text())["results"]
    ]


class EvalData(Target):
    """Judged by what was read: texts and answers."""

    def run(self, folder, scratch):
        m2bert("eval", "--encoder", "bm25", "--data", folder, "--output", scratch / "r.json", "--no-cache")
        return self.read(folder)

    def read(self, folder):
        raise NotImplementedError


class Tables(EvalData):
    def read(self, folder):
        from m2bert.eval.tasks.schema import load_task, task_names

        [name] = task_names(folder, "test")
        task = load_task(folder, name, "test")
        return task.queries, task.documents, {qid: sorted(found) for qid, found in task.qrels.items()}

    def reference(self, folder, scratch):
        queries = pq.read_table(folder / "queries" / "test.parquet").to_pylist()
        documents = pq.read_table(folder / "documents" / "test.parquet").to_pylist()
        texts = {row["pid"]: row["passage"] for row in documents if row["passage"] is not None}
        [name] = {row["dataset"] for row in documents}
        queries = [row for row in queries if set(row["answer_pids"]) & texts.keys() and row["dataset"] == name]
        return (
            {row["qid"]: row["query"] or "" for row in queries},
            texts,
            {row["qid"]: sorted(set(row["answer_pids"]) & texts.keys()) for row in queries},
        )


class Csv(EvalData):
    def read(self, folder):
        from m2bert.eval.tasks.load import load_csv_folder

        task = load_csv_folder(folder)
        return task.queries, task.documents, {qid: sorted(found) for qid, found in task.qrels.items()}

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
        queries = rows(folder / "queries.csv")
        answers = [sorted({answer.strip() for answer in row["answer"].split(";") if answer.strip()}) for row in queries]
        qids = [f"q{i}" for i in range(1, len(queries) + 1)]
        texts = (row["query"].strip() for row in queries)
        return dict(zip(qids, texts, strict=True)), documents, dict(zip(qids, answers, strict=True))


class EvalModel(Target):
    """Any sentence-transformers model."""

    def run(self, folder, scratch):
        from m2bert.eval.config import load_encoder

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
        return scores(scratch / "r.json")


class EvalYaml(Target):
    def run(self, folder, scratch):
        m2bert("eval", "--config", folder / "config.yaml", "--output", scratch / "r.json", "--no-cache")
        records = json.loads((scratch / "r.json").read_text())["results"]
        lexical = [r for r in records if r["hybrid"] is None and r["encoder"] == "bm25"]
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
            for record in json.loads((folder / name).read_text())["results"]:
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
        assert "nan" not in text.replace("NaN is no JSON number", "").lower().split()
        return True


class Analyse(Target):
    def run(self, folder, scratch):
        m2bert(
            "analyse",
            "lengths",
            "--data",
            folder / "data",
            "--tokenizer",
            folder / "tokenizer.json",
            "--output",
            scratch / "r.json",
        )
        m2bert("analyse", "spans", "--data", folder / "data", "--output", scratch / "s.json")
        m2bert("analyse", "overlap", "--data", folder / "data", "--train-split", "test", "--output", scratch / "o.json")
        [record] = json.loads((scratch / "r.json").read_text())["results"]
        return record["documents"]["mean_tokens"], record["documents"]["count"], record["queries"]["mean_tokens"]

    def reference(self, folder, scratch):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        found = []
        for kind, column in (("documents", "passage"), ("queries", "query")):
            rows = pq.read_table(folder / "data" / kind / "test.parquet").to_pylist()
            rows = [row for row in rows if kind == "queries" or row[column] is not None]
            found.append([len(tokenizer.encode(row[column] or "", add_special_tokens=False).ids) for row in rows])
        return np.mean(found[0]), len(found[0]), np.mean(found[1])

    def same(self, one, other):
        return np.allclose(one, other)
