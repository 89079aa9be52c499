"""From a trained torch checkpoint to a package that is proven equal to it.

Needs the ``export`` extra (torch, transformers, onnx, safetensors). Imports ``prm_edge_runtime``.
"""
