"""Checkpoints from elsewhere: reading one runs nothing, reads nothing outside it and hands no foreign code on; what is
damaged or of another form is one error that names the file, before anything is allocated."""

import contextlib
import json
import math
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from m2bert.hub.checkpoint import load_strictly, load_tokenizer
from m2bert.hub.folder import export_checkpoint, write_folder
from modeling_m2bert import M2BertModel

AUTO_NAMES = ("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoTokenizer")


class Attack:
    """Pickled: a file that appears when it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.fixture
def checkpoint(tiny_config, randomized, tokenizer, tmp_path):
    """A complete folder with sentence-transformers' Dense."""
    return write_folder(randomized(M2BertModel(tiny_config(pooling="mean_tanh"))), tokenizer, tmp_path / "checkpoint")


def change_json(path: Path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(checkpoint, tmp_path, match):
    with pytest.raises(ValueError, match=match) as error:
        export_checkpoint(checkpoint, tmp_path / "out")
    assert "checkpoint" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_weights_as_a_pickle_are_refused(checkpoint, tmp_path):
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    for content in (tensors, {"x": Attack(tmp_path / "ran")}):
        torch.save(content, checkpoint / "pytorch_model.bin")
        refused(checkpoint, tmp_path, "layers from 0 on .* in files of safetensors")
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


@pytest.mark.parametrize("reference", ["stranger/model--evil.X", "evil.X"])
def test_exporting_runs_and_names_no_code_of_the_checkpoint(checkpoint, tmp_path, reference):
    """`stranger/model--evil.X` would run another repository's code for whoever trusts this one."""
    mark = tmp_path / "ran"
    for name in ("evil.py", "modeling_m2bert.py", "configuration_m2bert.py"):
        (checkpoint / name).write_text(f"open({str(mark)!r}, 'w')\nclass X: pass\n")
    foreign = {"auto_map": dict.fromkeys(AUTO_NAMES, reference)}
    foreign["custom_pipelines"] = {"fill-mask": {"impl": reference, "pt": ["AutoModelForMaskedLM"]}}
    change_json(checkpoint / "config.json", _home="/home/evil", **foreign)
    change_json(checkpoint / "tokenizer_config.json", **foreign)
    exported = export_checkpoint(checkpoint, tmp_path / "exported")
    assert not mark.exists()
    assert not (exported / "evil.py").exists()
    assert "open(" not in (exported / "modeling_m2bert.py").read_text()
    for path in exported.rglob("*.json"):
        assert "evil" not in path.read_text(), path.name


@pytest.mark.parametrize("absolute", [False, True])
def test_modules_and_shards_lie_in_their_folder(checkpoint, tmp_path, absolute):
    shutil.copytree(checkpoint / "2_Dense", tmp_path / "outside")
    where = str(tmp_path / "outside") if absolute else "../outside"
    modules = json.loads((checkpoint / "modules.json").read_text())
    modules[2]["path"] = where
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    refused(checkpoint, tmp_path, "outside")
    tensors = load_file(checkpoint / "model.safetensors")
    moved = {name: tensors.pop(name) for name in list(tensors)[:3]}
    save_file(moved, tmp_path / "outside.safetensors", metadata={"format": "pt"})
    save_file(tensors, checkpoint / "model-1.safetensors", metadata={"format": "pt"})
    (checkpoint / "model.safetensors").unlink()
    places = dict.fromkeys(tensors, "model-1.safetensors") | dict.fromkeys(moved, f"{where}.safetensors")
    for weight_map, says in ((places, "outside"), (["a"], "weight_map"), ({"x": "model-2.safetensors"}, "missing")):
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        refused(checkpoint, tmp_path, says)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("config.json", {"auto_map": 3}, "auto_map is 3"),
        ("config.json", {"dtype": "float99"}, "float99|config.json"),
        ("config.json", {"architectures": ["BertModel"]}, "'BertModel'"),
        ("config.json", {"num_hidden_layers": 1_000_000}, "num_hidden_layers=1000000"),
        ("config.json", {"vocab_size": 10**12}, "word_embeddings"),
        ("config.json", {"hidden_size": 4 * 10**9}, "config.json|of another shape"),
        ("config.json", {"pooling": "weighted_mean", "num_pooling_heads": 10**9}, "token_log_weights"),
        ("tokenizer_config.json", {"model_max_length": "512"}, "model_max_length"),
        ("tokenizer.json", {"padding": 7}, "tokenizer of"),
        ("tokenizer.json", {"model": {"type": "WordPiece", "vocab": "/etc/hostname"}}, "stands for a file"),
        ("tokenizer.json", {"model": {"type": "WordPiece", "vocab": {"a": 0, "b": -5}}}, "tokenizer of"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
        ("config_sentence_transformers.json", {"default_prompt_name": "mine"}, "'mine'"),
        ("config_sentence_transformers.json", {"truncate_dim": 4}, "truncate_dim is 4"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, r"Pooling by mean\+max"),
    ],
)
def test_a_value_of_another_kind(checkpoint, tmp_path, name, change, match):
    change_json(checkpoint / name, **change)
    refused(checkpoint, tmp_path, match)


