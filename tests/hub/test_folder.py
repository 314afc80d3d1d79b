"""Exported folders: complete, self-contained, atomic; and loaded where this package cannot be imported."""

import ast
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

import modeling_m2bert
from m2bert.hub.card import TASKS, About, Card
from m2bert.hub.clean_load import OURS
from m2bert.hub.folder import check_output, whole_folder, write_folder
from m2bert.hub.handler import EndpointHandler
from m2bert.hub.sentence_files import SentenceSettings
from modeling_m2bert import (
    M2BertForMaskedLM,
    M2BertForQuestionAnswering,
    M2BertForTokenClassification,
    M2BertModel,
)

SOURCE = Path(modeling_m2bert.__file__).parent
POOLINGS = ["mean", "weighted_mean", "cls", "cls_tanh", "mean_tanh"]
TEXTS = ["the budget of the committee", "a report", "", "minutes of a meeting about a budget report and the committee"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Every way of loading in one process, and the steps of an Inference Endpoint, without this package and without network.
STRANGER = """
import importlib.util, json, os, socket, sys
blocked, texts, bodies, pairs = map(json.loads, sys.argv[1:])
connections = []
def refuse(*arguments):
    connections.append(arguments)
    raise OSError("no network here")

sys.modules.update(dict.fromkeys(blocked))
socket.socket.connect = socket.getaddrinfo = refuse
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

worst, answers = {}, {}
for name, expected in pairs.items():
    again, expected = expected + "-again", torch.load(expected, weights_only=True)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        model = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
        pooled = model(**batch).pooler_output
        model.save_pretrained(again)
        reloaded = AutoModel.from_pretrained(again, trust_remote_code=True).eval()
        states = model.state_dict(), reloaded.state_dict()
        assert states[0].keys() == states[1].keys() and all(map(torch.equal, states[0].values(), states[1].values()))
        differences = [pooled - expected["pooled"], reloaded(**batch).pooler_output - expected["pooled"]]
        if "logits" in expected:
            logits = AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True).eval()(**batch).logits
            differences.append(logits - expected["logits"])
    assert "transformers_modules" in type(model).__module__
    assert tokenizer.padding_side == "right" and tokenizer.model_max_length == model.config.max_position_embeddings
    encoder = SentenceTransformer(name, trust_remote_code=True)
    assert encoder.max_seq_length == model.config.max_position_embeddings
    assert encoder.get_embedding_dimension() == pooled.shape[1]
    vectors = encoder.encode(texts, convert_to_tensor=True)
    unit = torch.nn.functional.normalize(expected["pooled"], dim=1)
    worst[name] = [max(d.abs().max().item() for d in differences), (vectors - unit).abs().max().item()]
    if os.path.exists(name + "/handler.py"):
        spec = importlib.util.spec_from_file_location("handler.EndpointHandler", name + "/handler.py")
        sys.path.insert(0, name)
        module = importlib.util.module_from_spec(spec)
        sys.modules["handler.EndpointHandler"] = module
        spec.loader.exec_module(module)
        handler = module.EndpointHandler(name)
        assert "transformers_modules" in type(handler.model[0].auto_model).__module__
        answers[name] = [handler(body) for body in bodies]
assert not connections, connections
print(json.dumps([worst, answers], allow_nan=False))
"""


def test_loads_and_serves_where_this_package_is_not(tmp_path, tiny_config, randomized, tokenizer):
    """From a folder, and from the Hub's cache, where the loader checks the imports of every file."""
    models = {pooling: M2BertModel(tiny_config(pooling=pooling, num_pooling_heads=1 + (pooling == "weighted_mean")))
              for pooling in POOLINGS}  # fmt: skip
    models["masked_lm"] = M2BertForMaskedLM(tiny_config())
    settings = SentenceSettings({"query": "about ", "document": ""})
    pairs, batch = {}, tokenizer(TEXTS, padding=True, return_tensors="pt")
    for name, model in models.items():
        folder = write_folder(randomized(model), tokenizer, tmp_path / name, settings=settings)
        with torch.no_grad():
            expected = {"logits": model(**batch).logits} if name == "masked_lm" else {}
            encoder = M2BertModel.from_pretrained(folder).eval() if name == "masked_lm" else model
            torch.save(expected | {"pooled": encoder(**batch).pooler_output}, tmp_path / f"{name}.pt")
        pairs[str(folder)] = str(tmp_path / f"{name}.pt")
    repository = tmp_path / "hf" / "hub" / "models--org--m2bert"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(tmp_path / "weighted_mean", repository / "snapshots" / COMMIT)
    pairs["org/m2bert"] = pairs[str(tmp_path / "weighted_mean")]
    parameters = [{"task": "query", "normalize": False}, {"policy": "chunk-average", "details": True}]
    bodies = [{"inputs": [*TEXTS, "minutes of the meeting " * 20], "parameters": chosen} for chosen in parameters]
    command = [sys.executable, "-c", STRANGER, *map(json.dumps, ([*OURS, "triton"], TEXTS, bodies, pairs))]
    env = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr[-3000:]
    worst, answers = json.loads(result.stdout.strip().split("\n")[-1])
    assert worst.keys() == pairs.keys()
    for name, (auto_model, sentence_transformer) in worst.items():
        assert auto_model == 0.0, name
        assert sentence_transformer < 1e-6, name
    assert answers.keys() == {str(tmp_path / pooling) for pooling in POOLINGS}
    texts = ["about " + text for text in bodies[0]["inputs"]]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt")
    for pooling in POOLINGS:
        plain, averaged = answers[str(tmp_path / pooling)]
        with torch.no_grad():
            expected = models[pooling](**batch).pooler_output
        torch.testing.assert_close(torch.tensor(plain), expected, rtol=0, atol=1e-5)
        here = EndpointHandler(tmp_path / pooling)(bodies[1])
        vectors = [torch.tensor(answer.pop("embeddings")) for answer in (averaged, here)]
        torch.testing.assert_close(*vectors, rtol=0, atol=1e-6)
        assert averaged == here


def test_the_folder_is_complete(tmp_path, tiny_config, tokenizer):
    card = Card(about=About(text="Made of tests."))
    folder = write_folder(M2BertModel(tiny_config(pooling="cls_tanh")), tokenizer, tmp_path / "out", card=card)
    code = {path.name for path in SOURCE.glob("*.py")} - {"__init__.py"}
    assert {path.name for path in folder.glob("*.py")} == code | {"handler.py"}
    for name in code:
        assert (folder / name).read_bytes() == (SOURCE / name).read_bytes()
    expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "modules.json"}
    expected |= {"sentence_bert_config.json", "config_sentence_transformers.json", "requirements.txt", "README.md"}
    assert expected <= {path.name for path in folder.iterdir()}
    assert not list(folder.rglob("*.bin"))
    assert "Made of tests." in (folder / "README.md").read_text()
    (tmp_path / "plain").write_text("")  # others may read what the umask lets them
    usual = (tmp_path / "plain").stat().st_mode
    assert {path.stat().st_mode for path in folder.rglob("*") if path.is_file()} == {usual}


