"""Make the data of the replicas: links to pretraining text, two retrieval tasks in one folder, a tokenizer.

    python experiments/replicas/prepare.py --data FOLDER

FOLDER holds pretrain/{web,encyclopedic,books}/{train,validation}.parquet (column text) and locov1_qmsum/ in the LoCoV1
schema. The second task is pydocs, the documentation of installed packages. Everything goes to runs/replicas/.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from m2bert.eval.tasks.pydocs import build_pydocs
from m2bert.train.tokenizer import train_wordpiece

OUT = Path("runs/replicas")
SOURCES = ("web", "encyclopedic", "books")
VOCABULARY = 8192
CHARACTERS = 3_000_000  # of each source, for the tokenizer


def join_tasks(folders: list[Path], output: Path):
    """Write one folder in the LoCoV1 schema from several."""
    for kind in ("queries", "documents"):
        (output / kind).mkdir(parents=True, exist_ok=True)
        for split in ("train", "validation", "test"):
            tables = [pq.read_table(folder / kind / f"{split}.parquet") for folder in folders]
            pq.write_table(pa.concat_tables(tables, promote_options="default"), output / kind / f"{split}.parquet")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, type=Path)
    data = parser.parse_args().data.resolve()
    (OUT / "data").mkdir(parents=True, exist_ok=True)
    texts = []
    for source in SOURCES:
        link = OUT / "data" / source
        if not link.exists():
            link.symlink_to(data / "pretrain" / source)
        column = pq.read_table(link / "train.parquet", columns=["text"])["text"].to_pylist()
        texts.append("\n".join(column[:: max(1, len(column) // 200)])[:CHARACTERS])
    train_wordpiece(texts, VOCABULARY).save_pretrained(OUT / "tokenizer")
    build_pydocs(OUT / "data" / "pydocs")
    join_tasks([data / "locov1_qmsum", OUT / "data" / "pydocs"], OUT / "data" / "tasks")
    print(f"wrote {OUT}/data and {OUT}/tokenizer")


if __name__ == "__main__":
    main()
