"""DO: the main job in one command. `efface demo` on the embedded model, `efface detox` on the user's own."""
