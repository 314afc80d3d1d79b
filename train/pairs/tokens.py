"""Retrieval data as tokens, and the folder of them from which a machine without data libraries trains (`prepared`)."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ..settings import read_yaml
from ..tokenizer import encode_all, load_tokenizer
from ..verified_files import TOKENIZER, building, read_prepared, write_prepared

if TYPE_CHECKING:  # they need pyarrow, and prepared data do not
    from m2bert.eval.tasks.schema import RetrievalTask

    from .data import Negatives

logger = logging.getLogger(__name__)

TEXTS_AT_ONCE = 1000
SIDES = ("queries", "documents")
SOURCE_KEYS = ("path", "tasks", "triples", "triples_config", "triples_limit", "negatives_path", "development_split",
               "development_tasks", "development_share", "development_documents")  # fmt: skip


@dataclass(frozen=True)
class TokenTask:
    """Hold a task as token ids, without special tokens and untruncated. Documents are known by their index.

    Attributes:
        answers: of each query, the documents that answer it.
        negatives: of each query, the documents given as negatives, best first; may be empty.
    """

    name: str
    pids: list[str]
    documents: list[np.ndarray]
    queries: list[np.ndarray]
    answers: list[list[int]]
    negatives: list[list[int]]


def tokenize(
    tokenizer: PreTrainedTokenizerBase, task: "RetrievalTask", negatives: "Negatives | None" = None, show: bool = True
) -> TokenTask:
    """Tokenize a task.

    Args:
        negatives: {qid: pids}; documents that the task does not hold (set aside for development) are left out.
        show: a progress bar, where there is enough to wait for.
    """
    index, given = {pid: i for i, pid in enumerate(task.documents)}, negatives or {}
    texts = [*task.documents.values(), *task.queries.values()]
    rows, disable = [], not show or len(texts) <= TEXTS_AT_ONCE
    parts = range(0, len(texts), TEXTS_AT_ONCE)
    for first in tqdm(parts, desc=f"tokenizing {task.name}", unit=f" x {TEXTS_AT_ONCE} texts", disable=disable):
        rows += encode_all(tokenizer, texts[first : first + TEXTS_AT_ONCE])
    return TokenTask(
        name=task.name,
        pids=list(task.documents),
        documents=rows[: len(index)],
        queries=rows[len(index) :],
        answers=[[index[pid] for pid in answers] for answers in task.qrels.values()],
        negatives=[[index[pid] for pid in given.get(qid, ()) if pid in index] for qid in task.qrels],
    )


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of the tokens and their ids."""
    return hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def wrap(row: np.ndarray, special: tuple[int, int]) -> np.ndarray:
    """Return [CLS] row [SEP], int64."""
    return np.concatenate([special[:1], row, special[1:]]).astype(np.int64)


@dataclass(frozen=True)
class RetrievalTokens:
    """Hold what a retrieval run trains on.

    Attributes:
        training, development: tasks.
        teacher: vectors of all training queries and documents, for the prototype loss.
        identity: what a resumed run must find as it was: texts, vocabulary, teacher.
        fingerprint: of the texts, for the record.
    """

    tokenizer: PreTrainedTokenizerBase
    training: list[TokenTask]
    development: list[TokenTask]
    teacher: tuple[Tensor, Tensor] | None
    identity: dict[str, str]
    fingerprint: str


def write_tokens(data: RetrievalTokens, config) -> None:
    """Write the data and the tokenizer into the folder `prepare`, which `data.prepared` reads."""
    arrays, tasks = {}, {}
    for kind, of_kind in (("training", data.training), ("development", data.development)):
        tasks[kind] = []
        for number, task in enumerate(of_kind):
            tasks[kind].append({key: getattr(task, key) for key in ("name", "pids", "answers", "negatives")})
            group = arrays[f"{kind}{number}"] = {}
            for side in SIDES:
                rows = getattr(task, side)
                group[f"{side}_tokens"] = np.concatenate(rows).astype(np.int32)
                group[f"{side}_lengths"] = np.array([len(row) for row in rows], dtype=np.int64)
    if data.teacher is not None:
        arrays["teacher"] = {side: rows.numpy() for side, rows in zip(SIDES, data.teacher, strict=True)}
    settings = _wanted(config)
    content = {"tasks": tasks, "identity": data.identity, "fingerprint": data.fingerprint}
    content |= {"teacher": settings.pop("teacher"), "data": settings}
    folder = Path(config.prepare)
    with building(folder) as scratch:
        write_prepared(folder, scratch, "opl", arrays, content, data.tokenizer)
    logger.info("wrote %s; train from it with data.prepared=%s", folder, folder)


def read_tokens(config) -> RetrievalTokens:
    """Read the folder `data.prepared`.

    Raises:
        ValueError: it is damaged, or was made of other data, or for another teacher, than the settings name.
    """
    folder = Path(config.data.prepared)
    arrays, content = read_prepared(folder, "opl")
    defaults, made = read_yaml("opl-small")["data"], content["data"] | {"teacher": content["teacher"]}
    for key, value in _wanted(config).items():
        if value not in (defaults.get(key), made[key]):
            name = "loss.teacher" if key == "teacher" else f"data.{key}"
            raise ValueError(f"data.prepared={folder} was made with {name}={made[key]}, not {value}; prepare it again")

    def tasks(kind: str) -> list[TokenTask]:
        found = []
        for number, described in enumerate(content["tasks"][kind]):
            group, rows = arrays[f"{kind}{number}"], {}
            for side in SIDES:
                rows[side] = np.split(group[f"{side}_tokens"], group[f"{side}_lengths"].cumsum()[:-1])
            found.append(TokenTask(**described, **rows))
        return found

    teacher = None
    if config.loss.name == "prototype":
        teacher = tuple(torch.from_numpy(arrays["teacher"][side]) for side in SIDES)
    return RetrievalTokens(
        tokenizer=load_tokenizer(folder / TOKENIZER),
        training=tasks("training"),
        development=tasks("development"),
        teacher=teacher,
        identity=content["identity"],
        fingerprint=content["fingerprint"],
    )


def _wanted(config) -> dict:
    """Return the settings that decide what is prepared."""
    teacher = config.loss.teacher if config.loss.name == "prototype" else None
    return {key: getattr(config.data, key) for key in SOURCE_KEYS} | {"teacher": teacher}
