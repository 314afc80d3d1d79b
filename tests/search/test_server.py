"""The server as clients see it: OpenAI's, huggingface_hub's, LangChain's, LlamaIndex's, a browser, and hostile ones."""

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

import headless
import httpx
import numpy as np
import openai
import pytest
import uvicorn
from huggingface_hub import InferenceClient

from m2bert.eval.encoders import sentence_transformer
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder
from m2bert.search import batching, server
from m2bert.search.index import Hit, Index
from m2bert.search.server import Embedder, Metrics, make_app, serve

SMALL = Path(__file__).parents[2] / "models" / "m2bert-small"
TEXTS = ["hello world", "The lease ends in June.", "word " * 5000, "a\x00b \u00e9 \U0001f600"]


class ShelfIndex:
    """What the server asks of an index, on two documents."""

    texts = {
        "/shelf/lease.txt": "\U0001f600 " * 500 + "The lease ends <b>in June</b>." + " Nothing else is said." * 200,
        "/shelf/<img src=x onerror=alert(1)>.txt": "<script>document.title = 'broken'</script> lease " * 3,
    }

    def search(self, query, limit=10, mode="hybrid", filter=None):
        if filter:
            raise ValueError(f"filter={filter!r} cannot be used; write it as SQL")
        hits = []
        for id, text in list(self.texts.items())[:limit]:
            start = text.find("The lease") if "The lease" in text else 0
            end, half = start + 30, len(text) // 2
            matches = [(0, half, 0.7), (half, len(text), 0.1)]
            hits.append(Hit(id, id, 3, 1.5, text[start:end], start, end, len(text), matches, {"year": 2024}))
        return hits

    def document(self, id):
        return self.texts[id]


class Caller:
    """Calls an ASGI application in this process."""

    def __init__(self, app, **headers):
        self.app, self.headers = app, headers

    def __call__(self, method, path, **options):
        async def call():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost", headers=self.headers
            ) as client:
                return await client.request(method, path, **options)

        return asyncio.run(call())

    def embed(self, given, **fields):
        return self("POST", "/v1/embeddings", json={"model": "m2bert-small", "input": given, **fields})


@contextlib.contextmanager
def running(app):
    """Serve an application from a thread; yield its address."""
    its = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=its.run)
    thread.start()
    while not its.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{its.servers[0].sockets[0].getsockname()[1]}"
    its.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def encoder():
    return SentenceTransformerEncoder(SMALL, "cpu")


@pytest.fixture(scope="module")
def embedder(encoder):
    embedder = Embedder(encoder, "m2bert-small")
    yield embedder
    embedder.batcher.close()


@pytest.fixture
def app(embedder):
    return make_app(embedder, ShelfIndex(), Metrics())


@pytest.fixture
def call(app):
    return Caller(app)


@pytest.fixture(scope="module")
def address(embedder):
    with running(make_app(embedder, None, Metrics())) as address:
        yield address


def error_of(answer):
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    return error if isinstance(error, str) else error["message"]


def agree(rows, encoder, texts, task="document"):
    """Cosine to the vectors that texts have offline, each alone, in float64."""
    expected = np.concatenate([encoder.encode([text], task) for text in texts]).astype(np.float64)
    rows = np.array(rows, dtype=np.float64)
    cosines = (rows * expected).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(expected, axis=1)
    return rows.shape == expected.shape and (1 - cosines).max() < 1e-6


def test_openai_client(address, encoder):
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
    ids = [encoder.model.tokenizer(text, verbose=False)["input_ids"] for text in TEXTS]
    for given, texts in ((TEXTS, TEXTS), (TEXTS[1], TEXTS[1:2]), (ids, TEXTS), (ids[0], TEXTS[:1])):
        for form in ({}, {"encoding_format": "float"}, {"dimensions": encoder.dimensions}):
            found = client.embeddings.create(model="m2bert-small", input=given, **form)
            assert agree([each.embedding for each in found.data], encoder, texts)
            assert [each.index for each in found.data] == list(range(len(texts)))
            assert found.model == "m2bert-small"
            assert (
                found.usage.prompt_tokens == found.usage.total_tokens == encoder.count_tokens(texts, "document").sum()
            )
    [part] = client.embeddings.create(model="m2bert-small", input=TEXTS[1], dimensions=256).data
    [whole] = encoder.encode(TEXTS[1:2], "document")
    np.testing.assert_allclose(part.embedding, whole[:256] / np.linalg.norm(whole[:256]), atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="dimensions=4000: m2bert-small has 1 to 3072"):
        client.embeddings.create(model="m2bert-small", input="a", dimensions=4000)
    with pytest.raises(openai.NotFoundError, match="'ada' is not served here; name 'm2bert-small'"):
        client.embeddings.create(model="ada", input="a")


