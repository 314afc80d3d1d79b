"""The card says what is known, in a form that the Hub reads, and shows code that runs."""

import ast
import json
import re

import pytest
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from test_scores import record

from m2bert.eval.encoders.fingerprint import model_files
from m2bert.files import digest, parse_yaml
from m2bert.hub.card import About, Card, Data
from m2bert.hub.folder import export_checkpoint, write_folder
from m2bert.hub.scores import read_scores
from m2bert.hub.sentence_files import SentenceSettings
from modeling_m2bert import M2BertForMaskedLM, M2BertModel

CONVERSION = {
    "source": "org/original", "revision": "c" * 40, "license": "apache-2.0", "files": {"model.safetensors": "d" * 64},
    "tensors": {"total": 99, "converted": 90, "repeated": [], "rebuilt": [], "constant_tables": 9, "not_converted": []},
    "options": {"config": {}, "tensors": {}, "assumed": {"hyena_w_mod": 1}},
    "parity": {"reference": "the original's formulas in float64", "texts": 2, "tokens": 48,
               "float64": {"last_hidden_state": 1e-13}, "float32": {"last_hidden_state": 2e-5}},
    "masked": {"text": "random ids", "cosine": [{"tokens": 16, "texts": 3, "mean": 0.5, "lowest": 0.25}]},
    "tokenizer": None, "date": "2026-11-20",
}  # fmt: skip


def blocks(text):
    """The Python code blocks of a card, in order."""
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def one_record(folder, **changes):
    return record(model_files(folder), **changes)


@pytest.fixture
def checkpoint(tmp_path, tiny_config, randomized, tokenizer):
    return write_folder(randomized(M2BertModel(tiny_config())), tokenizer, tmp_path / "checkpoint")


def export(tmp_path, checkpoint, *records, **options):
    (tmp_path / "scores.json").write_text(json.dumps({"format": 1, "results": list(records)}))
    results = [tmp_path / "scores.json"] if records else None
    return export_checkpoint(checkpoint, tmp_path / "out", results=results, **options)


def test_scores_stand_on_the_card_and_in_its_metadata(tmp_path, checkpoint):
    bm25 = record(None, 0.9104, system="bm25")
    folder = export(tmp_path, checkpoint, one_record(checkpoint), bm25, repository="org/mine")
    card = ModelCard.load(folder / "README.md")
    (result,) = card.data.eval_results
    assert (card.data.model_name, result.metric_value, result.dataset_args["fingerprint"]) == ("mine", 81.26, "f" * 64)
    row = next(line for line in card.text.splitlines() if line.startswith("| qmsum (test)"))
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "qmsum (test)", "35, 272", "truncate", "1", "90 %", "81.3", "78.0 to 84.0", "91.0", "zero-shot",
    ]  # fmt: skip
    assert not (folder / ".eval_results").exists()


def test_exporting_keeps_the_files_that_scores_are_tied_to(tmp_path, checkpoint):
    """So that the published folder can be checked against the same results."""
    folder = export(tmp_path, checkpoint, one_record(checkpoint))
    assert model_files(folder) == model_files(checkpoint)
    assert len(read_scores([tmp_path / "scores.json"], folder).own) == 1


def test_no_number_and_no_license_is_made_up(tmp_path, checkpoint):
    card = ModelCard.load(export(tmp_path, checkpoint) / "README.md")
    assert card.data.eval_results is None
    assert card.data.license is None
    assert "| license of the weights | not stated |" in card.text
    assert "## Evaluation" not in card.text
    assert "## Training" not in card.text


