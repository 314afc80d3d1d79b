"""Queries of one's own from CSV files: what spreadsheets write is read, and what is wrong is named with its line."""

import unicodedata

import pytest

from m2bert.eval.metric import score_ranking
from m2bert.eval.rankers import Bm25Ranker
from m2bert.eval.tasks.from_csv import load_csv_folder, load_csv_task


@pytest.fixture
def folder(tmp_path):
    """Two text files and two queries."""
    documents = tmp_path / "mine" / "documents"
    (documents / "more").mkdir(parents=True)
    (documents / "boats.txt").write_text("About boats.\nAnd sails.", encoding="utf-8")
    (documents / "more" / "walls.md").write_text("# Walls", encoding="utf-8")
    (documents / "ignored.pdf").write_bytes(b"%PDF")
    (tmp_path / "mine" / "queries.csv").write_text(
        'query,answer\n"what sails, and\nwhere?",boats.txt\nstones,more/walls.md; boats.txt\n', encoding="utf-8"
    )
    return tmp_path / "mine"


def test_a_folder_becomes_a_task(folder):
    task = load_csv_folder(folder)
    assert (task.name, task.split, task.source) == ("mine", "test", str(folder))
    assert task.documents == {"boats.txt": "About boats.\nAnd sails.", "more/walls.md": "# Walls"}
    assert task.queries == {"q1": "what sails, and\nwhere?", "q2": "stones"}
    assert task.qrels == {"q1": {"boats.txt": 1}, "q2": {"more/walls.md": 1, "boats.txt": 1}}


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


def test_what_is_left_out_or_empty_is_counted(folder, caplog):
    (folder / "documents" / "also.pdf").write_bytes(b"%PDF")
    (folder / "documents" / "blank.txt").write_text(" \n")
    load_csv_folder(folder)
    lines = [record.getMessage() for record in caplog.records]
    assert [line for line in lines if "2 .pdf" in line]
    assert [line for line in lines if "1 of 3 documents are empty" in line]


class TestAccents:
    """One letter with an accent, or a letter and an accent: systems and archives write either."""

    composed, decomposed = (unicodedata.normalize(form, "café.txt") for form in ("NFC", "NFD"))

    @pytest.mark.parametrize("table", [False, True])
    def test_either_form_finds_the_document(self, tmp_path, table):
        if table:
            (tmp_path / "documents.csv").write_text(f"id,text\n{self.decomposed},soup\n", encoding="utf-8")
        else:
            (tmp_path / "documents").mkdir()
            (tmp_path / "documents" / self.decomposed).write_text("soup")
        for written in (self.composed, self.decomposed):
            (tmp_path / "queries.csv").write_text(f"query,answer\nsoup,{written}\n", encoding="utf-8")
            assert load_csv_folder(tmp_path).qrels == {"q1": {self.composed: 1}}

    @pytest.mark.parametrize("table", [False, True])
    def test_two_documents_of_one_name_are_refused(self, tmp_path, table):
        (tmp_path / "queries.csv").write_text("query,answer\nsoup,x\n")
        if table:
            rows = f"id,text\n{self.composed},a\n{self.decomposed},b\n"
            (tmp_path / "documents.csv").write_text(rows, encoding="utf-8")
        else:
            (tmp_path / "documents").mkdir()
            for name in (self.composed, self.decomposed):
                (tmp_path / "documents" / name).write_text("soup")
            if len(list((tmp_path / "documents").iterdir())) == 1:
                pytest.skip("this file system takes both forms for one name")
        with pytest.raises(ValueError, match=f"id '{self.composed}' occurs 2 times"):
            load_csv_folder(tmp_path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_spreadsheets_choose_their_own_form(folder, delimiter):
    """Other columns, capitals, a byte-order mark, Windows line ends and blank lines do not matter."""
    rows = [
        ["Note", "Answer", "Query"],
        ["x", '"boats.txt;more/walls.md"', "sails"],
        ["", "", ""],
        ["", "boats.txt", "é"],
    ]
    text = "\r\n".join(delimiter.join(row) for row in rows)
    (folder / "queries.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    task = load_csv_folder(folder)
    assert task.queries == {"q1": "sails", "q2": "é"}
    assert list(task.qrels["q1"]) == ["boats.txt", "more/walls.md"]


def test_documents_from_a_second_csv(folder, tmp_path):
    long = "word " * 40_000  # beyond the csv module's own limit for a cell
    (tmp_path / "documents.csv").write_text(f'id,text\nboats.txt,"{long}"\nmore/walls.md,\n', encoding="utf-8")
    task = load_csv_task(folder / "queries.csv", tmp_path / "documents.csv", "name")
    assert task.documents == {"boats.txt": long, "more/walls.md": ""}
    assert task.name == "name"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("query\nwhat\n", r"queries.csv needs the columns query, answer, .* has \['query'\]"),
        ("query,answer,answer\nx,boats.txt,more/walls.md\n", "each once"),
        ("", "queries.csv needs the columns query, answer"),
        ("query,answer\n", "has no queries"),
        ('query,answer\n"a\nb",boats.txt\n ,boats.txt\n', "line 4: column 'query' is empty"),
        ("query,answer\na,boats.txt\n\nb\n", "line 4: column 'answer' is empty"),
        ("query,answer\na,;\n", "answer_pids of query 'q1' are empty"),
        ("answer,query\nboats.txt,Who pays, and when?\n", "line 2 has more cells than the header; put quotes"),
        ('query,answer\na,boats.txt\n"b,boats.txt\n"c,boats.txt\n', "after line 2: quotes do not pair"),
        ('query,answer\n"a,boats.txt\n', "after line 1: quotes do not pair"),
        ("query,answer\na,boats.txt;boat.txt\n", "line 2: answer 'boat.txt' is no document .*did you mean 'boats.txt'"),
    ],
)
def test_mistakes_in_queries_are_named_with_their_line(folder, content, message):
    (folder / "queries.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_csv_folder(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\na,x\na,y\n", "documents.csv, documents: id 'a' occurs 2 times"),
        ("id,text\n,x\n", "documents.csv, line 2: column 'id' is empty"),
        ("id,text\n", "documents.csv has no documents"),
        ("id,text\na,one, two\n", "documents.csv, line 2 has more cells"),
    ],
)
def test_mistakes_in_documents_are_named(folder, content, message):
    (folder / "documents.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_csv_task(folder / "queries.csv", folder / "documents.csv", "name")


def test_other_encodings_and_missing_documents_are_named(folder):
    queries = (folder / "queries.csv").read_bytes()
    (folder / "queries.csv").write_bytes(queries + "café,boats.txt\n".encode("latin-1"))
    with pytest.raises(ValueError, match="queries.csv, line 5 is not UTF-8; save the file as"):
        load_csv_folder(folder)
    (folder / "documents").rename(folder / "papers")
    with pytest.raises(ValueError, match="documents.csv cannot be read"):
        load_csv_folder(folder)
    (folder / "documents").mkdir()
    with pytest.raises(ValueError, match="documents has no documents"):
        load_csv_folder(folder)