def test_huggingface_client(address, encoder):
    for url in (address, f"{address}/embed"):
        client = InferenceClient(base_url=url)
        assert agree(client.feature_extraction(TEXTS[0]), encoder, TEXTS[:1])
        assert agree(client.feature_extraction(TEXTS, prompt_name="query", normalize=True), encoder, TEXTS, "query")
        long = "word " * 20_000
        assert agree(client.feature_extraction(long, truncate=True, truncation_direction="right"), encoder, [long])
    answer = httpx.post(f"{address}/embed", json={"inputs": "a", "normalize": False})
    assert answer.status_code == 400
    assert answer.json() == {
        "error": "the request: normalize is False; input should be True",
        "error_type": "Validation",
    }


def test_a_query_is_embedded_as_a_query(call, embedder, encoder, monkeypatch):
    prompted = SentenceTransformerEncoder(SMALL, "cpu")
    prompted.model.prompts = {"query": "committee budget: ", "document": ""}
    other = Embedder(prompted, "m2bert-small")
    call = Caller(make_app(other, None, Metrics()))
    as_query = call.embed(TEXTS[1], input_type="query").json()["data"][0]["embedding"]
    by_default = call.embed(TEXTS[1]).json()["data"][0]["embedding"]
    as_tei = call("POST", "/embed", json={"inputs": TEXTS[1], "prompt_name": "query"}).json()[0]
    other.batcher.close()
    assert agree([by_default], encoder, TEXTS[1:2])
    assert agree([as_query], encoder, ["committee budget: " + TEXTS[1]])
    assert as_tei == as_query


def test_what_is_too_long_is_refused_or_truncated_and_counted(encoder):
    embedder = Embedder(encoder, "m2bert-small")
    call, long = Caller(make_app(embedder, None, Metrics())), "word " * 17_000
    ids = encoder.model.tokenizer(long, verbose=False)["input_ids"]
    for given in ([TEXTS[0], long], [[101, 102], ids]):
        answer = call.embed(given)
        assert answer.status_code == 400
        message = (
            "input[1] has 17002 tokens, and m2bert-small reads 16384; shorten or divide it, or set truncate to true"
        )
        assert error_of(answer) == message
        answer = call.embed(given, truncate=True)
        assert answer.headers["x-truncated-texts"] == "1"
        assert answer.json()["usage"]["prompt_tokens"] == 16_384 + (4 if given[0] == TEXTS[0] else 2)
        assert agree([answer.json()["data"][1]["embedding"]], encoder, [long])
    embedder.batcher.close()
    assert "m2bert_truncated_texts_total 2.0" in call("GET", "/metrics").text
    assert "m2bert_queue_tokens 0.0" in call("GET", "/metrics").text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"input": "a"', "the request is no valid JSON: "),
        ('{"input": "a", "input": "b", "model": "m"}', "the request is no valid JSON: "),
        ('{"input": "\\ud800", "model": "m2bert-small"}', "the request is no valid JSON: "),
        (b"\xff{}", "'utf-8' codec can't decode"),
        ("[]", "the request: the value is []; input should be a valid dictionary"),
        ({}, "the request: input is missing"),
        ({"input": "a", "inputtype": "query"}, "the request: unknown key 'inputtype'; did you mean 'input_type'?"),
        ({"input": "a", "input_type": "passage"}, "the request: input_type is 'passage'; input should be 'query' or"),
        ({"input": []}, "input must be a text, or a list of 1 to 2048 texts or lists of token ids"),
        ({"input": ["a"] * 2049}, "input must be a text, or a list of 1 to 2048 texts or lists of token ids"),
        ({"input": {"a": 1}}, "input must be a text, or a list of 1 to 2048 texts or lists of token ids"),
        ({"input": ["a", [101]]}, "input[1] is [101]; send texts only, or lists of token ids only"),
        ({"input": ["a", None]}, "input[1] is None; send texts only, or lists of token ids only"),
        ({"input": [[101, True, 102]]}, "input[0] is [101, True, 102]; send texts only, or lists of token ids only"),
        ({"input": ["a", " \n"]}, "input[1] is empty; leave it out"),
        ({"input": [[]]}, "input[0] is empty; leave it out"),
        (
            {"input": [9906, 1917]},
            "input[0] does not begin with the ids [101] and end with [102]; send texts, or ids of",
        ),
        ({"input": [101]}, "input[0] does not begin with the ids [101] and end with [102]; send texts, or ids of"),
        ({"input": [101, -1, 102]}, "input[0] has an id that is not below 30522; send texts, or ids of"),
        ({"input": [101, 10**30, 102]}, "input[0] has an id that is not below 30522; send texts, or ids of"),
    ],
)
def test_bad_requests_are_answered_in_one_line(call, body, message):
    if isinstance(body, dict):
        body = json.dumps({"model": "m2bert-small", **body})
    answer = call("POST", "/v1/embeddings", content=body)
    assert answer.status_code == 400
    assert error_of(answer).startswith(message)
    assert "\n" not in error_of(answer)


