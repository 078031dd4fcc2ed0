"""`sweep`: values tried, run after run."""
