"""Load a server of the shipped model: requests that are lost, vectors, memory, and the wait of short queries.

    python experiments/serving/load.py    # five minutes; writes results/load.json, and the tables of docs/serving.md

`mixed`: 32 clients send texts of 3 to 16k tokens, their lengths spread evenly over the logarithm. `short first` and
`first come`: 28 clients send documents of 16k tokens without pause and 4 send queries of 32 tokens, to a server as it
is and to one that reads all in the order in which it came. Clients and server share the machine.
"""

import argparse
import asyncio
import base64
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np

ROOT = Path(__file__).parents[2]
MODEL, PAGE = ROOT / "models" / "m2bert-small", ROOT / "docs" / "serving.md"
RESULTS = Path(__file__).parent / "results" / "load.json"
SERVER = "from m2bert.search import batching, server; {change}server.serve({model!r}, port=0)"
FIRST_COME = "batching.AGING_TOKENS_PER_SECOND = batching.SHORT_TOKENS = float('inf'); "
CLIENTS, LONG_CLIENTS = 32, 28


def make_texts(encoder, lengths, rng) -> list[str]:
    """Return texts of so many tokens, special tokens included: words that are one token each."""
    words = sorted(word for word in encoder.model.tokenizer.get_vocab() if word.isalpha() and word.isascii())
    texts = [" ".join(rng.choice(words, max(length - 2, 1))) for length in lengths]
    assert (encoder.count_tokens(texts, "document") == np.maximum(lengths, 3)).all()
    return texts


class Server:
    """A server in a process of its own, whose memory is read every second."""

    def __init__(self, change: str = ""):
        command = [sys.executable, "-c", SERVER.format(change=change, model=str(MODEL))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.address = self.process.stdout.readline().split()[-1]
        self.start, self.memory = time.monotonic(), []  # (seconds, MB)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            self.memory.append((time.monotonic() - self.start, pages * os.sysconf("SC_PAGE_SIZE") / 1e6))
            time.sleep(1)

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.terminate()
        return self.process.wait(90)


async def load(address: str, clients: list[list[tuple[bytes, np.ndarray]]], seconds: float, seed: int) -> dict:
    """Let every client send its texts in random order until the time is over; return what came back."""
    until, found = (
        time.monotonic() + seconds,
        {"lost": 0, "refused": 0, "cosine": 1.0, "seconds": [[] for _ in clients]},
    )

    async def run(number: int, session: httpx.AsyncClient):
        rng = np.random.default_rng(seed + number)
        while time.monotonic() < until:
            body, expected = clients[number][rng.integers(len(clients[number]))]
            start = time.monotonic()
            try:
                answer = await session.post("/v1/embeddings", content=body)
            except httpx.HTTPError as error:
                print("lost:", repr(error), file=sys.stderr)
                found["lost"] += 1
                continue
            found["seconds"][number].append(time.monotonic() - start)
            if answer.status_code == 429:
                found["refused"] += 1
                await asyncio.sleep(int(answer.headers["retry-after"]))
            elif answer.status_code != 200:
                print("lost:", answer.status_code, answer.text[:200], file=sys.stderr)
                found["lost"] += 1
            else:
                row = np.frombuffer(base64.b64decode(answer.json()["data"][0]["embedding"]), dtype="<f4")
                found["cosine"] = min(found["cosine"], float(row.astype(np.float64) @ expected))

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as session:
        await asyncio.gather(*(run(number, session) for number in range(len(clients))))
    return found


def bodies(encoder, texts: list[str]) -> list[tuple[bytes, np.ndarray]]:
    """Return the requests of texts, each with the vector that it has offline, alone."""
    requests = [{"input": text, "model": MODEL.name, "encoding_format": "base64"} for text in texts]
    rows = [encoder.encode([text], "document")[0].astype(np.float64) for text in texts]
    return [(json.dumps(its).encode(), row / np.linalg.norm(row)) for its, row in zip(requests, rows, strict=True)]


def mixed(encoder, seconds: float) -> dict:
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(3), np.log(encoder.max_tokens), 200)).astype(int)
    requests = bodies(encoder, make_texts(encoder, lengths, rng))
    server = Server()
    found = asyncio.run(load(server.address, [requests] * CLIENTS, seconds, 1))
    code, times = server.stop(), np.concatenate(found.pop("seconds"))
    before = max(mb for second, mb in server.memory if second <= 15)
    after = max(mb for second, mb in server.memory if second > 15)
    return {
        **{name: found[name] for name in ("lost", "refused")},
        "requests": len(times),
        "tokens a text, mean": int(lengths.mean()),
        "seconds p50": float(np.quantile(times, 0.5)),
        "seconds p99": float(np.quantile(times, 0.99)),
        "1 - least cosine": max(1 - found["cosine"], 0.0),
        "MB in the first 15 s": round(before),
        "MB after": round(after),
        "growth %": round(100 * (after / before - 1), 1),
        "exit code": code,
    }


