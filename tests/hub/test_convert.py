"""Parity with the original model: every fixture whose options this model keeps, and clear errors for the others."""

import pytest
import torch
from original_model import KEPT, Fixture, needs_fixtures

from m2bert.hub.convert.names import convert_state_dict
from modeling_m2bert import M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel
from modeling_m2bert.m2bert_ops_filter import implicit_filter

pytestmark = needs_fixtures

REFUSED = {
    "unidirectional": "bidirectional",
    "non_glu_mlp": "use_glu_mlp",
    "uneven_blocks": "monarch_mlp_nblocks",
}


def masked_lm_model(fixture):
    conversion = convert_state_dict(fixture.masked_lm_state(), fixture.config)
    model = M2BertForMaskedLM(conversion.config).double().eval()
    model.load_state_dict(conversion.tensors, strict=True)
    return model


def encoder(fixture):
    conversion = convert_state_dict(fixture.without(fixture.masked_lm_only), fixture.config)
    model = M2BertModel(conversion.config).double().eval()
    model.load_state_dict(conversion.tensors, strict=True)
    return model


def assert_close(actual, expected, tolerance):
    assert (actual - expected.to(actual.dtype)).abs().max().item() <= tolerance


@pytest.fixture(params=KEPT)
def fixture(request):
    return Fixture(request.param)


def test_encoder_matches_the_original(fixture):
    with torch.no_grad():
        outputs = encoder(fixture)(**fixture.inputs, output_hidden_states=True)
    assert_close(outputs.hidden_states[0], fixture.outputs["embeddings_output"], fixture.tolerance)
    for i in range(1, fixture.config["num_hidden_layers"] + 1):
        assert_close(outputs.hidden_states[i], fixture.outputs[f"hidden_states.{i}"], fixture.tolerance)
    assert_close(outputs.last_hidden_state, fixture.outputs["sequence_output"], fixture.tolerance)
    assert_close(outputs.pooler_output, fixture.outputs["pooled_output"], fixture.tolerance)
    assert_close(outputs.pooler_output, fixture.outputs["sentence_embedding"], fixture.tolerance)
    assert_close(outputs.last_hidden_state[:, 0], fixture.outputs["sentence_embedding_cls"], fixture.tolerance)


@pytest.mark.parametrize(
    "name", ["short_input", pytest.param("base_padded_256", marks=pytest.mark.slow),
             pytest.param("no_residual_long_conv", marks=pytest.mark.slow)]
)  # fmt: skip
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


def test_masked_lm_matches_the_original(fixture):
    with torch.no_grad():
        outputs = masked_lm_model(fixture)(
            **fixture.inputs, labels=fixture.labels.masked_fill(fixture.labels <= 0, -100)
        )
    assert_close(outputs.logits, fixture.outputs["mlm_logits"], fixture.tolerance)
    assert_close(outputs.loss, fixture.outputs["mlm_loss"], fixture.tolerance)


def test_filters_match_the_original(fixture):
    mixer = encoder(fixture).layers[0].mixer
    length = fixture.inputs["input_ids"].shape[1]
    for ours, theirs in ((mixer.filter, "filter1"), (mixer.residual_filter, "filter2")):
        if ours is not None and f"debug.layer0.{theirs}_fwd" in fixture.outputs:
            for taps, direction in zip(implicit_filter(ours.parameters_for(length)), ("fwd", "rev"), strict=True):
                assert_close(taps.T, fixture.outputs[f"debug.layer0.{theirs}_{direction}"], fixture.tolerance)


