"""Targets that read what a training does: texts, triples, settings, its caches and checkpoints."""

import json
import math
from pathlib import Path

import fuzz_mutations as mutations
import pyarrow.parquet as pq
from accelerate.state import AcceleratorState
from fuzz_targets import Target, command, m2bert
from safetensors.torch import load_file

from m2bert.terminal import run_command
from m2bert.train.cli import ready
from m2bert.train.pairs.data import load_triples
from m2bert.train.text.sources import TextFiles, find_files

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 16, "max_position_embeddings": 32,
         "filter_order": 4, "num_pooling_heads": 1, "hidden_dropout_prob": 0.1}  # fmt: skip
MLM = [*(f"model.architecture.{name}={value}" for name, value in SIZES.items()), "log_every=1", "evaluation.every=0",
       "data.max_tokens=16", "data.batch_tokens=32", "evaluation.examples=1"]  # fmt: skip


def train(*arguments) -> str:
    AcceleratorState._reset_state(reset_partial_state=True)
    return m2bert("train", *arguments)


def prepare(entry: str, *arguments) -> str:
    """Do what comes before a training."""
    return command(lambda given: run_command("m2bert", lambda: ready(entry, given)), *arguments)


def weights(folder: Path) -> dict:
    return {name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()}


class Texts(Target):
    """Local text of a pretraining: what is read."""

    def run(self, folder, scratch):
        found = []
        for name in ("lines.jsonl", "table.parquet", "blocks.txt"):
            files = TextFiles(find_files(folder / name, "train"))
            files.check()
            found.append(list(files))
        return found

    def reference(self, folder, scratch):
        lines = (folder / "lines.jsonl").read_text("utf-8-sig").split("\n")
        blocks = [[]]
        for line in (folder / "blocks.txt").read_bytes().split(b"\n"):
            blocks.append([]) if not line.strip() else blocks[-1].append(line)
        return [
            [json.loads(line)["text"] or "" for line in lines if line.strip()],
            [row["text"] or "" for row in pq.read_table(folder / "table.parquet").to_pylist()],
            [b"\n".join(block).decode().strip().lstrip("\ufeff") for block in blocks if block],
        ]


class MlmTexts(Target):
    """A whole run of one step on texts: it ends, or says what is wrong with them."""

    def run(self, folder, scratch):
        names = ("lines.jsonl", "table.parquet", "blocks.txt")
        sources = ", ".join(f"{{path: {folder / name}, validation_split: null}}" for name in names)
        train("mlm", *MLM, "steps=1", f"data.sources=[{sources}]", f"data.token_cache={scratch / 'cache'}",
              f"tokenizer.path={folder / 'tokenizer'}", f"output_dir={scratch / 'out'}")  # fmt: skip
        history = json.loads((scratch / "out" / "training.json").read_text())["history"]
        return all(math.isfinite(entry["loss"]) for entry in history if "loss" in entry)


class Triples(Target):
    def run(self, folder, scratch):
        found = []
        for name in ("triples.jsonl", "triples.parquet"):
            task, negatives = load_triples(str(folder / name), None, None)
            texts = task.documents
            answers = sorted((task.queries[q], sorted(texts[p] for p in found)) for q, found in task.qrels.items())
            others = sorted((task.queries[q], sorted(texts[p] for p in pids)) for q, pids in negatives.items() if pids)
            found.append([answers, others])
        return found

    def reference(self, folder, scratch):
        text = (folder / "triples.jsonl").read_text("utf-8-sig")
        lines = [json.loads(line) for line in text.split("\n") if line.strip()]
        found = []
        for rows in (lines, pq.read_table(folder / "triples.parquet").to_pylist()):
            answers, negatives = {}, {}
            for row in rows:
                answers.setdefault(row["query"], set()).add(row["positive"])
                others = {value for key, value in row.items() if key.startswith("negative") and value}
                negatives.setdefault(row["query"], set()).update(others)
            left = {query: texts - answers[query] for query, texts in negatives.items() if texts - answers[query]}
            found.append([sorted((query, sorted(texts)) for query, texts in each.items()) for each in (answers, left)])
        return found


class Resume(Target):
    def run(self, folder, scratch):
        out = folder / "out"
        train("mlm", *self.arguments, f"output_dir={out}", "resume=true")
        return weights(out)


class TokenCache(Target):
    def run(self, folder, scratch):
        train("mlm", *self.arguments, f"output_dir={scratch / 'out'}", f"data.token_cache={folder}")
        return weights(scratch / "out")


class TrainYaml(Target):
    def run(self, folder, scratch):
        for name in ("mlm", "opl", "align"):
            prepare(name, "--config", folder / f"{name}.yaml", f"output_dir={scratch / 'out'}")
        return True


KEYS = ["optim.lr", "steps", "model.new_model.hidden_size", "data.sources", "optim.betas", "seed", "model.start",
        "tokenizer.vocab_size", "model.path", "precision", "tracker", "model.architecture",
        "data.token_cache"]  # fmt: skip


class TrainValue(Target):
    """A mutated key=value on the command line."""

    def damage(self, folder, generator):
        path = folder / "value.yaml"
        key = generator.choice(KEYS)
        value = generator.choice(mutations.WHOLE_JSON)
        path.write_text(f"{key}={value}")
        return mutations.Mutation(path, f"{key}={value[:30]}", (key, *key.split("."), value.strip('"')))

    def run(self, folder, scratch):
        value = (folder / "value.yaml").read_text()
        prepare("mlm", *self.arguments, value, f"output_dir={scratch / 'out'}")
        return True
