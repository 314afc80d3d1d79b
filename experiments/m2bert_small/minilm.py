"""Fine-tune MiniLM, or any sentence-transformers model, on the retrieval pairs of ours: the baseline of the same data.

    python experiments/m2bert_small/minilm.py --model FOLDER --data runs/pairs --output runs/minilm-tuned \
        --tasks web encyclopedic books pydocs qmsum --steps 150

Trainer, loss and schedule are those of sentence-transformers. The data have the LoCoV1 schema; the split train is
read. The documents of a step are of one task, drawn by the root of its size, each once, so that no negative is of a
query's own document (the library's NO_DUPLICATES compares texts, and two chunks of a document differ). A document gives
one pair, whose chunk is as long as the model reads. Half of the pairs are of each kind:

- a labeled query. Which chunk answers it is unknown: it gets the first (what the policy truncate reads) or a random
  one (as in chunk-average), in equal shares;
- or a passage cut out of the document, with the window around its place or a random chunk, in equal shares, both of
  the document without the passage.

The output is a sentence-transformers folder for `m2bert eval --encoder`, with the record of the run, training.json.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m2bert.eval.encoders.policies import cut, overhead_tokens
from m2bert.eval.tasks.schema import RetrievalTask, load_task
from m2bert.hub.card import public_record
from m2bert.hub.folder import check_output, whole_folder
from m2bert.records import installed_versions
from m2bert.terminal import run_command
from m2bert.train.text.sources import refuse_test

SIDES = "query", "document"
SCALE = 20.0  # of the cosines: 1 / temperature
PASSAGE_SHARE, PASSAGE_TOKENS = 0.5, (24, 128)  # of the pairs; the shortest and the longest passage
PACKAGES = "sentence-transformers", "transformers", "torch", "datasets", "accelerate", "numpy"


class Source(NamedTuple):
    """A task, its documents of enough words for a passage, and the queries that each of them answers."""

    task: RetrievalTask
    pids: list[str]
    qids: dict[str, list[str]]


def source_of(task: RetrievalTask) -> Source:
    """Return the task as a source of pairs. A word has at least one token."""
    qids = {pid: [] for pid, text in task.documents.items() if len(text.split()) >= 2 * PASSAGE_TOKENS[0]}
    for qid, answers in task.qrels.items():
        for pid in answers.keys() & qids.keys():
            qids[pid].append(qid)
    return Source(task, list(qids), qids)


def passage_and_chunk(text: str, spans: np.ndarray, tokens: int, rng) -> tuple[str, str]:
    """Return a passage of PASSAGE_TOKENS, at most half of the text, and a chunk of the text without it. `spans` (n, 2)
    are the characters of the text's tokens, `tokens` those of a chunk, without special ones."""
    count = min(int(rng.integers(PASSAGE_TOKENS[0], PASSAGE_TOKENS[1] + 1)), len(spans) // 2)
    first = int(rng.integers(len(spans) - count + 1))
    begin, end = spans[first, 0], spans[first + count - 1, 1]
    rest = text[:begin] + text[end:]
    rest_spans = np.concatenate([spans[:first], spans[first + count :] - (end - begin)])
    if rng.random() < 0.5:
        start = min(max(first - int(rng.integers(tokens + 1)), 0), max(len(rest_spans) - tokens, 0))
        return text[begin:end], cut(rest, rest_spans[start : start + tokens], tokens)[0]
    chunks = cut(rest, rest_spans, tokens)
    return text[begin:end], chunks[rng.integers(len(chunks))]


def make_batch(sources: list[Source], token_spans, tokens: int, size: int, rng) -> list[dict[str, str]]:
    """Return the `size` pairs of a step. A document gives a passage too if it has no query that it alone answers within
    the step: another document with an answer would count as a negative."""
    sizes = np.sqrt([len(source.pids) for source in sources])
    task, pids, qids = sources[rng.choice(len(sources), p=sizes / sizes.sum())]
    chosen = [pids[i] for i in rng.choice(len(pids), size, replace=False)]
    pairs = []
    for pid, spans in zip(chosen, token_spans([task.documents[pid] for pid in chosen]), strict=True):
        text = task.documents[pid]
        own = [qid for qid in qids[pid] if len(task.qrels[qid].keys() & {*chosen}) == 1]
        if own and rng.random() >= PASSAGE_SHARE:
            qid = own[rng.integers(len(own))]  # where in the document its answer is, is not known
            chunks = cut(text, spans, tokens)
            pair = task.queries[qid], chunks[0 if rng.random() < 0.5 else rng.integers(len(chunks))]
        else:
            pair = passage_and_chunk(text, spans, tokens, rng)
        pairs.append(dict(zip(SIDES, pair, strict=True)))
    return pairs


def train(options):
    """Train and write the folder, whole or not at all."""
    from datasets import Features, IterableDataset, Value  # slow, and a wrong argument needs none of it
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder

    sources = [source_of(load_task(options.data, name, "train")) for name in options.tasks]
    for source in sources:
        if len(source.pids) < options.batch_size:
            raise ValueError(f"--batch-size={options.batch_size} is more than the {len(source.pids)} documents of "
                             f"task {source.task.name!r} that are long enough; lower it")  # fmt: skip
    encoder = SentenceTransformerEncoder(options.model)
    model, longest, fingerprint, tokens = encoder.model, encoder.max_tokens, encoder.fingerprint, []
    content = longest - overhead_tokens(encoder)

    def rows():
        for step in range(options.steps):
            rng = np.random.default_rng([options.seed, step])
            batch = make_batch(sources, encoder.token_spans, content, options.batch_size, rng)
            for side in SIDES:
                tokens.extend(np.minimum(encoder.count_tokens([pair[side] for pair in batch], side), longest).tolist())
            yield from batch

    with whole_folder(options.output, options.overwrite) as folder:
        settings = SentenceTransformerTrainingArguments(
            str(folder), max_steps=options.steps, per_device_train_batch_size=options.batch_size, seed=options.seed,
            learning_rate=options.learning_rate, warmup_steps=0.1, save_strategy="no", report_to="none",
            logging_steps=max(1, options.steps // 50), dataloader_pin_memory=False,
            prompts={side: model.prompts.get(side, "") for side in SIDES},
        )  # fmt: skip
        data = IterableDataset.from_generator(rows, Features(dict.fromkeys(SIDES, Value("string"))))
        loss = MultipleNegativesRankingLoss(model, SCALE)
        trainer = SentenceTransformerTrainer(model=model, args=settings, train_dataset=data, loss=loss)
        result = trainer.train()
        record = {
            "arguments": vars(options),
            "settings": {"scale": SCALE, "passage_share": PASSAGE_SHARE, "passage_tokens": PASSAGE_TOKENS},
            "model_fingerprint": fingerprint,  # of what was tuned
            "data_fingerprints": {source.task.name: source.task.fingerprint for source in sources},
            "versions": installed_versions(PACKAGES),
            "history": trainer.state.log_history,
            "seconds": result.metrics["train_runtime"],
            "tokens": sum(tokens),  # without padding
        }
        model.save_pretrained(str(folder))
        record = public_record("training.json", json.dumps(record, default=str))
        (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="minilm", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, type=Path, help="folder of a sentence-transformers model")
    parser.add_argument("--data", required=True, type=Path, help="folder in the LoCoV1 schema")
    parser.add_argument("--tasks", required=True, nargs="+", help="values of its column dataset")
    parser.add_argument("--steps", required=True, type=int)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--batch-size", type=int, default=16, help="pairs of a step")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace the model in the output folder")
    options = parser.parse_args(argv)
    for name, value in [("--data", str(options.data)), *(("--tasks", task) for task in options.tasks)]:
        refuse_test(name, value)
    check_output(options.output, options.overwrite)
    train(options)


if __name__ == "__main__":
    run_command("minilm", main)
