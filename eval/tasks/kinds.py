"""What kind of task a folder holds, told by the names in it alone, before anything is read.

csv      queries.csv, with documents/ or documents.csv (`load.load_csv_folder`)
beir     corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv (`from_beir`)
tables   queries/ and documents/, each with a table a split (`schema`)
"""

from pathlib import Path

from m2bert.files import shards

QUERIES = "queries.csv"
DOCUMENTS = "documents"
TABLES = (".parquet", ".jsonl", ".jsonl.gz")
CORPUS = ("corpus.jsonl", "corpus.jsonl.gz")


def kind_of(folder: Path) -> str | None:
    """Return the kind of a folder's task; None if it holds none."""
    if (folder / "queries").is_dir():
        return "tables"
    if (folder / QUERIES).is_file():
        return "csv"
    return "beir" if any((folder / name).is_file() for name in CORPUS) else None


def lacks(folder: Path, split: str) -> list[str]:
    """Return the names of the files of a split that are missing; without a task, those of tables."""
    kind = kind_of(folder)
    if kind == "csv":
        return []
    if kind == "beir":
        judgments = folder / "qrels" / f"{split}.tsv"
        return [] if judgments.is_file() or Path(f"{judgments}.gz").is_file() else [f"qrels/{split}.tsv"]
    return [f"{part}/{split}.parquet" for part in ("queries", DOCUMENTS) if not shards(folder / part, split, TABLES)]
