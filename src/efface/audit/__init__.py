"""The battery: evaluation and all attacks on one or several models, resumable, ending in one table."""
