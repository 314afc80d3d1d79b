"""The original's formulas as written here give the numbers that the original itself gave."""

import pytest
import torch
from original_model import KEPT, Fixture, needs_fixtures

from m2bert.hub.convert.names import convert_state_dict
from m2bert.hub.convert.reference import reference_forward

pytestmark = needs_fixtures


@pytest.mark.parametrize("name", KEPT)
def test_every_output_is_the_originals(name):
    fixture = Fixture(name)
    options = convert_state_dict(fixture.embedding_state(), fixture.config).options
    for state, head, golden in ((fixture.embedding_state(), "pooler_output", "pooled_output"),
                                (fixture.masked_lm_state(), "logits", "mlm_logits")):  # fmt: skip
        found = reference_forward(state, options, **fixture.inputs)
        assert found.keys() == {"last_hidden_state", head}
        for ours, theirs in (("last_hidden_state", "sequence_output"), (head, golden)):
            assert found[ours].dtype == torch.float64
            assert (found[ours] - fixture.outputs[theirs].double()).abs().max() <= fixture.tolerance


def test_the_first_position_as_it_is():
    fixture = Fixture("base_full")
    options = convert_state_dict(fixture.embedding_state(), fixture.config).options.model_copy(update={"use_cls_token": True})
    found = reference_forward(fixture.embedding_state(), options, **fixture.inputs)["pooler_output"]
    assert (found - fixture.outputs["sentence_embedding_cls"]).abs().max() <= fixture.tolerance
