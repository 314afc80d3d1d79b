"""`m2bert convert` as a whole: files, folders and Hub repositories in; a folder with its record out, or nothing."""

import json
import logging
from pathlib import Path

import huggingface_hub
import pytest
import torch
from fake_hub import FakeHub
from original_model import Fixture, needs_fixtures
from safetensors.torch import load_file, save, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizerFast
from typer.testing import CliRunner

from m2bert.cli import app
from m2bert.hub.convert import check, run
from m2bert.hub.convert.run import convert_source
from m2bert.hub.convert.source import find_source
from modeling_m2bert import M2BertConfig, M2BertForMaskedLM, M2BertModel

pytestmark = needs_fixtures

CARD = b"---\nlicense: apache-2.0\n---\n# A model\n"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "committee", "met", "budget", "library", "and", "a"]


def embedding_tensors(fixture):
    """Once each, as a file of safetensors wants them."""
    return {name: tensor.clone() for name, tensor in fixture.embedding_state().items()}


def repository(fixture) -> dict[str, bytes]:
    config = fixture.config | {"model_type": "m2_bert", "auto_map": {"AutoConfig": "evil.Config"}}
    return {
        "model.safetensors": save(embedding_tensors(fixture)),
        "pytorch_model.bin": b"stale",
        "config.json": json.dumps(config).encode(),
        "vocab.txt": "\n".join(WORDS).encode(),
        "tokenizer_config.json": b'{"tokenizer_class": "BertTokenizer"}',
        "README.md": CARD,
        "evil.py": b"raise RuntimeError",
    }


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_source(folder: Path, fixture) -> Path:
    """A clone of a repository, without a tokenizer and a card."""
    wanted = ("model.safetensors", "config.json", "evil.py")
    return write_files(folder, {name: content for name, content in repository(fixture).items() if name in wanted})


def record_of(folder) -> dict:
    return json.loads((folder / "conversion.json").read_text())


def fill_cache(cache: Path, repo_id: str, files: dict[str, bytes]) -> str:
    """As after a download."""
    commit = "ab" * 20
    snapshot = {f"snapshots/{commit}/{name}": content for name, content in files.items()}
    write_files(cache / f"models--{repo_id.replace('/', '--')}", snapshot | {"refs/main": commit.encode()})
    return commit


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No test leaves this machine; the cache is empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def original():
    return Fixture("base_full")


@pytest.fixture
def source(tmp_path, original):
    return write_source(tmp_path / "clone", original)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between the client's tries
    with FakeHub() as fake:
        fake.connect(monkeypatch, tmp_path / "home")
        template = fake.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield fake


def assert_is_the_original(folder, fixture):
    model = M2BertModel.from_pretrained(folder).double().eval()
    with torch.no_grad():
        outputs = model(**fixture.inputs)
    assert (outputs.pooler_output - fixture.outputs["pooled_output"]).abs().max() < 1e-5


