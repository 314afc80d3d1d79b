"""Answer requests of an Inference Endpoint: texts in, vectors out. Every folder of an embedding model has this file.

The default container of Hugging Face Inference Endpoints imports it, makes one `EndpointHandler` and calls it for every
request. It needs the folder's requirements.txt and nothing else.

A request holds `inputs`: a text, a list of texts, or {"source_sentence": a text, "sentences": [texts]}. Options stand
beside it, as the Hub's clients send them, or in an object `parameters`. Null is the default, which comes first here:

    task                  "document", "query", ...: the prompt before each text; `prompt_name` is the same option
    policy                "truncate": the first `max_tokens` tokens of a text
                          "chunk-average": all of it, in consecutive chunks that the model takes whole; the mean of
                          their unit vectors (section 5.1 of the paper)
                          "late-chunk": read as by "truncate", pooled in up to 16 equal parts of 32 tokens or more
                          "late-chunk:document=1": the unit vectors of these parts, each plus that of the whole
    normalize             true, false: vectors of length 1, or the model's own pooler_output (a mean or a sum as it is)
    dimensions            how many numbers of a vector are kept, the first ones; then it is normalized
    truncate              true, false: false refuses a text that would be cut
    truncation_direction  "right", "left": the side of a text, with its prompt, that is cut
    details               false, true: an object with the answer and what was done

The answer has an entry for each text, in order (one text gives a list of one): a vector; with late chunks a list of
vectors; for `sentences` the cosine with `source_sentence`. With details it is

    {"embeddings" or "similarities": [...], "task": ..., "policy": ..., "normalized": ..., "dimensions": 768,
     "max_tokens": 32768, "tokens": [n, ...], "truncated": [false, ...], "chunks": [k, ...], "spans": [[[0, 9], ...]]}

`tokens` counts a whole text, with the prompt and the special tokens. `truncated` says whether any of it was not read.
`chunks` is how many pieces of it the model read. `spans`, of late chunks alone, are the characters [start, end) of the
parts. An empty text gets the vector of the special tokens. A text's vector does not depend on its neighbors.

One request runs at a time, in a thread of its own: the tokenizer serves one thread, and allocators keep memory for each
thread that computes.

A request that cannot be answered raises ValueError, which the container sends back with status 400. Neither errors nor
logs hold any of the texts.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

LATE = "late-chunk", "late-chunk:document=1"
POLICIES = "truncate", "chunk-average", *LATE
MOST_PARTS, FEWEST_TOKENS = 16, 32  # of late-chunk: parts of a text, tokens of a part unless the text is shorter
MAX_TEXTS = 2048
MAX_CHARS = 4_000_000  # in one request; the tokenizer takes up to 2.5 GiB for so many
BATCH_TOKENS = {"cuda": 32_768, "cpu": 4_096}  # padded tokens that the model reads at once, or one text
SHARE_DROPPED = 16  # a chunk that turns out too long gives up at least this part of its tokens at either end


class EndpointHandler:
    """The model of one folder: on a GPU where there is one, in the folder's dtype. Keyword arguments are ignored."""

    def __init__(self, path: str, **kwargs):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = SentenceTransformer(str(path), device=device, trust_remote_code=True, local_files_only=True)
        if type(self.model[-1]).__name__ == "Normalize":  # done here, where it is asked for
            del self.model[-1]
        self.max_tokens = int(self.model.max_seq_length)
        self.batch_tokens = BATCH_TOKENS[device]
        settings = self.model[0].processing_kwargs or {}
        self._pads_to_maximum = settings.get("text", {}).get("padding") == "max_length"
        self._thread = ThreadPoolExecutor(1)
        config, side = self.model[0].model.config, self.model.tokenizer.truncation_side
        self.options = {  # the values of each, the default first
            "task": ("document", *(name for name in self.model.prompts if name != "document")),
            "policy": POLICIES[:2] if config.pooling.startswith("cls") else POLICIES,  # only the first part has a cls
            "normalize": (True, False),
            "dimensions": range(config.projection_dim, 0, -1),
            "truncate": (True, False),
            "truncation_direction": (side, "left" if side == "right" else "right"),
            "details": (False, True),
        }

    def __call__(self, body: dict) -> list | dict:
        """Answer a request; see above. Raises ValueError, also if the model's vectors are not finite."""
        texts, options = read_request(body, self.options)
        return self._thread.submit(self._answer, texts, options).result()

    def _answer(self, texts: dict[str, str], options: dict) -> list | dict:
        """Return the answer for texts, which are named by their places in the request."""
        prompt = self.model.prompts[options["task"]] or ""  # sentence-transformers fills in what the folder lacks
        tokens = self._count(list(texts.values()), prompt)
        chunks = [[pair] for pair in zip(texts.values(), tokens, strict=True)]
        for index, (place, [(text, count)]) in enumerate(zip(texts, chunks, strict=True)):
            if count > self.max_tokens and options["policy"] == "chunk-average":
                chunks[index] = self._cut(text, count, prompt)
            elif count > self.max_tokens and not options["truncate"]:
                fix = 'shorten it, or send "truncate": true or "policy": "chunk-average"'
                raise ValueError(f"{place} has {count} tokens, and max_tokens={self.max_tokens}; {fix}")
        vectors, spans = self._embed([chunk for of_text in chunks for chunk in of_text], prompt, options)
        if options["policy"] == "chunk-average":
            units = normalize(torch.cat(vectors)).split([len(of_text) for of_text in chunks])
            vectors = [rows.mean(0, keepdim=True) for rows in units]
        compares = "source_sentence" in texts
        options["normalize"] |= compares
        answer = _listed(vectors, options, compares)
        details = {
            "similarities" if compares else "embeddings": answer,
            "task": options["task"],
            "policy": options["policy"],
            "normalized": options["normalize"],
            "dimensions": options["dimensions"],
            "max_tokens": self.max_tokens,
            "tokens": tokens,
            "truncated": [any(count > self.max_tokens for _, count in of_text) for of_text in chunks],
            "chunks": [len(of_text) for of_text in chunks],
        }
        if options["policy"] in LATE:
            details["spans"] = spans
        return details if options["details"] else answer

    def _embed(self, texts: list[tuple[str, int]], prompt: str, options: dict) -> tuple[list, list]:
        """Return vectors (n, d) in float32 of each text, given with its tokens, and the spans of its parts, or None.
        Batches hold texts of like lengths."""
        lengths = [self.max_tokens if self._pads_to_maximum else min(count, self.max_tokens) for _, count in texts]
        order = sorted(range(len(texts)), key=lambda i: -lengths[i])
        vectors, spans = [None] * len(texts), [None] * len(texts)
        self.model.tokenizer.truncation_side = options["truncation_direction"]
        while order:
            longest = max(lengths[order[0]], 1)
            # No text is padded to over twice its length: one long document does not make short ones long.
            batch = [i for i in order[: max(self.batch_tokens // longest, 1)] if 2 * lengths[i] >= longest]
            order = order[len(batch) :]
            chosen = [texts[i][0] for i in batch]
            if options["policy"] in LATE:
                found = self._encode_parts(chosen, prompt, options["policy"] == LATE[1])
            else:
                found = self._encode(chosen, prompt)
            for i, rows, places in zip(batch, *found, strict=True):
                vectors[i], spans[i] = rows.float().cpu(), places
        if not all(rows.isfinite().all() for rows in vectors):
            raise ValueError("the model's vectors are not finite numbers; check its weights, or use a wider dtype")
        return vectors, spans

    def _encode(self, texts: list[str], prompt: str) -> tuple[Sequence[torch.Tensor], list]:
        """Return the vector (1, d) of each text, and no spans."""
        options = {"batch_size": len(texts), "convert_to_tensor": True, "show_progress_bar": False}
        return self.model.encode(texts, prompt=prompt, **options).split(1), [None] * len(texts)

    @torch.inference_mode()
    def _encode_parts(self, texts: list[str], prompt: str, add_whole: bool) -> tuple[Sequence[torch.Tensor], list]:
        """Return the vectors (n, d) of the parts of each text, which the model reads once, and their characters.

        Special tokens belong to the first and the last part, a prompt to the first. `add_whole` makes unit vectors of
        them, and adds that of the whole text.
        """
        options = {"padding": "max_length" if self._pads_to_maximum else True, "max_length": self.max_tokens}
        options |= {"truncation": True, "return_offsets_mapping": True, "return_tensors": "pt"}
        inputs = self.model.tokenizer([prompt + text for text in texts], **options).to(self.model.device)
        places = (inputs.pop("offset_mapping") - len(prompt)).clamp(min=0)
        model, vectors, spans = self.model[0].model, [], []
        states = model(**inputs).last_hidden_state
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            total = int(mask.sum())
            count = min(max(total // FEWEST_TOKENS, 1), MOST_PARTS)
            sizes = (torch.arange(total) * count // total).bincount().tolist()
            columns = (states[row], mask, inputs["input_ids"][row])
            parts = [pad_sequence(column[mask].split(sizes), batch_first=True) for column in columns]
            rows = model.pooler(*parts).float()
            if add_whole:
                whole = model.pooler(*(column[mask][None] for column in columns)).float()
                rows = normalize(rows) + normalize(whole)
            vectors.append(rows)
            spans.append([_span(part) for part in places[row][mask].split(sizes)])
        return vectors, spans

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


def read_request(body: dict, options: dict) -> tuple[dict[str, str], dict]:
    """Return the texts of a request, named by their places in it, and the value of each option. Raise ValueError if
    something is not as described above. `options` holds the values that each may have, the default first."""
    parameters = body.get("parameters") if isinstance(body, dict) else None
    for place, part in (("body", body), ("parameters", {} if parameters is None else parameters)):
        if not isinstance(part, dict):
            raise ValueError(f"{place} is of type {type(part).__name__}; send a JSON object")
    root = {name: value for name, value in body.items() if name not in ("inputs", "parameters")}
    given: dict = {}
    for name, value in [*root.items(), *(parameters or {}).items()]:
        option = "task" if name == "prompt_name" else name
        if option not in options:
            raise ValueError(f"{_shown(name)} is no option; choose from: {', '.join(options)}, prompt_name")
        values = options[option]
        if value is not None and (type(value) is not type(values[0]) or value not in values):
            known = f"1 to {values[0]}" if isinstance(values, range) else json.dumps(values)[1:-1]
            raise ValueError(f"{name}={_shown(value)} is unknown; choose from: {known}")
        if value is not None and given.setdefault(option, value) != value:
            raise ValueError(f"{option} is both {_shown(given[option])} and {_shown(value)}; send it once")
    texts = _read_texts(body.get("inputs"))
    if "source_sentence" in texts and given.get("policy") in LATE:
        fix = 'choose from: "truncate", "chunk-average"'
        raise ValueError(f"policy={_shown(given['policy'])} compares no sentences; {fix}")
    return texts, {name: given.get(name, values[0]) for name, values in options.items()}


def _read_texts(inputs) -> dict[str, str]:
    """Return the texts of `inputs`, each by its place. Raise ValueError for other values, or too many."""
    match inputs:
        case list():
            texts = {f"inputs[{index}]": text for index, text in enumerate(inputs)}
        case {"source_sentence": source, "sentences": list(sentences), **others} if not others:
            texts = {"source_sentence": source} | {f"sentences[{index}]": text for index, text in enumerate(sentences)}
        case _:
            texts = {"inputs": inputs}
    for place, text in texts.items():
        if not isinstance(text, str):
            kind = "missing or null" if text is None else f"of type {type(text).__name__}"
            forms = 'a text, a list of texts, or {"source_sentence": a text, "sentences": [texts]}'
            raise ValueError(f"{place} is {kind}; send {forms if place == 'inputs' else 'a text'}")
    number, chars = len(texts) - ("source_sentence" in texts), sum(map(len, texts.values()))
    if not 1 <= number <= MAX_TEXTS or chars > MAX_CHARS:
        limits = f"1 to {MAX_TEXTS} texts, at most {MAX_CHARS} characters together"
        raise ValueError(f"inputs holds {number} texts of {chars} characters; send {limits}")
    for place, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{place} holds half of a surrogate pair; send valid Unicode") from None
    return texts


def _listed(vectors: list[torch.Tensor], options: dict, compares: bool) -> list:
    """Return the vectors (n, d) of each text as lists, or the cosines of the first text with the others."""
    vectors = [rows[:, : options["dimensions"]] for rows in vectors]
    if options["normalize"]:
        vectors = [normalize(rows) for rows in vectors]
    if options["policy"] in LATE:
        return [rows.tolist() for rows in vectors]
    rows = torch.cat(vectors)
    return (rows[1:] @ rows[0] if compares else rows).tolist()


def _span(places: torch.Tensor) -> list[int]:
    """Return the characters [start, end) of tokens with these (n, 2). Those of prompt and special tokens are [0, 0)."""
    places = places[places[:, 1] > 0]
    return [int(places[0, 0]), int(places[-1, 1])] if len(places) else [0, 0]


def _shown(value) -> str:
    """Return a value for a message, in ASCII: what cannot be encoded would break the answer."""
    shown = json.dumps(value, default=repr)
    return shown if len(shown) <= 40 else shown[:40] + "..."
