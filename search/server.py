"""Serve a model or an index: vectors as clients of OpenAI and of TEI ask for them, search, and a page.

`make_app` is the application, `serve` the process around it. Texts wait in a `Batcher`, searches for one thread.
"""

import asyncio
import base64
import copy
import hashlib
import hmac
import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import prometheus_client as prometheus
from pydantic import Field
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from m2bert.eval.encoders.protocol import unit_rows
from m2bert.files import parse_json
from m2bert.schema import Schema, checked
from m2bert.terminal import one_line

from .batching import BATCH_TOKENS, Batcher, Job, QueueFull
from .index import Index
from .table import heap

BODY_BYTES = 8 * 2**20  # the longest request
CONNECTIONS = 256  # more are answered 503
MAX_TEXTS = 2048  # in one request, as OpenAI has it
REQUEST_SECONDS = 60.0
WAITING_SEARCHES = 64
OPEN_PATHS = {("GET", "/"), ("GET", "/health")}  # without the key: they hold nothing of the model or the index
LOCAL_NAMES = {"127.0.0.1", "localhost", "::1"}


class Refused(Exception):
    """A request that is answered with an error; `fields` are added to OpenAI's error object."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None, **fields):
        super().__init__(message)
        self.status, self.headers, self.fields = status, headers or {}, fields


class EmbeddingsRequest(Schema):
    """Body of /v1/embeddings: OpenAI's fields, then ours."""

    input: Any
    model: str
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
    input_type: Literal["query", "document"] = "document"
    truncate: bool = False


class EmbedRequest(Schema):
    """Body of /embed, as of TEI."""

    inputs: Any
    truncate: bool | None = None
    truncation_direction: Literal["right", "Right"] | None = None
    normalize: Literal[True] | None = None  # all vectors have length 1
    prompt_name: Literal["query", "document", "passage", "corpus"] | None = None
    dimensions: int | None = None


class SearchRequest(Schema):
    """Body of /v1/search, as `Index.search` takes it."""

    query: str
    limit: int = Field(10, ge=1, le=100)
    mode: Literal["hybrid", "dense", "bm25"] = "hybrid"
    filter: str | None = None


