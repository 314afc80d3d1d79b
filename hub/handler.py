"""Answer requests of an Inference Endpoint: texts in, vectors out. Every folder of an embedding model has this file.

The default container of Hugging Face Inference Endpoints imports it, makes one `EndpointHandler` and calls it for every
request. It needs the folder's requirements.txt and nothing else.

A request; of the parameters, the first value of each is the default:

    {"inputs": "a text" or ["a text", ...],
     "parameters": {"task": "document" | "query", "policy": "truncate" | "chunk-average", "normalize": true | false}}

The answer, every list in the order of the inputs (one text gives lists of one):

    {"embeddings": [[0.1, ...], ...], "task": ..., "policy": ..., "normalized": ..., "dimensions": 768,
     "max_tokens": 32768, "tokens": [n, ...], "truncated": [false, ...], "chunks": [k, ...]}

`tokens` counts a whole text, with the task's prompt and the special tokens. `truncate` reads its first `max_tokens`;
`truncated` says whether any of it was not read. `chunk-average` reads all of it: the text is cut into consecutive
chunks that the model takes whole, and its vector is the mean of their unit vectors (section 5.1 of the paper).
`normalize` scales vectors to length 1; without it `truncate` gives the model's own pooler_output. An empty text gets
the vector of the special tokens, as from sentence-transformers. A text's vector does not depend on its neighbors.

Requests may come from any number of threads. One thread does all the work, piece by piece, and takes the next piece
from the request that is first in line. A request stands as far behind as it is long: a short query waits for the piece
that is being read, and not for the long documents that came before it.

A request that cannot be answered raises ValueError, which the container sends back with status 400. Neither errors nor
logs hold any of the texts.
"""

import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from queue import PriorityQueue

import torch
from sentence_transformers import SentenceTransformer

OPTIONS = {"task": ("document", "query"), "policy": ("truncate", "chunk-average"), "normalize": (True, False)}
MAX_TEXTS = 2048
MAX_CHARS = 4_000_000  # in one request; the tokenizer takes up to 2.5 GiB for so many
BATCH_TOKENS = {"cuda": 32_768, "cpu": 4_096}  # padded tokens that the model reads at once, or one text
PIECE_CHARS = 100_000  # that are tokenized at once, or one text
SECONDS_BEHIND = 0.001  # for every character of a request: shorter ones that come so much later are served before it
MOST_SECONDS_BEHIND = 60.0
SHARE_DROPPED = 16  # a chunk that turns out too long gives up at least this part of its tokens at either end


