"""Golden tensors of the original model, as converters find them: state dicts, options, inputs and outputs."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "upstream_parity"
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"golden tensors of the original model are not at {FIXTURES}"
)

KEPT = ["base_full", "base_padded_256", "short_input", "short_padded_pool_all", "three_layers_pool_all_types",
        "no_residual_long_conv", "no_positional_embeddings", "training_additions", "training_additions_no_residual",
        "dense_mlp_emb3_wmod", "float64_with_grads"]  # fmt: skip


class Fixture:
    def __init__(self, name):
        with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
            meta = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.config = json.loads(meta["config"])
        self.tolerance = 1e-9 if name == "float64_with_grads" else 1e-5
        self.float32_noise = json.loads(meta["fp32_max_abs_dev"])
        self.masked_lm_only, self.classifier_only = (
            json.loads(meta["mlm_only_keys"]),
            json.loads(meta["seqcls_only_keys"]),
        )
        self.state = {
            key.removeprefix("state_dict."): value for key, value in tensors.items() if key.startswith("state_dict.")
        }
        self.outputs = {
            key.removeprefix("outputs."): value for key, value in tensors.items() if key.startswith("outputs.")
        }
        self.inputs = {
            key.removeprefix("inputs."): value for key, value in tensors.items() if key.startswith("inputs.")
        }
        self.labels = self.inputs.pop("mlm_labels")

    def without(self, keys):
        return {key: value for key, value in self.state.items() if key not in keys}

    def embedding_state(self):
        """As of a retrieval model: with a pooler, without a classifier."""
        return {key: value for key, value in self.without(self.masked_lm_only).items() if "classifier" not in key}

    def masked_lm_state(self):
        return self.without(self.classifier_only)
