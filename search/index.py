"""An index of long documents: files in, passages that answer a query out."""

import hashlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache, wraps
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from m2bert.eval.progress import counted
from m2bert.eval.search import standardized_fusion, weighted_fusion
from m2bert.files import check_writable, claimed, digest

from . import encoder as models
from .documents import Document, Unreadable, find_files, read_file
from .passages import best_passage
from .table import COLUMNS, FORMAT, NAME, Settings, Table, quoted

Source = tuple[Document, str | None, str]  # a document whose metadata are `normalized`, its file's path, a digest
Changes = Iterator[tuple[list[Document], str | None, str, int]]  # documents, path, digest, size: of a file or a row
Mode = Literal["hybrid", "dense", "bm25"]
VECTORS = 16  # the most late chunks of a window
BATCH_CHARS = 1_000_000  # of documents that are embedded and committed together
BATCH_DOCUMENTS = 2_000  # or fewer characters, if they are short
DEPTH = 1_000  # the most documents that a search ranks
CANDIDATES = 100  # documents that each side of a hybrid ranks, unless more are asked for
READ = ("path", "text", "pages", "spans", "vectors")  # columns that a hit is made of


def reading(method):
    """Let a method read the last version, one thread at a time, and the next one if a writer removes that meanwhile."""

    @wraps(method)
    def read(self, *arguments, **named):
        with self._lock:
            while True:
                version = 0
                try:
                    self.table.refresh()
                    if not self.table.exists:
                        break
                    version, settings = self.table.version, self.table.settings
                    if self._encoder is not None and self._encoder.fingerprint != settings.fingerprint:  # rebuilt
                        self._model, self._encoder = settings.model, None
                    return method(self, *arguments, **named)
                except (ValueError, KeyError):
                    self.table.refresh()
                    if self.table.version == version:
                        raise
            raise ValueError(f"index={self.folder} is empty; fill it: m2bert index FILES --index {self.folder}")

    return read


class Hit(NamedTuple):
    """A document that answers a query, and where it does."""

    id: str
    path: str | None  # of its file
    page: int | None  # of the passage, counted from 1; None for formats without pages
    score: float  # comparable within one search only
    passage: str  # `text[start:end]` of the document
    start: int
    end: int
    length: int  # characters of the document
    matches: list[tuple[int, int, float]]  # stretches [start, end) and the cosine of each, in the document's order
    metadata: dict[str, str | int | float | bool]


