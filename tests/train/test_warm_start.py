"""More positions: nothing changes for short inputs where that is promised, and what is new continues what was there."""

import json

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from m2bert.hub.folder import write_folder
from m2bert.hub.sentence_files import SentenceSettings
from m2bert.train import warm_start
from m2bert.train.warm_start import extend
from modeling_m2bert.m2bert_filter import normalized_time, positional_features

OLD = 48
LENGTHS = [96, 101, 192]  # twice, no multiple, four times


def trained(tiny_config, randomized, auto_class=AutoModel, **changes):
    """A float64 model that has left its initialization everywhere, filters included."""
    model = randomized(auto_class.from_config(tiny_config(**changes))).double()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "positional_features" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def batch():
    """Rows of 48 (all that the old model reads), 30 and 1 tokens."""
    ids = torch.randint(1, 120, (3, OLD), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(OLD) < torch.tensor([[OLD], [30], [1]])
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def outputs(model):
    with torch.no_grad():
        return model(**batch())[0]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    "changes", [{}, {"residual_long_conv": False}, {"filter_decay_length": 20}, {"padding": "visible"}]
)
def test_replicated_and_kept_models_give_the_same_outputs(tiny_config, randomized, length, changes):
    model = trained(tiny_config, randomized, **changes)
    longer = extend(model, length)
    assert longer.config.max_position_embeddings == length
    assert longer.config.filter_decay_length == model.config.filter_decay_length
    assert (outputs(longer) - outputs(model)).abs().max() <= 1e-12
    longer.train()
    assert (longer(**batch())[0] - outputs(model)).abs().max() <= 1e-12
    assert longer(torch.ones(1, length, dtype=torch.long)).pooler_output.isfinite().all()


def test_positions_are_repeated_or_drawn_out(tiny_config, randomized):
    model = trained(tiny_config, randomized)
    before = model.embeddings.position_embeddings.weight
    after = extend(model, 101).embeddings.position_embeddings.weight
    assert torch.equal(after, before[torch.arange(101) % OLD])
    after = extend(model, 95, "interpolate").embeddings.position_embeddings.weight
    assert (after[::2] - before).abs().max() <= 1e-12
    assert (after[1::2] - (before[1:] + before[:-1]) / 2).abs().max() <= 1e-12


def test_kept_filters_go_on_by_the_formula_of_the_old_length(tiny_config):
    """A filter of a fresh model, continued, is the function of t that its first taps are."""
    model = AutoModel.from_config(tiny_config(filter_decay_length=20, filter_embedding_size=7)).double()
    steps = torch.arange(150, dtype=torch.float64)
    for layer in extend(model, 150).layers:
        for module in (layer.mixer.filter, layer.mixer.residual_filter):
            assert (module.time - steps / 19).abs().max() < 1e-6
            features = module.positional_features.detach()
            assert (features[:OLD] - positional_features(OLD, 7)).abs().max() == 0
            assert (features[:, 0] - steps / 47).abs().max() < 1e-5
            angles = torch.linspace(1e-4, 2, 3, dtype=torch.float64) * (2 * torch.pi * steps / OLD)[:, None]
            assert (features[:, 1:4] - angles.cos()).abs().max() < 1e-5
            assert (features[:, 4:] + angles.sin()).abs().max() < 1e-5


def filters(model):
    return [module for layer in model.layers for module in (layer.mixer.filter, layer.mixer.residual_filter)]


def extended(model, *steps):
    for length, decay in steps:
        model = extend(model, length, decay=decay)
    return model


CHAINS = {
    "keep": ([(96, "keep"), (192, "keep")], [(192, "keep")]),
    "keep, no multiples": ([(70, "keep"), (101, "keep"), (384, "keep")], [(384, "keep")]),
    "stretch, then keep": ([(96, "stretch"), (150, "keep"), (384, "keep")], [(96, "stretch"), (384, "keep")]),
    "keep, stretch, keep": ([(96, "keep"), (192, "stretch"), (300, "keep"), (384, "keep")],
                            [(96, "keep"), (192, "stretch"), (384, "keep")]),
}  # fmt: skip


@pytest.mark.parametrize("drift", [0.0, 0.1])
@pytest.mark.parametrize("decay_length", [None, 20])
@pytest.mark.parametrize("chain", CHAINS)
def test_extending_step_by_step_is_extending_at_once(tiny_config, chain, decay_length, drift):
    model = AutoModel.from_config(tiny_config(filter_decay_length=decay_length, filter_embedding_size=7))
    generator = torch.Generator().manual_seed(1)
    for module in filters(model):
        module.positional_features.data += drift * torch.randn(OLD, 7, generator=generator)
    steps, once = (extended(model, *chain) for chain in CHAINS[chain])
    for a, b in zip(filters(steps), filters(once), strict=True):
        assert len(a.positional_features) == len(a.time) == len(b.time)
        torch.testing.assert_close(a.positional_features, b.positional_features, rtol=2e-6, atol=2e-5)
        torch.testing.assert_close(a.time, b.time, rtol=2e-6, atol=0)


def test_drift_does_not_change_how_a_model_is_continued(tiny_config, randomized):
    """Where the decay length was not chosen, the untrained time tells the period: the rows that are new are exact."""
    features = filters(extend(trained(tiny_config, randomized), 96))[0].positional_features[OLD:].detach()
    steps = torch.arange(OLD, 96, dtype=torch.float64)[:, None]
    angles = torch.tensor([1e-4, 1.0], dtype=torch.float64) * (2 * torch.pi * steps / OLD)
    assert (features - torch.cat([steps / (OLD - 1), angles.cos(), -angles.sin()], 1)).abs().max() < 1e-5


