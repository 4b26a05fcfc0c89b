"""EXPLAIN: what is left in the hidden states, and where the model changed."""