def test_search(call):
    answer = call("POST", "/v1/search", json={"query": "when does the lease end?", "limit": 1, "mode": "bm25"}).json()
    [hit] = answer["hits"]
    assert hit["passage"] == "The lease ends <b>in June</b>."
    assert (hit["start"], hit["end"], hit["page"]) == (1000, 1030, 3)
    assert hit["matches"][0] == {"start": 0, "end": hit["length"] // 2, "score": 0.7}
    assert hit["metadata"] == {"year": 2024}
    part = call("GET", "/document", params={"id": hit["id"], "start": 998, "end": 1030}).json()
    assert part == {"id": hit["id"], "length": hit["length"], "text": "\U0001f600 The lease ends <b>in June</b>."}
    assert call("GET", "/document", params={"id": hit["id"]}).json()["text"] == ShelfIndex.texts[hit["id"]]
    for path, options, status, message in (
        ("/document", {"params": {"id": "none"}}, 404, "id='none' is not in the index"),
        ("/document", {"params": {"id": hit["id"], "start": "x"}}, 400, "start and end must be whole numbers: id="),
        ("/v1/search", {"json": {"query": "a", "filter": "year >"}}, 400, "filter='year >' cannot be used"),
        ("/v1/search", {"json": {"query": "a", "limit": 0}}, 400, "the request: limit is 0"),
        ("/v1/search", {"json": {"query": "a", "mode": "magic"}}, 400, "the request: mode is 'magic'"),
        ("/nowhere", {}, 404, "/nowhere: Not Found"),
    ):
        answer = call("POST" if "json" in options else "GET", path, **options)
        assert answer.status_code == status
        assert error_of(answer).startswith(message)


def test_metrics_count_by_path_and_status(call):
    call.embed("hello")
    call.embed("")
    call("GET", "/secret/of/a/visitor")
    text = call("GET", "/metrics").text
    for line in (
        'm2bert_requests_total{path="/v1/embeddings",status="200"} 1.0',
        'm2bert_requests_total{path="/v1/embeddings",status="400"} 1.0',
        'm2bert_requests_total{path="other",status="404"} 1.0',
        'm2bert_request_seconds_count{path="/v1/embeddings"} 2.0',
        "m2bert_queue_tokens 0.0",
    ):
        assert line in text
    assert "visitor" not in text
    assert call("GET", "/health").json() == {"status": "ok", "model": "m2bert-small", "index": True}


def test_the_key_is_asked_for_everywhere_but_on_the_page_and_for_health(embedder):
    app = make_app(embedder, ShelfIndex(), Metrics(), key="right")
    paths = [
        ("POST", "/v1/embeddings"),
        ("POST", "/embed"),
        ("POST", "/"),
        ("POST", "/v1/search"),
        ("GET", "/document"),
    ]
    for method, path in [*paths, ("GET", "/metrics"), ("GET", "/nowhere")]:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "right"},
            {"authorization": "Bearer "},
        ):
            answer = Caller(app, **headers)(method, path)
            assert answer.status_code == 401, (path, headers)
            assert answer.headers["www-authenticate"] == "Bearer"
    assert Caller(app, authorization="Bearer right").embed("a").status_code == 200
    for path in ("/", "/health"):
        assert Caller(app, host="elsewhere.example")("GET", path).status_code == 200


