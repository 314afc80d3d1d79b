"""Serve a model or an index: vectors as clients of OpenAI and of TEI ask for them, search, and a page.

`make_app` is the application, `serve` the process around it. Requests wait in a `Batcher`; searches in one thread.
"""

import asyncio
import base64
import copy
import hashlib
import hmac
import ipaddress
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field

from m2bert.files import parse_json
from m2bert.schema import Schema, checked
from m2bert.terminal import one_line

from .batching import Batcher, Job, QueueFull

logger = logging.getLogger(__name__)

BODY_BYTES = 8 * 2**20  # the longest request
DRAINED_BYTES = 8 * BODY_BYTES  # of a longer one that are read and dropped, so that its client reads the answer
HELD_BYTES = 8 * BODY_BYTES  # of all requests together
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
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    input_type: Literal["query", "document"] = "document"
    truncate: bool = False


class EmbedRequest(Schema):
    """Body of /embed, as of TEI."""

    inputs: Any
    truncate: bool = False
    truncation_direction: str = "right"
    normalize: bool = True
    prompt_name: Literal["query", "document", "passage", "corpus"] | None = None
    dimensions: int | None = None


class SearchRequest(Schema):
    """Body of /v1/search."""

    query: str
    limit: int = Field(10, ge=1, le=100)
    mode: Literal["hybrid", "dense", "bm25"] = "hybrid"
    filter: str | None = None


