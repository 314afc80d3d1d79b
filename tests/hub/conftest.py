"""A tokenizer of a few words, and folders that can be pushed."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertTokenizerFast

from m2bert.hub.folder import write_folder
from modeling_m2bert import M2BertModel

WORDS = ["a", "about", "and", "budget", "committee", "meeting", "minutes", "of", "report", "the"]


@pytest.fixture
def tokenizer():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizerFast(vocab={token: i for i, token in enumerate(vocabulary)})


@pytest.fixture
def folder(tmp_path, tiny_config, tokenizer):
    """Of an embedding model."""
    return write_folder(M2BertModel(tiny_config()), tokenizer, tmp_path / "model")


@pytest.fixture
def adapter(tmp_path):
    """Of a base that is on the Hub."""
    path = tmp_path / "adapter"
    path.mkdir()
    save_file({"x": torch.ones(2)}, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    (path / "README.md").write_text("---\nbase_model: org/base\n---\n# Adapter\n")
    return path
