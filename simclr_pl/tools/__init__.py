"""The commands beside `fit`, a file each."""
