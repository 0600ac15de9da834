"""The command ``lole``: a module for each subcommand."""
