import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_encoders import Words
from safetensors import safe_open
from safetensors.numpy import save

from m2bert.eval.encoders import cache as cache
from m2bert.eval.encoders.cache import VectorStore, default_cache_folder
from m2bert.eval.encoders.policies import parse_policy

TEXTS = ["boat", "apple pear", "", "boat", "stone wall cloud " * 4, "apple pear"]


def characters(text, task):
    return [len(text), 1 + sum(map(ord, text)) % 97, task == "query"]


class Counting(Words):
    """A text's vectors come from its characters; one for each word under best-chunk:tokens=1."""

    name, max_tokens, dimensions = "counting", 10, 3

    def __init__(self, fingerprint="aa", fails_at=None):
        super().__init__(characters, fingerprint=fingerprint, fails_at=fails_at)

    def encode(self, texts, task, max_tokens=None):
        if self.fails_at in texts:
            raise RuntimeError("out of memory")
        return super().encode(texts, task)


@pytest.fixture
def policy():
    return parse_policy("best-chunk:tokens=1")


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    monkeypatch.setattr(cache, "PORTION_CHARS", 12)


def assert_same(first, second):
    for one, other in zip((*first.vectors, first.seconds), (*second.vectors, second.seconds), strict=True):
        np.testing.assert_array_equal(one, other)


def test_vectors_come_in_the_order_of_the_texts_whether_kept_or_not(tmp_path, policy):
    expected = policy.embed(Counting(), TEXTS)
    assert expected.counts.tolist() == [1, 2, 1, 1, 12, 2]
    for folder in (None, tmp_path):
        timed = VectorStore(folder).embed(Counting(), policy, TEXTS)
        for one, other in zip(timed.vectors, expected, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        assert timed.seconds.shape == (6,)
        assert (timed.seconds > 0).all()
        for each in (policy, parse_policy("chunk-average:tokens=1"), parse_policy("truncate"), None):
            nothing = VectorStore(folder).embed(Counting(), each, [])
            assert [part.shape for part in (*nothing.vectors, nothing.seconds)] == [(0, 3), (0,), (0,), (0,)]


def test_equal_texts_are_computed_once_and_a_second_run_computes_nothing(tmp_path, policy):
    encoder = Counting()
    first = VectorStore(tmp_path).embed(encoder, policy, TEXTS)
    assert sorted(encoder.encoded) == sorted(["boat", "apple", "pear", "", *["stone", "wall", "cloud"] * 4])
    again = Counting()
    assert_same(VectorStore(tmp_path).embed(again, policy, TEXTS), first)  # the seconds too
    some = VectorStore(tmp_path).embed(again, policy, TEXTS[1:3])
    assert again.encoded == []
    np.testing.assert_array_equal(some.vectors.rows, first.vectors.rows[1:4])
    VectorStore(tmp_path).embed(again, policy, [*TEXTS, "rain"])
    assert again.encoded == ["rain"]


@pytest.mark.parametrize(("limit", "again"), [(2**26, []), (8, ["boat"])])
def test_without_a_folder_a_few_vectors_are_remembered(policy, monkeypatch, limit, again):
    monkeypatch.setattr(cache, "MEMORY_BYTES", limit)
    encoder, store = Counting(), VectorStore(None)
    first = store.embed(encoder, policy, TEXTS)
    del encoder.encoded[:]
    some = store.embed(encoder, policy, ["boat"])
    assert encoder.encoded == again
    np.testing.assert_array_equal(some.vectors.rows, first.vectors.rows[:1])
    store.embed(Counting("bb"), policy, ["boat"])
    store.embed(encoder, None, ["boat"])
    assert encoder.encoded[len(again) :] == ["boat"]  # another model's and queries' are others


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, policy):
    interrupted = Counting(fails_at="boat")
    with pytest.raises(RuntimeError, match="out of memory"):
        VectorStore(tmp_path).embed(interrupted, policy, TEXTS)
    assert interrupted.encoded  # longest texts first: "boat" comes late
    resumed = Counting()
    timed = VectorStore(tmp_path).embed(resumed, policy, TEXTS)
    assert sorted(resumed.encoded) == ["", "boat"]
    np.testing.assert_array_equal(timed.vectors.rows, policy.embed(Counting(), TEXTS).rows)


