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
CLASSIFIER = ("classifier.weight", "classifier.bias")


class Fixture:
    def __init__(self, name):
        with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
            meta = {key: json.loads(value) for key, value in file.metadata().items() if value[:1] in "[{"}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.config, self.float32_noise = meta["config"], meta["fp32_max_abs_dev"]
        self.masked_lm_only, self.classifier_only = meta["mlm_only_keys"], meta["seqcls_only_keys"]
        self.tolerance = 1e-9 if name == "float64_with_grads" else 1e-5
        self.state, self.outputs, self.inputs = (
            {key.removeprefix(group): value for key, value in tensors.items() if key.startswith(group)}
            for group in ("state_dict.", "outputs.", "inputs.")
        )
        self.labels = self.inputs.pop("mlm_labels")

    def embedding_state(self):
        """As of a retrieval model: with a pooler, without a classifier."""
        return {key: self.state[key] for key in self.state if key not in [*self.masked_lm_only, *CLASSIFIER]}

    def masked_lm_state(self):
        return {key: value for key, value in self.state.items() if key not in self.classifier_only}
