"""One bar for a ranking, whatever counts itself within it."""

import pytest
from fake_encoders import Opaque
from tqdm import tqdm

from m2bert.eval import progress
from m2bert.eval.encoders.cache import VectorStore
from m2bert.eval.encoders.policies import parse_policy
from m2bert.eval.progress import counted
from m2bert.eval.rankers import DenseRanker
from m2bert.eval.tasks.schema import load_task


class Batches(Opaque):
    """Counts its own tokens while it encodes, text by text."""

    def encode(self, texts, task, max_tokens=None):
        with counted(10 * len(texts), "tokens", "token") as count:
            for _ in texts:
                count.add(10)
        return super().encode(texts, task)


@pytest.fixture
def bars(monkeypatch):
    """The bars that were shown, each with the places where it stood."""
    shown = []

    class Bar(tqdm):
        def __init__(self, **settings):
            super().__init__(**settings)
            if not settings["disable"]:
                self.seen = [0]
                shown.append(self)

        def update(self, n):
            super().update(n)
            self.seen.append(self.n)

    monkeypatch.setattr(progress, "tqdm", Bar)
    return shown


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("encoder", [Batches(), Opaque()])
def test_a_ranking_has_one_bar_that_reaches_its_end(bars, tiny_data, tmp_path, encoder, cached):
    task = load_task(tiny_data, "tiny", "test")
    for run in (1, 2):  # the second finds its vectors, if they are kept
        DenseRanker(encoder, parse_policy("truncate"), VectorStore(tmp_path if cached else None)).rank(task)
        assert len(bars) == run
        assert (bars[-1].total, bars[-1].unit) == (12, "text")
        assert bars[-1].n == 12
        assert bars[-1].seen == sorted(bars[-1].seen)
    if type(encoder) is Batches:
        assert len(bars[0].seen) >= 12  # it moves with every batch


def test_what_fails_leaves_the_next_bar_alone(bars):
    with pytest.raises(ValueError, match="broken"), counted(2, "x", "text") as count, count.part(1):
        raise ValueError("broken")
    assert bars[0].n == 0
    with counted(2, "y", "text") as count:
        count.add(2)
    assert (len(bars), bars[1].n) == (2, 2)


def test_work_within_work_within_work_counts_its_share(bars):
    with counted(4, "outer", "place") as outer:
        with outer.part(1), counted(10, "middle", "text") as middle:
            with middle.part(5), counted(2, "inner", "token") as inner:
                inner.add(1)
                assert bars[0].n == pytest.approx(0.25)
            assert bars[0].n == pytest.approx(0.5)
        assert bars[0].n == pytest.approx(1)
    assert len(bars) == 1


def test_what_is_done_stands_before_one_colon(capsys):
    with counted(2, "indexing", "source") as count:
        count.add(1)
        count.describe("indexing, 10 tokens")
    assert "indexing, 10 tokens:  50%" in capsys.readouterr().err
