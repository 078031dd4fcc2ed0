"""`pack`: a folder of images, written once."""
