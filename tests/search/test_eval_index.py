"""`m2bert eval --index`: an index answers a user's own questions, and is scored as other systems are."""

import gzip
import json
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

from m2bert.cli import app
from m2bert.eval.runs import index as module
from m2bert.eval.runs.trec import read_qrels, read_run
from m2bert.eval.search import score_metrics
from m2bert.records import check_record
from m2bert.search import Index

from .word_encoder import WordEncoder

SMALL = Path(__file__).parents[2] / "models" / "m2bert-small"
TEXTS = {
    "leases/2021.txt": "The landlord may end the lease with ninety days of notice if the rent is late.",
    "rents/2021.txt": "The rent is due on the first day of each month.",
    "bees.txt": "Bees dance in the hive. The angle of the dance tells the others where the flowers are.",
    "rows.jsonl": '{"id": "a", "text": "A row about a boat."}\n{"id": "b", "text": "Another about a bridge."}\n',
}
ROWS = """Query,answer,Relevance,note
when does the lease end,leases/2021.txt,2,x
when does the lease end,rents/2021.txt,,
"dance, of bees",bees.txt,1,
boat,rows.jsonl#a,,
marmalade,row/1,1,
"""


@pytest.fixture
def loaded(monkeypatch):
    """Count the models that were loaded."""
    models = Counter()

    class CountedEncoder(WordEncoder):
        def __init__(self, model, device=None):
            models[model] += 1
            super().__init__(model, device)

    monkeypatch.setattr("m2bert.search.encoder.Encoder", CountedEncoder)
    return models


@pytest.fixture
def files(tmp_path):
    for name, text in TEXTS.items():
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "files"


@pytest.fixture
def made(tmp_path, files, loaded):
    index = Index.open(tmp_path / "my.m2", model="words")
    index.add(files)
    index.add([{"id": "row/1", "text": "Marmalade."}, {"id": "row/2", "text": "Something."}])
    loaded.clear()
    return tmp_path / "my.m2"


def written(path, text):
    path.write_text(text)
    return path


def called(*arguments, code=0):
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def records_of(made, queries, *arguments):
    output = made.parent / f"{queries.name}.json"
    called("--index", made, "--queries", queries, "--output", output, *arguments)
    return [check_record(record, "") for record in json.loads(output.read_text())["results"]]


def test_every_mode_is_scored_by_one_model(tmp_path, files, made, loaded):
    queries, rankings = written(tmp_path / "mine.csv", ROWS), tmp_path / "rankings"
    records = records_of(made, queries, "--write-run", rankings)
    assert loaded == {"words": 1}
    assert [record["system"] for record in records] == ["my.m2 / hybrid", "my.m2 / dense", "my.m2 / bm25"]
    qrels = read_qrels(rankings / "mine" / "mine.qrels")
    lease = {f"{files}/leases/2021.txt": 2, f"{files}/rents/2021.txt": 1}
    others = {"q2": {f"{files}/bees.txt": 1}, "q3": {f"{files}/rows.jsonl#a": 1}, "q4": {"row/1": 1}}
    assert qrels == {"q1": lease, **others}
    for record in records:
        mode = record["system"].rpartition(" ")[2]
        run = {"q1": Index.open(made).rank("when does the lease end", mode)}
        expected = score_metrics(run, {"q1": lease})["ndcg_at_10"]["q1"]
        assert record["query_scores"]["q1"] == pytest.approx(expected)
        assert record["counts"] == {"queries": 4, "documents": 7, "truncated_documents": 0, "truncated_queries": 0}
        assert read_run(rankings / "mine" / f"my.m2-{mode}.run")["q1"] == pytest.approx(run["q1"], rel=1e-5)
    hybrid, dense, bm25 = records
    assert [bm25["query_scores"][qid] for qid in ("q2", "q3", "q4")] == [1, 1, 1]
    assert (bm25["encoder"], dense["encoder"], hybrid["hybrid"]["with"]) == ("bm25", "words", "bm25")
    assert hybrid["successes"][0]["found_start"] == TEXTS["leases/2021.txt"]


def test_the_table_and_the_differences_are_printed(tmp_path, made):
    output = called("--index", made, "--queries", written(tmp_path / "mine.csv", ROWS), "--show", 1).output
    assert "mine, test: my.m2 / hybrid" in output
    assert "q3  boat  (first answer at rank 1)" in output
    assert output.count("my.m2 / bm25") == 4  # its rankings, its row, two differences


def test_json_lines_are_the_same_task(tmp_path, made):
    rows = [
        {"query": "when does the lease end", "answer": "leases/2021.txt", "relevance": 2},
        {"query": "when does the lease end", "answer": "rents/2021.txt", "relevance": None},
        {"query": "dance, of bees", "answer": ".\\bees.txt"},
        {"query": "boat", "answer": "rows.jsonl#a"},
        {"query": "marmalade", "answer": "row/1"},
    ]
    packed = tmp_path / "mine.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    [first, *_], [second, *_] = records_of(made, written(tmp_path / "mine.csv", ROWS)), records_of(made, packed)
    assert first["data_fingerprint"] == second["data_fingerprint"]
    assert first["task"] == second["task"] == "mine"