def test_what_decides_a_vector_is_never_mixed_up(tmp_path):
    shorter = Counting()
    shorter.max_tokens = 5
    cases = [
        (Counting(), "truncate"),
        (Counting("bb"), "truncate"),
        (shorter, "truncate"),
        (Counting(), "truncate:tokens=3"),
        (Counting(), "best-chunk:tokens=3"),
        (Counting(), "best-chunk:tokens=3,stride=2"),
        (Counting(), None),  # queries
    ]
    store = VectorStore(tmp_path)
    for encoder, spec in cases:
        store.embed(encoder, spec and parse_policy(spec), ["apple"])
        assert encoder.encoded == ["apple"]
    assert len(list(tmp_path.iterdir())) == len(cases)
    (shelf,) = {path.parent for path in tmp_path.glob("*/key.json") if '"bb"' in path.read_text()}
    key = json.loads((shelf / "key.json").read_text())
    assert (key["name"], key["policy"], key["role"], key["max_tokens"]) == ("counting", "truncate", "document", 10)
    assert "torch" in key["versions"]


def rewritten(path, change) -> bytes:
    """The file with its tensors changed, its metadata as they were."""
    with safe_open(path, "np") as shard:
        tensors = {name: shard.get_tensor(name).copy() for name in shard.keys()}  # noqa: SIM118
        change(tensors)
        return save(tensors, shard.metadata())


def shuffle(tensors):
    tensors["rows"][:] = tensors["rows"][::-1]


def one_nan(tensors):
    tensors["rows"][0, 0] = np.nan


def other_counts(tensors):
    tensors["counts"] += 1


@pytest.mark.parametrize("harm", ["cut", "empty", "other", shuffle, one_nan, other_counts])
def test_a_file_that_cannot_be_trusted_is_named_and_computed_again(tmp_path, policy, caplog, harm):
    for fingerprint in ("aa", "bb"):
        VectorStore(tmp_path).embed(Counting(fingerprint), policy, TEXTS)
    mine, other = sorted({path.parent for path in tmp_path.glob("*/*.safetensors")})
    broken = max(mine.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    foreign = (other / broken.name).read_bytes()
    contents = {"cut": broken.read_bytes()[:-8], "empty": b"", "other": foreign}
    broken.write_bytes(rewritten(broken, harm) if callable(harm) else contents[harm])
    encoder = Counting(json.loads((mine / "key.json").read_text())["encoder"])
    timed = VectorStore(tmp_path).embed(encoder, policy, TEXTS)
    np.testing.assert_array_equal(timed.vectors.rows, policy.embed(Counting(), TEXTS).rows)
    assert 0 < len(encoder.encoded) < 15
    assert [str(broken) in record.getMessage() for record in caplog.records] == [True]
    VectorStore(tmp_path).embed(encoder, policy, TEXTS)
    assert len(caplog.records) == 1  # the file was replaced


def test_vectors_that_are_not_finite_are_named_and_not_kept(tmp_path):
    class Broken(Counting):
        def encode(self, texts, task, max_tokens=None):
            rows = super().encode(texts, task)
            rows[[text == "boat" for text in texts]] = np.nan
            return rows

    policy = parse_policy("truncate")
    for folder in (None, tmp_path):
        for each in (None, policy, parse_policy("chunk-average:tokens=1")):
            with pytest.raises(ValueError, match="'boat' is not finite"):
                VectorStore(folder).embed(Broken(), each, TEXTS)
    timed = VectorStore(tmp_path).embed(Counting(), policy, TEXTS)  # as if the graphics card had been replaced
    np.testing.assert_array_equal(timed.vectors.rows, policy.embed(Counting(), TEXTS).rows)


def test_what_a_killed_writer_left_is_removed(tmp_path, policy):
    VectorStore(tmp_path).embed(Counting(), policy, TEXTS)
    (shelf,) = tmp_path.iterdir()
    old, new = (shelf / f".{name}.safetensors.partial" for name in ("old", "new"))  # as `write_atomically` leaves them
    for scratch in (old, new):
        scratch.mkdir()
        (scratch / "half").write_bytes(b"half")
    os.utime(old, (0, 0))
    VectorStore(tmp_path).embed(Counting(), policy, TEXTS)
    assert [path for path in shelf.iterdir() if path.name.startswith(".")] == [new]  # somebody may be writing it


def test_two_runs_at_once_write_the_same_folder(tmp_path, policy):
    code = (
        "import sys; from test_cache import *; cache.PORTION_CHARS = 12\n"
        f"for text in range(40): VectorStore({str(tmp_path)!r}).embed(Counting(), parse_policy('truncate'), "
        "[*TEXTS, f'text {text}'])"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent) for _ in range(2)]
    assert [run.wait(60) for run in runs] == [0, 0]
    encoder, texts = Counting(), [*TEXTS, *(f"text {text}" for text in range(40))]
    timed = VectorStore(tmp_path).embed(encoder, parse_policy("truncate"), texts)
    assert encoder.encoded == []
    np.testing.assert_array_equal(timed.vectors.rows, parse_policy("truncate").embed(Counting(), texts).rows)
    assert not list(tmp_path.glob("*/.*"))


