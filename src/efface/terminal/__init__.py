"""SHOW: what whoever runs a command sees, on a terminal or in a file: tables as text, and how far the work is."""
