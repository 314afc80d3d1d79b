"""Settings files that other programs write: what is of their form is read, anything else is one error with a name."""

import json

import pytest

from m2bert.model_files import check_model_files, read_modules

MODULE = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("config.json", "null", "no JSON object"),
        ("config.json", '{"architectures": 0.5}', "architectures"),
        ("tokenizer_config.json", '{"model_max_length": "512"}', "model_max_length is '512'"),
        ("tokenizer_config.json", '{"model_max_length": NaN}', "NaN"),
        ("tokenizer.json", '{"model": {"vocab": "/etc/hostname"}}', "model.vocab"),
        ("sentence_bert_config.json", '{"max_seq_length": 0.5}', "max_seq_length is 0.5"),
        ("sentence_bert_config.json", '{"max_seq_length": 0}', "max_seq_length is 0"),
        ("config_sentence_transformers.json", '{"prompts": {"query": 1}}', "prompts.query is 1"),
        ("config_sentence_transformers.json", '{"default_prompt_name": "mine"}', "mine"),
        ("config_sentence_transformers.json", '{"similarity_fn_name": "mine"}', "similarity_fn_name"),
        ("adapter_config.json", '{"base_model_name_or_path": 7}', "base_model_name_or_path is 7"),
        ("model.safetensors.index.json", '{"weight_map": ["a"]}', "weight_map"),
        ("modules.json", "[]", "modules"),
        ("modules.json", "[" * 100_000, "recursion"),
        ("modules.json", json.dumps([MODULE, MODULE | {"path": -5}]), r"modules\[1\].path is -5"),
    ],
)
def test_another_form_is_refused_with_the_files_name_and_the_place(tmp_path, name, text, place):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}.*{place}"):
        check_model_files(tmp_path)


def test_what_is_usual_is_read(tmp_path):
    usual = {
        "config.json": {"model_type": "bert", "architectures": None, "dtype": "float32"},
        "tokenizer_config.json": {"model_max_length": 1e30, "tokenizer_class": None},
        "sentence_bert_config.json": {"max_seq_length": None, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": None}, "default_prompt_name": "document"},
    }
    for name, content in usual.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "modules.json").write_text(json.dumps([MODULE]))
    check_model_files(tmp_path)
    assert [module.type for module in read_modules(tmp_path / "modules.json")] == [MODULE["type"]]