@dataclass
class Report:
    """What `Index.add` did."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    left_out: int = 0  # hidden files and those of other programs
    tokens: int = 0  # of what was embedded
    failures: list[tuple[str, str]] = field(default_factory=list)  # file or id, and why it was not added


class Index:
    """Search long documents by words and vectors together.

    `Index.open` makes one. Every method that writes keeps other writers out; readers see the last commit. Threads can
    share one to search, which they do one after another; one that writes beside them opens its own.
    """

    batch_chars, batch_documents = BATCH_CHARS, BATCH_DOCUMENTS
    _each = staticmethod(map)

    def __init__(self, folder: str, table: Table, model: str | None, vectors: int | None, device: str | None):
        self.folder, self.table, self.device = folder, table, device
        self._model, self.vectors, self._encoder, self._lock = model, vectors or VECTORS, None, threading.RLock()

    @classmethod
    def open(
        cls, folder: str | Path, model: str | Path | None = None, vectors: int | None = None, device: str | None = None
    ) -> "Index":
        """Open an index, or one that the first `add` makes.

        Args:
            folder: or an address of object storage, such as `s3://bucket/prefix`.
            model: folder or Hub id of an encoder; of an index that exists, the one that made it, and by default that.
            vectors: the most vectors of a window of the model's length, by default 16; of an index that exists, as it
                was made.
            device: as torch names it; by default a GPU, where there is one.

        Raises ValueError if the folder is no index and no model is given, or for an index of another model, with other
        vectors or of a newer version.
        """
        folder = str(folder) if "://" in str(folder) else os.path.abspath(folder)
        if "://" not in folder and os.path.exists(folder) and not os.path.isdir(folder):
            raise ValueError(f"index={folder} is a file; name a folder")
        table = Table(folder)
        if not table.exists:
            names = os.listdir(folder) if os.path.isdir(folder) else []
            if any(name != f"{NAME}.lance" and not name.startswith(".m2bert-") for name in names):
                fix = "name an empty or new one" if model else "name the folder of an index"
                raise ValueError(f"index={folder} is a folder of something else; {fix}")
            if model is None:
                fix = f"make it with m2bert index FILES --index {folder} --model MODEL"
                raise ValueError(f"index={folder} does not exist or is empty; {fix}")
        index = cls(folder, table, None if model is None else model_name(model), vectors, device)
        if table.exists:
            settings = table.settings
            if vectors not in (None, settings.vectors):
                raise ValueError(f"index={folder} has vectors={settings.vectors}; leave vectors={vectors} out")
            index.vectors = settings.vectors
            if index._model not in (None, settings.model):
                index._check(index.encoder.fingerprint)
            index._model = index._model or settings.model
        return index

    @property
    def encoder(self):
        """The encoder, loaded when it is first needed; one whose weights have changed since is refused."""
        with self._lock:
            if self._encoder is None:
                if self.table.exists and os.path.isabs(self._model) and not os.path.isdir(self._model):
                    fix = f"put it back, or embed anew: m2bert index --rebuild --model MODEL --index {self.folder}"
                    raise ValueError(f"index={self.folder} was made by {self._model}, which is gone; {fix}")
                encoder = models.Encoder(self._model, self.device)
                self._check(encoder.fingerprint)
                self._encoder = encoder
            return self._encoder

    def _check(self, fingerprint: str) -> None:
        made_by = self.table.settings if self.table.exists else None
        if made_by and (fingerprint, FORMAT) != (made_by.fingerprint, made_by.format):
            made = f"was made by {made_by.model}, and model={self._model} gives other vectors"
            made += f" (format {made_by.format}, now {FORMAT})" if made_by.format != FORMAT else ""
            fix = f"name that one, or embed it anew: m2bert index --rebuild --model {self._model} --index {self.folder}"
            raise ValueError(f"index={self.folder} {made}; {fix}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep other writers out until the block ends; the folder of object storage cannot be claimed."""
        local = "://" not in self.folder
        if local:
            check_writable(Path(self.folder, "any"), "index")
        with claimed(Path(self.folder)) if local else nullcontext():
            self.table.refresh(write=True)
            if self.table.exists:
                self.vectors = self.table.settings.vectors
            if self._encoder is not None:
                self._check(self._encoder.fingerprint)
            yield

    def add(self, sources: str | Path | Iterable[str | Path | dict], sync: bool = False) -> Report:
        """Add or update documents. Of a file that is unchanged since, only the SHA-256 is computed.

        Documents are committed a batch at a time, so that a run that was interrupted goes on where it was.

        Args:
            sources: a file, a folder, several of them, or an iterable of `{"id": ..., "text": ..., **metadata}`.
            sync: also remove documents whose file below these folders is gone; for an iterable, all documents that
                came from an iterable and are not in this one.
        """
        sources = [sources] if isinstance(sources, str | Path) else list(sources)
        if sync and not sources:
            raise ValueError("sync=True with no sources may mean files or rows; name the folder, or use Index.delete")
        report, found = Report(), None
        if all(isinstance(source, str | Path) for source in sources):
            found = find_files(sources, self.folder)
            report.left_out, report.failures = found.left_out, list(found.failures)
        else:
            _check_rows(sources)
        with self._writing():
            held = set().union(*self.table.rows("id", "path"))
            if found:
                changes, total = self.changed_files(found.files, report), sum(found.files.values())
            else:
                changes, total = self._changed_rows(sources, report), len(sources)
            self._write(changes, total, len(found.files if found else sources), held, report)
            keeps = "; the index keeps what it had of it"
            report.failures = [(name, reason + keeps * (name in held)) for name, reason in report.failures]
            if sync and self.table.exists:
                report.removed = self._remove_gone(sources, found)
            if self.table.exists and (report.added or report.updated or report.removed or self.table.unindexed()):
                self.table.finish()
        return report

    def changed_files(self, sizes: dict[Path, int], report: Report) -> Changes:
        """Yield of every file its documents if they have changed, its path, digest and size in bytes."""
        stored = self.table.rows("path", "digest")
        known, counts = dict(stored), Counter(path for path, _ in stored)
        digests = [known.get(str(path)) for path in sizes]
        for (path, size), found in zip(sizes.items(), self._each(read_changed, sizes, digests), strict=True):
            documents, its, problem = found
            if problem:
                report.failures.append((str(path), problem))
            elif not documents:
                report.unchanged += counts[str(path)]
            yield documents, str(path), its, size

    def _changed_rows(self, rows: Sequence[dict], report: Report) -> Changes:
        known = dict(self.table.rows("id", "digest", filter="path IS NULL"))
        for row in rows:
            its = hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()
            metadata = {name: value for name, value in row.items() if name not in ("id", "text")}
            document, documents = Document(str(row["id"]), row["text"], [], metadata), []
            if known.get(document.id) == its:
                report.unchanged += 1
            elif not document.text.strip():
                report.failures.append((document.id, "its text is empty"))
            else:
                documents = [document]
            yield documents, None, its, 1

    def _write(self, changes: Changes, total: int, number: int, held: set[str | None], report: Report) -> None:
        """Embed and commit what has changed, a batch at a time; `held` are the ids and paths that are in the index."""
        kinds = self.table.kinds
        batch: list[Source] = []
        chars = size = 0
        with counted(total, "indexing", "source", shown_total=number) as count:
            for documents, path, its, its_size in changes:
                try:
                    documents, kinds = normalized(documents, kinds)
                except ValueError as error:
                    report.failures.append((path or documents[0].id, str(error)))
                    documents = []
                batch += [(document, path, its) for document in documents]
                chars += sum(len(document.text) for document in documents)
                size += its_size
                if chars >= self.batch_chars or len(batch) >= self.batch_documents:
                    with count.part(size):
                        self._commit(batch, kinds, held, report)
                    batch, chars, size = [], 0, 0
                    count.describe(f"indexing, {report.tokens:,} tokens")
            with count.part(size):
                self._commit(batch, kinds, held, report)

    def _commit(self, batch: list[Source], kinds: dict[str, type], held: set[str | None], report: Report) -> None:
        if not batch:
            return
        if not self.table.exists:
            settings = Settings(self._model, self.encoder.fingerprint, self.vectors)
            self.table.create(settings, self.encoder.dimensions)
        self.table.add_columns(kinds)
        ids = [document.id for document, _, _ in batch if document.id in held]
        self._store(batch, ids, sorted({path for _, path, _ in batch if path in held} - {None}), report)
        report.added += len(batch) - len(ids)
        report.updated += len(ids)

    def _store(self, batch: list[Source], ids: list[str], paths: list[str], report: Report) -> None:
        """Embed and commit documents, which replace those of these ids and paths."""
        rows = rows_of(batch, self.encoder, self.vectors)
        self.table.write(rows, bool(ids), paths)
        report.tokens += sum(row["tokens"] for row in rows)

    def _remove_gone(self, sources: Sequence, found) -> int:
        stored, gone = self.table.rows("id", "path"), []
        if found is None:
            kept = {str(row["id"]) for row in sources}
            gone = [id for id, path in stored if path is None and id not in kept]
        else:
            files, roots = {str(path) for path in found.files}, [os.path.abspath(source) for source in sources]
            kept = [path for path, _ in found.failures]  # a folder that cannot be read may still hold its files
            for id, path in stored:
                places = {path, *map(str, Path(path or "").parents)}
                if path and path not in files and not places.isdisjoint(roots) and places.isdisjoint(kept):
                    gone.append(id)
        return self.table.delete(f"id IN ({quoted(gone)})") if gone else 0

    def rebuild(self, model: str | Path) -> int:
        """Embed all documents anew by another model, from the texts in the index; return how many.

        The index answers with the old vectors until all new ones are there.
        """
        with self._writing():
            if not self.table.exists:
                raise ValueError(f"index={self.folder} is empty; make it with m2bert index FILES --index {self.folder}")
            encoder, count = models.Encoder(model_name(model), self.device), self.table.count()
            settings = Settings(model_name(model), encoder.fingerprint, self.vectors)
            kept = [name for name in self.table.schema.names if name not in ("vectors", "spans", "tokens", "words")]

            def embedded(rows: list[dict]) -> list[dict]:
                with progress.part(len(rows)):
                    encoded = encoder.encode_documents([row["text"] for row in rows], self.vectors)
                return [row | each._asdict() for row, each in zip(rows, encoded, strict=True)]

            with counted(count, "embedding anew", "document") as progress:
                self.table.create(settings, encoder.dimensions, map(embedded, self.table.batches(kept)))
            self.table.finish()
            self._model, self._encoder = settings.model, encoder
        return count

    @reading
    def search(
        self, query: str, limit: int = 10, mode: Mode = "hybrid", filter: str | None = None, weight: float | None = None
    ) -> list[Hit]:
        """Return the documents that answer a query best, best first, each with its best passage.

        Args:
            mode: dense: by the best vector of a document; bm25: by words; hybrid: by the sum of both scores, each
                standardized over the documents that its side ranks.
            filter: SQL over the columns of metadata, such as `year > 2020 AND author = 'Ada'`.
            weight: of the vectors in a hybrid, from 0 to 1, chosen on development data (`m2bert eval --hybrid
                weighted`): then both scores are scaled to 0 ... 1 instead.
        """
        if not 1 <= limit <= DEPTH:
            raise ValueError(f"limit={limit} must be from 1 to {DEPTH}")
        return self._hits(query, *self._ranked(query, mode, filter, weight, limit))

    @reading
    def rank(
        self, query: str, mode: Mode = "hybrid", filter: str | None = None, weight: float | None = None,
        limit: int = CANDIDATES,
    ) -> dict[str, float]:  # fmt: skip
        """Return ids and scores of up to `limit` documents, best first, without their passages; see `search`."""
        return self._ranked(query, mode, filter, weight, limit)[0]

    def _ranked(
        self, query: str, mode: Mode, filter: str | None, weight: float | None, limit: int
    ) -> tuple[dict[str, float], Callable[[], np.ndarray]]:
        """Return documents, and what gives the query's vector: words alone need none."""
        if mode not in ("hybrid", "dense", "bm25"):
            raise ValueError(f"mode={mode!r} is unknown; choose from: hybrid, dense, bm25")
        if not query.strip():
            raise ValueError("query is empty; write what you look for")
        if weight is not None and (mode != "hybrid" or not 0 <= weight <= 1):
            raise ValueError(f"weight={weight} must be from 0 to 1, and is one of mode=hybrid; mend or leave it out")
        if filter and self._encoder is None:
            self.table.count(filter)  # one that cannot be used is refused before a model loads
        vector = cache(lambda: self.encoder.encode_queries([query])[0])
        depth = max(limit, CANDIDATES)
        words = self.table.rank_by_words(query, depth, filter) if mode != "dense" else {}
        vectors = self.table.rank_by_vector(vector(), depth, filter) if mode != "bm25" else {}
        ranked = words or vectors
        if mode == "hybrid":
            if len(words) < depth:  # all documents that share a word with the query; the score of the others is 0
                words = dict.fromkeys(vectors, 0.0) | words
            runs = {"": vectors}, {"": words}
            ranked = (standardized_fusion(*runs) if weight is None else weighted_fusion(*runs, weight))[""]
        return dict(list(ranked.items())[:limit]), vector

    def _hits(self, query: str, scores: dict[str, float], vector: Callable[[], np.ndarray]) -> list[Hit]:
        """Return the passages of ranked documents."""
        if not scores:
            return []
        metadata = list(self.table.kinds)
        stored = self.table.get(list(scores), [*READ, *metadata])
        hits, query_vector = [], vector()
        for id, score in scores.items():
            row = stored[id]
            spans = np.array(row["spans"], dtype=np.int64)
            text = row["text"]
            start, end = best_passage(query, query_vector, text, row["vectors"], spans)
            cosines = (row["vectors"] @ query_vector).tolist()
            matches = [(*span, cosine) for span, cosine in zip(spans.tolist(), cosines, strict=True)]
            page = int(np.searchsorted(row["pages"], start, side="right")) if row["pages"] else None
            its = {name: row[name] for name in metadata if row[name] is not None}
            its |= {name: int(value) for name, value in its.items() if isinstance(value, float) and value.is_integer()}
            hits.append(Hit(id, row["path"], page, score, text[start:end], start, end, len(text), matches, its))
        return hits

    @reading
    def document(self, id: str) -> str:
        """Return the text of a document. Raises KeyError if the index has none of this id."""
        return self.table.get([id], ["text"])[id]["text"]

    def delete(self, ids: Iterable[str] = (), filter: str | None = None) -> int:
        """Delete documents by id, or those that a filter selects (see `search`); return how many.

        What `add` is given again comes back.
        """
        ids = [ids] if isinstance(ids, str) else list(ids)
        if bool(ids) == bool(filter):
            raise ValueError("give either ids or a filter of the documents to delete")
        with self._writing():
            count = self.table.delete(filter or f"id IN ({quoted(ids)})") if self.table.exists else 0
            if count:
                self.table.finish()
        return count

    def compact(self) -> None:
        """Merge small files, bring the indexes up to date and remove old versions. `add` and `delete` do it too."""
        with self._writing():
            if self.table.exists:
                self.table.finish()

    @reading
    def duplicates(self, least: float = 0.2) -> list[tuple[str, str, float]]:
        """Return pairs of ids of near-duplicates, and the share of their word sequences that both have, highest first.

        Args:
            least: the smallest share of all sequences of 5 words of two documents, that are in both, that makes a pair.
        """
        from .duplicates import HASHES, minhash, sequences, share, similar_pairs

        hashes, batches = {}, self.table.batches(["id", "text"])
        with counted(self.table.count(), "comparing", "document") as progress:
            for row in (row for batch in batches for row in batch):
                hashes[row["id"]] = minhash(sequences(row["text"]))
                progress.add(1)
        ids, every = list(hashes), np.array([*hashes.values()], dtype=np.uint32).reshape(-1, HASHES)
        pairs = [(ids[a], ids[b]) for a, b in similar_pairs(every, least / 2)]
        texts = self.table.get(sorted({id for pair in pairs for id in pair}), ["text"])
        found = {id: sequences(row["text"]) for id, row in texts.items()}
        shares = [(a, b, share(found[a], found[b])) for a, b in pairs]
        return sorted((pair for pair in shares if pair[2] >= least), key=lambda pair: -pair[2])

    @reading
    def info(self) -> dict[str, object]:
        """Return what the index holds and what made it."""
        settings, stored = self.table.settings, self.table.rows("tokens", "path")
        size = 0
        for path in Path(self.folder).rglob("*"):
            with suppress(FileNotFoundError):  # a writer may remove it
                size += path.stat().st_size if path.is_file() else 0
        return {
            "documents": len(stored),
            "files": len({path for _, path in stored} - {None}),
            "tokens": sum(tokens for tokens, _ in stored),
            "vectors": self.table.count_vectors(),
            "not yet in the index of words": self.table.unindexed(),
            "bytes": size,
            "metadata": list(self.table.kinds),
            "vectors a window": settings.vectors,
            "model": settings.model,
            "fingerprint": settings.fingerprint,
            "format": settings.format,
        }


