"""Quantized weights give nearly the vectors of float32, on a CPU, also for padded batches."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BitsAndBytesConfig, TorchAoConfig

MODEL = Path(__file__).parents[2] / "models" / "m2bert-small"


def torchao(name):
    return TorchAoConfig(getattr(pytest.importorskip("torchao.quantization"), name)())


def bitsandbytes(**options):
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(**options)


FORMS = {
    "int8": (lambda: torchao("Int8WeightOnlyConfig"), 0.999),
    "int8 dynamic": (lambda: torchao("Int8DynamicActivationInt8WeightConfig"), 0.99),
    "8 bit": (lambda: bitsandbytes(load_in_8bit=True), 0.999),
    "nf4": (lambda: bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"), 0.98),
    "fp4": (lambda: bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="fp4"), 0.98),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_quantized_vectors(form, tmp_path):
    make, least = FORMS[form]
    ids = torch.randint(1000, 30000, (3, 200), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(200) < torch.tensor([[200], [37], [1]])).long()
    quantized = AutoModel.from_pretrained(MODEL, trust_remote_code=True, quantization_config=make()).eval()
    quantized.save_pretrained(tmp_path)
    models = [AutoModel.from_pretrained(folder, trust_remote_code=True).eval() for folder in (MODEL, tmp_path)]
    with torch.no_grad():
        exact, loaded, found = (model(ids * mask, mask).pooler_output.float() for model in (*models, quantized))
    assert torch.cosine_similarity(found, exact).min() > least
    torch.testing.assert_close(loaded, found)
