"""Which files of a folder are published, and what is refused before anything is sent."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import run

from m2bert.eval.encoders.sentence_transformer import load_model
from m2bert.hub import clean_load
from m2bert.hub.folder import write_folder
from m2bert.hub.push import check_files, check_loading, collect
from modeling_m2bert import (
    M2BertForMaskedLM,
    M2BertForMultipleChoice,
    M2BertForQuestionAnswering,
    M2BertForTokenClassification,
    M2BertModel,
)

SHIPPED = Path(__file__).parents[2] / "models" / "m2bert-small"


def check(folder):
    upload = collect(folder)
    check_files(upload, "org/name")
    return upload


def refused(folder, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check(folder)


def change_json(path, **changes):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | changes))


def change_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def change_modules(folder, change):
    (folder / "modules.json").write_text(json.dumps(change(json.loads((folder / "modules.json").read_text()))))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def write(name, text):
    def damage(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return damage


TOKEN = f"hf_{'a' * 34}"
DAMAGE = {
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "lacks weights as safetensors"),
    "weights cut short": (lambda d: cut(d / "model.safetensors"), "damaged or cut short"),
    "other sizes": (lambda d: change_json(d / "config.json", intermediate_size=128), "of another shape"),
    "too many layers": (lambda d: change_json(d / "config.json", num_hidden_layers=10**6), "num_hidden_layers"),
    "no card": (lambda d: (d / "README.md").unlink(), "lacks README.md"),
    "scores of other weights": (write("README.md", "model.safetensors 0123456789ab"), "has scores of another model"),
    "the card of another": (write("README.md", 'path = "org/other"\n'), "loads 'org/other'"),
    "a broken card": (write("README.md", "---\na: [\n---\n"), "the YAML at the head"),
    "no configuration": (lambda d: (d / "config.json").unlink(), "nothing that can be pushed"),
    "a missing class": (lambda d: change_json(d / "config.json", auto_map={"AutoModel": "gone.Model"}), "code 'gone'"),
    "code of another repository": (
        lambda d: change_json(d / "config.json", auto_map={"AutoModel": "evil/it--modeling_m2bert.M2BertModel"}),
        "code 'evil/it--modeling_m2bert'",
    ),
    "a foreign processor": (
        write("processor_config.json", '{"auto_map": {"AutoProcessor": "evil/it--x.Y-1"}}'),
        "code 'evil/it--x'",
    ),
    "a foreign module": (lambda d: change_modules(d, lambda m: [*m[:-1], m[-1] | {"type": "evil.M"}]), "code 'evil'"),
    "a pickle": (write("pytorch_model.bin", ""), "is a pickle"),
    "a link out": (lambda d: (d / "link.txt").symlink_to("/etc/hostname"), "is a link out of the folder"),
    "a linked folder": (lambda d: (d / "link").symlink_to(d.parent, True), "is a link out of the folder"),
    "a token": (write("training.json", f'"{TOKEN}"'), "looks like a token"),
    "a key": (write("notes.txt", "-----BEGIN RSA PRIVATE KEY-----"), "a private key"),
    "a token in a long text": (write("notes.txt", " " * 20_000_000 + TOKEN + " " * 99), "looks like a token"),
    "a token in the header of weights": (
        lambda d: save_file({"a": torch.ones(2)}, d / "x.safetensors", {"run": TOKEN}), "looks like a token",
    ),
    "a home in the header of weights": (
        lambda d: save_file({"a": torch.ones(2)}, d / "x.safetensors", {"run": "/home/me/runs"}), "(/home/me/runs)",
    ),
    "NaN": (
        lambda d: change_tensors(d / "model.safetensors", lambda t: t["layers.0.norm.weight"].fill_(float("nan"))),
        "not finite: layers.0.norm.weight",
    ),
    "float8 NaN": (
        lambda d: save_file({"a": torch.full((2,), float("nan")).to(torch.float8_e4m3fn)}, d / "x.safetensors"),
        "not finite: a",
    ),
    "a path in a list": (
        lambda d: change_json(d / "tokenizer_config.json", files=["vocab.txt", "/scratch/me/vocab.txt"]), "/scratch/me",
    ),
    "a home beside a vocabulary": (lambda d: change_json(d / "tokenizer.json", note="file:///home/me"), "home/me"),
    "a home on the card": (write("README.md", "# Card\n\nFrom /home/me/runs/opl.\n"), "(/home/me)"),
    "a path in a record": (write("training.json", '{"config": {"data": "see /data/secret"}}'), "training.json"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_a_folder_that_nobody_could_or_should_load_is_refused(folder, what):
    check(folder)
    damage, message = DAMAGE[what]
    damage(folder)
    refused(folder, message)


def test_harmless_text_is_no_path_and_no_secret(folder):
    change_json(folder / "config_sentence_transformers.json", a="</s>", b="a / b, and/or https://x.org/home/me/a")
    (folder / "notes.txt").write_text(f"hx_{'a' * 34}, org/name, ~/.cache, /home/user/app and https://x.org/home/me")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["/home/me"] = len(tokenizer["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "vocab.txt").write_text("/home/me\n")
    (folder / "list.json").write_text("[1]")
    (folder / "training.json").write_text('{"config": {"data": "secret"}}')
    check(folder)


def test_what_tools_training_and_secrets_leave_behind_stays(folder):
    before = set(check(folder).files)
    names = [".git/config", "sub/__pycache__/x.pyc", ".DS_Store", ".env", "checkpoints/x.pt", "id_rsa", "X.PEM",
             "prod.env", "token.json", "_netrc", "kaggle.json"]  # fmt: skip
    for name in [*names, ".eval_results/m2bert.yaml"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (folder / "public.txt").symlink_to(folder / ".env")
    upload = check(folder)
    assert set(upload.files) == before | {".eval_results/m2bert.yaml"}
    assert set(upload.left_out) == {".git/", "sub/__pycache__/", "checkpoints/", "public.txt"} | {
        name for name in names if "/" not in name
    }


# --- links ---


def test_links_within_the_folder_and_to_this_versions_code_go_as_files(folder):
    (folder / "again.md").symlink_to("README.md")
    assert check(folder).files["again.md"].read_bytes() == (folder / "README.md").read_bytes()
    upload = collect(SHIPPED)
    assert {name for name, path in upload.files.items() if path.is_symlink()} >= {"modeling_m2bert.py", "handler.py"}
    assert upload.foreign_code == []
    outside = shutil.copy(folder / "m2bert_pooling.py", folder.parent / "outside.py")
    (folder / "m2bert_pooling.py").unlink()
    (folder / "m2bert_pooling.py").symlink_to(outside)
    check(folder)
    Path(outside).write_text("# other code")
    refused(folder, "m2bert_pooling.py is a link out of the folder")


@pytest.mark.parametrize("how", ["copied alone", "as on Windows"])
def test_broken_links_of_code_are_named_with_the_way_out(tmp_path, capsys, monkeypatch, how):
    folder = tmp_path / "deep" / "m2bert-small"
    shutil.copytree(SHIPPED, folder, symlinks=True)
    if how == "as on Windows":
        for path in folder.glob("*.py"):
            target = path.readlink()
            path.unlink()
            path.write_text(target.as_posix())
    code, _, err = run(monkeypatch, capsys, "push", folder, "--repo", "org/x")
    assert code == 2
    assert "broken link" in err
    assert "m2bert export" in err
    with pytest.raises(ValueError, match=r"broken link .*m2bert export --model"):
        load_model(str(folder))
    code, _, err = run(monkeypatch, capsys, "export", "--model", folder, "--output", tmp_path / "whole")
    assert code == 0, err
    assert collect(tmp_path / "whole").foreign_code == []


# --- loading where this package is not ---

SETTINGS = "sentence_bert_config.json", "1_Pooling/config.json", "2_Dense/config.json"
UNLOADABLE = {
    "no auto_map": lambda d: change_json(d / "config.json", auto_map={}),
    "code that is missing": lambda d: (d / "m2bert_pooling.py").unlink(),
    "code of this package": write("m2bert_pooling.py", "from m2bert.files import digest"),
    "a lost tensor": lambda d: change_tensors(d / "model.safetensors", lambda t: t.pop("layers.0.norm.weight")),
    "a tensor too many": lambda d: change_tensors(d / "model.safetensors", lambda t: t.update(x=torch.ones(2))),
    "a small vocabulary": lambda d: change_json(d / "config.json", vocab_size=9),
    "a lost shard": lambda d: (d / "model.safetensors").rename(d / "model-1.safetensors"),
    "no words": lambda d: (d / "tokenizer.json").unlink(),
    "an unknown module": lambda d: change_modules(d, lambda m: [m[0], m[1] | {"type": m[1]["type"] + "s"}, *m[2:]]),
    "two poolings at once": lambda d: change_json(d / SETTINGS[1], pooling_mode_cls_token=True),
    "no weights of the Dense": lambda d: (d / "2_Dense" / "model.safetensors").unlink(),
} | {f"an unknown key of {name}": lambda d, name=name: change_json(d / name, mine=1) for name in SETTINGS[:2]}
LOAD_ALL = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("clean_load", sys.argv[1])
clean_load = importlib.util.module_from_spec(spec)
spec.loader.exec_module(clean_load)
clean_load.forget_ours()
for folder in sys.argv[2:]:
    try:
        clean_load.main(pathlib.Path(folder))
        print("loads", folder)
    except Exception as error:
        print("refused", folder)
"""


