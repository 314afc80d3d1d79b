"""Where the parts of a source lie, what of it is known, and that no conversion replaces what it reads."""

import json
import logging
import os

import pytest
from convert_cases import WORDS, embedding_tensors, fill_cache, go_offline, go_online, record_of, write_source
from fake_hub import FakeHub
from original_model import Fixture, needs_fixtures
from safetensors.torch import save, save_file

from m2bert.hub.convert.run import convert_source
from m2bert.hub.convert.source import find_source
from modeling_m2bert import M2BertConfig

pytestmark = needs_fixtures
ALIASES = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


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


def contents(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("output", ["clone", ".", "link"])
@pytest.mark.parametrize("source", ["clone", "clone/model.safetensors"])
def test_a_source_is_not_replaced_by_what_comes_of_it(tmp_path, original, source, output):
    write_source(tmp_path / "place" / "clone", original)
    (tmp_path / "place" / "config.json").write_text("{}")
    (tmp_path / "place" / "link").symlink_to("clone")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="holds .*(from which it is made|is not replaced)"):
        convert_source(str(tmp_path / "place" / source), tmp_path / "place" / output, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("what", ["configuration", "tokenizer", "vocab.txt", "linked weights"])
def test_nothing_that_is_read_is_replaced(tmp_path, original, what):
    source = write_source(tmp_path / "clone", original)
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text(json.dumps(original.config))
    (old / "vocab.txt").write_text("\n".join(WORDS))
    options = {
        "configuration": {"config_file": old / "config.json"},
        "tokenizer": {"tokenizer": str(old)},
        "vocab.txt": {"tokenizer": str(old / "vocab.txt")},
    }.get(what, {})
    if what == "linked weights":
        (source / "model.safetensors").rename(old / "model.safetensors")
        (source / "model.safetensors").symlink_to(old / "model.safetensors")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"output {old} .*(from which it is made|is not replaced)"):
        convert_source(str(source), old, overwrite=True, **options)
    assert contents(tmp_path) == before


def test_an_older_conversion_beside_or_in_the_source_is_replaced(tmp_path, original):
    source = write_source(tmp_path / "clone", original)
    for output in (tmp_path / "out", source / "out"):
        convert_source(str(source), output)
        (output / "requirements.txt").write_text("stale")
        convert_source(str(source), output, overwrite=True)
        assert (output / "requirements.txt").read_text() != "stale"


def nested(fixture) -> dict[str, bytes]:
    """Two models; what belongs to the second lies partly beside it."""
    weights = save(embedding_tensors(fixture))
    options = [json.dumps(fixture.config | {"pool_all": value}).encode() for value in (False, True)]
    return {
        "model.safetensors": weights,
        "config.json": options[0],
        "v2/model.safetensors": weights,
        "v2/config.json": options[1],
        "v3/model.safetensors": weights,
        "vocab.txt": "\n".join(WORDS).encode(),
        "README.md": b"---\nlicense: mit # by its author\n---\n",
    }


def assert_nested(source, tmp_path):
    for folder, pooling, options in (("v2", "mean_tanh", "v2/config.json"), ("v3", "cls_tanh", "config.json")):
        convert_source(source, tmp_path / folder, file=f"{folder}/model.safetensors")
        record = record_of(tmp_path / folder)
        assert M2BertConfig.from_pretrained(tmp_path / folder).pooling == pooling
        assert (record["license"], record["tokenizer"]) == ("mit", "the source's own")
        assert record["files"].keys() == {f"{folder}/model.safetensors", options}


def test_what_belongs_to_nested_weights_is_beside_them_or_at_the_root(tmp_path, original, hub):
    hub.add("org/name", nested(original))
    assert_nested("org/name", tmp_path)


def test_a_folder_may_nest_too_but_not_lead_out(tmp_path, original):
    for name, content in nested(original).items():
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).write_bytes(content)
    assert_nested(str(tmp_path / "clone"), tmp_path)
    for file in ("../clone/model.safetensors", str(tmp_path / "clone" / "model.safetensors")):
        with pytest.raises(ValueError, match="has no file"):
            find_source(str(tmp_path / "clone"), file=file)


