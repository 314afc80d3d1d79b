"""Write the ranges for int8 of a model, MODEL/int8_ranges.json, from its vectors of training text.

    python experiments/vectors/ranges.py PRETRAIN_FOLDER [MODEL]

Of each of web, encyclopedic and books, the first 400 texts are embedded as documents, cut at 20,000 characters, and
8 to 31 words of each as a query. The rotation makes all numbers of a vector alike, so all have one range: 7 standard
deviations, rounded to 1/64.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder

MODEL = Path(__file__).parents[2] / "models" / "m2bert-small"


def first_texts(folder: Path) -> list[str]:
    """Return the first 400 texts of each source, cut at 20,000 characters."""
    texts = []
    for source in ("web", "encyclopedic", "books"):
        rows = next(pq.ParquetFile(folder / source / "train.parquet").iter_batches(400, columns=["text"]))
        texts += [text[:20000] for text in rows["text"].to_pylist()]
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="Folder of the text.")
    parser.add_argument("model", type=Path, nargs="?", default=MODEL)
    arguments = parser.parse_args()
    texts = first_texts(arguments.data)
    sentences = [" ".join(text.split()[50 : 58 + place % 24]) for place, text in enumerate(texts)]
    encoder = SentenceTransformerEncoder(str(arguments.model))
    vectors = np.concatenate([encoder.encode(texts, "document"), encoder.encode(sentences, "query")])
    limit = round(7 * float(vectors.std()) * 64) / 64
    print(f"{len(vectors)} vectors, standard deviation {vectors.std():.5f}, largest number {np.abs(vectors).max():.4f}")
    (arguments.model / "int8_ranges.json").write_text(json.dumps([[-limit], [limit]]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
