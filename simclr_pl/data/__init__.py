"""Data sets, loaders, views, and the data module that holds them."""
