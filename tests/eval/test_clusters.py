import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2bert.eval.analyses.clusters import cluster_sources, knn_accuracy, parse_sources
from m2bert.eval.tasks.load import read_source

ABOUT = {"system": "fake / truncate"}


def blobs(spread, sources=3, each=20, seed=0):
    """Unit rows around one direction for each source, and the sources' names."""
    generator = np.random.default_rng(seed)
    centres = np.eye(8)[:sources].repeat(each, axis=0)
    rows = centres + spread * generator.standard_normal((sources * each, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), [f"s{number}" for number in range(sources) for _ in range(each)]


def test_sources_that_lie_apart_are_told_apart_and_the_picture_is_seeded_and_keeps_neighbors():
    rows, sources = blobs(spread=0.05)
    record, again = (cluster_sources(rows, sources, ABOUT, seed=1) for _ in range(2))
    assert record["knn"] == {"k": 10, "accuracy": 1.0, "chance": pytest.approx(1 / 3)}
    assert record["sources"] == {"s0": 20, "s1": 20, "s2": 20}
    assert [point[2] for point in record["points"]] == [0] * 20 + [1] * 20 + [2] * 20
    assert 0 < record["perplexity"] <= 30
    assert record["system"] == "fake / truncate"
    json.dumps(record)
    assert record == again
    points = np.array(record["points"])
    centres = np.stack([points[points[:, 2] == label, :2].mean(axis=0) for label in range(3)])
    distances = np.linalg.norm(points[:, None, :2] - centres, axis=2)
    assert (distances.argmin(axis=1) == points[:, 2]).all()


def test_a_text_is_no_neighbor_of_itself_and_the_nearer_neighbor_breaks_a_tie():
    angles = np.radians([0, 10, 25, 90])  # the nearest of 0 and 25 is 10, of 10 is 0, of 90 is 25
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels = np.array([0, 1, 1, 0])
    assert knn_accuracy(rows, labels, 1) == 0.25  # only 25, by 10
    assert knn_accuracy(rows, labels, 2) == 0.25  # ties, each decided by the nearer one
    rows, sources = blobs(spread=0.05, each=100)
    labels = np.random.default_rng(0).permutation([int(source[1]) for source in sources])
    assert knn_accuracy(rows, labels, 10) == pytest.approx(1 / 3, abs=0.1)  # shuffled: no better than by chance


def write_texts(path, texts, column="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: texts}), path)
    return path


def test_texts_come_from_files_folders_and_tasks(tmp_path, tiny_data):
    tmp_path = tmp_path / "texts"
    texts = [f"text {i}" for i in range(20)]
    file = write_texts(tmp_path / "web" / "train.parquet", [*texts, "", None])
    assert sorted(read_source(file, 100, "test")) == sorted(texts)
    assert sorted(read_source(file.parent, 100, "validation")) == sorted(texts)  # it has no such split: all files
    write_texts(tmp_path / "web" / "test.parquet", ["tested"])
    assert read_source(file.parent, 100, "test") == ["tested"]
    write_texts(tmp_path / "books" / "test.parquet", ["bound"])
    assert sorted(read_source(tmp_path, 100, "test")) == ["bound", "tested"]
    assert len(read_source(tiny_data, 100, "test")) == 6
    drawn = read_source(file, 5, "test", seed=1)
    assert len(set(drawn)) == 5
    assert drawn == read_source(file, 5, "test", seed=1) != read_source(file, 5, "test", seed=2)


def test_bad_sources_are_refused(tmp_path):
    nowhere, words = tmp_path / "nowhere", write_texts(tmp_path / "a.parquet", ["x"], column="words")
    blank, numbers = write_texts(tmp_path / "b.parquet", [" "]), write_texts(tmp_path / "d.parquet", [7])
    for function, arguments, named in (
        (read_source, [words, 5, "test"], "needs a column 'text'"),
        (read_source, [blank, 5, "test"], "holds no text"),
        (read_source, [nowhere, 5, "test"], "nowhere holds no text"),
        (read_source, [numbers, 5, "test"], "'text' of texts"),
        (parse_sources, [["web=a", "books"]], "web=a, books must be two or more of the form NAME=PATH"),
        (parse_sources, [["web=a"]], "two or more"),
        (parse_sources, [["web=a", "books=c", "web=b"]], "each name once"),
    ):
        with pytest.raises(ValueError, match=named):
            function(*arguments)
