"""Tokenizers of others: their code is never run, and a damaged one is an error that names its folder."""

import json

import pytest

from m2bert.train.tokenizer import load_tokenizer, train_wordpiece


@pytest.fixture
def folder(tmp_path):
    train_wordpiece(["some words of a text"] * 9, 60).save_pretrained(tmp_path)
    return tmp_path


def test_code_of_a_tokenizer_is_not_run(folder):
    (folder / "own.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Own: pass\n"
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"{folder.name} no tokenizer can be loaded"):
        load_tokenizer(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("tokenizer.json", '"[PAD]": 0', '"[PAD]": -5'),
        ("tokenizer.json", '"padding"', '"pad"'),
        ("tokenizer.json", '"vocab": {', '"vocab": "/etc/hostname", "was": {'),
        ("tokenizer.json", '"truncation": null', '"truncation": NaN'),
        ("tokenizer.json", '"version"', '"version": "0.1", "version"'),
        ("tokenizer.json", '"version"', '"deep": ' + "[" * 5000 + "]" * 5000 + ', "version"'),
        ("tokenizer_config.json", '"tokenizer_class": "', '"tokenizer_class": 1e308, "was": "'),
    ],
)
def test_a_damaged_tokenizer_is_named(folder, name, old, new):
    text = (folder / name).read_text()
    changed = text.replace(old, new, 1)
    assert changed != text
    (folder / name).write_text(changed)
    with pytest.raises(ValueError, match=f"{folder.name} no tokenizer can be loaded"):
        load_tokenizer(folder)
