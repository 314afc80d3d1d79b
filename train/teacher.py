"""Teacher vectors for the prototype loss, and the map from the student's width to theirs."""

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from m2bert.files import digest, sync

from .verified_files import building

if TYPE_CHECKING:  # it needs pyarrow
    from m2bert.eval.tasks.schema import RetrievalTask

logger = logging.getLogger(__name__)


def teacher_vectors(
    accelerator: Accelerator, teacher: str, tasks: list["RetrievalTask"], cache: str
) -> tuple[Tensor, Tensor]:
    """Return the teacher's vectors of all queries and of all documents, numbered through the tasks. The main process
    computes them, and keeps them on disk under a hash of the teacher and the texts.

    Args:
        teacher: any sentence-transformers model: a folder (an exported M2-BERT too), whose own code is run where it has
            some, or a Hub id. It truncates at its own maximum and a warning counts the texts, as in the paper: a model
            of 128 tokens teaches one of 32k.
        cache: folder for the vectors.

    Returns:
        (Q, W) and (D, W) float32, rows of length 1.

    Raises:
        ValueError: the teacher cannot be loaded.
    """
    queries = [text for task in tasks for text in task.queries.values()]
    documents = [text for task in tasks for text in task.documents.values()]
    path = Path(cache) / f"{content_hash(teacher, queries, documents)}.safetensors"
    with accelerator.main_process_first():
        stored = read_vectors(path)
        if stored is None:
            with building(path) as scratch:
                stored = read_vectors(path)
                if stored is None:
                    stored = encode(teacher, queries, documents)
                    save_file(stored, scratch / path.name, metadata={"sha256": rows_digest(stored)})
                    sync(scratch / path.name)
                    (scratch / path.name).replace(path)
    return torch.from_numpy(stored["queries"]), torch.from_numpy(stored["documents"])


def encode(teacher: str, queries: list[str], documents: list[str]) -> dict[str, np.ndarray]:
    """Return the teacher's vectors of queries and of documents."""
    from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder

    logger.info("teacher %s encodes %d queries and %d documents", teacher, len(queries), len(documents))
    encoder = SentenceTransformerEncoder(teacher)
    return {"queries": encoder.encode(queries, "query"), "documents": encoder.encode(documents, "document")}


def read_vectors(path: Path) -> dict[str, np.ndarray] | None:
    """Return stored vectors; None if they are missing or, with a warning, if they are damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "np") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dictionary)
            expected = (file.metadata() or {}).get("sha256")
    except SafetensorError as error:
        logger.warning("%s is damaged (%s); the teacher encodes again", path, error)
        return None
    if stored.keys() != {"queries", "documents"} or rows_digest(stored) != expected:
        logger.warning("%s is damaged: its vectors do not have the sha256 in it; the teacher encodes again", path)
        return None
    return stored


def rows_digest(vectors: dict[str, np.ndarray]) -> str:
    """Return the sha256 of the names, shapes, types and rows of vectors."""
    sha256 = hashlib.sha256()
    for name, rows in sorted(vectors.items()):
        sha256.update(f"{name} {rows.shape} {rows.dtype.str};".encode() + np.ascontiguousarray(rows).tobytes())
    return sha256.hexdigest()


def content_hash(teacher: str, queries: list[str], documents: list[str]) -> str:
    """Return the sha256 of the texts and of the teacher."""
    sha256 = hashlib.sha256(teacher_hash(teacher).encode())
    for part in ("queries", *queries, "documents", *documents):
        content = part.encode()
        sha256.update(len(content).to_bytes(8, "big") + content)
    return sha256.hexdigest()


def teacher_hash(teacher: str) -> str:
    """Return the sha256 of a teacher: of the files of a folder, of the name of a Hub id."""
    if not Path(teacher).is_dir():
        return hashlib.sha256(teacher.encode()).hexdigest()
    sha256 = hashlib.sha256()
    for path in sorted(Path(teacher).rglob("*")):
        if path.is_file() and path.name != "training.json":
            sha256.update(path.relative_to(teacher).as_posix().encode())
            sha256.update(bytes.fromhex(digest(path)))
    return sha256.hexdigest()


class MappedEncoder(nn.Module):
    """A student whose vectors pass a linear map to the teacher's width in training mode. In evaluation mode they do
    not, so the student is measured as it will be used. The map is dropped at the end."""

    def __init__(self, encoder: nn.Module, width: int, teacher_width: int):
        super().__init__()
        self.encoder = encoder
        self.map = nn.Linear(width, teacher_width, bias=False)

    def forward(self, **inputs):
        outputs = self.encoder(**inputs)
        if self.training:
            outputs.pooler_output = self.map(outputs.pooler_output)
        return outputs
