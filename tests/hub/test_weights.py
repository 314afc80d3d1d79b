"""Foreign weights: which file is taken, what its containers hold, and that nothing in them is run."""

import datetime
import json
import pickle
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from m2bert.hub.convert import inert_pickle
from m2bert.hub.convert.inert_pickle import Placeholder, read_inert
from m2bert.hub.convert.source import choose_weights, read_weights

STATE = {"a": torch.arange(3.0), "b": torch.ones(2, 2).bfloat16()}


def save(path, content):
    torch.save(content, path)
    return path


def write_index(folder, parts, suffix="safetensors", names=None):
    """Write shards of these parts of STATE and their index."""
    weight_map = {}
    for number, keys in enumerate(parts):
        name = f"part-{number}.{suffix}"
        (save_file if suffix == "safetensors" else torch.save)({key: STATE[key] for key in keys}, folder / name)
        weight_map |= dict.fromkeys(keys, name)
    index = folder / f"weights.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map if names is None else names}))
    return index


def write(folder, container) -> Path:
    """Write STATE in one of the containers."""
    if container.startswith("sharded"):
        return write_index(folder, ["a", "b"], container.rpartition(" ")[2])
    path = folder / f"weights.{container.rpartition(' ')[2]}"
    if container == "safetensors":
        save_file(STATE, path)
        return path
    return save(path, {"state": {"model": OrderedDict(STATE), "run": slice(3)}} if "composer" in container else STATE)


@pytest.mark.parametrize("container", ["safetensors", "bin", "composer pt", "sharded safetensors", "sharded bin"])
def test_every_container_gives_the_same_tensors(tmp_path, container):
    found = read_weights(write(tmp_path, container))
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) and found[key].dtype == STATE[key].dtype for key in STATE)


@pytest.mark.parametrize(
    ("names", "wanted", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "pytorch_model_V0.bin"], None, "model.safetensors"),
        (["pytorch_model.bin", "model.safetensors.index.json", "x.safetensors"], None, "model.safetensors.index.json"),
        (["pytorch_model_V0.bin", "pytorch_model.bin", "pytorch_model_V1.bin"], None, "pytorch_model.bin"),
        (["README.md", "checkpoint.pt", "config.json", "onnx/model.safetensors"], None, "checkpoint.pt"),
        (["a.bin", "b.bin"], "b.bin", "b.bin"),
    ],
)
def test_the_usual_names_come_first_then_the_only_weights(names, wanted, chosen):
    assert choose_weights(names, wanted, "org/name") == chosen


@pytest.mark.parametrize(
    ("names", "wanted", "says"),
    [
        (["b.pt", "a.bin", "README.md"], None, "several weights among a.bin, b.pt; .*--file"),
        (["README.md", "modeling.py"], None, "no weights among README.md, modeling.py"),
        (["a.bin", "b.bin"], "c.bin", "no file 'c.bin' among a.bin"),
    ],
)
def test_several_or_no_weights_are_named(names, wanted, says):
    with pytest.raises(ValueError, match=f"org/name .*{says}"):
        choose_weights(names, wanted, "org/name")


PARTS = {"a": "part-0.safetensors", "b": "part-1.safetensors"}


@pytest.mark.parametrize(
    ("parts", "names", "says"),
    [
        ([], {"a": "../elsewhere.safetensors"}, "outside"),
        ([], {"a": "x.py"}, "weight_map.a"),
        ([], {}, "weight_map"),
        (["a", "b"], PARTS | {"c": "part-0.safetensors"}, "part-0.safetensors .*'c'"),
        (["ab", "a"], PARTS, "part-1.safetensors .*'b'"),
        (["a"], PARTS, "part-1.safetensors cannot be read"),
    ],
)
def test_an_index_and_its_shards_agree_and_lie_in_one_folder(tmp_path, parts, names, says):
    (tmp_path / "model").mkdir()
    save_file(STATE, tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match=says):
        read_weights(write_index(tmp_path / "model", parts, names=names))


