"""Images that are numbers of any depth and any number of bands, and the range they are put in."""
