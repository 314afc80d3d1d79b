"""Compare one vector of words and meaning with two indexes, m2bert-small's and that of meaning alone.

    python experiments/m2bert_mini/two_folders.py --data ../shared/data --output F.json

Data and late chunks are those of development.py. The scores of the two indexes are scaled to 0 ... 1 and
added with the weight that is best on these very data, which favors them. Differences are to the one vector.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from development import TASKS, late_chunk_runs, load_development, unrotated

from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder
from m2bert.eval.rankers import Bm25Ranker
from m2bert.eval.search import choose_weight, score_ranking, standardized_fusion, weighted_fusion
from m2bert.eval.statistics import paired_difference_interval

MODELS = Path(__file__).parents[2] / "models"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    small = SentenceTransformerEncoder(str(MODELS / "m2bert-small"))
    mini, meaning_size = unrotated(str(MODELS / "m2bert-mini"))
    share, found = mini.model[0].model.config.lexical_share, []
    for folder, split in TASKS.items():
        task = load_development(options.data / folder, split)
        [words] = late_chunk_runs(small, task, small.dimensions, [0])
        one, meaning = late_chunk_runs(mini, task, meaning_size, [share, 0])
        weight, _ = choose_weight(meaning, words, task.qrels)
        two, bm25 = weighted_fusion(meaning, words, weight), Bm25Ranker().rank(task)
        systems = {"m2bert-small": words, "meaning": meaning, "two indexes": two, "one vector": one}
        beside = {name: standardized_fusion(bm25, run) for name, run in systems.items()}
        for how, runs in {"alone": systems, "beside BM25": beside}.items():
            scores = {name: score_ranking(run, task.qrels) for name, run in runs.items()}
            for name, ours in scores.items():
                difference, low, high = paired_difference_interval(ours, scores["one vector"])
                row = {"task": folder, "how": how, "system": name, "ndcg_at_10": float(np.mean([*ours.values()]))}
                found.append(row | {"difference": difference, "low": low, "high": high, "weight_of_meaning": weight})
                print(found[-1], flush=True)
    lines = ",\n".join(map(json.dumps, found))
    options.output.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