def test_what_a_tokenizer_was_asked_before_is_not_saved(tmp_path, tiny_config, tokenizer):
    tokenizer(["a b c"], padding="max_length", truncation=True, max_length=8)
    folder = write_folder(M2BertModel(tiny_config()), tokenizer, tmp_path / "out")
    settings = json.loads((folder / "tokenizer.json").read_text())
    assert (settings["truncation"], settings["padding"]) == (None, None)


def test_the_exported_code_is_harmless(tmp_path, tiny_config, tokenizer):
    """It imports little, reads and writes no files, and runs no text."""
    allowed = {"torch", "transformers", "huggingface_hub"}
    allowed |= {
        "collections",
        "contextlib",
        "functools",
        "itertools",
        "logging",
        "math",
        "os",
        "threading",
        "typing",
        "weakref",
    }
    forbidden = {"eval", "exec", "compile", "__import__", "import_module", "system", "popen", "Popen", "urlopen"}
    forbidden |= {"open", "save", "load", "write", "write_text", "write_bytes", "remove", "unlink", "rename", "rmtree"}
    folder = write_folder(M2BertModel(tiny_config()), tokenizer, tmp_path / "out")
    for path in set(folder.glob("*.py")) - {folder / "handler.py"}:  # which has an audit of its own
        tree = ast.parse(path.read_text())
        guarded = {node for outer in ast.walk(tree) if isinstance(outer, ast.Try) for node in ast.walk(outer)}
        for node in ast.walk(tree):
            here = allowed | ({"triton"} if node in guarded else set())
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= here, path
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, path
                assert (folder / f"{node.module}.py").is_file(), path
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in here, path
            elif isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "os":
                assert node.attr == "environ", path
            elif isinstance(node, ast.Call) and getattr(getattr(node.func, "value", None), "id", None) != "tl":
                name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
                assert name not in forbidden, (path, name)


