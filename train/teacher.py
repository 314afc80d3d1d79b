"""Teacher vectors for the prototype loss, and the map from the student's width to theirs."""

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from m2bert.files import digest

from .verified_files import Arrays, prepared_once

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
    """
    queries = [text for task in tasks for text in task.queries.values()]
    documents = [text for task in tasks for text in task.documents.values()]
    folder = Path(cache) / content_hash(teacher, queries, documents)
    with accelerator.main_process_first():
        arrays, _ = prepared_once(folder, "teacher", lambda scratch: encode(teacher, queries, documents))
    return tuple(torch.from_numpy(arrays["vectors"][name]) for name in ("queries", "documents"))


def encode(teacher: str, queries: list[str], documents: list[str]) -> tuple[Arrays, dict]:
    """Return the teacher's vectors of queries and of documents, for a prepared folder."""
    from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder

    logger.info("teacher %s encodes %d queries and %d documents", teacher, len(queries), len(documents))
    encoder = SentenceTransformerEncoder(teacher)
    vectors = {"queries": encoder.encode(queries, "query"), "documents": encoder.encode(documents, "document")}
    return {"vectors": vectors}, {}


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
