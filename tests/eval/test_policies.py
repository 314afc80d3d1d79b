"""Policies: what becomes of long documents, how they are cut, and how often they are tokenized."""

import random
import re

import numpy as np
import pytest
import torch
from fake_encoders import Opaque
from torch import nn

from m2bert.eval.encoders import sentence_transformer
from m2bert.eval.encoders.cache import VectorStore
from m2bert.eval.encoders.policies import POLICIES, chunk_texts, cut, parse_policy
from m2bert.eval.encoders.protocol import unit_rows
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder

WORDS = ["apple", "pear", "boat", "sail", "stone", "wall", "cloud", "rain", "river", "bridge", "horse", "saddle"]
TEXTS = [" ".join(np.random.default_rng(i).choice(WORDS, size)) for i, size in enumerate([3, 200, 10, 11, 57])] + [""]
ALL = [
    "truncate",
    "truncate:tokens=5",
    "chunk-average",
    "best-chunk:tokens=8,stride=3",
    "late-chunk:vectors=3",
    "late-chunk:vectors=3,document=1",
]


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return SentenceTransformerEncoder(tiny_model)


def test_truncate_reads_the_beginning_and_says_how_much_it_saw(encoder):
    vectors = parse_policy("truncate").embed(encoder, TEXTS)
    np.testing.assert_array_equal(vectors.rows, encoder.encode(TEXTS, "document"))
    assert vectors.counts.tolist() == [1] * 6
    assert vectors.seen.tolist() == pytest.approx([1, 10 / 200, 1, 10 / 11, 10 / 57, 1])
    shorter = parse_policy("truncate:tokens=5").embed(encoder, TEXTS)
    np.testing.assert_allclose(shorter.rows, encoder.encode([" ".join(t.split()[:3]) for t in TEXTS], "document"))
    assert shorter.seen.tolist() == pytest.approx([1, 3 / 200, 3 / 10, 3 / 11, 3 / 57, 1])
    assert np.isnan(parse_policy("truncate").embed(Opaque(), ["a"]).seen).all()


def test_best_chunk_has_the_vector_of_every_chunk(encoder):
    vectors = parse_policy("best-chunk").embed(encoder, TEXTS)
    assert vectors.counts.tolist() == [1, 20, 1, 2, 6, 1]
    words = TEXTS[1].split()
    chunks = [" ".join(words[start : start + 10]) for start in range(0, 200, 10)]
    np.testing.assert_allclose(vectors.rows[1:21], encoder.encode(chunks, "document"), atol=1e-6)
    assert vectors.seen.tolist() == [1] * 6
    overlapping = parse_policy("best-chunk:stride=5").embed(encoder, TEXTS)
    np.testing.assert_allclose(overlapping.rows[1:40:2], vectors.rows[1:21], atol=1e-6)


def test_chunk_average_is_the_mean_direction_of_the_chunks(encoder):
    rows, counts, _ = parse_policy("best-chunk:tokens=7").embed(encoder, TEXTS)
    average = parse_policy("chunk-average:tokens=7").embed(encoder, TEXTS)
    assert average.counts.tolist() == [1] * 6
    means = [chunks.mean(axis=0) for chunks in np.split(rows, np.cumsum(counts)[:-1])]
    np.testing.assert_allclose(average.rows, unit_rows(np.stack(means)), atol=1e-6)


@pytest.mark.parametrize("spec", ALL)
def test_vectors_depend_on_neither_batch_mates_nor_order(encoder, spec):
    policy = parse_policy(spec)
    together = policy.embed(encoder, TEXTS)
    alone = [policy.embed(encoder, [text]) for text in TEXTS]
    np.testing.assert_allclose(together.rows, np.concatenate([vectors.rows for vectors in alone]), atol=1e-5)
    assert together.counts.tolist() == [int(vectors.counts[0]) for vectors in alone]
    assert together.seen.tolist() == [float(vectors.seen[0]) for vectors in alone]
    assert policy.several or together.counts.max() == 1
    assert [part.shape for part in policy.embed(encoder, [])] == [(0, 16), (0,), (0,)]


@pytest.mark.parametrize("spec", ALL)
def test_a_document_is_tokenized_once(encoder, spec, monkeypatch):
    """A chunk is a text as well, and tokenized once: at its ends it may have other tokens than inside its document."""
    seen = []

    class Counting:
        def encode_batch(self, texts, **options):
            seen.extend(texts)
            return backend.encode_batch(texts, **options)

        def __getattr__(self, name):
            return getattr(backend, name)

    backend = encoder._backend
    monkeypatch.setitem(encoder.__dict__, "_backend", Counting())
    monkeypatch.setattr(encoder.model, "preprocess", lambda *_, **__: pytest.fail("the model tokenizes again"))
    policy = parse_policy(spec)
    policy.embed(encoder, TEXTS)
    tokenized = sorted(text for text in seen if text)
    expected = [text for text in TEXTS if text]
    if hasattr(policy, "stride"):
        chunks = sum(chunk_texts(encoder, TEXTS, policy.input_tokens(encoder), policy.stride), [])
        expected += [chunk for chunk in chunks if chunk and chunk not in TEXTS]
    assert tokenized == sorted(expected)


