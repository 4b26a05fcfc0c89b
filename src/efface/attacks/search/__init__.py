"""Attacks that search for token sequences: gcg, enhanced_gcg."""
