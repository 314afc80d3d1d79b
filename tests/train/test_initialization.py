"""Starts: the identity is exact, and token weights follow document frequency."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertTokenizerFast

from m2bert.train import initialization, retrieval_run
from m2bert.train.initialization import MAX_IDF, MIN_IDF, OTHER_HEADS, identity_start_, idf_start_, make_model
from m2bert.train.tokenizer import train_wordpiece

IDS = torch.arange(1, 41).view(2, 20)


def test_identity_started_layers_change_nothing_and_learn(tiny_config):
    model = AutoModel.from_config(tiny_config(num_hidden_layers=3)).double()
    identity_start_(model)
    outputs = model(IDS, output_hidden_states=True)
    for hidden in outputs.hidden_states[1:]:
        assert (hidden - outputs.hidden_states[0]).abs().max() < 1e-8
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        model(IDS).pooler_output[:, :5].sum().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_identity_start_needs_the_residual_convolution(tiny_config):
    with pytest.raises(ValueError, match="residual_long_conv"):
        identity_start_(AutoModel.from_config(tiny_config(residual_long_conv=False)))


def test_inverse_document_frequency_counts_chunks_in_the_task_where_a_word_is_most_common():
    documents = [np.array([10, 11, 10]), np.array([10, 12]), np.concatenate([np.full(1024, 13), [11]])]  # 4 chunks
    idf = initialization.inverse_document_frequency([documents], 20, special_ids=[0, 13])
    assert idf[[10, 11, 12]] == pytest.approx([math.log(2), math.log(2), math.log(4)])
    assert (idf[15], idf[13]) == (MAX_IDF, np.float32(MIN_IDF))
    rare, common = [np.array([n]) for n in (10, 12, 13, 14)], [np.array([10]), np.array([11])]
    idf = initialization.inverse_document_frequency([rare, common], 20, special_ids=[0])
    assert idf[[10, 12]] == pytest.approx([math.log(2), math.log(4)])


def test_layers_added_to_a_checkpoint_begin_as_the_identity(tiny_config, tmp_path):
    torch.manual_seed(0)
    config = tiny_config(num_hidden_layers=1, pooling="weighted_mean", vocab_size=110)
    model = AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    architecture = {"num_hidden_layers": 3, "contextual_pooling": True}
    settings = SimpleNamespace(path=str(tmp_path), start="identity", architecture=architecture, new_model={})
    grown, missing = make_model(AutoModel, settings, train_wordpiece(["a few words of text"] * 3, 100))
    assert {name.split(".")[1] for name in missing if name.startswith("layers.")} == {"1", "2"}
    with torch.no_grad():
        assert torch.allclose(grown.eval()(IDS).pooler_output, model(IDS).pooler_output, atol=1e-5)
    settings.architecture = {"num_hidden_layers": 1}
    weights = load_file(tmp_path / "model.safetensors")
    del weights["layers.0.mixer.out_proj.weight"]  # damaged: this one is not new
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="missing: layers.0.mixer.out_proj.weight"):
        make_model(AutoModel, settings, train_wordpiece(["a few words of text"] * 3, 100))


def test_idf_start_weighs_each_token_in_one_head(tiny_config):
    model = AutoModel.from_config(tiny_config(pooling="weighted_mean", num_pooling_heads=3))
    idf = np.linspace(0.1, 5, 100, dtype=np.float32)  # fewer than vocab_size
    idf_start_(model.pooler.token_log_weights.weight, idf, seed=0)
    weights = model.pooler.token_log_weights.weight.detach().exp()
    assert torch.allclose(weights.max(1).values[:100] ** 2, torch.from_numpy(idf), rtol=1e-5)
    assert torch.allclose(weights.min(1).values, weights.max(1).values * OTHER_HEADS, rtol=1e-5)
    assert torch.allclose(weights.max(1).values[100:] ** 2, torch.tensor(MAX_IDF))
    assert (weights.argmax(1).bincount() > 20).all()


def test_token_energy_is_the_share_of_a_document_s_square():
    idf = np.array([1.0, 2.0, 4.0, 1.0])
    documents = [np.array([0, 0, 1]), np.array([2]), np.array([], dtype=int)]
    energy = initialization.token_energy([documents[:1], documents[1:]], idf, saturation=None)
    assert energy == pytest.approx([4 / 6 / 2, 2 / 6 / 2, 1 / 2 / 2, 0])  # of the second task half is an empty document
    saturated = initialization.token_energy([documents[:1]], idf, saturation=2)
    zero, one = math.log1p(2 / 2) ** 2, 2 * math.log1p(1 / 2) ** 2
    assert saturated == pytest.approx([zero / (zero + one), one / (zero + one), 0, 0])


def test_frame_start_spreads_the_words_that_documents_are_made_of(tiny_config):
    torch.manual_seed(0)
    model = AutoModel.from_config(tiny_config(pooling="weighted_mean", num_pooling_heads=2, vocab_size=400)).double()
    idf_start_(model.pooler.token_log_weights.weight, np.full(400, 2.0, dtype=np.float32), seed=0)
    energy = np.random.default_rng(0).random(390) ** 4  # fewer than vocab_size; few tokens make most of a document
    energy[model.config.pad_token_id] = 0
    weights = torch.cat([torch.from_numpy(energy), torch.zeros(10)]).double()
    heads = model.pooler.token_log_weights.weight.argmax(1)

    def interference():
        """Mean square of the cosine between two words of a head, drawn by their energy."""
        codes = torch.nn.functional.normalize(model.embeddings.norm(model.get_input_embeddings().weight), dim=1)
        found = 0
        for head in range(2):
            share = torch.where(heads == head, weights, 0)
            found += (share[:, None] * share * (codes @ codes.T) ** 2).sum() / share.sum() ** 2
        return found.item() / 2

    random, width = interference(), model.config.hidden_size
    length = model.get_input_embeddings().weight.norm(dim=1).mean()
    initialization.frame_start_(model.get_input_embeddings().weight, model.pooler.token_log_weights.weight, energy)
    least = 1 / (width - 1)  # Welch's bound; LayerNorm takes one dimension
    assert least - 1e-9 < interference() < least + 0.1 * (random - least)
    lengths = model.get_input_embeddings().weight.norm(dim=1)
    assert lengths[model.config.pad_token_id] == 0
    assert torch.allclose(lengths[lengths > 0], length)


def test_unigram_start_predicts_token_frequency(tiny_config):
    model = AutoModelForMaskedLM.from_config(tiny_config())
    initialization.unigram_start_(model, np.bincount([7, 7, 7, 9, 9, 4]))  # shorter than the vocabulary
    probabilities = model.lm_head.decoder.bias.detach().softmax(0)
    assert probabilities[7] == pytest.approx(4 / 126, rel=1e-5)
    assert probabilities[9] == pytest.approx(3 / 126, rel=1e-5)
    assert probabilities[50] == pytest.approx(1 / 126, rel=1e-5)
    assert probabilities.sum() == pytest.approx(1, rel=1e-5)


@pytest.fixture
def tokenizer_path(tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(56))]
    BertTokenizerFast(vocab={token: i for i, token in enumerate(vocabulary)}).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def make(tokenizer_path, name, *arguments):
    folder = tokenizer_path.parent / name
    sizes = ["model.new_model.hidden_size=16", "model.new_model.max_position_embeddings=64"]
    initialization.main([*arguments, *sizes, f"tokenizer.path={tokenizer_path}", "--output", str(folder)])
    return folder


def test_the_command_writes_the_identity_or_a_standard_start(tokenizer_path, capsys):
    identity = AutoModelForMaskedLM.from_pretrained(make(tokenizer_path, "identity", "--start", "identity"))
    states = identity(IDS, output_hidden_states=True).hidden_states
    assert (states[1] - states[0]).abs().max() < 1e-6
    assert identity.config.vocab_size == 64  # 61 tokens, rounded up
    standard = AutoModelForMaskedLM.from_pretrained(make(tokenizer_path, "standard", "--start", "standard"))
    states = standard(IDS, output_hidden_states=True).hidden_states
    assert (states[1] - states[0]).abs().max() > 1e-2
    assert "a new M2BertForMaskedLM of" in capsys.readouterr().out
    assert AutoTokenizer.from_pretrained(tokenizer_path.parent / "standard").model_max_length == 64


def test_the_command_follows_the_configuration(tokenizer_path):
    """Its seed, its start where none is named, and its kind: of fine-tuning it is an encoder."""
    folders = [
        make(tokenizer_path, name, "model.start=standard", f"seed={seed}")
        for name, seed in zip("abc", (0, 0, 1), strict=True)
    ]
    a, b, c = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["lm_head.dense.weight"], c["lm_head.dense.weight"])
    encoder = load_file(make(tokenizer_path, "encoder", "--config", "opl-small") / "model.safetensors")
    assert "pooler.token_log_weights.weight" in encoder


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--start", "zeros"], "model.start"),
        (["step=3"], "'steps'"),
        (["loss.nam=opl"], "mlm: .*'loss'.*opl: .*'loss.nam'.*'name'"),  # why it is none of mlm, and none of opl
        (["model.new_model.num_layers=3"], "model.new_model.num_layers"),
    ],
)
def test_the_command_names_bad_input(tokenizer_path, arguments, named):
    with pytest.raises(ValueError, match=named):
        make(tokenizer_path, "out", *arguments)
    with pytest.raises(ValueError, match="tokenizer.path"):
        initialization.main(["--output", str(tokenizer_path.parent / "out")])
    assert not (tokenizer_path.parent / "out").exists()


def test_a_new_lexical_vector_starts_as_that_of_word_statistics(tiny_config):
    torch.manual_seed(0)
    fields = {"pooling": "weighted_mean", "lexical_heads": 2, "lexical_size": 16, "pooling_saturation": 2}
    model = AutoModel.from_config(tiny_config(**fields, lexical_saturation=1))
    lexical = model.pooler.lexical
    new = {name for name in model.state_dict() if "lexical" in name}
    documents = [[np.arange(100), np.arange(50)]]
    settings = SimpleNamespace(
        model=SimpleNamespace(idf_start=True), seed=0, gradient_checkpointing=False, lora=SimpleNamespace(rank=0)
    )
    before = model.pooler.token_log_weights.weight.detach().clone()
    retrieval_run.finish_encoder(settings, model, new, documents, lambda size: np.linspace(0.1, 5, size))
    weights = lexical.token_log_weights.weight.exp()
    torch.testing.assert_close(weights.max(1).values ** 2, torch.linspace(0.1, 5, len(weights)))
    lengths = lexical.word_embeddings.weight[1:].norm(dim=1)
    torch.testing.assert_close(lengths, lengths[:1].expand_as(lengths))
    assert torch.equal(model.pooler.token_log_weights.weight, before)
