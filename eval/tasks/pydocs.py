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
from itertools import islice
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
        if not name.endswith(".py") or name.startswith("..") or SKIPPED_PATHS.search(name):
            continue
        if prefixes and not name.startswith(tuple(prefixes)):
            continue
        source = path.locate().read_bytes()
        if b'"""' not in source and b"'''" not in source:
            continue
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        try:
            docstrings = read_docstrings(source, module)
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


def evenly_spaced(items: list, count: int) -> list:
    """Return at most `count` of the items, spread over the whole list."""
    if len(items) <= count:
        return items
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def render(document: list[Entry]) -> str:
    """Return the passage of a document: each name on a line above its text."""
    return "\n\n".join(f"{entry.name}\n{entry.text}" for entry in document)


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
            long_enough = MIN_QUERY_CHARS <= len(sentence) <= MAX_QUERY_CHARS
            if long_enough and len(sentence.split()) >= MIN_QUERY_WORDS and len(rest) >= MIN_REST_CHARS:
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
        parts: dict[int, list[Query]] = {}
        for query in candidate_queries(document):
            parts.setdefault(int(query.position * QUERIES_PER_DOCUMENT), []).append(query)
        chosen.append([])
        for _, queries in sorted(parts.items()):
            queries.sort(key=lambda query: hashlib.sha256(query.sentence.encode()).hexdigest())
            unique = (query for query in queries if split_text.count(plain(query.sentence)) == 1)
            chosen[-1].extend(islice(unique, 1))
    return chosen


def make_tables(split: str, documents: list[list[Entry]]) -> dict[str, list[dict]]:
    """Return the rows of the two tables of a split, the queries taken out of the passages."""
    rows: dict[str, list[dict]] = {"queries": [], "documents": []}
    for number, (document, queries) in enumerate(zip(documents, choose_queries(documents), strict=True)):
        pid = f"pydocs_{split}_Passage_{number}"
        remaining = list(document)
        for query in queries:
            remaining[query.entry_index] = document[query.entry_index]._replace(text=query.rest)
            rows["queries"].append(
                {
                    "qid": f"pydocs_{split}_Query_{len(rows['queries'])}",
                    "query": query.sentence,
                    "answer_pids": [pid],
                    "dataset": "pydocs",
                    "position": query.position,
                }
            )
        rows["documents"].append({"pid": pid, "passage": render(remaining), "dataset": "pydocs"})
    return rows


def read_recipe() -> dict:
    """Return the committed `pydocs.yaml`."""
    return read_yaml(Path(__file__).with_name("pydocs.yaml"))


def recorded_versions(recipe: dict) -> dict[str, str]:
    """Return {package: version} of all splits."""
    return {name: version for packages in recipe["packages"].values() for name, version in packages.items()}


def installed_versions(recipe: dict) -> dict[str, str | None]:
    """Return {package: version, None if missing}; without the local part of the version, as in `2.13.0+cpu`."""
    versions: dict[str, str | None] = {}
    for package in recorded_versions(recipe):
        try:
            versions[package] = metadata.version(package).split("+")[0]
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def version_differences(recipe: dict) -> list[str]:
    """Return "package: recorded, installed" for each package whose installed version is not the recorded one."""
    recorded, installed = recorded_versions(recipe), installed_versions(recipe)
    return [
        f"{package}: recorded {version}, installed {installed[package]}"
        for package, version in recorded.items()
        if installed[package] != version
    ]


def collect_documents(recipe: dict) -> dict[str, list[list[Entry]]]:
    """Return documents of every split. Test is read first: a text that test and train share stays in test only."""
    seen: set[str] = set()
    documents: dict[str, list[list[Entry]]] = {}
    versions = installed_versions(recipe)
    names = [(split, package) for split in reversed(SPLITS) for package in recipe["packages"][split]]
    gc.freeze()  # syntax trees set off full collections again and again, slow in a process that has torch loaded
    for split, package in tqdm(names, desc="pydocs", unit="package"):
        split_documents = documents.setdefault(split, [])
        if versions[package]:
            entries = read_package(package, recipe["paths"].get(package), seen)
            packed = pack_documents(entries, recipe["document_chars"])
            split_documents += evenly_spaced(packed, recipe["max_documents_per_package"][split])
    gc.unfreeze()
    for split, split_documents in documents.items():
        if not split_documents:
            wanted = ", ".join(recipe["packages"][split])
            raise ValueError(f"pydocs has no documents for split={split!r}: install at least one of {wanted}")
    return documents


def write_corpus(output: Path, rows: dict[str, dict[str, list[dict]]], record: dict) -> None:
    """Write the tables, then `record` with their counts: its presence says that the tables are whole."""
    record_path = output / RECORD
    record_path.unlink(missing_ok=True)
    for split, kinds in rows.items():
        for kind, table_rows in kinds.items():
            table = pa.Table.from_pylist(table_rows, schema=SCHEMAS[kind])
            write_atomically(output / kind / f"{split}.parquet", partial(pq.write_table, table))
    counts = {split: {kind: len(table) for kind, table in kinds.items()} for split, kinds in rows.items()}
    text = json.dumps({**record, "counts": counts}, indent=2) + "\n"
    write_atomically(record_path, lambda path: path.write_text(text, encoding="utf-8"))


def build_pydocs(output_dir: str | Path) -> str:
    """Write queries/SPLIT.parquet, documents/SPLIT.parquet and fingerprint.json; return the corpus's fingerprint.

    That is the digest of the rows of all splits. fingerprint.json also has the fingerprint of each split as a task,
    which results name. Returns at once if `output_dir` holds the recorded corpus. With other package versions than the
    recorded ones the corpus differs; a warning names the packages.

    Raises:
        ValueError: a split has no documents because none of its packages is installed.
    """
    output = Path(output_dir)
    recipe = read_recipe()
    recorded = recipe["corpus_fingerprint"]
    if (output / RECORD).is_file() and read_json(output / RECORD).get("corpus_fingerprint") == recorded:
        return recorded
    output.mkdir(parents=True, exist_ok=True)  # an error here comes before the minute of work
    documents = collect_documents(recipe)
    rows = {split: make_tables(split, documents[split]) for split in SPLITS}
    fingerprint = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    if fingerprint != recorded:
        logger.warning(
            "the fingerprint of the pydocs corpus is %s, not the recorded %s: scores compare with this build only. "
            "Packages: %s",
            fingerprint,
            recorded,
            "; ".join(version_differences(recipe)) or "all as recorded",
        )
    splits = {split: make_task("pydocs", split, *tables.values()).fingerprint for split, tables in rows.items()}
    fingerprints = {"corpus_fingerprint": fingerprint, "split_fingerprints": splits}
    write_corpus(output, rows, {**fingerprints, "packages": installed_versions(recipe)})
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
