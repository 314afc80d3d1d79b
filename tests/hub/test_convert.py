"""Names, options and numbers of converted tensors: parity with the original model, and clear errors."""

import json
import logging

import pytest
import torch
from original_model import CLASSIFIER, FIXTURES, KEPT, Fixture, needs_fixtures

from m2bert.hub.convert.check import reference_forward
from m2bert.hub.convert.names import Options, convert_config, convert_state_dict, infer_options
from modeling_m2bert import M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel
from modeling_m2bert.m2bert_ops_filter import implicit_filter

pytestmark = needs_fixtures

WORDS, POSITIONS = "bert.embeddings.word_embeddings.weight", "bert.embeddings.position_ids"
LAYER = "bert.encoder.layer.0."


def converted(cls, state, fixture):
    conversion = convert_state_dict(state, fixture.config)
    model = cls(conversion.config).double().eval()
    model.load_state_dict(conversion.tensors, strict=True)
    return model


def encoder(fixture):
    return converted(M2BertModel, fixture.embedding_state(), fixture)


def masked_lm_model(fixture):
    return converted(M2BertForMaskedLM, fixture.masked_lm_state(), fixture)


def assert_close(actual, expected, tolerance):
    assert (actual - expected.to(actual.dtype)).abs().max().item() <= tolerance


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture(params=KEPT)
def fixture(request):
    return Fixture(request.param)


@pytest.fixture(scope="module")
def original():
    return Fixture("base_full")


# --- parity ---


def test_encoder_and_masked_lm_match_the_original(fixture):
    model = encoder(fixture)
    with torch.no_grad():
        outputs = model(**fixture.inputs, output_hidden_states=True)
    expected = [fixture.outputs["embeddings_output"]]
    expected += [fixture.outputs[f"hidden_states.{i + 1}"] for i in range(fixture.config["num_hidden_layers"])]
    for ours, theirs in zip(outputs.hidden_states, expected, strict=True):
        assert_close(ours, theirs, fixture.tolerance)
    assert_close(outputs.last_hidden_state, fixture.outputs["sequence_output"], fixture.tolerance)
    assert_close(outputs.pooler_output, fixture.outputs["pooled_output"], fixture.tolerance)
    assert_close(outputs.pooler_output, fixture.outputs["sentence_embedding"], fixture.tolerance)
    assert_close(outputs.last_hidden_state[:, 0], fixture.outputs["sentence_embedding_cls"], fixture.tolerance)
    mixer, length = model.layers[0].mixer, fixture.inputs["input_ids"].shape[1]
    for ours, theirs in ((mixer.filter, "filter1"), (mixer.residual_filter, "filter2")):
        if ours is not None and f"debug.layer0.{theirs}_fwd" in fixture.outputs:
            for taps, direction in zip(implicit_filter(ours.parameters_for(length)), ("fwd", "rev"), strict=True):
                assert_close(taps.T, fixture.outputs[f"debug.layer0.{theirs}_{direction}"], fixture.tolerance)
    with torch.no_grad():
        masked_lm = masked_lm_model(fixture)(
            **fixture.inputs, labels=fixture.labels.masked_fill(fixture.labels <= 0, -100)
        )
    assert_close(masked_lm.logits, fixture.outputs["mlm_logits"], fixture.tolerance)
    assert_close(masked_lm.loss, fixture.outputs["mlm_loss"], fixture.tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["short_input", "base_padded_256", "no_residual_long_conv"])
def test_triton_kernels_match_the_original_in_float32(name, monkeypatch):
    """Within a few times the noise that float32 has in the original itself. Without a GPU they run interpreted."""
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setenv("M2BERT_KERNELS", "triton")
    fixture = Fixture(name)
    model = encoder(fixture).float().to(device)
    with torch.no_grad():
        outputs = model(**{key: value.to(device) for key, value in fixture.inputs.items()})
    noise = fixture.float32_noise["sequence_output"]
    error = (outputs.last_hidden_state.cpu() - fixture.outputs["sequence_output"]).abs().max().item()
    assert error <= 3 * noise, f"{error / noise:.2f} times the noise of float32"


def test_every_gradient_matches_the_original():
    fixture = Fixture("float64_with_grads")
    model = masked_lm_model(fixture)
    model(**fixture.inputs, labels=fixture.labels.masked_fill(fixture.labels <= 0, -100)).loss.backward()
    # A gradient has the layout of its parameter: put the gradients in the parameters' place and convert them.
    state = fixture.masked_lm_state()
    gradients = {key.removeprefix("grad."): value for key, value in fixture.outputs.items() if key.startswith("grad.")}
    for key, value in gradients.items():
        state[key] = value
        if key.endswith(".1.freq"):  # one shared tensor in the original; the gradient has its first name
            for other in ("implicit_filter.3", "implicit_filter.5", *(f"implicit_filter_rev.{i}" for i in (1, 3, 5))):
                state[key.replace("implicit_filter.1", other)] = value
    state["cls.predictions.decoder.weight"] = state[WORDS]
    expected = convert_state_dict(state, fixture.config).tensors
    named = dict(model.named_parameters())
    assert len(named) >= 50
    for name, parameter in named.items():
        assert parameter.grad is not None, name
        assert_close(parameter.grad, expected[name], 1e-7)


