"""Teacher vectors for the prototype loss, and the map from the student's width to theirs."""

import hashlib
import logging
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from m2bert.files import write_atomically
from m2bert_eval.locov1 import RetrievalTask

logger = logging.getLogger(__name__)


def teacher_vectors(
    accelerator: Accelerator, teacher: str, tasks: list[RetrievalTask], cache: str
) -> tuple[Tensor, Tensor]:
    """The teacher's vectors of all queries and of all documents, numbered through the tasks; computed by the main
    process and kept on disk under a hash of the teacher and the texts.

    Args:
        teacher: any sentence-transformers model: a folder (an exported M2-BERT too) or a Hub id. It truncates at its
            own maximum and a warning counts the texts, as in the paper: a model of 128 tokens teaches one of 32k.
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
        if not path.is_file():
            from m2bert_eval.sentence_encoder import SentenceTransformerEncoder

            logger.info("teacher %s encodes %d queries and %d documents", teacher, len(queries), len(documents))
            encoder = SentenceTransformerEncoder(teacher)
            vectors = {"queries": encoder.encode(queries, "query"), "documents": encoder.encode(documents, "document")}
            write_atomically(path, lambda temporary: save_file(vectors, temporary))
    stored = load_file(path)
    return torch.from_numpy(stored["queries"]), torch.from_numpy(stored["documents"])


def content_hash(teacher: str, queries: list[str], documents: list[str]) -> str:
    """sha256 of the texts and of the teacher."""
    digest = hashlib.sha256(teacher_hash(teacher).encode())
    for part in ("queries", *queries, "documents", *documents):
        content = part.encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def teacher_hash(teacher: str) -> str:
    """sha256 of a teacher: of a folder the files, of a Hub id the name."""
    if not Path(teacher).is_dir():
        return hashlib.sha256(teacher.encode()).hexdigest()
    digest = hashlib.sha256()
    for path in sorted(Path(teacher).rglob("*")):
        if path.is_file() and path.name != "training.json":
            digest.update(path.relative_to(teacher).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


class MappedEncoder(nn.Module):
    """A student whose vectors pass a linear map to the teacher's width while it trains. In evaluation they do not, so
    the student is measured as it will be used; the map is dropped at the end."""

    def __init__(self, encoder: nn.Module, width: int, teacher_width: int):
        super().__init__()
        self.encoder = encoder
        self.map = nn.Linear(width, teacher_width, bias=False)

    def forward(self, **inputs):
        outputs = self.encoder(**inputs)
        if self.training:
            outputs.pooler_output = self.map(outputs.pooler_output)
        return outputs
