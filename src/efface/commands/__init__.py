"""What can `efface` do? One file a command: `add` declares its flags, `run` calls one function and prints."""
