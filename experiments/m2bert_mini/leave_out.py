"""Leave documents out of a prepared folder of `m2bert train align`: what is the text of a task's own domain worth?

    python experiments/m2bert_mini/leave_out.py --prepared FOLDER --text PARQUET --source PREFIX --output FOLDER

writes the folder without the documents of a parquet file whose column `source` begins with PREFIX. Vectors of the
teacher stay as they are.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from m2bert.train.alignment import AlignedTexts, joined
from m2bert.train.tokenizer import load_tokenizer
from m2bert.train.verified_files import TOKENIZER, building, read_prepared, write_prepared


def document(texts: AlignedTexts, number: int) -> AlignedTexts:
    """Return one document as texts of their own."""
    edges = texts.edges[texts.first[number] : texts.first[number + 1]]
    stretches = slice(texts.first[number] - number, texts.first[number + 1] - number - 1)
    pieces = np.cumsum([0, *texts.piece_counts])[[stretches.start, stretches.stop]]
    return AlignedTexts(
        texts.tokens[edges[0] : edges[-1]],
        edges - edges[0],
        np.array([0, len(edges)]),
        texts.chunks[stretches],
        texts.spans[stretches] - edges[0],
        texts.queries[stretches],
        texts.pieces[slice(*pieces)],
        texts.piece_counts[stretches],
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    arrays, content = read_prepared(options.prepared, "align")
    tokenizer = load_tokenizer(options.prepared / TOKENIZER)
    rows = pq.read_table(options.text, columns=["text", "source"]).to_pylist()
    excluded = {
        np.array(tokenizer(row["text"], add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32).tobytes()
        for row in rows
        if row["source"].startswith(options.source)
    }
    texts = AlignedTexts(**arrays["train"])
    documents = (document(texts, number) for number in range(len(texts.counts)))
    kept = [one for one in documents if one.tokens.astype(np.int32).tobytes() not in excluded]
    print(f"left out {len(texts.counts) - len(kept)} of {len(texts.counts)} documents; {len(excluded)} were named")
    arrays["train"] = joined(kept)._asdict()
    with building(options.output) as scratch:
        write_prepared(options.output, scratch, "align", arrays, content, tokenizer)


if __name__ == "__main__":
    main()
