"""Whole models on Triton's kernels and on plain PyTorch: the same vectors, and the same course of training."""

import pytest
import torch

from modeling_m2bert import M2BertForMaskedLM, M2BertModel

pytest.importorskip("triton")
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def batch(lengths, width):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 120, (len(lengths), width), generator=generator)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return ids.to(DEVICE), mask.to(DEVICE)


@pytest.fixture
def config(tiny_config):
    return tiny_config(hidden_size=16, intermediate_size=32, num_hidden_layers=1, max_position_embeddings=300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_same_vectors(config, randomised, monkeypatch, dtype):
    torch.manual_seed(0)
    model = randomised(M2BertModel(config)).to(DEVICE)
    inputs = batch([40, 1, 7], 40)
    vectors = {}
    for kernels, precision in (("torch", torch.float64), ("torch", dtype), ("triton", dtype)):
        monkeypatch.setenv("M2BERT_KERNELS", kernels)
        with torch.no_grad():
            vectors[kernels, precision] = model.to(precision)(*inputs).pooler_output.double()
    exact = vectors["torch", torch.float64]
    ours, plain = ((vectors[kernels, dtype] - exact).norm(dim=1) for kernels in ("triton", "torch"))
    assert (ours <= 2 * plain + 1e-6 * exact.norm(dim=1)).all(), ours / plain


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if GPU else [torch.float32])
def test_the_same_course_of_training(config, randomised, monkeypatch, dtype):
    """30 steps on a GPU; 3 where the kernels are interpreted."""
    ids, mask = batch([40, 5] if not GPU else [300, 40, 5], 40 if not GPU else 300)
    labels = ids.masked_fill((mask == 0) | (ids % 3 > 0), -100)
    losses = {}
    for kernels in ("torch", "triton"):
        monkeypatch.setenv("M2BERT_KERNELS", kernels)
        torch.manual_seed(0)
        model = randomised(M2BertForMaskedLM(config)).to(DEVICE).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses[kernels] = []
        for _ in range(30 if GPU else 3):
            with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
                loss = model(ids, mask, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[kernels].append(loss.item())
    fallen = losses["torch"][0] - losses["torch"][-1]
    difference = max(abs(a - b) for a, b in zip(losses["torch"], losses["triton"], strict=True))
    assert fallen > 0
    assert difference < (0.05 if dtype == torch.bfloat16 else 0.001) * fallen, losses
