"""MAKE: preference pairs from the model itself."""
