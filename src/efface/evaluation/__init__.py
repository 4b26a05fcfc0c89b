"""MEASURE: toxicity, its price elsewhere, and whether the writing is still text; `measure.evaluate` is the whole."""