def test_specifications_are_canonical():
    for text, spec in [
        ("truncate", "truncate"),
        (" best-chunk:stride=4, tokens=08 ", "best-chunk:tokens=8,stride=4"),
        ("late-chunk:vectors=16", "late-chunk"),
        ("late-chunk:vectors=4", "late-chunk:vectors=4"),
        ("late-chunk:document=0", "late-chunk"),
        ("late-chunk:document=1, vectors=4", "late-chunk:vectors=4,document=1"),
        ("chunk-average:tokens=256", "chunk-average:tokens=256"),
    ]:
        assert parse_policy(text).spec == spec
        assert parse_policy(spec) == parse_policy(text)
    assert {name for name in POLICIES if parse_policy(name).several} == {"best-chunk", "late-chunk"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best-chunks", "'best-chunks' is unknown; .*did you mean 'best-chunk'"),
        ("", "'' is unknown"),
        ("truncate:stride=3", "policy 'truncate:stride=3': unknown key 'stride'"),
        ("truncate:tokens", "tokens is ''; .*integer"),
        ("truncate:tokens=0", "tokens is '0'; .*greater"),
        ("late-chunk:vectors=1.5", "vectors is '1.5'; .*integer"),
        ("late-chunk:document=2", "document is '2'; .*less"),
        ("best-chunk:tokens=13", "policy 'best-chunk:tokens=13' of encoder '.*tiny': tokens=13 must be from 3 to 12"),
        ("chunk-average:tokens=2", "tokens=2 must be from 3"),
        ("best-chunk:stride=11", "stride=11 would skip text"),
        ("chunk-average:tokens=5,stride=4", "stride=4 would skip text"),
    ],
)
def test_what_means_nothing_or_a_model_cannot_do_is_refused(encoder, text, message):
    with pytest.raises(ValueError, match=message):
        parse_policy(text).embed(encoder, TEXTS)


@pytest.mark.parametrize("spec", ["chunk-average", "best-chunk", "late-chunk"])
def test_an_encoder_that_shows_no_tokens_can_only_truncate(spec):
    with pytest.raises(ValueError, match=f"policy '{spec}' of encoder 'opaque': .*; use truncate"):
        parse_policy(spec).embed(Opaque(), ["a"])


def test_chunks_of_a_model_without_a_limit_need_a_length(encoder, monkeypatch):
    monkeypatch.setattr(encoder, "max_tokens", None)
    with pytest.raises(ValueError, match="as in best-chunk:tokens=256"):
        parse_policy("best-chunk").embed(encoder, TEXTS)
    assert parse_policy("best-chunk:tokens=12").embed(encoder, TEXTS).counts.tolist() == [1, 20, 1, 2, 6, 1]


class Letters:
    """Tokens are single letters; a text that begins with a small one, as if inside a word, costs a surcharge."""

    name, max_tokens = "letters", 12

    def __init__(self, surcharge=0):
        self.surcharge = surcharge

    def token_spans(self, texts):
        return [np.array([match.span() for match in re.finditer(r"\S", text)]).reshape(-1, 2) for text in texts]

    def count_tokens(self, texts, task):
        extra = [self.surcharge if text[:1].islower() else 0 for text in texts]
        return np.array([2 + len(re.findall(r"\S", text)) + more for text, more in zip(texts, extra, strict=True)])


class Thirds(Letters):
    """A character of several tokens, as Hangul has in a vocabulary without it."""

    def token_spans(self, texts):
        return [np.repeat(spans, 3, axis=0) for spans in super().token_spans(texts)]

    def count_tokens(self, texts, task):
        return np.array([2 + 3 * len(text.replace(" ", "")) for text in texts])


@pytest.mark.parametrize(
    ("text", "tokens", "stride", "chunks"),
    [
        ("a b c d e f g h i j", 4, None, ["a b c d", "e f g h", "i j"]),
        ("abcdef ghi jk", 4, None, ["abcd", "ef gh", "i jk"]),
        ("a b c d e f g h", 4, 2, ["a b c d", "c d e f", "e f g h"]),
        ("a b c d e f g h", 4, 3, ["a b c d", "d e f g", "g h"]),
        ("  \n ", 4, None, [""]),
    ],
)
def test_texts_are_cut_after_so_many_tokens(text, tokens, stride, chunks):
    assert cut(text, Letters().token_spans([text])[0], tokens, stride) == chunks


