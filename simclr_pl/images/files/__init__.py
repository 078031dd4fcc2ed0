"""Image files on disk: listed below a folder, known by format, decoded, cropped."""
