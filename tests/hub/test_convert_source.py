"""`m2bert convert` as a whole: files, folders and Hub repositories in; a folder with its record out, or nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from convert_cases import (
    CARD,
    WORDS,
    embedding_tensors,
    fill_cache,
    go_offline,
    go_online,
    record_of,
    repository,
    write_source,
)
from fake_hub import FakeHub
from original_model import Fixture, needs_fixtures
from safetensors.torch import load_file, save, save_file
from transformers import AutoTokenizer, BertTokenizerFast

from m2bert.hub.convert import check as parity
from m2bert.hub.convert import run as conversion
from m2bert.hub.convert.run import convert_source
from m2bert.hub.convert.source import find_source
from m2bert.hub.hub_errors import HubError
from modeling_m2bert import M2BertForMaskedLM, M2BertModel

pytestmark = needs_fixtures


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    go_offline(monkeypatch, tmp_path)


@pytest.fixture
def original():
    return Fixture("base_full")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with FakeHub() as fake:
        go_online(monkeypatch, tmp_path, fake)
        yield fake


def assert_is_the_original(folder, fixture):
    model = M2BertModel.from_pretrained(folder).double().eval()
    with torch.no_grad():
        outputs = model(**fixture.inputs)
    assert (outputs.pooler_output - fixture.outputs["pooled_output"]).abs().max() < 1e-5


def test_a_folder_becomes_a_folder_with_its_record(tmp_path, original):
    source = write_source(tmp_path / "clone", original)
    (source / "README.md").write_bytes(CARD)
    text = convert_source(str(source), tmp_path / "out")
    assert_is_the_original(tmp_path / "out", original)
    record = record_of(tmp_path / "out")
    assert list(record) == ["source", "revision", "license", "files", "tensors", "options", "parity", "masked",
                            "tokenizer", "date"]  # fmt: skip
    assert (record["source"], record["revision"], record["license"]) == ("clone", None, "apache-2.0")
    assert record["files"].keys() == {"model.safetensors", "config.json"}
    assert all(len(digest) == 64 and digest in text for digest in record["files"].values())
    parity_record = record["parity"]
    assert (parity_record["texts"], parity_record["tokens"]) == (2, 128)
    for precision, least, most in (("float64", 0, 1e-9), ("float32", 1e-9, 1e-3)):
        assert parity_record[precision].keys() == {"last_hidden_state", "pooler_output"}
        assert all(least <= value < most for value in parity_record[precision].values())
    assert [row["tokens"] for row in record["masked"]["cosine"]] == [16, 64]
    assert record["masked"]["text"] == "random ids"
    assert record["tokenizer"] is None
    assert str(tmp_path) not in (tmp_path / "out" / "conversion.json").read_text()
    assert str(tmp_path / "out") in text
    assert not (tmp_path / "out" / "evil.py").exists()


def test_cosines_are_those_of_the_two_paddings(tmp_path, original):
    convert_source(str(write_source(tmp_path / "clone", original)), tmp_path / "out")
    row = record_of(tmp_path / "out")["masked"]["cosine"][0]
    assert 0 < row["lowest"] < row["mean"] < 1
    model = M2BertModel.from_pretrained(tmp_path / "out").eval()
    generator = torch.Generator().manual_seed(row["tokens"])
    ids = torch.randint(model.config.vocab_size, (row["texts"], row["tokens"]), generator=generator)
    padded = torch.nn.functional.pad(ids, (0, 128 - row["tokens"]))
    with torch.no_grad():
        visible = model(padded).pooler_output
        model.config.padding = "masked"
        masked = model(ids).pooler_output
    found = torch.cosine_similarity(visible, masked)
    assert found.mean().item() == pytest.approx(row["mean"], abs=1e-5)
    assert found.min().item() == pytest.approx(row["lowest"], abs=1e-5)


def test_the_original_has_visible_padding_and_masked_is_a_choice(tmp_path, original):
    source = str(write_source(tmp_path / "clone", original))
    convert_source(source, tmp_path / "visible")
    convert_source(source, tmp_path / "masked", padding="masked")
    configs = [M2BertModel.config_class.from_pretrained(tmp_path / name) for name in ("visible", "masked")]
    assert [config.padding for config in configs] == ["visible", "masked"]
    visible, masked = (record_of(tmp_path / name) for name in ("visible", "masked"))
    assert visible["parity"] == masked["parity"]
    with pytest.raises(ValueError, match="padding='hidden' is unknown"):
        convert_source(source, tmp_path / "other", padding="hidden")


def test_a_masked_lm_file_is_compared_by_its_logits(tmp_path, original):
    torch.save({"state": {"model": {f"model.{k}": v for k, v in original.masked_lm_state().items()}}},
               tmp_path / "composer.pt")  # fmt: skip
    (tmp_path / "options.json").write_text(json.dumps(original.config))
    text = convert_source(str(tmp_path / "composer.pt"), tmp_path / "out", config_file=tmp_path / "options.json")
    record = record_of(tmp_path / "out")
    assert record["parity"]["float64"].keys() == {"last_hidden_state", "logits"}
    assert record["masked"] is None
    assert record["files"].keys() == {"composer.pt", "options.json"}
    assert "masked  " not in text
    assert type(M2BertForMaskedLM.from_pretrained(tmp_path / "out")) is M2BertForMaskedLM


@pytest.mark.parametrize(("name", "w_mod"), [("dense_mlp_emb3_wmod", 3), ("short_padded_pool_all", 1),
                                             ("training_additions", 1), ("float64_with_grads", 1)])  # fmt: skip
def test_other_options_are_the_original_too(tmp_path, name, w_mod):
    fixture = Fixture(name)
    source = write_source(tmp_path / "clone", fixture)
    (source / "config.json").write_text(json.dumps(fixture.config | {"hyena_w_mod": w_mod}))
    convert_source(str(source), tmp_path / "out")
    assert max(record_of(tmp_path / "out")["parity"]["float64"].values()) < 1e-9


def test_every_container_gives_the_same_folder(tmp_path, original):
    tensors = embedding_tensors(original)
    (tmp_path / "config.json").write_text(json.dumps(original.config))
    keys = sorted(tensors)
    for suffix, write in (("safetensors", save_file), ("bin", torch.save)):
        write(tensors, tmp_path / f"whole.{suffix}")
        write({f"module.{key}": tensors[key] for key in keys}, tmp_path / f"parallel.{suffix}")
        names = {}
        for number, part in enumerate((keys[:20], keys[20:])):
            write({key: tensors[key] for key in part}, tmp_path / f"part-{number}.{suffix}")
            names |= dict.fromkeys(part, f"part-{number}.{suffix}")
        (tmp_path / f"m.{suffix}.index.json").write_text(json.dumps({"weight_map": names}))
    torch.save({"state": {"model": {f"model.{key}": tensors[key] for key in keys}, "run": Path}}, tmp_path / "c.pt")
    sources = [f"{name}.{suffix}" for name in ("whole", "parallel") for suffix in ("safetensors", "bin")]
    folders = []
    for source in [*sources, "m.safetensors.index.json", "m.bin.index.json", "c.pt"]:
        convert_source(str(tmp_path / source), tmp_path / f"out-{source}")
        folders.append(load_file(tmp_path / f"out-{source}" / "model.safetensors"))
    for other in folders[1:]:
        assert other.keys() == folders[0].keys()
        assert all(torch.equal(other[key], folders[0][key]) for key in other)


def test_a_model_that_is_not_the_original_is_not_written(tmp_path, original, monkeypatch):
    def changed(*arguments):
        made = conversion_before(*arguments)
        made.tensors["layers.1.mixer.filter.skip"] = made.tensors["layers.1.mixer.filter.skip"] + 1e-6
        return made

    conversion_before = conversion.convert_state_dict
    monkeypatch.setattr(conversion, "convert_state_dict", changed)
    with pytest.raises(ValueError, match="the converted model is not the original"):
        convert_source(str(write_source(tmp_path / "clone", original)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_not_written(tmp_path, original):
    source = write_source(tmp_path / "clone", original)
    tensors = embedding_tensors(original)
    tensors["bert.pooler.dense.bias"][3] = float("nan")
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ValueError, match="not finite"):
        convert_source(str(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_is_kept_and_costs_no_work(tmp_path, original, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    monkeypatch.setattr(conversion, "find_source", None)
    with pytest.raises(ValueError, match="not empty"):
        convert_source(str(tmp_path), tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_the_sources_own_tokenizer_goes_along_without_its_code(tmp_path, original):
    source = write_source(tmp_path / "clone", original)
    (source / "vocab.txt").write_text("\n".join(WORDS))
    convert_source(str(source), tmp_path / "out")
    record = record_of(tmp_path / "out")
    assert record["tokenizer"] == "the source's own"
    assert "English paragraph" in record["masked"]["text"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert tokenizer("The committee")["input_ids"] == [2, 5, 6, 3]
    assert tokenizer.model_max_length == 128
    assert "/tmp" not in (tmp_path / "out" / "tokenizer_config.json").read_text()


@pytest.mark.parametrize("form", ["folder", "vocab.txt"])
def test_a_named_tokenizer_is_taken_instead(tmp_path, original, form):
    source = write_source(tmp_path / "clone", original)
    (source / "vocab.txt").write_text("\n".join(WORDS))
    other = tmp_path / "words"
    BertTokenizerFast(vocab={word: index for index, word in enumerate([*WORDS, "met2"])}).save_pretrained(other)
    if form == "vocab.txt":
        other = tmp_path / "other.txt"
        other.write_text("\n".join([*WORDS, "met2"]))
    convert_source(str(source), tmp_path / "out", tokenizer=str(other))
    assert record_of(tmp_path / "out")["tokenizer"] == other.name
    assert AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True).get_vocab()["met2"] == len(WORDS)


def test_a_tokenizer_that_does_not_fit_is_refused_before_the_work(tmp_path, original, monkeypatch):
    monkeypatch.setattr(conversion, "check_parity", None)
    source = write_source(tmp_path / "clone", original)
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, *(f"w{index}" for index in range(600))]))
    with pytest.raises(ValueError, match="tokenizer gives ids up to 611"):
        convert_source(str(source), tmp_path / "out", tokenizer=str(tmp_path / "vocab.txt"))
    with pytest.raises(ValueError, match="tokenizer ./nowhere is no folder"):
        convert_source(str(source), tmp_path / "out", tokenizer="./nowhere")
    with pytest.raises(ValueError, match="has none of tokenizer.json"):
        convert_source(str(source), tmp_path / "out", tokenizer=str(source))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["missing.bin", "./missing", "a/b/c", "no such name", "word"])
def test_what_is_no_source_is_said(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} is no file, no folder and no Hub id"):
        find_source(name)


def test_options_of_the_hub_do_not_fit_a_file(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="--revision 'main' is of Hub repositories"):
        find_source(str(tmp_path / "x.bin"), revision="main")
    with pytest.raises(ValueError, match="--file 'y' chooses in a folder"):
        find_source(str(tmp_path / "x.bin"), file="y")


def test_offline_a_cached_repository_is_enough(tmp_path, original):
    commit = fill_cache(tmp_path / "cache", "org/name", repository(original))
    convert_source("org/name", tmp_path / "out")
    record = record_of(tmp_path / "out")
    assert (record["source"], record["revision"], record["license"]) == ("org/name", commit, "apache-2.0")
    assert record["tokenizer"] == "the source's own"
    assert_is_the_original(tmp_path / "out", original)
    convert_source("org/name", tmp_path / "again", revision=commit)
    with pytest.raises(ValueError, match=r"org/other is no file .* cannot be reached .* no copy"):
        convert_source("org/other", tmp_path / "other")


def test_the_originals_tokenizer_comes_from_the_cache(tmp_path, original):
    words = [*WORDS, *(f"w{index}" for index in range(30522 - len(WORDS)))]
    cache = tmp_path / "cache"
    commit = fill_cache(cache, "google-bert/bert-base-uncased", {"vocab.txt": "\n".join(words).encode()})
    state = embedding_tensors(original)
    rows = state["bert.embeddings.word_embeddings.weight"]
    state["bert.embeddings.word_embeddings.weight"] = rows.repeat(60, 1)[:30528].contiguous()
    save_file(state, tmp_path / "large.safetensors")
    convert_source(str(tmp_path / "large.safetensors"), tmp_path / "out")
    assert record_of(tmp_path / "out")["tokenizer"] == f"google-bert/bert-base-uncased@{commit}"
    cache.rename(tmp_path / "gone")
    text = convert_source(str(tmp_path / "large.safetensors"), tmp_path / "without")
    assert record_of(tmp_path / "without")["tokenizer"] is None
    assert "--tokenizer" in text


def test_a_hub_id_is_one_commit_of_which_only_what_is_read_comes(tmp_path, original, hub):
    commit = hub.add("org/name", repository(original))
    text = convert_source("org/name", tmp_path / "out")
    record = record_of(tmp_path / "out")
    assert (record["source"], record["revision"], record["license"]) == ("org/name", commit, "apache-2.0")
    assert commit in text
    assert_is_the_original(tmp_path / "out", original)
    fetched = {path.rpartition("/")[2] for method, path, *_ in hub.requests if "/resolve/" in path and method == "GET"}
    assert "model.safetensors" in fetched
    assert not fetched & {"evil.py", "pytorch_model.bin"}
    assert all(commit in path for _, path, *_ in hub.requests if "/resolve/" in path)


def test_a_sharded_repository(tmp_path, original, hub):
    files = repository(original)
    tensors = embedding_tensors(original)
    keys = sorted(tensors)
    names = dict.fromkeys(keys[:9], "model-1.safetensors") | dict.fromkeys(keys[9:], "model-2.safetensors")
    for name in set(names.values()):
        files[name] = save({key: tensors[key] for key in keys if names[key] == name})
    del files["model.safetensors"]
    files["model.safetensors.index.json"] = json.dumps({"weight_map": names}).encode()
    hub.add("org/sharded", files)
    convert_source("org/sharded", tmp_path / "out")
    assert {"model-1.safetensors", "model-2.safetensors"} < record_of(tmp_path / "out")["files"].keys()
    del files["model-2.safetensors"]
    hub.add("org/lacking", files)
    with pytest.raises(ValueError, match=r"org/lacking .* lacks model-2.safetensors"):
        convert_source("org/lacking", tmp_path / "other")


def test_repositories_that_cannot_be_read_are_one_line_with_the_fix(tmp_path, original, hub, monkeypatch):
    hub.add("org/name", repository(original))
    hub.add("org/gated", repository(original), gated=True)
    monkeypatch.delenv("HF_TOKEN")
    for name, message in (("org/other", "no Hub repository that you may read"), ("org/gated", "gated: ask for access")):
        with pytest.raises(ValueError, match=f"{name} .*{message}"):
            convert_source(name, tmp_path / "out")
    with pytest.raises(ValueError, match="org/name has no revision 'v9'"):
        convert_source("org/name", tmp_path / "out", revision="v9")
    with pytest.raises(ValueError, match="org/name .*no file 'x.bin'"):
        convert_source("org/name", tmp_path / "out", file="x.bin")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("answer", [b"null", b"[]", b"3", b"not JSON", b'{"siblings": 3}'])
def test_an_answer_of_another_form_is_one_error(tmp_path, hub, original, answer):
    hub.add("org/name", repository(original))
    hub.intercept = lambda request: (200, {}, answer) if "/api/" in request.path else None
    with pytest.raises(HubError, match="org/name"):
        convert_source("org/name", tmp_path / "out")


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own(tmp_path, original):
    with FakeHub() as fake:
        commit = fake.add("org/name", repository(original))
        command = [sys.executable, "-m", "m2bert.hub.cli", "convert", "org/name", "--output", tmp_path / "out"]
        environment = fake.environment(tmp_path / "home")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        wrong = [*command[:4], "org/nothing", "--output", tmp_path / "other"]
        refused = subprocess.run(wrong, env=environment, capture_output=True, text=True)
    assert commit in done.stdout
    assert "float64  last_hidden_state" in done.stdout
    assert refused.returncode == 2
    assert "m2bert: org/nothing" in refused.stderr
    assert "Traceback" not in refused.stderr
    offline = subprocess.run([*command, "--overwrite"], env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True,
                             text=True, check=True)  # fmt: skip
    assert commit in offline.stdout


def test_long_models_are_compared_on_three_texts():
    class Model:
        class config:
            max_position_embeddings, vocab_size, pad_token_id, padding = 32768, 50, 0, "visible"

        def __call__(self, ids, *_):
            return type("Outputs", (), {"pooler_output": torch.ones(1, 4)})

    rows = parity.compare_paddings(Model(), None)["cosine"]
    assert [(row["tokens"], row["texts"]) for row in rows] == [(16, 1), (1024, 1), (16384, 1)]
