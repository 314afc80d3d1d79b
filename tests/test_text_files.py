"""Texts in a folder: which files they are, and what HTML shows."""

import pytest

from m2bert.html import visible_text
from m2bert.text_files import read_described, read_document, text_files


def test_texts_are_found_and_other_types_counted(tmp_path, caplog):
    for name in ("b.txt", "a/c.MD", "a/d.html", "e.htm", "f.pdf", "g.PDF", "README", ".h.txt", "__MACOSX/i.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("<p>a &amp; b</p>")
    found = text_files(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a/c.MD", "a/d.html", "b.txt", "e.htm"]
    assert [read_document(path) for path in found] == ["<p>a &amp; b</p>", "a & b"] * 2
    assert "left out for their type: 2 .pdf, 1 no suffix" in caplog.text
    (tmp_path / "e.htm").write_bytes(b"one\n\xff")
    with pytest.raises(ValueError, match="e.htm, line 2 is not UTF-8"):
        read_document(tmp_path / "e.htm")


def test_mails_and_subtitles_are_read_as_a_reader_sees_them(tmp_path):
    (tmp_path / "a.eml").write_text("Subject: Rent\nFrom: Ann <a@example.org>\n\nIt is late.\n")
    (tmp_path / "b.srt").write_text("1\n00:01 --> 00:02\nIt is\n<i>late</i>.\n\n2\n00:02 --> 00:03\nStill.\n")
    assert [read_document(path) for path in text_files(tmp_path)] == ["Rent\nIt is late.", "It is late.\nStill."]
    assert read_described(tmp_path / "a.eml")[1]["from"] == "Ann <a@example.org>"
    (tmp_path / "a.eml").write_text("no header")
    with pytest.raises(ValueError, match=r"a.eml: damaged: no header of a mail; save the mail again"):
        read_document(tmp_path / "a.eml")


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<h1>Stone <b>br</b>idges</h1><p>carry\n a <a href='x'>road</a>.", "Stone bridges\ncarry a road."),
        ("one<br>two<li>three&nbsp;&lt;3<!-- no --></li>four", "one\ntwo\nthree <3\nfour"),
        ("<table><tr><td>a<td>b</tr><tr><th>c</th><th>d</th></table>", "a b\nc d"),
        (
            "<title>T</title><style>p{}</style><script>if (a<b) '<p>no'</script>x<template><p>no</p></template>y",
            "T\nxy",
        ),
        ("<pre>one\n  two</pre>", "one\ntwo"),
        ("a<![if IE]>b<![endif]><![odd]>c<![CDATA[no]]>d</p></div>", "abcd"),
        ("</script>a<script>unclosed", "a"),
        ("plain & simple < words", "plain & simple < words"),
    ],
)
def test_html_gives_what_is_seen(html, text):
    assert visible_text(html) == text
