"""What methods share: the trainer, its data and its reference."""
