"""Adapters for trainers and for inference-time scaling; none is imported unless it is used."""
