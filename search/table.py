"""The table of an index: a Lance table whose row is a document with its text, its metadata and all its vectors.

Every change is one commit of Lance: after a crash the table is as it was before or after the change. A copy of the
folder is a backup. LanceDB opens it too.
"""

import ctypes
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NamedTuple

import numpy as np

from m2bert.terminal import one_line

FORMAT = 2  # of the table; a newer one is refused, an older one made anew
NAME = "documents"
SETTINGS = b"m2bert"  # the key of the schema's metadata that holds them, as JSON
COLUMNS = ("id", "path", "digest", "tokens", "text", "words", "pages", "spans", "vectors")  # our own
KINDS = {"bool": bool, "double": float, "string": str}  # pyarrow's names of what metadata are stored as
EXACT_VECTORS = 10_000  # beyond so many (90 ms a query), vectors are searched through an approximate index
NPROBES = 1_000  # partitions of it that a query reads: all, up to some million vectors
REFINE = 2  # documents compared exactly for each one that is asked for
FRAGMENT_ROWS = 4_096  # compaction never rewrites a larger fragment
UNINDEXED = 0.1  # of all documents, may be searched by words without the index, with scores a little off
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # in glibc's malloc.h
WORD = re.compile(r"\b\w\w+\b")
SOURCE_PLACE = re.compile(r", /\S+\.rs:.*")  # the place in Lance's source that its messages end with


class Settings(NamedTuple):
    """What decides the vectors of a table, kept in its schema."""

    model: str  # as it was named when the index was made; a folder's absolute path
    fingerprint: str
    vectors: int  # the most vectors of a window
    format: int = FORMAT