def test_what_its_maker_says_is_on_the_card(tmp_path, checkpoint):
    (tmp_path / "about.yaml").write_text(
        "name: minutes-16k\nlicense: mit\nlanguage: [en]\nlimits: [Never saw poems.]\ntext: Made for minutes.\n"
        "data:\n- {name: Some books, license: CC0-1.0, hub: org/books}\n- {name: mine, license: MIT}\n"
    )
    card = ModelCard.load(export(tmp_path, checkpoint, about=tmp_path / "about.yaml") / "README.md")
    assert (card.data.license, card.data.language, card.data.datasets) == ("mit", ["en"], ["org/books"])
    for text in ("# minutes-16k", "- Never saw poems.", "Made for minutes.", "| mine | MIT |",
                 "| [Some books](https://huggingface.co/datasets/org/books) | CC0-1.0 |"):  # fmt: skip
        assert text in card.text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("licence: mit", "unknown key 'licence'; did you mean 'license'"),
        ("license: 'mit | #'", "license"),
        ("data: [{name: a, license: b, hub: ../../x y}]", r"data\[0\].hub"),
        ("text: &a [x]\nlimits: *a", "aliases"),
    ],
)
def test_a_broken_about_file_is_named_and_nothing_is_written(tmp_path, checkpoint, text, named):
    (tmp_path / "about.yaml").write_text(text)
    with pytest.raises(ValueError, match=named):
        export(tmp_path, checkpoint, about=tmp_path / "about.yaml")
    with pytest.raises(ValueError, match="name it as org/name"):
        export(tmp_path, checkpoint, repository="mine")
    assert not (tmp_path / "out").exists()


def test_every_command_of_a_published_card_pins_a_revision(tmp_path, checkpoint):
    text = (export(tmp_path, checkpoint, repository="org/mine") / "README.md").read_text()
    loads = [line for block in blocks(text) for line in block.splitlines() if "trust_remote_code=True" in line]
    assert len(loads) == 4
    assert all("revision=revision" in line for line in loads)
    assert 'path = "org/mine"' in text


