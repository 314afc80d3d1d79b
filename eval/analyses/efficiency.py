"""Seconds to embed one document of a given length (Table 5), the model and the tokenizer apart.

For each length three medians, all with the accelerator synchronized before and after:

    tokenize_seconds   tokenizing the text once
    encode_seconds     inside the model: the forward calls of its modules, all chunks of the text together
    total_seconds      the whole call as a user makes it: tokenizing as often as the policy does, batches, copies

The paper's times are of tokenizing and embedding a document, so tokenize_seconds + encode_seconds compares with them.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..encoders.policies import Policy
from ..encoders.protocol import TokenEncoder
from ..statistics import align, points

LENGTHS_TOKENS = (128, 2_048, 8_192, 32_768)
FILLER = " a"  # one token for every common tokenizer


def measure_efficiency(
    encoder: TokenEncoder, policy: Policy, words: list[str], lengths_tokens: list[int], about: dict, repeats: int = 5
) -> dict:
    """Time an encoder under a policy on documents of exactly these lengths; nothing is read from a store.

    Args:
        words: what the documents are made of, in order, repeated where they are too few.
        lengths_tokens: lengths of the documents, special tokens and prompt included.
        about: which system it is; see `provenance`.
        repeats: of each measurement, after one warm-up that does not count.

    Returns:
        A record of kind "efficiency". `seen_share` of a row is how much of the document some vector saw: truncation
        is fast because it reads little.
    """
    import torch

    modules = _outermost_modules(lambda: policy.embed(encoder, ["warm up"]))
    parameter = next((parameter for module in modules for parameter in module.parameters()), None)
    if parameter is None or not hasattr(encoder, "count_tokens"):
        raise ValueError(
            f"encoder {encoder.name!r} shows no tokenizer or runs no torch module here; it cannot be timed"
        )
    rows = []
    for tokens in lengths_tokens:
        text = text_of_length(encoder, words, tokens)
        vectors = policy.embed(encoder, [text])  # the warm-up of this length
        seconds = {"tokenize": [], "encode": [], "total": []}
        for _ in range(repeats):
            seconds["tokenize"].append(_seconds_of(lambda text=text: encoder.count_tokens([text], "document")))
            with _module_seconds(modules) as spent:
                seconds["total"].append(_seconds_of(lambda text=text: policy.embed(encoder, [text])))
            seconds["encode"].append(sum(spent))
        medians = {f"{part}_seconds": statistics.median(found) for part, found in seconds.items()}
        rows.append({"tokens": tokens, **medians, "repeats": repeats, "seen_share": float(vectors.seen[0])})
    device = parameter.device
    return {
        "kind": "efficiency",
        **about,
        "device": f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "rows": rows,
    }


def format_efficiency(records: list[dict]) -> str:
    """Return the records as a table for the terminal."""
    rows = []
    for record in records:
        for row in record["rows"]:
            times = [f"{row[f'{part}_seconds']:.4f}" for part in ("tokenize", "encode", "total")]
            rows.append([record["system"], str(row["tokens"]), *times, points(row["seen_share"])])
    first = records[0]
    note = f"(seconds, medians; {first['device']}, {first['dtype']}, {first['threads']} CPU threads)"
    return align(["system", "tokens", "tokenizer", "model", "whole call", "% seen"], rows) + "\n" + note


def text_of_length(encoder: TokenEncoder, words: list[str], tokens: int) -> str:
    """Return a text of exactly so many tokens, special tokens and prompt included."""

    def count(text: str) -> int:
        return int(encoder.count_tokens([text], "document")[0])

    words = words * (1 + tokens // max(len(words), 1))
    fits, too_long = 0, tokens + 1  # numbers of words; a word has at least one token
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        fits, too_long = (middle, too_long) if count(" ".join(words[:middle])) <= tokens else (fits, middle)
    text = " ".join(words[:fits])
    text += FILLER * (tokens - count(text))
    if not (words and text and count(text) == tokens):
        made = f"{len(words)} words made one of {count(text)}"
        raise ValueError(f"the tokenizer of {encoder.name!r} makes no text of {tokens} tokens; {made}")
    return text


def _outermost_modules(run: Callable[[], object]) -> list:
    """Return the torch modules that `run` calls and that no other module calls, each once."""
    from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

    found: dict[int, object] = {}
    depth = 0

    def enter(module, arguments):
        nonlocal depth
        if depth == 0:
            found[id(module)] = module
        depth += 1

    def leave(module, arguments, output):
        nonlocal depth
        depth -= 1

    with register_module_forward_pre_hook(enter), register_module_forward_hook(leave):
        run()
    return list(found.values())


@contextmanager
def _module_seconds(modules: list) -> Iterator[list[float]]:
    """Yield a list that collects the seconds of each forward call of these modules while the block runs."""
    spent: list[float] = []
    starts: list[float] = []

    def enter(module, arguments):
        _synchronize()
        starts.append(time.perf_counter())

    def leave(module, arguments, output):
        _synchronize()
        start = starts.pop()
        if not starts:  # not within another of them, whose time holds this
            spent.append(time.perf_counter() - start)

    handles = [module.register_forward_pre_hook(enter) for module in modules]
    handles += [module.register_forward_hook(leave) for module in modules]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def _seconds_of(run: Callable[[], object]) -> float:
    """Return the wall time of a call, the accelerator idle before and after."""
    _synchronize()
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