class Embedder:
    """Embed the texts of requests, in batches.

    Args:
        encoder: a `SentenceTransformerEncoder`. Every thread has a copy that shares its weights only, since tokenizers
            serve one thread at a time.
        name: what requests call the model.
        on_batch: called with the number of tokens of every batch.
    """

    def __init__(self, encoder, name: str, on_batch: Callable[[int], None] = lambda tokens: None):
        self.name, self.dimensions, self.max_tokens = name, encoder.dimensions, encoder.max_tokens
        self._encoder, self._copies, self._copying = encoder, threading.local(), threading.Lock()
        cores = 1 if encoder.device.startswith("cuda") else len(os.sched_getaffinity(0))
        self.batcher = Batcher(self._encode, cores, on_batch)
        self._tokenizers = ThreadPoolExecutor(2, "tokenizer")

    def close(self) -> None:
        """End after everything that waits."""
        self._tokenizers.shutdown()
        self.batcher.close()

    @property
    def _own(self):
        if not hasattr(self._copies, "encoder"):
            with self._copying:
                model = self._encoder.model
                shared = {id(each): each for each in (*model.parameters(), *model.buffers())}
                self._copies.encoder = copy.deepcopy(self._encoder, shared)
        return self._copies.encoder

    async def embed(self, given: Any, name: str, task: str, truncate: bool) -> tuple[list[np.ndarray], int, int]:
        """Return vectors, the number of tokens read, and how many texts were truncated.

        Raises ValueError, naming the field as `name`, or QueueFull.
        """
        contents = read_inputs(given, name)
        loop = asyncio.get_running_loop()
        jobs, cut = await loop.run_in_executor(self._tokenizers, self._jobs, contents, name, task, truncate)
        futures = [asyncio.wrap_future(future) for future in self.batcher.submit(jobs)]
        return await asyncio.gather(*futures), sum(job.tokens for job in jobs), cut

    def _jobs(self, contents: list, name: str, task: str, truncate: bool) -> tuple[list[Job], int]:
        if isinstance(contents[0], str):
            contents = self._own.tokenize(contents, task)
            lengths = [text.tokens for text in contents]
        else:
            task = "ids"
            first, last = self._special_ids()
            for place, ids in enumerate(contents):
                self._check_ids(ids, first, last, f"{name}[{place}]")
            lengths = [len(ids) for ids in contents]
        most, cut = self.max_tokens or max(lengths), 0
        for place, length in enumerate(lengths):
            if length > most:
                if not truncate:
                    fix = "shorten or divide it, or set truncate to true"
                    raise ValueError(f"{name}[{place}] has {length} tokens, and {self.name} reads {most}; {fix}")
                cut += 1
                if task == "ids":
                    contents[place] = contents[place][: most - len(last)] + last
        jobs = [Job(text, task, min(length, most)) for text, length in zip(contents, lengths, strict=True)]
        return jobs, cut

    def _special_ids(self) -> tuple[list[int], list[int]]:
        """Return what the tokenizer puts before and after every text."""
        tokenizer = self._own.model.tokenizer
        if not hasattr(tokenizer, "pad"):
            raise ValueError(f"{self.name} reads no token ids; send texts")
        row = tokenizer("a", return_special_tokens_mask=True)
        ids, special = row["input_ids"], row["special_tokens_mask"]
        start, end = special.index(0), len(special) - special[::-1].index(0)
        return ids[:start], ids[end:]

    def _check_ids(self, ids: list[int], first: list[int], last: list[int], name: str) -> None:
        """Refuse ids of another tokenizer, such as those that LangChain sends unless it is told not to."""
        size = len(self._own.model.tokenizer)
        fix = f"send texts, or ids of the tokenizer of {self.name} (LangChain: check_embedding_ctx_length=False)"
        if not 0 <= min(ids) <= max(ids) < size:
            raise ValueError(f"{name} has token id {max(ids)}, and {self.name} has {size}; {fix}")
        if len(ids) < len(first + last) or ids[: len(first)] != first or ids[len(ids) - len(last) :] != last:
            raise ValueError(f"{name} does not begin with the ids {first} and end with {last}; {fix}")

    def _encode(self, jobs: list[Job]) -> Sequence[np.ndarray]:
        import torch

        from m2bert.eval.encoders.protocol import unit_rows

        contents, model = [job.content for job in jobs], self._own.model
        if jobs[0].kind != "ids":
            rows = self._own.encode(contents, jobs[0].kind)
        else:
            features = model.tokenizer.pad({"input_ids": contents}, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                outputs = model({**features, "modality": "text"})
                rows = unit_rows(outputs["sentence_embedding"].float().cpu().numpy())
        if not np.isfinite(rows).all():
            raise FloatingPointError("the vectors are not finite numbers")
        return rows


def read_inputs(given: Any, name: str) -> list[str] | list[list[int]]:
    """Return the texts of a request, or its lists of token ids. Raises ValueError."""
    items = [given] if isinstance(given, str) else given
    if isinstance(items, list) and items and all(type(item) is int for item in items):
        items = [items]
    if not isinstance(items, list) or not items or len(items) > MAX_TEXTS:
        raise ValueError(f"{name} must be a text, or a list of 1 to {MAX_TEXTS} texts or lists of token ids")
    texts = isinstance(items[0], str)
    for place, item in enumerate(items):
        if not isinstance(item, str if texts else list) or not (texts or all(type(each) is int for each in item)):
            raise ValueError(
                f"{name}[{place}] is {one_line(repr(item))[:60]}; send texts only, or lists of token ids only"
            )
        if not (item.strip() if texts else item):
            raise ValueError(f"{name}[{place}] is empty; leave it out")
    return items


class Guard:
    """Let requests through to the application: those with the key, of a size and within a time. All are counted.

    A browser can be led to send requests here by any page that it shows. Without a key a request has to name this
    machine as its host, which such a page cannot arrange.
    """

    def __init__(self, app, metrics: "Metrics", key: str | None):
        self.app, self.metrics = app, metrics
        self._expected = None if key is None else f"Bearer {key}".encode()
        self._held_bytes = 0

    async def __call__(self, scope, receive, send) -> None:
        """Answer one request, or pass on what is none."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status, held = time.perf_counter(), 0, [0]

        async def send_noted(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                self._check(scope)
                body = await self._body(scope, receive, held)
                await self.app(scope, _replayed(body, receive), send_noted)
        except (Refused, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                error = Refused(504, f"not done within {REQUEST_SECONDS:.0f} s; send fewer or shorter texts")
            if not status:
                await error_response(scope["path"], error)(scope, receive, send_noted)
        finally:
            self._held_bytes -= held[0]
            self.metrics.request(scope, status or 500, time.perf_counter() - start)

    def _check(self, scope) -> None:
        headers = dict(scope["headers"])  # names in lower case
        if self._expected is None:
            if urlsplit("//" + headers.get(b"host", b"").decode("latin-1")).hostname not in LOCAL_NAMES:
                raise Refused(403, "without a key this server answers to localhost and 127.0.0.1; use that name")
        elif (scope["method"], scope["path"]) in OPEN_PATHS:
            pass
        elif not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            message = "the key is missing or wrong; send the header Authorization: Bearer KEY"
            raise Refused(401, message, {"www-authenticate": "Bearer"}, code="invalid_api_key")

    async def _body(self, scope, receive, held: list[int]) -> bytes:
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the client left before its request was complete")
            chunk, more = message.get("body", b""), message.get("more_body", False)
            size += len(chunk)
            if size <= BODY_BYTES:
                chunks.append(chunk)
                held[0] += len(chunk)
                self._held_bytes += len(chunk)
                if self._held_bytes > HELD_BYTES:
                    raise Refused(429, "too many requests at once; try again in 1 s", {"retry-after": "1"})
            elif size > DRAINED_BYTES:
                break
        if size > BODY_BYTES:
            raise Refused(413, f"the request is longer than {BODY_BYTES} bytes; send fewer texts")
        return b"".join(chunks)


def _replayed(body: bytes, receive):
    """Return a `receive` that gives the body first."""
    first = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay():
        return first.pop() if first else await receive()

    return replay


class Metrics:
    """What /metrics shows; see docs/serving.md."""

    def __init__(self):
        from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        seconds = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
        tokens = [2**power for power in range(4, 17)]
        known = {"registry": self.registry}
        self.requests = Counter("m2bert_requests", "Requests by path and status.", ["path", "status"], **known)
        self.seconds = Histogram("m2bert_request_seconds", "Time to the answer.", ["path"], buckets=seconds, **known)
        self.batch_tokens = Histogram("m2bert_batch_tokens", "Tokens of a batch.", buckets=tokens, **known)
        self.truncated = Counter("m2bert_truncated_texts", "Texts of which a part was not read.", **known)
        self.paths: set[str] = set()

    def watch(self, batcher: Batcher) -> None:
        """Show how many tokens wait."""
        from prometheus_client import Gauge

        gauge = Gauge("m2bert_queue_tokens", "Tokens that wait.", registry=self.registry)
        gauge.set_function(lambda: batcher.waiting_tokens)

    def request(self, scope, status: int, seconds: float) -> None:
        """Count a request. Paths that nobody serves are one."""
        path = scope["path"] if scope["path"] in self.paths else "other"
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None):
    """Return a response; pydantic writes floats ten times faster than json."""
    from pydantic_core import to_json
    from starlette.responses import Response

    return Response(to_json(value), status, headers, "application/json")


def error_response(path: str, error: Refused):
    """Return an error in the form of the API that the path belongs to."""
    message, kind = str(error), "invalid_request_error" if error.status < 500 else "server_error"
    value: dict = {"error": {"message": message, "type": kind, "param": None, "code": None, **error.fields}}
    if path in ("/", "/embed"):
        value = {"error": message, "error_type": "Validation" if error.status < 429 else "Overloaded"}
    return json_response(value, error.status, error.headers)


def make_app(embedder: Embedder | None, index, metrics: Metrics, key: str | None = None) -> Guard:
    """Return the application, for ASGI servers. What is served is a model, an index, or both."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import Response
    from starlette.routing import Route

    searcher, searches = ThreadPoolExecutor(1, "search", _one_thread), [0]

    async def body(request, schema: type[Schema]):
        try:
            text = (await request.body()).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"the request is not UTF-8 ({error})") from error
        return checked(schema, parse_json(text, "the request"), "the request")

    async def embed(given, name, task, asked):
        if embedder is None:
            raise Refused(404, "an index without its model is served here; m2bert serve MODEL embeds")
        if asked.dimensions not in (None, embedder.dimensions):
            reason = f"vectors of {embedder.name} have {embedder.dimensions} numbers, and a part of them means nothing"
            raise ValueError(f"dimensions={asked.dimensions}: {reason}; leave it out")
        vectors, tokens, cut = await embedder.embed(given, name, task, asked.truncate)
        metrics.truncated.inc(cut)
        return vectors, tokens, {"x-truncated-texts": str(cut)} if cut else {}

    async def embeddings(request):
        asked = await body(request, EmbeddingsRequest)
        if embedder is not None and asked.model != embedder.name:
            message = f"model {one_line(asked.model)[:80]!r} is not served here; name {embedder.name!r}"
            raise Refused(404, message, code="model_not_found", param="model")
        vectors, tokens, headers = await embed(asked.input, "input", asked.input_type, asked)
        if asked.encoding_format == "base64":
            rows = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
        else:
            rows = [vector.tolist() for vector in vectors]
        data = [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(rows)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "data": data, "model": embedder.name, "usage": usage}
        return json_response(answer, headers=headers)

    async def embed_as_tei(request):
        asked = await body(request, EmbedRequest)
        if not asked.normalize:
            raise ValueError("normalize=false: the vectors of this server have length 1; leave it out")
        if asked.truncation_direction.lower() != "right":
            raise ValueError(f"truncation_direction={asked.truncation_direction!r}: the end is cut; say right")
        task = "query" if asked.prompt_name == "query" else "document"
        vectors, _, headers = await embed(asked.inputs, "inputs", task, asked)
        return json_response([vector.tolist() for vector in vectors], headers=headers)

    async def in_search_thread(function, *arguments):
        if index is None:
            raise Refused(404, "a model is served here; m2bert serve INDEX searches")
        if searches[0] >= WAITING_SEARCHES:
            raise Refused(429, "too many searches wait; try again in 1 s", {"retry-after": "1"})
        searches[0] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(searcher, function, *arguments)
        finally:
            searches[0] -= 1

    async def search(request):
        if request.method == "POST":
            asked = await body(request, SearchRequest)
        else:
            given: dict = dict(request.query_params)
            if given.get("limit", "").isdecimal():
                given["limit"] = int(given["limit"])
            asked = checked(SearchRequest, given, "the request")
        start = time.perf_counter()
        hits = await in_search_thread(index and index.search, asked.query, asked.limit, asked.mode, asked.filter)
        rows = [hit._asdict() for hit in hits]
        for row in rows:
            row["matches"] = [{"start": start, "end": end, "score": score} for start, end, score in row["matches"]]
        return json_response({"query": asked.query, "hits": rows, "seconds": time.perf_counter() - start})

    async def document(request):
        id = request.query_params.get("id", "")
        try:
            text = await in_search_thread(index and index.document, id)
        except KeyError as error:
            raise Refused(404, f"id={one_line(id)!r} is not in the index") from error
        start, end = (request.query_params.get(name, number) for name, number in (("start", "0"), ("end", len(text))))
        if not (str(start).isdecimal() and str(end).isdecimal()):
            raise ValueError(f"start={start!r} and end={end!r} must be numbers of characters")
        part = text[int(start) : int(end)]
        return json_response({"id": id, "start": int(start), "length": len(text), "text": part})

    async def health(request):
        return json_response({"status": "ok", "model": embedder and embedder.name, "index": index is not None})

    async def show_metrics(request):
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def page(request):
        if index is None:
            raise Refused(404, "a model is served here; m2bert serve INDEX has a page")
        html, policy = read_page()
        return Response(html, media_type="text/html", headers={"content-security-policy": policy, **PAGE_HEADERS})

    async def refuse(request, error):
        if isinstance(error, QueueFull):
            error = Refused(429, str(error), {"retry-after": str(error.seconds)}, code="queue_full")
        elif isinstance(error, HTTPException):
            error = Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}", error.headers)
        elif isinstance(error, ValueError):
            error = Refused(400, one_line(error))
        elif not isinstance(error, Refused):
            error = Refused(500, "an error of the server; its log says more")
        return error_response(request.url.path, error)

    routes = [
        Route("/", page, methods=["GET"]),
        Route("/", embed_as_tei, methods=["POST"]),  # where huggingface_hub's client posts
        Route("/embed", embed_as_tei, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/search", search, methods=["GET", "POST"]),
        Route("/document", document, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/metrics", show_metrics, methods=["GET"]),
    ]
    if embedder is not None:
        metrics.watch(embedder.batcher)
    metrics.paths = {route.path for route in routes}
    handlers = dict.fromkeys((Refused, QueueFull, ValueError, HTTPException, Exception), refuse)
    return Guard(Starlette(routes=routes, exception_handlers=handlers), metrics, key)


PAGE_HEADERS = {"referrer-policy": "no-referrer", "x-content-type-options": "nosniff", "cache-control": "no-cache"}


def read_page() -> tuple[str, str]:
    """Return the page, and a policy by which a browser runs its own script and style and nothing else."""
    html = files("m2bert.search").joinpath("page.html").read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        [content] = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        hashes[tag] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    allowed = "; ".join(f"{tag}-src 'sha256-{value}'" for tag, value in hashes.items())
    others = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return html, f"default-src 'none'; {allowed}; connect-src 'self'; img-src data:; {others}"


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def serve(path: str | Path, host: str = "127.0.0.1", port: int = 8000, api_key_env: str | None = None) -> None:
    """Serve a model's folder or an index until SIGTERM or SIGINT; requests that came before are answered.

    Args:
        path: a folder with modules.json is a model; any other is an index.
        host: beyond this machine only with a key.
        port: 0 for one that is free.
        api_key_env: name of the environment variable that holds the key.

    Raises:
        ValueError: what is given cannot be served.
    """
    key = None
    if api_key_env is not None:
        key = os.environ.get(api_key_env, "")
        if not key.strip() or not key.isascii():
            raise ValueError(f"api_key_env={api_key_env}: that variable holds no key; export {api_key_env}=KEY")
    if key is None and not _is_loopback(host):
        fix = "name the variable that holds a key with --api-key-env NAME, or leave the host out"
        raise ValueError(f"host={host} lets others read what is served, and there is no key; {fix}")
    if "://" not in str(path) and not Path(path).is_dir():
        raise ValueError(f"{path} is no folder; name the folder of a model or of an index")
    listener = _bound(host, port)
    import uvicorn

    metrics = Metrics()
    _one_thread()
    embedder, index = _loaded(path, metrics)
    app = make_app(embedder, index, metrics, key)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(REQUEST_SECONDS),
    )
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    print(f"serving {path} at {address}", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        if embedder is not None:
            embedder.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        raise ValueError(f"host={host} port={port} cannot be used ({error}); choose another with --port") from error
    return listener


def _loaded(path: str | Path, metrics: Metrics):
    """Return the embedder and the index of what is served."""
    from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder

    index = None
    if (Path(path) / "modules.json").is_file():
        encoder = SentenceTransformerEncoder(path)
    else:
        from .index import Index

        index = Index.open(path)
        encoder = SentenceTransformerEncoder(index.encoder.name)
    return Embedder(encoder, Path(encoder.name).absolute().name, metrics.batch_tokens.observe), index