def test_shards_of_one_name_are_recorded_both(tmp_path, original):
    tensors, parts = embedding_tensors(original), ("a/m.safetensors", "b/m.safetensors")
    keys = sorted(tensors)
    for part, names in zip(parts, (keys[:20], keys[20:]), strict=True):
        (tmp_path / "clone" / part).parent.mkdir(parents=True)
        save_file({key: tensors[key] for key in names}, tmp_path / "clone" / part)
    weight_map = {key: parts[index >= 20] for index, key in enumerate(keys)}
    (tmp_path / "clone" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    convert_source(str(tmp_path / "clone"), tmp_path / "out")
    assert record_of(tmp_path / "out")["files"].keys() == {"model.safetensors.index.json", *parts}


def test_a_cache_that_lacks_the_configuration_is_said(tmp_path, original, caplog):
    weights = save(embedding_tensors(original))
    fill_cache(tmp_path / "cache", "org/partial", {"model.safetensors": weights})
    with caplog.at_level(logging.WARNING):
        convert_source("org/partial", tmp_path / "out")
    assert "only what the cache holds is known, which lacks config.json" in caplog.text
    assert "README.md" in caplog.text
    caplog.clear()
    (tmp_path / "options.json").write_text(json.dumps(original.config))
    with caplog.at_level(logging.WARNING):
        convert_source("org/partial", tmp_path / "stated", config_file=tmp_path / "options.json")
    assert "config.json" not in caplog.text


@pytest.mark.parametrize("failing", ["/api/models/org/name", "/api/models/org/name/tree"])
def test_a_hub_that_fails_is_no_reason_to_take_what_the_cache_has(tmp_path, original, hub, monkeypatch, failing):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    fill_cache(tmp_path / "cache", "org/name", {"model.safetensors": save(embedding_tensors(original))})
    hub.intercept = lambda request: (500, {}, b"{}") if request.path.startswith(failing) else None
    with pytest.raises(ValueError, match="org/name"):
        convert_source("org/name", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hub_that_cannot_be_reached_leaves_the_cache(tmp_path, original, hub, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    fill_cache(tmp_path / "cache", "org/name", {"model.safetensors": save(embedding_tensors(original))})
    hub.server.shutdown()
    hub.server.server_close()
    with caplog.at_level(logging.WARNING):
        found = find_source("org/name")
    assert found.cached


def test_the_client_is_quiet_about_files_that_are_not_asked_for(original, hub, caplog):
    hub.add("org/name", nested(original))
    client = logging.getLogger("huggingface_hub")
    client.addHandler(caplog.handler)  # it does not propagate
    try:
        assert not find_source("org/name").cached
    finally:
        client.removeHandler(caplog.handler)
    assert "No files matched" not in caplog.text


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ("license: 'mit'\r", "mit"),
        ("tags: [x]\nlicense: cc-by-4.0  # as published", "cc-by-4.0"),
        ("license: other\nlicense_name: custom", "other"),
        ("license: [apache-2.0, mit]", None),
        ("license:\n- mit", None),
        ('license: "mit |\\n\\n# heading"', None),
        ("license: {a: b}", None),
        ("license: null", None),
        ("license: 2", None),
        ("license: mit\nlicense: gpl", None),
        ("other: {license: mit}", None),
        (f"license: {'x' * 62}", None),
        (f"{ALIASES}license: *a8", None),
    ],
)
def test_a_licence_is_an_id_or_nothing(tmp_path, head, licence):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\n# A model\n\nlicense: wrong\n")
    assert find_source(str(tmp_path)).license() == licence


def test_a_card_without_metadata_states_no_licence(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "README.md").write_text("# A model\n\nlicense: mit\n")
    assert find_source(str(tmp_path)).license() is None


def test_an_empty_name_is_not_the_working_folder(tmp_path, original, monkeypatch):
    monkeypatch.chdir(write_source(tmp_path / "clone", original))
    with pytest.raises(ValueError, match="'' is no file, no folder and no Hub id"):
        find_source("")
    assert find_source(os.curdir).name == "clone"


def test_a_deeply_nested_configuration_is_one_line(tmp_path, original):
    source = write_source(tmp_path / "clone", original)
    (source / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="config.json is nested too deeply"):
        convert_source(str(source), tmp_path / "out")
