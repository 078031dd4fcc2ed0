"""Worker processes that open images and cut crops from them."""
