"""Which files are found, and that every format gives the text that a reader sees, or a reason."""

import contextlib
import gzip
import json
import os
import random

import docx
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from files_on_disk import LOCKED, write_pdf

from m2bert.search.documents import Unreadable, find_files, read_file

BODY = "The tenant pays a monthly rent of nine hundred crowns to the owner’s office."
LINES = ["Harbour lease", BODY, "Year Rent", "2021 900"]
TEXT = "\n".join(LINES)
HTML = """<title>Harbour lease</title><style>p {}</style><p>The <b>ten</b>ant pays
 a <i>monthly rent</i> of <a href="x">nine hundred</a> crowns to the owner’s office.</p>
<table><tr><th>Year</th><th>Rent</th></tr><tr><td>2021</td><td>900</td></tr></table><script>no</script>"""
MAIL = "From: Ann <ann@example.org>\nTo: bo@example.org\nSubject: Harbour lease\nDate: Mon, 6 May 2024 10:00:00 +0200\n"
SUBTITLES = "1\n00:00:01,000 --> 00:00:02,000\nHarbour lease\n\n2\n00:00:03,000 --> 00:00:04,000\n{body}\n\n" + (
    "3\n00:00:05,000 --> 00:00:06,000\nYear Rent\n\n4\n00:00:05,000 --> 00:00:06,000\n2021 900\n"
)


def _docx(path):
    document = docx.Document()
    document.core_properties.author = "Ann"
    document.add_heading(LINES[0])
    paragraph = document.add_paragraph("The ")
    paragraph.add_run("ten").bold = True
    paragraph.add_run("ant pays a monthly ")
    link = f'<w:hyperlink {nsdecls("w")}><w:r><w:t xml:space="preserve">rent of </w:t></w:r></w:hyperlink>'
    inserted = f'<w:ins {nsdecls("w")} w:id="1"><w:r><w:t xml:space="preserve">nine hundred </w:t></w:r></w:ins>'
    deleted = f'<w:del {nsdecls("w")} w:id="2"><w:r><w:delText>no</w:delText></w:r></w:del>'
    for part in (link, inserted, deleted):
        paragraph._p.append(parse_xml(part))
    paragraph.add_run("crowns to the owner’s office.")
    table = document.add_table(2, 2)
    for number, cell in enumerate(" ".join(LINES[2:]).split()):
        table.cell(*divmod(number, 2)).text = cell
    document.save(path)


def _pdf(path):
    first = [(50, 700, LINES[0]), (50, 660, "The *ten*ant pays a *monthly rent* of nine hun-"),
             (50, 648, "dred crowns to the owner’s office."), (50, 600, "Year"), (150, 600, "Rent"),
             (50, 588, "2021"), (150, 588, "900")]  # fmt: skip
    write_pdf(path, first)


def _mail(kind, body):
    return f"{MAIL}Content-Type: text/{kind}; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n{body}\n"


