"""handler.py: what an Inference Endpoint answers and refuses, and that the file is harmless.

That it runs where this package is not: test_folder.py.
"""

import ast
import json
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from packaging.requirements import Requirement
from transformers import BertTokenizerFast

from m2bert.eval.encoders.policies import parse_policy
from m2bert.eval.encoders.protocol import unit_rows
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
    return torch.tensor(handler({"inputs": inputs, "parameters": parameters}))


def largest_difference(a, b):
    return (torch.as_tensor(a) - torch.as_tensor(b)).abs().max().item()


def test_an_answer_says_what_was_done(make):
    handler = EndpointHandler(str(make()), extra="ignored")
    tokens = [8, 122, 5, 14, 6]
    answer = handler({"inputs": TEXTS, "details": True})
    json.dumps(answer, allow_nan=False)
    vectors = torch.tensor(answer.pop("embeddings"))
    assert vectors.shape == (5, 32)
    assert largest_difference(vectors.norm(dim=1), torch.ones(5)) < 1e-6
    assert answer == {
        "task": "document", "policy": "truncate", "normalized": True, "dimensions": 32, "max_tokens": 48,
        "tokens": tokens, "truncated": [False, True, False, False, False], "chunks": [1] * 5,
    }  # fmt: skip
    parameters = {"policy": "chunk-average", "task": "query", "normalize": False, "dimensions": 3, "details": True}
    answer = handler({"inputs": TEXTS, "parameters": parameters})
    assert answer["tokens"] == [n - 2 for n in tokens]  # a shorter prompt
    assert answer["truncated"] == [False] * 5
    assert [k > 1 for k in answer["chunks"]] == [False, True, False, False, False]
    assert (answer["task"], answer["policy"], answer["normalized"]) == ("query", "chunk-average", False)
    assert answer["dimensions"] == 3 == len(answer["embeddings"][0])
    one = handler({"inputs": TEXTS[0], "details": True})
    assert len(one["embeddings"]) == len(one["tokens"]) == len(one["truncated"]) == len(one["chunks"]) == 1


@pytest.fixture
def serve():
    """Serve a handler over HTTP as the container does; return a client of the Hub, whose requests are kept."""
    servers = []

    def start(handler):
        class Container(BaseHTTPRequestHandler):
            def do_POST(self):
                bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                try:
                    status, answer = 200, handler(bodies[-1])
                except ValueError as error:
                    status, answer = 400, {"error": str(error)}
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *_):
                pass

        bodies = []
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Container))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return InferenceClient(f"http://127.0.0.1:{servers[-1].server_port}", token="hf_x"), bodies

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_client_of_the_hub_gets_what_it_asks_for(make, serve):
    handler = EndpointHandler(make())
    client, bodies = serve(handler)
    expected = embed(handler, TEXTS)
    assert client.feature_extraction("a budget").shape == (1, 32)
    assert largest_difference(client.feature_extraction(TEXTS), expected) == 0
    assert (
        largest_difference(client.feature_extraction(TEXTS, prompt_name="query"), embed(handler, TEXTS, task="query"))
        == 0
    )
    options = {"normalize": False, "truncate": True, "truncation_direction": "right", "prompt_name": "document"}
    assert largest_difference(client.feature_extraction(TEXTS, **options), embed(handler, TEXTS, normalize=False)) == 0
    assert bodies[-1] == {"inputs": TEXTS, **options}  # options stand at the root
    cosines = client.sentence_similarity(TEXTS[0], TEXTS[1:])
    assert bodies[-1]["inputs"] == {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}
    assert largest_difference(cosines, expected[1:] @ expected[0]) < 1e-6
    with pytest.raises(HfHubHTTPError, match=r"inputs\[1\] has 122 tokens, and max_tokens=48; shorten it, or send"):
        client.feature_extraction(TEXTS, truncate=False)
    with pytest.raises(HfHubHTTPError, match='prompt_name="passage" is unknown; choose from: "document", "query"'):
        client.feature_extraction(TEXTS, prompt_name="passage")


