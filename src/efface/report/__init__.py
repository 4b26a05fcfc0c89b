"""SHOW: figures and the self-contained HTML report. Nothing is imported here, so that the command line starts fast."""
