"""Retrieval data as tokens, and the folder of them from which a machine without data libraries trains (`prepared`)."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..settings import read_yaml
from ..tokenizer import load_tokenizer
from ..verified_files import TOKENIZER, building, read_prepared, write_prepared
from .batches import TokenTask

logger = logging.getLogger(__name__)

SOURCE_KEYS = ("path", "tasks", "triples", "triples_config", "triples_limit", "negatives_path", "development_split",
               "development_tasks", "development_share", "development_documents")  # fmt: skip


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
            arrays[f"{kind}{number}"] = {
                f"{side}_{what}": array
                for side in ("documents", "queries")
                for what, array in (
                    ("tokens", np.concatenate(getattr(task, side)).astype(np.int32)),
                    ("lengths", np.array([len(row) for row in getattr(task, side)], dtype=np.int64)),
                )
            }
            tasks[kind].append({name: getattr(task, name) for name in ("name", "pids", "answers", "negatives")})
    if data.teacher is not None:
        arrays["teacher"] = {
            name: rows.numpy() for name, rows in zip(("queries", "documents"), data.teacher, strict=True)
        }
    content = {"tasks": tasks, "identity": data.identity, "fingerprint": data.fingerprint} | _wanted(config)
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
    defaults = read_yaml("opl-small")["data"]
    for key, value in _wanted(config)["data"].items():
        if value not in (defaults[key], content["data"][key]):
            raise ValueError(f"data.prepared={folder} was made with data.{key}={content['data'][key]}, not {value}")
    if config.loss.name == "prototype" and content["teacher"] != config.loss.teacher:
        raise ValueError(f"data.prepared={folder} has vectors of the teacher {content['teacher']}; prepare it again")

    def tasks(kind: str) -> list[TokenTask]:
        return [
            TokenTask(
                **described, **{side: _rows(arrays[f"{kind}{number}"], side) for side in ("documents", "queries")}
            )
            for number, described in enumerate(content["tasks"][kind])
        ]

    teacher = None
    if config.loss.name == "prototype":
        teacher = tuple(torch.from_numpy(arrays["teacher"][name]) for name in ("queries", "documents"))
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
    return {"data": {key: getattr(config.data, key) for key in SOURCE_KEYS}, "teacher": teacher}


def _rows(arrays: dict[str, np.ndarray], side: str) -> list[np.ndarray]:
    return np.split(arrays[f"{side}_tokens"], arrays[f"{side}_lengths"].cumsum()[:-1])