def test_options_stand_at_the_root_or_in_parameters_and_null_is_the_default(make):
    handler = EndpointHandler(make())
    options = {"task": "query", "policy": "chunk-average", "normalize": False, "dimensions": 7, "truncate": False}
    expected = handler({"inputs": TEXTS, "parameters": options})
    assert handler({"inputs": TEXTS, **options, "parameters": None}) == expected
    assert handler({"inputs": TEXTS, **options, "parameters": {"prompt_name": "query"}}) == expected
    null = dict.fromkeys(handler.options) | {"prompt_name": None}
    assert handler({"inputs": TEXTS, **null, "parameters": null}) == handler({"inputs": TEXTS})


def test_similarities_are_cosines_under_every_option(make):
    handler = EndpointHandler(make())
    inputs = {"source_sentence": TEXTS[1], "sentences": [TEXTS[0], TEXTS[1]]}
    for options in ({}, {"policy": "chunk-average"}, {"task": "query"}, {"normalize": False}, {"dimensions": 5}):
        vectors = embed(handler, [TEXTS[1], TEXTS[0]], **options | {"normalize": True})
        cosines = handler({"inputs": inputs, **options})
        assert largest_difference(cosines, [float(vectors[0] @ vectors[1]), 1.0]) < 1e-6
    answer = handler({"inputs": inputs, "details": True, "normalize": False})
    assert answer["normalized"]
    assert answer["tokens"] == [122, 8, 122]
    assert len(answer["similarities"]) == 2


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
    answer = EndpointHandler(folder)({"inputs": texts, "policy": "chunk-average", "details": True})
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
    answer = handler({"inputs": "x", "policy": "chunk-average", "details": True})
    assert answer["truncated"] == [True]


def test_a_bfloat16_folder_is_run_as_it_is(make):
    folder = make(dtype=torch.bfloat16)
    handler = EndpointHandler(folder)
    assert handler.model.dtype == torch.bfloat16
    vectors = embed(handler, TEXTS)
    assert largest_difference(vectors.norm(dim=1), torch.ones(5)) < 1e-6  # normalized in float32
    expected = torch.nn.functional.normalize(pooler_outputs(folder, TEXTS, PROMPTS["document"]).float())
    assert torch.nn.functional.cosine_similarity(vectors, expected).min() > 0.99


@pytest.mark.parametrize("padding", ["masked", "visible"])
@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "mean_tanh"])
def test_late_chunks_are_those_of_the_evaluation(make, pooling, padding, monkeypatch):
    monkeypatch.setattr(handler_module, "FEWEST_TOKENS", 8)
    heads = {"num_pooling_heads": 2, "lexical_heads": 2, "lexical_size": 8} if pooling == "weighted_mean" else {}
    folder = make(pooling=pooling, padding=padding, **heads)
    handler, options = EndpointHandler(folder), {"policy": "late-chunk", "details": True}
    encoder = SentenceTransformerEncoder(folder, device="cpu")
    (whole, _), (rows, counts) = encoder.encode_parts(TEXTS, [1, 16], 8)
    answer = handler({"inputs": TEXTS, **options})
    assert [len(vectors) for vectors in answer["embeddings"]] == counts.tolist() == [1, 6, 1, 1, 1]
    assert largest_difference(sum(answer["embeddings"], []), rows) < 1e-6
    short = embed(handler, TEXTS[0], normalize=False)
    assert (
        largest_difference(handler({"inputs": TEXTS[0], "policy": "late-chunk", "normalize": False}), short[None])
        < 1e-5
    )
    added = handler({"inputs": TEXTS, "policy": "late-chunk:document=1"})
    assert largest_difference(sum(added, []), unit_rows(rows + whole.repeat(counts, axis=0))) < 1e-6
    cut = handler({"inputs": TEXTS, "policy": "late-chunk", "dimensions": 5})
    assert (
        largest_difference(cut[1], torch.nn.functional.normalize(torch.tensor(answer["embeddings"][1])[:, :5])) < 1e-6
    )


