"""READ: rows, pairs, token ids, batches."""
