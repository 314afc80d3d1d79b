"""What users of transformers do with any model, tried on each of our classes: cast, shard, tie, resize, copy, train.

`test_dialect.py` has the dialect itself: construction, loading, inputs that are refused.
"""

import copy
import inspect
import pickle

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import AutoModel, PreTrainedModel, Trainer, TrainingArguments

from modeling_m2bert import (
    M2BertForMaskedLM,
    M2BertForMultipleChoice,
    M2BertForQuestionAnswering,
    M2BertForSequenceClassification,
    M2BertForTokenClassification,
    M2BertModel,
)

IDS = torch.arange(1, 31).view(2, 15)
MASK = torch.ones_like(IDS).index_put((torch.tensor(1), torch.arange(9, 15)), torch.tensor(0))
LABELS = {
    M2BertModel: {},
    M2BertForMaskedLM: {"labels": IDS},
    M2BertForSequenceClassification: {"labels": torch.tensor([0, 1])},
    M2BertForTokenClassification: {"labels": IDS % 3 - 1 - 99 * (IDS % 3 == 0)},  # 0, 1 and -100
    M2BertForQuestionAnswering: {"start_positions": torch.tensor([3, 1]), "end_positions": torch.tensor([5, 8])},
}
CLASSES = list(LABELS)  # test_heads.py has the class whose inputs are of another shape
POOLINGS = ["mean", "weighted_mean", "cls", "cls_tanh", "mean_tanh"]
EACH_CLASS = pytest.mark.parametrize("cls", CLASSES)


@pytest.fixture(params=CLASSES)
def model(request, tiny_config, randomized):
    return randomized(request.param(tiny_config()))


def run(model: PreTrainedModel, *args, **kwargs) -> torch.Tensor:
    """The first output, (2, ..), without a graph."""
    with torch.no_grad():
        return model(*args, **kwargs)[0]


def loss_of(model: PreTrainedModel, mask: torch.Tensor | None = MASK) -> torch.Tensor:
    """A loss that everything in the model takes part in."""
    if labels := LABELS[type(model)]:
        return model(IDS, mask, **labels).loss
    outputs = model(IDS, mask)
    return outputs.last_hidden_state.square().mean() + outputs.pooler_output.square().mean()


