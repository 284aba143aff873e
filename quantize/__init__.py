"""GGUF to a smaller GGUF."""