def test_spans_are_the_characters_of_the_parts(make, monkeypatch):
    monkeypatch.setattr(handler_module, "FEWEST_TOKENS", 8)
    handler = EndpointHandler(make())
    for side in ("right", "left"):
        options = {"policy": "late-chunk", "details": True, "truncation_direction": side}
        answer = handler({"inputs": ["", LONG], **options})
        [empty], spans = answer["spans"]
        assert empty == [0, 0]
        assert len(spans) == len(answer["embeddings"][1]) == 6
        assert answer["truncated"] == [False, True]
        assert all(start < end <= following for (start, end), (following, _) in zip(spans, spans[1:], strict=False))
        ends = (0, spans[-1][1]) if side == "right" else (spans[0][0], len(LONG))
        read = " ".join(LONG[start:end] for start, end in spans).replace(" ", "")
        assert read == LONG[slice(*ends)].replace(" ", "")
        special = 2 + (3 if side == "right" else 0)  # tokens, with the prompt's
        assert sum(ends[0] <= start and end <= ends[1] for start, end in handler._spans(LONG)) == 48 - special
    assert spans[0][0] > 0


def test_a_token_of_prompt_and_text_begins_with_the_text(make):
    handler = EndpointHandler(make(settings=SentenceSettings({"document": "the bud"})))
    answer = handler({"inputs": "get of a", "policy": "late-chunk", "details": True})  # its first word is "budget"
    assert answer["spans"] == [[[0, 8]]]
    handler = EndpointHandler(make("other", settings=SentenceSettings({"document": "com"})))
    assert handler({"inputs": "mit of a", "policy": "late-chunk", "details": True})["spans"] == [[[0, 8]]]


def test_only_poolings_over_all_tokens_have_late_chunks(make):
    handler = EndpointHandler(make(pooling="cls"))
    with pytest.raises(ValueError, match='policy="late-chunk" is unknown; choose from: "truncate", "chunk-average"'):
        handler({"inputs": "a", "policy": "late-chunk"})


def test_dimensions_and_direction_are_those_of_sentence_transformers(make):
    handler = EndpointHandler(make())
    theirs = handler.model.encode_document(TEXTS, truncate_dim=5, normalize_embeddings=True)
    assert largest_difference(embed(handler, TEXTS, dimensions=5), theirs) < 1e-6
    left = embed(handler, TEXTS, truncation_direction="left", normalize=False)
    handler.model.tokenizer.truncation_side = "left"
    assert largest_difference(left, handler.model.encode_document(TEXTS)) < 1e-6
    assert (
        largest_difference(left, embed(handler, TEXTS, normalize=False)) > 1e-3
    )  # the next request is cut at the right


def test_what_would_be_cut_is_refused_on_request(make):
    handler = EndpointHandler(make())
    assert len(handler({"inputs": [TEXTS[0], TEXTS[2]], "truncate": False})) == 2
    assert len(handler({"inputs": LONG, "truncate": False, "policy": "chunk-average"})) == 1
    for policy in ("truncate", "late-chunk"):
        with pytest.raises(
            ValueError, match=r"sentences\[0\] has 122|inputs has 122 tokens, and max_tokens=48; shorten it"
        ):
            handler({"inputs": LONG, "truncate": False, "policy": policy})


def test_requests_of_many_threads_are_not_mixed(make, monkeypatch):
    handler = EndpointHandler(make())
    options = [{"policy": policy} for policy in handler_module.POLICIES] + [{"truncation_direction": "left"}]
    bodies = [{"inputs": [text, LONG], **chosen} for text in TEXTS for chosen in options]
    expected = [handler(body) for body in bodies]
    sides, computing, embed_all = [], set(), handler._embed

    def embed_alone(texts, prompt, options):
        found = embed_all(texts, prompt, options)
        time.sleep(0.002)  # another request would set its own side now
        computing.add(threading.get_ident())
        sides.append(handler.model.tokenizer.truncation_side == options["truncation_direction"])
        return found

    monkeypatch.setattr(handler, "_embed", embed_alone)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(handler, bodies * 4)) == expected * 4
    assert all(sides)
    assert len(computing) == 1  # an allocator keeps memory for each thread that computes


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
    theirs = {"torch", "torch.nn.functional.normalize", "torch.nn.utils.rnn.pad_sequence"}
    theirs.add("sentence_transformers.SentenceTransformer")
    ours = {"json", "collections.abc.Sequence", "concurrent.futures.ThreadPoolExecutor"}
    assert imported == ours | theirs


def test_the_requirements_are_met_here():
    requirements = [Requirement(line) for line in REQUIREMENTS.splitlines()]
    assert {requirement.name for requirement in requirements} == {"torch", "transformers", "sentence-transformers"}
    for requirement in requirements:
        assert requirement.specifier.contains(version(requirement.name), prereleases=True), requirement


