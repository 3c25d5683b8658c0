"""Bytes on disk and from the network: files, where they lie, how they come here, and tensors in them.

What a registry or a model says of them belongs elsewhere. `zoo ls` passes through here, so nothing is handed on.
"""
