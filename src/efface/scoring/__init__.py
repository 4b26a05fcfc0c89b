"""JUDGE: who says how toxic a text is."""
