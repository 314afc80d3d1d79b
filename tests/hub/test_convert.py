"""Parity with the original model: every fixture whose options this model keeps, and clear errors for the others."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from m2bert_hub.convert import convert_state_dict
from modeling_m2bert import M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel
from modeling_m2bert.m2bert_ops_filter import implicit_filter

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "upstream_parity"
pytestmark = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"golden tensors of the original model are not at {FIXTURES}"
)

KEPT = ["base_full", "base_padded_256", "short_input", "short_padded_pool_all", "three_layers_pool_all_types",
        "no_residual_long_conv", "training_additions", "training_additions_no_residual", "dense_mlp_emb3_wmod",
        "float64_with_grads"]  # fmt: skip
REFUSED = {
    "unidirectional": "bidirectional",
    "no_positional_embeddings": "use_positional_encodings",
    "non_glu_mlp": "use_glu_mlp",
    "uneven_blocks": "monarch_mlp_nblocks",
}


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

    def masked_lm_model(self):
        config, state = convert_state_dict(self.without(self.classifier_only), self.config)
        model = M2BertForMaskedLM(config).double().eval()
        model.load_state_dict(state, strict=True)
        return model

    def encoder(self):
        config, state = convert_state_dict(self.without(self.masked_lm_only), self.config)
        model = M2BertModel(config).double().eval()
        model.load_state_dict(state, strict=True)
        return model


def assert_close(actual, expected, tolerance):
    assert (actual - expected.to(actual.dtype)).abs().max().item() <= tolerance


@pytest.fixture(params=KEPT)
def fixture(request):
    return Fixture(request.param)


def test_encoder_matches_the_original(fixture):
    with torch.no_grad():
        outputs = fixture.encoder()(**fixture.inputs, output_hidden_states=True)
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
    model = fixture.encoder().float().to(device)
    with torch.no_grad():
        outputs = model(**{key: value.to(device) for key, value in fixture.inputs.items()})
    noise = fixture.float32_noise["sequence_output"]
    error = (outputs.last_hidden_state.cpu() - fixture.outputs["sequence_output"]).abs().max().item()
    assert error <= 3 * noise, f"{error / noise:.2f} times the noise of float32"


def test_masked_lm_matches_the_original(fixture):
    with torch.no_grad():
        outputs = fixture.masked_lm_model()(
            **fixture.inputs, labels=fixture.labels.masked_fill(fixture.labels <= 0, -100)
        )
    assert_close(outputs.logits, fixture.outputs["mlm_logits"], fixture.tolerance)
    assert_close(outputs.loss, fixture.outputs["mlm_loss"], fixture.tolerance)


def test_filters_match_the_original(fixture):
    mixer = fixture.encoder().layers[0].mixer
    length = fixture.inputs["input_ids"].shape[1]
    for ours, theirs in ((mixer.filter, "filter1"), (mixer.residual_filter, "filter2")):
        if ours is not None and f"debug.layer0.{theirs}_fwd" in fixture.outputs:
            for taps, direction in zip(implicit_filter(ours.parameters_for(length)), ("fwd", "rev"), strict=True):
                assert_close(taps.T, fixture.outputs[f"debug.layer0.{theirs}_{direction}"], fixture.tolerance)


def test_every_gradient_matches_the_original():
    fixture = Fixture("float64_with_grads")
    model = fixture.masked_lm_model()
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
    expected = convert_state_dict(state, fixture.config)[1]
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
    expected, actual = convert_state_dict(plain, fixture.config)[1], convert_state_dict(dressed, fixture.config)[1]
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
    config, state = convert_state_dict(fixture.without(fixture.masked_lm_only), fixture.config)
    config.num_labels = 10
    model = M2BertForSequenceClassification(config).double().eval()
    classifier = {f"classifier.{name}": fixture.state[f"classifier.{name}"] for name in ("weight", "bias")}
    model.load_state_dict({f"model.{key}": value for key, value in state.items()} | classifier, strict=True)
    with torch.no_grad():
        assert_close(model(**fixture.inputs).logits, fixture.outputs["seqcls_logits"], 1e-5)