def test_without_a_key_pages_of_other_hosts_reach_nothing(app):
    for host, status in (("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:1", 200), ("evil.example", 403), ("", 403)):
        assert Caller(app, host=host)("GET", "/health").status_code == status, host


def test_a_request_that_is_too_long(call, monkeypatch):
    monkeypatch.setattr(server, "BODY_BYTES", 1000)
    answer = call.embed("a" * 1000)
    assert answer.status_code == 413
    assert error_of(answer) == "the request is longer than 1000 bytes; send fewer texts"
    monkeypatch.setattr(server, "BODY_BYTES", 10_000)
    assert call.embed("a" * 1000).status_code == 200


def test_a_full_queue_and_a_request_that_takes_too_long(encoder, monkeypatch):
    monkeypatch.setattr(batching, "QUEUE_TOKENS", 1000)
    embedder = Embedder(encoder, "m2bert-small")
    entered, go = threading.Semaphore(0), threading.Event()

    def slow(jobs):
        entered.release()
        assert go.wait(60)
        return np.zeros((len(jobs), 3))

    embedder.batcher._encode = slow
    call, statuses = Caller(make_app(embedder, None, Metrics())), []
    ask = [threading.Thread(target=lambda: statuses.append(call.embed("word " * 900).status_code)) for _ in range(9)]
    cores = embedder.batcher._threads
    for thread in ask[:cores]:
        thread.start()
        assert entered.acquire(timeout=60)
    monkeypatch.setattr(server, "REQUEST_SECONDS", 3)
    ask[-1].start()
    until = time.monotonic() + 3
    while not embedder.batcher.waiting_tokens and time.monotonic() < until:
        time.sleep(0.01)
    answer = call.embed("word " * 900)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert error_of(answer) == "902 tokens are waiting already; try again in 1 s"
    ask[-1].join()
    assert statuses == [504]
    monkeypatch.setattr(server, "REQUEST_SECONDS", 60)
    go.set()
    for thread in ask[:cores]:
        thread.join()
    assert statuses == [504] + [200] * cores
    assert call.embed("word " * 900).status_code == 200  # what its client gave up no longer takes room
    embedder.batcher.close()


def test_an_error_of_the_model_is_not_the_client_s(encoder, caplog):
    embedder = Embedder(encoder, "m2bert-small")

    def broken(jobs):
        raise RuntimeError("secret")

    embedder.batcher._encode = broken
    answer = Caller(make_app(embedder, None, Metrics())).embed("the text")
    embedder.batcher.close()
    assert answer.status_code == 500
    assert error_of(answer) == "an error of the server; its log says more"
    assert "secret" in caplog.text
    assert "the text" not in caplog.text


def test_what_cannot_be_served_is_said_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "EMPTY", " ")
    with pytest.raises(ValueError, match="host=0.0.0.0 lets others read what is served, and there is no key"):
        serve(SMALL, host="0.0.0.0")
    with pytest.raises(ValueError, match="api_key_env=EMPTY: this variable holds no key; export EMPTY=KEY"):
        serve(SMALL, api_key_env="EMPTY")
    with pytest.raises(
        ValueError, match="is no folder; name the folder of a model or of an index, or a model's Hub id"
    ):
        serve(tmp_path / "none")
    with pytest.raises(ValueError, match="port=99999 cannot be used"):
        serve(SMALL, port=99999)
    (tmp_path / "config.json").write_text('{"model_type": "unknown"}')  # a model without modules.json
    with pytest.raises(ValueError, match=f"encoder '{tmp_path}' cannot be loaded"):
        serve(tmp_path)


