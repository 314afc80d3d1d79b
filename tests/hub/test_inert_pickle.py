"""Composer's files hold random states, timers and metrics; some files hold worse. None of it runs here."""

import datetime
import pickle
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from m2bert.hub.convert import inert_pickle
from m2bert.hub.convert.inert_pickle import Placeholder, read_inert


class Metric:
    """As a training framework's: state in attributes, a list and a dictionary as bases elsewhere."""

    def __init__(self):
        self.total = torch.tensor(3.0)

    class Inner:
        pass


class Rows(list):
    pass


class Touch:
    """Would write a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def save(path, content):
    torch.save(content, path)
    return path


def test_tensors_come_out_as_they_were(tmp_path):
    shared = torch.arange(12, dtype=torch.float32)
    state = OrderedDict(
        weight=shared.view(3, 4),
        transposed=shared.view(3, 4).t(),
        tail=shared[8:],
        half=torch.randn(5).half(),
        brain=torch.randn(5).bfloat16(),
        ids=torch.arange(6).view(2, 3),
        flags=torch.tensor([True, False]),
        turned=torch.tensor([1 + 2j, 3 - 1j]),
        scalar=torch.tensor(2.5, dtype=torch.float64),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )
    found = read_inert(save(tmp_path / "weights.bin", state))
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach()), name


def test_foreign_objects_become_placeholders_beside_the_weights(tmp_path):
    content = {
        "state": {
            "model": OrderedDict(weight=torch.ones(2)),
            "rng": [np.random.RandomState(0), np.random.default_rng(0).bit_generator.state, torch.get_rng_state()],
            "timestamp": {"total": datetime.timedelta(seconds=3)},
            "metrics": {"accuracy": Metric()},
            "inner": Metric.Inner(),
            "rows": Rows([1, 2]),
            "counter": Counter("ab"),
            "array": np.arange(4),
        }
    }
    found = read_inert(save(tmp_path / "composer.pt", content))["state"]
    assert torch.equal(found["model"]["weight"], torch.ones(2))
    assert torch.equal(found["rng"][2], torch.get_rng_state())
    for thing in (
        found["rng"][0],
        found["timestamp"]["total"],
        found["metrics"]["accuracy"],
        found["rows"],
        found["inner"],
    ):
        assert type(thing) is Placeholder


def test_nothing_that_a_file_names_is_run(tmp_path):
    victim = tmp_path / "victim"
    path = save(tmp_path / "evil.pt", {"model": {"weight": torch.ones(1)}, "evil": Touch(victim)})
    found = read_inert(path)
    assert not victim.exists()
    assert type(found["evil"]) is Placeholder
    assert torch.equal(found["model"]["weight"], torch.ones(1))
    torch.load(path, weights_only=False)  # the trap is real
    assert victim.exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "builtins.exec", "torch.load", "torch.hub.load"])
def test_a_handwritten_pickle_calls_nothing(tmp_path, name):
    module, function = name.rsplit(".", 1)
    victim = tmp_path / "victim"
    argument = {"eval": f"open({str(victim)!r}, 'w')", "exec": f"open({str(victim)!r}, 'w')"}.get(
        function, f"touch {victim}"
    )
    code = b"\x80\x02c" + f"{module}\n{function}\n".encode() + b"X" + len(argument).to_bytes(4, "little")
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("archive/data.pkl", code + argument.encode() + b"\x85R.")
    assert type(read_inert(tmp_path / "evil.pt")) is Placeholder
    assert not victim.exists()


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path):
    path = save(tmp_path / "weights.bin", {"weight": torch.arange(4.0)})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    # The size (4,) in the pickle: K\x04\x85 after the offset; 100 instead.
    assert entries[pickled].count(b"K\x04\x85") == 1
    entries[pickled] = entries[pickled].replace(b"K\x04\x85", b"K\x64\x85")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="weights.bin cannot be read"):
        read_inert(path)


def archive_of(path, pickled, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
    return path


@pytest.mark.parametrize(
    ("pickled", "says"),
    [
        (b"\x80\x02Nr" + (10**5).to_bytes(4, "little") + b".", "LONG_BINPUT 100000 among 4 operations"),
        (b"\x80\x02Np100000\n.", "PUT 100000 among 4 operations"),
        (b"\x80\x04B" + (10**5).to_bytes(4, "little") + b"abc.", "expected 100000 bytes"),
    ],
)
def test_a_small_file_cannot_ask_for_much_memory(tmp_path, monkeypatch, pickled, says):
    monkeypatch.setattr(inert_pickle, "InertUnpickler", None)  # refused before anything is unpickled
    with pytest.raises(ValueError, match=f"weights.pt cannot be read.*{says}"):
        read_inert(archive_of(tmp_path / "weights.pt", pickled))


def test_a_compressed_file_is_refused(tmp_path):
    pickled = b"\x80\x02}" + b"N0" * 10_000 + b"."
    assert read_inert(archive_of(tmp_path / "stored.pt", pickled)) == {}
    with pytest.raises(ValueError, match="small.pt cannot be read.*compressed"):
        read_inert(archive_of(tmp_path / "small.pt", pickled, zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps({"a": 1}), b"PK\x03\x04 cut off"])
def test_other_files_are_refused_by_name(tmp_path, content):
    (tmp_path / "weights.bin").write_bytes(content)
    with pytest.raises(ValueError, match="weights.bin cannot be read as a file of torch.save"):
        read_inert(tmp_path / "weights.bin")


def test_a_truncated_file_is_refused(tmp_path):
    path = save(tmp_path / "weights.bin", {"weight": torch.randn(1000)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="weights.bin cannot be read"):
        read_inert(path)