def test_chunks_that_were_found_apart_are_averaged_without_a_model(tmp_path, policy):
    VectorStore(tmp_path).embed(Counting(), policy, TEXTS)
    encoder, average = Counting(), parse_policy("chunk-average:tokens=1")
    timed = VectorStore(tmp_path).embed(encoder, average, TEXTS)
    assert (encoder.encoded, timed.vectors.counts.tolist()) == ([], [1] * 6)
    np.testing.assert_array_equal(timed.vectors.rows, average.embed(Counting(), TEXTS).rows)


def test_the_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("M2BERT_CACHE", str(tmp_path))
    assert default_cache_folder() == tmp_path
    monkeypatch.delenv("M2BERT_CACHE")
    assert default_cache_folder().parts[-2:] == ("m2bert", "vectors")


def test_one_process_starts_no_group(tmp_path, policy):
    code = (
        "import sys; from m2bert.eval.encoders.cache import VectorStore; from test_cache import *;"
        f"VectorStore({str(tmp_path)!r}).embed(Counting(), parse_policy('truncate'), TEXTS);"
        "assert not {'accelerate', 'torch.distributed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


SEVERAL_PROCESSES = """
import sys
import numpy as np
from m2bert.eval.encoders import cache as cache
from m2bert.eval.progress import Processes
from test_cache import Counting, TEXTS, VectorStore, parse_policy

cache.PORTION_CHARS = 12
folder, output = sys.argv[1:]
processes = Processes()
assert processes.world == 2
policy = parse_policy("best-chunk:tokens=1")
for name, root in (("kept", folder), ("forgotten", None)):
    encoder, store = Counting(), VectorStore(root)
    for texts in (TEXTS, TEXTS, [*TEXTS, "rain"]):
        timed = store.embed(encoder, policy, texts)
        np.testing.assert_array_equal(timed.vectors.rows, policy.embed(Counting(), texts).rows)
    with open(f"{output}/{name}-{processes.rank}", "w") as file:
        print(*encoder.encoded, sep=",", file=file)
processes.wait()
"""


def test_two_processes_share_the_work(tmp_path):
    """Nothing is computed twice where vectors are kept; where not, nothing is left behind."""
    (tmp_path / "script.py").write_text(SEVERAL_PROCESSES)
    store, output, temporary = folders = [tmp_path / name for name in ("store", "output", "temporary")]
    for folder in folders:
        folder.mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    changes = {"PYTHONPATH": paths, "TMPDIR": str(temporary), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launch, str(tmp_path / "script.py"), str(store), str(output)]
    done = subprocess.run(command, env={**os.environ, **changes}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    once = ["boat", "apple", "pear", "", *["stone", "wall", "cloud"] * 4]
    for name, expected in (("kept", [*once, "rain"]), ("forgotten", [*once * 3, "rain"])):
        shares = [(output / f"{name}-{rank}").read_text().strip("\n").split(",") for rank in range(2)]
        assert all(len(share) > 1 for share in shares)
        assert sorted(shares[0] + shares[1]) == sorted(expected)
    assert not list(temporary.glob("tmp*/*/key.json"))
