"""Which folders may be published, and which files of them."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from m2bert.hub.folder import write_folder
from m2bert.hub.outgoing import BLOCK_BYTES, collect
from m2bert.hub.outgoing_checks import check_outgoing
from modeling_m2bert import M2BertModel


def check(folder):
    outgoing = collect(folder)
    check_outgoing(outgoing)
    return outgoing


def refused(folder, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check(folder)


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "has no model.safetensors"),
    "weights cut short": (lambda d: cut(d / "model.safetensors"), "damaged or cut short"),
    "an index without shards": (
        lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-1.safetensors"}}'),
        "names model-1.safetensors for x",
    ),
    "no card": (lambda d: (d / "README.md").unlink(), "lacks README.md"),
    "a broken card": (lambda d: (d / "README.md").write_text("---\na: [\n---\n"), "the YAML at the head"),
    "no configuration": (lambda d: (d / "config.json").unlink(), "nothing that can be pushed"),
    "broken JSON": (lambda d: (d / "modules.json").write_text("{"), "no valid JSON"),
    "a missing import": (lambda d: (d / "m2bert_pooling.py").unlink(), "'.m2bert_pooling', which is not in the folder"),
    "an import from above": (lambda d: (d / "x.py").write_text("from ..y import z"), "only finds modules beside it"),
    "code that is none": (lambda d: (d / "x.py").write_text("def"), "no valid Python"),
    "no auto_map": (lambda d: change_json(d / "config.json", auto_map={}), "has no auto_map"),
    "a missing class": (
        lambda d: change_json(d / "config.json", auto_map={"AutoModel": "gone.Model"}),
        "'gone.py' is missing",
    ),
    "a pickle": (lambda d: (d / "pytorch_model.bin").write_bytes(b""), "is a pickle"),
    "a pickle in a folder": (lambda d: (d / "1_Pooling" / "x.PT").write_bytes(b""), "is a pickle"),
    "a link out": (lambda d: (d / "link.txt").symlink_to("/etc/hostname"), "leads out of the folder"),
    "a linked folder": (lambda d: (d / "link").symlink_to(d.parent, True), "leads out of the folder"),
    "a token": (lambda d: (d / "training.json").write_text(f'"hf_{"a" * 34}"'), "looks like a token"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_folder_that_nobody_could_or_should_load_is_refused(folder, what):
    check(folder)
    damage, message = DAMAGE[what]
    damage(folder)
    refused(folder, message)


def test_shards_are_whole_if_the_index_finds_every_tensor(folder):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    refused(folder, "has no model.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"embeddings.word_embeddings.weight": "model-1.safetensors"}}))
    assert "model-1.safetensors" in check(folder).files
    index.write_text(json.dumps({"weight_map": {"gone.weight": "model-1.safetensors"}}))
    refused(folder, "names model-1.safetensors for gone.weight")


def test_links_within_the_folder_go_as_files(folder):
    (folder / "again.md").symlink_to("README.md")
    assert check(folder).files["again.md"].read_bytes() == (folder / "README.md").read_bytes()
    (folder / "nowhere.md").symlink_to("gone.md")
    refused(folder, "leads out of the folder or to no file")


def test_what_tools_and_training_leave_behind_stays(folder):
    before = set(check(folder).files)
    for name in (".git/config", "sub/__pycache__/x.pyc", ".DS_Store", ".env", "checkpoints/x.pt", "id_rsa", "a.pem"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "m2bert.yaml").write_text("")
    outgoing = check(folder)
    assert set(outgoing.files) == before | {".eval_results/m2bert.yaml"}
    left_out = {".git/", "sub/__pycache__/", ".DS_Store", ".env", "checkpoints/", "id_rsa", "a.pem"}
    assert set(outgoing.left_out) == left_out


@pytest.mark.parametrize("base", ["/home/me/base", "./base", "../base", "a/b/c", "", None, "here/base"])
def test_an_adapter_of_a_local_base_is_refused(adapter, base, monkeypatch, tmp_path):
    assert check(adapter).kind == "adapter"
    (tmp_path / "here" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    change_json(adapter / "adapter_config.json", base_model_name_or_path=base)
    refused(adapter, "push the base and write its name there")


@pytest.mark.parametrize(
    "card", ["# Adapter", "---\nbase_model: /home/me/base\n---\n",
             "---\nbase_model: org/base\n---\n" + 'AutoModel.from_pretrained("/home/me/base", trust_remote_code=True)']
)  # fmt: skip
def test_an_adapters_card_names_the_base_on_the_hub(adapter, card):
    (adapter / "README.md").write_text(card)
    refused(adapter, "write `base_model: org/base` at its head")


def test_a_folder_of_two_kinds_is_refused(adapter, folder):
    (adapter / "config.json").write_text("{}")
    refused(adapter, "has adapter_config.json and config.json")
    (folder / "README.md").write_text("---\nsdk: gradio\n---\n")
    refused(folder, "has config.json and `sdk:` in README.md")


@pytest.mark.parametrize("name", ["tokenizer.json", "1_Pooling/config.json", "2_Dense/model.safetensors"])
def test_what_sentence_transformers_reads_must_be_there(tmp_path, tiny_config, tokenizer, name):
    model = M2BertModel(tiny_config(pooling="cls_tanh"))
    folder = write_folder(model, tokenizer, tmp_path / "cls")
    check(folder)
    (folder / name).unlink()
    refused(folder, f"lacks {name}")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("config.json", {"num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
        ("config.json", {"intermediate_size": 128}, "of another shape"),
        ("config.json", {"model_type": None}, "has no model_type"),
        ("sentence_bert_config.json", {"mine": 1}, "unknown key 'mine'"),
        ("1_Pooling/config.json", {"mine": 1}, "unknown key 'mine'"),
        ("1_Pooling/config.json", {"word_embedding_dimension": 3}, "vectors of 3 numbers, but is given 32"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "vectors of 32 numbers, but is given 64"),
        ("2_Dense/config.json", {"bias": False}, "does not fit the weights beside it"),
    ],
)
def test_an_m2bert_that_its_own_settings_do_not_describe_is_refused(
    tmp_path, tiny_config, tokenizer, name, changes, message
):
    folder = write_folder(M2BertModel(tiny_config(pooling="mean_tanh")), tokenizer, tmp_path / "model")
    change_json(folder / name, **changes)
    refused(folder, message)


def test_an_m2bert_needs_its_modules_and_a_tokenizer_that_pads(folder):
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:1] + modules[2:]))
    refused(folder, "has no Pooling")
    modules[1]["type"] += "s"
    (folder / "modules.json").write_text(json.dumps(modules))
    refused(folder, "'sentence_transformers.models.Poolings', which sentence-transformers lacks")
    modules[1]["type"] = modules[1]["type"][:-1]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())
    refused(folder, "byte order mark")
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes()[3:])
    (folder / "tokenizer_config.json").unlink()
    refused(folder, "no padding token")


@pytest.mark.parametrize("reference", ["evil/repo--modeling_m2bert.M2BertModel", "gone.X"])
def test_code_of_another_repository_is_refused(folder, reference):
    config = json.loads((folder / "config.json").read_text())
    change_json(folder / "config.json", auto_map=config["auto_map"] | {"AutoModel": reference})
    refused(folder, f"names {reference!r}")


@pytest.mark.parametrize(
    ("name", "text"),
    [("config.json", "null"), ("config.json", '{"model_type": NaN}'), ("tokenizer_config.json", '{"auto_map": 3}'),
     ("modules.json", "null"), ("modules.json", '[{"idx": 0}]'), ("modules.json", '[{"name": "", "path": -5}]'),
     ("config.json", '{"model_type": "m2bert", "auto_map": "x.Y"}'),
     ("config.json", '{"model_type": "m2bert", "auto_map": {"AutoModel": 5}}'),
     ("model.safetensors.index.json", '{"weight_map": ["a"]}'),
     ("model.safetensors.index.json", '{"weight_map": {"a": {}}}'),
     ("modules.json", '[1]'), ("other.json", "[" * 100_000)],
)  # fmt: skip
def test_json_of_another_form_is_one_line(folder, name, text):
    (folder / name).write_text(text)
    refused(folder, name)


@pytest.mark.parametrize("head", ["[" * 9000, "sdk: [gradio]", "tags: 7", "- a", "a: &x [1]\nb: *x"])
def test_a_card_of_another_form_is_one_line(folder, head):
    (folder / "README.md").write_text(f"---\n{head}\n---\n# Card\n")
    refused(folder, "the YAML at the head of")


def test_code_nested_too_deeply_is_no_valid_python(folder):
    (folder / "x.py").write_text("-" * 9000 + "1")
    refused(folder, "no valid Python")


PRIVATE = {
    "config.json": {"_name_or_path": "/home/me/runs/opl"},
    "tokenizer_config.json": {"special": {"files": ["vocab.txt", "/scratch/me/vocab.txt"]}},
    "config_sentence_transformers.json": {"note": "trained in ~/runs"},
    "1_Normalize/config.json": {"/Users/me/x": 1},
    "tokenizer.json": {"note": "file:///home/me"},
}


@pytest.mark.parametrize("name", PRIVATE)
def test_a_path_of_the_machine_in_any_json_is_refused(folder, name):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    content = json.loads(path.read_text()) if path.is_file() else {}
    harmless = {"token": "</s>", "also": "a / b, and/or https://x.org/home/me/a org/name"}
    path.write_text(json.dumps(content | (harmless if name != "tokenizer.json" else {})))  # which takes no other key
    check(folder)
    change_json(path, **PRIVATE[name])
    refused(folder, f"{name} names paths of this machine")


def test_words_of_a_vocabulary_are_no_paths(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["/home/user"] = len(tokenizer["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    check(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.safetensors", "1_Normalize/model.safetensors"])
def test_weights_that_are_not_finite_are_refused(folder, name, value):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    tensors = load_file(path) if path.is_file() else {"a": torch.ones(2).to(torch.float8_e4m3fn), "b": torch.ones(2)}
    save_file(tensors, path)
    check(folder)
    last = sorted(tensors)[-1]
    save_file(tensors | {last: torch.full_like(tensors[last], value)}, path)
    refused(folder, f"{last!r} holds NaN or infinite numbers")


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [("sentence_transformers.models.Normalize", True), ("modeling_m2bert.Pooler", True), ("evil.Module", False),
     ("org/repo--modeling_m2bert.Pooler", False), ("sentence_transformers_evil.models.Normalize", False)],
)  # fmt: skip
def test_a_module_is_of_sentence_transformers_or_of_the_folder(folder, kind, accepted):
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules[:-1], modules[-1] | {"type": kind}]))
    check(folder) if accepted else refused(folder, f"names {kind!r}")


def test_a_record_with_paths_of_the_machine_is_refused(folder):
    (folder / "training.json").write_text('{"config": {"data": "/home/me/secret"}}')
    refused(folder, "names paths of this machine")
    (folder / "training.json").write_text('{"config": {"data": "secret"}}')
    check(folder)


def test_a_link_to_a_hidden_file_stays_here(folder):
    (folder / ".env").write_text("x")
    (folder / "public.txt").symlink_to(folder / ".env")
    assert "public.txt" in collect(folder).left_out


@pytest.mark.parametrize("name", ["X.PEM", "prod.env", "token.json", ".netrc", "_netrc", "kaggle.json"])
def test_names_of_secrets_stay_here(folder, name):
    (folder / name).write_text("x")
    assert name in collect(folder).left_out


@pytest.mark.parametrize("before", [BLOCK_BYTES - 20, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 5])
def test_a_token_deep_in_a_long_text_is_found(folder, before):
    text = b" " * before + b"hf_" + b"a" * 34 + b" " * 99
    (folder / "notes.txt").write_bytes(text)
    refused(folder, "looks like a token")
    (folder / "notes.txt").write_bytes(text.replace(b"hf_", b"hx_"))
    check(folder)


def test_a_token_in_the_metadata_of_weights_is_found(folder):
    path = folder / "model.safetensors"
    save_file(load_file(path), path, {"format": "pt", "run": "hf_" + "a" * 34})
    refused(folder, "looks like a token")


@pytest.mark.parametrize("text", ["-----BEGIN RSA PRIVATE KEY-----", "api_org_" + "a" * 34, "hf_" + "b" * 34])
def test_secrets_in_a_text_are_refused(folder, text):
    (folder / "notes.txt").write_text(f"see {text} there")
    with pytest.raises(ValueError, match="a token of the Hub or a private key"):
        collect(folder)


def test_a_space_names_its_own_program(tmp_path):
    (tmp_path / "README.md").write_text("---\nsdk: gradio\napp_file: main.py\n---\n")
    refused(tmp_path, "lacks main.py")
    (tmp_path / "main.py").write_text("")
    check(tmp_path)


def test_an_adapter_without_weights_is_refused(adapter):
    (adapter / "adapter_model.safetensors").unlink()
    refused(adapter, "has no adapter_model.safetensors")


def test_a_space_may_have_packages_but_needs_its_program(tmp_path):
    (tmp_path / "README.md").write_text("---\nsdk: gradio\n---\n")
    (tmp_path / "parts").mkdir()
    for name, text in {"__init__.py": "from . import a", "a.py": "", "b.py": "from .a import x"}.items():
        (tmp_path / "parts" / name).write_text(text)
    refused(tmp_path, "lacks app.py")
    (tmp_path / "app.py").write_text("from parts.b import x")
    outgoing = check(tmp_path)
    assert (outgoing.kind, outgoing.sdk, outgoing.repo_type) == ("space", "gradio", "space")
    (tmp_path / "parts" / "a.py").unlink()
    refused(tmp_path, "imports from '.a', which is not in the folder")


def test_no_folder_and_no_kind_are_refused(tmp_path):
    refused(tmp_path / "none", "is no folder")
    refused(tmp_path, "nothing that can be pushed")
    (tmp_path / "README.md").write_text("---\nsdk: word\n---\n")
    refused(tmp_path, "a Space takes one of")