class Table:
    """Read and write the table of an index.

    Args:
        folder: of the index, or an address of object storage such as `s3://bucket/prefix`.
    """

    def __init__(self, folder: str):
        self.folder, self.uri, self._table = folder, f"{folder.rstrip('/')}/{NAME}.lance", None
        self.refresh()

    @property
    def exists(self) -> bool:
        """Whether documents can be read."""
        return self._table is not None

    @property
    def version(self) -> int:
        """Number of the commit that is read."""
        return self._table.version

    @property
    def settings(self) -> Settings:
        """Return what the table was made with. Raises ValueError for the table of a newer version."""
        stored = json.loads((self.schema.metadata or {}).get(SETTINGS, b"{}"))
        if not stored:
            raise ValueError(f"index={self.folder} holds a table of another program; name another folder")
        if stored.get("format", 0) > FORMAT:
            problem = f"has format {stored['format']}, and this version reads {FORMAT}"
            raise ValueError(f"index={self.folder} {problem}; pip install --upgrade m2bert")
        return Settings(**stored)

    @property
    def kinds(self) -> dict[str, type]:
        """The columns that hold metadata, and the types of their values: bool, float or str. Others are left alone."""
        found = {its.name: KINDS.get(str(its.type)) for its in self.schema if its.name not in COLUMNS}
        return {name: kind for name, kind in found.items() if kind is not None}

    @property
    def schema(self):
        """The columns, for other processes that write fragments for `commit`; none if there is no table."""
        return self._table.schema if self.exists else ()

    def refresh(self, write: bool = False) -> None:
        """Read what others have committed since.

        A reader keeps to the version before a new table whose index of words is not made yet; a writer makes it.
        """
        with self.errors("opened"):
            if self._table is not None:
                self._table.checkout_latest()
            elif "://" in self.uri or os.path.isdir(self.uri):
                import lance

                try:
                    self._table = lance.dataset(self.uri)
                except ValueError as error:  # a writer was stopped before its first commit
                    if "not found" not in str(error):
                        raise
            if self.exists and write:
                self._make_indexes()
            while self.exists and self.version > 1 and "words_idx" not in self._indexes():
                self._table = self._table.checkout_version(self.version - 1)

    def create(self, settings: Settings, dimensions: int, batches: Iterable[list[dict]] = ()) -> None:
        """Make the table, empty, or put another in its place: one commit after all batches."""
        import pyarrow as pa
        from lance import LanceDataset, LanceOperation
        from lance.fragment import write_fragments

        zstd, numbers = {"lance-encoding:compression": "zstd"}, pa.list_(pa.int64())
        fields = [
            pa.field("id", pa.string()), pa.field("path", pa.string()), pa.field("digest", pa.string()),
            pa.field("tokens", pa.int64()), pa.field("text", pa.string(), metadata=zstd),
            pa.field("words", pa.string(), metadata=zstd), pa.field("pages", numbers),
            pa.field("spans", pa.list_(pa.list_(pa.int64(), 2))),
            pa.field("vectors", pa.list_(pa.list_(pa.float16(), dimensions))),
            *(self.schema.field(name) for name in self.kinds),
        ]  # fmt: skip
        schema = pa.schema(fields, {SETTINGS: json.dumps(settings._asdict())})
        with self.errors("written"):
            fragments = [each for rows in batches for each in write_fragments(batch_of(rows, schema), self.uri, schema)]
            self._table = LanceDataset.commit(self.uri, LanceOperation.Overwrite(schema, fragments))
            self._make_indexes()

    def _indexes(self) -> set[str]:
        return {index.name for index in self._table.describe_indices()}

    def _make_indexes(self) -> None:
        made = self._indexes()
        if "words_idx" not in made:
            plain = {"base_tokenizer": "whitespace", "stem": False, "ascii_folding": False, "max_token_length": None}
            self._table.create_scalar_index("words", "INVERTED", **plain)
        if "id_idx" not in made:
            self._table.create_scalar_index("id", "BTREE")

    def write(self, rows: list[dict], replace: bool, paths: Sequence[str]) -> None:
        """Write documents in one commit.

        Args:
            replace: whether ids may be in the table: those documents are replaced.
            paths: of files; all of their documents that are not among the new ones are deleted.
        """
        with self.errors("written"):
            batch = batch_of(rows, self.schema)
            if replace or paths:
                change = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                if paths:
                    change = change.when_not_matched_by_source_delete(f"path IN ({quoted(paths)})")
                change.execute(batch)
            else:
                self._table.insert(batch)
            if self.unindexed() > UNINDEXED * self.count():
                self._table.optimize.optimize_indices()

    def add_columns(self, kinds: dict[str, type]) -> None:
        """Add the columns of metadata that there are not yet."""
        import pyarrow as pa

        types = {kind: name for name, kind in KINDS.items()}
        new = [pa.field(name, types[kind]) for name, kind in kinds.items() if name not in self.kinds]
        if new:
            with self.errors("written"):
                self._table.add_columns(new)

    def commit(self, fragments: list, ids: Sequence[str], paths: Sequence[str]) -> None:
        """Add fragments and delete the documents that they replace, by id and by path, in one commit."""
        from lance import LanceOperation

        replaced = {"id": ids, "path": paths}
        filter = " OR ".join(f"{name} IN ({quoted(values)})" for name, values in replaced.items() if values)
        with self.errors("written"):
            removed, kept = [], []
            for fragment in self._table.get_fragments() if filter else ():
                rest = fragment.delete(filter)
                if rest is None:
                    removed.append(fragment.fragment_id)
                elif rest.num_deletions != fragment.metadata.num_deletions:
                    kept.append(rest)
            change = LanceOperation.Update(removed, kept, fragments)
            if fragments:
                self._table = self._table.commit(self.uri, change, read_version=self.version)

    def delete(self, filter: str) -> int:
        """Delete the documents that a filter selects; return how many. Their files count as changed from then on."""
        if count := self.count(filter):
            files = quoted({path for (path,) in self.rows("path", filter=filter)} - {None})
            others = f"path IN ({files}) AND {whole(filter)} IS NOT TRUE"
            with self.errors("changed", filter):
                if files and self.count(others):
                    self._table.update({"digest": "''"}, others)
                self._table.delete(whole(filter))
        return count

    def finish(self) -> None:
        """Merge small fragments, bring all indexes up to date, remove older versions (their readers look again)."""
        heap("malloc_trim", 0)  # what was freed before, 0.3 GB for 100,000 documents
        heap("mallopt", M_MMAP_THRESHOLD, 2**20)  # and nothing is kept now: 0.2 GB
        with self.errors("compacted"):
            self._table.optimize.compact_files(target_rows_per_fragment=FRAGMENT_ROWS)  # first: it moves indexed rows
            self._table.optimize.optimize_indices()
            self._table.cleanup_old_versions(timedelta(0), delete_unverified="://" not in self.folder)
            if "vectors_idx" not in self._indexes() and self.count_vectors() > EXACT_VECTORS:
                self._table.create_index("vectors", "IVF_RQ", metric="cosine", num_bits=1)
        heap("mallopt", M_MMAP_THRESHOLD, 2**25)  # glibc's own largest, with which torch is faster

    def count_vectors(self) -> int:
        """Count the vectors of all documents."""
        import pyarrow.compute as pc

        return pc.sum(pc.list_value_length(self._table.to_table(["spans"])["spans"])).as_py() or 0

    def unindexed(self) -> int:
        """Count the documents that the index of words does not hold yet."""
        return self._table.stats.index_stats("words_idx")["num_unindexed_rows"]

    def count(self, filter: str | None = None) -> int:
        """Count the documents that a filter selects."""
        with self.errors("read", filter):
            return self._table.count_rows(whole(filter) if filter else None)

    def _read(self, names: Sequence[str], filter: str | None = None, **query):
        with self.errors("read", filter):
            return self._table.to_table(list(names), whole(filter) if filter else None, prefilter=True, **query)

    def rows(self, *names: str, filter: str | None = None) -> list[tuple]:
        """Return columns of the documents that a filter selects: a tuple a document; none if there is no table."""
        if not self.exists:
            return []
        found = self._read(names, filter)
        return list(zip(*(found[name].to_pylist() for name in names), strict=True))

    def batches(self, names: Sequence[str], size: int = 256) -> Iterator[list[dict]]:
        """Yield all documents in batches, without reading them all into memory."""
        for batch in self._table.to_batches(columns=list(names), batch_size=size):
            yield batch.to_pylist()

    def rank_by_words(self, query: str, limit: int, filter: str | None) -> dict[str, float]:
        """Return the ids and BM25 scores of the best documents that share a word with the query."""
        asked = {"query": words_of(query), "columns": ["words"]}
        found = self._read(["id", "_score"], filter, limit=limit, full_text_query=asked)
        return dict(zip(found["id"].to_pylist(), found["_score"].to_pylist(), strict=True))

    def rank_by_vector(self, vector: np.ndarray, limit: int, filter: str | None) -> dict[str, float]:
        """Return the ids and cosines of the best documents; a document counts by its best vector."""
        asked = {"column": "vectors", "q": vector, "k": limit, "metric": "cosine"}
        found = self._read(["id", "_distance"], filter, nearest=asked | {"nprobes": NPROBES, "refine_factor": REFINE})
        return dict(zip(found["id"].to_pylist(), (1 - found["_distance"].to_numpy()).tolist(), strict=True))

    def get(self, ids: Sequence[str], names: Sequence[str]) -> dict[str, dict]:
        """Return documents by id. Vectors are arrays (n, d) float32."""
        if not ids:
            return {}
        found = self._read(["id", *names], f"id IN ({quoted(ids)})")
        rows = found.drop_columns([name for name in ("vectors",) if name in names]).to_pylist()
        for number, row in enumerate(rows):
            if "vectors" in names:
                values = found["vectors"][number].values
                row["vectors"] = values.flatten().to_numpy().reshape(len(values), -1).astype(np.float32)
        return {row["id"]: row for row in rows}

    @contextmanager
    def errors(self, done: str, filter: str | None = None) -> Iterator[None]:
        """Turn what Lance raises in the block into a ValueError of one line."""
        try:
            yield
        except (RuntimeError, OSError, ValueError) as error:
            reason = SOURCE_PLACE.sub("", one_line(error))
            if filter and "Invalid user input" in reason:
                fix = "write it as SQL, such as year > 2020 AND author = 'Ada'"
                raise ValueError(f"filter={filter!r} cannot be used ({reason}); {fix}") from error
            fix = "what was committed before is intact; mend that and run it again"
            raise ValueError(f"index={self.folder} cannot be {done} ({reason}); {fix}") from error


