"""KEEP: what lies on the disk, how it is written whole and what an interruption leaves."""
