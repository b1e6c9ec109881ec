"""Fine-tuning of models that others trained: `torchane lora`, through transformers and PEFT."""
