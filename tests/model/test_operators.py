"""The operations as torch.library operators: schemas, fakes, autograd, torch.compile, autocast, packing; and whole
models on Triton's kernels and on plain PyTorch."""

import importlib

import pytest
import torch

from modeling_m2bert import M2BertForMaskedLM, M2BertModel, m2bert_layers, m2bert_ops_registry, m2bert_packing
from modeling_m2bert.m2bert_ops import add_layer_norm, block_diagonal_glu
from modeling_m2bert.m2bert_ops_registry import operators

OFFSETS, LENGTHS = torch.tensor([0, 5, 12], dtype=torch.int32), torch.tensor([5, 6], dtype=torch.int32)
ROWS = (OFFSETS, LENGTHS, 7, "torch")
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def leaves(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


CALLS = {
    "long_conv": lambda: (*leaves((4, 12), (4, 12), (4, 12), (2, 4, 9), (2, 4, 9), (4,), (4,)), *ROWS),
    "short_conv_gate": lambda: (*leaves((12, 12), (12,), (12, 3), (12,)), *ROWS),
    "block_diagonal_glu": lambda: (*leaves((9, 8), (2, 16, 4), (2, 4, 8), (8,)), 0.0, None, "torch"),
    "add_layer_norm": lambda: (*leaves((9, 8), (9, 8), (8,), (8,)), 1e-12, "torch"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore")
def test_operators_keep_their_promises(name):
    """Schema (nothing mutated or aliased), fake kernel, autograd registration, traced as they run; backward too."""
    arguments = CALLS[name]()
    torch.library.opcheck(getattr(operators, name).default, arguments)
    arguments = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    y = getattr(operators, name)(*arguments)
    outputs = y if isinstance(y, tuple) else (y,)
    torch.library.opcheck(getattr(operators, f"{name}_backward").default, (*outputs, *arguments))


@pytest.mark.filterwarnings("ignore")
def test_the_cached_operator_keeps_its_promises(tiny_config):
    source = M2BertModel(tiny_config()).layers[0].mixer.filter
    parameters = [x.detach() for x in source.parameters_for(9)]
    x, skip = torch.randn(32, 12), source.skip.detach()
    arguments = (x, x, x, parameters, parameters, skip, skip, *ROWS[:3], [0, 1], "torch")
    torch.library.opcheck(operators.cached_long_conv.default, arguments)


def test_what_has_no_derivative_says_so():
    x, y, weight, bias = leaves((3, 4), (3, 4), (4,), (4,))
    (gradient,) = torch.autograd.grad(add_layer_norm(x, y, weight, bias, 1e-5).pow(3).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        gradient.square().sum().backward()


def test_the_code_can_be_imported_again_under_its_name():
    first = m2bert_ops_registry.NAMESPACE
    again = importlib.reload(m2bert_ops_registry)
    assert first != again.NAMESPACE
    for each in (operators, again.operators):
        assert each.add_layer_norm(*CALLS["add_layer_norm"]()).shape == (8, 9)


def test_float64_stays_float64_under_autocast(model, batch):
    exact = model.double().model(*batch[:2]).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        same = model.model(*batch[:2]).last_hidden_state
    assert torch.equal(same, exact)


def test_dropout_is_the_same_in_backward_whatever_was_chosen_meanwhile(monkeypatch):
    pytest.importorskip("triton")
    gradients = []
    for in_backward in ("torch", "triton"):
        torch.manual_seed(0)
        x, *weights = leaves((9, 8), (2, 16, 4), (2, 4, 8), (8,))
        monkeypatch.setenv("M2BERT_KERNELS", "torch")
        y = block_diagonal_glu(x, *weights, dropout=0.5)
        monkeypatch.setenv("M2BERT_KERNELS", in_backward)
        gradients.append(torch.autograd.grad(y.sum(), x)[0])
    assert torch.equal(*gradients)


def loss_and_gradients(model, ids, mask, labels, forward=None):
    model.zero_grad()
    loss = (model if forward is None else forward)(ids, mask, labels=labels).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(actual, expected, tolerance):
    assert torch.allclose(actual[0], expected[0], atol=tolerance)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (actual[1][name] - gradient).abs().max() <= tolerance * max(1, gradient.abs().max()), name


@pytest.fixture
def batch():
    torch.manual_seed(1)
    ids = torch.randint(1, 120, (3, 24))
    mask = (torch.arange(24) < torch.tensor([24, 7, 1])[:, None]).long()
    return ids, mask, torch.where(torch.rand(3, 24) < 0.3, ids, -100).masked_fill(mask == 0, -100)


@pytest.fixture
def model(tiny_config, randomized):
    torch.manual_seed(0)
    return randomized(M2BertForMaskedLM(tiny_config(mixer_layer_norm=True)))


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_training_step_is_one_graph_and_gives_the_same_gradients(model, batch):
    expected = loss_and_gradients(model, *batch)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(loss_and_gradients(model, *batch, forward=compiled), expected, 1e-5)


def test_autocast_changes_precision_and_nothing_else(model, batch):
    expected = loss_and_gradients(model, *batch)
    with torch.autocast("cpu", torch.bfloat16):
        states = model.model(*batch[:2]).last_hidden_state
        actual = loss_and_gradients(model, *batch)
    assert states.dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in actual[1].values())
    assert abs(actual[0] - expected[0]) < 0.05
    for name, gradient in expected[1].items():
        cosine = torch.cosine_similarity(actual[1][name].flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.97 or gradient.norm() < 1e-3, (name, cosine)


def test_padding_that_stays_among_the_tokens_changes_nothing(model, batch, monkeypatch):
    """What torch.compile and CUDA graphs run, where shapes may not depend on the mask."""
    expected = loss_and_gradients(model, *batch)
    monkeypatch.setattr(m2bert_packing, "values_are_hidden", lambda x: True)
    assert_close(loss_and_gradients(model, *batch), expected, 1e-6)
    hidden = model.model(*batch[:2]).last_hidden_state
    assert hidden[batch[1] == 0].abs().max() == 0


def test_nothing_is_computed_for_padding(tiny_config, monkeypatch):
    tokens, glu = [], m2bert_layers.block_diagonal_glu
    monkeypatch.setattr(m2bert_layers, "block_diagonal_glu", lambda x, *rest: tokens.append(len(x)) or glu(x, *rest))
    mask = (torch.arange(40) < torch.tensor([40, 3])[:, None]).long()
    M2BertModel(tiny_config()).eval()(torch.ones(2, 40, dtype=torch.long), mask)
    assert tokens == [43, 43]


@pytest.mark.parametrize("shape", [(1, 24), (3, 24)])
def test_hidden_states_come_out_contiguous(model, batch, shape):
    """Whatever layout the layers work in: users call .view on them."""
    outputs = model.model(batch[0][: shape[0]], batch[1][: shape[0]], output_hidden_states=True)
    assert all(states.shape[:2] == shape and states.is_contiguous() for states in outputs.hidden_states)


def random_batch(lengths, width):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 120, (len(lengths), width), generator=generator)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return ids.to(DEVICE), mask.to(DEVICE)


@pytest.fixture
def config(tiny_config):
    return tiny_config(hidden_size=16, intermediate_size=32, num_hidden_layers=1, max_position_embeddings=300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_both_kernels_give_the_same_vectors(config, randomized, monkeypatch, dtype):
    pytest.importorskip("triton")
    torch.manual_seed(0)
    model = randomized(M2BertModel(config)).to(DEVICE)
    inputs = random_batch([40, 1, 7], 40)
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
def test_both_kernels_give_the_same_course_of_training(config, randomized, monkeypatch, dtype):
    """30 steps on a GPU; 3 where the kernels are interpreted."""
    pytest.importorskip("triton")
    ids, mask = random_batch([40, 5] if not GPU else [300, 40, 5], 40 if not GPU else 300)
    labels = ids.masked_fill((mask == 0) | (ids % 3 > 0), -100)
    losses = {}
    for kernels in ("torch", "triton"):
        monkeypatch.setenv("M2BERT_KERNELS", kernels)
        torch.manual_seed(0)
        model = randomized(M2BertForMaskedLM(config)).to(DEVICE).train()
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
