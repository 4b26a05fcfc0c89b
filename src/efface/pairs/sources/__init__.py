"""The sources of pairs, a file each: its settings, and what it makes of them. `efface.pairs.SOURCES` names them.

Nothing heavy is imported at the top of these files, for their settings are flags of `efface pairs --help`.
"""
