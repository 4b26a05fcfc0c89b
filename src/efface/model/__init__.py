"""MODEL: how one is loaded, saved, looked into and run."""