def test_a_chunk_that_grows_becomes_two_that_overlap_unless_it_cannot_get_shorter():
    assert chunk_texts(Letters(surcharge=2), ["Abcdefgh ijklmnop"], 10) == [["Abcdefgh", "ijklmn", "klmnop"]]
    assert chunk_texts(Thirds(), ["a b c"], 6) == [["a b", "b c", "c"]]


@pytest.mark.parametrize("seed", range(20))
def test_every_token_is_in_some_chunk_and_no_chunk_is_too_long(seed):
    generator = random.Random(seed)
    letters = [chr(code) for code in range(0x100, 0x600) if chr(code).isalpha()]  # upper and lower case, each once
    generator.shuffle(letters)
    words = ["".join(letters.pop() for _ in range(generator.randint(1, 25))) for _ in range(generator.randint(1, 30))]
    encoder, tokens = Letters(surcharge=2), generator.randint(6, 20)
    stride = generator.choice([None, 1, tokens - 2, generator.randint(1, tokens - 2)])
    for text in (" ".join(words), words[0], "  ".join(reversed(words))):
        (chunks,) = chunk_texts(encoder, [text], tokens, stride)
        assert encoder.count_tokens(chunks, "document").max() <= tokens
        assert all(chunk in text for chunk in chunks)
        assert set("".join(chunks)) >= set("".join(text.split()))


