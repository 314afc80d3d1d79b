"""M2-BERT's model code. Importing it makes `AutoConfig` and the `AutoModel` classes know `m2bert`."""

import transformers

from .configuration_m2bert import AUTO_MAP, M2BertConfig
from .m2bert_ops_filter import clear_filter_cache
from .m2bert_ops_product import fast_dtype
from .modeling_m2bert import (
    M2BertForMaskedLM,
    M2BertForMultipleChoice,
    M2BertForQuestionAnswering,
    M2BertForSequenceClassification,
    M2BertForTokenClassification,
    M2BertModel,
)

transformers.AutoConfig.register("m2bert", M2BertConfig)
for auto_class, name in AUTO_MAP.items():
    if auto_class != "AutoConfig":
        getattr(transformers, auto_class).register(M2BertConfig, globals()[name.partition(".")[2]])

__all__ = [
    "M2BertConfig",
    "M2BertForMaskedLM",
    "M2BertForMultipleChoice",
    "M2BertForQuestionAnswering",
    "M2BertForSequenceClassification",
    "M2BertForTokenClassification",
    "M2BertModel",
    "clear_filter_cache",
    "fast_dtype",
]
