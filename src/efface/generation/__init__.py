"""WRITE: what a model says after a prompt, and how likely it finds what others say."""
