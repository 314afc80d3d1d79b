"""Gradient caching gives the gradients of the whole, and two processes those of one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModel

from m2bert.train.distributed import gather_rows, split_indices
from m2bert.train.grad_cache import cached_step, encode, encode_shared, full_step, token_chunks
from m2bert.train.losses import cosine_matrix, multiple_negatives_ranking_loss, orthogonal_projection_loss

HERE = Path(__file__).parent


def texts(count, seed, longest=40):
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 120, int(rng.integers(3, longest))).astype(np.int32) for _ in range(count)]


def make_model(tiny_config, dropout=0.0):
    torch.manual_seed(0)
    return AutoModel.from_config(tiny_config(hidden_dropout_prob=dropout)).double().train()


def make_objective(name, queries, documents):
    relevant = torch.eye(queries, documents, dtype=torch.bool)
    compared = torch.ones(queries, documents, dtype=torch.bool)
    loss = {"opl": orthogonal_projection_loss, "mnrl": multiple_negatives_ranking_loss}[name]
    return lambda q, d: loss(cosine_matrix(q, d), relevant, compared)


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_equal(found, expected, tolerance=1e-6):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= tolerance * gradient.abs().max(), name
    assert sum(gradient.abs().max() > 0 for gradient in expected.values()) > 10


def sequential_step(model, rows, queries, objective, chunk_tokens):
    """All chunks with a graph at once: what caching must equal, dropout included."""
    chunks = token_chunks(rows, chunk_tokens)
    encoded = torch.cat([encode(model, [rows[i] for i in chunk], 0, torch.device("cpu")) for chunk in chunks])
    vectors = encoded[np.argsort(np.concatenate(chunks))]
    loss = objective(vectors[:queries], vectors[queries:])
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("name", ["opl", "mnrl"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_cached_gradients_equal_uncached_ones(tiny_config, name, dropout):
    model, accelerator = make_model(tiny_config, dropout), Accelerator(cpu=True)
    queries, documents = texts(3, 0), texts(7, 1)
    objective = make_objective(name, 3, 7)
    assert len(token_chunks(queries + documents, 50)) >= 5
    torch.manual_seed(1)
    expected_loss = sequential_step(model, queries + documents, 3, objective, 50)
    expected, expected_random = gradients(model), torch.rand(3)
    torch.manual_seed(1)
    loss = cached_step(accelerator, model, queries, documents, objective, 0, chunk_tokens=50)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-12)
    assert_equal(gradients(model), expected)
    assert torch.equal(torch.rand(3), expected_random)  # the generators go on as if nothing had been done twice
    if not dropout:
        full_step(accelerator, model, queries, documents, objective, 0)
        assert_equal(gradients(model), expected)


def test_no_forward_with_a_graph_holds_more_than_a_chunk(tiny_config):
    model, accelerator = make_model(tiny_config), Accelerator(cpu=True)
    tokens = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append((torch.is_grad_enabled(), kwargs["input_ids"].numel())),
        with_kwargs=True,
    )
    cached_step(accelerator, model, texts(3, 0), texts(20, 1), make_objective("opl", 3, 20), 0, chunk_tokens=64)
    assert max(count for _, count in tokens) <= 64
    assert sum(graph for graph, _ in tokens) == len(tokens) / 2 > 5


def test_chunks_hold_every_row_once_within_the_budget():
    rows = texts(40, 2)
    chunks = token_chunks(rows, 60)
    assert sorted(np.concatenate(chunks).tolist()) == list(range(40))
    assert all(len(chunk) * max(len(rows[i]) for i in chunk) <= 60 for chunk in chunks)
    assert [len(rows[chunk[0]]) for chunk in token_chunks(rows, 1)] == sorted(map(len, rows), reverse=True)


def test_shared_encoding_keeps_the_order(tiny_config):
    model, accelerator, rows = make_model(tiny_config).eval(), Accelerator(cpu=True), texts(9, 3)
    vectors = encode_shared(accelerator, model, rows, 50, 0)
    for row, vector in zip(rows, vectors, strict=True):
        assert torch.allclose(encode(model, [row], 0, torch.device("cpu"))[0], vector, atol=1e-10)


def tiny_model(**changes):
    from modeling_m2bert import M2BertConfig

    return M2BertConfig(vocab_size=120, hidden_size=32, num_hidden_layers=2, intermediate_size=64,
                        max_position_embeddings=48, filter_order=8, **changes)  # fmt: skip


def two_processes(folder):
    """Runs on each of two processes: steps with every way to cut, gradients of rank 0 to a file."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2, accelerator.num_processes
    inner = make_model(tiny_model)
    model = accelerator.prepare(inner)
    rank = accelerator.process_index
    found = {}
    for case, (queries, documents) in SHARES.items():
        own_queries, own_documents = queries[rank], documents[rank]
        for name in ("opl", "mnrl"):
            objective = make_objective(name, sum(map(len, queries)), sum(map(len, documents)))
            for chunk_tokens in (None, 50):
                arguments = accelerator, model, own_queries, own_documents, objective, 0
                loss = cached_step(*arguments, chunk_tokens) if chunk_tokens else full_step(*arguments)
                found[case, name, chunk_tokens] = loss.item(), gradients(inner)
    found |= dropped_gradients(accelerator, rank)
    model.eval()
    assert list(split_indices(9)) == list(range(rank, 9, 2))
    found["vectors"] = encode_shared(accelerator, model, texts(9, 3), 50, 0)
    found["one"] = encode_shared(accelerator, model, texts(1, 3), 50, 0)
    if accelerator.is_main_process:
        torch.save(found, Path(folder) / "found.pt")
    accelerator.end_training()


