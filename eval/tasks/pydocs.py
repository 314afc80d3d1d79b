"""pydocs: a long-document retrieval corpus made from the documentation of installed Python packages.

It needs no download: the text is read from source files with `ast`, and no package is imported. Consecutive
docstrings of a package make one long document; a query is the first sentence of one of its docstrings, taken out of the
document. The queries of a document come from equal parts of its length, so an encoder that reads only the beginning
loses the rest. `pydocs.yaml` fixes packages, versions and splits; the tables have the schema of LoCoV1 plus a column
`position` in the queries.

    python -m m2bert.eval.tasks.pydocs --output data/pydocs
"""

import ast
import gc
import hashlib
import json
import logging
import re
import warnings
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from tqdm import tqdm

from m2bert.files import read_json, read_yaml, write_atomically
from m2bert.terminal import log_to_terminal, run_command

from .schema import make_task

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
RECIPE = Path(__file__).with_name("pydocs.yaml")
RECORD = "fingerprint.json"
SENTENCE = re.compile(r".+?(?<!e\.g)(?<!i\.e)(?<!\bcf)(?<!\bvs)[.!?](?=\s|$)", re.DOTALL)

MIN_DOCSTRING_CHARS = 80
SKIPPED_PATHS = re.compile(r"(^|/)(_?tests?|testing|_?vendor(ed)?|_?externals?|extern)/|(^|/)(test_|conftest)")
LAYOUT_LINE = re.compile(r"\W{3,}")  # heading underlines, table rules: one WordPiece token per character
PROMPT = re.compile(r"^( *)(?:>>>|\.\.\.) ?", re.MULTILINE)
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

MIN_DOCUMENT_CHARS = 8_000
MIN_QUERY_CHARS, MAX_QUERY_CHARS = 40, 300
MIN_QUERY_WORDS = 6
MIN_REST_CHARS = 200  # of the docstring once its query is gone: what the document still says about it
QUERIES_PER_DOCUMENT = 4

QUERY_SCHEMA = {"qid": pa.string(), "query": pa.string(), "answer_pids": pa.list_(pa.string()), "dataset": pa.string()}
SCHEMAS = {
    "queries": pa.schema({**QUERY_SCHEMA, "position": pa.float64()}),
    "documents": pa.schema(dict.fromkeys(("pid", "passage", "dataset"), pa.string())),
}


class Entry(NamedTuple):
    """One docstring: the dotted name of what it documents, and its text."""

    name: str
    text: str


def clean_docstring(raw: str) -> str:
    """Dedent and drop layout lines and doctest prompts.

    Not `inspect.cleandoc`: that changed between Python versions, and the text must not.
    """
    first, *others = raw.expandtabs().splitlines() or [""]
    margin = min((len(line) - len(line.lstrip()) for line in others if line.strip()), default=0)
    lines = [first.strip(), *(line[margin:].rstrip() for line in others)]
    text = "\n".join(line for line in lines if not LAYOUT_LINE.fullmatch(line.strip()))
    return re.sub(r"\n{3,}", "\n\n", PROMPT.sub(r"\1", text)).strip()


