"""What a checkpoint's tensors tell of its configuration, on the original's own tensors and shapes."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from m2bert.hub.convert.names import Options, convert_config, convert_state_dict, infer_options

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "upstream_parity"
CASES = sorted(path.stem for path in FIXTURES.glob("*.safetensors") if path.stem != "uneven_blocks")
pytestmark = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"golden tensors of the original model are not at {FIXTURES}"
)


def read(name):
    """(tensors of the masked-LM model, configuration) of a case."""
    with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
        meta = file.metadata()
        left_out = json.loads(meta["seqcls_only_keys"])
        names = [key for key in file.keys() if key.startswith("state_dict.")]  # noqa: SIM118
        state = {key.removeprefix("state_dict."): file.get_tensor(key) for key in names}
    return {key: value for key, value in state.items() if key not in left_out}, json.loads(meta["config"])


@pytest.mark.parametrize("case", CASES)
def test_tensors_tell_what_the_configuration_says(case):
    state, config = read(case)
    options = infer_options(state)
    if not config["use_monarch_mlp"]:
        options.pop("monarch_mlp_nblocks")  # a dense product is one block, whatever the configuration keeps there
    assert {key: config[key] for key in options} == options


@pytest.mark.parametrize("case", ["base_full", "no_residual_long_conv", "training_additions"])
def test_without_a_configuration_the_same_model_comes_out(case, caplog):
    state, config = read(case)
    expected = convert_state_dict(dict(state), config)
    with caplog.at_level(logging.INFO):
        found = convert_state_dict(dict(state), {})
    assert "pool_all=False, use_cls_token=False, hyena_w_mod=1" in caplog.text
    assert found.config.to_diff_dict() == expected.config.to_diff_dict()
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[key], expected.tensors[key]) for key in found.tensors)


def test_the_released_32k_shapes():
    facts = json.loads((FIXTURES / "state_dict_80m.json").read_text())
    longest = 32768
    state = {}
    for key, tensor in facts["keys"].items():
        shape = tensor.get("shape_formula", tensor["shape"])
        state[key] = torch.empty([longest if size == "l_max" else size for size in shape], device="meta")
    options = infer_options(state)
    assert options["max_position_embeddings"] == longest
    assert (options["hidden_size"], options["num_hidden_layers"], options["intermediate_size"]) == (768, 12, 3072)
    assert (options["monarch_mlp_nblocks"], options["hyena_filter_order"], options["hyena_emb_dim"]) == (4, 128, 5)
    assert (options["bidirectional"], options["residual_long_conv"]) == (True, True)
    config = convert_config(Options(**options), vocab_size=30528)
    assert (config.max_position_embeddings, config.pooling, config.padding) == (longest, "cls_tanh", "visible")
