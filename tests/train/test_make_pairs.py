"""Retrieval tasks from raw text: leads find the rest, nothing is lost, several sources stand in one folder."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2bert.eval.tasks.schema import load_task, task_names
from m2bert.train.pairs import make_pairs

SENTENCES = [f"Sentence number {i} tells of river {i * i} and of bridge {i + 7}." for i in range(400)]


@pytest.fixture
def text_folder(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    texts = [" ".join(SENTENCES[:60]), "too short to be divided", "\n".join(SENTENCES)]
    for split in make_pairs.SPLITS:
        pq.write_table(pa.table({"text": texts}), folder / f"{split}.parquet")
    return folder


def arguments(output, *sources, **options):
    named = [part for source in sources for part in ("--source", source)]
    return [*named, *(f"--{key}={value}" for key, value in options.items()), "--output", str(output)]


def test_a_lead_finds_the_rest_of_its_text(text_folder, tmp_path):
    make_pairs.main(arguments(tmp_path / "out", f"raw={text_folder}"))
    task = load_task(tmp_path / "out", "raw", "train")
    assert len(task.queries) == len(task.documents) == 2
    for qid, lead in task.queries.items():
        (pid,) = task.qrels[qid]
        assert make_pairs.SHORTEST_LEAD_CHARS <= len(lead) <= make_pairs.LONGEST_LEAD_CHARS
        assert lead.endswith(".")
        assert lead not in task.documents[pid]
        text = " ".join(f"{lead} {task.documents[pid]}".split())
        assert text in (" ".join(SENTENCES[:60]), " ".join(SENTENCES))


def test_a_folder_of_texts_has_pairs_set_aside_by_text(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.md").write_text("\n".join(SENTENCES[i * 90 : i * 90 + 90]))
    (folder / "short.txt").write_text("too short")
    make_pairs.main(arguments(tmp_path / "out", f"raw={folder}", **{"document-chars": 3000}))
    train, held = (load_task(tmp_path / "out", "raw", split) for split in make_pairs.SPLITS)
    parts = len(held.queries)
    assert len(train.queries) == 3 * parts > 3
    texts = [" ".join([*task.queries.values(), *task.documents.values()]) for task in (train, held)]
    found = [{i // 90 for i in range(360) if f"number {i} tells" in text} for text in texts]
    assert (len(found[0]), len(found[1])) == (3, 1)
    assert found[0] | found[1] == {0, 1, 2, 3}


def test_long_texts_are_parted_at_line_ends_and_nothing_is_lost():
    text = "\n".join(SENTENCES)
    parts = list(make_pairs.parts(text, 5000))
    assert 4000 < min(map(len, parts)) <= max(map(len, parts)) <= 5000
    assert "\n".join(parts) == text
    words = list(make_pairs.parts("word " * 100, 203))
    assert max(map(len, words)) <= 203
    assert " ".join(words) == ("word " * 100).strip()
    assert list(make_pairs.parts("x" * 10, 4)) == ["xxxx", "xxx", "xxx"]


def test_retrieval_data_are_taken_over(text_folder, toy_corpus, tmp_path):
    make_pairs.main(arguments(tmp_path / "out", f"raw={text_folder}", f"old={toy_corpus}"))
    assert task_names(tmp_path / "out", "validation") == ["old", "raw"]
    new, old = load_task(tmp_path / "out", "old", "train"), load_task(toy_corpus, "toy", "train")
    assert (new.queries, new.documents, new.qrels) == (old.queries, old.documents, old.qrels)
    assert not (tmp_path / "out" / "queries" / "test.parquet").exists()


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        (["raw"], {}, "NAME=FOLDER.*not raw"),
        (["raw={folder}", "raw={folder}"], {}, "each NAME once"),
        (["raw={folder}"], {"document-chars": 10}, "--document-chars=10"),
        (["raw=no-such-folder"], {}, "no-such-folder"),
        (["own={folder}/own"], {}, "own has queries but no tables"),
        (["raw={folder}", "short={folder}/short"], {}, "short: no text of validation is long enough"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(text_folder, tmp_path, sources, options, message):
    (text_folder / "own").mkdir()
    (text_folder / "own" / "queries.csv").write_text("query,answer\n")
    (text_folder / "short").mkdir()
    for split in make_pairs.SPLITS:
        (text_folder / "short" / f"{split}.txt").write_text("too short")
    sources = [source.format(folder=text_folder) for source in sources]
    with pytest.raises(ValueError, match=message):
        make_pairs.main(arguments(tmp_path / "out", *sources, **options))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(text_folder, tmp_path):
    with pytest.raises(ValueError, match="--output .* not an empty folder"):
        make_pairs.main(arguments(text_folder, f"raw={text_folder}"))
