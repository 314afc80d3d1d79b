"""Text is tokenized once, whole or not at all, and comes back as the tokenizer made it."""

import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from m2bert.train import verified_files as prepared
from m2bert.train.text import tokens
from m2bert.train.text.sources import TextFiles
from m2bert.train.text.tokens import HELD_OUT_LIMIT, open_store, text_hash
from m2bert.train.tokenizer import cached_wordpiece, encode_all, load_tokenizer, train_wordpiece
from m2bert.train.verified_files import building

TEXTS = [f"document {i} about " + "words and more words " * (i % 7) for i in range(300)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(TEXTS, 120)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("\n\n".join(TEXTS))
    return TextFiles((path,))


def documents(store):
    return [store.tokens[start : start + n].tolist() for start, n in zip(store.starts, store.lengths, strict=True)]


def test_documents_come_back_whatever_is_tokenized_at_once(texts, tokenizer, tmp_path, monkeypatch):
    store = open_store(texts, tokenizer, tmp_path / "cache")
    assert documents(store) == [ids.tolist() for ids in encode_all(tokenizer, TEXTS)]
    assert store.tokens.dtype == np.uint16
    assert not store.tokens.flags.owndata  # mapped
    monkeypatch.setattr(tokens, "CHARS_AT_ONCE", 50)
    again = open_store(texts, tokenizer, tmp_path / "other")
    assert documents(again) == documents(store)
    assert again.fingerprint == store.fingerprint


def test_empty_documents_are_left_out_and_counted(tokenizer, tmp_path, caplog):
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "some words"}\n{"text": " "}\n{"text": null}\n{"text": "more"}\n')
    with caplog.at_level("INFO"):
        store = open_store(TextFiles((path,)), tokenizer, tmp_path / "cache")
    assert len(store.lengths) == 2
    assert f"2 documents, {store.lengths.sum()} tokens, 2 empty" in caplog.text


def test_a_store_is_built_once_and_anew_for_other_text_or_tokenizer(texts, tokenizer, tmp_path):
    def stores(texts, tokenizer):
        open_store(texts, tokenizer, tmp_path / "cache")
        return len(os.listdir(tmp_path / "cache"))

    assert stores(texts, tokenizer) == 1
    tokenizer(["a text"], truncation=True, max_length=4, padding=True)  # leaves its mark on a fast tokenizer
    assert stores(texts, tokenizer) == 1
    assert stores(texts, train_wordpiece(TEXTS, 110)) == 2
    assert stores(TextFiles(texts.files, rows_per_document=2), tokenizer) == 3
    texts.files[0].write_text("other text")
    assert stores(texts, tokenizer) == 4
    (ids,) = encode_all(tokenizer, ["other text"])
    assert documents(open_store(texts, tokenizer, tmp_path / "cache")) == [ids.tolist()]


def test_a_large_vocabulary_needs_wider_ids(texts, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: {"far": 2**16})
    assert open_store(texts, tokenizer, tmp_path / "cache").tokens.dtype == np.uint32


