"""Training: masked-language-model pretraining and retrieval fine-tuning, as Accelerate loops."""
