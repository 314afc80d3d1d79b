"""Vectors of a file of documents, for a store of the user's own."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from m2bert.eval.progress import counted
from m2bert.files import write_atomically
from m2bert.rows import read_rows

from . import encoder as models

BATCH_DOCUMENTS = 256


def embed_file(file: Path, output: Path, model: str, vectors: int) -> tuple[int, int]:
    """Embed the documents of a file; write a row for every vector: id, start, end (characters) and vector (float32).

    Args:
        file: .jsonl, .jsonl.gz or .parquet with `id` and `text`.

    Returns: how many documents were read and vectors written. The output is written whole or not at all.
    """
    documents, rows = sum(1 for _ in _documents(file)), 0  # refuses what is none before a model is loaded

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoder = models.Encoder(model)
    kind = pa.list_(pa.float32(), encoder.dimensions)
    schema = pa.schema([("id", pa.string()), ("start", pa.int64()), ("end", pa.int64()), ("vector", kind)])

    def write(path: Path) -> None:
        nonlocal rows
        given = _documents(file)
        with pq.ParquetWriter(path, schema) as writer, counted(documents, "embedding", "document") as progress:
            while batch := list(islice(given, BATCH_DOCUMENTS)):
                with progress.part(len(batch)):
                    encoded = encoder.encode_documents([text for _, text in batch], vectors)
                ids = [id for (id, _), each in zip(batch, encoded, strict=True) for _ in each.spans]
                spans = np.concatenate([each.spans for each in encoded])
                values = pa.array(np.concatenate([each.vectors for each in encoded]).ravel())
                columns = [ids, spans[:, 0], spans[:, 1], pa.FixedSizeListArray.from_arrays(values, encoder.dimensions)]
                writer.write_table(pa.table(columns, schema=schema))
                rows += len(ids)

    write_atomically(output, write)
    return documents, rows


def _documents(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (id, text). Raises ValueError for a file of another kind, and for a row that is no document."""
    if not file.name.endswith((".parquet", ".jsonl", ".jsonl.gz")):
        raise ValueError(f"{file} is neither .jsonl nor .parquet; convert it, or m2bert index {file} --index DIR")
    for where, row in read_rows(file, ("id", "text")):
        if not isinstance(row, dict) or row.get("id") in (None, "") or not isinstance(row.get("text"), str):
            raise ValueError(f'{where} is no {{"id": ..., "text": ...}}; mend it')
        yield str(row["id"]), row["text"]