class Embedder:
    """Embed the texts of requests, in batches, with a `SentenceTransformerEncoder` that requests call `name`.

    Every thread has a copy of it that shares the transformer and all weights: tokenizers serve one thread at a time.
    """

    def __init__(self, encoder, name: str):
        self.name, self.dimensions, self.max_tokens = name, encoder.dimensions, encoder.max_tokens
        self._copies, self._copying = threading.local(), threading.Lock()
        self._original = sharing_copy(encoder)  # stays unused: what another thread reads with cannot be copied
        self._trimmed = 0.0  # seconds
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = 1 if encoder.device.startswith("cuda") else cores
        self.batcher = Batcher(self._encode, threads)
        self._tokenizing = ThreadPoolExecutor(2, "tokenizer")

    @property
    def _own(self):
        if not hasattr(self._copies, "encoder"):
            with self._copying:
                self._copies.encoder = sharing_copy(self._original)
        return self._copies.encoder

    def warm_up(self) -> None:
        """Read texts of many lengths: filters are prepared and memory is taken before the first request."""
        longest = min(self.max_tokens or BATCH_TOKENS, BATCH_TOKENS) - 8  # room for special tokens
        texts = [
            "a " * (longest * part // 2**power) for power in range(3, longest.bit_length() - 2) for part in (8, 6, 5)
        ]
        wait(self.batcher.submit(self._jobs(texts * 2, "", "document", True)[0]))

    async def embed(self, given: Any, name: str, task: str, truncate: bool) -> tuple[list[np.ndarray], int, int]:
        """Return vectors, how many tokens were read, how many texts truncated. Raises ValueError, QueueFull."""
        contents, loop = read_inputs(given, name), asyncio.get_running_loop()
        jobs, cut = await loop.run_in_executor(self._tokenizing, self._jobs, contents, name, task, truncate)
        futures = [asyncio.wrap_future(future) for future in self.batcher.submit(jobs)]
        return await asyncio.gather(*futures), sum(job.tokens for job in jobs), cut

    def _jobs(self, contents: list, name: str, task: str, truncate: bool) -> tuple[list[Job], int]:
        if isinstance(contents[0], str):
            contents, last = self._own.tokenize(contents, task), []
            lengths = [text.tokens for text in contents]
        else:
            task, last, lengths = "ids", self._check_ids(contents, name), list(map(len, contents))
        most = self.max_tokens or max(lengths)
        for place, length in enumerate(lengths):
            if length > most and not truncate:
                fix = "shorten or divide it, or set truncate to true"
                raise ValueError(f"{name}[{place}] has {length} tokens, and {self.name} reads {most}; {fix}")
            if length > most and task == "ids":
                contents[place] = contents[place][: most - len(last)] + last
        jobs = [Job(text, task, min(length, most)) for text, length in zip(contents, lengths, strict=True)]
        return jobs, sum(length > most for length in lengths)

    def _check_ids(self, rows: list[list[int]], name: str) -> list[int]:
        """Refuse ids of other tokenizers, as LangChain sends them by itself. Return those that end every text."""
        tokenizer = self._own.model.tokenizer
        if not hasattr(tokenizer, "pad"):
            raise ValueError(f"{name}: {self.name} reads no token ids; send texts")
        model = tokenizer("a", return_special_tokens_mask=True)
        ids, special = model["input_ids"], model["special_tokens_mask"]
        first, last = ids[: special.index(0)], ids[len(ids) - special[::-1].index(0) :]
        fix = f"send texts, or ids of the tokenizer of {self.name} (LangChain: check_embedding_ctx_length=False)"
        for place, row in enumerate(rows):
            inner = row[len(first) : len(row) - len(last)]
            if not 0 <= min(row) <= max(row) < len(tokenizer):
                raise ValueError(f"{name}[{place}] has an id that is not below {len(tokenizer)}; {fix}")
            if row != [*first, *inner, *last]:
                raise ValueError(f"{name}[{place}] does not begin with the ids {first} and end with {last}; {fix}")
        return last

    def _encode(self, jobs: list[Job]) -> Sequence[np.ndarray]:
        import torch

        contents, model = [job.content for job in jobs], self._own.model
        if jobs[0].kind != "ids":
            rows = self._own.encode(contents, jobs[0].kind)
        else:
            features = model.tokenizer.pad({"input_ids": contents}, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                rows = unit_rows(model({**features, "modality": "text"})["sentence_embedding"].float().cpu().numpy())
        if time.monotonic() > self._trimmed + 1:
            self._trimmed = time.monotonic()
            heap("malloc_trim", 0)  # it keeps what a text took, in pieces the next may not fit in
        if not np.isfinite(rows).all():
            raise FloatingPointError("the vectors are not finite numbers")
        return rows


def sharing_copy(encoder):
    """Return a copy of a `SentenceTransformerEncoder` that shares the transformer and all weights with it."""
    model = encoder.model
    inner = [module for module in model.modules() if hasattr(module, "config_class")]  # of transformers
    return copy.deepcopy(encoder, {id(each): each for each in (*inner, *model.parameters(), *model.buffers())})


def read_inputs(given: Any, name: str) -> list[str] | list[list[int]]:
    """Return the texts of a request, or its lists of token ids. Raises ValueError."""
    items = [given] if isinstance(given, str) else given
    if isinstance(items, list) and items and all(type(item) is int for item in items):
        items = [items]
    if not isinstance(items, list) or not 0 < len(items) <= MAX_TEXTS:
        raise ValueError(f"{name} must be a text, or a list of 1 to {MAX_TEXTS} texts or lists of token ids")
    kind = type(items[0])
    for place, item in enumerate(items):
        if type(item) is not kind or not (kind is str or kind is list and all(type(each) is int for each in item)):
            problem = f"is {one_line(repr(item))[:60]}; send texts only, or lists of token ids only"
            raise ValueError(f"{name}[{place}] {problem}")
        if not (item.strip() if kind is str else item):
            raise ValueError(f"{name}[{place}] is empty; leave it out")
    return items


class Guard:
    """Let requests through to the application: those with the key, of a size and within a time. All are counted.

    Any page that a browser shows can make it send requests to this machine. Without a key a request has to call this
    machine by a name that such a page cannot use.
    """

    def __init__(self, app, metrics: "Metrics", key: str | None):
        self.app, self.metrics = app, metrics
        self._expected = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope, receive, send) -> None:
        """Answer one request, or pass on what is none."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 0

        async def send_noted(message):
            nonlocal status
            status = message.get("status", status)
            await send(message)

        async def receive_again():
            return {"type": "http.request", "body": body.pop()} if body else await receive()

        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                self._check(scope)
                body = [await self._body(Request(scope, receive))]
                await self.app(scope, receive_again, send_noted)
        except (Refused, TimeoutError, ClientDisconnect) as error:
            if isinstance(error, ClientDisconnect):
                error = Refused(400, "the client left before its request was complete")
            if isinstance(error, TimeoutError):
                error = Refused(504, f"not done within {REQUEST_SECONDS:g} s; send fewer or shorter texts")
            if not status:
                await error_response(scope["path"], error)(scope, receive, send_noted)
        finally:
            path = scope["path"] if scope["path"] in self.metrics.paths else "other"
            self.metrics.requests.labels(path, status or 500).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)

    def _check(self, scope) -> None:
        headers = dict(scope["headers"])  # names in lower case
        key = headers.get(b"authorization", b"")
        if self._expected is None:
            if urlsplit("//" + headers.get(b"host", b"").decode("latin-1")).hostname not in LOCAL_NAMES:
                raise Refused(403, "without a key this server answers to localhost and 127.0.0.1; use that name")
        elif not hmac.compare_digest(key, self._expected) and (scope["method"], scope["path"]) not in OPEN_PATHS:
            message = "the key is missing or wrong; send the header Authorization: Bearer KEY"
            raise Refused(401, message, {"www-authenticate": "Bearer"}, code="invalid_api_key")

    async def _body(self, request: Request) -> bytes:
        """Return the body; one that is too long is received to its end, for its client reads no answer before."""
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            chunks = [*chunks, chunk] if size <= BODY_BYTES else []
        if size > BODY_BYTES:
            raise Refused(413, f"the request is longer than {BODY_BYTES} bytes; send fewer texts")
        return b"".join(chunks)


class Metrics:
    """What /metrics shows; see docs/serving.md."""

    def __init__(self):
        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        known: dict = {"registry": self.registry}
        self.requests = prometheus.Counter(
            "m2bert_requests", "Requests by path and status.", ["path", "status"], **known
        )
        self.seconds = prometheus.Histogram("m2bert_request_seconds", "Time to the answer.", ["path"], **known)
        self.truncated = prometheus.Counter("m2bert_truncated_texts", "Texts of which the end was not read.", **known)
        self.queue = prometheus.Gauge("m2bert_queue_tokens", "Tokens that wait.", **known)
        self.paths: set[str] = set()  # that are counted by name


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None):
    """Return a response; pydantic writes numbers ten times faster than json."""
    return Response(to_json(value), status, headers, "application/json")


def error_response(path: str, error: Exception):
    """Return the answer to a request that ended in an error, in the form of the API that its path belongs to."""
    if isinstance(error, QueueFull):
        error = Refused(429, str(error), {"retry-after": str(error.seconds)}, code="queue_full")
    elif hasattr(error, "status_code"):  # starlette's own
        error = Refused(error.status_code, f"{path}: {error.detail}", error.headers)
    elif isinstance(error, ValueError):
        error = Refused(400, one_line(error))
    elif not isinstance(error, Refused):
        error = Refused(500, "an error of the server; its log says more")
    message, kind = str(error), "invalid_request_error" if error.status < 500 else "server_error"
    value: dict = {"error": {"message": message, "type": kind, "param": None, "code": None, **error.fields}}
    if path in ("/", "/embed"):
        value = {"error": message, "error_type": "Validation" if error.status < 429 else "Overloaded"}
    return json_response(value, error.status, error.headers)


async def read_body(request, schema: type[Schema]):
    """Return what a request asks. Raises ValueError."""
    text = (await request.body()).decode()  # else UnicodeDecodeError, which is a ValueError
    return checked(schema, parse_json(text, "the request"), "the request")


def vector_routes(embedder: Embedder, metrics: Metrics) -> list:
    """Return the routes that a model answers."""

    async def embed(asked, given, name, task):
        if asked.dimensions is not None and not 1 <= asked.dimensions <= embedder.dimensions:
            raise ValueError(
                f"dimensions={asked.dimensions}: {embedder.name} has 1 to {embedder.dimensions}; change it"
            )
        vectors, tokens, cut = await embedder.embed(given, name, task, bool(asked.truncate))
        if asked.dimensions is not None:
            vectors = unit_rows(np.stack(vectors)[:, : asked.dimensions])
        metrics.truncated.inc(cut)
        return vectors, tokens, {"x-truncated-texts": str(cut)} if cut else {}

    async def openai(request):
        asked = await read_body(request, EmbeddingsRequest)
        if asked.model != embedder.name:
            message = f"model {one_line(asked.model)[:80]!r} is not served here; name {embedder.name!r}"
            raise Refused(404, message, code="model_not_found", param="model")
        vectors, tokens, headers = await embed(asked, asked.input, "input", asked.input_type)
        packed = asked.encoding_format == "base64"
        rows = [base64.b64encode(each.astype("<f4")).decode() if packed else each.tolist() for each in vectors]
        data = [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(rows)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_response({"object": "list", "data": data, "model": embedder.name, "usage": usage}, headers=headers)

    async def tei(request):
        asked = await read_body(request, EmbedRequest)
        task = "query" if asked.prompt_name == "query" else "document"
        vectors, _, headers = await embed(asked, asked.inputs, "inputs", task)
        return json_response([vector.tolist() for vector in vectors], headers=headers)

    metrics.queue.set_function(lambda: embedder.batcher.waiting_tokens)
    posts = {"/v1/embeddings": openai, "/embed": tei, "/": tei}  # huggingface_hub's client posts to the address itself
    return [Route(path, endpoint, methods=["POST"]) for path, endpoint in posts.items()]


def search_routes(index) -> list:
    """Return the routes that an index answers."""
    executor, waiting = ThreadPoolExecutor(1, "search"), [0]
    html, policy = read_page()
    page_headers = {"content-security-policy": policy, "referrer-policy": "no-referrer", "cache-control": "no-cache"}

    async def in_turn(function, *arguments):
        if waiting[0] >= WAITING_SEARCHES:
            raise Refused(429, "too many searches wait; try again in 1 s", {"retry-after": "1"})
        waiting[0] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)
        finally:
            waiting[0] -= 1

    async def search(request):
        asked, start = await read_body(request, SearchRequest), time.perf_counter()
        hits = await in_turn(index.search, asked.query, asked.limit, asked.mode, asked.filter)
        matches = [[dict(zip(("start", "end", "score"), each, strict=True)) for each in hit.matches] for hit in hits]
        rows = [{**hit._asdict(), "matches": its} for hit, its in zip(hits, matches, strict=True)]
        return json_response({"query": asked.query, "hits": rows, "seconds": time.perf_counter() - start})

    async def document(request):
        id = request.query_params.get("id", "")
        try:
            text = await in_turn(index.document, id)
        except KeyError as error:
            raise Refused(404, f"id={one_line(id)!r} is not in the index") from error
        try:
            start, end = (int(request.query_params.get(*each)) for each in (("start", 0), ("end", len(text))))
        except ValueError as error:
            raise Refused(400, f"start and end must be whole numbers: {one_line(str(request.query_params))}") from error
        return json_response({"id": id, "length": len(text), "text": text[max(start, 0) : max(end, 0)]})

    async def page(request):
        return Response(html, media_type="text/html", headers=page_headers)

    return [Route("/", page), Route("/document", document), Route("/v1/search", search, methods=["POST"])]


def make_app(embedder: Embedder | None, index, metrics: Metrics, key: str | None = None) -> Guard:
    """Return the application, for ASGI servers. What is served is a model, an index, or both."""

    async def health(request):
        return json_response({"status": "ok", "model": embedder and embedder.name, "index": index is not None})

    async def show_metrics(request):
        return Response(prometheus.generate_latest(metrics.registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    routes = [Route("/health", health), Route("/metrics", show_metrics)]
    routes += vector_routes(embedder, metrics) if embedder is not None else []
    routes += search_routes(index) if index is not None else []
    metrics.paths = {route.path for route in routes}
    kinds = Refused, QueueFull, ValueError, HTTPException, Exception
    handlers = dict.fromkeys(kinds, lambda request, error: error_response(request.url.path, error))
    return Guard(Starlette(routes=routes, exception_handlers=handlers), metrics, key)


def read_page() -> tuple[str, str]:
    """Return the page, and a policy by which a browser runs its own script and style and nothing else."""
    html = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    policy = "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
    for tag in ("script", "style"):
        [content] = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        policy += f"; {tag}-src 'sha256-{digest}'"
    return html, f"{policy}; frame-ancestors 'none'"


def serve(path: str | Path, host: str = "127.0.0.1", port: int = 8000, api_key_env: str | None = None) -> None:
    """Serve a model's folder or an index until SIGTERM or SIGINT; requests that came before are answered.

    Args:
        path: a folder with modules.json or a Hub id is a model; any other folder or address is an index.
        host: beyond this machine only with a key.
        port: 0 for one that is free.
        api_key_env: name of the environment variable that holds the key.
    """
    key = None if api_key_env is None else os.environ.get(api_key_env, "").strip()
    if key == "":
        raise ValueError(f"api_key_env={api_key_env}: this variable holds no key; export {api_key_env}=KEY")
    if key is None and host not in LOCAL_NAMES:
        fix = "name the variable that holds a key with --api-key-env NAME, or leave the host out"
        raise ValueError(f"host={host} lets others read what is served, and there is no key; {fix}")
    if not (Path(path).is_dir() or re.fullmatch(r".+://.+|[\w.-]+/[\w.-]+(@\w+)?", str(path))):
        raise ValueError(f"{path} is no folder; name the folder of a model or of an index, or a model's Hub id")
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ValueError(f"host={host} port={port} cannot be used ({error}); choose another with --port") from error
    import torch
    import uvicorn

    torch.set_num_threads(1)  # of every thread: more would fight for the cores with the other threads
    metrics = Metrics()
    embedder, index = _loaded(path)
    limits = {"limit_concurrency": CONNECTIONS, "timeout_keep_alive": 75}
    limits["timeout_graceful_shutdown"] = int(REQUEST_SECONDS)
    config = uvicorn.Config(make_app(embedder, index, metrics, key), log_level="warning", access_log=False, **limits)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    print(f"serving {path} at {address}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def _loaded(path: str | Path) -> tuple:
    """Return the embedder, and the index if one is served. Both read with the same model, loaded once."""
    index, settings = None, ("modules.json", "config.json", "adapter_config.json")
    is_model = any((Path(path) / name).is_file() for name in settings)
    if "://" in str(path) or (Path(path).is_dir() and not is_model):
        index = Index.open(path)
        base = index.encoder.base
    else:
        from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder

        base = SentenceTransformerEncoder(path)
    embedder = Embedder(base, Path(base.name).absolute().name)
    embedder.warm_up()
    return embedder, index