def rows_of(batch: Sequence[Source], encoder, vectors: int) -> list[dict]:
    """Embed documents; return the rows that `Table.write` stores, with up to `vectors` vectors a window."""
    encoded = encoder.encode_documents([document.text for document, _, _ in batch], vectors)
    return [
        {"id": document.id, "path": path, "digest": its, "text": document.text, "pages": document.pages,
         **each._asdict(), **document.metadata}
        for (document, path, its), each in zip(batch, encoded, strict=True)
    ]  # fmt: skip


def model_name(model: str | Path) -> str:
    """Return how an index names a model: a folder by its absolute path, so that it is found from anywhere."""
    if not Path(model).is_dir() and (str(model).startswith((".", "/", "~")) or str(model).count("/") > 1):
        raise ValueError(f"model={model} is no folder that is there; give a model's folder, or a Hub id as org/name")
    return str(Path(model).absolute()) if Path(model).is_dir() else str(model)


def read_changed(path: Path, known: str | None) -> tuple[list[Document], str, str | None]:
    """Return a file's documents, none if its digest is the known one; its digest; why it cannot be read."""
    its = ""
    try:
        its = digest(path)
        return [] if its == known else read_file(path), its, None
    except (Unreadable, OSError) as error:
        return [], its, getattr(error, "strerror", None) or str(error)