def stored(folder) -> dict[str, torch.dtype]:
    """{name: dtype} of every tensor in a folder's safetensors, each name once."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no dictionary)
                assert name not in found, f"{name} is stored twice"
                found[name] = tensors.get_tensor(name).dtype
    return found


def is_filter(name: str) -> bool:
    return "filter." in name


@EACH_CLASS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_filters_stay_float32_from_saving_to_loading_and_back(tiny_config, randomized, tmp_path, cls, dtype):
    model = randomized(cls(tiny_config()))
    exact = {name: tensor.clone() for name, tensor in model.state_dict().items() if is_filter(name)}
    assert exact
    model.to(dtype).save_pretrained(tmp_path)
    assert all((kept == torch.float32) == is_filter(name) for name, kept in stored(tmp_path).items())
    for asked, expected in (("auto", dtype), (dtype, dtype), (torch.float32, torch.float32)):
        loaded = cls.from_pretrained(tmp_path, dtype=asked)
        assert loaded.dtype == expected
        for name, tensor in loaded.state_dict().items():
            assert tensor.dtype == (torch.float32 if is_filter(name) else expected), name
            assert torch.equal(tensor, exact[name]) if is_filter(name) else True, name
        if expected == dtype:
            assert torch.equal(run(loaded.eval(), IDS, MASK), run(model, IDS, MASK))
    back = copy.deepcopy(model).float()
    assert torch.equal(run(loaded.eval(), IDS, MASK), run(back, IDS, MASK))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.08)])
def test_half_precision_outputs_have_the_type_and_nearly_the_values(model, dtype, tolerance):
    exact = run(model, IDS, MASK)
    rounded = run(copy.deepcopy(model).to(dtype), IDS, MASK)
    assert rounded.dtype == dtype
    assert (rounded.float() - exact).abs().max() < tolerance * exact.abs().max()


def test_the_decoder_stays_tied_through_whatever_is_done_to_the_model(tiny_config, randomized, tmp_path):
    model = randomized(M2BertForMaskedLM(tiny_config()))
    model.save_pretrained(tmp_path)
    assert "lm_head.decoder.weight" not in stored(tmp_path)
    resized = copy.deepcopy(model)
    resized.resize_token_embeddings(130)
    replaced = copy.deepcopy(model)
    other = torch.nn.Embedding(120, 32)
    replaced.set_input_embeddings(other)
    replaced.tie_weights()
    assert replaced.get_output_embeddings().weight is other.weight
    changed = {
        "loaded": M2BertForMaskedLM.from_pretrained(tmp_path),
        "loaded in bfloat16": M2BertForMaskedLM.from_pretrained(tmp_path, dtype=torch.bfloat16),
        "cast": copy.deepcopy(model).to(torch.bfloat16),
        "copied": copy.deepcopy(model),
        "pickled": pickle.loads(pickle.dumps(model)),
        "resized": resized,
        "given other embeddings": replaced,
    }
    for what, each in changed.items():
        assert each.get_output_embeddings().weight is each.get_input_embeddings().weight, what
        assert run(each, IDS).isfinite().all(), what


@EACH_CLASS
@pytest.mark.parametrize("labeled", [False, True])
def test_hidden_states_and_tuples_by_argument_and_by_configuration(tiny_config, randomized, cls, labeled):
    model = randomized(cls(tiny_config(num_hidden_layers=3)))
    asked = LABELS[cls] if labeled else {}
    with torch.no_grad():
        assert model(IDS, MASK, **asked).hidden_states is None
        named = model(IDS, MASK, output_hidden_states=True, **asked)
        plain = model(IDS, MASK, output_hidden_states=True, return_dict=False, **asked)
        model.config.return_dict, model.config.output_hidden_states = False, True
        configured = model(IDS, MASK, **asked)
        assert len(model(IDS, MASK, output_hidden_states=False, **asked)) == len(plain) - 1
    assert [tuple(state.shape) for state in named.hidden_states] == [(2, 15, 32)] * 4
    for found in (plain, configured):
        assert isinstance(found, tuple)
        for ours, other in zip(named.to_tuple()[:-1], found[:-1], strict=True):
            assert torch.equal(ours, other)
        assert all(map(torch.equal, named.hidden_states, found[-1]))


@EACH_CLASS
def test_the_first_arguments_are_those_of_any_encoder(tiny_config, randomized, cls):
    names = ["self", "input_ids", "attention_mask", "token_type_ids", "inputs_embeds"]
    assert list(inspect.signature(cls.forward).parameters)[:5] == names
    model = randomized(cls(tiny_config()))
    types = torch.arange(30).view(2, 15) % 2
    expected = run(model, input_ids=IDS, attention_mask=MASK, token_type_ids=types)
    assert torch.equal(run(model, IDS, MASK, types), expected)
    assert not torch.equal(run(model, IDS, MASK), expected)
    assert torch.equal(run(model, IDS, MASK, torch.zeros_like(types)), run(model, IDS, MASK))
    embeds = model.get_input_embeddings()(IDS).detach()
    assert torch.equal(run(model, None, MASK, types, embeds), expected)


@EACH_CLASS
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_parameter_learns(tiny_config, randomized, cls, pooling):
    model = randomized(cls(tiny_config(pooling=pooling))).train()
    loss_of(model).backward()
    # Added to all scores that a softmax compares, these have no effect: their gradient is zero, up to rounding.
    idle = {M2BertForQuestionAnswering: "qa_outputs.bias", M2BertForMultipleChoice: "classifier.bias"}.get(cls)
    still = [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()]
    assert set(still) <= {idle}


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.float32, True), (torch.bfloat16, False)])
def test_gradients_of_norms_in_bfloat16_are_sums_of_all_tokens(tiny_config, dtype, autocast):
    """torch's own norm adds them up in bfloat16 on a CPU, 14 to 85 percent off here."""
    torch.manual_seed(0)
    model = M2BertForMaskedLM(tiny_config(num_hidden_layers=1, max_position_embeddings=2048, mixer_layer_norm=True))
    ids = torch.randint(1, 120, (4, 2048))

    def gradients(model, autocast):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(ids, labels=ids).loss
        loss.backward()
        return {name: p.grad.double() for name, p in model.named_parameters() if "norm" in name}

    right = gradients(copy.deepcopy(model).double(), False)
    found = gradients(model.to(dtype), autocast)
    assert len(found) == 8
    for name, gradient in found.items():
        assert (gradient - right[name]).norm() / right[name].norm() < 0.05, name


