"""Score models of words and meaning on development data for several shares of the words: alone and beside BM25.

    python experiments/m2bert_mini/development.py --data ../shared/data --output F.json MODEL...

Development data are documents held out of the training splits, with their queries, and QMSUM's validation split. A
document has 16 late chunks with its own vector added, as in `late-chunk:document=1`. Scores are nDCG@10; beside BM25,
of the sums of standardized scores.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from pairs import is_held_out

from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder
from m2bert.eval.rankers import Bm25Ranker
from m2bert.eval.search import ExactSearch, score_ranking, standardized_fusion
from m2bert.eval.tasks.schema import load_task, task_names

SHARES = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0)
TASKS = {"openstax_question": "train", "acl_citance": "train", "locov1_qmsum": "validation"}  # folder: split


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


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows (N, W) of length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def mixed(rows: np.ndarray, meaning: int, share: float) -> np.ndarray:
    """Return vectors (N, W), whose first `meaning` numbers are those of meaning, with this share of the words."""
    return np.hstack([(1 - share) ** 0.5 * unit(rows[:, :meaning]), share**0.5 * unit(rows[:, meaning:])])


def late_chunk_runs(encoder, task, meaning: int, shares) -> Iterator[dict[str, dict[str, float]]]:
    """Yield the ranking of a task's documents by their late chunks for each share of the words, {qid: {pid: score}}.

    Args:
        encoder: a SentenceTransformerEncoder.
        meaning: how many numbers of a vector, the first ones, are those of meaning.
    """
    pids = list(task.documents)
    queries = encoder.encode(list(task.queries.values()), "query")
    (whole, _), (parts, counts) = encoder.encode_parts(list(task.documents.values()), [1, 16])
    for share in shares:
        vectors = mixed(parts, meaning, share) + np.repeat(mixed(whole, meaning, share), counts, axis=0)
        search = ExactSearch(pids, len(task.queries))
        search.add_vectors(mixed(queries, meaning, share), pids, unit(vectors), counts)
        yield search.run(list(task.queries))


def task_scores(encoder, task, meaning: int, shares) -> Iterator[tuple[float, dict[str, float], dict[str, float]]]:
    """Yield each share of the words with {qid: nDCG@10}, alone and beside BM25; arguments as in `late_chunk_runs`."""
    bm25 = Bm25Ranker().rank(task)
    for share, run in zip(shares, late_chunk_runs(encoder, task, meaning, shares), strict=True):
        yield share, *(score_ranking(each, task.qrels) for each in (run, standardized_fusion(bm25, run)))


def unrotated(name: str) -> tuple[SentenceTransformerEncoder, int]:
    """Return the encoder of a model with lexical_heads, whose vectors begin with the numbers of meaning, and how many
    these are."""
    encoder = SentenceTransformerEncoder(name)
    model = encoder.model[0].model
    del model.pooler.rotation_signs
    return encoder, model.config.hidden_size * model.config.num_pooling_heads


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders of models with lexical_heads")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = []
    for name in arguments.models:
        encoder, meaning = unrotated(name)
        for folder, split in TASKS.items():
            task = load_development(arguments.data / folder, split)
            for share, *scores in task_scores(encoder, task, meaning, SHARES):
                alone, beside = (100 * float(np.mean([*each.values()])) for each in scores)
                row = {"model": Path(name).name, "task": folder, "share": share, "alone": alone, "beside_bm25": beside}
                found.append(row)
                print(f"{Path(name).name} {folder} {share}: {alone:.1f}, beside BM25 {beside:.1f}", flush=True)
    if arguments.output:
        rows = ",\n".join(map(json.dumps, found))
        arguments.output.write_text(f"[\n{rows}\n]\n")


if __name__ == "__main__":
    main()
