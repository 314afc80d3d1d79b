"""The rotation of `weighted_mean`'s vectors: no cosine changes, and prefixes are fair projections."""

import torch
from torch.nn.functional import cosine_similarity, normalize

from modeling_m2bert import M2BertModel
from modeling_m2bert.m2bert_pooling import random_signs, rotate


def uneven(count: int, heads: int, features: int) -> torch.Tensor:
    """Vectors (count, K * H) whose last heads are far longer than the first, as in a trained model."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, heads, features, dtype=torch.float64, generator=generator)
    return (x * torch.linspace(0.01, 1, heads, dtype=torch.float64)[:, None]).flatten(1)


def test_lengths_and_angles_stay():
    x = uneven(20, 6, 10)
    y = rotate(x, random_signs(6, 10))
    torch.testing.assert_close(y @ y.T, x @ x.T, rtol=0, atol=1e-12)


def test_prefixes_estimate_the_cosines_of_whole_vectors():
    x = uneven(60, 24, 128)
    x = x + 0.5 * x.roll(1, 0)  # neighbors are alike
    y = rotate(x, random_signs(24, 128))

    def error(vectors: torch.Tensor, width: int) -> float:
        cut = vectors[:, :width]
        return float((cosine_similarity(cut[1:], cut[:-1]) - cosine_similarity(x[1:], x[:-1])).abs().mean())

    for width in (128, 256, 768, 1536):
        assert error(y, width) < 1.2 / width**0.5  # that of a random projection is about 0.7 / sqrt(width)
    assert (y[:, :256].norm(dim=1) / y.norm(dim=1)).sub((256 / 3072) ** 0.5).abs().max() < 0.1


def test_a_checkpoint_brings_its_own_signs(tmp_path, tiny_config, randomized):
    torch.manual_seed(0)
    config = tiny_config(pooling="weighted_mean", num_pooling_heads=3, pooling_rotation=True)
    model = randomized(M2BertModel(config)).eval()
    model.pooler.rotation_signs.neg_()[0, 0, 0] *= -1
    ids = torch.arange(1, 21).reshape(2, 10)
    model.save_pretrained(tmp_path)
    loaded = M2BertModel.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(ids).pooler_output, model(ids).pooler_output)
    plain = M2BertModel.from_pretrained(tmp_path, pooling_rotation=False).eval()
    ours, its = (normalize(each(ids).pooler_output) for each in (model, plain))
    assert not torch.allclose(ours, its)
    torch.testing.assert_close(ours @ ours.T, its @ its.T)


def test_autocast_leaves_it_in_float32():
    x = uneven(4, 6, 10).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = rotate(x, random_signs(6, 10))
    assert torch.equal(y, rotate(x, random_signs(6, 10)))