class EndpointHandler:
    """The model of one folder: on a GPU where there is one, in the folder's dtype.

    A thread of its own runs the model and the tokenizer, which serve one thread at a time. (In the threads that call,
    the memory allocator would keep as much memory for every one of them as the largest request takes.) It starts with
    the first request, which may come after a fork, and ends with the handler.

    Keyword arguments are ignored; other containers may pass some.
    """

    def __init__(self, path: str, **kwargs):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = SentenceTransformer(str(path), device=device, trust_remote_code=True, local_files_only=True)
        if type(self.model[-1]).__name__ == "Normalize":  # done here, where it is asked for
            del self.model[-1]
        self.max_tokens = int(self.model.max_seq_length)
        self.batch_tokens = BATCH_TOKENS[device]
        padding = (self.model[0].processing_kwargs or {}).get("text", {}).get("padding")
        self._pads_to_maximum = padding == "max_length"
        self._jobs: PriorityQueue = PriorityQueue()
        self._lock, self._worker = threading.Lock(), threading.Thread()
        weakref.finalize(self, self._jobs.put, LAST_JOB)

    def __call__(self, body: dict) -> dict:
        """Answer a request; see above. Raises ValueError, also if the model's vectors are not finite."""
        texts, options = read_request(body)
        answer: Future = Future()
        place = time.monotonic() + min(sum(map(len, texts)) * SECONDS_BEHIND, MOST_SECONDS_BEHIND)
        self._jobs.put((place, id(answer), self._answer(texts, **options), answer))
        with self._lock:
            if not self._worker.is_alive():
                self._worker = threading.Thread(target=work, args=(self._jobs,), name="m2bert", daemon=True)
                self._worker.start()
        try:
            return answer.result()
        finally:
            del answer  # of an error, it would keep the texts: error, traceback, this frame, answer, error

    def _answer(self, texts: list[str], task: str, policy: str, normalize: bool) -> Iterator[None]:
        """Yield after every piece of the work; return the answer."""
        prompt = self.model.prompts[task]  # sentence-transformers fills in what the folder lacks
        tokens: list[int] = []
        for piece in _pieces(texts):
            tokens += self._count(piece, prompt)
            yield
        chunks = [[pair] for pair in zip(texts, tokens, strict=True)]
        if policy == "chunk-average":
            for index, [(text, count)] in enumerate(chunks):
                if count > self.max_tokens:
                    chunks[index] = self._cut(text, count, prompt)
                    yield
        vectors = yield from self._embed([chunk for of_text in chunks for chunk in of_text], prompt)
        if policy == "chunk-average":
            units = torch.nn.functional.normalize(vectors).split([len(of_text) for of_text in chunks])
            vectors = torch.stack([rows.mean(0) for rows in units])
        if normalize:
            vectors = torch.nn.functional.normalize(vectors)
        return {
            "embeddings": vectors.tolist(),
            "task": task,
            "policy": policy,
            "normalized": normalize,
            "dimensions": vectors.shape[1],
            "max_tokens": self.max_tokens,
            "tokens": tokens,
            "truncated": [any(count > self.max_tokens for _, count in of_text) for of_text in chunks],
            "chunks": [len(of_text) for of_text in chunks],
        }

    def _embed(self, texts: list[tuple[str, int]], prompt: str) -> Iterator[None]:
        """Return vectors (n, dimensions) of texts with their token counts, in float32, and yield after every batch.
        Batches hold texts of like lengths."""
        lengths = [self.max_tokens if self._pads_to_maximum else min(count, self.max_tokens) for _, count in texts]
        order = sorted(range(len(texts)), key=lambda i: -lengths[i])
        rows: list = [None] * len(texts)
        while order:
            longest = max(lengths[order[0]], 1)
            # No text is padded to over twice its length: one long document does not make short ones long.
            batch = [i for i in order[: max(self.batch_tokens // longest, 1)] if 2 * lengths[i] >= longest]
            order = order[len(batch) :]
            its_texts = [texts[i][0] for i in batch]
            vectors = self.model.encode(
                its_texts, prompt=prompt, batch_size=len(batch), convert_to_tensor=True, show_progress_bar=False
            )
            for i, row in zip(batch, vectors.float().cpu(), strict=True):
                rows[i] = row
            yield
        vectors = torch.stack(rows)
        if not vectors.isfinite().all():
            raise ValueError("the model's vectors are not finite numbers; check its weights, or use a wider dtype")
        return vectors

    def _count(self, texts: list[str], prompt: str) -> list[int]:
        """Count the tokens of each text before truncation, prompt and special tokens included."""
        options = {"truncation": False, "return_attention_mask": False, "return_token_type_ids": False}
        rows = self.model.tokenizer([prompt + text for text in texts], verbose=False, **options)["input_ids"]
        return [len(ids) for ids in rows]

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Return the characters [start, end) of every token of the text."""
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "truncation": False}
        return self.model.tokenizer(text, verbose=False, **options)["offset_mapping"]

    def _cut(self, text: str, count: int, prompt: str) -> list[tuple[str, int]]:
        """Cut a text into consecutive chunks that the model takes whole. Return each with its count of tokens."""
        room = self.max_tokens - self._count([""], prompt)[0]
        if room < 1:
            raise ValueError(f"chunk-average: the prompt fills max_tokens={self.max_tokens}; shorten it in the folder")
        spans = self._spans(text)
        ends = [(start, min(start + room, len(spans)) - 1) for start in range(0, len(spans), room)]
        return self._fit([text[spans[first][0] : spans[last][1]] for first, last in ends], prompt)

    def _fit(self, chunks: list[str], prompt: str) -> list[tuple[str, int]]:
        """Return the chunks with their counts. One that is too long becomes two that overlap and together hold all of
        it.

        A chunk that begins or ends inside a word is tokenized otherwise than inside its text, and may grow by a token
        or two. One that does not get shorter in this way (few characters, of several tokens each) stays.
        """
        fitting: list = []
        for chunk, count in zip(chunks, self._count(chunks, prompt), strict=True):
            parts = [chunk]
            if count > self.max_tokens:
                spans = self._spans(chunk)
                dropped = min(max(count - self.max_tokens, len(spans) // SHARE_DROPPED, 1), len(spans) // 2)
                parts = [chunk[: spans[-dropped - 1][1]], chunk[spans[dropped][0] :]]
            fitting += [(chunk, count)] if chunk in parts else self._fit(parts, prompt)
        return fitting


LAST_JOB = (float("inf"), 0, None, None)


def work(jobs: PriorityQueue):
    """Run jobs until LAST_JOB, each time the next piece of the one that is first in line. A job: its place in line, a
    number that no other has, an iterator over its pieces, the future of its answer."""
    while True:
        place, number, pieces, answer = jobs.get()
        if pieces is None:
            return
        try:
            next(pieces)
            jobs.put((place, number, pieces, answer))
        except StopIteration as done:
            answer.set_result(done.value)
        except BaseException as error:
            answer.set_exception(error)
        del pieces, answer  # while this thread waits, it keeps neither texts nor the handler


def read_request(body: dict) -> tuple[list[str], dict]:
    """Return the texts of a request and all its options. Raise ValueError if something is not as described above."""
    parameters = body.get("parameters", {}) if isinstance(body, dict) else {}
    for place, found, known in (("body", body, ("inputs", "parameters")), ("parameters", parameters, OPTIONS)):
        if not isinstance(found, dict):
            raise ValueError(f"{place} is {_kind(found)}; send a JSON object")
        if unknown := [name for name in found if name not in known]:
            raise ValueError(f"{place} has {_shown(unknown[0])}; choose from: {', '.join(known)}")
    for name, value in parameters.items():
        if not any(type(value) is type(valid) and value == valid for valid in OPTIONS[name]):
            valid = ", ".join(map(str, OPTIONS[name])).lower()
            raise ValueError(f"parameters: {name}={_shown(value)} is unknown; choose from: {valid}")
    inputs = body.get("inputs")
    texts = inputs if isinstance(inputs, list) else [inputs]
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            place = f"inputs[{index}]" if texts is inputs else "inputs"
            raise ValueError(f"{place} is {_kind(text)}; send a text or a list of texts")
    chars = sum(map(len, texts))
    if not 1 <= len(texts) <= MAX_TEXTS or chars > MAX_CHARS:
        limits = f"1 to {MAX_TEXTS} texts, at most {MAX_CHARS} characters together"
        raise ValueError(f"inputs holds {len(texts)} texts of {chars} characters; send {limits}")
    for index, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"inputs[{index}] holds half of a surrogate pair; send valid Unicode") from None
    return texts, {name: parameters.get(name, valid[0]) for name, valid in OPTIONS.items()}


def _pieces(texts: list[str]) -> Iterator[list[str]]:
    """Yield the texts in order, so many together as have PIECE_CHARS, or one."""
    piece: list[str] = []
    for text in texts:
        if piece and sum(map(len, piece)) + len(text) > PIECE_CHARS:
            yield piece
            piece = []
        piece.append(text)
    yield piece


def _kind(value) -> str:
    return "missing or null" if value is None else f"of type {type(value).__name__}"


def _shown(value) -> str:
    """Return a value for a message, in ASCII: what cannot be encoded would break the answer."""
    shown = ascii(value)
    return shown if len(shown) <= 40 else shown[:40] + "..."