def read_docstrings(source: bytes, module: str) -> list[Entry]:
    """Return docstrings of a module, its public classes, functions and methods, in source order."""
    entries = []

    def visit(node: ast.AST, name: str) -> None:
        if isinstance(node, (ast.Module, *DEFINITIONS)):
            text = clean_docstring(ast.get_docstring(node, clean=False) or "")
            if len(text) >= MIN_DOCSTRING_CHARS:
                entries.append(Entry(name, text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        for child in getattr(node, "body", []):
            if isinstance(child, DEFINITIONS) and not child.name.startswith("_"):
                visit(child, f"{name}.{child.name}")
            elif isinstance(child, ast.If | ast.Try):
                visit(child, name)

    with warnings.catch_warnings(action="ignore"):  # about other people's escape sequences
        visit(ast.parse(source), module)
    return entries


def read_package(package: str, prefixes: list[str] | None, seen: set[str]) -> list[Entry]:
    """Return entries of an installed distribution in path order, without test and vendored code.

    Args:
        package: name of the distribution, as in `pip install NAME`.
        prefixes: keep only files whose path begins with one of them; None keeps all.
        seen: texts to leave out; those returned are added to it.
    """
    entries = []
    for path in sorted(metadata.files(package) or [], key=str):
        name = path.as_posix()
        wanted = name.endswith(".py") and not name.startswith("..") and not SKIPPED_PATHS.search(name)
        if not wanted or (prefixes and not name.startswith(tuple(prefixes))):
            continue
        source = path.locate().read_bytes()
        if b'"""' not in source and b"'''" not in source:  # parsing takes much longer than this
            continue
        try:
            docstrings = read_docstrings(source, name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        except SyntaxError as error:  # a file for another Python than this one
            logger.warning("skipped %s of %s: %s", name, package, error)
            continue
        for entry in docstrings:
            if entry.text not in seen:
                seen.add(entry.text)
                entries.append(entry)
    return entries


class Query(NamedTuple):
    """A sentence of entry `entry_index`, and the rest of that entry's text.

    `position` is where the entry begins, as a fraction of the document's length.
    """

    entry_index: int
    sentence: str
    rest: str
    position: float


def render(document: list[Entry]) -> str:
    """Return the passage of a document: each name on a line above its text."""
    return "\n\n".join(f"{entry.name}\n{entry.text}" for entry in document)


def pack_documents(entries: list[Entry], document_chars: int) -> list[list[Entry]]:
    """Cut consecutive entries into documents of about `document_chars`; a docstring is never split."""
    documents: list[list[Entry]] = []
    size = document_chars
    for entry in entries:
        entry_chars = len(render([entry])) + 2
        if size + entry_chars > document_chars:
            documents.append([])
            size = 0
        documents[-1].append(entry)
        size += entry_chars
    return [document for document in documents if len(render(document)) >= MIN_DOCUMENT_CHARS]


def candidate_queries(document: list[Entry]) -> list[Query]:
    """Return every entry's first sentence that is long enough, with the rest of the entry's text."""
    candidates = []
    total_chars = len(render(document))
    offset = 0
    for index, entry in enumerate(document):
        match = SENTENCE.match(entry.text.split("\n\n", 1)[0])
        if match:
            sentence = " ".join(match.group().split())
            rest = entry.text[match.end() :].strip()
            fits = MIN_QUERY_CHARS <= len(sentence) <= MAX_QUERY_CHARS and len(sentence.split()) >= MIN_QUERY_WORDS
            if fits and len(rest) >= MIN_REST_CHARS:
                candidates.append(Query(index, sentence, rest, round(offset / total_chars, 4)))
        offset += len(render([entry])) + 2
    return candidates


def plain(text: str) -> str:
    """Return text in lower case, with single spaces, without final punctuation: so sentences are compared."""
    return " ".join(text.lower().split()).rstrip(".!?")


def choose_queries(documents: list[list[Entry]]) -> list[list[Query]]:
    """Choose for each document at most one query from each of its equal parts; none occurs twice in the split.

    A hash orders the candidates of a part: as good as at random, and the same on every machine.
    """
    split_text = "\n".join(plain(render(document)) for document in documents)
    chosen = []
    for document in documents:
        candidates = candidate_queries(document)
        candidates.sort(key=lambda query: hashlib.sha256(query.sentence.encode()).hexdigest())
        of_part: dict[int, Query] = {}
        for query in candidates:
            part = int(query.position * QUERIES_PER_DOCUMENT)
            if part not in of_part and split_text.count(plain(query.sentence)) == 1:
                of_part[part] = query
        chosen.append([query for _, query in sorted(of_part.items())])
    return chosen


def make_tables(split: str, documents: list[list[Entry]]) -> dict[str, list[dict]]:
    """Return the rows of the two tables of a split, the queries taken out of the passages."""
    rows: dict[str, list[dict]] = {"queries": [], "documents": []}
    for number, (document, queries) in enumerate(zip(documents, choose_queries(documents), strict=True)):
        pid = f"pydocs_{split}_Passage_{number}"
        remaining = list(document)
        for query in queries:
            remaining[query.entry_index] = document[query.entry_index]._replace(text=query.rest)
            row = {"qid": f"pydocs_{split}_Query_{len(rows['queries'])}", "query": query.sentence, "answer_pids": [pid]}
            rows["queries"].append({**row, "dataset": "pydocs", "position": query.position})
        rows["documents"].append({"pid": pid, "passage": render(remaining), "dataset": "pydocs"})
    return rows


def package_versions(recipe: dict) -> dict[str, tuple[str, str | None]]:
    """Return {package: (recorded, installed version)} of all splits; None if it is missing.

    The local part of an installed version, as in `2.13.0+cpu`, is left out.
    """
    versions = {}
    for packages in recipe["packages"].values():
        for package, recorded in packages.items():
            try:
                versions[package] = (recorded, metadata.version(package).split("+")[0])
            except metadata.PackageNotFoundError:
                versions[package] = (recorded, None)
    return versions


def collect_documents(recipe: dict) -> dict[str, list[list[Entry]]]:
    """Return documents of every split. Test is read first: a text that test and train share stays in test only."""
    seen: set[str] = set()
    documents: dict[str, list[list[Entry]]] = {}
    versions = package_versions(recipe)
    names = [(split, package) for split in reversed(SPLITS) for package in recipe["packages"][split]]
    gc.freeze()  # syntax trees set off full collections again and again, slow in a process that has torch loaded
    for split, package in tqdm(names, desc="pydocs", unit="package"):
        of_split = documents.setdefault(split, [])
        if versions[package][1]:
            entries = read_package(package, recipe["paths"].get(package), seen)
            packed = pack_documents(entries, recipe["document_chars"])
            count = min(len(packed), recipe["max_documents_per_package"][split])
            of_split += [packed[(2 * i + 1) * len(packed) // (2 * count)] for i in range(count)]  # evenly spaced
    gc.unfreeze()
    for split, of_split in documents.items():
        if not of_split:
            wanted = ", ".join(recipe["packages"][split])
            raise ValueError(f"pydocs has no documents for split={split!r}: install at least one of {wanted}")
    return documents


def build_pydocs(output_dir: str | Path) -> str:
    """Write queries/SPLIT.parquet, documents/SPLIT.parquet and fingerprint.json; return the corpus's fingerprint.

    That is the digest of the rows of all splits. fingerprint.json also has the fingerprint of each split as a task,
    which results name. Returns at once if `output_dir` holds the recorded corpus. With other package versions than the
    recorded ones the corpus differs; a warning names the packages.
    """
    record_path = Path(output_dir) / RECORD
    recipe = read_yaml(RECIPE)
    recorded = recipe["corpus_fingerprint"]
    if record_path.is_file() and read_json(record_path).get("corpus_fingerprint") == recorded:
        return recorded
    record_path.parent.mkdir(parents=True, exist_ok=True)  # an error here comes before the minute of work
    documents = collect_documents(recipe)
    rows = {split: make_tables(split, documents[split]) for split in SPLITS}
    fingerprint = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    versions = package_versions(recipe)
    if fingerprint != recorded:
        others = [f"{name}: recorded {old}, installed {new}" for name, (old, new) in versions.items() if old != new]
        message = (
            "the fingerprint of the pydocs corpus is %s, not the recorded %s: scores compare with this build only. "
        )
        logger.warning(message + "Packages: %s", fingerprint, recorded, "; ".join(others) or "all as recorded")
    record_path.unlink(missing_ok=True)  # its presence says that the tables are whole
    for split, tables in rows.items():
        for kind, table_rows in tables.items():
            table = pa.Table.from_pylist(table_rows, schema=SCHEMAS[kind])
            write_atomically(record_path.parent / kind / f"{split}.parquet", partial(pq.write_table, table))
    record = {
        "corpus_fingerprint": fingerprint,
        "split_fingerprints": {
            split: make_task("pydocs", split, *tables.values()).fingerprint for split, tables in rows.items()
        },
        "packages": {name: installed for name, (_, installed) in versions.items()},
        "counts": {split: {kind: len(table) for kind, table in tables.items()} for split, tables in rows.items()},
    }
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(record_path, lambda path: path.write_text(text, encoding="utf-8"))
    return fingerprint


def main(output: Annotated[Path, typer.Option(help="Folder to write the corpus to.")]) -> None:
    """Build the pydocs corpus from the installed packages."""
    log_to_terminal(logging.INFO)
    fingerprint = build_pydocs(output)
    typer.echo(f"pydocs corpus {fingerprint} in {output}")
    for split, of_split in read_json(output / RECORD)["split_fingerprints"].items():
        typer.echo(f"split {split}: {of_split}")


if __name__ == "__main__":
    run_command("pydocs", lambda: typer.run(main))