# --- what is refused ---


OPTIONS = "task, policy, normalize, dimensions, truncate, truncation_direction, details, prompt_name"
FORMS = 'send a text, a list of texts, or {"source_sentence": a text, "sentences": [texts]}'
PAIR = {"source_sentence": "a", "sentences": ["b"]}
BAD = [  # the body and what its refusal says
    (["a"], "body is of type list; send a JSON object"),
    ({}, f"inputs is missing or null; {FORMS}"),
    ({"inputs": 3}, f"inputs is of type int; {FORMS}"),
    ({"inputs": PAIR | {"more": 1}}, f"inputs is of type dict; {FORMS}"),
    ({"inputs": PAIR | {"sentences": "b"}}, f"inputs is of type dict; {FORMS}"),
    ({"inputs": PAIR | {"sentences": ["b", 3]}}, "sentences[1] is of type int; send a text"),
    ({"inputs": PAIR | {"sentences": []}}, "inputs holds 0 texts of 1 characters; send 1 to 2048"),
    ({"inputs": PAIR, "policy": "late-chunk"}, 'policy="late-chunk" compares no sentences; choose from: "truncate", '),
    ({"inputs": PAIR, "policy": "late-chunk:document=1"}, 'policy="late-chunk:document=1" compares no sentences; '),
    ({"inputs": []}, "inputs holds 0 texts of 0 characters; send 1 to 2048"),
    ({"inputs": ["a"] * 10_000}, "inputs holds 10000 texts"),
    ({"inputs": ["a", ["b"]]}, "inputs[1] is of type list; send a text"),
    ({"inputs": ["x" * 2_000_001] * 2}, "2 texts of 4000002 characters; send 1 to 2048 texts, at most 4000000"),
    ({"inputs": ["a", "b \ud83d"]}, "inputs[1] holds half of a surrogate pair"),
    ({"inputs": "a", "pooling": "cls"}, f'"pooling" is no option; choose from: {OPTIONS}'),
    ({"inputs": "a", "parameters": ["task"]}, "parameters is of type list; send a JSON object"),
    ({"inputs": "a", "parameters": {"\udc80" * 999: 1}}, f"... is no option; choose from: {OPTIONS}"),
    ({"inputs": "a", "parameters": {"task": "q"}}, 'task="q" is unknown; choose from: "document", "query"'),
    ({"inputs": "a", "normalize": 1}, "normalize=1 is unknown; choose from: true, false"),
    ({"inputs": "a", "details": "true"}, 'details="true" is unknown; choose from: false, true'),
    ({"inputs": "a", "dimensions": True}, "dimensions=true is unknown; choose from: 1 to 32"),
    ({"inputs": "a", "dimensions": 33}, "dimensions=33 is unknown; choose from: 1 to 32"),
    ({"inputs": "a", "dimensions": 3.0}, "dimensions=3.0 is unknown; choose from: 1 to 32"),
    ({"inputs": "a", "task": "query", "prompt_name": "document"}, 'task is both "query" and "document"; send it once'),
    ({"inputs": "a", "dimensions": 3, "parameters": {"dimensions": 4}}, "dimensions is both 3 and 4; send it once"),
]


@pytest.fixture(scope="module")
def options():
    names = {"task": ("document", "query"), "policy": handler_module.POLICIES, "normalize": (True, False)}
    names |= {"dimensions": range(32, 0, -1), "truncate": (True, False), "truncation_direction": ("right", "left")}
    return names | {"details": (False, True)}


@pytest.mark.parametrize(("body", "message"), BAD)
def test_a_bad_request_is_refused_with_the_fix(body, message, options):
    handler = EndpointHandler.__new__(EndpointHandler)  # no model: nothing is tokenized before all is checked
    handler.options = options
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        handler(body)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).encode()) < 200


def test_the_options_are_those_of_the_folder(make, options):
    assert EndpointHandler(make()).options == options


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
        for policy in handler_module.POLICIES:
            handler({"inputs": ["qqqq", "qqqq " * 100], "parameters": {"policy": policy}})
    assert "qqqq" not in caplog.text + "".join(capfd.readouterr())
