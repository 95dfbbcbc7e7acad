"""Policies: which latents of a stream to decode, and when."""