def test_every_gradient_matches_the_original():
    fixture = Fixture("float64_with_grads")
    model = masked_lm_model(fixture)
    model(**fixture.inputs, labels=fixture.labels.masked_fill(fixture.labels <= 0, -100)).loss.backward()
    # A gradient has the layout of its parameter: put the gradients in the parameters' place and convert them.
    state = fixture.without(fixture.classifier_only)
    gradients = {key.removeprefix("grad."): value for key, value in fixture.outputs.items() if key.startswith("grad.")}
    for key, value in gradients.items():
        state[key] = value
        if key.endswith(".1.freq"):  # one shared tensor upstream; the gradient stands under its first name
            for other in ("implicit_filter.3", "implicit_filter.5", *(f"implicit_filter_rev.{i}" for i in (1, 3, 5))):
                state[key.replace("implicit_filter.1", other)] = value
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    expected = convert_state_dict(state, fixture.config).tensors
    named = dict(model.named_parameters())
    assert len(named) >= 50
    for name, parameter in named.items():
        assert parameter.grad is not None, name
        assert_close(parameter.grad, expected[name], 1e-7)


@pytest.mark.parametrize("case", REFUSED)
def test_options_this_model_does_not_have_are_named(case):
    fixture = Fixture(case)
    with pytest.raises(ValueError, match=REFUSED[case]):
        convert_state_dict(fixture.without(fixture.classifier_only), fixture.config)


def test_prefixes_and_constant_tables_are_understood():
    fixture = Fixture("base_full")
    plain = fixture.without(fixture.classifier_only)
    dressed = {f"model.module.{key}": value for key, value in plain.items()}
    dressed["model.module.bert.encoder.layer.0.attention.filter_fn.flashfft.f_16_fft"] = torch.zeros(3)
    expected, actual = (convert_state_dict(state, fixture.config).tensors for state in (plain, dressed))
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[key], actual[key]) for key in expected)


def test_missing_and_unexpected_tensors_are_named():
    fixture = Fixture("base_full")
    state = fixture.without(fixture.masked_lm_only)
    state["bert.encoder.layer.0.attention.novelty"] = torch.zeros(1)
    with pytest.raises(ValueError, match="unexpected: bert.encoder.layer.0.attention.novelty"):
        convert_state_dict(state, fixture.config)
    state = fixture.without(fixture.masked_lm_only)
    del state["bert.encoder.layer.1.attention.in_linear.bias"]
    with pytest.raises(ValueError, match="missing: layers.1.mixer.short_conv.input_bias"):
        convert_state_dict(state, fixture.config)
    del state["bert.encoder.layer.1.mlp.wo.weight"]
    with pytest.raises(ValueError, match=r"lacks 'bert.encoder.layer.1.mlp.wo.weight'"):
        convert_state_dict(state, fixture.config)


def test_classifier_on_top_of_the_converted_pooler():
    fixture = Fixture("base_full")
    conversion = convert_state_dict(fixture.without(fixture.masked_lm_only), fixture.config)
    config, state = conversion.config, conversion.tensors
    config.num_labels = 10
    model = M2BertForSequenceClassification(config).double().eval()
    classifier = {f"classifier.{name}": fixture.state[f"classifier.{name}"] for name in ("weight", "bias")}
    model.load_state_dict({f"model.{key}": value for key, value in state.items()} | classifier, strict=True)
    with torch.no_grad():
        assert_close(model(**fixture.inputs).logits, fixture.outputs["seqcls_logits"], 1e-5)