def normalized(documents: list[Document], kinds: dict[str, type]) -> tuple[list[Document], dict[str, type]]:
    """Return documents whose metadata can be columns, and the types of these with those that there are (`kinds`).

    Names are of letters, digits and _, in lower case. Raises ValueError for what cannot be stored.
    """
    kinds, found = dict(kinds), []
    for document in documents:
        metadata: dict[str, str | float | bool] = {}
        for name, value in document.metadata.items():
            value = value.item() if isinstance(value, np.generic) else value
            if value is None or value != value:  # as pandas marks what is missing
                continue
            column = re.sub(r"\W+", "_", str(name)).strip("_").lower()
            column = f"_{column}" if column[:1].isdigit() else f"{column}_" if column in COLUMNS else column
            kind = next((kind for kind in (bool, float, str) if isinstance(value, kind)), float)
            what = f"its {name}={value!r:.60}"
            exact = not isinstance(value, int) or abs(value) <= 2**53
            if not isinstance(value, str | int | float) or not exact:
                raise ValueError(f"{what} is no text, plain number or truth value; flatten, quote or drop it")
            if not column or column in metadata:
                raise ValueError(f"{what} has no name of its own as a column ({column!r}); rename it")
            if kinds.setdefault(column, kind) is not kind:
                known = {bool: "truth values", float: "numbers", str: "texts"}[kinds[column]]
                raise ValueError(f"{what} is a column of {known} in other documents; rename or convert it")
            metadata[column] = kind(value)
        try:
            "".join(map(str, (document.id, document.text, *metadata.values()))).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"its name or text is no Unicode ({error.reason}); rename or save it anew") from error
        found.append(document._replace(metadata=metadata))
    return found, kinds


def _check_rows(rows: Sequence) -> None:
    """Raise ValueError for what is no document, and for an id that two documents have."""
    ids = set()
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or row.get("id") in (None, ""):
            raise ValueError(f"document number {number} is {row!r:.80}; give {{'id': ..., 'text': ..., **metadata}}")
        if str(row["id"]) in ids:
            raise ValueError(f"id {row['id']!r} stands twice in what is added; give every document its own")
        ids.add(str(row["id"]))
