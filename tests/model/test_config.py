"""Configuration: validation by name, full auto_map, round trip."""

import pytest
from transformers import AutoConfig

from configuration_m2bert import M2BertConfig


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_hidden_layers", 1001, "num_hidden_layers=1001 must be from 0 .layer-free. to 1000"),
        ("num_blocks", 5, "hidden_size=32 must be divisible by num_blocks=5"),
        ("intermediate_size", 66, "intermediate_size=66 must be divisible by num_blocks=4"),
        ("filter_embedding_size", 4, "filter_embedding_size=4 must be odd"),
        ("filter_embedding_size", 1, "filter_embedding_size=1 must be odd"),
        ("pooling", "max", "pooling='max' must be one of mean"),
        ("padding", "left", "padding='left' must be one of masked, visible"),
        ("num_pooling_heads", 2, "num_pooling_heads=2 must be left out: only pooling='weighted_mean' has it"),
        ("pooling_saturation", 2, "pooling_saturation=2 must be left out"),
        ("pooling_saturation", 0, "pooling_saturation=0 must be above 0"),
        ("contextual_pooling", True, "contextual_pooling=True must be left out"),
        ("num_hidden_layers", -1, "num_hidden_layers=-1"),
        ("pad_token_id", 120, "pad_token_id=120 must be in the vocabulary of vocab_size=120"),
        ("hidden_dropout_prob", 1.5, "hidden_dropout_prob=1.5 must be a probability"),
        ("num_blocks", 0, "num_blocks=0 must be at least 1"),
        ("layer_norm_eps", -1e-5, "layer_norm_eps=-1e-05 must be 0 or more"),
        ("initializer_range", float("nan"), "initializer_range=nan must be 0 or more, and finite"),
    ],
)
def test_bad_fields_are_named(tiny_config, field, value, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**{field: value})


def test_round_trip_keeps_every_field_and_the_whole_auto_map(tiny_config, tmp_path):
    config = tiny_config(pooling="weighted_mean", num_pooling_heads=3, filter_decay_length=20, num_blocks=1)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, M2BertConfig)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    tasks = ("MaskedLM", "SequenceClassification", "MultipleChoice", "TokenClassification", "QuestionAnswering")
    heads = {f"AutoModelFor{task}" for task in tasks}
    assert loaded.auto_map.keys() == {"AutoConfig", "AutoModel"} | heads
    assert loaded.projection_dim == 96


def test_defaults():
    config = M2BertConfig()
    assert config.filter_decay_length == config.max_position_embeddings == 2048
    assert config.projection_dim == config.hidden_size == 768
    assert (config.pooling, config.padding) == ("mean", "masked")