@pytest.mark.slow
def test_an_index_is_served_with_its_model(tmp_path, encoder, monkeypatch):
    filler = "Nothing else is said here about anything. " * 300
    texts = {"lease": f"{filler}\U0001f600 The lease ends in June. {filler}", "bread": f"{filler}Bake it for an hour."}
    Index.open(tmp_path / "index", model=SMALL).add([{"id": id, "text": text} for id, text in texts.items()])
    loads, load = [], sentence_transformer.load_model
    monkeypatch.setattr(sentence_transformer, "load_model", lambda *given: loads.append(given) or load(*given))
    embedder, index = server._loaded(tmp_path / "index")
    assert len(loads) == 1
    call = Caller(make_app(embedder, index, Metrics()))
    hits = call("POST", "/v1/search", json={"query": "when does the lease end?"}).json()["hits"]
    assert [hit["id"] for hit in hits] == ["lease", "bread"]
    assert hits[0]["passage"] == texts["lease"][hits[0]["start"] : hits[0]["end"]]
    assert "lease ends" in hits[0]["passage"]
    part = call("GET", "/document", params={"id": "lease", "start": hits[0]["start"], "end": hits[0]["end"]}).json()
    assert part == {"id": "lease", "length": len(texts["lease"]), "text": hits[0]["passage"]}
    assert call("GET", "/document", params={"id": "x' OR 1=1"}).status_code == 404
    assert call("POST", "/v1/search", json={"query": "a", "filter": "year >"}).status_code == 400
    assert call("POST", "/v1/search", json={"query": "lease " * 17_000}).status_code == 400
    assert agree([call.embed(TEXTS[1]).json()["data"][0]["embedding"]], encoder, TEXTS[1:2])
    embedder.batcher.close()


def test_the_tables_of_the_page_are_those_of_the_results():
    path = SMALL.parents[1] / "experiments" / "serving" / "load.py"
    spec = importlib.util.spec_from_file_location("load", path)
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    page, results = load.PAGE.read_text(), json.loads(load.RESULTS.read_text())
    assert load.filled(page, results) == page
    assert load.filled(page, results | {"p99 ratio": 3}) != page


@pytest.fixture
def process(tmp_path):
    """A server in a process of its own; its address is the last word of its first line."""
    code = f"from m2bert.search.server import serve; serve({str(SMALL)!r}, port=0)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        yield process, process.stdout.readline().split()[-1]
        process.kill()


@pytest.mark.slow
def test_requests_that_came_before_sigterm_are_answered(process):
    process, address = process
    statuses = []

    def ask(number):
        body = {"model": "m2bert-small", "input": "word " * 16_000, "encoding_format": "base64"}
        statuses.append(httpx.post(f"{address}/v1/embeddings", json=body, timeout=60).status_code)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    while "m2bert_queue_tokens 0.0" in httpx.get(f"{address}/metrics").text:
        time.sleep(0.01)
    time.sleep(0.5)  # all have arrived
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert statuses == [200] * 12
    assert process.wait(30) in (0, -signal.SIGTERM)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


