"""Compare the systems that test.sh scored: paired differences over tasks, and over the queries that share the fewest
words with their answers.

    python experiments/m2bert_mini/compare.py --data ../shared/data --pydocs runs/pydocs

Reads their records, prints a table and writes results/compared.json. The mean weighs tasks alike, and its interval
resamples the queries within each task. FEW_WORDS queries of all tasks have the lowest overlap: the share of a query's
stemmed words, without stop words, that its answers have.
"""

import argparse
import json
from pathlib import Path

import bm25s
import Stemmer

from m2bert.eval.statistics import align, mean_over_tasks, paired_difference_interval
from m2bert.eval.tasks.load import load_folder

RESULTS = Path(__file__).parent / "results"
SUITE = Path(__file__).parents[1] / "suite" / "results" / "suite.json"
RECORDS = RESULTS / "test.json", RESULTS / "pydocs.json", SUITE
FEW_WORDS = 200
TASKS = {  # folder: name in the records
    "openstax_question": "openstax_question",
    "openstax_summary": "openstax_summary",
    "acl_abstract": "acl_abstract",
    "acl_citance": "acl_citance",
    "locov1_qmsum": "qmsum",
    "pydocs": "pydocs",
}
FOUR = "openstax_question", "acl_citance", "qmsum", "pydocs"
TWO = FOUR[:2]
BEFORE, NOW, MEANING = "m2bert-small / late-chunk", "m2bert-mini / late-chunk:document=1", "late-chunk:document=1"
BM25 = "{} + bm25 (standardized)".format
CLAIMS = [  # what, system, minus this one, tasks
    ("late chunks", NOW, BEFORE, FOUR),
    ("late chunks with the document's vector", NOW, f"m2bert-small / {MEANING}", FOUR),
    ("one vector", "m2bert-mini / truncate", "m2bert-small / truncate", FOUR),
    ("beside BM25", BM25(NOW), BM25(BEFORE), TWO),
    ("beside BM25", BM25(NOW), BM25(BEFORE), tuple(TASKS.values())),
    ("beside BM25, MiniLM's best chunk", BM25(NOW), BM25("MiniLM / best-chunk"), tuple(TASKS.values())),
    ("meaning alone, layers minus no layers", f"layers-long / {MEANING}", f"control-long-1.5e-3 / {MEANING}", FOUR),
    ("meaning beside BM25, the same", BM25(f"layers-long / {MEANING}"), BM25(f"control-long-1.5e-3 / {MEANING}"), FOUR),
    ("words and meaning, layers minus no layers", NOW, f"m2bert-mini-control / {MEANING}", FOUR),
]


def stems(texts: list[str]) -> list[set[str]]:
    """Return the stems of the words of each text, without stop words."""
    stemmer = Stemmer.Stemmer("english")
    return [
        set(words)
        for words in bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False)
    ]


def overlaps(task) -> dict[str, float]:
    """Return {qid: the share of the query's stems that its answer has, of its best answer}."""
    documents = dict(zip(task.documents, stems(list(task.documents.values())), strict=True))
    queries = zip(task.queries, stems(list(task.queries.values())), strict=True)
    return {
        qid: max(len(words & documents[pid]) for pid in task.answers(qid)) / max(len(words), 1)
        for qid, words in queries
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pydocs", type=Path, required=True)
    arguments = parser.parse_args()
    scores = {}  # {task: {system: {qid: nDCG@10}}}
    for record in [record for path in RECORDS for record in json.loads(path.read_text())["results"]]:
        scores.setdefault(record["task"], {})[record["system"]] = record["query_scores"]
    shared = {}
    for folder, name in TASKS.items():
        [task] = load_folder(arguments.pydocs if name == "pydocs" else arguments.data / folder, None, "test")
        shared |= {(name, qid): share for qid, share in overlaps(task).items()}
    few = sorted(shared, key=lambda key: (shared[key], key))[:FEW_WORDS]
    found = []
    for what, system, other, tasks in CLAIMS:
        [_, ours] = mean_over_tasks([[scores[task][name] for name in (other, system)] for task in tasks])
        found.append([what, system, other, len(tasks), ours.mean, ours.difference, *ours.difference_interval])
    others = NOW, f"layers-long / {MEANING}", "MiniLM / best-chunk", "bm25"
    for system in others:
        ours, theirs = ({key: scores[key[0]][name][key[1]] for key in few} for name in (system, BEFORE))
        mean = sum(ours.values()) / len(ours)
        found.append([f"{FEW_WORDS} queries of few shared words", system, BEFORE, 0, mean])
        found[-1] += paired_difference_interval(ours, theirs)
    header = "what", "system", "minus", "tasks", "nDCG@10", "difference", "low", "high"
    print(align(header, [[*row[:3], str(row[3]), *(f"{100 * value:.1f}" for value in row[4:])] for row in found]))
    highest = max(shared[key] for key in few)
    print(f"the {FEW_WORDS} queries share at most {highest:.0%} of their words with an answer")
    rows = [dict(zip(header, row, strict=True)) for row in found]
    queries = sorted(f"{name} {qid}" for name, qid in few)
    content = {"compared": rows, "highest_overlap": highest, "queries": queries}
    (RESULTS / "compared.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
