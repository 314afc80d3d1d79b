"""Vectors of a file of documents, for a store of the user's own."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from m2bert.files import read_json_lines, write_atomically

BATCH_DOCUMENTS = 256


def embed_file(file: Path, output: Path, model: str, vectors: int) -> tuple[int, int]:
    """Embed the documents of a file; write a row for every vector: id, start, end (characters) and vector (float32).

    Args:
        file: .jsonl, .jsonl.gz or .parquet with `id` and `text`.

    Returns: how many documents were read and vectors written. The output is written whole or not at all.
    """
    _check_columns(file)

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from m2bert.eval.progress import counted

    from .encoder import Encoder

    encoder = Encoder(model)
    kind = pa.list_(pa.float32(), encoder.dimensions)
    schema = pa.schema([("id", pa.string()), ("start", pa.int64()), ("end", pa.int64()), ("vector", kind)])
    documents = rows = 0

    def write(path: Path) -> None:
        nonlocal documents, rows
        with pq.ParquetWriter(path, schema) as writer, counted(file.stat().st_size, "embedding", "byte") as progress:
            for batch, size in _batches(file):
                with progress.part(size):
                    encoded = encoder.encode_documents([text for _, text in batch], vectors)
                ids = [id for (id, _), each in zip(batch, encoded, strict=True) for _ in each.spans]
                spans = np.concatenate([each.spans for each in encoded])
                values = pa.array(np.concatenate([each.vectors for each in encoded]).ravel())
                columns = [ids, spans[:, 0], spans[:, 1], pa.FixedSizeListArray.from_arrays(values, encoder.dimensions)]
                writer.write_table(pa.table(columns, schema=schema))
                documents, rows = documents + len(batch), rows + len(ids)

    write_atomically(output, write)
    return documents, rows


def _check_columns(file: Path) -> None:
    """Raise ValueError, before a model is loaded, for a file of another kind or without the columns."""
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            names = pq.read_schema(file).names
        except pa.ArrowException as error:
            raise ValueError(f"{file} is no Parquet file ({error}); write it anew") from error
        if not {"id", "text"} <= set(names):
            raise ValueError(f"{file} has the columns {', '.join(names)}; it needs id and text")
    elif not file.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(
            f"{file} is neither .jsonl nor .parquet; convert it, or index it: m2bert index {file} --index DIR"
        )


def _batches(file: Path) -> Iterator[tuple[list[tuple[str, str]], float]]:
    """Yield documents as (id, text), and the bytes of the file that they stand for."""
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        table, number = pq.ParquetFile(file), 1
        for batch in table.iter_batches(BATCH_DOCUMENTS, columns=["id", "text"]):
            rows = [_document(f"{file}, row {place}", row) for place, row in enumerate(batch.to_pylist(), number)]
            number += len(rows)
            yield rows, file.stat().st_size * len(rows) / table.metadata.num_rows
    else:
        rows = (_document(f"{file}, line {line}", row) for line, row in read_json_lines(file))
        while batch := list(islice(rows, BATCH_DOCUMENTS)):
            yield batch, sum(len(text) for _, text in batch)


def _document(place: str, row) -> tuple[str, str]:
    if not isinstance(row, dict) or row.get("id") in (None, "") or not isinstance(row.get("text"), str):
        raise ValueError(f'{place} is no {{"id": ..., "text": ...}}; mend it')
    return str(row["id"]), row["text"]