class TestLateChunking:
    TEXTS = ["apple pear", "stone wall cloud rain river bridge", "", "horse saddle boat sail " * 3]

    @pytest.fixture
    def pools_outside(self, tiny_model, monkeypatch):
        monkeypatch.setattr(sentence_transformer, "FEWEST_TOKENS", 2)  # the model takes 12
        return SentenceTransformerEncoder(tiny_model)

    @pytest.fixture
    def pools_itself(self, pools_outside):
        """As a model whose transformers module gives the text's vector: by a mask-weighted mean of its own."""

        class Pooler(nn.Module):
            pooling = "mean"

            def forward(self, hidden_states, mask, input_ids):
                weights = mask * (1 + input_ids)  # depends on ids, so that they are needed
                return torch.einsum("bl,blh->bh", weights / weights.sum(1, keepdim=True), hidden_states)

        class Model(nn.Module):
            def __init__(self, bert):
                super().__init__()
                self.bert, self.pooler, self.config = bert, Pooler(), bert.config

            def forward(self, input_ids, attention_mask=None, token_type_ids=None, **_):
                outputs = self.bert(input_ids, attention_mask, token_type_ids)
                outputs.pooler_output = self.pooler(outputs.last_hidden_state, attention_mask.bool(), input_ids)
                return outputs

        transformer = pools_outside.model[0]
        transformer.model = Model(transformer.model)
        transformer.modality_config["text"]["method_output_name"] = "pooler_output"
        transformer.module_output_name = "sentence_embedding"
        del pools_outside.model[1]
        return pools_outside

    @pytest.mark.parametrize("kind", ["pools_outside", "pools_itself"])
    def test_one_part_is_the_truncated_document_and_parts_do_not_depend_on_batch_mates(self, kind, request):
        encoder = request.getfixturevalue(kind)
        one = parse_policy("late-chunk:vectors=1").embed(encoder, self.TEXTS)
        truncated = parse_policy("truncate").embed(encoder, self.TEXTS)
        np.testing.assert_allclose(one.rows, truncated.rows, atol=1e-6)
        assert one.counts.tolist() == [1] * 4
        assert one.seen.tolist() == truncated.seen.tolist() == pytest.approx([1, 1, 1, 10 / 12])
        ((together, counts),) = encoder.encode_parts(self.TEXTS, [4])
        alone = [encoder.encode_parts([text], [4])[0] for text in self.TEXTS]
        np.testing.assert_allclose(together, np.concatenate([rows for rows, _ in alone]), atol=1e-5)
        assert counts.tolist() == [int(its[0]) for _, its in alone]
        assert np.abs(together[0] - together[1]).max() > 1e-3

    @pytest.mark.parametrize("kind", ["pools_outside", "pools_itself"])
    def test_the_vector_of_the_whole_document_is_added_to_its_parts(self, kind, request):
        encoder = request.getfixturevalue(kind)
        rows, counts, _ = parse_policy("late-chunk:vectors=3,document=1").embed(encoder, self.TEXTS)
        parts = parse_policy("late-chunk:vectors=3").embed(encoder, self.TEXTS)
        assert counts.tolist() == parts.counts.tolist() == [2, 3, 1, 3]
        whole = np.repeat(parse_policy("truncate").embed(encoder, self.TEXTS).rows, counts, axis=0)
        expected = parts.rows + whole
        np.testing.assert_allclose(rows, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)

    @pytest.mark.parametrize("kept", [True, False])
    @pytest.mark.parametrize("kind", ["pools_outside", "pools_itself"])
    def test_policies_of_one_pass_share_it(self, kind, kept, request, tmp_path, monkeypatch):
        encoder = request.getfixturevalue(kind)
        policies = [parse_policy(spec) for spec in ("late-chunk", "best-chunk", "truncate", "late-chunk:document=1")]
        expected = [policy.embed(encoder, self.TEXTS) for policy in policies]
        store = VectorStore(tmp_path if kept else None)
        shared = [store.embed(encoder, policies[0], self.TEXTS, policies)]
        store.embed(encoder, policies[1], self.TEXTS, policies)
        monkeypatch.setattr(encoder, "_batches", lambda *_: pytest.fail("the model reads again"))
        shared += [store.embed(encoder, policy, self.TEXTS, policies) for policy in policies[2:]]
        for timed, vectors in zip(shared, [expected[0], *expected[2:]], strict=True):
            np.testing.assert_allclose(timed.vectors.rows, vectors.rows, atol=1e-6)
            assert timed.vectors.counts.tolist() == vectors.counts.tolist()
            np.testing.assert_array_equal(timed.vectors.seen, vectors.seen)

    def test_a_model_that_cannot_be_divided_still_truncates(self, pools_outside):
        pools_outside.model[1].pooling_mode = "cls"
        late, truncate = parse_policy("late-chunk"), parse_policy("truncate")
        assert "pooling cls is no mean" in late.problem(pools_outside)
        timed = VectorStore(None).embed(pools_outside, truncate, self.TEXTS, [late, truncate])
        np.testing.assert_array_equal(timed.vectors.rows, truncate.embed(pools_outside, self.TEXTS).rows)

    def test_parts_are_means_over_equal_stretches_of_one_pass(self, pools_outside):
        """The special tokens belong to the first and the last part."""
        ((rows, counts),) = pools_outside.encode_parts(self.TEXTS, [3])
        assert counts.tolist() == [2, 3, 1, 3]  # 4, 8, 2 and 12 tokens: at least two a part
        states = pools_outside.model.encode(self.TEXTS, output_value="token_embeddings")
        stretches = [(0, 0, 2), (0, 2, 4), (1, 0, 3), (1, 3, 6), (1, 6, 8), (2, 0, 2), (3, 0, 4), (3, 4, 8), (3, 8, 12)]
        means = [states[text][first:last].mean(0).numpy() for text, first, last in stretches]
        np.testing.assert_allclose(rows, unit_rows(np.stack(means)), atol=1e-6)

    def test_a_prompt_that_is_not_pooled_stays_out_of_every_part(self, pools_outside, monkeypatch):
        model = pools_outside.model
        monkeypatch.setitem(model.prompts, "document", "rain ")
        for include in (True, False):
            model.set_pooling_include_prompt(include)
            ((one, _),) = pools_outside.encode_parts(self.TEXTS, [1])
            np.testing.assert_allclose(one, pools_outside.encode(self.TEXTS, "document"), atol=1e-6)
            np.testing.assert_allclose(one, unit_rows(model.encode_document(self.TEXTS)), atol=1e-6)
        ((rows, counts),) = pools_outside.encode_parts(["wall cloud"], [2])
        state = model.encode_document(["wall cloud"], output_value="token_embeddings")[0]  # [CLS] rain wall ...
        assert counts.tolist() == [2]
        np.testing.assert_allclose(rows, unit_rows(np.stack([state[2:4].mean(0), state[4:].mean(0)])), atol=1e-6)

    def test_pooling_that_is_no_mean_is_refused_by_name(self, pools_outside):
        pools_outside.model[1].pooling_mode = "weightedmean"
        assert pools_outside.encode_parts(self.TEXTS, [2])[0][1].tolist() == [2, 2, 1, 2]
        for mode in ("cls", "lasttoken"):
            pools_outside.model[1].pooling_mode = mode
            with pytest.raises(ValueError, match=f"encoder '.*tiny' .*pooling {mode} is no mean"):
                pools_outside.encode_parts(self.TEXTS, [2])

    def test_models_that_pool_in_an_unknown_way_are_refused(self, pools_itself):
        transformer = pools_itself.model[0]
        transformer.model.pooler.pooling = "cls_tanh"
        with pytest.raises(ValueError, match="pooling cls_tanh is no mean"):
            pools_itself.encode_parts(self.TEXTS, [2])
        transformer.model.pooler = transformer.model.bert.pooler  # of the hidden states alone
        with pytest.raises(ValueError, match="unknown or takes no mask of tokens"):
            pools_itself.encode_parts(self.TEXTS, [2])