class Foreign:
    """As a training framework's; makes a file one that only the inert unpickler reads."""

    def __init__(self):
        self.total = torch.tensor(3.0)

    class Inner:
        pass


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps({"a": 1}, 2), b"PK\x03\x04 cut off", [1], Foreign()])
def test_other_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "weights.bin"
    path.write_bytes(content) if isinstance(content, bytes) else save(path, content)
    with pytest.raises(ValueError, match="weights.bin cannot be read as a state dict"):
        read_weights(path)


@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_a_truncated_file_is_one_line_with_the_fix(tmp_path, container):
    path = write(tmp_path, container)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=f"weights.{container} .*copy or download it again"):
        read_weights(path)


# --- pickles that hold more than tensors, or worse ---


class Rows(list):
    pass


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_tensors_come_out_as_they_were_and_foreign_objects_as_placeholders(tmp_path):
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
    others = {"rng": np.random.RandomState(0), "time": datetime.timedelta(seconds=3), "metrics": Foreign(),
              "inner": Foreign.Inner(), "rows": Rows([1]), "counter": Counter("ab"), "array": np.arange(4)}  # fmt: skip
    found = read_inert(save(tmp_path / "composer.pt", {"model": state, "torch": [torch.get_rng_state()]} | others))
    assert list(found["model"]) == list(state)
    for name, tensor in state.items():
        assert found["model"][name].dtype == tensor.dtype
        assert torch.equal(found["model"][name], tensor.detach()), name
    assert torch.equal(found["torch"][0], torch.get_rng_state())
    assert {name for name in found if type(found[name]) is Placeholder} == set(others)


def test_nothing_that_a_file_names_is_run(tmp_path):
    victim = tmp_path / "victim"
    path = save(tmp_path / "evil.pt", {"state": {"model": {"weight": torch.ones(1)}}, "evil": Touch(victim)})
    assert torch.equal(read_weights(path)["weight"], torch.ones(1))
    assert type(read_inert(path)["evil"]) is Placeholder
    assert not victim.exists()
    torch.load(path, weights_only=False)  # the trap is real
    assert victim.exists()


def archive_of(path, pickled, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
    return path


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load"])
def test_a_handwritten_pickle_calls_nothing(tmp_path, name):
    module, function = name.rsplit(".", 1)
    victim = tmp_path / "victim"
    argument = f"open({str(victim)!r}, 'w')" if function == "eval" else f"touch {victim}"
    code = b"\x80\x02c" + f"{module}\n{function}\n".encode() + b"X" + len(argument).to_bytes(4, "little")
    path = archive_of(tmp_path / "evil.pt", code + argument.encode() + b"\x85R.")
    assert type(read_inert(path)) is Placeholder
    assert not victim.exists()


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path):
    path = save(tmp_path / "weights.bin", {"weight": torch.arange(4.0)})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    # The size (4,) in the pickle: K\x04\x85 after the offset; 100 instead. The storage's count: K\x04t.
    for sizes in ((b"K\x04\x85",), (b"K\x04\x85", b"K\x04t")):
        changed = entries[pickled]
        for size in sizes:
            assert changed.count(size) == 1
            changed = changed.replace(size, size.replace(b"\x04", b"\x64"))
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (entries | {pickled: changed}).items():
                archive.writestr(name, content)
        with pytest.raises((ValueError, RuntimeError), match="storage|buffer"):
            read_inert(path)
        with pytest.raises(ValueError, match="weights.bin cannot be read"):
            read_weights(path)


@pytest.mark.parametrize(
    ("pickled", "compression", "says"),
    [
        (b"\x80\x02Nr" + (10**5).to_bytes(4, "little") + b".", zipfile.ZIP_STORED, "beyond its 4 operations"),
        (b"\x80\x04B" + (10**5).to_bytes(4, "little") + b"abc.", zipfile.ZIP_STORED, "expected 100000 bytes"),
        (b"\x80\x02}" + b"N0" * 10_000 + b".", zipfile.ZIP_DEFLATED, "compressed"),
    ],
)
def test_a_small_file_cannot_ask_for_much_memory(tmp_path, monkeypatch, pickled, compression, says):
    monkeypatch.setattr(inert_pickle, "InertUnpickler", None)  # refused before anything is unpickled
    with pytest.raises(ValueError, match=says):
        read_inert(archive_of(tmp_path / "weights.pt", pickled, compression))
