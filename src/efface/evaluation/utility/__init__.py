"""What can the model still do? Tasks of lm-evaluation-harness, and their comparison."""