def test_embeddings_given_by_the_caller_get_gradients(model):
    embeds = model.get_input_embeddings()(IDS).detach().requires_grad_()
    model(inputs_embeds=embeds, attention_mask=MASK)[0][1].square().sum().backward()
    assert embeds.grad[1, :9].ne(0).any(-1).all()
    assert embeds.grad[1, 9:].eq(0).all()
    assert embeds.grad[0].eq(0).all()


@EACH_CLASS
@pytest.mark.parametrize("pooling", ["weighted_mean", "cls_tanh"])
def test_gradient_checkpointing_replays_dropout(tiny_config, randomized, cls, pooling):
    model = randomized(cls(tiny_config(pooling=pooling, hidden_dropout_prob=0.3))).train()
    forwards, results = [], []
    model.base_model.layers[0].mixer.register_forward_hook(lambda *_: forwards.append(len(results)))
    for checkpointing in (False, True):
        if checkpointing:
            old, new = "gradient_checkpointing_enable", "activation_checkpointing_enable"  # 5.17 knows the old name
            getattr(model, new if hasattr(model, new) else old)()
        torch.manual_seed(0)
        model.zero_grad()
        loss = loss_of(model)
        loss.backward()
        results.append((loss.item(), {name: each.grad.clone() for name, each in model.named_parameters()}))
    (loss, gradients), (replayed_loss, replayed) = results
    assert forwards == [0, 1, 1]
    assert loss == replayed_loss
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, replayed[name], atol=1e-6), name


def test_frozen_models_train_adapters_on_their_inputs(tiny_config, randomized):
    """What peft does before it turns gradient checkpointing on."""
    model = randomized(M2BertModel(tiny_config())).requires_grad_(False)
    model.enable_input_require_grads()
    assert model(IDS).pooler_output.requires_grad


def test_the_classifier_has_a_dropout_of_its_own(tiny_config, randomized):
    model = randomized(M2BertForSequenceClassification(tiny_config(classifier_dropout=0.5))).train()
    assert torch.equal(run(model.base_model, IDS), run(model.base_model, IDS))
    assert not torch.equal(run(model, IDS), run(model, IDS))


@EACH_CLASS
def test_equally_padded_texts_give_what_each_gives_alone(tiny_config, randomized, cls):
    model = randomized(cls(tiny_config(padding="visible"))).double()
    with torch.no_grad():
        together = model(IDS, MASK)
        for i in range(2):
            alone = model(IDS[i : i + 1], MASK[i : i + 1])
            for ours, theirs in zip(together.to_tuple(), alone.to_tuple(), strict=True):
                assert (ours[i] - theirs[0]).abs().max() < 1e-12


