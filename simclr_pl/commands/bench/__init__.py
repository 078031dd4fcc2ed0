"""`bench`: how fast a recipe trains here."""