def words_of(text: str) -> str:
    """Return what BM25 reads of a text: words of two letters or more, in lower case, as bm25s cuts them by default."""
    return " ".join(WORD.findall(text.lower()))


def whole(filter: str) -> str:
    """Return a filter in parentheses: without them, Lance ignores what follows a complete expression."""
    return f"({filter}\n)"


def quoted(values: Iterable[str]) -> str:
    """Return strings as SQL literals, separated by commas."""
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


def heap(function: str, *arguments: int) -> None:
    """Call a function of glibc's malloc.h, where there is glibc."""
    with suppress(AttributeError, OSError, TypeError):
        getattr(ctypes.CDLL(None), function)(*arguments)


def batch_of(rows: list[dict], schema):
    """Return documents as a pyarrow RecordBatch: all columns but `words` by name, metadata among them."""
    import pyarrow as pa

    def nested(name: str, kind: type):
        arrays = [row[name] for row in rows]
        offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
        values = pa.array(np.concatenate(arrays).astype(kind).ravel())
        return pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(values, arrays[0].shape[1]))

    columns = {"spans": nested("spans", np.int64), "vectors": nested("vectors", np.float16)}
    columns["words"] = pa.array([words_of(row["text"]) for row in rows])
    for field in schema:
        if field.name not in columns:
            columns[field.name] = pa.array([row.get(field.name) for row in rows], field.type)
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)