def contents(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the conversion and its record ---


def test_a_folder_becomes_a_folder_with_its_record(tmp_path, source, original):
    (source / "README.md").write_bytes(CARD)
    text = convert_source(str(source), tmp_path / "out")
    assert_is_the_original(tmp_path / "out", original)
    record = record_of(tmp_path / "out")
    assert list(record) == ["source", "revision", "license", "files", "tensors", "options", "parity", "masked",
                            "tokenizer", "date"]  # fmt: skip
    assert (record["source"], record["revision"], record["license"]) == ("clone", None, "apache-2.0")
    assert record["files"].keys() == {"model.safetensors", "config.json"}
    assert all(len(digest) == 64 and digest in text for digest in record["files"].values())
    assert (record["parity"]["texts"], record["parity"]["tokens"]) == (2, 128)
    for precision, least, most in (("float64", 0, 1e-9), ("float32", 1e-9, 1e-3)):
        assert record["parity"][precision].keys() == {"last_hidden_state", "pooler_output"}
        assert all(least <= value < most for value in record["parity"][precision].values())
    assert (record["masked"]["text"], record["tokenizer"]) == ("random ids", None)
    assert str(tmp_path) not in (tmp_path / "out" / "conversion.json").read_text()
    assert str(tmp_path / "out") in text
    assert not (tmp_path / "out" / "evil.py").exists()
    convert_source(str(source), tmp_path / "masked", padding="masked")
    assert record_of(tmp_path / "masked")["parity"] == record["parity"]
    paddings = [M2BertConfig.from_pretrained(tmp_path / name).padding for name in ("out", "masked")]
    assert paddings == ["visible", "masked"]

    rows = record["masked"]["cosine"]
    assert [row["tokens"] for row in rows] == [16, 64]
    visible, masked = (M2BertModel.from_pretrained(tmp_path / name).eval() for name in ("out", "masked"))
    ids = torch.randint(512, (rows[0]["texts"], 16), generator=torch.Generator().manual_seed(16))
    with torch.no_grad():
        padded = visible(torch.nn.functional.pad(ids, (0, 112))).pooler_output
        found = torch.cosine_similarity(padded, masked(ids).pooler_output)
    assert found.mean().item() == pytest.approx(rows[0]["mean"], abs=1e-5)
    assert found.min().item() == pytest.approx(rows[0]["lowest"], abs=1e-5)
    assert 0 < rows[0]["lowest"] < rows[0]["mean"] < 1


class ConstantModel:
    class config:
        max_position_embeddings, vocab_size, pad_token_id, padding = 32768, 50, 0, "visible"

    def __call__(self, ids, *_):
        return type("Outputs", (), {"pooler_output": torch.ones(1, 4)})


def test_long_models_are_compared_on_three_texts_which_may_be_shorter():
    rows = check.compare_paddings(ConstantModel(), None)["cosine"]
    assert [(row["tokens"], row["texts"]) for row in rows] == [(16, 1), (1024, 1), (16384, 1)]

    def tokenizer(texts, max_length, **_):
        return {"input_ids": [[7] * min(max_length, 9 + index) for index in range(len(texts))]}

    assert check.compare_paddings(ConstantModel(), tokenizer)["cosine"][0]["tokens"] == 9


def test_the_command_compares_a_masked_lm_file_by_its_logits(tmp_path, original):
    torch.save({"state": {"model": {f"model.{k}": v for k, v in original.masked_lm_state().items()}}},
               tmp_path / "composer.pt")  # fmt: skip
    (tmp_path / "options.json").write_text(json.dumps(original.config))
    options = ["--config", str(tmp_path / "options.json"), "--padding", "masked"]
    done = CliRunner().invoke(
        app, ["convert", str(tmp_path / "composer.pt"), "--output", str(tmp_path / "out"), *options]
    )
    assert done.exit_code == 0, done.output
    assert "M2BertForMaskedLM, padding=masked" in done.output
    record = record_of(tmp_path / "out")
    assert record["parity"]["float64"].keys() == {"last_hidden_state", "logits"}
    assert record["masked"] is None
    assert record["files"].keys() == {"composer.pt", "options.json"}
    assert type(M2BertForMaskedLM.from_pretrained(tmp_path / "out")) is M2BertForMaskedLM


# --- what is refused, with nothing written ---


def test_a_model_that_is_not_the_original_is_not_written(tmp_path, source, monkeypatch):
    def changed(*arguments):
        made = convert_before(*arguments)
        made.tensors["layers.1.mixer.filter.skip"] = made.tensors["layers.1.mixer.filter.skip"] + 1e-6
        return made

    convert_before = run.convert_state_dict
    monkeypatch.setattr(run, "convert_state_dict", changed)
    with pytest.raises(ValueError, match="the converted model is not the original"):
        convert_source(str(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def write_fast(folder, unknown="[UNK]", change=None, **settings):
    """Write a tokenizer.json of whole words."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    content = json.loads(tokenizer.to_str())
    content["model"] |= change or {}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    usual = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(usual | settings))


def spoil_weights(source):
    tensors = load_file(source / "model.safetensors")
    tensors["bert.pooler.dense.bias"][3] = float("nan")
    save_file(tensors, source / "model.safetensors")


def vocabulary(*words):
    return lambda source: (source / "vocab.txt").write_text("\n".join(words))


@pytest.mark.parametrize(
    ("prepare", "options", "says"),
    [
        (spoil_weights, {}, "not finite"),
        (lambda source: (source / "config.json").write_text("["), {}, "config.json is no valid JSON"),
        (vocabulary(*WORDS, *(f"w{i}" for i in range(600))), {}, "tokenizer gives ids up to 611"),
        (None, {"tokenizer": "./nowhere"}, "./nowhere"),
        (None, {"tokenizer": "clone"}, "tokenizer .*clone"),
        (vocabulary(*WORDS[:5]), {}, "tokenizer .*clone has no words"),
        (vocabulary(*WORDS[1:], "[PAD]"), {}, "pads with id 11, the model with 0 .*--config.*--tokenizer"),
        (lambda source: write_fast(source, pad_token=None), {}, "pad_token=None"),
        (lambda source: write_fast(source, unknown="[NOT THERE]"), {}, "tokenizer .*clone cannot be used"),
        (lambda source: write_fast(source, change={"vocab": "/etc/hostname"}), {}, "tokenizer .*model.vocab"),
        (lambda source: write_fast(source, model_max_length="512"), {}, "tokenizer_config.json"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_work(tmp_path, source, monkeypatch, prepare, options, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "check_parity", None)
    if prepare:
        prepare(source)
    with pytest.raises(ValueError, match=says):
        convert_source(str(source), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "output", "options"),
    [
        ("clone", "clone", {}),
        ("clone/model.safetensors", "link", {}),
        ("clone", ".", {}),
        ("clone", "old", {"config_file": "old/config.json"}),
        ("clone", "old", {"tokenizer": "old/vocab.txt"}),
        ("linked", "old", {}),
    ],
)
def test_nothing_that_is_read_is_replaced(tmp_path, original, monkeypatch, source, output, options):
    write_source(tmp_path / "clone", original)
    old = write_files(tmp_path / "old", {"config.json": b'{"model_type": "m2bert"}', "vocab.txt": b"a"})
    (old / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "link").symlink_to("clone")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "model.safetensors").symlink_to(old / "model.safetensors")
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path / "linked")
    options = {name: str(tmp_path / value) for name, value in options.items()}
    with pytest.raises(ValueError, match="(from which it is made|is not replaced|holds the working folder)"):
        convert_source(str(tmp_path / source), tmp_path / output, overwrite=True, **options)
    assert contents(tmp_path) == before


# --- the tokenizer ---


def test_the_sources_own_tokenizer_goes_along_without_its_code(tmp_path, source):
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    convert_source(str(source), tmp_path / "bare")  # settings without a vocabulary are no tokenizer
    assert record_of(tmp_path / "bare")["tokenizer"] is None
    (source / "vocab.txt").write_text("\n".join(WORDS))
    convert_source(str(source), tmp_path / "out")
    assert record_of(tmp_path / "out")["tokenizer"] == "the source's own"
    assert "English paragraph" in record_of(tmp_path / "out")["masked"]["text"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert tokenizer("The committee")["input_ids"] == [2, 5, 6, 3]
    assert tokenizer.model_max_length == 128
    assert "/tmp" not in (tmp_path / "out" / "tokenizer_config.json").read_text()


def test_a_named_tokenizer_is_taken_instead(tmp_path, source):
    (source / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab={w: i for i, w in enumerate([*WORDS, "met2"])}).save_pretrained(tmp_path / "words")
    (tmp_path / "other.txt").write_text("\n".join([*WORDS, "met2"]))
    for name in ("words", "other.txt"):
        convert_source(str(source), tmp_path / "out", tokenizer=str(tmp_path / name), overwrite=True)
        assert record_of(tmp_path / "out")["tokenizer"] == name
        assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()["met2"] == len(WORDS)


def test_a_configuration_without_padding_takes_the_tokenizers(tmp_path, source, original):
    (source / "vocab.txt").write_text("\n".join([*WORDS[1:], "[PAD]"]))
    (source / "config.json").write_text(json.dumps(original.config | {"pad_token_id": None}))
    convert_source(str(source), tmp_path / "out")
    assert record_of(tmp_path / "out")["tokenizer"] == "the source's own"


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
    convert_source(str(tmp_path / "large.safetensors"), tmp_path / "without")
    assert record_of(tmp_path / "without")["tokenizer"] is None


# --- places ---


@pytest.mark.parametrize(
    ("place", "options", "says"),
    [
        ("", {}, "Repo id"),
        ("./missing", {}, "./missing"),
        ("org/word", {}, "org/word is no file or folder here"),
        ("model.safetensors", {"revision": "main"}, "--revision"),
        ("model.safetensors", {"file": "y"}, "--file"),
        (".", {"file": "../other/model.safetensors"}, "outside"),
        (".", {"file": "/etc/hostname"}, "outside"),
        (".", {"file": "y"}, "no file 'y'"),
    ],
)
def test_what_is_no_source_is_named(source, monkeypatch, place, options, says):
    monkeypatch.chdir(source)
    with pytest.raises(ValueError, match=says):
        find_source(place, **options)


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_what_belongs_to_nested_weights_is_next_to_them_or_at_the_root(tmp_path, original, hub, place):
    weights = save(embedding_tensors(original))
    options = [json.dumps(original.config | {"pool_all": value}).encode() for value in (False, True)]
    files = {
        "model.safetensors": weights,
        "config.json": options[0],
        "v2/model.safetensors": weights,
        "v2/config.json": options[1],
        "v3/model.safetensors": weights,
        "vocab.txt": "\n".join(WORDS).encode(),
        "README.md": b"---\nlicense: mit # by its author\n---\n",
    }
    hub.add("org/name", files)
    write_files(tmp_path / "clone", files)
    source = "org/name" if place == "hub" else str(tmp_path / "clone")
    for folder, pooling, options in (("v2", "mean_tanh", "v2/config.json"), ("v3", "cls_tanh", "config.json")):
        convert_source(source, tmp_path / folder, file=f"{folder}/model.safetensors")
        record = record_of(tmp_path / folder)
        assert M2BertConfig.from_pretrained(tmp_path / folder).pooling == pooling
        assert (record["license"], record["tokenizer"]) == ("mit", "the source's own")
        assert record["files"].keys() == {f"{folder}/model.safetensors", options}


@pytest.mark.parametrize(
    ("head", "license"),
    [
        ("tags: [x]\nlicense: cc-by-4.0  # as published", "cc-by-4.0"),
        ("license: [apache-2.0, mit]", None),
        ('license: "mit |\\n\\n# heading"', None),
        ("license: mit\nlicense: gpl", None),
        (f"license: {'x' * 62}", None),
        (None, None),
    ],
)
def test_a_license_is_an_id_or_nothing(tmp_path, head, license):
    (tmp_path / "model.safetensors").write_bytes(b"")
    card = "# A model\n\nlicense: wrong\n"
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\n{card}" if head else card)
    assert find_source(str(tmp_path)).license() == license


# --- the Hub and its cache ---


def test_a_cache_that_lacks_the_configuration_is_reported(tmp_path, original, caplog):
    fill_cache(tmp_path / "cache", "org/partial", {"model.safetensors": save(embedding_tensors(original))})
    (tmp_path / "options.json").write_text(json.dumps(original.config))
    for options, reported in (({}, True), ({"config_file": tmp_path / "options.json"}, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            convert_source("org/partial", tmp_path / f"out-{reported}", **options)
        assert ("which lacks config.json" in caplog.text) == reported
        assert "README.md" in caplog.text


def test_a_hub_id_is_one_commit_of_which_only_what_is_read_comes(tmp_path, original, hub, monkeypatch):
    commit = hub.add("org/name", repository(original))
    for name in ("out", "offline"):
        convert_source("org/name", tmp_path / name)
        record = record_of(tmp_path / name)
        assert (record["source"], record["revision"], record["license"]) == ("org/name", commit, "apache-2.0")
        assert record["tokenizer"] == "the source's own"
        assert_is_the_original(tmp_path / name, original)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # what was downloaded is enough
    fetched = {path.rpartition("/")[2] for method, path, *_ in hub.requests if "/resolve/" in path and method == "GET"}
    assert "model.safetensors" in fetched
    assert not fetched & {"evil.py", "pytorch_model.bin"}
    assert all(commit in path for _, path, *_ in hub.requests if "/resolve/" in path)
    assert find_source("org/name", revision=commit).cached
    with pytest.raises(ValueError, match="org/other is no file .* cannot be reached"):
        find_source("org/other")


def test_a_sharded_repository(tmp_path, original, hub):
    files, tensors = repository(original), embedding_tensors(original)
    keys = sorted(tensors)
    names = dict.fromkeys(keys[:9], "model-1.safetensors") | dict.fromkeys(keys[9:], "b/model-1.safetensors")
    for name in set(names.values()):
        files[name] = save({key: tensors[key] for key in keys if names[key] == name})
    del files["model.safetensors"]
    files["model.safetensors.index.json"] = json.dumps({"weight_map": names}).encode()
    hub.add("org/sharded", files)
    convert_source("org/sharded", tmp_path / "out")
    assert {"model-1.safetensors", "b/model-1.safetensors"} < record_of(tmp_path / "out")["files"].keys()


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("org/other", {}, "does not exist on the Hub, or needs another token"),
        ("org/gated", {}, "gated.* ask for"),
        ("org/name", {"revision": "v9"}, "revision"),
        ("org/name", {"file": "x.bin"}, "no file 'x.bin'"),
    ],
)
def test_repositories_that_cannot_be_read_are_one_line_with_the_fix(original, hub, monkeypatch, name, options, says):
    hub.add("org/name", repository(original))
    hub.add("org/gated", repository(original), gated=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match=f"{name} .*{says}") as error:
        find_source(name, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("failing", ["/api/models/org/name/tree", "/org/name/resolve"])
def test_a_hub_that_fails_is_no_reason_to_take_what_the_cache_has(tmp_path, original, hub, monkeypatch, failing):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    fill_cache(tmp_path / "cache", "org/name", {"model.safetensors": save(embedding_tensors(original))})
    hub.add("org/name", repository(original))
    hub.intercept = lambda request: (500, {}, b"{}") if request.path.startswith(failing) else None
    with pytest.raises(ValueError, match="org/name|the Hub"):
        find_source("org/name")


def test_a_hub_that_cannot_be_reached_leaves_the_cache(tmp_path, original, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    fill_cache(tmp_path / "cache", "org/name", {"model.safetensors": save(embedding_tensors(original))})
    hub.server.shutdown()
    hub.server.server_close()
    assert find_source("org/name").cached
