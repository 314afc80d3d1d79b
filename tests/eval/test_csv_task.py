"""Queries of one's own from CSV files: what spreadsheets write is read, and what is wrong is named with its line."""

import unicodedata

import pytest

from m2bert.eval.rankers import Bm25Ranker
from m2bert.eval.search import score_ranking
from m2bert.eval.tasks.load import load_csv_folder


@pytest.fixture
def folder(tmp_path):
    """Two text files and two queries."""
    documents = tmp_path / "mine" / "documents"
    (documents / "more").mkdir(parents=True)
    (documents / "boats.txt").write_text("About boats.\nAnd sails.", encoding="utf-8")
    (documents / "more" / "walls.md").write_text("# Walls", encoding="utf-8")
    (tmp_path / "mine" / "queries.csv").write_text(
        'query,answer\n"what sails, and\nwhere?",boats.txt\nstones,more/walls.md; boats.txt\n', encoding="utf-8"
    )
    return tmp_path / "mine"


def test_a_folder_becomes_a_task(folder, caplog):
    task = load_csv_folder(folder)
    assert (task.name, task.split, task.source) == ("mine", "test", str(folder))
    assert task.documents == {"boats.txt": "About boats.\nAnd sails.", "more/walls.md": "# Walls"}
    assert task.queries == {"q1": "what sails, and\nwhere?", "q2": "stones"}
    assert task.qrels == {"q1": {"boats.txt": 1}, "q2": {"more/walls.md": 1, "boats.txt": 1}}
    for name, text in (("a.pdf", "%PDF"), ("b.pdf", "%PDF"), ("blank.txt", " \n")):
        (folder / "documents" / name).write_text(text)
    load_csv_folder(folder)
    assert "2 .pdf" in caplog.text
    assert "1 of 3 documents are empty; take them out" in caplog.text


def test_rows_of_one_query_are_one_query(folder, caplog):
    (folder / "queries.csv").write_text("query,answer\nx,boats.txt\ny,boats.txt\n x ,more/walls.md;boats.txt\n")
    task = load_csv_folder(folder)
    assert task.queries == {"q1": "x", "q2": "y"}
    assert task.qrels == {"q1": {"boats.txt": 1, "more/walls.md": 1}, "q2": {"boats.txt": 1}}
    assert "1 rows repeat a query" in caplog.text


def test_a_name_with_a_semicolon_is_the_cell_or_stands_in_quotes(folder):
    (folder / "documents" / "sails; oars.txt").write_text("rowing")
    rows = ["a,sails; oars.txt", 'b,"""sails; oars.txt"";boats.txt"', 'c,"boats.txt; ""sails; oars.txt"""']
    (folder / "queries.csv").write_text("\n".join(["query,answer", *rows, 'd,"more\\walls.md\nboats.txt"']))
    assert [list(judged) for judged in load_csv_folder(folder).qrels.values()] == [
        ["sails; oars.txt"],
        ["sails; oars.txt", "boats.txt"],
        ["boats.txt", "sails; oars.txt"],
        ["more/walls.md", "boats.txt"],
    ]


def test_hidden_files_are_no_documents(tmp_path):
    """Notebooks keep older states, Macs put stubs into archives: both would be ranked, or would end the run."""
    documents = tmp_path / "documents"
    for name in (".ipynb_checkpoints/lease-checkpoint.txt", "__MACOSX/documents/._lease.txt", "._lease.txt"):
        (documents / name).parent.mkdir(parents=True, exist_ok=True)
        (documents / name).write_bytes(b"\xff The lease ends in May.")
    (documents / "lease.txt").write_text("The lease ends in May. " + "Payment is due monthly. " * 20)
    (documents / "other.txt").write_text("Nothing of interest.")
    (tmp_path / "queries.csv").write_text("query,answer\nWhen does the lease end in May?,lease.txt\n")
    task = load_csv_folder(tmp_path)
    assert list(task.documents) == ["lease.txt", "other.txt"]
    assert score_ranking(Bm25Ranker().rank(task), task.qrels) == {"q1": 1.0}


