"""Quantized weights give nearly the vectors of float32, on a CPU, also for padded batches and for 12 layers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from m2bert import M2BertConfig, M2BertModel

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


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return m2bert-small, and a model of 12 layers with random weights."""
    deep = tmp_path_factory.mktemp("deep")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "filter_order": 16, "max_position_embeddings": 256}
    torch.manual_seed(0)
    M2BertModel(M2BertConfig(**sizes, position_embeddings=False)).save_pretrained(deep)
    return {"m2bert-small": MODEL, "deep": deep}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m2bert-small", "deep"])
@pytest.mark.parametrize("form", FORMS)
def test_quantized_vectors(form, name, folders, tmp_path):
    make, least = FORMS[form]
    ids = torch.randint(1000, 30000, (3, 200), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(200) < torch.tensor([[200], [37], [1]])).long()
    quantized = AutoModel.from_pretrained(folders[name], trust_remote_code=True, quantization_config=make()).eval()
    quantized.save_pretrained(tmp_path)
    models = [AutoModel.from_pretrained(path, trust_remote_code=True).eval() for path in (folders[name], tmp_path)]
    with torch.no_grad():
        exact, loaded, found = (model(ids * mask, mask).pooler_output.float() for model in (*models, quantized))
    assert torch.cosine_similarity(found, exact).min() > least
    torch.testing.assert_close(loaded, found)
    mixers = [layer.mixer for layer in quantized.layers]
    assert all(
        type(mixer.out_proj) is torch.nn.Linear and mixer.out_proj.weight.is_floating_point() for mixer in mixers
    )
    assert all(type(mixer.in_proj.weight) is not torch.nn.Parameter for mixer in mixers)


def test_two_bits_are_refused():
    config = M2BertConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, filter_order=8)
    config.quantization_config = QuantoConfig(weights="int2")
    with pytest.raises(ValueError, match="quantization_config has int2 weights, too coarse"):
        M2BertModel(config)