def test_a_folder_that_does_not_load_where_this_package_is_not_is_refused(tmp_path, tiny_config, tokenizer):
    """One process loads them all, as `check_loading` does each."""
    fine, others = [], []
    for number, cls in enumerate([M2BertModel, M2BertForMaskedLM]):
        for with_tokenizer in (tokenizer, None):
            fine.append(tmp_path / f"fine_{number}_{with_tokenizer is None}")
            write_folder(cls(tiny_config(pooling="weighted_mean")), with_tokenizer, fine[-1])
    for cls in (M2BertForTokenClassification, M2BertForQuestionAnswering, M2BertForMultipleChoice):
        fine.append(write_folder(cls(tiny_config()), tokenizer, tmp_path / cls.__name__))
    whole = write_folder(M2BertModel(tiny_config(pooling="mean_tanh")), tokenizer, tmp_path / "fine")
    for number, damage in enumerate(UNLOADABLE.values()):
        others.append(shutil.copytree(whole, tmp_path / f"other_{number}"))
        damage(others[-1])
    command = [sys.executable, "-P", "-c", LOAD_ALL, clean_load.__file__, *map(str, [whole, *fine, *others])]
    done = subprocess.run(command, capture_output=True, text=True)
    expected = [f"loads {each}" for each in [whole, *fine]] + [f"refused {each}" for each in others]
    found = [line for line in done.stdout.splitlines() if line.startswith(("loads", "refused"))]
    assert found == expected, done.stderr[-3000:]