@pytest.mark.parametrize("table", [False, True])
def test_names_with_accents(tmp_path, table):
    """One letter with an accent, or a letter and an accent: either form finds the document, and both are one name."""
    composed, decomposed = forms = [unicodedata.normalize(form, "café.txt") for form in ("NFC", "NFD")]

    def write(names):
        if table:
            (tmp_path / "documents.csv").write_text("\n".join(["id,text", *(f"{n},soup" for n in names)]))
        else:
            (tmp_path / "documents").mkdir(exist_ok=True)
            for name in names:
                (tmp_path / "documents" / name).write_text("soup")

    write([decomposed])
    for written in forms:
        (tmp_path / "queries.csv").write_text(f"query,answer\nsoup,{written}\n", encoding="utf-8")
        assert load_csv_folder(tmp_path).qrels == {"q1": {composed: 1}}
    write(forms)
    if not table and len(list((tmp_path / "documents").iterdir())) == 1:
        pytest.skip("this file system takes both forms for one name")
    with pytest.raises(ValueError, match=f"id '{composed}' occurs 2 times"):
        load_csv_folder(tmp_path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_spreadsheets_choose_their_own_form(folder, delimiter):
    """Other columns, capitals, a byte-order mark, Windows line ends and blank lines do not matter."""
    rows = [["Note", "Answer", "Query"], ["x", '"boats.txt;more/walls.md"', "sails"], [""] * 3, ["", "boats.txt", "é"]]
    text = "\r\n".join(delimiter.join(row) for row in rows)
    (folder / "queries.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    task = load_csv_folder(folder)
    assert task.queries == {"q1": "sails", "q2": "é"}
    assert list(task.qrels["q1"]) == ["boats.txt", "more/walls.md"]


def test_documents_from_a_second_csv(folder):
    (folder / "documents").rename(folder / "papers")
    long = "word " * 40_000  # beyond the csv module's own limit for a cell
    (folder / "documents.csv").write_text(f'id,text\nboats.txt,"{long}"\nmore/walls.md,\n', encoding="utf-8")
    assert load_csv_folder(folder).documents == {"boats.txt": long, "more/walls.md": ""}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("queries.csv", "query\nwhat\n", r"queries.csv needs the columns query, answer; .* has \['query'\]"),
        ("queries.csv", "query,answer,answer\nx,boats.txt,more/walls.md\n", "line 1: column 'answer' stands twice"),
        ("queries.csv", "query,answer,Qid,qid\nx,boats.txt,1,2\n", "line 1: column 'qid' stands twice"),
        ("queries.csv", "query,answer\n", "has no queries"),
        ("queries.csv", 'query,answer\n"a\nb",boats.txt\n ,boats.txt\n', "line 4: column 'query' is empty"),
        ("queries.csv", "query,answer\na,boats.txt\n\nb\n", "line 4: column 'answer' is empty"),
        ("queries.csv", "query,answer\na,;\n", "query 'q1' has no answer_pids"),
        (
            "queries.csv",
            "answer,query\nboats.txt,Who, and when?\n",
            "queries.csv, line 2: more cells than the header; put quotes",
        ),
        ("queries.csv", 'query,answer\na,boats.txt\n"b,boats.txt\n"c,boats.txt\n', "after line 2: quotes do not pair"),
        ("queries.csv", 'query,answer\n"a,boats.txt\n', "after line 1: quotes do not pair"),
        (
            "queries.csv",
            "query,answer\na,boats.txt;boat.txt\nb,x\n",
            "line 2: answer 'boat.txt' .and 1 more. is no document; did you mean 'boats.txt'.; write ; between answers",
        ),
        ("queries.csv", "query,answer\n\ncafé,boats.txt\n", "queries.csv, line 3 is not UTF-8"),
        ("documents.csv", "id,text\na,x\na,y\n", "mine, documents: id 'a' occurs 2 times"),
        ("documents.csv", "id,text\n,x\n", "documents.csv, line 2: column 'id' is empty"),
        ("documents.csv", "id,text\n", "has no documents"),
        ("documents", "no folder", "documents.csv cannot be read"),
    ],
)
def test_mistakes_are_named_with_their_line(folder, file, content, message):
    if file != "queries.csv":
        (folder / "documents").rename(folder / "papers")
    (folder / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        load_csv_folder(folder)
