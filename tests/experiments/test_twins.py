"""Attention in the mixer's place (experiments/replicas/twins.py) is fair to it and is what the entry points train."""

from collections import Counter

import pytest
import torch
from transformers import AutoModel

from m2bert.hub.folder import write_folder
from m2bert.train.initialization import identity_layer_
from m2bert.train.tokenizer import train_wordpiece
from modeling_m2bert import M2BertConfig
from modeling_m2bert.m2bert_packing import Rows, pack_rows

SIZES = {"hidden_size": 128, "num_hidden_layers": 1, "intermediate_size": 512, "filter_order": 32}


@pytest.fixture
def twins(script):
    return script("experiments/replicas/twins.py")


@pytest.fixture
def made(twins):
    """Return a model with a mixer, and the counters of its rows."""

    def make(mixer, config):
        with twins.twin(mixer, seen := {"lengths": Counter(), "longest": Counter()}):
            return AutoModel.from_config(config), seen

    return make


@pytest.fixture
def attention(twins, tiny_config, randomized):
    """A mixer with weights that matter."""
    return randomized(twins.AttentionMixer(tiny_config())).double()


def rows_of(*lengths):
    """Rows next to each other, without padding."""
    offsets = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    return Rows(offsets, torch.tensor(lengths, dtype=torch.int32), max(lengths))


@pytest.mark.parametrize("mixer", ["long-conv", "attention"])
def test_a_mixer_starts_as_the_exact_identity_and_every_weight_of_it_learns(twins, made, tiny_config, mixer):
    model, _ = made(mixer, tiny_config())
    layer, rows, x, target = model.layers[0], rows_of(7, 13), torch.randn(20, 32), torch.randn(20, 32)
    twins.identity_layer_(layer)
    assert torch.equal(layer.mixer(x, rows), x)
    assert torch.equal(layer.mlp(x), torch.zeros_like(x))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (layer(x, rows) - target).square().mean().backward()
        optimizer.step()
    if mixer == "attention":
        assert all(parameter.grad.abs().max() > 0 for parameter in layer.mixer.parameters())


def test_attention_sees_its_row_alone_and_no_padding(attention):
    x = torch.randn(30, 32, dtype=torch.float64)
    alone = [attention(part, rows_of(len(part))) for part in x.split([4, 1, 25])]
    torch.testing.assert_close(attention(x, rows_of(4, 1, 25)), torch.cat(alone))
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    packing = pack_rows((2, 9), x.device, torch.arange(9) < torch.tensor([[9], [5]]))
    kept = attention(x.flatten(0, 1), Rows(torch.tensor([0, 9, 18]), torch.tensor([9, 5]), 9))
    torch.testing.assert_close(packing.pack(kept.view(2, 9, 32)), attention(packing.pack(x), packing.rows))
    assert kept.isfinite().all()


def test_attention_in_windows_is_that_of_rows_as_long_as_the_windows(twins, attention):
    x = torch.randn(30, 32, dtype=torch.float64)
    parts = attention(x, rows_of(8, 8, 4, 8, 2))
    attention.window = 8
    torch.testing.assert_close(attention(x, rows_of(20, 10)), parts)


def test_a_run_with_attention_writes_what_its_encoder_reads(twins, attention, tiny_config, tmp_path):
    tokenizer = train_wordpiece(["a river runs"], 60)
    with twins.twin("attention", {"lengths": Counter(), "longest": Counter()}):
        model = AutoModel.from_config(tiny_config(vocab_size=len(tokenizer))).eval()
        write_folder(model, tokenizer, tmp_path / "model")
    encoder = twins.attention_encoder(str(tmp_path / "model"), 512)
    [vector] = encoder.encode(["a river"], "query")
    with torch.no_grad():
        [expected] = model(**tokenizer("a river", return_tensors="pt")).pooler_output
    torch.testing.assert_close(torch.from_numpy(vector), expected / expected.norm())


def test_attention_is_that_of_rotary_positions(twins, attention):
    """Against sums written out, with the rotation as a product of complex numbers."""
    x, d = torch.randn(6, 32, dtype=torch.float64), twins.HEAD
    query, key, value = attention.in_proj(x).view(6, 3, -1, d).unbind(1)
    speeds = 10_000.0 ** -(torch.arange(d // 2, dtype=torch.float64) / (d // 2))
    turn = torch.polar(torch.ones(6, 1, d // 2, dtype=torch.float64), torch.arange(6)[:, None, None] * speeds)
    query, key = (torch.complex(t[..., : d // 2], t[..., d // 2 :]) * turn for t in (query, key))
    scores = torch.einsum("ihc,jhc->hij", query, key.conj()).real / d**0.5
    mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), value).flatten(1)
    torch.testing.assert_close(attention(x, rows_of(6)), x + attention.out_proj(mixed), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("context", [512, 2048])
def test_both_mixers_have_as_many_parameters(twins, made, context):
    config = M2BertConfig(**SIZES, max_position_embeddings=context)
    sizes = [twins.parameters(made(mixer, config)[0].layers[0].mixer) for mixer in ("long-conv", "attention")]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.03)


@pytest.mark.parametrize("entry", ["opl", "mlm"])
@pytest.mark.parametrize("mixer", ["long-conv", "attention", "none"])
def test_the_entry_points_train_the_mixer_that_was_asked_for(twins, entry, mixer, monkeypatch):
    models, compact = [], twins.compact_record
    monkeypatch.setattr(twins, "compact_record", lambda model, *rest: models.append(model) or compact(model, *rest))
    rates = ["optim.lr=1e-3", "optim.layer_lr=1e-2", "optim.filter_lr=1e-2"]
    record = twins.run(mixer, entry, ["--dry-run", *rates])
    layers = models[0].base_model.layers
    expected = {"long-conv": {"M2BertMixer"}, "attention": {"AttentionMixer"}, "none": set()}
    assert {type(layer.mixer).__name__ for layer in layers} == expected[mixer]
    assert min(record["flops"], record["tokens"], len(record["scores"])) > 0
    if mixer == "attention":
        assert all(layer.mixer.out_proj.weight.abs().max() > 0 for layer in layers)


def test_nothing_stays_replaced_and_another_mixer_than_asked_for_is_refused(twins, made, tiny_config):
    made("attention", tiny_config())
    model = AutoModel.from_config(tiny_config())
    assert twins.initialization.identity_layer_ is identity_layer_
    with pytest.raises(RuntimeError, match="M2BertMixer.* not attention"):
        twins.compact_record(model, "attention", None, {}, {})


def test_operations_are_counted_of_what_is_trained_on(twins, tiny_config):
    """Attention by hand: projections, scores and sums of a row of 3 and of a row of 5, the feed-forward, the pooler."""
    config = tiny_config(pooling="weighted_mean", num_pooling_heads=2, num_hidden_layers=1)
    with twins.twin("attention", seen := {"lengths": Counter(), "longest": Counter()}):
        model, mask = AutoModel.from_config(config), torch.arange(5) < torch.tensor([[3], [5]])
        model(torch.ones(2, 5, dtype=torch.long), mask)
        with torch.no_grad():
            model(torch.ones(2, 5, dtype=torch.long))
    assert seen == {"lengths": {3: 1, 5: 1}, "longest": {5: 1}}
    width, tokens = twins.attention_width(config), 8
    mixer = 2 * tokens * 4 * 32 * width + 2 * 2 * (3 * 3 + 5 * 5) * width
    forward = mixer + 2 * tokens * 3 * 32 * 64 / 4 + 2 * tokens * 2 * 32
    assert twins.training_flops(config, "attention", seen, 0) == 3 * forward