def test_a_forward_leaves_no_trace_in_what_is_saved(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(model, IDS, MASK)
    loss_of(model.train()).backward()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@EACH_CLASS
def test_a_seed_decides_the_initialization(tiny_config, cls):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(cls(tiny_config(pooling="mean_tanh")).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert all(tensor.isfinite().all() for tensor in states[0].values())


def test_heads_that_a_checkpoint_lacks_are_initialized_and_named(tiny_config, randomized, tmp_path):
    """The loader makes the model on the meta device: what no file fills must be initialized, not left as it was."""
    randomized(M2BertModel(tiny_config(hidden_size=64))).save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded, report = M2BertForSequenceClassification.from_pretrained(tmp_path, num_labels=40, output_loading_info=True)
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not report["unexpected_keys"]
    assert loaded.classifier.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert loaded.classifier.bias.eq(0).all()
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))


@pytest.mark.parametrize(
    ("problem", "num_labels", "labels", "expected"),
    [
        ("regression", 1, torch.tensor([0.5, -1.0]), lambda logits, labels: mse_loss(logits[:, 0], labels)),
        ("regression", 3, torch.ones(2, 3), mse_loss),
        ("single_label_classification", 3, torch.tensor([0, 2]), cross_entropy),
        ("multi_label_classification", 3, torch.tensor([[1.0, 0, 1], [0, 0, 1]]), binary_cross_entropy_with_logits),
    ],
)
def test_each_kind_of_label_has_its_loss(tiny_config, randomized, problem, num_labels, labels, expected):
    """Told, or found out from the labels, which cannot tell several numbers from several labels."""
    untold = [] if problem == "regression" and num_labels > 1 else [{}]
    for told in ({"problem_type": problem}, *untold):
        model = randomized(M2BertForSequenceClassification(tiny_config(num_labels=num_labels, **told)))
        outputs = model(IDS, MASK, labels=labels)
        assert model.config.problem_type == problem
        assert torch.allclose(outputs.loss, expected(outputs.logits, labels))


def test_torch_export_gives_one_program_for_all_batches_and_lengths(tiny_config, randomized):
    model = randomized(M2BertModel(tiny_config()))
    batch, length = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("length", min=2, max=48)
    shapes = {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        program = torch.export.export(model, (IDS, MASK), dynamic_shapes=shapes).module()
        for ids, mask in ((IDS, MASK), (torch.arange(1, 41).view(4, 10), torch.ones(4, 10).tril(3).long())):
            expected = model(ids, mask).pooler_output
            assert torch.allclose(program(ids, mask).pooler_output, expected, atol=1e-6)


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export_with_gradients(tiny_config, randomized, strict):
    model = randomized(M2BertModel(tiny_config()))
    program = torch.export.export(model, (IDS, MASK), strict=strict).module()
    assert torch.allclose(program(IDS, MASK).pooler_output, model(IDS, MASK).pooler_output, atol=1e-6)


@pytest.mark.parametrize("cls", [*CLASSES[1:], M2BertForMultipleChoice])
def test_a_step_of_transformers_own_trainer(tiny_config, randomized, tmp_path, cls):
    pytest.importorskip("accelerate")
    model = randomized(cls(tiny_config()))
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    inputs = {"input_ids": IDS, "attention_mask": MASK, **LABELS.get(cls, {})}
    if cls is M2BertForMultipleChoice:
        inputs = {"input_ids": IDS.view(2, 3, 5), "labels": torch.tensor([0, 2])}
    rows = [dict(zip(inputs, row, strict=True)) for row in zip(*inputs.values(), strict=True)]
    arguments = TrainingArguments(
        output_dir=tmp_path, max_steps=1, per_device_train_batch_size=2, learning_rate=1e-3, use_cpu=True,
        report_to="none", disable_tqdm=True, save_steps=1, gradient_checkpointing=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    equal = {name for name, each in model.named_parameters() if torch.equal(each, before[name])}
    assert equal <= ({"classifier.bias"} if cls is M2BertForMultipleChoice else set())  # there a softmax ignores it
    saved = cls.from_pretrained(tmp_path / "checkpoint-1").eval()
    assert torch.equal(run(saved, inputs["input_ids"]), run(model.eval(), inputs["input_ids"]))
    assert AutoModel.from_pretrained(tmp_path / "checkpoint-1").config.architectures == [cls.__name__]