@pytest.fixture
def out(tmp_path, tiny_config, tokenizer):
    """A model folder that is there already."""
    return write_folder(M2BertModel(tiny_config()), tokenizer, tmp_path / "out")


def test_a_folder_that_is_not_empty_is_refused_and_kept(tmp_path, tiny_config, tokenizer, out):
    model = M2BertModel(tiny_config())
    before = (out / "model.safetensors").read_bytes()
    (out / "mine.txt").write_text("keep")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"mine.txt"):
            write_folder(model, tokenizer, out, overwrite=overwrite)
    (out / "mine.txt").unlink()
    with pytest.raises(ValueError, match="--overwrite"):
        write_folder(model, tokenizer, out)
    assert (out / "model.safetensors").read_bytes() == before
    write_folder(model, tokenizer, out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() != before
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is no folder"):
        write_folder(model, tokenizer, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    write_folder(model, tokenizer, tmp_path / "empty")


def names_and_weights(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir()), (tmp_path / "out" / "model.safetensors").read_bytes()


def test_a_failed_export_leaves_nothing_and_keeps_what_was_there(tmp_path, tiny_config, tokenizer, monkeypatch, out):
    before = names_and_weights(tmp_path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("m2bert.hub.folder.render_card", fail)
    for output in (out, tmp_path / "new"):
        with pytest.raises(OSError, match="disk full"):
            write_folder(M2BertModel(tiny_config()), tokenizer, output, overwrite=True)
    assert names_and_weights(tmp_path) == before


def test_a_failed_replacement_puts_the_old_folder_back(tmp_path, tiny_config, tokenizer, monkeypatch, out):
    before = names_and_weights(tmp_path)
    rename = Path.rename

    def fail_for_new(self, target):
        if self.name == "new":
            raise OSError("interrupted")
        return rename(self, target)

    monkeypatch.setattr("m2bert.hub.outputs._exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(OSError, match="interrupted"):
        write_folder(M2BertModel(tiny_config()), tokenizer, out, overwrite=True)
    assert names_and_weights(tmp_path) == before


def test_a_folder_filled_meanwhile_is_not_replaced(tmp_path):
    def fill():
        with whole_folder(tmp_path / "out", True):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "mine.txt").write_text("precious")

    with pytest.raises(ValueError, match="mine.txt"):
        fill()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_links_are_followed_and_the_working_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with whole_folder(tmp_path / "link", False) as new:
        (new / "config.json").write_text("{}")
    assert (tmp_path / "target" / "config.json").is_file()
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "inner").mkdir()
    for place, name in ((".", "."), (".", ""), ("inner", "..")):
        monkeypatch.chdir(tmp_path / place)
        with pytest.raises(ValueError, match="holds the working folder"):
            check_output(name, overwrite=True)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"thesis.txt": "precious"}, "thesis.txt"),
        ({".git/config": "", "config.json": '{"model_type": "m2bert"}'}, ".git"),
        ({"1_Dense/thesis.txt": "precious", "config.json": '{"model_type": "m2bert"}'}, "1_Dense/thesis.txt"),
        ({"config.json": "{}"}, "holds no model"),
        ({"config.json": '{"model_type": "bert"}', "README.md": "mine"}, "holds no model"),
    ],
)
def test_what_is_not_ours_is_never_replaced(tmp_path, files, names):
    for name, text in files.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{names}.*is not replaced"):
        check_output(tmp_path / "mine", overwrite=True)
    with pytest.raises(ValueError, match=rf"{names}.*is not replaced"), whole_folder(tmp_path / "mine", True):
        pass
    assert {name: (tmp_path / "mine" / name).read_text() for name in files} == files