def test_indexes_of_the_same_files_by_two_models_can_be_compared(tmp_path, files, made):
    other = Index.open(tmp_path / "other.m2", model="others")
    other.add(files)
    other.add([{"id": "row/1", "text": "Marmalade."}, {"id": "row/2", "text": "Something."}])
    queries = written(tmp_path / "mine.csv", ROWS)
    called("--index", made, "--queries", queries, "--output", tmp_path / "one.json")
    called("--index", tmp_path / "other.m2", "--queries", queries, "--output", tmp_path / "two.json")
    against = ["--against", "my.m2 / dense"]
    result = CliRunner().invoke(app, ["compare", str(tmp_path / "one.json"), str(tmp_path / "two.json"), *against])
    assert re.search("other.m2 / dense +my.m2 / dense", result.output)
    other.add([{"id": "row/2", "text": "Something else."}])  # other documents are another task
    [first, *_], [second, *_] = (records_of(index, queries, "--overwrite") for index in (made, tmp_path / "other.m2"))
    assert first["data_fingerprint"] != second["data_fingerprint"]


def test_an_id_before_the_end_of_another_and_qids_of_ones_own(tmp_path, made):
    Index.open(made).add([{"id": "2021.txt", "text": "Of this name."}])
    queries = written(tmp_path / "mine.csv", "qid;query;answer\nx;name;2021.txt\ny;name;row/2\n")
    assert records_of(made, queries)[2]["query_scores"] == {"x": 1.0, "y": 0.0}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("query,answer\na,2021.txt\n", "line 2: answer '2021.txt' is the end of 2 ids, '"),
        ("query,answer\na,2021.txt\n", "rents/2021.txt' among them; write more of its path"),
        ("query,answer\na,row/1\nb,bee.txt\n", "line 3: answer 'bee.txt' is no document of the index; write an id"),
        ("query,answer\nb,bee.txt\n", "did you mean 'bees.txt'?"),
        (
            "query,answer\nb,s.txt\n",
            "'s.txt' is no document of the index",
        ),  # not the end of bees.txt: only whole parts of a path
        ("query,answer\nb,\n", "line 2: column 'answer' is empty; fill it"),
        ("query,path\nb,row/1\n", "needs the columns query, answer"),
        ("query,answer,relevance\nb,row/1,high\n", "line 2: relevance 'high' is no whole number from 0"),
        ("query,answer,relevance\nb,row/1,0\n", "query 'b' has no answer of relevance 1 or more; add one"),
        ("query,answer,relevance\nb,row/1,1\nb,row/1,2\n", "line 3: answer 'row/1' has another relevance before"),
        ("query,answer,qid\nb,row/1,x\nc,row/1,x\n", "line 3: qid 'x' has another query before"),
        ("query,answer\n", "has no queries; write one a row"),
        ('{"query": "b"}', "line 1 is {'query': 'b'}; give an object with the texts query and answer"),
    ],
)
def test_bad_queries_are_refused_before_the_model_is_loaded(tmp_path, made, loaded, rows, problem):
    queries = written(tmp_path / ("mine.jsonl" if rows.startswith("{") else "mine.csv"), rows)
    [line] = called("--index", made, "--queries", queries, code=2).stderr.splitlines()
    assert line.startswith(f"m2bert: {queries}")
    assert problem in line
    assert not loaded


def test_bad_arguments_are_refused_before_the_model_is_loaded(tmp_path, made, loaded):
    queries, taken = written(tmp_path / "mine.csv", ROWS), written(tmp_path / "taken.json", "")
    Index.open(made).add([{"id": "white space", "text": "Marmalade."}])
    loaded.clear()
    given = ["--index", made, "--queries", queries]
    for arguments, problem in (
        ([*given, "--encoder", "bm25", "--hybrid", "rrf"], "--index names all that is scored; leave out --encoder"),
        ([*given, "--run", "x", "--qrels", "y"], "names all that is scored; leave out"),
        (["--index", made], "--index and --queries go together; give both"),
        (["--queries", queries], "--index and --queries go together; give both"),
        (["--index", made, "--queries", tmp_path / "no.csv"], "no.csv is no file; name one that is there"),
        (["--index", tmp_path / "no", "--queries", queries], "does not exist or is empty; make it with m2bert index"),
        ([*given, "--output", taken], "taken.json exists; choose another file or pass --overwrite"),
        ([*given, "--write-run", tmp_path / "runs"], "1 ids have white space, as 'white space'"),
    ):
        [line] = called(*arguments, code=2).stderr.splitlines()
        assert problem in line
    assert not loaded


def test_what_is_not_installed_is_named_with_what_brings_it(tmp_path, made, monkeypatch):
    given = ["--index", made, "--queries", written(tmp_path / "mine.csv", ROWS)]
    for offered in ([], [EntryPoint("index", "a_missing_package:Ranker", module.GROUP)]):
        monkeypatch.setattr(module, "entry_points", lambda offered=offered, **names: offered)
        [line] = called(*given, code=2).stderr.splitlines()
        assert line.endswith("pip install 'm2bert[search]'")
    assert "No module named 'a_missing_package'" in line


@pytest.mark.slow
def test_from_files_to_scores_on_the_command_line(tmp_path, files):
    def run(*arguments):
        command = [sys.executable, "-m", "m2bert.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    run("index", files, "--index", "my.m2", "--model", SMALL)
    written(tmp_path / "mine.csv", "query,answer\nHow do bees say where the flowers are?,bees.txt\n")
    table = run("eval", "--index", "my.m2", "--queries", "mine.csv").splitlines()
    assert [line.split()[:5] for line in table[1:4]] == [
        ["my.m2", "/", mode, "mine", "100.00"] for mode in ("hybrid", "dense", "bm25")
    ]
