"""A file or a folder for each command."""