@pytest.mark.parametrize("text", ["", "null", "[" * 100_000, '{"a": NaN}'])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling/config.json"]
)
def test_a_file_of_another_form(checkpoint, tmp_path, name, text):
    (checkpoint / name).write_text(text)
    refused(checkpoint, tmp_path, name)


@pytest.mark.parametrize("where", ["start", "middle", "end"])
def test_damaged_weights(checkpoint, tmp_path, where):
    file = checkpoint / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes({"start": b"\xff" * 8 + content[8:], "middle": content[:100], "end": content[:-1]}[where])
    refused(checkpoint, tmp_path, "model.safetensors are damaged")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("file", "tensor"), [("model.safetensors", "layers.1.norm.weight"), ("2_Dense/model.safetensors", "linear.bias")]
)
def test_weights_that_are_not_finite(checkpoint, tmp_path, value, file, tensor):
    tensors = load_file(checkpoint / file)
    tensors[tensor].view(-1)[3] = value
    save_file(tensors, checkpoint / file, metadata={"format": "pt"})
    refused(checkpoint, tmp_path, f"not finite: {tensor}")


def test_layers_may_be_added_but_not_by_the_checkpoint(checkpoint):
    model, missing = load_strictly(AutoModel, checkpoint, may_miss=("layers.2.",), num_hidden_layers=3)
    assert len(model.layers) == 3
    assert {name.split(".")[1] for name in missing} == {"2"}


def test_no_code_of_a_tokenizer_is_offered_or_run(checkpoint, tmp_path, monkeypatch, capfd):
    """Not even where somebody sits at a terminal and could say yes."""
    (checkpoint / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Tok: pass\n")
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Tok", None]}}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match="code of its own, which is not run"):
        load_tokenizer(checkpoint)
    assert not (tmp_path / "ran").exists()
    assert "y/N" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "name", ["training.json", "config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json", "2_Dense"]
)
def test_a_link_out_of_the_checkpoint_is_not_followed(checkpoint, tmp_path_factory, tmp_path, name):
    outside = tmp_path_factory.mktemp("outside") / "secret"
    if (checkpoint / name).exists():
        shutil.move(checkpoint / name, outside)
    else:
        outside.write_text('{"secret": 1}')
    (checkpoint / name).symlink_to(outside)
    refused(checkpoint, tmp_path, f"{name} lies, or is a link")


def test_a_link_within_the_checkpoint_is_read(checkpoint, tmp_path):
    shutil.move(checkpoint / "model.safetensors", checkpoint / "weights")
    (checkpoint / "model.safetensors").symlink_to("weights")
    exported = export_checkpoint(checkpoint, tmp_path / "out")
    assert not (exported / "model.safetensors").is_symlink()
    assert torch.equal(
        load_file(exported / "model.safetensors")["layers.0.norm.weight"],
        load_file(checkpoint / "weights")["layers.0.norm.weight"],
    )
