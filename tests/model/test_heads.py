"""The heads for tokens, answers and choices give the outputs and the losses of BERT's."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForMultipleChoice,
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForTokenClassification,
    Trainer,
    TrainingArguments,
)

from modeling_m2bert import (
    M2BertForMultipleChoice,
    M2BertForQuestionAnswering,
    M2BertForSequenceClassification,
    M2BertForTokenClassification,
)

IDS = torch.arange(1, 31).view(2, 15)
TAGS = (IDS % 3).masked_fill(IDS % 15 < 6, -100)
CHOICES = torch.arange(1, 61).view(2, 3, 10)
MASK = torch.ones_like(CHOICES).index_fill(2, torch.arange(6, 10), 0)


class Encoder(torch.nn.Module):
    """Stands for both encoders: what the heads read is given."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, *inputs, **kwargs):
        return self.outputs


def berts(cls, model, encoder):
    """BERT's model of the class `cls` with the head of ours, and the same encoder."""
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 120}
    theirs = cls(BertConfig(**sizes, num_labels=model.config.num_labels)).eval()
    head = {name: each for name, each in model.state_dict().items() if not name.startswith("model.")}
    theirs.load_state_dict(head, strict=False)
    theirs.bert = encoder
    return theirs


@pytest.mark.parametrize(
    ("ours", "theirs", "labels"),
    [
        (M2BertForTokenClassification, BertForTokenClassification, {"labels": TAGS}),
        (M2BertForTokenClassification, BertForTokenClassification, {"labels": torch.full_like(IDS, -100)}),
        (M2BertForQuestionAnswering, BertForQuestionAnswering,
         {"start_positions": torch.tensor([3, 1]), "end_positions": torch.tensor([5, 14])}),
        (M2BertForQuestionAnswering, BertForQuestionAnswering,  # beyond the text, before it, and as a column
         {"start_positions": torch.tensor([[99], [-1]]), "end_positions": torch.tensor([[15], [7]])}),
        (M2BertForMultipleChoice, BertForMultipleChoice, {"labels": torch.tensor([2, 0])}),
        (M2BertForMultipleChoice, BertForMultipleChoice, {"labels": torch.tensor([2, -100])}),
    ],
)  # fmt: skip
def test_logits_and_losses_are_those_of_bert(tiny_config, randomized, ours, theirs, labels):
    choices = ours is M2BertForMultipleChoice
    model = randomized(ours(tiny_config(num_labels=2 if ours is M2BertForQuestionAnswering else 3)))
    ids, mask = (CHOICES, MASK) if choices else (IDS, None)
    with torch.no_grad():
        outputs = model.model(ids.flatten(0, -2), None if mask is None else mask.flatten(0, -2))
        expected = berts(theirs, model, Encoder(outputs))(ids, **labels)
        found = model(ids, mask, **labels)
    assert list(found) == list(expected)
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=1e-6, equal_nan=True), name


def test_choices_are_texts_that_share_a_softmax(tiny_config, randomized, tmp_path):
    model = randomized(M2BertForMultipleChoice(tiny_config(pooling="weighted_mean", num_pooling_heads=2)))
    types = (CHOICES > 30).long()
    with torch.no_grad():
        rows = zip(CHOICES.flatten(0, 1), MASK.flatten(0, 1), types.flatten(0, 1), strict=True)
        alone = [model(*(each[None, None] for each in row)).logits.item() for row in rows]
        outputs = model(CHOICES, MASK, types, output_hidden_states=True)
        assert torch.allclose(outputs.logits.flatten(), torch.tensor(alone), atol=1e-5)
        assert outputs.hidden_states[-1].shape == (6, 10, 32)
        assert model(CHOICES[:0]).logits.shape == (0, 3)
        plain = randomized(M2BertForMultipleChoice(tiny_config()))
        embeds = plain.get_input_embeddings()(CHOICES)
        assert torch.equal(plain(None, MASK, types, embeds).logits, plain(CHOICES, MASK, types).logits)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForMultipleChoice.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(loaded.eval()(CHOICES, MASK).logits, model(CHOICES, MASK).logits)


def test_inputs_without_choices_are_named(tiny_config):
    model = M2BertForMultipleChoice(tiny_config())
    with pytest.raises(ValueError, match=r"shape \(2, 15\); expected \(batch, choices, length\)"):
        model(IDS)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()


@pytest.mark.parametrize(
    ("cls", "inputs", "labels"),
    [
        (M2BertForTokenClassification, IDS, TAGS.masked_fill(IDS < 10, -100)),
        (M2BertForMultipleChoice, CHOICES, torch.tensor([1, 2])),
        (M2BertForSequenceClassification, IDS, torch.tensor([1, 2])),
        (M2BertForSequenceClassification, IDS, torch.tensor([[1.0, 0, 0], [0, 1, 1]])),
    ],
)
def test_accumulated_gradients_are_those_of_the_whole_batch(tiny_config, randomized, tmp_path, cls, inputs, labels):
    """The Trainer gives the number of labels of all its steps, and then leaves the loss as it is."""
    pytest.importorskip("accelerate")
    rows = [{"input_ids": row, "labels": label} for row, label in zip(inputs, labels, strict=True)]
    start, found = randomized(cls(tiny_config(num_labels=3))), []
    for batch, steps in ((2, 1), (1, 2)):
        model = copy.deepcopy(start)
        arguments = TrainingArguments(
            output_dir=tmp_path, max_steps=1, per_device_train_batch_size=batch, gradient_accumulation_steps=steps,
            optim="sgd", learning_rate=0.1, max_grad_norm=0, use_cpu=True, report_to="none", disable_tqdm=True,
            save_strategy="no",
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=rows).train()
        found.append(model.classifier.weight.detach() - start.classifier.weight.detach())
    assert found[0].abs().max() > 1e-3
    assert torch.allclose(*found, atol=1e-6)