def test_what_fails_leaves_nothing_behind(texts, tokenizer, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepared, "save_file", full)
        with pytest.raises(OSError, match="no space left"):
            open_store(texts, tokenizer, tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="empty.txt has no text"):
        open_store(TextFiles((tmp_path / "empty.txt",)), tokenizer, tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


def test_two_processes_tokenize_once(texts, tokenizer, tmp_path, monkeypatch):
    expected = documents(open_store(texts, tokenizer, tmp_path / "expected"))
    slow, built, begun = tokens.build_store, [], threading.Event()

    def build(*arguments):
        built.append(arguments)
        begun.set()
        time.sleep(0.1)
        return slow(*arguments)

    monkeypatch.setattr(tokens, "build_store", build)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(open_store, texts, tokenizer, tmp_path / "cache")
        begun.wait()
        second = open_store(texts, tokenizer, tmp_path / "cache")
        assert documents(first.result()) == documents(second) == expected
    assert len(built) == len(os.listdir(tmp_path / "cache")) == 1


def test_another_machine_may_be_faster(texts, tokenizer, tmp_path, monkeypatch):
    expected = documents(open_store(texts, tokenizer, tmp_path / "expected"))
    save = prepared.save_file

    def saving(*arguments):
        (theirs,) = (tmp_path / "expected").iterdir()
        shutil.copytree(theirs, tmp_path / "cache" / theirs.name)
        save(*arguments)

    monkeypatch.setattr(prepared, "save_file", saving)
    assert documents(open_store(texts, tokenizer, tmp_path / "cache")) == expected
    assert len(os.listdir(tmp_path / "cache")) == 1


@pytest.mark.parametrize(
    ("name", "how"),
    [("documents.safetensors", "one bit"), ("documents.safetensors", "gone"), ("prepared.json", "cut")],
)
def test_damaged_tokens_are_made_again(texts, tokenizer, tmp_path, caplog, name, how):
    expected = open_store(texts, tokenizer, tmp_path / "cache")
    before, hashes = documents(expected), expected.hashes.tolist()
    (file,) = (tmp_path / "cache").rglob(name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    if how != "gone":
        file.write_bytes(content if how == "one bit" else content[: len(content) // 2])
    again = open_store(texts, tokenizer, tmp_path / "cache")
    assert name in caplog.text
    assert (documents(again), again.hashes.tolist(), again.fingerprint) == (before, hashes, expected.fingerprint)
    caplog.clear()
    open_store(texts, tokenizer, tmp_path / "cache")
    assert not caplog.text


def test_what_a_killed_process_left_goes_and_what_another_is_making_stays(texts, tokenizer, tmp_path):
    cache = tmp_path / "cache"
    with building(cache / "killed") as left:
        (left / "tokens.bin").touch()
        shutil.copytree(left, cache / "kept")
    (cache / "kept").rename(left)
    with building(cache / "other") as held:
        open_store(texts, tokenizer, cache)
        assert held.is_dir()
        assert not left.exists()
    assert len(os.listdir(cache)) == 1


def test_a_damaged_vocabulary_is_trained_again(texts, tmp_path, caplog):
    first = cached_wordpiece(texts, 120, tmp_path / "cache").get_vocab()
    (file,) = (tmp_path / "cache").rglob("prepared.json")
    file.write_text(file.read_text().replace('"document"', '"docunemt"'))
    assert cached_wordpiece(texts, 120, tmp_path / "cache").get_vocab() == first
    assert f"{file} is damaged" in caplog.text


def test_validation_is_carved_by_the_text_alone(tokenizer, tmp_path):
    numbered = [f"text number {i} of many" for i in range(1000)]

    def carved(texts, name):
        (tmp_path / name).write_text("\n\n".join(texts))
        return open_store(TextFiles((tmp_path / name,)), tokenizer, tmp_path / "cache").carve()

    train, held_out = carved(numbered, "a.txt")
    assert 1 <= len(held_out.starts) <= 30
    assert len(train.starts) + len(held_out.starts) == 1000
    assert not set(train.hashes) & set(held_out.hashes)
    expected = encode_all(tokenizer, [text for text in numbered if text_hash(text) < HELD_OUT_LIMIT])
    assert documents(held_out) == [ids.tolist() for ids in expected]
    assert set(carved(numbered[::-1] + numbered, "b.txt")[1].hashes) == set(held_out.hashes)
    few, one = carved(numbered[:3], "c.txt")
    assert (len(few.starts), len(one.starts)) == (2, 1)
    assert one.hashes[0] < few.hashes.min()
    assert train.token_counts(130).tolist() == np.bincount(np.concatenate(documents(train)), minlength=130).tolist()
    for texts in (["only one"], ["the same"] * 3):
        nothing, all_of_it = carved(texts, "d.txt")
        assert (len(nothing.starts), len(all_of_it.starts)) == (0, len(texts))


@pytest.fixture
def tokenizer_folder(tmp_path):
    train_wordpiece(["some words of a text"] * 9, 60).save_pretrained(tmp_path)
    return tmp_path


def test_code_of_a_tokenizer_is_not_run(tokenizer_folder):
    (tokenizer_folder / "own.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Own: pass\n"
    )
    settings = json.loads((tokenizer_folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tokenizer_folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="no tokenizer can be loaded; .*it needs code of its own, which is not run"):
        load_tokenizer(tokenizer_folder)
    assert not (tokenizer_folder / "ran").exists()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("tokenizer.json", '"[PAD]": 0', '"[PAD]": -5'),
        ("tokenizer.json", '"vocab": {', '"vocab": "/etc/hostname", "was": {'),
        ("tokenizer.json", '"version"', '"deep": ' + "[" * 5000 + "]" * 5000 + ', "version"'),
        ("tokenizer_config.json", '"tokenizer_class": "', '"tokenizer_class": 1e308, "was": "'),
    ],
)
def test_a_damaged_tokenizer_is_named(tokenizer_folder, name, old, new):
    text = (tokenizer_folder / name).read_text()
    changed = text.replace(old, new, 1)
    assert changed != text
    (tokenizer_folder / name).write_text(changed)
    with pytest.raises(ValueError, match=f"{tokenizer_folder.name} no tokenizer can be loaded"):
        load_tokenizer(tokenizer_folder)