def test_a_failure_of_the_clean_process_is_one_line(folder):
    (folder / "m2bert_pooling.py").write_text("from m2bert.files import digest")
    with pytest.raises(ValueError, match=r"does not load where this package is not .*No module named 'm2bert.*export"):
        check_loading(folder)


# --- adapters and Spaces ---


def test_an_adapter_names_its_base_as_the_hub_knows_it(adapter, monkeypatch, tmp_path):
    assert check(adapter).kind == "adapter"
    card = (adapter / "README.md").read_text()
    for text in ("# Adapter", "---\nbase_model: org/other\n---\n", f"{card}\nload /home/me/base"):
        (adapter / "README.md").write_text(text)
        refused(adapter, "README.md")
    (adapter / "README.md").write_text(card)
    (tmp_path / "here" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for base in ("./base", "a/b/c", "", None, "here/base"):
        change_json(adapter / "adapter_config.json", base_model_name_or_path=base)
        refused(adapter, "base_model_name_or_path")
    (adapter / "adapter_model.safetensors").unlink()
    refused(adapter, "lacks weights as safetensors")


def test_a_space_is_of_no_other_kind(tmp_path):
    (tmp_path / "README.md").write_text("---\nsdk: gradio\n---\n")
    upload = check(tmp_path)
    assert (upload.kind, upload.metadata.sdk, upload.repo_type) == ("space", "gradio", "space")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "a model and a Space")