@pytest.mark.slow
def test_texts_of_many_clients_at_once_keep_their_vectors(address, encoder):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["river", "budget", "lease", "of"], size)) for size in rng.integers(1, 4000, 200)]
    expected = {text: encoder.encode([text], "document")[0] for text in texts}
    errors = []

    def ask(part):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
        for start in range(0, len(part), 3):
            its = part[start : start + 3]
            found = client.embeddings.create(model="m2bert-small", input=its).data
            errors.extend(
                1 - float(np.dot(row.embedding, expected[text])) for row, text in zip(found, its, strict=True)
            )

    threads = [threading.Thread(target=ask, args=(texts[number::16],)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == len(texts)
    assert max(errors) < 1e-6


@pytest.mark.slow
def test_langchain(address, encoder):
    embeddings = pytest.importorskip("langchain_openai").OpenAIEmbeddings
    settings = {"model": "m2bert-small", "base_url": f"{address}/v1", "api_key": "any"}
    client = embeddings(**settings, check_embedding_ctx_length=False)
    assert agree(client.embed_documents(TEXTS), encoder, TEXTS)
    query = embeddings(
        **settings, check_embedding_ctx_length=False, model_kwargs={"extra_body": {"input_type": "query"}}
    )
    assert agree([query.embed_query(TEXTS[1])], encoder, TEXTS[1:2], "query")


@pytest.mark.slow
def test_llama_index(address, encoder):
    like = pytest.importorskip("llama_index.embeddings.openai_like").OpenAILikeEmbedding
    client = like(model_name="m2bert-small", api_base=f"{address}/v1", api_key="any")
    assert agree(client.get_text_embedding_batch(TEXTS[:2]), encoder, TEXTS[:2])
    assert agree([client.get_query_embedding(TEXTS[1])], encoder, TEXTS[1:2])
    tei = pytest.importorskip("llama_index.embeddings.text_embeddings_inference").TextEmbeddingsInference
    client = tei(model_name="m2bert-small", base_url=address, query_instruction="", text_instruction="")
    assert agree(client.get_text_embedding_batch(TEXTS[:2]), encoder, TEXTS[:2])


@pytest.fixture
def browser(tmp_path, request):
    if headless.CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome here")
    with headless.Browser(tmp_path, **getattr(request, "param", {})) as browser:
        yield browser


SHOWN = "document.querySelectorAll('mark').length === 2 && document.querySelector('.text').innerText.length > 300"


@pytest.mark.slow
@pytest.mark.parametrize("browser", [{"width": 1200}, {"width": 360, "height": 780, "dark": True}], indirect=True)
def test_page(browser, app, tmp_path):
    with running(app) as address:
        browser.open(f"{address}/")
        browser.wait("document.activeElement?.id === 'query'")
        browser.type("when does the lease end?")
        browser.key("Enter", "\r")
        browser.wait(SHOWN)
        assert browser.js("location.hash") == "#" + "q=when+does+the+lease+end%3F&mode=hybrid"
        assert browser.js("document.querySelector('mark').textContent") == "The lease ends <b>in June</b>."
        before = browser.js("document.querySelector('mark').previousSibling.textContent")
        assert before.endswith("\U0001f600 \U0001f600 ")  # characters, not halves of pairs
        assert browser.js("document.querySelectorAll('.bar')[0].getAttribute('aria-valuenow')") != "0"
        assert browser.js("document.querySelectorAll('#hits img, #hits script, #hits b').length") == 0
        assert browser.js("document.querySelectorAll('h2')[1].textContent") == "2. <img src=x onerror=alert(1)>.txt"
        assert browser.js("document.title") == "Search"
        assert browser.js("document.documentElement.scrollWidth <= innerWidth")
        assert browser.js("document.querySelector('#query').scrollLeft") == 0
        shown = "const box = document.createElement('p'); showText(box, 0, 8, Array.from('one\\n\\ntwo, three'), 0)"
        assert browser.js(f"{{ {shown}; [...box.children].map((mark) => mark.textContent) }}") == ["one", "two"]
        browser.screenshot(tmp_path / "page.png")
        browser.js("document.activeElement.blur()")
        browser.key("j", "j")
        browser.key("j", "j")
        assert browser.js("[...document.querySelectorAll('#hits > li')].indexOf(document.activeElement)") == 1
        browser.key("k", "k")
        browser.key("Tab")
        browser.key("Tab")
        assert browser.js("document.activeElement.getAttribute('role')") == "slider"
        browser.key("ArrowRight")
        browser.wait("document.querySelector('mark').textContent.length > 1000")
        assert "similarity 0.10" in browser.js("document.activeElement.getAttribute('aria-valuetext')")
        browser.key("/", "/")
        assert browser.js("document.activeElement.id") == "query"
        browser.js("document.querySelector('#filter').value = 'year >'; document.querySelector('form button').click()")
        browser.wait(
            "document.querySelector('#status.error')?.textContent.startsWith(\"filter='year >' cannot be used\")"
        )
        assert browser.js("document.querySelectorAll('#hits > li').length") == 0
        assert not [line for line in browser.console if "400" not in line]  # the browser logs the refused request


@pytest.mark.slow
def test_page_with_a_key(browser, embedder):
    with running(make_app(embedder, ShelfIndex(), Metrics(), key="right")) as address:
        browser.open(f"{address}/#q={quote('the lease')}")
        browser.wait("document.querySelector('#key-label')?.hidden === false")
        browser.js("document.querySelector('#key').value = 'right'; document.querySelector('form button').click()")
        browser.wait(SHOWN)
