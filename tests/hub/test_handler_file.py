"""handler.py as a file of the folder: alone where this package is not, harmless, and what it requires."""

import ast
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from m2bert.hub import handler as handler_module
from m2bert.hub.folder import REQUIREMENTS, write_folder
from m2bert.hub.handler import EndpointHandler
from m2bert.hub.sentence_files import SentenceSettings
from modeling_m2bert import M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel

OURS = ["m2bert", "modeling_m2bert", "configuration_m2bert"]
TEXTS = ["a budget", "minutes of the meeting about a report " * 9, "", "the"]

# The container's own steps, where this package cannot be imported and no connection can be made.
CONTAINER = """
import importlib.abc, importlib.util, json, socket, sys
blocked = set(sys.argv[1].split(","))

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

connections = []
def refuse(*arguments):
    connections.append(arguments)
    raise OSError("no network here")

sys.meta_path.insert(0, Blocker())
socket.socket.connect = socket.getaddrinfo = refuse
answers = []
for folder in sys.argv[3:]:
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder + "/handler.py")
    sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules["handler.EndpointHandler"] = module
    spec.loader.exec_module(module)
    handler = module.EndpointHandler(folder)
    answers.append([handler(body) for body in json.loads(sys.argv[2])])
    assert "transformers_modules" in type(handler.model[0].auto_model).__module__
assert not connections, connections
print(json.dumps(answers, allow_nan=False))
"""


def test_the_container_runs_it_where_this_package_is_not(tmp_path, tiny_config, randomised, tokenizer):
    poolings = ["mean", "weighted_mean", "cls_tanh"]
    models = [randomised(M2BertModel(tiny_config(pooling=pooling))) for pooling in poolings]
    settings = SentenceSettings({"query": "about ", "document": ""})
    folders = [
        write_folder(model, tokenizer, tmp_path / pooling, settings=settings)
        for model, pooling in zip(models, poolings, strict=True)
    ]
    parameters = [{"task": "query", "normalize": False}, {"policy": "chunk-average"}]
    bodies = [{"inputs": TEXTS, "parameters": chosen} for chosen in parameters]
    command = [sys.executable, "-c", CONTAINER, ",".join(OURS), json.dumps(bodies), *map(str, folders)]
    env = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    env["HF_HOME"] = str(tmp_path / "hf")
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr[-3000:]
    answers = json.loads(result.stdout.strip().split("\n")[-1])
    batch = tokenizer(
        ["about " + text for text in TEXTS], padding=True, truncation=True, max_length=48, return_tensors="pt"
    )
    for model, folder, (plain, averaged) in zip(models, folders, answers, strict=True):
        with torch.no_grad():
            expected = model(**batch).pooler_output
        torch.testing.assert_close(torch.tensor(plain["embeddings"]), expected, rtol=0, atol=1e-5)
        here = EndpointHandler(folder)(bodies[1])
        vectors = [torch.tensor(answer.pop("embeddings")) for answer in (averaged, here)]
        torch.testing.assert_close(*vectors, rtol=0, atol=1e-6)
        assert averaged == here


def test_only_embedding_models_with_a_tokenizer_get_it(tmp_path, tiny_config, tokenizer):
    config = tiny_config()
    with_it = write_folder(M2BertModel(config), tokenizer, tmp_path / "embedding")
    assert (with_it / "handler.py").read_bytes() == Path(handler_module.__file__).read_bytes()
    assert not (write_folder(M2BertModel(config), None, tmp_path / "bare") / "handler.py").exists()
    for cls in (M2BertForMaskedLM, M2BertForSequenceClassification):
        assert not (write_folder(cls(config), tokenizer, tmp_path / cls.__name__) / "handler.py").exists()


def test_the_handler_is_harmless():
    """It imports few things, and calls nothing that reads, writes, runs or connects."""
    tree = ast.parse(Path(handler_module.__file__).read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    forbidden = {"open", "eval", "exec", "compile", "__import__", "getattr", "globals", "vars", "print", "input"}
    forbidden |= {"load", "save", "read", "write", "system", "hub", "environ", "logger", "logging", "__dict__"}
    assert not names & forbidden
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names} if not node.level else {"."}
    threads = {"threading", "time", "weakref", "concurrent.futures.Future", "queue.PriorityQueue"}
    assert imported == {*threads, "collections.abc.Iterator", "torch", "sentence_transformers.SentenceTransformer"}


def test_the_requirements_are_met_here():
    requirements = [Requirement(line) for line in REQUIREMENTS.splitlines()]
    assert {requirement.name for requirement in requirements} == {"torch", "transformers", "sentence-transformers"}
    for requirement in requirements:
        assert requirement.specifier.contains(version(requirement.name), prereleases=True), requirement


@pytest.mark.slow
def test_pip_finds_what_the_folder_requires(tmp_path):
    (tmp_path / "requirements.txt").write_text(REQUIREMENTS)
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
    command += ["--retries", "0", "--timeout", "20", "--report", str(tmp_path / "report.json")]
    result = subprocess.run([*command, "-r", str(tmp_path / "requirements.txt")], capture_output=True, text=True)
    if "connection" in result.stderr.lower() or "No module named pip" in result.stderr:
        pytest.skip("pip reaches no index here")
    assert result.returncode == 0, result.stderr
    found = {item["metadata"]["name"] for item in json.loads((tmp_path / "report.json").read_text())["install"]}
    assert found == {"torch", "transformers", "sentence-transformers"}
