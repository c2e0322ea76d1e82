"""The networks that the zoo trains, one file each: what a torch tool needs to rebuild them.

A file is copied beside the entry's ONNX as ``torch_model.py``, so it imports torch and safetensors alone. Its
``module()`` is the trained network; ``network()`` the one before training, with ``torch``'s own initial weights.
"""
