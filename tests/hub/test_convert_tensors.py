"""What of a file's tensors is a weight, a table or a count of positions, and under which of its names one may stand."""

import json

import pytest
import torch
from original_model import Fixture, needs_fixtures
from safetensors.torch import save_file

from m2bert.hub.convert.names import convert_state_dict
from m2bert.hub.convert.run import convert_source

pytestmark = needs_fixtures
TABLES = ["bert.encoder.flashfft.f_16_fft", "bert.encoder.layer.1.attention.filter_fn.flashfft.twiddle_factors_fft_16",
          "bert.encoder.layer.0.attention.filter_fn2.flashfft.f_32_ifft"]  # fmt: skip
POSITIONS = "bert.embeddings.position_ids"


@pytest.fixture
def original():
    return Fixture("base_full")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.complex64])
def test_tables_of_the_convolution_are_left_out(original, name, dtype):
    state = original.embedding_state() | {name: torch.zeros(3, dtype=dtype)}
    assert convert_state_dict(state, original.config).audit.names["constant_tables"] == [name]


@pytest.mark.parametrize(
    "name",
    ["bert.embeddings.flashfft.secret", "bert.encoder.layer.0.mlp.flashfft.secret", "novel.flashfft.x",
     "bert.encoder.layer.0.attention.filter_fn.flashfft.a.b"],
)  # fmt: skip
def test_other_tensors_are_no_tables(original, name):
    with pytest.raises(ValueError, match=r"unexpected: .*flashfft"):
        convert_state_dict(original.embedding_state() | {name: torch.zeros(3)}, original.config)


@pytest.mark.parametrize(
    "positions",
    [torch.arange(5), torch.arange(129), torch.arange(128) + 0.4, torch.arange(128.0), torch.arange(128) * (1 + 0j)],
)
def test_positions_are_whole_numbers_as_many_as_the_model_has(original, positions):
    with pytest.raises(ValueError, match=r"position_ids does not count 0, 1, \.\. to 127"):
        convert_state_dict(original.embedding_state() | {POSITIONS: positions[None]}, original.config)


def test_positions_of_the_right_length_are_rebuilt(original):
    for dtype in (torch.int64, torch.int32):
        state = original.embedding_state() | {POSITIONS: torch.arange(128, dtype=dtype)[None]}
        assert convert_state_dict(state, original.config).audit.names["rebuilt"] == [POSITIONS]


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.mlp.wo.weight"])
def test_weights_of_another_type_are_named(original, name, dtype):
    state = original.embedding_state()
    state[name] = state[name].to(dtype)
    with pytest.raises(ValueError, match=f"{name} is {dtype}; weights are float16"):
        convert_state_dict(state, original.config)


@pytest.mark.parametrize("kept", ["implicit_filter.5", "implicit_filter_rev.1", "implicit_filter_rev.3"])
def test_a_frequency_may_stand_under_any_of_its_names(tmp_path, original, kept):
    state = {name: tensor.clone() for name, tensor in original.embedding_state().items()
             if not name.endswith(".freq") or f"{kept}.freq" in name}  # fmt: skip
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(original.config))
    convert_source(str(tmp_path), tmp_path / "out")
    expected = convert_state_dict(original.embedding_state(), original.config).tensors
    found = convert_state_dict(state, original.config).tensors
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("stated", [True, False])
def test_the_word_embeddings_may_stand_as_the_decoder(tmp_path, original, stated):
    state = {name: tensor.clone() for name, tensor in original.masked_lm_state().items()}
    del state["bert.embeddings.word_embeddings.weight"]
    save_file(state, tmp_path / "model.safetensors")
    options = original.config if stated else {}
    (tmp_path / "config.json").write_text(json.dumps(options))
    convert_source(str(tmp_path), tmp_path / "out")
    expected = convert_state_dict(original.masked_lm_state(), options)
    found = convert_state_dict(state, options)
    assert found.config.to_diff_dict() == expected.config.to_diff_dict()
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], expected.tensors[name]) for name in expected.tensors)
    with pytest.raises(ValueError, match="contradicts the tensors, which have 512"):
        convert_state_dict(state, original.config | {"vocab_size": 600})


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("pool_all", "false", "true or false"),
        ("use_cls_token", 1, "true or false"),
        ("residual_long_conv", None, "true or false"),
        ("hidden_size", "64", "a whole number"),
        ("num_hidden_layers", 2.0, "a whole number"),
        ("max_position_embeddings", True, "a whole number"),
        ("vocab_size", "512", "a whole number"),
        ("pad_token_id", "0", "a whole number"),
        ("layer_norm_eps", "x", "a finite number"),
        ("hyena_w", float("nan"), "a finite number"),
        ("hyena_w_mod", True, "a finite number"),
        ("hidden_act", ["gelu"], "a string"),
    ],
)
def test_an_option_of_another_type_is_named_with_the_type_it_has(original, option, value, kind):
    with pytest.raises(ValueError) as raised:  # noqa: PT011  (its text is looked at below)
        convert_state_dict(original.embedding_state(), original.config | {option: value})
    assert str(raised.value).startswith(f"option {option}={value!r} of the original's configuration must be {kind}")


def test_options_that_the_original_leaves_open_may_be_null(original):
    stated = original.config | {"pad_token_id": None, "long_conv_l_max": None, "hyena_w": 10.0}
    assert convert_state_dict(original.embedding_state(), stated).config.pad_token_id is None


@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 3), (2, 3, 4), (1, 0, 1), (1, 1, 1, 1)])
def test_tensors_of_any_other_shape_are_refused_by_name(original, shape):
    whole = original.embedding_state()
    for name in whole:
        if shape != whole[name].shape and ".layer.1." not in name:
            for options in (original.config, {}):
                with pytest.raises(ValueError, match="bert|embeddings|layers|pooler|option |_size"):
                    convert_state_dict(whole | {name: torch.ones(shape)}, options)