def test_stretched_filters_are_those_of_a_model_of_the_new_length(tiny_config, randomized):
    """A fresh model's time, stretched, is the initial one of the new length; every tap keeps its value, further out."""
    longer = extend(AutoModel.from_config(tiny_config()), 150, decay="stretch")
    assert longer.config.filter_decay_length == 150
    assert (longer.layers[1].mixer.filter.time - normalized_time(150, 150)).abs().max() < 1e-6
    model = trained(tiny_config, randomized, filter_decay_length=20)
    longer = extend(model, 95, decay="stretch")
    assert longer.config.filter_decay_length == 1 + 19 * 2
    before, after = (each.layers[0].mixer.residual_filter for each in (model, longer))
    assert (after.positional_features[::2] - before.positional_features).abs().max() <= 1e-12
    assert (after.time[::2] - before.time).abs().max() <= 1e-12


def test_the_original_is_left_alone_and_tied_weights_stay_tied(tiny_config, randomized):
    model = trained(tiny_config, randomized, AutoModelForMaskedLM)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    longer = extend(model, 96, "interpolate", "stretch")
    assert model.config.max_position_embeddings == OLD
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert longer.lm_head.decoder.weight is longer.model.embeddings.word_embeddings.weight
    assert all(parameter.requires_grad for parameter in longer.parameters())


@pytest.mark.parametrize("length", [65536, 131072])
def test_contexts_beyond_32k(tiny_config, randomized, length):
    model = randomized(AutoModel.from_config(tiny_config(hidden_size=8, intermediate_size=16, num_hidden_layers=1)))
    with torch.no_grad():
        assert extend(model, length)(torch.ones(1, length, dtype=torch.long)).pooler_output.isfinite().all()
    time = extend(model, length, decay="stretch").layers[0].mixer.filter.time
    assert (time - normalized_time(length, length)).abs().max() < 1e-6


@pytest.mark.parametrize("arguments", [(40,), (48,), (96, "repeat")])
def test_bad_arguments_are_named(tiny_config, arguments):
    with pytest.raises((ValueError, KeyError), match=str(arguments[-1])):
        extend(AutoModel.from_config(tiny_config()), *arguments)


def command(*arguments):
    warm_start.main([str(argument) for argument in arguments])


def test_the_command_writes_a_complete_longer_folder(tiny_config, randomized, tokenizer, tmp_path, capsys):
    settings = SentenceSettings(prompts={"query": "b ", "document": ""}, max_tokens=20)
    model = trained(tiny_config, randomized, pooling="weighted_mean", num_pooling_heads=2)
    record = {"training.json": '{"steps": 7}'}
    write_folder(model, tokenizer, tmp_path / "short", settings=settings, extra_files=record)
    command("--model", tmp_path / "short", "--max-length", 101, "--output", tmp_path / "long")
    longer = AutoModel.from_pretrained(tmp_path / "long", dtype=torch.float64)
    assert (outputs(longer) - outputs(model)).abs().max() <= 1e-12
    assert AutoTokenizer.from_pretrained(tmp_path / "long").model_max_length == 101
    encoder = SentenceTransformer(str(tmp_path / "long"), trust_remote_code=True, device="cpu")
    assert encoder.max_seq_length == 101
    assert encoder.prompts == {"query": "b ", "document": ""}
    assert json.loads((tmp_path / "long" / "training.json").read_text()) == {"steps": 7}
    out = capsys.readouterr().out
    for text in ("| longest input, tokens | 48 | 101 |", "| 48 x 32 | 101 x 32 | replicated, 2.10417 times |",
                 "filter features, 4 tensors | 48 x 5 | 101 x 5 |", "Inputs of up to 48 tokens have the"):  # fmt: skip
        assert text in out
        assert text in (tmp_path / "long" / "README.md").read_text()
    with pytest.raises(ValueError, match="not empty"):
        command("--model", tmp_path / "short", "--max-length", 202, "--output", tmp_path / "long")
    with pytest.raises(ValueError, match="max_length=30"):
        command("--model", tmp_path / "short", "--max-length", 30, "--output", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_command_extends_masked_language_models(tiny_config, tokenizer, tmp_path, capsys):
    write_folder(AutoModelForMaskedLM.from_config(tiny_config()), tokenizer, tmp_path / "short")
    options = "--positions", "interpolate", "--decay", "stretch"
    command("--model", tmp_path / "short", "--max-length", 96, "--output", tmp_path / "long", *options)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("short", "long"))
    assert before.keys() == after.keys()
    assert "lm_head.dense.weight" in after
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "long").config.filter_decay_length == 96
    assert "The position embeddings and filters moved: all outputs differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "arguments", "promise"),
    [
        ({"num_hidden_layers": 0}, ("replicate", "stretch"), "have the outputs"),
        ({"padding": "visible"}, ("replicate", "keep"), "48 tokens, padded as far as before, have the outputs"),
        ({}, ("replicate", "stretch"), "The filters moved: all outputs differ"),
        ({}, ("interpolate", "keep"), "The position embeddings moved: all outputs differ"),
    ],
)
def test_the_report_promises_what_holds(tiny_config, randomized, changes, arguments, promise):
    model = trained(tiny_config, randomized, **changes)
    longer = extend(model, 96, *arguments)
    report = warm_start.report(model, longer, *arguments)
    assert promise in report
    assert ("filter features" in report) == (model.config.num_hidden_layers > 0)
    assert ((outputs(longer) - outputs(model)).abs().max() > 1e-3) == ("differ" in promise)
