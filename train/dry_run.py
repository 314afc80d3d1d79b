"""Dry runs: the same settings with a tiny model, stand-in data and two steps.

Sizes and lengths are made small, and each path (text, tasks, checkpoint, tokenizer, teacher, mined negatives) is
replaced by something of its kind, in a temporary folder that is removed when the process ends. Other settings stay:
mixture, loss, form of the batches, caching, precision, optimizer.
"""

import atexit
import shutil
import tempfile
from pathlib import Path

import numpy as np
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from m2bert.hub.folder import write_folder
from m2bert.schema import checked

from .text.sources import Source
from .tokenizer import train_wordpiece

TOKENS = 64
LENGTHS = {"max_tokens": TOKENS, "document_tokens": TOKENS, "batch_tokens": 4 * TOKENS, "chunk_tokens": 4 * TOKENS,
           "query_tokens": TOKENS, "passage_tokens": [4, 8], "examples": 4, "negatives": 3,
           "batch_size": 4, "piece_tokens": 4, "stretch_tokens": 16, "span_tokens": [2, 4]}  # fmt: skip
MODEL = {"hidden_size": 32, "intermediate_size": 64, "filter_order": 8, "max_position_embeddings": TOKENS}
TASKS = ("one", "two")  # where the settings take all there are
DOCUMENTS = 24  # of a split
FOLDER = "m2bert-dry-run-"


def is_dry_run(config) -> bool:
    """Return whether settings are those of `scale_down`."""
    return Path(config.output_dir).parent.name.startswith(FOLDER)


def scale_down(config: dict) -> dict:
    """Return the settings of `settings.load_settings`, as dictionaries, made small."""
    folder = Path(tempfile.mkdtemp(prefix=FOLDER))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config |= {"steps": 2, "log_every": 1, "checkpoint_every": 1, "output_dir": str(folder / "output"),
               "overwrite": False, "resume": False, "tracker": None, "prepare": None}  # fmt: skip
    if "epochs" in config:
        config["epochs"] = None  # would replace the steps
    config["tokenizer"]["path"] = str(folder / "tokenizer")
    config["evaluation"]["every"] = 1
    for section in ("data", "evaluation"):
        for key, value in LENGTHS.items():
            if config[section].get(key):
                config[section][key] = min(value, config[section][key])
    model, data, loss = config["model"], config["data"], config.get("loss", {})
    model["new_model"] |= MODEL | {"num_hidden_layers": min(2, model["new_model"].get("num_hidden_layers", 12))}
    model["architecture"] = {key: MODEL.get(key, value) for key, value in model["architecture"].items()}
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 5)) for _ in range(80)]
    texts = [" ".join(rng.choice(words, rng.integers(20, 200))) for _ in range(2 * DOCUMENTS)]
    tokenizer = train_wordpiece(texts, 200)
    tokenizer.save_pretrained(folder / "tokenizer")

    def checkpoint(auto_class, name: str) -> str:
        fields = model["new_model"] | {"vocab_size": 208}
        made = auto_class.from_config(AutoConfig.for_model("m2bert", **fields))
        return str(write_folder(made, tokenizer, folder / name))

    if model["path"]:
        model["path"] = checkpoint(AutoModelForMaskedLM, "checkpoint")
    if loss.get("teacher") or "score_weight" in loss:  # `align` has a teacher always
        loss |= {"teacher_cache": str(folder / "teacher-vectors"), "teacher": checkpoint(AutoModel, "teacher")}
    data["prepared"] = None
    if "sources" in data:
        if "token_cache" in data:
            data["token_cache"] = str(folder / "tokens")
        for i, source in enumerate(data["sources"]):
            checked(Source, source, "data.sources")
            source["name"] = source.get("name") or str(source["path"] or "pydocs").rsplit("/", 1)[-1]
            source |= {"path": str(folder / f"source{i}"), "split": "train", "validation_split": "validation"}
            for key in ("config", "revision", "column", "rows_per_document"):
                source.pop(key, None)
            for split in ("train", "validation"):
                write_table(folder / f"source{i}" / f"{split}.parquet", {"text": texts})
    if "tasks" in data and (data["path"] or not data["triples"]):
        data["path"] = str(folder / "tasks")
        splits = "train", data["development_split"] or "validation"
        write_tasks(folder / "tasks", data["tasks"] or TASKS, splits, texts)
    if data.get("triples"):
        data["triples"] = str(folder / "triples.parquet")
        queries = [text.split(" ", 4)[3] for text in texts]
        write_table(folder / "triples.parquet", {"query": queries, "positive": texts, "negative": texts[::-1]})
    if data.get("negatives_path"):
        data["negatives_path"] = str(folder / "tasks" / "negatives.parquet")
    return config


def write_tasks(folder: Path, tasks: list[str], splits: tuple[str, str], texts: list[str]) -> None:
    """Write tasks in the LoCoV1 schema: a document's first words are its query, the next document a mined negative."""
    for split, passages in zip(splits, (texts[:DOCUMENTS], texts[DOCUMENTS:]), strict=True):
        rows = [(task, f"{task}_{split}_{i}", text) for task in tasks for i, text in enumerate(passages)]
        names, pids, passages = (list(column) for column in zip(*rows, strict=True))
        write_table(folder / "documents" / f"{split}.parquet", {"pid": pids, "passage": passages, "dataset": names})
        queries = {"qid": [f"q_{pid}" for pid in pids], "query": [text[:30] for text in passages],
                   "answer_pids": [[pid] for pid in pids], "dataset": names}  # fmt: skip
        write_table(folder / "queries" / f"{split}.parquet", queries)
        if split == "train":
            negatives = [[f"{name}_{split}_{(i + 1) % DOCUMENTS}"] for name in tasks for i in range(DOCUMENTS)]
            mined = {"qid": queries["qid"], "negative_pids": negatives, "dataset": names}
            write_table(folder / "negatives.parquet", mined)


def write_table(path: Path, columns: dict[str, list]):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
