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
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from m2bert.hub.folder import write_folder

from .text.text_sources import check_entry
from .tokenizer import train_wordpiece

TOKENS = 64
LENGTHS = {"max_tokens": TOKENS, "document_tokens": TOKENS, "batch_tokens": 4 * TOKENS, "chunk_tokens": 4 * TOKENS,
           "query_tokens": TOKENS, "passage_tokens": [4, 8], "examples": 4, "negatives": 3,
           "batch_size": 4}  # fmt: skip
MODEL = {"hidden_size": 32, "intermediate_size": 64, "filter_order": 8, "max_position_embeddings": TOKENS}
TASKS = ("one", "two")  # where the settings take all there are
DOCUMENTS = 24  # of a split
FOLDER = "m2bert-dry-run-"


def scale_down(config: dict) -> dict:
    """Return the settings of `settings.load_settings`, as dictionaries, made small."""
    folder = Path(tempfile.mkdtemp(prefix=FOLDER))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config |= {"steps": 2, "log_every": 1, "checkpoint_every": 1, "output_dir": str(folder / "output"),
               "overwrite": False, "resume": False, "tracker": None}  # fmt: skip
    if "epochs" in config:
        config["epochs"] = None  # would replace the steps
    config["tokenizer"]["path"] = str(folder / "tokenizer")
    config["evaluation"]["every"] = 1
    for section in ("data", "evaluation"):
        for key, value in LENGTHS.items():
            if config[section].get(key):
                config[section][key] = min(value, config[section][key])
    model = config["model"]
    layers = min(2, model["new_model"].get("num_hidden_layers", 12))
    model["new_model"] |= MODEL | {"num_hidden_layers": layers}
    texts = make_texts(np.random.default_rng(0), 2 * DOCUMENTS)
    tokenizer = train_wordpiece(texts, 200)
    tokenizer.save_pretrained(folder / "tokenizer")
    model["architecture"] = {key: MODEL.get(key, value) for key, value in model["architecture"].items()}
    if model["path"]:
        model["path"] = make_checkpoint(AutoModelForMaskedLM, model["new_model"], tokenizer, folder / "checkpoint")
    stand_in_data(config, texts, folder)
    if config.get("loss", {}).get("teacher"):
        config["loss"]["teacher_cache"] = str(folder / "teacher-vectors")
        config["loss"]["teacher"] = make_checkpoint(AutoModel, model["new_model"], tokenizer, folder / "teacher")
    return config


def is_dry_run(config) -> bool:
    """Return whether settings are those of `scale_down`."""
    return Path(config.output_dir).parent.name.startswith(FOLDER)


def stand_in_data(config: dict, texts: list[str], folder: Path):
    """Replace every path of the section `data`."""
    data = config["data"]
    if "sources" in data:
        data["token_cache"] = str(folder / "tokens")
        for i, source in enumerate(data["sources"]):
            check_entry(source)
            name = source.get("name") or str(source["path"] or "pydocs").rsplit("/", 1)[-1]
            shares = {key: source[key] for key in ("variable", "maximum") if key in source}
            data["sources"][i] = {"path": str(folder / f"source{i}"), "name": name, **shares}
            for split in ("train", "validation"):
                write_table(folder / f"source{i}" / f"{split}.parquet", {"text": texts})
    if "tasks" in data and (data["path"] or not data["triples"]):
        tasks = tuple(data["tasks"] or TASKS)
        splits = "train", data["development_split"] or "validation"
        data["path"] = str(make_tasks(folder / "tasks", tasks, splits, texts))
    if data.get("triples"):
        data["triples"] = str(folder / "triples.parquet")
        queries = [text.split(" ", 4)[3] for text in texts]
        write_table(folder / "triples.parquet", {"query": queries, "positive": texts, "negative": texts[::-1]})
    if data.get("negatives_path"):
        data["negatives_path"] = str(folder / "tasks" / "negatives.parquet")


def make_texts(rng: np.random.Generator, count: int) -> list[str]:
    """Return texts of 20 to 200 made-up words."""
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 5)) for _ in range(80)]
    return [" ".join(rng.choice(words, rng.integers(20, 200))) for _ in range(count)]


def make_tasks(folder: Path, tasks: tuple[str, ...], splits: tuple[str, str], texts: list[str]) -> Path:
    """Write tasks in the LoCoV1 schema: a document's first words are its query, the next document a mined negative."""
    half = len(texts) // 2
    for split, passages in zip(splits, (texts[:half], texts[half:]), strict=True):
        rows = [(task, f"{task}_{split}_{i}", text) for task in tasks for i, text in enumerate(passages)]
        names, pids, passages = (list(column) for column in zip(*rows, strict=True))
        write_table(folder / "documents" / f"{split}.parquet", {"pid": pids, "passage": passages, "dataset": names})
        queries = {"qid": [f"q_{pid}" for pid in pids], "query": [text[:30] for text in passages],
                   "answer_pids": [[pid] for pid in pids], "dataset": names}  # fmt: skip
        write_table(folder / "queries" / f"{split}.parquet", queries)
        if split == "train":
            negatives = [[f"{name}_{split}_{(i + 1) % half}"] for name in tasks for i in range(half)]
            mined = {"qid": queries["qid"], "negative_pids": negatives, "dataset": names}
            write_table(folder / "negatives.parquet", mined)
    return folder


def make_checkpoint(auto_class, fields: dict, tokenizer, folder: Path) -> str:
    """Write a new model's folder."""
    model = auto_class.from_config(AutoConfig.for_model("m2bert", **fields | {"vocab_size": 208}))
    return str(write_folder(model, tokenizer, folder))


def write_table(path: Path, columns: dict[str, list]):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
