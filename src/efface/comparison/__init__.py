"""COMPARE: methods at one utility budget. `sweep` trains, scales and attacks them; `compare` renders what it found."""
