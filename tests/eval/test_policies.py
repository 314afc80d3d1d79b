import numpy as np
import pytest

from m2bert.eval.encoders.policies import POLICIES, parse_policy
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder

WORDS = ["apple", "pear", "boat", "sail", "stone", "wall", "cloud", "rain", "river", "bridge", "horse", "saddle"]
TEXTS = [" ".join(np.random.default_rng(i).choice(WORDS, size)) for i, size in enumerate([3, 200, 10, 11, 57])] + [""]
ALL = ["truncate", "truncate:tokens=5", "chunk-average", "best-chunk:tokens=8,stride=3", "late-chunk:vectors=3"]


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return SentenceTransformerEncoder(tiny_model)


class Vectors:
    """An encoder that only encodes."""

    name, fingerprint, max_tokens, dimensions = "plain", "00", 12, 2

    def encode(self, texts, task, max_tokens=None):
        return np.tile(np.array([[1, 0]], dtype=np.float32), (len(texts), 1))


def test_truncate_reads_the_beginning_and_says_how_much_it_saw(encoder):
    vectors = parse_policy("truncate").embed(encoder, TEXTS)
    np.testing.assert_array_equal(vectors.rows, encoder.encode(TEXTS, "document"))
    assert vectors.counts.tolist() == [1] * 6
    assert vectors.seen.tolist() == pytest.approx([1, 10 / 200, 1, 10 / 11, 10 / 57, 1])
    shorter = parse_policy("truncate:tokens=5").embed(encoder, TEXTS)
    np.testing.assert_allclose(shorter.rows, encoder.encode([" ".join(t.split()[:3]) for t in TEXTS], "document"))
    assert shorter.seen.tolist() == pytest.approx([1, 3 / 200, 3 / 10, 3 / 11, 3 / 57, 1])


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
    chunks = parse_policy("best-chunk:tokens=7").embed(encoder, TEXTS)
    average = parse_policy("chunk-average:tokens=7").embed(encoder, TEXTS)
    assert average.counts.tolist() == [1] * 6
    np.testing.assert_allclose(np.linalg.norm(average.rows, axis=1), 1, atol=1e-6)
    firsts = np.cumsum(chunks.counts) - chunks.counts
    for i, (first, count) in enumerate(zip(firsts, chunks.counts, strict=True)):
        mean = chunks.rows[first : first + count].mean(axis=0)
        np.testing.assert_allclose(average.rows[i], mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize("spec", ALL)
def test_vectors_depend_on_neither_batch_mates_nor_order(encoder, spec):
    policy = parse_policy(spec)
    together = policy.embed(encoder, TEXTS)
    alone = [policy.embed(encoder, [text]) for text in TEXTS]
    np.testing.assert_allclose(together.rows, np.concatenate([vectors.rows for vectors in alone]), atol=1e-5)
    assert together.counts.tolist() == [int(vectors.counts[0]) for vectors in alone]
    assert together.seen.tolist() == [float(vectors.seen[0]) for vectors in alone]
    assert policy.several or together.counts.max() == 1


@pytest.mark.parametrize("spec", ALL)
def test_no_documents_give_no_vectors(encoder, spec):
    vectors = parse_policy(spec).embed(encoder, [])
    assert [part.shape for part in vectors] == [(0, 16), (0,), (0,)]


def test_specifications_are_canonical():
    for text, spec in [
        ("truncate", "truncate"),
        (" best-chunk:stride=4, tokens=08 ", "best-chunk:tokens=8,stride=4"),
        ("late-chunk:vectors=16", "late-chunk"),
        ("late-chunk:vectors=4", "late-chunk:vectors=4"),
        ("chunk-average:tokens=256", "chunk-average:tokens=256"),
    ]:
        assert parse_policy(text).spec == spec
        assert parse_policy(spec) == parse_policy(text)
    assert {name for name in POLICIES if parse_policy(name).several} == {"best-chunk", "late-chunk"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best-chunks", "'best-chunks' is unknown; .*did you mean 'best-chunk'"),
        ("", "'' is unknown; choose from: truncate, chunk-average, best-chunk, late-chunk"),
        ("truncate:stride=3", "cannot set 'stride'; truncate takes, once each: tokens"),
        ("truncate:tokens=3,tokens=4", "cannot set 'tokens'"),
        ("truncate:tokens", "tokens= must be a whole number"),
        ("truncate:tokens=0", "tokens=0 must be"),
        ("best-chunk:stride=-1", "stride=-1 must be"),
        ("late-chunk:vectors=1.5", "vectors=1.5 must be"),
    ],
)
def test_a_specification_that_means_nothing_is_refused(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_policy(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("truncate:tokens=13", "tokens=13 is more than the 12 that encoder"),
        ("best-chunk:tokens=13", "tokens=13 is more than the 12"),
        ("chunk-average:tokens=2", "tokens=2 leaves no room for text, since .* take 2"),
        ("best-chunk:stride=11", "stride=11 would skip text, since a chunk of 12 tokens holds 10"),
        ("chunk-average:tokens=5,stride=4", "stride=4 would skip text"),
    ],
)
def test_what_a_model_cannot_do_is_refused(encoder, spec, message):
    with pytest.raises(ValueError, match=message):
        parse_policy(spec).embed(encoder, TEXTS)


def test_an_encoder_that_shows_no_tokens_can_only_truncate():
    assert np.isnan(parse_policy("truncate").embed(Vectors(), ["a"]).seen).all()
    for spec in ("chunk-average", "best-chunk", "late-chunk"):
        with pytest.raises(ValueError, match=f"policy '{spec}' .*encoder 'plain'.*; use truncate"):
            parse_policy(spec).embed(Vectors(), ["a"])


def test_chunks_of_a_model_without_a_limit_need_a_length(encoder, monkeypatch):
    monkeypatch.setattr(encoder, "max_tokens", None)
    with pytest.raises(ValueError, match="say how long chunks are, as in best-chunk:tokens=256"):
        parse_policy("best-chunk").embed(encoder, TEXTS)
    assert parse_policy("best-chunk:tokens=12").embed(encoder, TEXTS).counts.tolist() == [1, 20, 1, 2, 6, 1]
