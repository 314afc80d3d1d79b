"""Write pairs of a query and the stretch that answers it, out of tasks that only name the document: F, JSON lines.

    python experiments/m2bert_mini/pairs.py --model runs/control-1.5e-3 --data ../shared/data --output F [--hold-out]

A document is cut into stretches of at most TOKENS tokens. Of the stretches of a query's documents the one with the
highest sum of standardized scores, BM25's and the model's cosine, is its answer. Of the stretches of others the
NEGATIVES with the highest sums are its negatives. --hold-out leaves out the documents of development.py with their
queries.
"""

import argparse
import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from m2bert.eval.encoders.policies import chunk_texts
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder
from m2bert.eval.rankers import Bm25Index
from m2bert.eval.tasks.load import load_folder

HELD_OUT = 3  # one document in so many, by the checksum of its id, is development data
TOKENS = 194
NEGATIVES = 3
TASKS = "openstax_question", "openstax_summary", "rfc_summary", "locov1_qmsum"
LONGEST_QUERY = 2_000  # characters; summaries that are longer are left out


def is_held_out(pid: str) -> bool:
    """Return whether a document is development data."""
    return zlib.crc32(pid.encode()) % HELD_OUT == 0


def standardized(scores: np.ndarray) -> np.ndarray:
    """Return scores minus their mean, divided by their standard deviation."""
    return (scores - scores.mean()) / max(scores.std(), 1e-9)


def pairs_of(task, encoder: SentenceTransformerEncoder) -> list[dict]:
    """Return {query, positive, negative_1, ...} for each query of the task."""
    stretches = chunk_texts(encoder, list(task.documents.values()), TOKENS)
    ends = np.cumsum([len(own) for own in stretches]).tolist()
    rows_of = dict(zip(task.documents, map(range, [0, *ends], ends), strict=False))
    texts = [text for own in stretches for text in own]
    words = Bm25Index(replace(task, documents=dict(enumerate(texts))))
    vectors = encoder.encode(texts, "document")
    queries = encoder.encode(list(task.queries.values()), "query")
    pairs = []
    for (qid, query), vector in zip(task.queries.items(), queries, strict=True):
        answers = [row for pid in task.answers(qid) for row in rows_of[pid]]
        if len(query) <= LONGEST_QUERY:
            scores = standardized(words.scores([query])[0]) + standardized(vectors @ vector)
            best, scores[answers] = answers[int(scores[answers].argmax())], -np.inf
            wrong = np.argsort(-scores)[:NEGATIVES]
            pairs.append({"query": query, "positive": texts[best]})
            pairs[-1] |= {f"negative_{number}": texts[row] for number, row in enumerate(wrong, 1)}
    return pairs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--hold-out", action="store_true")
    parser.add_argument("--pydocs", type=Path, help="folder of pydocs, a fifth task")
    arguments = parser.parse_args()
    encoder, pairs, held_out = SentenceTransformerEncoder(arguments.model), [], set()
    for folder in [*(arguments.data / name for name in TASKS), *filter(None, [arguments.pydocs])]:
        [task] = load_folder(folder, None, "train")
        if arguments.hold_out:  # openstax_question comes first, and openstax_summary has the same documents
            if task.name == TASKS[0]:
                held_out = {text for pid, text in task.documents.items() if is_held_out(pid)}
            documents = {pid: text for pid, text in task.documents.items() if text not in held_out}
            qrels = {qid: judged for qid, judged in task.qrels.items() if judged.keys() <= documents.keys()}
            queries = {qid: task.queries[qid] for qid in qrels}
            task = replace(task, documents=documents, qrels=qrels, queries=queries)
        own = pairs_of(task, encoder)
        pairs += own
        print(f"{task.name}: {len(own)} pairs of {len(task.documents)} documents", flush=True)
    arguments.output.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))


if __name__ == "__main__":
    main()
