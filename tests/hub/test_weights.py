"""Foreign weights: which file is taken, what its containers hold, and clear refusals."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from m2bert.hub.convert.source import choose_weights, read_weights

STATE = {"a": torch.arange(3.0), "b": torch.ones(2, 2).bfloat16()}


def write_index(folder, parts, suffix="safetensors", names=None):
    """Shards of these parts of STATE and their index."""
    weight_map = {}
    for number, keys in enumerate(parts):
        name = f"part-{number}.{suffix}"
        part = {key: STATE[key] for key in keys}
        save_file(part, folder / name) if suffix == "safetensors" else torch.save(part, folder / name)
        weight_map |= dict.fromkeys(keys, name)
    index = folder / f"weights.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": names or weight_map}))
    return index


def write(folder, container) -> Path:
    """STATE in one of the containers."""
    if container.startswith("sharded"):
        return write_index(folder, ["a", "b"], container.rpartition(" ")[2])
    path = folder / f"weights.{container.rpartition(' ')[2]}"
    if container == "safetensors":
        save_file(STATE, path)
    else:
        content = {"state": {"model": OrderedDict(STATE), "run": slice(3)}} if "composer" in container else STATE
        torch.save(content, path)
    return path


@pytest.mark.parametrize("container", ["safetensors", "bin", "composer pt", "sharded safetensors", "sharded bin"])
def test_every_container_gives_the_same_tensors(tmp_path, container):
    found = read_weights(write(tmp_path, container))
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) and found[key].dtype == STATE[key].dtype for key in STATE)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "pytorch_model_V0.bin"], "model.safetensors"),
        (["pytorch_model.bin", "model.safetensors.index.json", "x.safetensors"], "model.safetensors.index.json"),
        (["pytorch_model_V0.bin", "pytorch_model.bin", "pytorch_model_V1.bin"], "pytorch_model.bin"),
        (["README.md", "checkpoint.pt", "config.json", "onnx/model.safetensors"], "checkpoint.pt"),
    ],
)
def test_the_usual_names_come_first_then_the_only_weights(names, chosen):
    assert choose_weights(names, None, "org/name") == chosen


def test_several_or_no_weights_are_named():
    with pytest.raises(ValueError, match=r"org/name has several weights: a.bin, b.pt; choose one with --file"):
        choose_weights(["b.pt", "a.bin", "README.md"], None, "org/name")
    with pytest.raises(ValueError, match=r"org/name has no weights .*; it has README.md, modeling.py"):
        choose_weights(["README.md", "modeling.py"], None, "org/name")
    with pytest.raises(ValueError, match="it has no file at all"):
        choose_weights([], None, "org/name")
    assert choose_weights(["a.bin", "b.bin"], "b.bin", "org/name") == "b.bin"
    with pytest.raises(ValueError, match="no file 'c.bin' .*a.bin"):
        choose_weights(["a.bin", "b.bin"], "c.bin", "org/name")


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd.bin", "a/../../b.bin", "x.py", "..\\b.bin"])
def test_an_index_leads_to_weights_of_its_folder_only(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(STATE, tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match="no weights file of its folder"):
        read_weights(write_index(folder, [], names={"a": name}))


def test_an_index_and_its_shards_agree(tmp_path):
    parts = {"a": "part-0.safetensors", "b": "part-1.safetensors"}
    with pytest.raises(ValueError, match="disagree about c"):
        read_weights(write_index(tmp_path, ["a", "b"], names=parts | {"c": "part-0.safetensors"}))
    with pytest.raises(ValueError, match="disagree about b"):
        read_weights(write_index(tmp_path, ["ab"], names={"a": "part-0.safetensors"}))
    with pytest.raises(ValueError, match="several files hold a"):
        read_weights(write_index(tmp_path, ["ab", "a"], names=parts))
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(ValueError, match="names 'part-1.safetensors', which is not beside it"):
        read_weights(tmp_path / "weights.safetensors.index.json")


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}'])
def test_an_index_without_files_is_refused(tmp_path, content):
    (tmp_path / "x.bin.index.json").write_text(content)
    with pytest.raises(ValueError, match="x.bin.index.json.*weight_map"):
        read_weights(tmp_path / "x.bin.index.json")


@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_a_truncated_file_is_one_line_with_the_fix(tmp_path, container):
    path = write(tmp_path, container)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=f"weights.{container} .*copy or download it again"):
        read_weights(path)


class Foreign:
    """Makes a file one that only the inert unpickler reads."""


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        (0, torch.ones(1), "is no name of a tensor"),
        ("step", 3, r"is no tensor that can be read \(int\)"),
        ("extra", {"weight": torch.ones(1)}, r"is no tensor that can be read \(dict\)"),
        ("list", [torch.ones(1)], r"is no tensor that can be read \(list\)"),
        ("sparse", torch.ones(2, 2).to_sparse(), "is no (dense tensor|tensor that can be read)"),
        ("huge", torch.zeros(1, 64).expand(8 * 10**8, 64), r"has fewer numbers than its shape \(800000000, 64\)"),
        ("nowhere", torch.ones(2, device="meta"), "is no (dense tensor|tensor that can be read)"),
    ],
)
@pytest.mark.parametrize("composer", [True, False])
def test_an_entry_that_would_be_lost_is_named(tmp_path, name, value, problem, composer):
    state = {"a": torch.ones(1), name: value}
    torch.save({"state": {"model": state, "run": Foreign()}} if composer else state, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=f"x.pt: {name!r} {problem}"):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize("value", [torch.ones(2).to(torch.float8_e4m3fn), Foreign()])
def test_what_cannot_be_read_without_running_it_is_named(tmp_path, value):
    torch.save({"state": {"model": {"a": torch.ones(1), "b": value}, "run": Foreign()}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x.pt: 'b' is no tensor that can be read \(Placeholder\)"):
        read_weights(tmp_path / "x.pt")


def test_what_lies_beside_the_model_is_not_looked_at(tmp_path):
    others = {"run": Foreign(), "step": 3, 0: torch.ones(1)}
    torch.save({"state": {"model": {"a": torch.ones(1)}} | others} | others, tmp_path / "x.pt")
    assert list(read_weights(tmp_path / "x.pt")) == ["a"]


@pytest.mark.parametrize("content", [{}, {0: 3}, {"state": None}, [1], torch.ones(2), 3, Foreign()])
def test_a_file_without_tensors_by_name_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x.pt cannot be read as a state dict.*(no|not) tensors by name"):
        read_weights(tmp_path / "x.pt")


def test_safetensors_under_another_name_are_said(tmp_path):
    save_file(STATE, tmp_path / "model.bin")
    with pytest.raises(ValueError, match="model.bin holds safetensors; name it model.safetensors"):
        read_weights(tmp_path / "model.bin")