def dropped_gradients(accelerator, rank):
    """With dropout, differing between the processes: gradient caching, and all of a process's chunks with a graph."""
    found = {}
    for case, (queries, documents) in SHARES.items():
        objective = make_objective("mnrl", sum(map(len, queries)), sum(map(len, documents)))
        inner = make_model(tiny_model, 0.3)
        model, rows = accelerator.prepare(inner), queries[rank] + documents[rank]
        torch.manual_seed(rank)
        cached_step(accelerator, model, queries[rank], documents[rank], objective, 0, 50)
        cached = gradients(inner)
        torch.manual_seed(rank)
        gathered = lambda q, d: objective(gather_rows(q)[0], gather_rows(d)[0])  # noqa: B023, E731 (used at once)
        sequential_step(inner, rows, len(queries[rank]), gathered, 50)
        own = {name: 2 * gradient for name, gradient in gradients(inner).items()}  # of the sum over both processes
        found[case, "dropout"] = cached, {name: accelerator.reduce(g, "mean") for name, g in own.items()}
    return found


ALL = texts(5, 0), texts(8, 1)
SHARES = {  # uneven, and a process without a document
    "uneven": ((ALL[0][:1], ALL[0][1:]), (ALL[1][:6], ALL[1][6:])),
    "empty": ((ALL[0][:3], ALL[0][3:]), (ALL[1], [])),
}


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tiny_config, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(HERE / "test_grad_cache.py"), str(tmp_path)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "found.pt")
    model, accelerator = make_model(tiny_config), Accelerator(cpu=True)
    for name in ("opl", "mnrl"):
        loss = full_step(accelerator, model, *ALL, make_objective(name, 5, 8), 0).item()
        expected = gradients(model)
        for case in SHARES:
            for chunk_tokens in (None, 50):
                found_loss, found_gradients = found[case, name, chunk_tokens]
                assert found_loss == pytest.approx(loss, rel=1e-10)
                assert_equal(found_gradients, expected)
    for case in SHARES:
        assert_equal(*found[case, "dropout"])
    model.eval()
    for key, rows in (("vectors", texts(9, 3)), ("one", texts(1, 3))):
        assert torch.allclose(found[key], encode_shared(accelerator, model, rows, 50, 0), atol=1e-10)


MEMORY = """
import torch
from accelerate import Accelerator
from transformers import AutoModel

from m2bert.train.grad_cache import cached_step, full_step
from m2bert.train.losses import cosine_matrix, multiple_negatives_ranking_loss
from m2bert.train.loop import peak_memory_bytes
from modeling_m2bert import M2BertConfig

config = M2BertConfig(vocab_size=120, hidden_size=128, num_hidden_layers=2, intermediate_size=512,
                      max_position_embeddings=4096, filter_order=8)
model, accelerator = AutoModel.from_config(config).train(), Accelerator(cpu=True)
query = torch.randint(5, 120, (8,)).numpy()


def step(count, tokens, run, *arguments):
    documents = [torch.randint(5, 120, (tokens,)).numpy() for _ in range(count)]
    relevant, compared = torch.arange(count)[None] == 0, torch.ones(1, count, dtype=torch.bool)
    loss = lambda q, d: multiple_negatives_ranking_loss(cosine_matrix(q, d), relevant, compared)
    run(accelerator, model, [query], documents, loss, 0, *arguments)
    print(peak_memory_bytes())


step(1, 8, cached_step, 4096)
step(1, 4096, cached_step, 4096)
step(16, 4096, cached_step, 4096)
step(16, 4096, full_step)
"""


@pytest.mark.slow
def test_sixteen_texts_fit_where_one_fits():
    """Peaks of one process, each above the one before: little, one long text, 16 cached, 16 at once."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    start, one, cached, full = map(int, done.stdout.split())
    assert cached - start < 2 * (one - start)
    assert full - start > 5 * (one - start)


if __name__ == "__main__":
    two_processes(sys.argv[1])
