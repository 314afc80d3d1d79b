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
    for kind in ("queries", "documents"):  # one folder of both tasks
        (OUT / "data" / "tasks" / kind).mkdir(parents=True, exist_ok=True)
        for split in ("train", "validation", "test"):
            folders = data / "locov1_qmsum", OUT / "data" / "pydocs"
            tables = [pq.read_table(folder / kind / f"{split}.parquet") for folder in folders]
            joined = pa.concat_tables(tables, promote_options="default")
            pq.write_table(joined, OUT / "data" / "tasks" / kind / f"{split}.parquet")
    print(f"wrote {OUT}/data and {OUT}/tokenizer")


if __name__ == "__main__":
    main()