def queries_beside_documents(encoder, seconds: float, change: str) -> dict:
    rng = np.random.default_rng(1)
    documents = bodies(encoder, make_texts(encoder, [encoder.max_tokens] * 8, rng))
    queries = bodies(encoder, make_texts(encoder, [32] * 32, rng))
    server = Server(change)
    clients = [documents] * LONG_CLIENTS + [queries] * (CLIENTS - LONG_CLIENTS)
    found = asyncio.run(load(server.address, clients, seconds, 2))
    server.stop()
    times = np.concatenate(found["seconds"][LONG_CLIENTS:])
    return {
        "lost": found["lost"],
        "queries": len(times),
        "query seconds p50": float(np.quantile(times, 0.5)),
        "query seconds p99": float(np.quantile(times, 0.99)),
        "documents a second": sum(map(len, found["seconds"][:LONG_CLIENTS])) / seconds,
        "1 - least cosine": max(1 - found["cosine"], 0.0),
    }


def tables(results: dict) -> dict[str, str]:
    """Return the tables of docs/serving.md by name."""
    its, ours, theirs = (results[name] for name in ("mixed", "short first", "first come"))
    least, growth = f"{max(each['1 - least cosine'] for each in (its, ours, theirs)):.0e}", f"{its['growth %']} %"
    load = f"""\
| requests | lost | refused | p50 | p99 | memory in the first 15 s | later | growth | cosine to offline, at least |
|---|---|---|---|---|---|---|---|---|
| {its["requests"]:,} | {its["lost"]} | {its["refused"]} | {its["seconds p50"]:.2f} s | {its["seconds p99"]:.1f} s \
| {its["MB in the first 15 s"]:,} MB | {its["MB after"]:,} MB | {growth} | 1 - {least} |
"""
    order = "| | queries | p50 | p99 | documents a second | lost |\n|---|---|---|---|---|---|\n"
    for name, row in (("short first", ours), ("in the order in which they came", theirs)):
        p50, p99 = row["query seconds p50"], row["query seconds p99"]
        numbers = f"{row['queries']:,} | {p50:.2f} s | {p99:.2f} s | {row['documents a second']:.1f} | {row['lost']}"
        order += f"| {name} | {numbers} |\n"
    return {"load": load, "order": f"{order}\nThe ratio of both p99 is {results['p99 ratio']:.0f}.\n"}


def filled(page: str, results: dict) -> str:
    """Return the page with the tables of the results between their markers."""
    for name, table in tables(results).items():
        page = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{table}\g<2>", page, flags=re.DOTALL)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    asked = parser.parse_args()
    import torch

    from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder

    torch.set_num_threads(1)
    encoder = SentenceTransformerEncoder(MODEL)
    cores = len(os.sched_getaffinity(0))
    machine = {"cores": cores, "load before": round(os.getloadavg()[0], 1), "python": platform.python_version()}
    results = {"machine": machine, "mixed": mixed(encoder, asked.seconds)}
    for name, change in (("short first", ""), ("first come", FIRST_COME)):
        results[name] = queries_beside_documents(encoder, asked.seconds, change)
    results["p99 ratio"] = results["first come"]["query seconds p99"] / results["short first"]["query seconds p99"]
    results["machine"]["load after"] = round(os.getloadavg()[0], 1)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    PAGE.write_text(filled(PAGE.read_text(), results))


if __name__ == "__main__":
    main()
