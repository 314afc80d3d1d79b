"""A corpus for training runs that take a second."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate.state import AcceleratorState
from transformers import BertTokenizerFast

WORDS = ["budget", "committee", "report", "minutes", "river", "mountain", "forest"]
WORDS += ["engine", "wheel", "piston", "violin", "sonata", "rhythm"]


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory):
    """Twelve documents a split, each about one word; LoCoV1 schema."""
    folder = tmp_path_factory.mktemp("corpus")
    for kind in ("queries", "documents"):
        (folder / kind).mkdir()
    for split in ("train", "validation"):
        passages = [
            " ".join(f"{word} {WORDS[(i + j) % 13]} of number {j}" for j in range(30)) for i, word in enumerate(WORDS)
        ]
        pids = [f"{split}_{i}" for i in range(len(WORDS))]
        documents = {"pid": pids, "passage": passages, "dataset": ["toy"] * len(WORDS)}
        queries = {"qid": [f"q{pid}" for pid in pids], "query": [f"the {word} please" for word in WORDS],
                   "answer_pids": [[pid] for pid in pids], "dataset": ["toy"] * len(WORDS)}  # fmt: skip
        pq.write_table(pa.table(documents), folder / "documents" / f"{split}.parquet")
        pq.write_table(pa.table(queries), folder / "queries" / f"{split}.parquet")
    return folder


@pytest.fixture
def tokenizer():
    """A tokenizer of seven tokens, to be saved with a model."""
    return BertTokenizerFast(
        vocab={t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"])}
    )


@pytest.fixture(autouse=True)
def fresh_accelerator_state():
    """A process has one accelerator state; every test may choose its precision anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