def test_a_classifier_on_top_of_the_converted_pooler(original):
    conversion = convert_state_dict(original.embedding_state(), original.config)
    conversion.config.num_labels = 10
    model = M2BertForSequenceClassification(conversion.config).double().eval()
    state = {f"model.{name}": value for name, value in conversion.tensors.items()}
    state |= {name: original.state[name] for name in CLASSIFIER}
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        assert_close(model(**original.inputs).logits, original.outputs["seqcls_logits"], 1e-5)


def test_the_reference_gives_the_originals_outputs(fixture):
    options = convert_state_dict(fixture.embedding_state(), fixture.config).options
    first = options.model_copy(update={"use_cls_token": True})
    for state, used, head, golden in (
        (fixture.embedding_state(), options, "pooler_output", "pooled_output"),
        (fixture.embedding_state(), first, "pooler_output", "sentence_embedding_cls"),
        (fixture.masked_lm_state(), options, "logits", "mlm_logits"),
    ):
        found = reference_forward(state, used, **fixture.inputs)
        assert found.keys() == {"last_hidden_state", head}
        for ours, theirs in (("last_hidden_state", "sequence_output"), (head, golden)):
            assert found[ours].dtype == torch.float64
            assert_close(found[ours], fixture.outputs[theirs].double(), fixture.tolerance)


# --- tensors ---


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (f"{LAYER}attention.novelty", torch.zeros(1), "Unexpected .*novelty"),
        ("bert.embeddings.flashfft.secret", torch.zeros(3), "flashfft.secret"),
        (f"{LAYER}attention.filter_fn.flashfft.a.b", torch.zeros(3), "flashfft.a.b"),
        (f"{LAYER}attention.in_linear.bias", None, "layers.0.mixer.short_conv.input_bias"),
        (f"{LAYER}mlp.wo.weight", None, "layers.0.mlp.down.weight"),
        (f"{LAYER}attention.filter_fn.bias", None, f"KeyError: '{LAYER}attention.filter_fn.bias'"),
        (WORDS, None, f"no {WORDS}"),
        ("module.bert.pooler.dense.bias", torch.zeros(3), "bert.pooler.dense.bias' stands there twice"),
        ("cls.predictions.decoder.weight", lambda t: t + 1, f"decoder.weight differs from {WORDS}"),
        (f"{LAYER}attention.filter_fn.implicit_filter_rev.3.freq", lambda t: t + 1, "rev.3.freq differs from"),
        (POSITIONS, torch.arange(128).flip(0)[None], "position_ids does not count"),
        (POSITIONS, torch.arange(128.0)[None], "position_ids does not count"),
        (WORDS, lambda t: t.to(torch.complex64), f"{WORDS} is torch.complex64"),
        (f"{LAYER}mlp.wo.weight", lambda t: t.int(), "wo.weight is torch.int32"),
        (0, torch.ones(1), "Unexpected .*0"),
        ("step", 3, "'step' is no dense tensor but int"),
        ("extra", {"weight": torch.ones(1)}, "'extra' is no dense tensor"),
        (WORDS, lambda t: t.to_sparse(), "is no dense tensor"),
        (WORDS, lambda t: t[:1, :1].expand(8 * 10**8, 64), "is no dense tensor"),
        (WORDS, lambda t: t.to("meta"), "is no dense tensor"),
    ],
)
def test_tensors_that_are_missing_unexpected_or_would_be_lost_are_named(original, name, value, says):
    whole = original.masked_lm_state() if "cls." in str(name) else original.embedding_state()
    state = {other: tensor for other, tensor in whole.items() if other != name}
    if value is not None:
        state[name] = value(whole[name]) if callable(value) else value
    with pytest.raises(ValueError, match=says):
        convert_state_dict(state, original.config)


@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 3), (2, 3, 4), (1, 0, 1), (1, 1, 1, 1)])
def test_tensors_of_any_other_shape_are_refused_by_name(original, shape):
    whole = original.embedding_state()
    for name in whole:
        if shape != whole[name].shape and ".layer.1." not in name:
            for options in (original.config, {}):
                with pytest.raises(ValueError, match="bert|embeddings|layers|pooler|option |_size"):
                    convert_state_dict(whole | {name: torch.ones(shape)}, options)


def test_prefixes_and_tables_are_accepted_and_every_tensor_is_in_the_record(original):
    state = {f"model.module.{name}": value for name, value in original.state.items()}  # both heads in one file
    for table in ("encoder.flashfft.f_16_fft", "encoder.layer.0.attention.filter_fn2.flashfft.twiddle_factors_fft_16"):
        state[f"model.module.bert.{table}"] = torch.zeros(3, dtype=torch.complex64)
    found, expected = (convert_state_dict(each, original.config) for each in (state, original.masked_lm_state()))
    assert_same(found.tensors, expected.tensors)
    record = found.audit.record()
    assert record["rebuilt"] == [POSITIONS]
    assert record["constant_tables"] == 2
    assert set(record["not_converted"]) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", *CLASSIFIER}
    assert "cls.predictions.decoder.weight" in record["repeated"]
    assert len(record["repeated"]) == 1 + 2 * 2 * 5  # and per layer, two filters, five more names of a frequency
    assert record["converted"] == len(original.state) - 1 - 4 - 21
    parts = [record["converted"], record["constant_tables"], *map(len, (record["repeated"], record["rebuilt"]))]
    assert record["total"] == len(state) == sum(parts) + len(record["not_converted"])


