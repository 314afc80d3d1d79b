"""Folders from elsewhere: reading one runs nothing, reads nothing outside it, and hands no foreign code on."""

import contextlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from m2bert.hub.checkpoint import load_checkpoint
from m2bert.hub.export import export_checkpoint
from m2bert.hub.folder import write_folder
from m2bert.hub.sentence_files import read_sentence_files
from modeling_m2bert import M2BertModel

AUTO_NAMES = ("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoTokenizer")


class Attack:
    """Pickled: a file that appears when it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.fixture
def checkpoint(tiny_config, randomised, tokenizer, tmp_path):
    """A complete folder with sentence-transformers' Dense."""
    return write_folder(randomised(M2BertModel(tiny_config(pooling="mean_tanh"))), tokenizer, tmp_path / "checkpoint")


def change_json(path: Path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_attack_works(tmp_path):
    (tmp_path / "file").write_bytes(pickle.dumps(Attack(tmp_path / "ran")))
    pickle.loads((tmp_path / "file").read_bytes())
    assert (tmp_path / "ran").exists()


def test_weights_as_a_pickle_are_refused(checkpoint, tmp_path):
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    for content in (tensors, {"x": Attack(tmp_path / "ran")}):
        torch.save(content, checkpoint / "pytorch_model.bin")
        with pytest.raises(ValueError, match="has no model.safetensors; save the model there again"):
            load_checkpoint(checkpoint)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl"])
def test_states_of_a_run_as_a_foreign_pickle_are_not_run(tmp_path, name):
    """A run keeps nothing else as a pickle (test_safety.py): accelerate reads registered objects without such care."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = torch.nn.Linear(2, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.save_state(str(tmp_path / "step"))
    assert (tmp_path / "step" / name).is_file()
    torch.save(Attack(tmp_path / "ran"), tmp_path / "step" / name)
    with contextlib.suppress(pickle.UnpicklingError):  # of random states it ignores what cannot be read
        accelerator.load_state(str(tmp_path / "step"))
    assert not (tmp_path / "ran").exists()


def test_exporting_runs_none_of_the_checkpoints_code(checkpoint, tmp_path):
    mark = tmp_path / "ran"
    (checkpoint / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass X: pass\n")
    for name in ("modeling_m2bert.py", "configuration_m2bert.py"):
        (checkpoint / name).write_text(f"open({str(mark)!r}, 'w')\n")
    for name in ("config.json", "tokenizer_config.json"):
        change_json(checkpoint / name, lambda content: content.update(auto_map=dict.fromkeys(AUTO_NAMES, "evil.X")))
    exported = export_checkpoint(checkpoint, tmp_path / "exported")
    assert not mark.exists()
    assert not (exported / "evil.py").exists()
    assert "open(" not in (exported / "modeling_m2bert.py").read_text()


@pytest.mark.parametrize("reference", ["stranger/model--evil.X", "../evil.X", "evil.X"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_an_exported_folder_names_no_code_but_its_own(checkpoint, tmp_path, name, reference):
    """`stranger/model--evil.X` would run another repository's code for whoever trusts this one."""
    foreign = {"auto_map": dict.fromkeys(AUTO_NAMES, reference)}
    foreign["_home"] = "/home/evil" if name == "config.json" else None
    foreign["custom_pipelines"] = {"fill-mask": {"impl": reference, "pt": ["AutoModelForMaskedLM"]}}
    change_json(checkpoint / name, lambda content: content.update(foreign))
    exported = export_checkpoint(checkpoint, tmp_path / "exported")
    for path in exported.rglob("*.json"):
        assert "evil" not in path.read_text(), path.name


@pytest.mark.parametrize("absolute", [False, True])
def test_modules_of_sentence_transformers_lie_in_their_folder(checkpoint, tmp_path, absolute):
    outside = tmp_path / "outside"
    shutil.move(checkpoint / "2_Dense", outside)
    where = str(outside) if absolute else "../outside"
    change_json(checkpoint / "modules.json", lambda modules: modules[2].update(path=where))
    with pytest.raises(ValueError, match="outside"):
        read_sentence_files(load_checkpoint(checkpoint), checkpoint)


@pytest.mark.parametrize("absolute", [False, True])
def test_shards_lie_in_their_folder(checkpoint, tmp_path, absolute):
    outside = tmp_path / "outside.safetensors"
    tensors = load_file(checkpoint / "model.safetensors")
    moved = {name: tensors.pop(name) for name in list(tensors)[:3]}
    save_file(moved, outside, metadata={"format": "pt"})
    save_file(tensors, checkpoint / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    (checkpoint / "model.safetensors").unlink()
    where = str(outside) if absolute else "../outside.safetensors"
    places = dict.fromkeys(tensors, "model-00001-of-00002.safetensors") | dict.fromkeys(moved, where)
    index = {"metadata": {}, "weight_map": places}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="outside"):
        load_checkpoint(checkpoint)


def test_an_index_of_another_form_is_one_line(checkpoint):
    (checkpoint / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')
    with pytest.raises(ValueError, match="index.json: weight_map"):
        load_checkpoint(checkpoint)