@pytest.mark.parametrize("name", ["file/out", "x" * 300, "x" * 252])
def test_an_output_that_cannot_be_made_is_refused_at_once(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output=.* cannot be written"):
        check_output(tmp_path / name, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_one_line_that_names_the_output(tmp_path, tiny_config, tokenizer):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for most in (200, 20_000):  # config.json, the weights
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
            with pytest.raises(ValueError, match="output .*parent/out cannot be written.*free space"):
                write_folder(M2BertModel(tiny_config()), tokenizer, tmp_path / "parent" / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from m2bert.hub import outputs

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

output, place = Path(sys.argv[1]), sys.argv[2]
exchange, rename = outputs._exchange, Path.rename
if place == "after the exchange":
    outputs._exchange = lambda *paths: exchange(*paths) and die()
if place == "between the renames":
    outputs._exchange = lambda *_: False
    Path.rename = lambda path, to: die() if path.name == "new" else rename(path, to)
with outputs.whole_folder(output, True) as new:
    (new / "config.json").write_text('{"model_type": "m2bert", "of": "new"}')
    if place == "while it is filled":
        die()
"""


@pytest.mark.parametrize(
    ("place", "found"), [("while it is filled", "old"), ("between the renames", "old"), ("after the exchange", "new")]
)
def test_a_kill_loses_nothing_and_what_it_leaves_goes(tmp_path, place, found):
    output = tmp_path / "out"
    output.mkdir()
    (output / "config.json").write_text('{"model_type": "m2bert", "of": "old"}')
    result = subprocess.run([sys.executable, "-c", KILLED, str(output), place], capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert (tmp_path / ".out.partial").is_dir()
    with pytest.raises(ValueError, match="--overwrite"):  # also of a folder that the kill has hidden
        check_output(output, overwrite=False)
    with pytest.raises(OSError, match="disk"), whole_folder(output, True):
        raise OSError("disk")
    assert json.loads((output / "config.json").read_text())["of"] == found
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_second_writer_is_told_at_once_and_takes_nothing_away(tmp_path):
    output = tmp_path / "out"
    code = f"""
import time; from pathlib import Path; from m2bert.hub.outputs import whole_folder
with whole_folder({str(output)!r}, False) as new:
    (new / "config.json").write_text("first"); print("held", flush=True); time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="another process writes to"):
            check_output(output, overwrite=False)
        with pytest.raises(ValueError, match="another process writes to"), whole_folder(output, False):
            pass
        assert (tmp_path / ".out.partial" / "new" / "config.json").read_text() == "first"
    finally:
        process.kill()
        process.wait()
    check_output(output, overwrite=False)


def test_the_scratch_folders_name_may_be_taken(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "thesis").write_text("precious")
    with pytest.raises(ValueError, match="thesis.*move it away"), whole_folder(tmp_path / "out", False):
        pass
    assert (tmp_path / ".out.partial" / "thesis").read_text() == "precious"


@pytest.mark.parametrize(("name", "task"), [(name, task) for name, (_, task, _) in TASKS.items()])
@pytest.mark.parametrize("pooling", ["cls_tanh", "weighted_mean"])
def test_every_class_makes_a_folder(tmp_path, tiny_config, tokenizer, name, task, pooling):
    """Some have no pooler: sentence-transformers then pools plainly, never with random weights."""
    cls = getattr(modeling_m2bert, name)
    folder = write_folder(cls(tiny_config(pooling=pooling)), tokenizer, tmp_path / "out")
    kinds = [module["type"].rsplit(".", 1)[-1] for module in json.loads((folder / "modules.json").read_text())]
    if cls in (M2BertForMaskedLM, M2BertForTokenClassification, M2BertForQuestionAnswering):
        assert kinds == ["Transformer", "Pooling", "Normalize"]
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == task
    assert ("SentenceTransformer(" in card.text) == (cls is M2BertModel)
    if cls is not M2BertModel:  # its example runs
        exec(card.text.split("```python\n")[1].split("```")[0], {"path": str(folder)})


def test_a_model_or_tokenizer_that_nobody_can_use_is_not_written(tmp_path, tiny_config, tokenizer):
    with pytest.raises(ValueError, match="vocab_size=8"):
        write_folder(M2BertModel(tiny_config(vocab_size=8)), tokenizer, tmp_path / "out")
    model = M2BertModel(tiny_config())
    with torch.no_grad():
        model.layers[1].norm.weight[3] = float("nan")
    with pytest.raises(ValueError, match="layers.1.norm.weight"):
        write_folder(model, tokenizer, tmp_path / "out")
    assert not list(tmp_path.iterdir())