@pytest.mark.parametrize("padding", ["masked", "visible"])
@pytest.mark.parametrize("prompt", ["", "passage: "])
def test_all_ways_on_the_card_give_the_same_vector(tmp_path, tiny_config, randomized, tokenizer, padding, prompt):
    pooling = "weighted_mean" if padding == "masked" else "cls_tanh"
    model = randomized(M2BertModel(tiny_config(padding=padding, pooling=pooling)))
    settings = SentenceSettings(prompts={"query": "", "document": prompt})
    folder = write_folder(model, tokenizer, tmp_path / "out", settings=settings)
    others = [block for block in blocks((folder / "README.md").read_text()) if "embedding =" in block]
    assert len(others) == 2
    found = {"path": str(folder)}
    expected = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu").encode_document(
        ["a long report ..."]
    )
    for other in others:
        exec(other, found)  # noqa: S102  (the card's own code)
        assert abs(found.pop("embedding").detach().numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("padding", ["visible", "masked"])
def test_a_converted_model_says_where_it_comes_from(tmp_path, tiny_config, tokenizer, padding):
    model = M2BertModel(tiny_config(padding=padding, pooling="cls_tanh"))
    record = {"conversion.json": json.dumps(CONVERSION)}
    folder = write_folder(model, tokenizer, tmp_path / "out", extra_files=record)
    card = ModelCard.load(folder / "README.md")
    assert (card.data.base_model, card.data.license) == ("org/original", "apache-2.0")
    for text in ("c" * 40, "All 99 tensors", "| last_hidden_state | 1.0e-13 | 2.0e-05 |", "hyena_w_mod=1",
                 "| 16 | 3 | 0.5000 | 0.2500 |"):  # fmt: skip
        assert text in card.text
    assert ("are others than the original's" in card.text) == (padding == "masked")
    assert ("What that does to retrieval was not measured." in card.text) == (padding == "visible")
    exported = export_checkpoint(folder, tmp_path / "again")
    assert json.loads((exported / "conversion.json").read_text()) == CONVERSION
    assert "All 99 tensors" in (exported / "README.md").read_text()


def test_the_twin_with_masked_padding_is_compared_in_ndcg(tmp_path, tiny_config, tokenizer):
    model = M2BertModel(tiny_config(padding="visible", pooling="cls_tanh"))
    record = {"conversion.json": json.dumps(CONVERSION)}
    visible = write_folder(model, tokenizer, tmp_path / "visible", extra_files=record)
    model.config.padding = "masked"
    masked = write_folder(model, tokenizer, tmp_path / "masked")
    folder = export(tmp_path, visible, one_record(visible), one_record(masked, ndcg_at_10=0.5))
    text = (folder / "README.md").read_text()
    assert "| qmsum (test) | truncate | 50.0 | 46.7 to 52.7 |" in text
    assert "was not measured" not in text


def test_settings_of_training_are_shown_without_paths_and_tokens(tmp_path, tiny_config):
    settings = {
        "data": {"path": "/home/somebody/secret/qmsum", "cache": "~/somebody/cache", "note": "path=/home/somebody/x"},
        "/home/somebody/key": ["/home/somebody/y", 3], "steps": 7, "token": "hf_" + "a" * 34,
        "model": "org/name", "page": "https://huggingface.co/org/name",
    }  # fmt: skip
    public = {
        "data": {"path": "qmsum", "cache": "cache", "note": "path=x"}, "key": ["y", 3], "steps": 7, "token": "hf_...",
        "model": "org/name", "page": "https://huggingface.co/org/name",
    }  # fmt: skip
    record = {"training.json": json.dumps({"config": settings, "data_fingerprint": "b" * 64})}
    card = Card(about=About(data=[Data(name="qmsum", license="MIT")]))
    folder = write_folder(M2BertForMaskedLM(tiny_config()), None, tmp_path / "out", extra_files=record, card=card)
    text = (folder / "README.md").read_text()
    assert "path: qmsum" in text
    assert "b" * 64 in text
    assert "somebody" not in text
    exported = export_checkpoint(folder, tmp_path / "public")
    assert json.loads((exported / "training.json").read_text())["config"] == public


@pytest.mark.parametrize("prompt", ["Represent it:\n", '"]); import os; (["'])
def test_the_cards_code_holds_any_prompt_as_text(tmp_path, tiny_config, tokenizer, prompt):
    settings = SentenceSettings(prompts={"query": "", "document": prompt})
    folder = write_folder(M2BertModel(tiny_config()), tokenizer, tmp_path / "out", settings=settings)
    (code,) = [block for block in blocks((folder / "README.md").read_text()) if "AutoModel" in block]
    (line,) = [line for line in code.splitlines() if line.startswith("texts = ")]
    assert ast.literal_eval(line.removeprefix("texts = ")) == [f"{prompt}a long report ..."]


def test_foreign_text_stays_in_its_cell(tmp_path, tiny_config, tokenizer):
    foreign = "a |\n\n# Mine\n<img src=x>"
    changes = {"source": foreign, "revision": None, "license": "mit |\n# Mine", "tensors": {"total": foreign},
               "masked": {"text": foreign, "cosine": [{"tokens": foreign, "texts": foreign, "mean": 1, "lowest": 1}]},
               "parity": CONVERSION["parity"] | {"texts": foreign, "tokens": foreign}}  # fmt: skip
    record = {"conversion.json": json.dumps(CONVERSION | changes)}
    card = ModelCard.load(
        write_folder(M2BertModel(tiny_config()), tokenizer, tmp_path / "out", extra_files=record) / "README.md"
    )
    assert "\n# Mine" not in card.text
    assert "<img" not in card.text.replace("\\<", "")
    assert card.data.license is None


@pytest.mark.parametrize("value", ["a\n```\n\n# Mine", "a\n````\n<script>\n", "a\n\n  ```\n# Mine\n"])
def test_a_setting_stays_in_its_code_block(tmp_path, tiny_config, value):
    record = {"training.json": json.dumps({"config": {"a": value, value: ["b", value]}})}
    folder = write_folder(M2BertModel(tiny_config()), None, tmp_path / "out", extra_files=record)
    text = (folder / "README.md").read_text()
    opening = re.search(r"^(`{3,})yaml$", text, flags=re.MULTILINE)
    block, rest = re.split(rf"^ {{0,3}}{opening[1]}`*\s*$", text[opening.end() :], maxsplit=1, flags=re.MULTILINE)
    assert parse_yaml(block, "the block") == {"a": value, value: ["b", value]}
    assert rest.strip().startswith("</details>")


@pytest.mark.parametrize(
    ("name", "change", "place"),
    [
        ("training.json", {"config": {}, "versions": [1]}, "versions"),
        ("conversion.json", {"tensors": {}}, "total"),
        ("conversion.json", {"parity": CONVERSION["parity"] | {"float32": {}}}, "float32|last_hidden_state"),
        (
            "conversion.json",
            {"masked": {"text": "x", "cosine": [{"tokens": 1, "texts": 1, "mean": "#"}]}},
            "real number",
        ),
        ("conversion.json", {"source": None}, "source"),
        *(("training.json", text, "") for text in ("{", "[1]", '{"a":' * 900 + "1" + "}" * 900, '{"a": NaN}')),
    ],
)
def test_a_record_of_another_form_is_named_and_nothing_is_written(tmp_path, tiny_config, name, change, place):
    usual = {"conversion.json": CONVERSION, "training.json": {}}[name]
    text = change if isinstance(change, str) else json.dumps(usual | change)
    with pytest.raises(ValueError, match=f"{name.split('.')[0]}.*{place}"):
        write_folder(M2BertModel(tiny_config()), None, tmp_path / "out", extra_files={name: text})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cls", [M2BertModel, M2BertForMaskedLM])
def test_without_a_tokenizer_the_card_shows_no_code_that_needs_one(tmp_path, tiny_config, cls):
    text = (write_folder(cls(tiny_config()), None, tmp_path / "out") / "README.md").read_text()
    assert "holds **no tokenizer**" in text
    assert "```python" not in text


def test_padding_and_lengths_on_the_card_are_those_that_are_used(tmp_path, tiny_config, tokenizer):
    def text(model, **settings):
        settings = SentenceSettings(**settings)
        name = f"{len(list(tmp_path.iterdir()))}"
        return (write_folder(model, tokenizer, tmp_path / name, settings=settings) / "README.md").read_text()

    masked_lm = text(M2BertForMaskedLM(tiny_config(padding="visible")))
    assert "sees its padding" in masked_lm
    assert "sentence-transformers pads" not in masked_lm
    visible = text(M2BertModel(tiny_config(padding="visible", pooling="cls_tanh")))
    assert "sentence-transformers pads every text to 48 tokens" in visible
    assert "the original's:" not in visible
    short = text(M2BertModel(tiny_config()), max_tokens=32)
    assert "| longest input | 32 tokens |" in short
    assert "Texts beyond 32 tokens" in short
    assert "48" not in short


def test_from_an_evaluation_to_the_card(tmp_path, checkpoint):
    """The two halves meet in a file: `m2bert eval` writes it, `m2bert export` reads it."""
    pq = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table
    from typer.testing import CliRunner

    from m2bert.eval.cli import app

    rows = list(enumerate(("a report about the budget", "minutes of the committee")))
    documents = [{"pid": str(i), "passage": text, "dataset": "tiny"} for i, text in rows]
    queries = [{"qid": f"q{i}", "query": text, "answer_pids": [str(i)], "dataset": "tiny"} for i, text in rows]
    for kind, table in (("queries", queries), ("documents", documents)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        pq.write_table(Table.from_pylist(table), tmp_path / "data" / kind / "test.parquet")
    (tmp_path / "eval.yaml").write_text(
        f"tasks: [{{data: {tmp_path / 'data'}, names: tiny}}]\npolicies: [truncate]\n"
        f"output: {tmp_path / 'scores.json'}\n"
        f"encoders: [bm25, {{model: {checkpoint}, trained_on: [nothing]}}]\n"
    )
    result = CliRunner().invoke(app, ["eval", "--config", str(tmp_path / "eval.yaml"), "--no-cache"])
    assert result.exit_code == 0, result.output
    folder = export_checkpoint(checkpoint, tmp_path / "out", results=[tmp_path / "scores.json"])
    text = (folder / "README.md").read_text()
    assert "| tiny (test) | 2, 2 | truncate | 1 | 100 % | 100.0 |" in text
    assert f"model.safetensors {digest(folder / 'model.safetensors')[:12]})" in text
    assert "| 100.0 | zero-shot |" in text
