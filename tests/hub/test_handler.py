"""handler.py: what an Inference Endpoint answers and refuses, and that the file is harmless.

That it runs where this package is not: test_folder.py.
"""

import ast
import gc
import json
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement
from transformers import BertTokenizerFast

from m2bert.eval.encoders.policies import parse_policy
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder
from m2bert.hub import handler as handler_module
from m2bert.hub.folder import REQUIREMENTS, write_folder
from m2bert.hub.handler import EndpointHandler
from m2bert.hub.sentence_files import SentenceSettings
from modeling_m2bert import M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel

PROMPTS = {"query": "about ", "document": "report of the "}
LONG = " ".join(["the budget of the committee", "minutes of a meeting"] * 9)
TEXTS = ["a budget", LONG, "", "minutes of the meeting about a report", "the"]
WORDS = ["a", "about", "and", "bud", "commit", "meet", "minute", "of", "report", "the", "##get", "##tee", "##ing"]


@pytest.fixture
def pieces():
    """A tokenizer whose words have parts, and any letter is a token: a piece of a word may count for more alone."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters[1:], *(f"##{x}" for x in letters)]
    return BertTokenizerFast(vocab={token: i for i, token in enumerate(vocabulary)})


@pytest.fixture
def make(tmp_path, tiny_config, randomized, pieces):
    """Write the folder of a small model with prompts; keyword arguments change its configuration."""

    def write(name="model", dtype=torch.float32, settings=None, **changes):
        model = randomized(M2BertModel(tiny_config(**changes))).to(dtype)
        return write_folder(model, pieces, tmp_path / name, settings=settings or SentenceSettings(dict(PROMPTS)))

    return write


def pooler_outputs(folder, texts, prompt=""):
    """Each text by itself through the model: (n, d)."""
    model, tokenizer = M2BertModel.from_pretrained(folder).eval(), BertTokenizerFast.from_pretrained(folder)
    rows = [tokenizer(prompt + text, truncation=True, return_tensors="pt") for text in texts]
    with torch.no_grad():
        return torch.cat([model(**row).pooler_output for row in rows])


def embed(handler, inputs, **parameters):
    return torch.tensor(handler({"inputs": inputs, "parameters": parameters})["embeddings"])


def largest_difference(a, b):
    return (torch.as_tensor(a) - torch.as_tensor(b)).abs().max().item()


def test_an_answer_says_what_was_done(make):
    handler = EndpointHandler(str(make()), extra="ignored")
    tokens = [8, 122, 5, 14, 6]
    answer = handler({"inputs": TEXTS})
    json.dumps(answer, allow_nan=False)
    vectors = torch.tensor(answer.pop("embeddings"))
    assert vectors.shape == (5, 32)
    assert largest_difference(vectors.norm(dim=1), torch.ones(5)) < 1e-6
    assert answer == {
        "task": "document", "policy": "truncate", "normalized": True, "dimensions": 32, "max_tokens": 48,
        "tokens": tokens, "truncated": [False, True, False, False, False], "chunks": [1] * 5,
    }  # fmt: skip
    answer = handler({"inputs": TEXTS, "parameters": {"policy": "chunk-average", "task": "query", "normalize": False}})
    assert answer["tokens"] == [n - 2 for n in tokens]  # a shorter prompt
    assert answer["truncated"] == [False] * 5
    assert [k > 1 for k in answer["chunks"]] == [False, True, False, False, False]
    assert (answer["task"], answer["policy"], answer["normalized"]) == ("query", "chunk-average", False)
    one = handler({"inputs": TEXTS[0]})
    assert len(one["embeddings"]) == len(one["tokens"]) == len(one["truncated"]) == len(one["chunks"]) == 1


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "cls", "cls_tanh", "mean_tanh"])
def test_vectors_are_the_models_own(make, pooling):
    folder = make(pooling=pooling)
    handler = EndpointHandler(folder)
    for task, prompt in PROMPTS.items():
        expected = pooler_outputs(folder, TEXTS, prompt)
        assert largest_difference(embed(handler, TEXTS, task=task, normalize=False), expected) < 1e-5
        unit = torch.nn.functional.normalize(expected)
        assert largest_difference(embed(handler, TEXTS, task=task), unit) < 1e-6
    assert largest_difference(embed(handler, TEXTS, task="query"), embed(handler, TEXTS, task="document")) > 1e-3


@pytest.mark.parametrize("prompts", [PROMPTS, {"query": "a "}, {"passage": "a ", "other": "the "}])
def test_prompts_are_those_that_sentence_transformers_takes(make, prompts):
    settings = SentenceSettings(prompts, default_prompt_name=list(prompts)[-1])
    handler = EndpointHandler(make(settings=settings))
    theirs = {"query": handler.model.encode_query, "document": handler.model.encode_document}
    for task, encode in theirs.items():
        vectors = encode(TEXTS, convert_to_tensor=True)
        assert largest_difference(embed(handler, TEXTS, task=task, normalize=False), vectors) < 1e-5


@pytest.mark.parametrize("padding", ["masked", "visible"])
@pytest.mark.parametrize("policy", ["truncate", "chunk-average"])
def test_a_vector_does_not_depend_on_the_other_texts(make, padding, policy):
    handler = EndpointHandler(make(padding=padding))
    handler.batch_tokens = 100
    texts = [*TEXTS, LONG + " report", *TEXTS]
    alone = torch.cat([embed(handler, text, policy=policy) for text in texts])
    together = embed(handler, texts, policy=policy)
    assert largest_difference(alone, together) < 1e-6
    assert largest_difference(embed(handler, texts[::-1], policy=policy), together.flip(0)) < 1e-6


@pytest.mark.parametrize("padding", ["masked", "visible"])
def test_batches_keep_to_the_budget_and_pad_little(make, padding, monkeypatch):
    handler = EndpointHandler(make(padding=padding))
    handler.batch_tokens = 100
    shapes, forward = [], handler.model.forward

    def record(features, **kwargs):
        shapes.append((*features["input_ids"].shape, int(features["attention_mask"].sum())))
        return forward(features, **kwargs)

    monkeypatch.setattr(handler.model, "forward", record)
    handler({"inputs": [*["a budget"] * 20, LONG, *["the"] * 3]})
    assert sum(rows for rows, _, _ in shapes) == 24
    assert all(rows * longest <= 100 for rows, longest, _ in shapes)
    if padding == "masked":
        assert shapes[0] == (1, 48, 48)  # its budget has room for a second row, but not of 48 tokens for 8
        assert all(2 * real >= rows * longest for rows, longest, real in shapes)
        assert len(shapes) == 3
    else:
        assert {longest for _, longest, _ in shapes} == {48}
        assert len(shapes) == 12


@pytest.mark.parametrize("words", ["committee ", "meeting budget ", "budgetcommittee ", "xx", "the budget. "])
@pytest.mark.parametrize("max_tokens", [15, 31, 48])
def test_averages_of_chunks_are_those_of_the_evaluation(make, words, max_tokens):
    folder = make(settings=SentenceSettings(dict(PROMPTS), max_tokens=max_tokens))
    texts = [words * 40, *TEXTS]
    expected = parse_policy("chunk-average").embed(SentenceTransformerEncoder(folder, device="cpu"), texts)
    answer = EndpointHandler(folder)({"inputs": texts, "parameters": {"policy": "chunk-average"}})
    assert largest_difference(answer["embeddings"], expected.rows) < 1e-6
    assert answer["chunks"][0] > 1
    assert answer["max_tokens"] == max_tokens


def test_chunks_hold_the_whole_text_and_none_is_too_long(make):
    handler = EndpointHandler(make(settings=SentenceSettings(max_tokens=9)))
    text = ("committeemeetingbudget" * 4 + " ") * 8  # cut anywhere, "tee" is a token in it and three by itself
    count = handler._count([text], "")[0]
    chunks = handler._cut(text, count, "")
    position = 0
    for chunk, tokens in chunks:
        assert tokens == handler._count([chunk], "")[0] <= 9
        start = text.find(chunk, max(position - len(chunk), 0))
        assert 0 <= start <= position + 1
        position = max(position, start + len(chunk))
    assert position == len(text.rstrip())
    assert len(chunks) > count / 7 + 1  # some did grow


def test_what_cannot_be_cut_is_read_as_far_as_it_goes(make, monkeypatch):
    """One character may have more tokens than the model takes; no text sends the handler round in circles."""
    handler = EndpointHandler(make(settings=SentenceSettings(max_tokens=5)))
    monkeypatch.setattr(handler, "_count", lambda texts, prompt: [6 if text else 2 for text in texts])
    monkeypatch.setattr(handler, "_spans", lambda text: [(0, 1)] * 4)
    answer = handler({"inputs": "x", "parameters": {"policy": "chunk-average"}})
    assert answer["truncated"] == [True]


def test_a_bfloat16_folder_is_run_as_it_is(make):
    folder = make(dtype=torch.bfloat16)
    handler = EndpointHandler(folder)
    assert handler.model.dtype == torch.bfloat16
    vectors = embed(handler, TEXTS)
    assert largest_difference(vectors.norm(dim=1), torch.ones(5)) < 1e-6  # normalized in float32
    expected = torch.nn.functional.normalize(pooler_outputs(folder, TEXTS, PROMPTS["document"]).float())
    assert torch.nn.functional.cosine_similarity(vectors, expected).min() > 0.99


def test_a_short_query_gets_between_the_pieces_of_a_long_request(make, monkeypatch):
    handler = EndpointHandler(make())
    handler.batch_tokens = 48
    read, encode, begun, may_go_on = [], handler.model.encode, threading.Event(), threading.Event()

    def recorded(texts, **options):
        read.append(texts[0])
        begun.set()
        assert may_go_on.wait(60)
        return encode(texts, **options)

    monkeypatch.setattr(handler.model, "encode", recorded)
    with ThreadPoolExecutor(3) as threads:
        long = threads.submit(handler, {"inputs": [LONG] * 4})
        begun.wait(60)
        other = threads.submit(handler, {"inputs": [LONG + " report"] * 8})
        while handler._jobs.qsize() < 1:
            time.sleep(0.01)
        short = threads.submit(handler, {"inputs": "the"})
        while handler._jobs.qsize() < 2:
            time.sleep(0.01)
        may_go_on.set()
        assert [len(done.result()["embeddings"]) for done in (long, other, short)] == [4, 8, 1]
    assert read == [LONG, "the", *[LONG] * 3, *[LONG + " report"] * 8]


def test_a_long_request_is_not_overtaken_for_ever(make, monkeypatch):
    """Its place in line is fixed; what comes late enough stands behind it."""
    handler, now = EndpointHandler(make()), [0.0]
    monkeypatch.setattr(handler_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(handler_module, "MOST_SECONDS_BEHIND", 6.0)
    places, put = [], handler._jobs.put
    monkeypatch.setattr(handler._jobs, "put", lambda job: (places.append(job[0]), put(job)))
    for now[0], text in ((0.0, "the " * 2000), (5.0, "the"), (7.0, "the"), (7.0, "the " * 1000)):
        begin = len(places)
        handler({"inputs": text})
        assert len({*places[begin:]}) == 1
    first = sorted(set(places))
    assert first == [pytest.approx(place, abs=0.01) for place in (5, 6, 7, 11)]


def test_one_thread_serves_all_without_mixing_them_and_ends_with_its_handler(make):
    def workers():
        return [thread.name for thread in threading.enumerate() if thread.name == "m2bert"]

    gc.collect()
    before = len(workers())
    handler = EndpointHandler(make())
    assert len(workers()) == before  # none before the first request: the process may fork
    policies = [{"policy": policy} for policy in ("truncate", "chunk-average")]
    bodies = [{"inputs": [text, LONG], "parameters": policy} for text in TEXTS for policy in policies]
    expected = [handler(body) for body in bodies]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(handler, bodies * 4)) == expected * 4
    assert len(workers()) == before + 1
    handler.max_tokens = None  # a fault of any kind
    with pytest.raises(TypeError):
        handler({"inputs": "the"})
    worker = handler._worker
    del handler
    worker.join(60)
    assert not worker.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_it_answers_in_a_process_that_is_forked_after_a_request(make):
    handler = EndpointHandler(make())
    expected = handler({"inputs": "the budget"})
    child = os.fork()
    if not child:
        os._exit(0 if handler({"inputs": "the budget"}) == expected else 1)
    deadline = time.monotonic() + 60
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    if found[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert found == (child, 0)


# --- the file ---


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


# --- what is refused ---


BAD = [  # the body and what its refusal says
    (["a"], "body is of type list; send a JSON object"),
    ({}, "inputs is missing or null; send a text or a list"),
    ({"inputs": 3}, "inputs is of type int; send a text"),
    ({"inputs": []}, "inputs holds 0 texts of 0 characters; send 1 to 2048"),
    ({"inputs": ["a"] * 2049}, "inputs holds 2049 texts"),
    ({"inputs": ["a", ["b"]]}, r"inputs\[1\] is of type list"),
    ({"inputs": ["x" * 2_000_001] * 2}, "2 texts of 4000002 characters; .* at most 4000000"),
    ({"inputs": ["a", "b \ud83d"]}, r"inputs\[1\] holds half of a surrogate pair"),
    ({"inputs": "a", "task": "query"}, "body has 'task'; choose from: inputs, parameters"),
    ({"inputs": "a", "parameters": None}, "parameters is missing or null; send a JSON object"),
    ({"inputs": "a", "parameters": {"pooling": 1}}, "has 'pooling'; choose from: task, policy, norm"),
    ({"inputs": "a", "parameters": {"task": "q"}}, "task='q' is unknown; choose from: document, query"),
    ({"inputs": "a", "parameters": {"normalize": 1}}, "normalize=1 is unknown; choose from: true, false"),
    ({"inputs": "a", "parameters": {"task": "\udc80" * 999}}, "task='.{39}... is unknown"),
]


@pytest.mark.parametrize(("body", "message"), BAD)
def test_a_bad_request_is_refused_with_the_fix(body, message):
    handler = EndpointHandler.__new__(EndpointHandler)  # no model: nothing is tokenized before all is checked
    with pytest.raises(ValueError, match=message) as caught:
        handler(body)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).encode()) < 200


def test_a_failed_request_changes_no_later_answer(make, monkeypatch):
    handler = EndpointHandler(make())
    before = handler({"inputs": TEXTS})
    long = {"inputs": TEXTS, "parameters": {"policy": "chunk-average"}}
    with monkeypatch.context() as patch:
        patch.setattr(handler.model, "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            handler(long)
    handler(long)
    assert handler({"inputs": TEXTS}) == before


def test_a_prompt_that_leaves_no_room_is_named(make):
    handler = EndpointHandler(make(settings=SentenceSettings({"document": "a " * 20}, max_tokens=20)))
    with pytest.raises(ValueError, match="the prompt fills max_tokens=20"):
        handler({"inputs": "the report", "parameters": {"policy": "chunk-average"}})


def test_numbers_that_json_does_not_know_are_refused(make):
    handler = EndpointHandler(make())
    with torch.no_grad():
        handler.model[0].auto_model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        handler({"inputs": "a report"})


def test_texts_are_not_logged(make, caplog, capfd):
    handler = EndpointHandler(make())
    with caplog.at_level(logging.DEBUG):
        for policy in ("truncate", "chunk-average"):
            handler({"inputs": ["qqqq", "qqqq " * 100], "parameters": {"policy": policy}})
    assert "qqqq" not in caplog.text + "".join(capfd.readouterr())