@pytest.mark.parametrize("kept", ["implicit_filter.1", "implicit_filter.5", "implicit_filter_rev.1", "decoder"])
def test_shared_tensors_may_be_stored_once_under_any_name(original, kept):
    """As safetensors does."""
    whole = original.masked_lm_state()
    dropped = WORDS if kept == "decoder" else "cls.predictions.decoder.weight"
    frequency = "implicit_filter.1.freq" if kept == "decoder" else f"{kept}.freq"
    once = {name: value for name, value in whole.items()
            if name != dropped and (not name.endswith(".freq") or frequency in name)}  # fmt: skip
    for options in (original.config, {}):
        expected, found = (convert_state_dict(tensors, options) for tensors in (whole, once))
        assert found.config.to_diff_dict() == expected.config.to_diff_dict()
        assert_same(found.tensors, expected.tensors)


# --- options ---


@pytest.mark.parametrize(
    ("case", "option"),
    [("unidirectional", "bidirectional"), ("non_glu_mlp", "use_glu_mlp"), ("uneven_blocks", "num_blocks")],
)
def test_options_this_model_does_not_have_are_named(case, option):
    fixture = Fixture(case)
    with pytest.raises(ValueError, match=option):
        convert_state_dict(fixture.masked_lm_state(), fixture.config)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [("hidden_size", 128, 64), ("num_hidden_layers", 1, 2), ("type_vocab_size", 3, 2), ("hyena_filter_order", 64, 32),
     ("residual_long_conv", False, True), ("vocab_size", 600, 512), ("use_monarch_mlp", False, True),
     ("max_position_embeddings", 64, 128), ("long_conv_l_max", 64, 128)],
)  # fmt: skip
def test_an_option_that_contradicts_the_tensors_is_refused_with_both_values(original, option, value, told):
    with pytest.raises(ValueError, match=f"option {option}={value} .*contradicts .* {told}"):
        convert_state_dict(original.masked_lm_state(), original.config | {option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [("hidden_size", "x"), ("num_hidden_layers", 2.0), ("vocab_size", "512"), ("monarch_mlp_nblocks", 0),
     ("hyena_w", float("nan")), ("hyena_w_mod", None), ("pool_all", "false"), ("hidden_act", "relu")],
)  # fmt: skip
def test_an_option_of_another_type_is_named(original, option, value):
    with pytest.raises(ValueError, match=f"option .*{option}"):
        convert_state_dict(original.embedding_state(), original.config | {option: value})


def test_what_the_original_allows_is_no_contradiction(original):
    rounded_up = convert_state_dict(original.masked_lm_state(), original.config | {"vocab_size": 505}).config
    assert rounded_up.vocab_size == 512
    left_open = original.config | {"pad_token_id": None, "long_conv_l_max": None, "hyena_w": 10.0}
    assert convert_state_dict(original.embedding_state(), left_open).config.pad_token_id is None


def test_what_the_configuration_leaves_out_comes_from_tensors_or_is_assumed(fixture, caplog):
    stated = {name: fixture.config[name] for name in ("pool_all", "hyena_w_mod")}
    expected = convert_state_dict(fixture.masked_lm_state(), fixture.config)
    with caplog.at_level(logging.INFO):
        found = convert_state_dict(fixture.masked_lm_state(), stated | {"architectures": ["X"]})
    assert "assumed, since tensors do not tell it: use_cls_token=False" in caplog.text
    assert found.config.to_diff_dict() == expected.config.to_diff_dict()
    assert_same(found.tensors, expected.tensors)
    assert found.origins["config"] == stated
    assert found.origins["tensors"]["num_hidden_layers"] == fixture.config["num_hidden_layers"]
    names = [name for group in found.origins.values() for name in group]
    assert len(names) == len(set(names))


def test_the_released_32k_shapes():
    facts = json.loads((FIXTURES / "state_dict_80m.json").read_text())
    longest, state = 32768, {}
    for name, tensor in facts["keys"].items():
        shape = tensor.get("shape_formula", tensor["shape"])
        state[name] = torch.empty([longest if size == "l_max" else size for size in shape], device="meta")
    options = Options(**infer_options(state))
    assert options.max_position_embeddings == longest
    assert (options.hidden_size, options.num_hidden_layers, options.intermediate_size) == (768, 12, 3072)
    assert (options.monarch_mlp_nblocks, options.hyena_filter_order, options.hyena_emb_dim) == (4, 128, 5)
    assert (options.bidirectional, options.residual_long_conv) == (True, True)
    config = convert_config(options, vocab_size=30528)
    assert (config.max_position_embeddings, config.pooling, config.padding) == (longest, "cls_tanh", "visible")