def test_every_tensor_has_its_place_in_the_account():
    fixture = Fixture("base_full")
    state = {f"model.{key}": value for key, value in fixture.state.items()}  # both heads in one file
    state["model.bert.encoder.layer.0.attention.filter_fn.flashfft.twiddle"] = torch.zeros(3)
    record = convert_state_dict(state, fixture.config).audit.record()
    assert record["rebuilt"] == ["bert.embeddings.position_ids"]
    assert record["constant_tables"] == 1
    assert set(record["not_converted"]) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight",
                                            "classifier.bias"}  # fmt: skip
    assert "cls.predictions.decoder.weight" in record["repeated"]
    assert len(record["repeated"]) == 1 + 2 * 2 * 5  # and per layer, two filters, five more names of a frequency
    assert record["converted"] == len(fixture.state) - 1 - 4 - 21
    parts = [record["converted"], record["constant_tables"], *map(len, (record["repeated"], record["rebuilt"]))]
    assert record["total"] == len(state) == sum(parts) + len(record["not_converted"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cls.predictions.decoder.weight", "decoder.weight differs from bert.embeddings.word_embeddings.weight"),
        ("bert.encoder.layer.1.attention.filter_fn.implicit_filter_rev.3.freq", "rev.3.freq differs from"),
        ("bert.embeddings.position_ids", "position_ids does not count"),
    ],
)
def test_a_tensor_that_would_be_lost_is_refused(name, message):
    fixture = Fixture("base_full")
    state = fixture.masked_lm_state()
    state[name] = state[name] + 1
    with pytest.raises(ValueError, match=message):
        convert_state_dict(state, fixture.config)


def test_shared_tensors_may_be_stored_once():
    """As safetensors does."""
    fixture = Fixture("base_full")
    state = fixture.masked_lm_state()
    once = {key: value for key, value in state.items() if not key.endswith((".3.freq", ".5.freq", "decoder.weight"))}
    once = {key: value for key, value in once.items() if not key.endswith("rev.1.freq")}
    expected, found = (convert_state_dict(tensors, fixture.config).tensors for tensors in (state, once))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_one_name_twice_is_refused():
    fixture = Fixture("base_full")
    state = fixture.masked_lm_state()
    state["module.bert.pooler.dense.bias"] = state["bert.pooler.dense.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match="holds 'bert.pooler.dense.bias' twice"):
        convert_state_dict(state, fixture.config)


@pytest.mark.parametrize(
    ("option", "value"),
    [("hidden_size", 128), ("num_hidden_layers", 1), ("type_vocab_size", 3), ("hyena_filter_order", 64),
     ("residual_long_conv", False), ("vocab_size", 600), ("use_monarch_mlp", False)],
)  # fmt: skip
def test_a_configuration_that_contradicts_the_tensors_is_refused_with_both_values(option, value):
    fixture = Fixture("base_full")
    with pytest.raises(ValueError, match=f"option {option}={value} .*contradicts the tensors, which have "
                       f"{fixture.config[option]}"):  # fmt: skip
        convert_state_dict(fixture.masked_lm_state(), fixture.config | {option: value})


def test_a_shorter_maximum_than_the_tables_is_refused():
    fixture = Fixture("base_full")
    changed = fixture.config | {"max_position_embeddings": 64, "long_conv_l_max": 64}
    with pytest.raises(ValueError, match="max_position_embeddings=64 .* 128"):
        convert_state_dict(fixture.masked_lm_state(), changed)


def test_a_vocabulary_that_the_original_rounded_up_is_no_contradiction():
    fixture = Fixture("base_full")
    config = convert_state_dict(fixture.masked_lm_state(), fixture.config | {"vocab_size": 505}).config
    assert config.vocab_size == 512


@pytest.mark.parametrize(("option", "value"), [("hidden_size", "x"), ("monarch_mlp_nblocks", 0), ("hyena_w_mod", None)])
def test_an_option_that_is_no_number_is_named(option, value):
    fixture = Fixture("base_full")
    with pytest.raises(ValueError, match=f"option {option}={value!r}"):
        convert_state_dict(fixture.masked_lm_state(), fixture.config | {option: value})


def test_every_option_has_one_origin():
    fixture = Fixture("base_full")
    stated = {"hidden_size": 64, "pool_all": True, "architectures": ["X"]}
    origins = convert_state_dict(fixture.embedding_state(), stated).origins
    assert origins["config"] == {"hidden_size": 64, "pool_all": True}
    assert origins["tensors"]["num_hidden_layers"] == 2
    assert origins["assumed"]["use_cls_token"] is False
    names = [name for group in origins.values() for name in group]
    assert len(names) == len(set(names))
