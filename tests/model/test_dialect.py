"""What transformers expects of a model: construction, saving, loading, resizing, outputs, pipelines."""

import copy

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertTokenizerFast,
    pipeline,
)

from modeling_m2bert import (
    M2BertForMaskedLM,
    M2BertForQuestionAnswering,
    M2BertForSequenceClassification,
    M2BertForTokenClassification,
    M2BertModel,
)

IDS = torch.arange(1, 31).view(2, 15)
CLASSES = [M2BertModel, M2BertForMaskedLM, M2BertForSequenceClassification, M2BertForTokenClassification,
           M2BertForQuestionAnswering]  # fmt: skip


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("options", "saving"),
    [
        ({}, {"max_shard_size": "20KB"}),
        ({"pooling": "weighted_mean", "num_pooling_heads": 2}, {"variant": "other"}),
        ({"num_hidden_layers": 0}, {}),
        ({"pooling": "cls_tanh", "residual_long_conv": False, "mixer_layer_norm": True}, {}),
    ],
)
def test_saving_and_loading_changes_nothing(tiny_config, randomized, tmp_path, cls, options, saving):
    model = randomized(cls(tiny_config(**options)))
    model.save_pretrained(tmp_path, **saving)
    weights = [path.name for path in tmp_path.iterdir() if path.suffix in (".safetensors", ".bin", ".pt")]
    assert all(name.endswith(".safetensors") and (".other." in name) == ("variant" in saving) for name in weights)
    assert (len(weights) > 1) == ("max_shard_size" in saving)
    loaded, report = cls.from_pretrained(tmp_path, variant=saving.get("variant"), output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        assert torch.equal(model(IDS)[0], loaded.eval()(IDS)[0])
    for (name, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_every_class_loads_from_one_checkpoint(tiny_config, randomized, tmp_path):
    model = randomized(M2BertForMaskedLM(tiny_config()))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model.model(IDS).last_hidden_state
        for auto_class in (AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification):
            loaded = auto_class.from_pretrained(tmp_path).eval()
            assert torch.equal(loaded.base_model(IDS).last_hidden_state, expected)


def test_construction_on_the_meta_device_and_under_a_default_dtype(tiny_config):
    with torch.device("meta"):
        model = M2BertForMaskedLM(tiny_config())
        assert all(parameter.is_meta for parameter in model.parameters())
        assert model(torch.ones(2, 9, dtype=torch.long)).logits.shape == (2, 9, 120)
    model = AutoModel.from_config(tiny_config(), dtype=torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert all((dtype == torch.float32) == ("filter." in name) for name, dtype in dtypes.items())
    assert model(IDS).pooler_output.isfinite().all()


def test_missing_filter_tensors_are_initialized_not_garbage(tiny_config, tmp_path):
    model = M2BertModel(tiny_config())
    buffers = dict(model.named_buffers())
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in buffers}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, report = M2BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == buffers.keys()
    for name, buffer in loaded.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_layers_are_initialized_independently_and_gates_are_open(tiny_config):
    torch.manual_seed(0)
    first, second = M2BertModel(tiny_config()).layers
    for name, parameter in first.named_parameters():
        if parameter.std() > 0 and "positional_features" not in name:
            assert not torch.equal(parameter, second.get_parameter(name)), name
    assert first.mixer.short_conv.weight.std() > 0.2


def test_masked_lm_head_is_tied_and_learns(tiny_config):
    model = M2BertForMaskedLM(tiny_config())
    assert model.lm_head.decoder.weight is model.model.embeddings.word_embeddings.weight
    labels = torch.full_like(IDS, -100)
    labels[:, 3] = IDS[:, 3]
    outputs = model(IDS, labels=labels)
    expected = torch.nn.functional.cross_entropy(outputs.logits[:, 3], IDS[:, 3])
    assert torch.allclose(outputs.loss, expected)
    model.config.sparse_prediction = True
    sparse = model(IDS, labels=labels)
    assert sparse.logits.shape == (2, 120)
    assert torch.allclose(sparse.loss, expected)
    assert model(IDS).logits.shape == (2, 15, 120)
    assert torch.allclose(model(IDS, labels=labels, num_items_in_batch=4).loss, expected / 2)


@pytest.mark.parametrize(("cls", "tied"), [*((cls, True) for cls in CLASSES), (M2BertForMaskedLM, False)])
@pytest.mark.parametrize(("size", "multiple", "expected"), [(130, None, 130), (60, None, 60), (130, 64, 192)])
def test_resizing_the_vocabulary(tiny_config, randomized, tmp_path, cls, tied, size, multiple, expected):
    config = tiny_config(pooling="weighted_mean", num_pooling_heads=2, tie_word_embeddings=tied)
    model = randomized(cls(config))
    before, decoder = model(IDS)[0].detach(), copy.deepcopy(model.get_output_embeddings())
    pools = model.base_model.pooler is not None
    if pools:
        model.base_model.pooler.token_log_weights.requires_grad_(False)
    model.resize_token_embeddings(size, pad_to_multiple_of=multiple, mean_resizing=False)
    assert model.config.vocab_size == expected
    after, kept = model(IDS)[0].detach(), min(expected, 120)
    width = min(before.shape[-1], after.shape[-1])
    assert torch.allclose(after[..., :width], before[..., :width], atol=1e-6)
    assert model(torch.full((1, 3), expected - 1))[0].isfinite().all()
    if cls is M2BertForMaskedLM:
        assert after.shape[-1] == model.lm_head.decoder.out_features == expected
        assert torch.equal(model.lm_head.decoder.weight[:kept], decoder.weight[:kept])
        assert torch.equal(model.lm_head.decoder.bias[:kept], decoder.bias[:kept])
        model(IDS, labels=IDS).loss.backward()
        assert model.lm_head.decoder.bias.grad.isfinite().all()
    elif pools:
        weights = model.base_model.pooler.token_log_weights.weight
        assert (weights.shape, weights.requires_grad) == ((expected, 2), False)
        assert torch.allclose(weights[120:], weights[:120].mean(0).expand(max(expected - 120, 0), -1), atol=1e-6)
    model.save_pretrained(tmp_path)
    loaded, report = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(loaded.eval()(IDS)[0], after)
    for each in (model, loaded) if cls is M2BertForMaskedLM else ():
        assert (each.get_output_embeddings().weight is each.get_input_embeddings().weight) == tied


def test_resizing_keeps_the_precision_of_pooling_weights(tiny_config):
    model = M2BertModel(tiny_config(pooling="weighted_mean")).bfloat16()
    model.resize_token_embeddings(130)
    assert model.pooler.token_log_weights.weight.dtype == torch.bfloat16


def test_device_maps_and_float64(tiny_config, randomized, tmp_path):
    model = randomized(M2BertModel(tiny_config(pooling="mean_tanh")))
    model.save_pretrained(tmp_path)
    mapped = M2BertModel.from_pretrained(tmp_path, device_map="cpu").eval()
    assert torch.equal(mapped(IDS).pooler_output, model(IDS).pooler_output)
    double = M2BertModel.from_pretrained(tmp_path, dtype=torch.float64)
    assert {tensor.dtype for tensor in double.state_dict().values()} == {torch.float64}


def test_initial_spread_of_every_part(tiny_config):
    """Each has its own rule; a generic one would close the gates or silence the skips."""
    torch.manual_seed(0)
    layer = M2BertModel(tiny_config(hidden_size=256, intermediate_size=512)).layers[0]
    mixer, mlp = layer.mixer, layer.mlp
    uniform = 3**-0.5
    spreads = [(mixer.in_proj.weight, 0.02), (mixer.filter.output_weight, 0.02), (mixer.filter.skip, 1.0),
               (mixer.short_conv.weight, uniform * uniform), (mlp.up.weight, uniform / 8),
               (mlp.down.weight, uniform / 128**0.5), (mlp.down.bias, uniform / 16)]  # fmt: skip
    for tensor, spread in spreads:
        assert tensor.std().item() == pytest.approx(spread, rel=0.15)


def test_compiles_without_graph_breaks_for_many_lengths(tiny_config, randomized):
    model = randomized(M2BertModel(tiny_config()))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for length in range(5, 40, 2):  # more lengths than dynamo would compile one by one
            ids, mask = torch.ones(2, length, dtype=torch.long), torch.ones(2, length, dtype=torch.long)
            mask[1, 3:] = 0
            assert torch.allclose(compiled(ids, mask).pooler_output, model(ids, mask).pooler_output, atol=1e-6)


def test_pipelines(tiny_config):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "report"]
    tokenizer = BertTokenizerFast(vocab={token: i for i, token in enumerate(vocabulary)})
    config = tiny_config(vocab_size=7)
    filled = pipeline("fill-mask", model=M2BertForMaskedLM(config).eval(), tokenizer=tokenizer)("a [MASK] report")
    assert len(filled) == 5
    vectors = pipeline("feature-extraction", model=M2BertModel(config).eval(), tokenizer=tokenizer)("a report")
    assert len(vectors[0][0]) == 32
    label = pipeline("text-classification", model=M2BertForSequenceClassification(config).eval(), tokenizer=tokenizer)
    assert label("a report")[0]["label"].startswith("LABEL_")
    tag = pipeline("token-classification", model=M2BertForTokenClassification(config).eval(), tokenizer=tokenizer)
    assert [(each["word"], each["start"]) for each in tag(["a report", "a"])[0]] == [("a", 0), ("report", 2)]


@pytest.mark.parametrize("change", [{"pooling": "maximum"}, {"padding": "left"}, {"num_blocks": 5}])
def test_changes_asked_of_from_pretrained_are_validated(tiny_config, tmp_path, change):
    M2BertModel(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=str(next(iter(change.values())))):
        AutoModel.from_pretrained(tmp_path, **change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.ones(1, 49, dtype=torch.long)}, "49 tokens exceeds max_position_embeddings=48"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 14)}, r"attention_mask has shape \(2, 14\)"),
        ({"input_ids": IDS, "token_type_ids": IDS[:1]}, r"token_type_ids has shape \(1, 15\)"),
        ({"input_ids": IDS + 100}, "id 130, outside the vocabulary of vocab_size=120"),
        ({"input_ids": IDS - 2}, "id -1, outside the vocabulary"),
        ({"input_ids": IDS, "token_type_ids": IDS}, "token_type_ids holds id 30, outside .* type_vocab_size=2"),
        ({"inputs_embeds": torch.ones(2, 15, 31)}, r"inputs_embeds has shape \(2, 15, 31\); expected .* 32"),
        ({"input_ids": IDS[0]}, r"input_ids has shape \(15,\)"),
        ({"input_ids": IDS[:, :0]}, r"input_ids has shape \(2, 0\); expected \(batch, length >= 1"),
        ({"pooling": "weighted_mean", "inputs_embeds": torch.ones(1, 4, 32)}, "needs input_ids"),
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": IDS, "inputs_embeds": torch.ones(2, 15, 32)}, "exactly one of input_ids and inputs_embeds"),
    ],
)
def test_bad_inputs_are_named(tiny_config, arguments, message):
    pooling = {"pooling": arguments.get("pooling", "mean")}
    with pytest.raises(ValueError, match=message):
        M2BertModel(tiny_config(**pooling))(**{name: each for name, each in arguments.items() if name not in pooling})
