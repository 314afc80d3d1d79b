"""An index of long documents: files in, passages that answer a query out."""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from m2bert.files import claimed, digest

from .documents import Document, Unreadable, find_files, read_file
from .table import COLUMNS, NAME, Row, Settings, Table, quoted

logger = logging.getLogger(__name__)

Mode = Literal["hybrid", "dense", "bm25"]
VECTORS = 16  # the most late chunks of a window
BATCH_CHARS = 1_000_000  # of documents that are embedded and committed together
BATCH_DOCUMENTS = 2_000  # or fewer characters, if they are short
CANDIDATES = 100  # documents that each side of a hybrid ranks
READ = ("path", "text", "pages", "spans", "vectors")  # columns that a hit is made of


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
    failures: list[tuple[str, str]] = field(default_factory=list)  # file or id, and why it is not in the index


class Index:
    """Search long documents by words and vectors together.

    `Index.open` makes one. Every method that writes keeps other writers out; readers see the last commit.
    """

    def __init__(self, folder: str, table: Table, model: str | None, vectors: int, device: str | None):
        self.folder, self.table, self.device = folder, table, device
        self._model, self.vectors, self._encoder = model, vectors, None

    @classmethod
    def open(
        cls, folder: str | Path, model: str | Path | None = None, vectors: int = VECTORS, device: str | None = None
    ) -> "Index":
        """Open an index, or one that the first `add` makes.

        Args:
            folder: or an address of object storage, such as `s3://bucket/prefix`.
            model: folder or Hub id of an encoder; of an index that exists, the one that made it, and by default that.
            vectors: the most vectors of a window of the model's length; of an index that exists, as it was made.
            device: as torch names it; by default a GPU, where there is one.

        Raises:
            ValueError: the folder is no index and no model is given, or the index was made by another model or by a
                newer version.
        """
        folder = str(folder) if "://" in str(folder) else str(Path(folder).absolute())
        if Path(folder).is_file():
            raise ValueError(f"index={folder} is a file; name a folder")
        is_local = "://" not in folder
        if model is None and is_local and not (Path(folder) / f"{NAME}.lance").is_dir():  # before the slow import
            raise ValueError(
                f"index={folder} does not exist; make it with m2bert index FILES --index DIR --model MODEL"
            )
        table = Table(folder)
        if not table.exists and is_local and Path(folder).is_dir() and any(Path(folder).iterdir()):
            raise ValueError(f"index={folder} is a folder of something else; name an empty or new one")
        index = cls(folder, table, None if model is None else model_name(model), vectors, device)
        if table.exists:
            settings = table.settings
            index.vectors = settings.vectors
            if index._model not in (None, settings.model):
                index._check(index.encoder.fingerprint)
            index._model = index._model or settings.model
        return index

    @property
    def encoder(self):
        """The encoder, loaded when it is first needed; one whose weights have changed since is refused."""
        if self._encoder is None:
            from .encoder import Encoder

            self._encoder = Encoder(self._model, self.device)
            self._check(self._encoder.fingerprint)
        return self._encoder

    def _check(self, fingerprint: str) -> None:
        if self.table.exists and fingerprint != self.table.settings.fingerprint:
            made = f"was made by {self.table.settings.model}, and model={self._model} gives other vectors"
            fix = f"name that one, or embed it anew: m2bert index --rebuild --model {self._model} --index {self.folder}"
            raise ValueError(f"index={self.folder} {made}; {fix}")

    def _claimed(self):
        """Keep other writers out until the block ends; the folder of object storage cannot be claimed."""
        return nullcontext() if "://" in self.folder else claimed(Path(self.folder))

    def add(self, sources: str | Path | Iterable[str | Path | dict], sync: bool = False) -> Report:
        """Add or update documents. What is unchanged since is neither read nor embedded again.

        Documents are committed a batch at a time, so that a run that was interrupted goes on where it was.

        Args:
            sources: a file, a folder, several of them, or an iterable of `{"id": ..., "text": ..., **metadata}`.
            sync: also remove documents whose file below these folders is gone; for an iterable, all documents that
                came from an iterable and are not in this one.
        """
        sources = [sources] if isinstance(sources, str | Path) else sources
        report = Report()
        if isinstance(sources, Sequence) and all(isinstance(source, str | Path) for source in sources):
            found = find_files(sources)
            report.left_out, report.failures = found.left_out, list(found.failures)
            changes, count = self._changed_files(found.files, report), len(found.files)
            size = sum(path.stat().st_size for path in found.files)
        else:
            sources = sources if isinstance(sources, Sequence) else list(sources)
            found, changes, count = None, self._changed_rows(sources, report), len(sources)
            size = count
        with self._claimed():
            self.table.refresh()
            self._write(changes, size, count, report)
            if sync and self.table.exists:
                report.removed = self._remove_gone(sources, found)
            if self.table.exists and (report.added or report.updated or report.removed or self.table.unindexed()):
                self.table.finish()
        return report

    def _changed_files(
        self, files: list[Path], report: Report
    ) -> Iterator[tuple[list[Document], str | None, str, int]]:
        """Yield of every file its size, and if it has changed its documents, path and digest."""
        known: dict[str, tuple[str, int]] = {}
        if self.table.exists:
            columns = self.table.columns(["path", "digest"])
            for path, its in zip(columns["path"], columns["digest"], strict=True):
                known[path] = its, known.get(path, (its, 0))[1] + 1
        for path in files:
            size, its = path.stat().st_size, digest(path)
            stored, count = known.get(str(path), (None, 0))
            documents = []
            if stored == its:
                report.unchanged += count
            else:
                try:
                    documents = read_file(path)
                except Unreadable as error:
                    report.failures.append((str(path), str(error)))
            yield documents, str(path), its, size

    def _changed_rows(self, rows: Sequence[dict], report: Report) -> Iterator[tuple[list[Document], None, str, int]]:
        known = {}
        if self.table.exists:
            columns = self.table.columns(["id", "digest"], "path IS NULL")
            known = dict(zip(columns["id"], columns["digest"], strict=True))
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or not isinstance(row.get("text"), str) or "id" not in row:
                raise ValueError(
                    f"document number {number} is {row!r:.80}; give {{'id': ..., 'text': ..., **metadata}}"
                )
            its = hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()
            document = Document(
                str(row["id"]), row["text"], [], {k: v for k, v in row.items() if k not in ("id", "text")}
            )
            if known.get(document.id) == its:
                report.unchanged += 1
                yield [], None, its, 1
            elif not document.text.strip():
                report.failures.append((document.id, "its text is empty"))
                yield [], None, its, 1
            else:
                yield [document], None, its, 1

    def _write(self, changes: Iterator, total: int, number: int, report: Report) -> None:
        """Embed and commit what has changed, a batch at a time, behind one progress bar."""
        from m2bert.eval.progress import counted

        known = set(self.table.columns(["id"])["id"]) if self.table.exists else set()
        seen: set[str] = set()
        batch: list[tuple[Document, str | None, str]] = []
        chars = size = 0
        with counted(total, "indexing", "source", shown_total=number) as count:
            for documents, path, its, its_size in changes:
                for document in documents:
                    if document.id in seen:
                        raise ValueError(
                            f"id {document.id!r} stands twice in what is added; give every document its own"
                        )
                    seen.add(document.id)
                    batch.append((_normalized(document), path, its))
                    chars += len(document.text)
                size += its_size
                if chars >= BATCH_CHARS or len(batch) >= BATCH_DOCUMENTS:
                    with count.part(size):
                        self._commit(batch, known, report)
                    batch, chars, size = [], 0, 0
                    count.describe(f"indexing, {report.tokens:,} tokens")
            with count.part(size):
                self._commit(batch, known, report)

    def _commit(self, batch: list[tuple[Document, str | None, str]], known: set[str], report: Report) -> None:
        if not batch:
            return
        from .duplicates import minhash

        encoded = self.encoder.encode_documents([document.text for document, _, _ in batch], self.vectors)
        rows = [
            Row(document, path, its, each.tokens, each.spans, each.vectors, minhash(document.text))
            for (document, path, its), each in zip(batch, encoded, strict=True)
        ]
        if not self.table.exists:
            settings = Settings(self._model, self.encoder.fingerprint, self.vectors)
            self.table.create(settings, self.encoder.dimensions)
        changed = [document.id for document, _, _ in batch if document.id in known]
        paths = {path for document, path, _ in batch if path and (document.id in known or "#" in document.id)}
        if changed or paths:
            self.table.replace(rows, sorted(paths))
        else:
            self.table.add(rows)
        report.added += len(rows) - len(changed)
        report.updated += len(changed)
        report.tokens += sum(row.tokens for row in rows)

    def _remove_gone(self, sources: Sequence, found) -> int:
        columns = self.table.columns(["id", "path"])
        stored = list(zip(columns["id"], columns["path"], strict=True))
        if found is None:
            kept = {str(row["id"]) for row in sources}
            gone = [id for id, path in stored if path is None and id not in kept]
        else:
            kept = {str(path) for path in found.files} | {path for path, _ in found.failures}
            roots = [Path(source).absolute() for source in sources]
            below = {path for _, path in stored if path and any(Path(path).is_relative_to(root) for root in roots)}
            gone = [id for id, path in stored if path in below and path not in kept]
        return self.table.delete(f"id IN ({quoted(gone)})") if gone else 0

    def rebuild(self, model: str | Path) -> int:
        """Embed all documents anew by another model, from the texts in the index; return how many.

        The index answers with the old vectors until all new ones are there.
        """
        from m2bert.eval.progress import counted

        from .encoder import Encoder

        with self._claimed():
            self.table.refresh()
            encoder, count = Encoder(model_name(model), self.device), self.table.count()
            settings = Settings(model_name(model), encoder.fingerprint, self.vectors)
            with counted(count, "embedding anew", "document") as progress:

                def batches() -> Iterator[list[Row]]:
                    metadata = self.table.metadata_columns
                    for stored in self.table.batches(
                        [*(name for name in COLUMNS if name not in ("vectors", "words")), *metadata]
                    ):
                        with progress.part(len(stored)):
                            encoded = encoder.encode_documents([row["text"] for row in stored], self.vectors)
                        rows = []
                        for row, each in zip(stored, encoded, strict=True):
                            its = {name: row[name] for name in metadata if row[name] is not None}
                            document = Document(row["id"], row["text"], row["pages"], its)
                            its_hash = np.array(row["minhash"], dtype=np.uint32)
                            rows.append(
                                Row(
                                    document,
                                    row["path"],
                                    row["digest"],
                                    each.tokens,
                                    each.spans,
                                    each.vectors,
                                    its_hash,
                                )
                            )
                        yield rows

                embedded = list(batches())  # LanceDB cannot read a table while it writes it anew
            self.table.create(settings, encoder.dimensions, embedded)
            self.table.finish()
            self._model, self._encoder = settings.model, encoder
        return count

    def search(
        self,
        query: str,
        limit: int = 10,
        mode: Mode = "hybrid",
        filter: str | None = None,
        weight: float | None = None,
    ) -> list[Hit]:
        """Return the documents that answer a query best, best first, each with its best passage.

        Args:
            mode: dense: by the best vector of a document; bm25: by words; hybrid: by the sum of both scores, each
                standardized over the documents that its side ranks.
            filter: SQL over the columns of metadata, such as `year > 2020 AND author = 'Ada'`.
            weight: of the vectors in a hybrid, from 0 to 1, chosen on development data (`m2bert eval --hybrid
                weighted`): then both scores are scaled to 0 ... 1 instead.
        """
        if limit < 1:
            raise ValueError(f"limit={limit} must be at least 1")
        ranked = self.rank(query, mode, filter, weight)
        best = dict(list(ranked.items())[:limit])
        return self._hits(query, best)

    def rank(
        self,
        query: str,
        mode: Mode = "hybrid",
        filter: str | None = None,
        weight: float | None = None,
        limit: int = CANDIDATES,
    ) -> dict[str, float]:
        """Return ids and scores of up to `limit` documents, best first, without their passages; see `search`."""
        from m2bert.eval.search import standardized_fusion, weighted_fusion

        if mode not in ("hybrid", "dense", "bm25"):
            raise ValueError(f"mode={mode!r} is unknown; choose from: hybrid, dense, bm25")
        if not query.strip():
            raise ValueError("query is empty; write what you look for")
        if weight is not None and not 0 <= weight <= 1:
            raise ValueError(f"weight={weight} must be from 0 to 1")
        self.table.refresh()
        words = self.table.rank_by_words(query, limit, filter) if mode != "dense" else {}
        vectors = self.table.rank_by_vector(self._query_vector(query), limit, filter) if mode != "bm25" else {}
        if mode != "hybrid":
            return words or vectors
        runs = {"": vectors}, {"": words}
        fused = standardized_fusion(*runs) if weight is None else weighted_fusion(*runs, weight)
        return fused[""]

    def _query_vector(self, query: str) -> np.ndarray:
        self._check(self.encoder.fingerprint)  # another process may have rebuilt the index
        return self.encoder.encode_queries([query])[0]

    def _hits(self, query: str, scores: dict[str, float]) -> list[Hit]:
        """Return the passages of ranked documents."""
        from .passages import best_passage

        if not scores:
            return []
        metadata = self.table.metadata_columns
        stored = self.table.get(list(scores), [*READ, *metadata])
        vector, hits = self._query_vector(query), []
        for id, score in scores.items():
            row = stored[id]
            spans = np.array(row["spans"], dtype=np.int64)
            passage = best_passage(query, vector, row["text"], row["vectors"], spans)
            cosines = (row["vectors"] @ vector).tolist()
            matches = [(*span, cosine) for span, cosine in zip(spans.tolist(), cosines, strict=True)]
            page = int(np.searchsorted(row["pages"], passage.start, side="right")) if row["pages"] else None
            text = row["text"][passage.start : passage.end]
            its = {name: row[name] for name in metadata if row[name] is not None}
            length = len(row["text"])
            hits.append(Hit(id, row["path"], page, score, text, passage.start, passage.end, length, matches, its))
        return hits

    def document(self, id: str) -> str:
        """Return the text of a document. Raises KeyError if the index has none of this id."""
        self.table.refresh()
        return self.table.get([id], ["text"])[id]["text"]

    def delete(self, ids: Iterable[str] = (), filter: str | None = None) -> int:
        """Delete documents by id, or those that a filter selects (see `search`); return how many."""
        ids = [ids] if isinstance(ids, str) else list(ids)
        if bool(ids) == bool(filter):
            raise ValueError("give either ids or a filter of the documents to delete")
        with self._claimed():
            self.table.refresh()
            count = self.table.delete(filter or f"id IN ({quoted(ids)})")
            if count:
                self.table.finish()
        return count

    def compact(self) -> None:
        """Merge small files, bring the indexes up to date and remove old versions. `add` and `delete` do it too."""
        with self._claimed():
            self.table.refresh()
            self.table.finish()

    def duplicates(self, least: float = 0.5) -> list[tuple[str, str, float]]:
        """Return pairs of ids of near-duplicates, and the share of their word sequences that both have, highest first.

        Args:
            least: the smallest share, an estimate by MinHash (Broder 1997), that makes a pair.
        """
        from .duplicates import similar_pairs

        columns = self.table.columns(["id", "minhash"])
        return similar_pairs(columns["id"], np.array(columns["minhash"], dtype=np.uint32), least)

    def info(self) -> dict[str, object]:
        """Return what the index holds and what made it."""
        self.table.refresh()
        settings, columns = self.table.settings, self.table.columns(["tokens", "path"])
        folder = Path(self.folder)
        return {
            "documents": len(columns["tokens"]),
            "files": len(set(columns["path"]) - {None}),
            "tokens": sum(columns["tokens"]),
            "vectors": self.table.count_vectors(),
            "near-duplicate pairs": len(self.duplicates()) if columns["tokens"] else 0,
            "not yet in the index of words": self.table.unindexed(),
            "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            "metadata": self.table.metadata_columns,
            "vectors a window": settings.vectors,
            "model": settings.model,
            "fingerprint": settings.fingerprint,
            "format": settings.format,
        }


def model_name(model: str | Path) -> str:
    """Return how an index names a model: a folder by its absolute path, so that it is found from anywhere."""
    return str(Path(model).absolute()) if Path(model).is_dir() else str(model)


def _normalized(document: Document) -> Document:
    """Return a document whose metadata can be columns: names in lower case without blanks, plain values."""
    metadata = {}
    for name, value in document.metadata.items():
        if value is None:
            continue
        if not isinstance(value, str | int | float | bool):
            raise ValueError(f"document {document.id!r}: {name}={value!r} is no text or number; flatten or drop it")
        column = re.sub(r"\W+", "_", str(name).strip()).lower()
        metadata[f"{column}_" if column in COLUMNS else column] = value
    return document._replace(metadata=metadata)
