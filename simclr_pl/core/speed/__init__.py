"""What makes the core fast, and is no part of its story."""
