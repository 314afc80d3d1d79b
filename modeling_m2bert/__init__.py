"""M2-BERT's model code. Importing it makes `AutoConfig` and the `AutoModel` classes know `m2bert`."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from .configuration_m2bert import M2BertConfig
from .m2bert_ops_filter import clear_filter_cache
from .modeling_m2bert import M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel

AutoConfig.register("m2bert", M2BertConfig)
AutoModel.register(M2BertConfig, M2BertModel)
AutoModelForMaskedLM.register(M2BertConfig, M2BertForMaskedLM)
AutoModelForSequenceClassification.register(M2BertConfig, M2BertForSequenceClassification)

__all__ = ["M2BertConfig", "M2BertForMaskedLM", "M2BertForSequenceClassification", "M2BertModel", "clear_filter_cache"]