WRITERS = {
    "a.txt": TEXT, "README": TEXT, "a.md": TEXT, "a.rst": TEXT, "a.html": HTML, "a.docx": _docx, "a.pdf": _pdf,
    "text.eml": _mail("plain", "\n".join(LINES[1:])), "html.eml": _mail("html", HTML.partition("</title>")[2]),
    "a.srt": SUBTITLES.format(body="<i>The tenant</i> pays a monthly rent of\n{\\an8}" + BODY.partition("rent of ")[2]),
    "a.vtt": "WEBVTT - no\n\nNOTE no\n\nSTYLE\n::cue {}\n\n" + SUBTITLES.format(body=BODY).replace(",", "."),
    "a.csv": f'id,Text,year\n7,"{TEXT}",2021\n', "a.jsonl": json.dumps({"id": 7, "text": TEXT, "year": 2021}),
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def _read(path):
    [document] = read_file(path)
    return document


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_text_that_is_seen(name, write):
    path = write(name, WRITERS[name])
    assert find_files([path.parent]) == ({path: path.stat().st_size}, [], 0)
    document = _read(path)
    assert document.text.replace("\t", " ").strip() == TEXT
    assert document == _read(path)
    rows = name.endswith((".csv", ".jsonl"))
    assert document.id == (f"{path}#7" if rows else str(path))
    assert not rows or document.metadata == {"year": 2021}
    if name not in ("a.docx", "a.pdf"):
        packed = write(f"packed/{name}.gz", gzip.compress(path.read_bytes()))
        assert (_read(packed).text, list(find_files([packed]).files)) == (document.text, [packed])


def test_what_is_known_beside_the_text(write):
    assert _read(write("a.md", "# The *lease* #\n\ntext")).metadata == {"title": "The *lease*"}
    assert _read(write("a.html", "<title>A &amp;\n B</title>x")).metadata == {"title": "A & B"}
    assert _read(write("a.docx", _docx)).metadata["author"] == "Ann"
    mail = {"title": "Harbour lease", "from": "Ann <ann@example.org>", "to": "bo@example.org", "date": "2024-05-06"}
    assert _read(write("a.eml", WRITERS["text.eml"])).metadata == mail


def test_pages_of_a_pdf_and_a_page_without_text(write):
    pages = [[(50, 700, f"Page {number} begins"), (50, 650, f"and ends {number}.")] for number in range(4)]
    pages[2] = []
    document = _read(write("a.pdf", lambda path: write_pdf(path, *pages)))
    bounds = [*document.pages, len(document.text)]
    texts = [document.text[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]
    assert [text.strip() for text in texts] == [f"Page {n} begins\nand ends {n}." * (n != 2) for n in range(4)]
    assert "".join(texts) == document.text
    assert document.metadata["pages_without_text"] == "3"


def test_hyphens_at_the_ends_of_lines(write):
    lines = ["The well-known harbour is a repre-", "sentative place, as the non-", "Dutch commission found."]
    page = [(50, 700 - 12 * number, line) for number, line in enumerate(lines)]
    text = _read(write("a.pdf", lambda path: write_pdf(path, page))).text
    words = "The well-known harbour is a representative place, as the non-Dutch commission found."
    assert " ".join(text.split()) == words


def test_parts_of_a_word_document_that_are_not_paragraphs(write):
    def fill(path):
        document = docx.Document()
        body, names = document.element.body, nsdecls("w")
        run = "<w:p><w:r><w:t>{}</w:t></w:r></w:p>".format
        body.insert(0, parse_xml(f"<w:sdt {names}><w:sdtContent>{run('in a control')}</w:sdtContent></w:sdt>"))
        box = f'<w:p {names} xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"><w:r>'
        box += f"<w:t>beside</w:t><mc:AlternateContent><mc:Choice><w:txbxContent>{run('in a box')}</w:txbxContent>"
        box += f"</mc:Choice><mc:Fallback><w:txbxContent>{run('in a box')}</w:txbxContent></mc:Fallback>"
        body.insert(1, parse_xml(box + "</mc:AlternateContent></w:r></w:p>"))
        cell = "<w:tc><w:p><w:r><w:t>{}</w:t></w:r></w:p>{}</w:tc>".format
        inner = f"<w:tbl><w:tr>{cell('c', '')}</w:tr></w:tbl>"
        body.insert(2, parse_xml(f"<w:tbl {names}><w:tr>{cell('a', '')}{cell('b', inner)}</w:tr></w:tbl>"))
        document.save(path)

    assert _read(write("a.docx", fill)).text == "in a control\nbeside\nin a box\na\tb c"


def test_a_mail_in_parts(write):
    parts = 'Content-Type: multipart/mixed; boundary="m"\n\n--m\nContent-Type: multipart/alternative; boundary="a"\n\n'
    parts += "--a\nContent-Type: text/plain\n\n{plain}\n--a\nContent-Type: text/html\n\n<p>in <b>HTML</b>\n--a--\n"
    parts += (
        "--m\nContent-Type: text/plain; name=notes.txt\nContent-Disposition: attachment; filename=notes.txt\n\nno\n"
    )
    parts += "--m\nContent-Type: text/plain; charset=no-such; format=flowed\n\na list's \nfoot\n--m--\n"
    mail = _read(write("a.eml", MAIL + parts.format(plain="in text")))
    assert mail.text == "Harbour lease\nin text\na list's foot"
    assert mail.metadata["attachments"] == "notes.txt"
    assert _read(write("b.eml", MAIL + parts.format(plain=" "))).text == "Harbour lease\nin HTML\na list's foot"
    raw = _read(write("c.eml", MAIL.encode().replace(b"Harbour", b"H\xe4fen") + b"\nbody \xff"))
    assert (raw.text + raw.metadata["title"]).encode()  # nothing that UTF-8 cannot hold


def test_captions_that_roll_up_and_speakers(write):
    cues = ["<v Ann>I said", "I said\nthat we go", "that we go\n<v.loud Bo Li>no &amp; no"]
    text = "WEBVTT\n\n" + "\n\n".join(f"00:01.000 --> 00:02.000 align:left\n{cue}" for cue in cues)
    assert _read(write("a.vtt", text)).text == "Ann: I said\nI said that we go\nBo Li: no & no"


def test_rows_are_documents_and_their_other_columns_metadata(write):
    table = 'id;passage;year;price;code;note\na;"one;\n\ntwo";2020;1.5;007;\n;three;2021;2;8;x\n'
    first, second = read_file(path := write("a.csv", table))
    assert first == (f"{path}#a", "one;\n\ntwo", [], {"year": 2020, "price": 1.5, "code": "007"})
    assert second == (f"{path}#5", "three", [], {"year": 2021, "price": 2.0, "code": "8", "note": "x"})
    assert _read(write("b.csv", "name,year\na,1\n")).text == "name,year\na,1\n"
    rows = [{"text": "one", "year": 1, "new": True, "none": None}, {"id": "b", "text": "two", "score": 0.5}]
    first, second = read_file(path := write("a.jsonl", "\n".join(map(json.dumps, rows))))
    assert first == (f"{path}#1", "one", [], {"year": 1, "new": True})
    assert second == (f"{path}#b", "two", [], {"score": 0.5})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_that_say_what_they_are(encoding, write):
    assert _read(write("a.txt", "é “x”\r\ny\rz".encode(encoding))).text == "é “x”\ny\nz"
    html = '<meta charset="ISO-8859-1"><p>é “x”'
    assert _read(write("a.html", html.encode("cp1252"))).text == "é “x”"
    assert _read(write("b.html", html.encode())).text == "é “x”"  # UTF-8 after all


OLE = bytes.fromhex("d0cf11e0a1b11ae1")
BROKEN = {
    "empty.txt": (b"", "empty"), "blank.md": (" \n", "empty"), "nothing.html": ("<script>x</script>", "empty"),
    "a.xlsx": (b"x", "unsupported type .xlsx; convert it to one of .txt"), "x.tar.gz": (b"x", "unsupported type"),
    "program": (b"\x7fELF\0\0", "binary"), "a.txt": (b"a\0b", "binary"), "b.txt": ("é".encode("cp1252"), "not UTF-8"),
    "utf32.txt": ("x".encode("utf-32"), "binary"), "packed.txt.gz": (b"no gzip", "^cannot be read"),
    "cut.txt.gz": (gzip.compress(os.urandom(999))[:500], "^cannot be read"),
    "locked.pdf": (lambda path: write_pdf(path, [(50, 700, "x")], trailer=LOCKED), "encrypted"),
    "scan.pdf": (lambda path: write_pdf(path, [], []), r"scanned: none of its pages \(2\)"),
    "a.pdf": (b"%PDF-1.4 no", "damaged"), "a.docx": (b"PK\x03\x04 no", "damaged"), "none.docx": (b"text", "damaged"),
    "locked.docx": (OLE + "EncryptedPackage".encode("utf-16-le"), "encrypted"), "old.docx": (OLE, "Word 97"),
    "a.eml": ("no header", "damaged"), "empty.srt": ("1\n00:00 --> 00:01\n\n", "empty"),
    "twice.csv": ("id,text\na,b\na,c\n", "line 3: its id 'a' stands above"),
    "hole.csv": ("id,text\na,\n", "line 2: .*text"),
    "columns.csv": ("text,A,a\nx,1,2\n", "line 1: column 'a' stands twice"),
    "long.csv": ("text\na,b\n", "^line 2: more cells"), "quotes.csv": ('text\n"a', "^after line 1: quotes"),
    "header.csv": ("id,text\n", "empty"), "blank.jsonl": ("\n", "empty"),
    "a.jsonl": ('{"text": "x"}\n{"text": "y", "tags": ["a"]}', "^line 2: 'tags' is nested"),
    "b.jsonl": ('{"text": ""}', "^line 1 has no text"), "c.jsonl": ("[]", "^line 1 has no text"),
    "d.jsonl": ('{"text": "x"}\n{', "^line 2 is no valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_gives_no_text_says_why(name, write):
    content, reason = BROKEN[name]
    path = write(name, content)
    with pytest.raises(Unreadable, match=reason) as raised:
        read_file(path)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) not in message
    files, failures, left_out = find_files([path])
    assert (list(files), failures, left_out) in (([path], [], 0), ([], [(str(path), message)], 0))


@pytest.mark.parametrize("name", WRITERS)
def test_damage_is_read_or_has_a_reason(name, write):
    whole = write(name, WRITERS[name]).read_bytes()
    draw = random.Random(name)
    for _ in range(40):
        data = bytearray(whole[: draw.randrange(1, len(whole) + 1)])
        for _ in range(draw.randrange(8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path = write(name, bytes(data))
        with contextlib.suppress(Unreadable):  # nothing else is raised
            assert all(document.text.encode().strip() for document in read_file(path))


def test_files_are_found_once_and_others_counted(tmp_path, monkeypatch):
    for name in ("a/b.txt", "a/C.TXT", "a/.hidden.txt", "a/.git/x.txt", "a/__MACOSX/b.txt",
                 "a/.ipynb_checkpoints/n.md", "a/z/d.md", "a/picture.png", ".named/e.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    folder = tmp_path / "a"
    (folder / "again.txt").symlink_to(folder / "b.txt")
    (folder / "loop").symlink_to(folder)
    (folder / "elsewhere").symlink_to(tmp_path / ".named")
    (folder / "gone.txt").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.txt")
    monkeypatch.chdir(tmp_path)
    found = find_files(["a", folder / "z", "a/b.txt"])
    names = ("b.txt", "C.TXT", "z/d.md", "elsewhere/e.txt")
    assert list(found.files) == sorted(folder / name for name in names)
    failures = {os.path.basename(path): reason for path, reason in found.failures}
    assert list(failures) == ["gone.txt", "picture.png", "pipe.txt"]
    assert "link" in failures["gone.txt"]
    assert found.left_out == 4 + 1 + 1 + 1 + 1  # hidden and copies; link, loop, folder named twice, file named twice
    assert list(find_files([".named"]).files) == [tmp_path / ".named/e.txt"]
    with pytest.raises(ValueError, match="nothing does not exist"):
        find_files(["nothing"])
