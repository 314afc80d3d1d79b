"""Retrieval tasks from raw text, several in one folder: the beginning of a text is to find the rest of it.

    python -m m2bert.train.pairs.make_pairs --source NAME=FOLDER [--source ...] --output DIR

FOLDER holds plain text (`train.parquet` with a column `text`, a folder of .txt, .md and .html files, or another form
that train/mlm.py reads) or retrieval data in the LoCoV1 schema, which is taken over as it is. Of raw text every
document, in parts of at most --document-chars, becomes a query, its lead (title and first sentences), and a document,
the rest; passages from anywhere in it are for `data.passage_share` of train/opl.py. DIR has the LoCoV1 schema, a task
for every source, splits train and validation.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from m2bert.eval.tasks.kinds import kind_of
from m2bert.eval.tasks.load import load_folder
from m2bert.files import check_writable, write_atomically
from m2bert.terminal import run_command

from ..text.sources import TextFiles, find_texts
from .data import answered

SPLITS = ("train", "validation")
SENTENCE_END = re.compile(r"(?<=[.!?])\s")
SHORTEST_LEAD_CHARS, LONGEST_LEAD_CHARS = 100, 400
SHORTEST_REST_CHARS = 1000  # of a document: below it there is nothing long to find


def parts(text: str, document_chars: int) -> Iterator[str]:
    """Yield a text in parts of about equal length, at most `document_chars` each, cut at a line's end, else a
    word's."""
    while len(text) > document_chars:
        goal = -(-len(text) // -(-len(text) // document_chars))
        ends = [text.rfind(mark, goal // 2, goal) for mark in ("\n", " ")]
        end = next((end for end in ends if end > 0), goal)
        yield text[:end].strip()
        text = text[end:].strip()
    yield text


def lead_and_rest(text: str) -> tuple[str, str] | None:
    """Return the first lines or sentences of a text, 100 to about 400 characters, and the rest; None if the text is too
    short."""
    end = SHORTEST_LEAD_CHARS
    breaks = [match.end() for match in SENTENCE_END.finditer(text, end, LONGEST_LEAD_CHARS)]
    space = text.rfind(" ", end, LONGEST_LEAD_CHARS)
    end = breaks[-1] if breaks else (space if space > 0 else LONGEST_LEAD_CHARS)
    lead, rest = text[:end].strip(), text[end:].strip()
    return (lead, rest) if len(rest) >= SHORTEST_REST_CHARS else None


def from_text(name: str, folder: Path, split: str, document_chars: int) -> tuple[list[dict], list[dict]]:
    """Return query and document rows of raw text."""
    queries, documents, texts = [], [], find_texts(folder, split)
    for pairs in tqdm(held_apart(texts, split, document_chars), desc=f"{name} {split}", unit="text"):
        for lead, rest in pairs:
            pid = f"{name}_{split}_{len(documents)}"
            queries.append({"qid": f"{pid}_lead", "query": lead, "answer_pids": [pid], "dataset": name})
            documents.append({"pid": pid, "passage": rest, "dataset": name})
    if not documents:
        raise ValueError(f"--source {name}={folder}: no text of {split} is long enough to make a pair")
    return queries, documents


def held_apart(texts: TextFiles, split: str, document_chars: int) -> Iterator[list[tuple[str, str]]]:
    """Yield the pairs of each text of a split. Where the texts have no splits, a hundredth of those that make a pair is
    the split validation, and at least one."""
    found = (list(filter(None, map(lead_and_rest, parts(text, document_chars)))) for text in texts)
    if not texts.whole:
        yield from found
    elif found := [pairs for pairs in found if pairs]:
        from ..text.tokens import is_held_out, text_hash  # slow to import

        held = is_held_out(np.array([text_hash(pairs[0][1]) for pairs in found], dtype=np.uint64))
        yield from (pairs for pairs, is_held in zip(found, held, strict=True) if is_held == (split == "validation"))


def from_tasks(name: str, folder: Path, split: str) -> tuple[list[dict], list[dict]]:
    """Return query and document rows of retrieval data, all its tasks as one of this name."""
    queries, documents = [], []
    for task in map(answered, load_folder(folder, None, split)):
        queries += [{"qid": qid, "query": query, "answer_pids": sorted(task.qrels[qid]), "dataset": name}
                    for qid, query in task.queries.items()]  # fmt: skip
        documents += [{"pid": pid, "passage": text, "dataset": name} for pid, text in task.documents.items()]
    return queries, documents


def main(argv: list[str]):
    parser = argparse.ArgumentParser(prog="make_pairs", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--source", required=True, action="append", help="NAME=FOLDER; may be repeated")
    parser.add_argument("--document-chars", type=int, default=60_000, help="longest document made of raw text")
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args(argv)
    sources = dict(source.partition("=")[::2] for source in arguments.source)
    if len(sources) < len(arguments.source) or not all(map(all, sources.items())):
        raise ValueError(f"--source must be NAME=FOLDER, each NAME once; not {', '.join(arguments.source)}")
    if arguments.document_chars < 2 * SHORTEST_REST_CHARS:
        raise ValueError(f"--document-chars={arguments.document_chars} must be at least {2 * SHORTEST_REST_CHARS}")
    check_writable(arguments.output, "--output")
    if arguments.output.exists() and (not arguments.output.is_dir() or any(arguments.output.iterdir())):
        raise ValueError(f"--output {arguments.output} is there and not an empty folder; name another")
    rows = {}
    for split in reversed(SPLITS):  # all is read before any is written; the small split first, where faults show soon
        for name, folder in sources.items():
            if (kind := kind_of(Path(folder))) == "tables":
                rows[split, name] = from_tasks(name, Path(folder), split)
            elif kind:
                fix = f"train on it as it is: m2bert train opl data.path={folder}"
                raise ValueError(f"--source {name}={folder} has queries but no tables; {fix}")
            else:
                rows[split, name] = from_text(name, Path(folder), split, arguments.document_chars)
    for split in SPLITS:
        for kind, what in enumerate(("queries", "documents")):
            table = pa.Table.from_pylist([row for name in sources for row in rows[split, name][kind]])
            file = arguments.output / what / f"{split}.parquet"
            write_atomically(file, lambda path, table=table: pq.write_table(table, path))
        for name in sources:
            print(f"{split}: {name}, {len(rows[split, name][0])} queries, {len(rows[split, name][1])} documents")


if __name__ == "__main__":
    run_command("make_pairs", lambda: main(sys.argv[1:]))
