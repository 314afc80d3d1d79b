"""Training toward a teacher's vectors of stretches: texts, windows, the student, the cache and whole runs."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny_runs import ROOT, arguments, computed, finish, here, launch, record, run_bare, same, teacher, weights
from transformers import AutoModel

from m2bert.eval.encoders.parts import TokenStates
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder
from m2bert.train import align_run
from m2bert.train.alignment import (
    AlignBatches,
    AlignedTexts,
    StretchEncoder,
    Windows,
    align,
    joined,
    piece_edges,
    shard_key,
    shards,
    stretch_edges,
)
from m2bert.train.tokenizer import train_wordpiece

WORDS = ["Budget", "committee,", "réport", "minutes", "river-mountain", "forest", "Ünicode"]
TEXTS = [" ".join(WORDS[(i * i + j) % 7] for j in range(length)) for i, length in enumerate((3, 90, 41, 17))]
DATA = SimpleNamespace(stretch_tokens=13, span_tokens=[2, 6], piece_tokens=4)
SPECIAL = 2, 3  # [CLS], [SEP]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(TEXTS, 50)  # a small vocabulary: words have several tokens


class Recorder:
    """A teacher that keeps the texts it is given; its vectors are of length 1."""

    def __init__(self):
        self.texts = {"query": [], "document": []}

    def queries(self, texts):
        self.texts["query"] += texts
        return unit(np.arange(len(texts)) + 1)

    def chunks(self, texts, piece_tokens):
        self.texts["document"] += texts
        counts = np.array([len(text) // (5 * piece_tokens) for text in texts])  # short texts have no piece
        return unit(np.arange(len(texts))), unit(np.arange(counts.sum()) / 9), counts


def unit(angles):
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def aligned(tokenizer):
    """(teacher, AlignedTexts of two shards)"""
    recorder = Recorder()
    parts = [align(part, tokenizer, recorder, DATA, seed=0)["texts"] for part in (TEXTS[:3], TEXTS[3:])]
    return recorder, joined([AlignedTexts(**part) for part in parts])


def edges_of(texts, document):
    return texts.edges[texts.first[document] : texts.first[document + 1]].tolist()


@pytest.mark.parametrize("tokens", [1, 6, 13, 192])
def test_pieces_are_the_teacher_s_late_chunks(tiny_config, randomized, tokens):
    """A model that is its own teacher finds the same pieces."""
    model = randomized(AutoModel.from_config(tiny_config(max_position_embeddings=256)).double().eval())
    ids = torch.randint(4, model.config.vocab_size, (1, tokens + 2))
    count = max((tokens + 2) // 4, 1)
    hidden, mask = model(ids).last_hidden_state, torch.ones_like(ids)
    features = {"attention_mask": mask, "input_ids": ids}
    states = object.__new__(TokenStates)
    pooling = Pooling(model.config.hidden_size, "mean")
    states.transformer, states.others, states.mask = torch.nn.Identity(), [pooling], mask.bool()
    states.features = {**features, "token_embeddings": hidden}
    expected = states.pooled(torch.tensor([count]))["sentence_embedding"]
    edges = piece_edges(tokens, count)
    assert (edges[0], edges[-1], len(edges)) == (0, tokens, count + 1)
    for number in range(1, count - 1):  # the first and the last have a special token more
        own = hidden[0, 1 + edges[number] : 1 + edges[number + 1]].mean(0)
        torch.testing.assert_close(own, expected[number])


@pytest.mark.parametrize("longest", [1, 3, 192])
def test_stretches_cover_a_document_and_are_nearly_equal(longest):
    for tokens in (1, 2, 191, 192, 193, 1000):
        edges = stretch_edges(tokens, longest)
        sizes = np.diff(edges)
        assert (edges[0], edges[-1], len(sizes)) == (0, tokens, -(-tokens // longest))
        assert sizes.max() <= longest
        assert sizes.max() - sizes.min() <= 1


def test_the_teacher_reads_exactly_the_characters_of_stretches_and_of_spans(aligned, tokenizer):
    recorder, texts = aligned
    chunks, queries, number = iter(recorder.texts["document"]), iter(recorder.texts["query"]), 0
    for document, text in enumerate(TEXTS):
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets, words = encoding["offset_mapping"], encoding.word_ids()
        edges = edges_of(texts, document)
        base = edges[0]
        assert texts.tokens[base : edges[-1]].tolist() == encoding["input_ids"]
        for start, end in pairwise([edge - base for edge in edges]):
            first, last = (texts.spans[number] - base).tolist()
            assert next(chunks) == text[offsets[start][0] : offsets[end - 1][1]]
            assert next(queries) == text[offsets[first][0] : offsets[last - 1][1]]
            assert start <= first < last <= end
            assert last - first >= min(DATA.span_tokens[0], end - start)
            assert first == start or words[first] != words[first - 1]
            assert last == end or words[last] != words[last - 1]
            number += 1
    assert number == len(texts.chunks) == len(texts.queries) == len(recorder.texts["query"])
    assert max(WORDS.index(word) for word in WORDS if any(word in each for each in recorder.texts["query"])) > 2


def test_a_text_has_the_same_stretches_and_spans_wherever_it_is(aligned, tokenizer):
    _, texts = aligned
    alone = AlignedTexts(**align(["\x00", TEXTS[2]], tokenizer, Recorder(), DATA, seed=0)["texts"])
    begin, where = edges_of(texts, 2)[0], slice(*(texts.first[2:4] - [2, 3]))
    assert alone.edges.tolist() == [edge - begin for edge in edges_of(texts, 2)]
    assert (alone.spans + begin).tolist() == texts.spans[where].tolist()
    assert len(alone.counts) == 1  # a text without tokens is left out
    other = AlignedTexts(**align([TEXTS[2]], tokenizer, Recorder(), DATA, seed=1)["texts"])
    assert other.spans.tolist() != alone.spans.tolist()


def test_an_epoch_s_windows_cover_every_stretch_once_within_the_limit(aligned):
    _, texts = aligned
    begins = set()
    for max_tokens in (15, 28, 60, 1000):
        windows = Windows(texts, max_tokens, SPECIAL)
        for seed in (None, *range(12)):
            drawn = windows.epoch(None if seed is None else np.random.default_rng(seed))
            read = [windows.text(window) for window in drawn]
            assert sorted(np.concatenate([numbers for _, _, numbers in read])) == list(range(len(texts.chunks)))
            assert max(len(ids) for ids, _, _ in read) <= max_tokens
            for ids, edges, _ in read:
                assert (ids[0], ids[-1], edges[0], edges[-1]) == (*SPECIAL, 1, len(ids) - 1)
            begins.add(tuple(sorted((document, end) for document, start, end in drawn.tolist() if start == 0)))
    assert len(begins) > 5  # first windows end elsewhere


def test_batches_obey_their_budget_and_hold_the_right_targets(aligned):
    recorder, texts = aligned
    windows = Windows(texts, 40, SPECIAL)
    order = windows.epoch(np.random.default_rng(0))
    cut = list(windows.cut(order, 90))
    assert np.concatenate(cut).tolist() == order.tolist()
    for one in cut:
        batch = windows.batch(one)
        assert sum(map(len, batch["ids"])) <= 90
        numbers = np.concatenate([windows.text(window)[2] for window in one])
        chunks, queries, pieces = batch["teacher"]
        assert chunks.tolist() == texts.chunks[numbers].astype(np.float32).tolist()
        assert queries.tolist() == texts.queries[numbers].astype(np.float32).tolist()
        ends = np.cumsum(texts.piece_counts)
        expected = [texts.pieces[ends[number] - texts.piece_counts[number] : ends[number]] for number in numbers]
        assert pieces.tolist() == np.concatenate(expected).astype(np.float32).tolist()
        inside = [
            (row, start, end) for (row, start, end) in batch["pieces"].tolist()
            for stretch in batch["stretches"].tolist() if stretch[0] == row and stretch[1] <= start < end <= stretch[2]
        ]  # fmt: skip
        assert inside == list(map(tuple, batch["pieces"].tolist()))
        for number, (row, start, end), span in zip(numbers, batch["stretches"].tolist(), batch["spans"], strict=True):
            first, last = texts.spans[number]
            assert span[1:-1].tolist() == texts.tokens[first:last].tolist()
            assert f" {' '.join(map(str, span[1:-1]))} " in f" {' '.join(map(str, batch['ids'][row][start:end]))} "
    assert [len(one) for one in windows.cut(order, 1)] == [1] * len(order)


@pytest.mark.parametrize("world", [1, 2])
def test_batches_go_on_where_they_were(aligned, world):
    def make(rank=0):
        return AlignBatches(Windows(aligned[1], 40, SPECIAL), 60, seed=3, rank=rank, world=world)

    first, again = make(), make()
    for _ in range(len(first.batches) + 2):  # into the second epoch
        first.next_batch()
    again.restore(first.state())
    for _ in range(4):
        a, b = first.next_batch(), again.next_batch()
        assert [ids.tolist() for ids in a["ids"]] == [ids.tolist() for ids in b["ids"]]
        assert torch.equal(a["stretches"], b["stretches"])
    shares = [[tuple(window) for one in make(rank).batches for window in one] for rank in range(world)]
    whole = make().windows.epoch(np.random.default_rng([3, 0])).tolist()
    assert sorted(window for share in shares for window in share) == sorted(map(tuple, whole))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_windows_are_refused(aligned):
    with pytest.raises(ValueError, match="windows for 100 processes"):
        AlignBatches(Windows(aligned[1], 40, SPECIAL), 60, seed=3, rank=0, world=100)


@pytest.fixture
def student(tiny_config, randomized):
    torch.manual_seed(0)
    config = tiny_config(num_pooling_heads=2, pooling="weighted_mean", max_position_embeddings=64)
    return StretchEncoder(randomized(AutoModel.from_config(config).double()))


def test_vectors_of_stretches_are_late_chunks_whatever_else_is_in_the_batch(student, aligned):
    windows = Windows(aligned[1], 60, SPECIAL)
    chosen = windows.epoch(None)
    batch = windows.batch(chosen)
    chunks, queries, pieces = student(batch["ids"], batch["stretches"], batch["spans"], batch["pieces"])
    encoder = student.encoder
    for vector, query, (row, start, end), span in zip(chunks, queries, batch["stretches"], batch["spans"], strict=True):
        ids = torch.from_numpy(batch["ids"][row])[None]
        hidden = encoder(input_ids=ids).last_hidden_state[:, start:end]
        expected = encoder.pooler(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool), ids[:, start:end])[0]
        torch.testing.assert_close(vector, expected, rtol=1e-9, atol=1e-10)
        alone = encoder(input_ids=torch.from_numpy(span)[None]).pooler_output[0]
        torch.testing.assert_close(query, alone, rtol=1e-9, atol=1e-10)
    as_stretches, _, _ = student(batch["ids"], batch["pieces"], batch["spans"], batch["stretches"])
    torch.testing.assert_close(pieces, as_stretches, rtol=1e-9, atol=1e-10)


def test_every_parameter_gets_a_gradient(student, aligned):
    """Else several processes would wait for it."""
    windows = Windows(aligned[1], 60, SPECIAL)
    batch = windows.batch(windows.epoch(None))
    vectors = student(batch["ids"], batch["stretches"], batch["spans"], batch["pieces"])
    sum(rows.square().sum() for rows in vectors).backward()
    assert [name for name, parameter in student.named_parameters() if parameter.grad is None] == []


class Pairs(torch.nn.Module):
    """Vectors of a batch as numbers, in place of a student."""

    def forward(self, ids, stretches, spans, pieces):
        return self.chunks[stretches[:, 0]], self.queries[stretches[:, 0]], self.chunks[pieces[:, 0]]


def test_held_out_cosines_are_means_over_stretches(aligned):
    windows, model = Windows(aligned[1], 15, SPECIAL), Pairs()
    batches = [windows.batch(one) for one in windows.cut(windows.epoch(None), 40)]
    model.chunks, model.queries = torch.tensor([[1.0, 0.0]] * 9), torch.tensor([[0.0, 2.0]] * 9)
    found = align_run.evaluate(Accelerator(cpu=True), batches, model)
    texts = aligned[1]
    assert found["chunk_cosine"] == pytest.approx(texts.chunks[:, 0].astype(float).mean(), abs=1e-3)
    assert found["query_cosine"] == pytest.approx(texts.queries[:, 1].astype(float).mean(), abs=1e-3)
    assert found["piece_cosine"] == pytest.approx(texts.pieces[:, 0].astype(float).mean(), abs=1e-3)


def test_equal_texts_count_once_and_any_beginning_is_a_sample():
    texts = [f"text number {i}" for i in range(50)]
    whole = [text for part in shards(iter([*texts, " ", *texts]), None) for text in part]
    assert sorted(whole) == sorted(texts)
    (some,) = shards(iter(texts[::-1]), 100)
    assert whole[: len(some)] == some
    assert 100 <= sum(map(len, some)) < 120


def test_a_shard_is_named_by_what_its_vectors_depend_on():
    base = {"texts": ["a"], "teacher": "t", "tokenizer": "k", "settings": DATA, "seed": 0, "precision": "no"}
    other = (
        SimpleNamespace(**vars(DATA) | change)
        for change in ({"stretch_tokens": 14}, {"span_tokens": [2, 7]}, {"piece_tokens": 5})
    )
    changes = [{"texts": ["b"]}, {"teacher": "u"}, {"tokenizer": "l"}, {"seed": 1}, {"precision": "bf16"},
               *({"settings": each} for each in other)]  # fmt: skip
    keys = [shard_key(**base | change) for change in ({}, *changes)]
    assert len(set(keys)) == len(keys)
    assert keys[0] == shard_key(**base) == "e793c53cba94287eac59b4db"  # vectors that were made stay in use


# --- whole runs ---


@pytest.fixture
def calls(monkeypatch):
    """The numbers of texts that teachers were given."""
    found = []

    def counting(method):
        def count_and_call(self, texts, *more):
            found.append(len(texts))
            return method(self, texts, *more)

        return count_and_call

    for name in ("queries", "chunks"):
        monkeypatch.setattr(align_run.Teacher, name, counting(getattr(align_run.Teacher, name)))
    return found


@pytest.fixture
def given(toy_corpus, tmp_path):
    """Arguments of a run with a cache and a tokenizer of its own."""

    def make(output, *more):
        own = [f"loss.teacher_cache={tmp_path / 'cache'}", f"tokenizer.path={teacher(toy_corpus)}"]
        return arguments("align", toy_corpus, tmp_path / output, *own, *more)

    return make


def test_a_second_run_asks_no_teacher_and_damaged_shards_are_made_again(given, tmp_path, calls, monkeypatch, caplog):
    monkeypatch.setattr("m2bert.train.alignment.SHARD_CHARS", 2000)
    dropout = "model.architecture.hidden_dropout_prob=0.1"
    here("align", given("first", dropout))
    made = len(calls)
    folders = sorted((tmp_path / "cache").iterdir())
    assert made == 2 * len(folders) > 8
    here("align", given("second", dropout))
    assert len(calls) == made
    file = folders[0] / "texts.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    here("align", given("third", dropout))
    assert len(calls) == made + 2
    assert f"{file} is missing or damaged" in caplog.text
    for name in ("second", "third"):
        assert same(weights(tmp_path / "first"), weights(tmp_path / name))
        assert record(tmp_path / "first")["data_fingerprint"] == record(tmp_path / name)["data_fingerprint"]


def test_an_interrupted_teacher_keeps_its_finished_shards(given, tmp_path, calls, monkeypatch):
    monkeypatch.setattr("m2bert.train.alignment.SHARD_CHARS", 2000)
    counting = align_run.Teacher.queries

    def stopping(self, texts):
        if len(calls) == 5:
            raise KeyboardInterrupt
        return counting(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(align_run.Teacher, "queries", stopping)
        with pytest.raises(KeyboardInterrupt):
            here("align", given("out"))
    assert len(list((tmp_path / "cache").iterdir())) == 2
    here("align", given("out"))
    assert len(calls) == 1 + 2 * len(list((tmp_path / "cache").iterdir()))


def test_word_embeddings_start_at_the_teacher_s_vectors_of_tokens_of_another_tokenizer(toy_corpus, given, tmp_path):
    vocabulary = train_wordpiece(["other words of a text", "budget and wheel"] * 9, 120)
    vocabulary.save_pretrained(tmp_path / "tokenizer")
    here("align", given("out", "steps=0", f"tokenizer.path={tmp_path / 'tokenizer'}"))
    rows = weights(tmp_path / "out")["embeddings.word_embeddings.weight"]
    encoder = SentenceTransformerEncoder(teacher(toy_corpus))
    assert any(token.startswith("##") for token in vocabulary.get_vocab())
    for token, number in vocabulary.get_vocab().items():
        expected = encoder.encode([token.removeprefix("##")], "query")[0]
        np.testing.assert_allclose(rows[number].numpy(), expected, atol=1e-6, err_msg=token)


def test_a_student_turns_toward_its_teacher(given, tmp_path):
    here("align", given("out", "steps=40", "optim.lr=1e-2", "data.batch_tokens=600", "evaluation.every=20"))
    history = record(tmp_path / "out")["history"]
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    scores = [row["chunk_cosine"] for row in history if "chunk_cosine" in row]
    assert scores[-1] > 0.5
    assert not any(name.startswith("encoder.") for name in weights(tmp_path / "out"))


@pytest.mark.parametrize("tokenizer", [["tokenizer.path=null"], pytest.param([], marks=pytest.mark.slow)])
def test_a_machine_without_data_libraries_trains_the_same_model_from_prepared_data(given, tmp_path, tokenizer):
    more = [*tokenizer, "model.architecture.hidden_dropout_prob=0.1", "evaluation.every=2"]
    made, usual, bare = (tmp_path / name for name in ("made", "usual", "bare"))
    here("align", given("unused", *more, f"prepare={made}"))
    here("align", given(usual.name, *more))
    done = run_bare("align", [*given(bare.name, *more), "data.sources=[{path: null}]", "loss.teacher=null",
                              "tokenizer.path=null", f"data.prepared={made}"])  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert same(weights(usual), weights(bare))
    assert computed(record(usual)["history"]) == computed(record(bare)["history"])
    for argument in ("data.stretch_tokens=20", "loss.teacher=org/other", "data.sources=[{path: other}]"):
        with pytest.raises(ValueError, match=f"made with {argument.split('=')[0]}=.*prepare it again"):
            here("align", given("no", f"data.prepared={made}", argument))


def test_prepared_stretches_longer_than_a_window_are_refused(given, tmp_path):
    long = ["model.architecture.max_position_embeddings=2000", f"prepare={tmp_path / 'made'}"]
    (tmp_path / "long.txt").write_text("\n\n".join(f"{word} " * 3000 for word in WORDS))
    long.append(f"data.sources=[{{path: {tmp_path / 'long.txt'}}}]")
    here("align", given("unused", *long, "data.stretch_tokens=900", "data.max_tokens=902"))
    with pytest.raises(ValueError, match=r"stretches of \d+ tokens; raise data.max_tokens"):
        here("align", given("out", long[0], long[2], "data.max_tokens=194", "data.stretch_tokens=192",
                            f"data.prepared={tmp_path / 'made'}"))  # fmt: skip


def test_what_does_not_fit_is_found_before_the_teacher_reads_a_text(given, tmp_path, calls):
    for argument, named in (
        ("model.architecture.num_pooling_heads=2", "vectors have width 64, and the teacher's 32"),
        ("model.architecture={hidden_size: 16, num_pooling_heads: 2}", "vectors have width 32.*hidden_size=16"),
        ("loss.teacher=./nowhere", "loss.teacher=./nowhere is no folder"),
    ):
        with pytest.raises(ValueError, match=named):
            here("align", given("out", argument))
    (tmp_path / "blank.txt").write_text("\n\n")
    (tmp_path / "one.txt").write_text("the only text")
    with pytest.raises(ValueError, match="give no text to train on, or none to hold out"):
        here("align", given("out", f"data.sources=[{{path: {tmp_path / 'one.txt'}}}]"))
    with pytest.raises(ValueError, match="blank.txt has no text"):
        here("align", given("out", f"data.sources=[{{path: {tmp_path / 'blank.txt'}}}]"))
    assert not calls
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_keeps_its_embeddings_and_loads_no_teacher(given, tmp_path, monkeypatch):
    here("align", given("first"))
    monkeypatch.delattr(align_run.Teacher, "encoder")
    here("align", [each for each in given("next", "steps=0", f"model.path={tmp_path / 'first'}")
                   if "architecture" not in each])  # fmt: skip
    assert same(weights(tmp_path / "first"), weights(tmp_path / "next"))


@pytest.mark.slow
def test_two_processes_train_and_measure_on_all_held_out_text(given, tmp_path):
    more = ["evaluation.batch_tokens=100", "evaluation.every=1", "optim.lr=0"]
    here("align", given("one", *more))
    finish(launch([ROOT / "train" / "align.py", *given("two", *more)], processes=2))
    one, two = record(tmp_path / "one"), record(tmp_path / "two")
    assert two["processes"] == 2
    assert one["data_fingerprint"] == two["data_fingerprint"]
    for name in ("chunk_cosine", "query_cosine", "piece_cosine"):
        assert two["history"][-1][name] == pytest.approx(one["history"][-1][name], rel=1e-4)
