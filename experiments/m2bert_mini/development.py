"""Score encoders on development data: alone, and beside BM25 and the lexical model m2bert-small.

    python experiments/m2bert_mini/development.py --data ../shared/data --pydocs runs/pydocs --output F.json \\
        --meaning STUDENT... --joint MODEL...

Development data are documents held out of the training splits, with their queries, and the validation splits of QMSUM
and pydocs. A model reads whole documents up to its length. Late chunks are 16, with the document's vector added. A
student of meaning alone gives one vector for every STRETCH_TOKENS tokens of one pass; a model that cannot pool parts
gets its best chunks. Scores are nDCG@10. Sums are of scores standardized per query; those with a weight are of scores
scaled to 0 ... 1. Intervals are of paired differences over the queries of all tasks.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from pairs import is_held_out

from m2bert.eval.encoders.policies import BestChunk, DocumentVectors, LateChunk
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder
from m2bert.eval.rankers import Bm25Ranker
from m2bert.eval.search import ExactSearch, score_ranking, standardized_fusion, weighted_fusion
from m2bert.eval.statistics import paired_difference_interval
from m2bert.eval.tasks.schema import load_task, task_names

STRETCH_TOKENS = 160  # fewest of a vector; the most is nearly twice as many
WEIGHTS = (0.1, 0.2, 0.3, 0.5)  # of a student beside BM25 and late chunks
TASKS = {  # folder: split
    "openstax_question": "train",
    "acl_citance": "train",
    "locov1_qmsum": "validation",
    "pydocs": "validation",
}


def load_development(folder: Path, split: str):
    """Return a task's documents held out of `train` with the queries that they answer, or a validation split whole."""
    task = load_task(folder, task_names(folder, split)[0], split)
    if split != "train":
        return task
    kept = set(filter(is_held_out, task.documents))
    qrels = {qid: judged for qid, judged in task.qrels.items() if set(judged) <= kept}
    queries = {qid: task.queries[qid] for qid in qrels}
    documents = {pid: text for pid, text in task.documents.items() if pid in kept}
    return replace(task, queries=queries, documents=documents, qrels=qrels)


def rank(encoder: SentenceTransformerEncoder, task, late: bool):
    """Return the run of an encoder: of late chunks, or of stretches or the best chunk."""
    texts = list(task.documents.values())
    if late:
        vectors = LateChunk(document=1).embed(encoder, texts)
    elif encoder.parts_problem or encoder.max_tokens <= 512:
        vectors = BestChunk(tokens=256).embed(encoder, texts)
    else:
        rows, counts = encoder.encode_parts(texts, [10**6], STRETCH_TOKENS)[0]
        vectors = DocumentVectors(rows, counts, np.ones(len(counts)))
    search = ExactSearch(list(task.documents), len(task.queries))
    queries = encoder.encode(list(task.queries.values()), "query")
    search.add_vectors(queries, list(task.documents), vectors.rows, vectors.counts)
    return search.run(list(task.queries))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meaning", nargs="*", default=[], help="folders; the last is compared with the others")
    parser.add_argument("--joint", nargs="*", default=[], help="folders of models of words and meaning")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pydocs", type=Path, required=True)
    parser.add_argument("--lexical", default="models/m2bert-small", help="the model of words beside which they stand")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    names = [Path(model).name for model in arguments.meaning]
    words, found, scores = SentenceTransformerEncoder(arguments.lexical), {}, defaultdict(dict)
    for name, split in TASKS.items():
        task = load_development(arguments.pydocs if name == "pydocs" else arguments.data / name, split)
        bm25, late = Bm25Ranker().rank(task), rank(words, task, late=True)
        both = standardized_fusion(bm25, late)
        runs = {"BM25": bm25, "late": late, "BM25 + late": both}
        for model in arguments.joint:
            run = rank(SentenceTransformerEncoder(model), task, late=True)
            runs |= {Path(model).name: run, f"BM25 + {Path(model).name}": standardized_fusion(bm25, run)}
        for model, short in zip(arguments.meaning, names, strict=True):
            runs[short] = run = rank(SentenceTransformerEncoder(model), task, late=False)
            runs |= {
                f"BM25 + {short}": standardized_fusion(bm25, run),
                f"late + {short}": standardized_fusion(late, run),
            }
            for weight in WEIGHTS:
                runs[f"BM25 + late + {weight} {short}"] = weighted_fusion(run, both, weight)
        found[name] = {"documents": len(task.documents), "queries": len(task.queries)}
        for system, run in runs.items():
            own = score_ranking(run, task.qrels)
            scores[system] |= {(name, qid): value for qid, value in own.items()}
            found[name][system] = 100 * float(np.mean([*own.values()]))
        print(name, {key: round(value, 1) for key, value in found[name].items()}, flush=True)
    of_student = ["{}", "BM25 + {}", "late + {}", *(f"BM25 + late + {weight} {{}}" for weight in WEIGHTS)]
    pairs = [(form.format(names[-1]), form.format(other)) for other in names[:-1] for form in of_student]
    pairs += [(system, "BM25 + late") for system in scores if system.startswith("BM25 + late + ")]
    for name in map(lambda model: Path(model).name, arguments.joint):
        pairs += [(name, "late"), (f"BM25 + {name}", "BM25 + late")]
    found["all queries"] = {
        f"{system} minus {other}": [100 * value for value in paired_difference_interval(scores[system], scores[other])]
        for system, other in pairs
    }
    for pair, values in found["all queries"].items():
        print(pair, [round(value, 2) for value in values])
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
