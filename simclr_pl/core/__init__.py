"""SimCLR itself: what it is, to be read in an afternoon."""
