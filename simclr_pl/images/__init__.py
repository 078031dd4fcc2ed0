"""Images: data sets by name, their files, and the processes that read them."""
