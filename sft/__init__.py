"""Fine-tune a small Qwen on Chinese text: classification and named-entity recognition."""

__version__ = "0.1.0"
