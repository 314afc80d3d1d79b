"""Score encoders on development data: alone, and beside BM25 and the lexical model m2bert-small.

    python experiments/m2bert_mini/development.py --data ../shared/data --output F.json MODEL...

Development data are documents held out of the training splits, with their queries, and QMSUM's validation split. A
model reads whole documents up to its length. It gives one vector for every STRETCH_TOKENS tokens of one pass; a model
that cannot pool parts gets its best chunks. Scores are nDCG@10. Sums are of scores standardized per query.
"""

import argparse
import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from m2bert.eval.encoders.policies import BestChunk
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder
from m2bert.eval.rankers import Bm25Ranker
from m2bert.eval.search import ExactSearch, score_ranking, standardized_fusion
from m2bert.eval.tasks.schema import load_task, task_names

STRETCH_TOKENS = 160  # fewest of a vector; the most is nearly twice as many
HELD_OUT = 3  # one document in so many, by the checksum of its id
TASKS = {  # folder: split
    "openstax_question": "train",
    "acl_citance": "train",
    "locov1_qmsum": "validation",
}


def load_development(folder: Path, split: str):
    """Return a task's documents held out of `train` with the queries that they answer, or a validation split whole."""
    task = load_task(folder, task_names(folder, split)[0], split)
    if split != "train":
        return task
    kept = {pid for pid in task.documents if zlib.crc32(pid.encode()) % HELD_OUT == 0}
    qrels = {qid: judged for qid, judged in task.qrels.items() if set(judged) <= kept}
    queries = {qid: task.queries[qid] for qid in qrels}
    documents = {pid: text for pid, text in task.documents.items() if pid in kept}
    return replace(task, queries=queries, documents=documents, qrels=qrels)


def rank(encoder: SentenceTransformerEncoder, task, lexical: bool):
    """Return two runs of an encoder: of its vectors of parts, and of these with the document's own vector added.

    Parts are the 16 late chunks of the lexical model, and stretches of a student. A model that cannot pool parts gets
    its best chunks, and nothing is added to them.
    """
    texts = list(task.documents.values())
    queries = encoder.encode(list(task.queries.values()), "query")
    if encoder.parts_problem or encoder.max_tokens <= 512:
        chunks = BestChunk(tokens=256).embed(encoder, texts)
        forms = [(chunks.rows, chunks.counts)] * 2
    else:
        parts = ([1, 16],) if lexical else ([1, 10**6], STRETCH_TOKENS)
        (whole, _), (rows, counts) = encoder.encode_parts(texts, *parts)
        forms = [(rows, counts), (rows + np.repeat(whole, counts, axis=0), counts)]
    runs = []
    for rows, counts in forms:
        search = ExactSearch(list(task.documents), len(task.queries))
        search.add_vectors(queries, list(task.documents), rows, counts)
        runs.append(search.run(list(task.queries)))
    return runs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders of encoders")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lexical", default="models/m2bert-small", help="the model of words beside which they stand")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    words, found = SentenceTransformerEncoder(arguments.lexical), {}
    for name, split in TASKS.items():
        task = load_development(arguments.data / name, split)
        bm25, (late, late_document) = Bm25Ranker().rank(task), rank(words, task, lexical=True)
        runs = {"BM25": bm25, "late": late, "late, document": late_document}
        for model in arguments.models:
            short = Path(model).name
            runs[short], runs[f"{short}, document"] = rank(SentenceTransformerEncoder(model), task, lexical=False)
        for first in ("late", "late, document"):  # added to BM25, and both to each model
            runs[f"BM25 + {first}"] = standardized_fusion(bm25, runs[first])
            for model in map(lambda path: Path(path).name, arguments.models):
                for second in (model, f"{model}, document"):
                    runs[f"{first} + {second}"] = both = standardized_fusion(runs[first], runs[second])
                    runs[f"BM25 + {first} + {second}"] = standardized_fusion(bm25, both)
        found[name] = {"documents": len(task.documents), "queries": len(task.queries)}
        found[name] |= {
            system: 100 * float(np.mean([*score_ranking(run, task.qrels).values()])) for system, run in runs.items()
        }
        print(name, {key: round(value, 1) for key, value in found[name].items()}, flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
