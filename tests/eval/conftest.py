"""A tiny retrieval task on disk, a tiny sentence-transformers model, and where QMSUM is."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

WORDS = ["apple", "pear", "boat", "sail", "stone", "wall", "cloud", "rain", "river", "bridge", "horse", "saddle"]


def write_tables(folder: Path, queries: list[dict], documents: list[dict], split: str = "test") -> Path:
    for kind, rows in (("queries", queries), ("documents", documents)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / kind / f"{split}.parquet")
    return folder


@pytest.fixture
def write_task():
    return write_tables


@pytest.fixture
def tiny_rows() -> tuple[list[dict], list[dict]]:
    """Six queries of one word; the answer of each is the only document that has the word."""
    pairs = list(zip(WORDS[::2], WORDS[1::2], strict=True))
    documents = [
        {"pid": f"p{i}", "passage": f"{first} {second} " * 8 + first, "dataset": "tiny"}
        for i, (first, second) in enumerate(pairs)
    ]
    queries = [
        {"qid": f"q{i}", "query": second, "answer_pids": [f"p{i}"], "dataset": "tiny"}
        for i, (_, second) in enumerate(pairs)
    ]
    return queries, documents


@pytest.fixture
def tiny_data(tmp_path, tiny_rows) -> Path:
    return write_tables(tmp_path / "data", *tiny_rows)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """An untrained two-layer BERT of width 16 that takes at most 12 tokens."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=12).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def qmsum_data() -> Path:
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "locov1_qmsum"
    if not folder.is_dir():
        pytest.skip(f"needs the LoCoV1 QMSUM tables in {folder}")
    return folder
