"""Small models and paths that several test files use. Without a GPU, Triton's kernels run interpreted."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported

from modeling_m2bert import M2BertConfig

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture
def tiny_config():
    """Make a configuration of a model that runs in milliseconds; keyword arguments change it."""

    def make(**changes):
        settings = {
            "vocab_size": 120,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 48,
            "filter_order": 8,
            "hidden_dropout_prob": 0.0,
        }
        return M2BertConfig(**settings | changes)

    return make


def randomize(model):
    """Weights large enough for every term to matter: a fresh model's filters are almost zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
            if "output_weight" in name:
                parameter.add_(0.5 * noise)
            elif "frequency" not in name and "positional_features" not in name:
                parameter.add_(0.1 * noise)
    return model.eval()


@pytest.fixture
def shared():
    """Folder of data that is not part of the project; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the project's shared data is not at {SHARED}")
    return SHARED


@pytest.fixture
def randomized():
    return randomize
